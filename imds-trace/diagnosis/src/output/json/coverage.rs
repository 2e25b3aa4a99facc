//! What was listened to?

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Serialize;

use super::when::When;
use crate::coverage::Span;
use crate::event::{Attached, Covered, Listened, Missing, Unwatched};
use crate::identity::Container;
use crate::net::{BootTime, Endpoint, Timestamp};

/// What was listened to, and what was missed.
#[derive(Serialize, JsonSchema)]
pub struct CoverageLine<'a> {
    /// What was attached, run by run.
    listened: Vec<ListenedLine<'a>>,
    /// When there were hooks on every interface towards IMDS.
    watched: Vec<SpanLine>,
    /// When records were lost.
    losses: Vec<SpanLine>,
    /// Whose connections no hook saw.
    unseen: Vec<UnwatchedLine<'a>>,
}

#[derive(Serialize, JsonSchema)]
struct ListenedLine<'a> {
    /// When everything was attached.
    from: When,
    /// When the run was over.
    to: When,
    /// Where programs were attached when it began.
    hooks: &'a [Attached],
    /// What could not be attached or is not there.
    missing: &'a [Missing],
}

#[derive(Serialize, JsonSchema)]
struct SpanLine {
    /// From when.
    from: When,
    /// Until when.
    to: When,
}

#[derive(Serialize, JsonSchema)]
struct UnwatchedLine<'a> {
    /// Who; `null` for the host's own processes only.
    container: Option<&'a Container>,
    /// The client's address; `null` where no packet of it was seen and nobody told it.
    address: Option<IpAddr>,
    /// Where to.
    endpoint: &'a Endpoint,
    /// How many.
    connections: u64,
    /// Payload bytes that their sockets received in all; `null` if one of them did not say.
    received: Option<u64>,
}

/// The part of the report; the run ended at `end`.
pub fn line(covered: &Covered, end: Timestamp, boot_time: BootTime) -> CoverageLine<'_> {
    let when = |at: Timestamp| When::of(at, boot_time);
    let span = |span: &Span| SpanLine { from: when(span.from), to: when(span.to) };
    let mut listened: Vec<ListenedLine<'_>> = Vec::new();
    let mut until = when(end);
    for Listened { from, ready } in covered.listened.iter().rev() {
        let from = when(*from);
        listened.push(ListenedLine { from: from.clone(), to: until, hooks: &ready.hooks, missing: &ready.missing });
        until = from;
    }
    listened.reverse();
    CoverageLine {
        listened,
        watched: covered.watched.iter().map(span).collect(),
        losses: covered.losses.iter().map(span).collect(),
        unseen: covered.unseen.iter().map(unwatched).collect(),
    }
}

fn unwatched(unseen: &Unwatched) -> UnwatchedLine<'_> {
    let Unwatched { who, endpoint, connections, received } = unseen;
    UnwatchedLine {
        container: who.told(),
        address: who.address,
        endpoint,
        connections: *connections,
        received: *received,
    }
}
