//! What do this kernel and this host allow, and what on the host would break IMDS now?
//!
//! One file for each check, and one line in [`CHECKS`]. A check looks at what was gathered ([`sight`]) and gives answers. Nothing
//! here changes anything on the host, and nothing is sent to IMDS. What cannot be known is `unknown`, and says what would be needed.

mod astray;
mod conntrack;
mod ena;
mod engine;
mod environment;
pub mod firewall;
mod firewall_rules;
mod forwarding;
mod hop_limit;
mod inside;
mod instance;
mod keeper;
mod kernel;
mod listeners;
mod lost;
mod masquerade;
mod neighbour;
mod onward;
mod programs;
mod redirect;
mod reverse_path;
mod routes;
mod setting;
mod sight;
mod start_ttl;
mod stuck;
mod tell;

use std::io::Write;

use anyhow::{Context, bail};
use schemars::JsonSchema;
use serde::Serialize;

use crate::config::Doctor;
use crate::kernel::{clsact, features};
use diagnosis::printable::printable;
use sight::Sight;
pub use tell::schema;

/// What `--output` can say here; none of it must go to a file.
pub const KINDS: &[(&str, bool)] = &[("text", false), ("json", false)];

/// Bytes of an interface's name, and what is said of it, that are shown.
const MAX_NAME: usize = 256;

/// How it stands with something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It may break IMDS, or hides something.
    Warning,
    /// It breaks IMDS for somebody, or tracing.
    Broken,
    /// It could not be found out.
    Unknown,
}

/// What an answer is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The host itself.
    Host,
    /// Something of its kernel.
    Kernel(String),
    /// An interface of the host.
    Interface(String),
    /// A container.
    Container(String),
    /// A container network.
    Network(String),
}

impl Subject {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Subject::Host => "host",
            Subject::Kernel(name) | Subject::Interface(name) | Subject::Container(name) | Subject::Network(name) => {
                name
            }
        }
    }
}

/// What a check found about one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// About what.
    pub about: Subject,
    /// How it stands.
    pub status: Status,
    /// A sentence for a tired person, with the value measured.
    pub summary: String,
    /// A command to look at it oneself.
    pub look: Option<String>,
    /// A command that mends it.
    pub mend: Option<String>,
}

impl Answer {
    /// An answer without commands.
    pub fn new(about: Subject, status: Status, summary: impl Into<String>) -> Self {
        Self { about, status, summary: summary.into(), look: None, mend: None }
    }

    /// With a command to look at it oneself.
    pub fn look(mut self, command: impl Into<String>) -> Self {
        self.look = Some(command.into());
        self
    }

    /// With a command that mends it.
    pub fn mend(mut self, command: impl Into<String>) -> Self {
        self.mend = Some(command.into());
        self
    }
}

/// A check.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Its name.
    pub id: &'static str,
    /// What it looks for.
    pub explain: &'static str,
    /// Looks.
    pub examine: fn(&Sight) -> Vec<Answer>,
}

/// All checks, in the order told.
pub const CHECKS: &[Check] = &[
    kernel::CHECK,
    instance::CHECK,
    engine::CHECK,
    routes::CHECK,
    forwarding::CHECK,
    reverse_path::CHECK,
    firewall_rules::CHECK,
    programs::CHECK,
    masquerade::CHECK,
    conntrack::CHECK,
    ena::CHECK,
    environment::CHECK,
    hop_limit::CHECK,
];

/// Looks, and tells. Gives the exit code: 0, or 1 if something is broken and that is a failure.
pub fn doctor(config: Doctor) -> anyhow::Result<u8> {
    let level = if config.verbosity > 0 { log::LevelFilter::Debug } else { log::LevelFilter::Warn };
    env_logger::Builder::new().filter(Some("imds_trace"), level).format_timestamp(None).init();
    if config.clean {
        return clean();
    }
    let mut teller = tell::Teller::open(&config.outputs)?;
    let sight = Sight::gather(&config.endpoints, &config.docker_hosts, &config.host_root);
    #[expect(clippy::disallowed_methods, reason = "its answers are about now")]
    let at = jiff::Timestamp::now();
    let mut broken = false;
    for check in CHECKS {
        log::debug!("check {}: {}", check.id, check.explain);
        let mut answers = (check.examine)(&sight);
        for answer in answers.iter_mut().filter(|answer| answer.status == Status::Ok) {
            // There is nothing to mend.
            answer.mend = None;
        }
        broken |= answers.iter().any(|answer| answer.status == Status::Broken);
        match teller.tell(at, check.id, &answers) {
            // Whoever read it went away: no error, but the end.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                return Ok(u8::from(config.exit_code && broken));
            }
            told => told.context("write output")?,
        }
    }
    match teller.finish(at) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        told => told.context("write output")?,
    }
    Ok(u8::from(config.exit_code && broken))
}

/// Removes what was left behind. Gives the exit code.
fn clean() -> anyhow::Result<u8> {
    if features::missing_capabilities().contains(&"CAP_NET_ADMIN") {
        bail!("doctor --clean needs CAP_NET_ADMIN: run it as root");
    }
    let removed = clsact::clean().context("doctor --clean")?;
    let mut said = String::new();
    for removed in &removed {
        said += &format!("Removed {}.\n", printable(&removed.to_string(), MAX_NAME));
    }
    if removed.is_empty() {
        said += "Nothing to clean up: no killed run left anything on the interfaces of this network namespace.\n";
    }
    match std::io::stdout().write_all(said.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("write output"),
        _ => Ok(0),
    }
}

/// `a, b and 3 more`: the first few of many names.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_has_a_name_of_its_own() {
        for check in CHECKS {
            assert_eq!(CHECKS.iter().filter(|other| other.id == check.id).count(), 1, "{}", check.id);
            assert!(!check.explain.is_empty());
        }
    }
}
