//! Who may import whom, and which outside crates and calls belong to which room? The tables; [`check`] reads them.
//!
//! A room is a module at the top of imds-trace/src. Test code may name anything.

use super::source::{self, Source};

/// A room and what it may name of the crate: a room, or one path in a room (`identity::fact`).
/// Itself it may always name.
pub const ROOMS: &[(&str, &[&str])] = &[
    // Nouns and helpers without I/O.
    ("net", &[]),
    ("secret", &["net"]),
    ("printable", &["net"]),
    // The stages: pure, in the order the data takes.
    ("observation", &["net", "secret"]),
    ("input", &["net", "observation", "identity::fact", "identity::Fact"]),
    ("journey", &["net", "observation"]),
    ("exchange", &["net", "observation", "journey"]),
    ("identity", &["net", "secret", "printable"]),
    ("finding", &["net", "exchange", "journey", "identity", "printable"]),
    // An event carries the report, and the report absorbs events: two files of one thing.
    ("event", &["net", "observation", "input", "journey", "exchange", "identity", "finding", "report"]),
    ("report", &["net", "event", "exchange", "finding", "identity", "journey::OtherPackets", "config"]),
    ("expect", &["net", "event", "exchange", "journey", "finding", "identity", "report", "config"]),
    ("probe", &["net", "exchange", "finding", "identity::fact", "journey", "event", "report"]),
    ("pipeline", &["net", "input", "observation", "journey", "exchange", "identity", "finding", "event", "report"]),
    // What is written and read. An output reads what an event carries: never the pipeline, the kernel or a source.
    (
        "output",
        &[
            "net",
            "observation",
            "journey",
            "exchange",
            "identity",
            "finding",
            "event",
            "report",
            "expect",
            "config",
            "printable",
        ],
    ),
    ("recording", &["net", "input", "identity::fact", "event", "printable"]),
    // Observations and what is known of them, from somebody else's file.
    ("capture", &["net", "input", "observation", "event"]),
    // What is typed, and what it means.
    ("cli", &["config", "output::OUTPUTS", "output::Kind", "finding::RULES", "doctor::KINDS"]),
    ("config", &[]),
    // The machine.
    ("interfaces", &["net"]),
    ("ethtool", &[]),
    ("privileges", &[]),
    ("kernel", &["net", "interfaces", "input::Names", "input::Record", "event", "privileges", "printable"]),
    // The shells.
    (
        "live",
        &[
            "net",
            "kernel",
            "privileges",
            "interfaces",
            "ethtool",
            "identity",
            "input",
            "recording",
            "pipeline",
            "event",
            "output",
            "probe",
            "config",
            "printable",
        ],
    ),
    (
        "replay",
        &[
            "net",
            "input",
            "exchange",
            "recording",
            "capture",
            "pipeline",
            "event",
            "report",
            "output",
            "config",
            "printable",
        ],
    ),
    (
        "doctor",
        &[
            "net",
            "kernel",
            "event::Has",
            "interfaces::snapshot",
            "ethtool",
            "identity::cgroup",
            "identity::listing",
            "config",
            "printable",
        ],
    ),
    ("main", &["cli", "live", "replay", "doctor", "printable"]),
];

/// What to do instead, by the room (or crate, or call) that was named where it must not be.
const ADVICE: &[(&str, &str)] = &[
    ("identity", "put the lookup behind Directory or move the code"),
    ("kernel", "everything below Input runs without a kernel: hand the value in as data"),
    ("output", "say it as an Event and let each output tell it"),
    ("cli", "hand over what it means (config), not what was typed"),
    ("Instant::now", "time comes in with the data"),
    ("SystemTime::now", "time comes in with the data"),
    ("Timestamp::now", "time comes in with the data"),
];

/// Outside crates that only some rooms may name. A crate that is not here anyone may use.
pub const CRATES: &[(&str, &[&str])] = &[
    ("aya", &["kernel"]),
    ("aya_log", &["kernel"]),
    ("caps", &["privileges"]),
    ("btf_rs", &["kernel"]),
    ("imds_trace_ebpf", &["observation", "input", "kernel", "config"]),
    ("clap", &["cli", "main"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("sd_notify", &["live"]),
    ("bollard", &["identity"]),
    ("rtnetlink", &["interfaces", "kernel"]),
    ("netlink_packet_route", &["interfaces", "kernel"]),
    ("tokio", &["live", "identity", "interfaces"]),
    ("env_logger", &["live", "doctor"]),
    ("anyhow", &["main", "live", "replay", "doctor"]),
];

/// Calls that only some rooms may make.
pub const CALLS: &[(&str, &[&str])] = &[
    ("Instant::now", &["live"]),
    ("SystemTime::now", &["live"]),
    ("Timestamp::now", &["live", "replay", "doctor"]),
    ("tokio::spawn", &["live", "interfaces"]),
    ("process::exit", &["main"]),
];

/// What in this file breaks the tables, a sentence each.
pub fn check(file: &Source) -> Vec<String> {
    let room = file.room();
    if room == "lib" {
        return Vec::new(); // declares the rooms
    }
    let Some((_, may)) = ROOMS.iter().find(|(name, _)| *name == room) else {
        return vec![format!(
            "{}: the room {room} is not in ROOMS (xtask/src/lint/rooms.rs): say what it may import",
            file.path
        )];
    };
    let mut wrong = Vec::new();
    for named in file.crate_paths() {
        let first = named.path[0].as_str();
        let is_room = first != room && ROOMS.iter().any(|(name, _)| *name == first);
        if is_room && !may.iter().any(|allowed| begins_with(&named.path, allowed)) {
            let may = if may.is_empty() { "nothing".to_owned() } else { may.join(", ") };
            let what = format!("names crate::{first}; {room} may import {may}");
            wrong.push(sentence(file, named.line, &what, first));
        }
    }
    for (tables, what) in [(CRATES, "names"), (CALLS, "calls")] {
        for &(name, rooms) in tables.iter().filter(|(_, rooms)| !rooms.contains(&room)) {
            for line in source::lines_naming(&file.code, name) {
                let what = format!("{what} {name}, which only {} may", rooms.join(", "));
                wrong.push(sentence(file, line, &what, name));
            }
        }
    }
    wrong.dedup();
    wrong
}

fn begins_with(path: &[String], allowed: &str) -> bool {
    let allowed: Vec<_> = allowed.split("::").collect();
    path.len() >= allowed.len() && path.iter().zip(&allowed).all(|(part, allowed)| part == allowed)
}

fn sentence(file: &Source, line: usize, what: &str, named: &str) -> String {
    let advice = ADVICE.iter().find(|(name, _)| *name == named).map_or("move the code", |(_, advice)| advice);
    format!("{}:{line} {what}: {advice}, see CONTRIBUTING.md", file.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(path: &str, text: &str) -> Vec<String> {
        check(&Source::new(path, text))
    }

    #[test]
    fn a_room_that_names_another_gets_the_sentence_a_newcomer_needs() {
        assert_eq!(
            wrong("journey/nat.rs", "//! What?\nuse crate::identity::Directory;\n"),
            [
                "journey/nat.rs:2 names crate::identity; journey may import net, observation: put the lookup behind Directory \
              or move the code, see CONTRIBUTING.md"
            ]
        );
    }

    #[test]
    fn every_way_to_write_an_import_is_seen() {
        assert_eq!(wrong("journey.rs", "use crate::{net::{self, Ttl}, output::{text, html::Page}, report};").len(), 2);
        assert_eq!(wrong("journey.rs", "use super::output;").len(), 1);
        assert_eq!(wrong("journey/nat.rs", "use super::super::output::text as t;").len(), 1);
        assert_eq!(wrong("journey/nat.rs", "fn f() { crate::output::text::write() }").len(), 1);
        assert_eq!(wrong("main.rs", "use imds_trace::journey::Joiner;").len(), 1);
        assert_eq!(
            wrong("journey/nat.rs", "use super::key::Key; use crate::journey::Joiner; use crate::net;").len(),
            0
        );
    }

    #[test]
    fn one_path_of_a_room_can_be_let_through() {
        assert_eq!(wrong("input.rs", "use crate::identity::fact::Fact;").len(), 0);
        assert_eq!(wrong("input.rs", "use crate::identity::{Fact, Directory};").len(), 1);
    }

    #[test]
    fn only_the_kernel_room_names_aya() {
        assert_eq!(wrong("kernel/attach.rs", "use aya::Ebpf;"), Vec::<String>::new());
        assert_eq!(
            wrong("live.rs", "use aya::Ebpf;"),
            ["live.rs:1 names aya, which only kernel may: move the code, see CONTRIBUTING.md"]
        );
        assert_eq!(wrong("live.rs", "use crate::kernel::aya; my_aya::x(); self.aya::<u8>();").len(), 0);
    }

    #[test]
    fn the_clock_stays_in_the_shells() {
        assert_eq!(wrong("journey.rs", "let at = std::time::Instant::now();").len(), 1);
        assert_eq!(wrong("live.rs", "let at = Instant::now();").len(), 0);
    }

    #[test]
    fn test_code_comments_and_strings_may_name_anything() {
        let text = "//! crate::output\nfn f() -> &'static str { \"crate::output\" }\n\
                    #[cfg(test)]\nmod tests {\n use crate::output;\n fn f() { Instant::now(); }\n}\n";
        assert_eq!(wrong("journey.rs", text), Vec::<String>::new());
        assert_eq!(wrong("journey.rs", &format!("{text}use crate::report;")).len(), 1);
        assert_eq!(wrong("journey/tests.rs", "use crate::output;").len(), 0);
    }

    #[test]
    fn a_new_room_must_say_what_it_may_import() {
        assert!(wrong("attic.rs", "").concat().contains("ROOMS"));
    }

    #[test]
    fn the_tables_name_each_other_only_by_names_that_exist() {
        let exists = |name: &str| ROOMS.iter().any(|(room, _)| *room == name.split("::").next().unwrap_or(name));
        for (room, rooms) in [ROOMS, CRATES, CALLS].into_iter().flatten() {
            assert!(rooms.iter().all(|name| exists(name)), "{room}: {rooms:?}");
        }
    }
}
