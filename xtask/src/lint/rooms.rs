//! What may a room not name, though Cargo would let it? The tables; [`check`] reads them.
//!
//! A room is a module at the top of a crate. Which crate may use which, Cargo says; that files form no circle, `circles` does.

use super::circles::Module;

/// Outside crates that only some rooms may name. A crate that is not here anyone may use.
const CRATES: &[(&str, &[&str])] = &[
    ("aya", &["kernel"]),
    ("aya_log", &["kernel"]),
    ("caps", &["privileges"]),
    ("clap", &["cli", "main"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("bollard", &["sources"]),
    ("indicatif", &["progress"]),
    ("sd_notify", &["live"]),
];

/// Stages: each is a pure function of what came before.
const STAGES: &[&str] = &["observation", "input", "journey", "exchange", "identity", "finding", "event", "pipeline"];
/// What is made of events.
const TOLD: &[&str] = &["expect", "output", "recording", "replay", "report", "reporter"];

/// Rooms that may not name others, and what to do instead.
const APART: &[(&[&str], &[&str], &str)] = &[
    (STAGES, TOLD, "say it as an Event; what is told of it is not known here"),
    (&["journey", "exchange"], &["identity"], "who it was is asked when the exchange is over, by the pipeline"),
    (&["output"], &["pipeline", "replay", "recording"], "say it as an Event and let each output tell it"),
    (&["output"], &["expect", "report", "reporter"], "outputs only write: the reporter decides what, and counts"),
    (&["kernel", "sources", "interfaces"], &["live", "doctor"], "hand the value in as data"),
    (&["doctor"], &["live"], "move what both need to a room of its own"),
];

/// What in this file breaks the tables, a sentence each.
pub fn check(file: &Module) -> Vec<String> {
    let room = if file.file.ends_with("/main.rs") { "main" } else { file.path.first().map_or("lib", String::as_str) };
    let mut wrong = Vec::new();
    for named in &file.names {
        let first = named.path[0].as_str();
        let outside = named.path.len() > 1 || named.used;
        for (_, rooms) in CRATES.iter().filter(|(name, rooms)| outside && *name == first && !rooms.contains(&room)) {
            wrong.push(format!("{}:{} names {first}, which only {} may", file.file, named.line, rooms.join(", ")));
        }
        let ups = named.path.iter().take_while(|part| *part == "super").count();
        let from_root = match first {
            "crate" => named.path.get(1),
            "super" if ups == file.path.len() + named.within.len() => named.path.get(ups),
            _ => None,
        };
        let Some(other) = from_root.filter(|other| *other != room) else { continue };
        for (rooms, others, advice) in APART {
            if rooms.contains(&room) && others.contains(&other.as_str()) {
                wrong.push(format!("{}:{} names {other}, which {room} may not: {advice}", file.file, named.line));
            }
        }
    }
    wrong.dedup();
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lint::{circles, source};

    fn wrong(below: &str, text: &str) -> Vec<String> {
        let names = source::read(text).unwrap().paths;
        check(&Module { file: format!("src/{below}"), path: circles::module(below).unwrap(), names })
    }

    #[test]
    fn a_room_that_names_another_gets_the_sentence_a_newcomer_needs() {
        assert_eq!(
            wrong("journey/nat.rs", "use crate::identity::Directory;"),
            [
                "src/journey/nat.rs:1 names identity, which journey may not: who it was is asked when the exchange is over, by the \
             pipeline"
            ]
        );
        assert_eq!(wrong("output/text.rs", "use super::super::pipeline::Pipeline;").len(), 1);
        assert_eq!(wrong("finding/mod.rs", "use crate::{net::Ttl, output, expect::Expectations};").len(), 2);
        assert_eq!(wrong("output/text.rs", "use super::json; use crate::event::Event;").len(), 0);
    }

    #[test]
    fn only_the_kernel_room_names_aya() {
        assert_eq!(wrong("kernel/attach.rs", "use aya::Ebpf;"), Vec::<String>::new());
        assert_eq!(wrong("live.rs", "use aya::Ebpf;"), ["src/live.rs:1 names aya, which only kernel may"]);
        assert_eq!(wrong("live.rs", "use aya;").len(), 1);
        assert_eq!(wrong("live.rs", "fn f(aya: u8) { aya.x(); my_aya::x() }").len(), 0);
        assert_eq!(wrong("main.rs", "use clap::Parser;").len(), 0);
    }
}
