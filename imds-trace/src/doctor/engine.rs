//! Can the Docker engine be asked who runs here?

use super::sight::Sight;
use super::{Answer, Check, Status, Subject};
use diagnosis::words::counted;

/// The check.
pub const CHECK: Check =
    Check { id: "engine", explain: "whether the Docker engine can be asked for its containers", examine };

fn examine(sight: &Sight) -> Vec<Answer> {
    let answer = match &sight.engine {
        Ok(listing) => {
            let (containers, networks) = (listing.containers.len() as u64, listing.networks.len() as u64);
            let summary =
                format!("The engine runs {} on {}.", counted(containers, "container"), counted(networks, "network"));
            Answer::new(Subject::Host, Status::Ok, summary)
        }
        Err(why) => Answer::new(
            Subject::Host,
            Status::Unknown,
            format!(
                "{why}: containers are only those that processes and network namespaces show ({}), and nothing is said of their \
                 variables (the engine's socket needs root or the group docker; --docker-host names another).",
                counted(sight.inside.len() as u64, "namespace")
            ),
        ),
    };
    vec![answer.look("docker ps")]
}
