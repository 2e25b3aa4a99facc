//! What is said of the run itself: what is watched, what was missed, what a probe found?

use schemars::JsonSchema;
use serde::Serialize;

use super::process::{self, ProcessLine};
use super::when::When;
use crate::event::{Attached, KernelFeature, Lost, Missing, Probed, Ready, UnseenConnection};
use crate::finding::HopLimit;
use crate::identity::Container;
use crate::net::{BootTime, Endpoint, Timestamp};

/// Rises when a field changes its meaning or goes; not when one is added.
pub const VERSION: u32 = 1;

/// Everything is attached, or a recording or capture begins.
#[derive(Serialize, JsonSchema)]
pub struct ReadyLine<'a> {
    /// When.
    at: When,
    /// Version of these lines: it rises when a field changes its meaning or goes, not when one is added.
    #[schemars(extend("const" = VERSION))]
    v: u32,
    /// Version of the imds-trace that watched; `null` for a capture.
    version: Option<&'a str>,
    /// The kernel's release; `null` for a capture.
    kernel: Option<&'a str>,
    /// Where programs are attached.
    hooks: &'a [Attached],
    /// What could not be attached or is not there.
    missing: &'a [Missing],
    /// What the kernel was asked for; empty for a capture, and for a recording whose imds-trace did not ask.
    features: &'a [KernelFeature],
}

/// A connection to IMDS of which a socket told, and no hook saw a packet.
#[derive(Serialize, JsonSchema)]
pub struct UnseenLine<'a> {
    /// When it was known.
    at: When,
    /// When the connection was established.
    established: When,
    /// Where to.
    endpoint: &'a Endpoint,
    /// Whose; `null` for the host's own processes only.
    container: Option<&'a Container>,
    /// Whose; `null` if its connect was not seen.
    process: Option<ProcessLine<'a>>,
    /// Payload bytes that its TCP received; `null` if it did not say.
    received: Option<u64>,
    /// Payload bytes that were acknowledged to it; `null` if it did not say.
    acked: Option<u64>,
}

/// Something could not be kept: what follows may be incomplete.
#[derive(Serialize, JsonSchema)]
pub struct LossLine<'a> {
    /// When it was noticed.
    at: When,
    /// So far.
    lost: &'a Lost,
}

/// What a probe found.
#[derive(Serialize, JsonSchema)]
pub struct ProbeLine<'a> {
    /// When it was over.
    at: When,
    /// Whose network it asked from, as typed.
    target: &'a str,
    /// Did it get a token, and an answer to a read with it?
    reached: bool,
    /// Status of the answer to the token request; `null` if none came.
    token: Option<u16>,
    /// Status of the answer to the read; `null` if none came, or without a token.
    read: Option<u16>,
    /// Hop limit observed and needed.
    hop_limit: HopLimit,
    /// One sentence.
    summary: &'a str,
}

pub fn ready(at: Timestamp, ready: &Ready, boot_time: BootTime) -> ReadyLine<'_> {
    let Ready { version, kernel, hooks, missing, features } = ready;
    ReadyLine {
        at: When::of(at, boot_time),
        v: VERSION,
        version: version.as_deref(),
        kernel: kernel.as_deref(),
        hooks,
        missing,
        features,
    }
}

pub fn unseen(at: Timestamp, unseen: &UnseenConnection, boot_time: BootTime) -> UnseenLine<'_> {
    UnseenLine {
        at: When::of(at, boot_time),
        established: When::of(unseen.established, boot_time),
        endpoint: &unseen.endpoint,
        container: unseen.who.told(),
        process: process::line(unseen.who.process.as_deref(), boot_time),
        received: unseen.counted.map(|(received, _)| received),
        acked: unseen.counted.map(|(_, acked)| acked),
    }
}

pub fn loss(at: Timestamp, lost: &Lost, boot_time: BootTime) -> LossLine<'_> {
    LossLine { at: When::of(at, boot_time), lost }
}

pub fn probe(at: Timestamp, probed: &Probed, boot_time: BootTime) -> ProbeLine<'_> {
    ProbeLine {
        at: When::of(at, boot_time),
        target: &probed.target,
        reached: probed.reached,
        token: probed.token,
        read: probed.read,
        hop_limit: probed.hop_limit,
        summary: &probed.summary,
    }
}
