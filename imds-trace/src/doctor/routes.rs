//! Do the routes to IMDS lead out, on the host and in each container?

use std::net::IpAddr;

use super::sight::Sight;
use super::{Answer, Check, Status, Subject};
use crate::interfaces::snapshot::{Snapshot, Way};

/// The check.
pub const CHECK: Check = Check { id: "route", explain: "whether routes to the endpoints lead out", examine };

fn examine(sight: &Sight) -> Vec<Answer> {
    let v4_asked = sight.endpoints.iter().any(IpAddr::is_ipv4);
    let plain = |command: &str| command.to_owned();
    let mut answers = match &sight.host.network {
        Ok(network) => judge(network, &sight.endpoints, v4_asked, &|| Subject::Host, &plain),
        Err(why) => vec![Answer::new(Subject::Host, Status::Unknown, format!("The routes could not be read: {why}."))],
    };
    for inside in &sight.inside {
        let about = || Subject::Container(inside.name());
        match inside.view.as_ref().map(|view| &view.network) {
            Ok(Ok(network)) if network.links.values().all(|link| link.name == "lo") => {
                let summary = "It has no network but loopback: it cannot reach IMDS, and was perhaps meant not to.";
                answers.push(Answer::new(about(), Status::Warning, summary).look(inside.command("ip addr")));
            }
            Ok(Ok(network)) => {
                let command = |command: &str| inside.command(command);
                answers.extend(judge(network, &sight.endpoints, v4_asked, &about, &command));
            }
            Ok(Err(why)) => {
                answers.push(Answer::new(about(), Status::Unknown, format!("Its routes could not be read: {why}.")))
            }
            Err(why) => {
                answers.push(Answer::new(about(), Status::Unknown, format!("Its routes are not known: {why}.")))
            }
        }
    }
    answers
}

/// The routes of one namespace. Most have no IPv6, which is no fault where IPv4 leads to IMDS.
fn judge(
    network: &Snapshot,
    endpoints: &[IpAddr],
    v4_asked: bool,
    about: &dyn Fn() -> Subject,
    command: &dyn Fn(&str) -> String,
) -> Vec<Answer> {
    let one = |endpoint: &IpAddr| {
        let family = if endpoint.is_ipv6() { "ip -6" } else { "ip" };
        let answer = |status, summary: String| {
            Answer::new(about(), status, summary).look(command(&format!("{family} route get {endpoint}")))
        };
        match network.way(*endpoint) {
            Some(Way::Out { interface, .. }) if network.name(*interface) == "lo" => answer(
                Status::Warning,
                format!("The route to {endpoint} leads to loopback: it would be answered locally, not by IMDS."),
            ),
            Some(Way::Out { interface, gateway, .. }) => {
                let via = gateway.map_or(String::new(), |gateway| format!(" via {gateway}"));
                answer(Status::Ok, format!("{endpoint} is reached by {}{via}.", network.name(*interface)))
            }
            Some(Way::Local) => answer(
                Status::Warning,
                format!(
                    "{endpoint} is an address of this very namespace (a local route): it would be answered locally, not by IMDS."
                ),
            ),
            Some(Way::Nowhere { why: "no route", answer: said }) if endpoint.is_ipv6() && v4_asked => {
                answer(Status::Ok, format!("{endpoint} has no route ({said}), as is usual where only IPv4 is used."))
            }
            Some(Way::Nowhere { why, answer: said }) => {
                let kind = if *why == "no route" { "no route".to_owned() } else { format!("a route of type {why}") };
                let said = answer(Status::Broken, format!("There is {kind} to {endpoint}: programs get \"{said}\"."));
                if *why == "no route" {
                    said.mend(command(&format!("{family} route add {endpoint} via <gateway>")))
                } else {
                    // It may be a route to a wider prefix.
                    said.look(command(&format!("{family} route show table all type {why}")))
                }
            }
            Some(Way::Unknown(why)) => {
                answer(Status::Unknown, format!("The kernel would not say how {endpoint} is reached: {why}."))
            }
            None => answer(Status::Unknown, format!("The kernel was not asked how {endpoint} is reached.")),
        }
    };
    endpoints.iter().map(one).collect()
}
