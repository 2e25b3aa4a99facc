//! What was listened to, for programs?

use serde::Serialize;

use crate::coverage::Span;
use crate::event::{Attached, Covered, Listened, Missing, Unwatched};
use crate::identity::Container;
use crate::net::{BootTime, Endpoint, Timestamp};
use crate::words::rfc3339;

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
