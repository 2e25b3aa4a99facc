//! What was listened to, and what could not be told?

use serde::Serialize;

use super::text;
use crate::coverage::Span;
use crate::event::{Attached, Covered, Listened, Missing, Report, Unwatched};
use crate::identity::Container;
use crate::net::{BootTime, Endpoint, Timestamp};
use crate::printable::printable;
use crate::words::rfc3339;

/// Names that one sentence gives at most, and bytes of each.
const MAX_NAMED: usize = 8;
const MAX_NAME: usize = 64;

/// In the report of JSON Lines: `watched` is when there were hooks on every interface towards IMDS, `losses` when records were lost,
/// `unseen` whose connections no hook saw.
#[derive(Serialize)]
pub(super) struct CoverageLine<'a> {
    listened: Vec<ListenedLine<'a>>,
    watched: Vec<SpanLine>,
    losses: Vec<SpanLine>,
    unseen: Vec<UnseenLine<'a>>,
}

#[derive(Serialize)]
struct ListenedLine<'a> {
    from: String,
    to: String,
    hooks: &'a [Attached],
    missing: &'a [Missing],
}

#[derive(Serialize)]
struct SpanLine {
    from: String,
    to: String,
}

#[derive(Serialize)]
struct UnseenLine<'a> {
    container: Option<&'a Container>,
    address: std::net::IpAddr,
    endpoint: &'a Endpoint,
    connections: u64,
    received: Option<u64>,
}

/// The line's part; the run ended at `end`.
pub(super) fn line(covered: &Covered, end: Timestamp, boot_time: BootTime) -> CoverageLine<'_> {
    let at = |at: Timestamp| rfc3339(at, boot_time);
    let span = |span: &Span| SpanLine { from: at(span.from), to: at(span.to) };
    let mut listened: Vec<ListenedLine<'_>> = Vec::new();
    let mut until = at(end);
    for Listened { from, ready } in covered.listened.iter().rev() {
        let from = at(*from);
        listened.push(ListenedLine { from: from.clone(), to: until, hooks: &ready.hooks, missing: &ready.missing });
        until = from;
    }
    listened.reverse();
    CoverageLine {
        listened,
        watched: covered.watched.iter().map(span).collect(),
        losses: covered.losses.iter().map(span).collect(),
        unseen: covered.unseen.iter().map(unseen).collect(),
    }
}

fn unseen(unseen: &Unwatched) -> UnseenLine<'_> {
    let Unwatched { who, endpoint, connections, received } = unseen;
    UnseenLine { container: who.told(), address: who.address, endpoint, connections: *connections, received: *received }
}

/// The same in sentences.
pub(super) fn sentences(report: &Report, boot_time: BootTime) -> Vec<String> {
    let covered = &report.coverage;
    let mut all = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for hook in covered.listened.iter().flat_map(|listened| &listened.ready.hooks) {
        let name = match hook {
            Attached::Tc { interface, .. } | Attached::Capture { interface: Some(interface), .. } => interface.clone(),
            Attached::Capture { interface: None, .. } => "an interface that the capture does not name".to_owned(),
            Attached::Tracepoint { .. } | Attached::Cgroup { .. } => continue,
        };
        let name = printable(&name, MAX_NAME);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if !covered.listened.is_empty() {
        let missing = covered.listened.iter().flat_map(|listened| &listened.ready.missing);
        let missing = listed(missing.map(|missing| printable(&missing.hook, MAX_NAME)).collect());
        let missing = if missing.is_empty() { String::new() } else { format!("; not on {missing}") };
        let on = if names.is_empty() { "no interface".to_owned() } else { listed(names) };
        all.push(format!("Listened on {on}{missing}."));
    }
    for Unwatched { who, connections, received, endpoint } in &covered.unseen {
        let received = match received {
            Some(bytes) => format!("{bytes} bytes came"),
            None => "how much came is not known".to_owned(),
        };
        let times = if *connections == 1 { "a connection".to_owned() } else { format!("{connections} connections") };
        all.push(format!(
            "Cannot be told: what {} asked by {times} to {endpoint} that passed no interface that is watched ({received}).",
            text::subject(who)
        ));
    }
    if report.lost.sum() > 0 && !covered.losses.is_empty() {
        let windows = covered
            .losses
            .iter()
            .map(|Span { from, to }| format!("{} to {}", text::time(*from, boot_time), text::time(*to, boot_time)));
        all.push(format!("Cannot be told: what was not seen in the time of losses ({}).", listed(windows.collect())));
    }
    all
}

fn listed(mut names: Vec<String>) -> String {
    let further = names.len().saturating_sub(MAX_NAMED);
    names.truncate(MAX_NAMED);
    if further > 0 {
        names.push(format!("and {further} more"));
    }
    names.join(", ")
}
