//! What came of several hosts, for people?

use std::fmt::Write as _;

use super::{BOLD, MAX_PATH, RED, counted, hop_limit};
use crate::event::HostSum;
use crate::printable::printable;

/// Kinds of findings, the worst first, as [`HostSum::findings`] has them.
const KINDS: [&str; 3] = ["error", "warning", "notice"];

/// A line for each host, and one for all.
pub fn sum(hosts: &[HostSum]) -> String {
    let mut out = format!("\n{BOLD}All hosts{BOLD:#} ({})\n", hosts.len());
    for host in hosts {
        let name = printable(&host.name, MAX_PATH);
        let limit = hop_limit(host.hop_limit);
        let _ = writeln!(out, "  {BOLD}{name}{BOLD:#}: {}. {limit}", counts(host).trim_end());
    }
    let _ = writeln!(out, "  together: {}.", counts(&HostSum::together(hosts)));
    out
}

fn counts(host: &HostSum) -> String {
    let mut counts = vec![format!("{} of {}", counted(host.exchanges, "exchange"), counted(host.clients, "client"))];
    if host.unanswered > 0 {
        counts.push(format!("{RED}{} unanswered{RED:#}", host.unanswered));
    }
    let found = KINDS.iter().zip(host.findings).filter(|(_, count)| *count > 0);
    counts.extend(found.map(|(kind, count)| counted(count, kind)));
    if host.lost > 0 {
        counts.push(format!("{RED}{} lost{RED:#}", host.lost));
    }
    counts.join(", ")
}
