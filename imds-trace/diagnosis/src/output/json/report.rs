//! What is said at the end of a run?

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Serialize;

use super::coverage::{self, CoverageLine};
use super::when::When;
use crate::event::{Asserted, Report, Tally};
use crate::finding::HopLimit;
use crate::identity::Container;
use crate::journey::OtherPackets;
use crate::net::{BootTime, Timestamp};

/// What came of it all, last.
#[derive(Serialize, JsonSchema)]
pub struct ReportLine<'a> {
    /// When the run was over.
    at: When,
    /// Container by container, in the order in which they were first seen.
    containers: Vec<TallyLine<'a>>,
    /// What was listened to, and what was missed.
    coverage: CoverageLine<'a>,
    /// Everything together that could not be kept: unless it is 0, the rest may be incomplete.
    lost: u64,
    /// Packets lost to a used-up TTL.
    spent: SpentLine,
    /// Packets to IMDS that are no TCP.
    other_packets: Vec<OtherLine>,
    /// What was asserted (`--expect`), and whether it held.
    expectations: &'a [Asserted],
    /// `null` unless something is wrong with the recording, or the capture.
    recording: Option<RecordingLine>,
}

#[derive(Serialize, JsonSchema)]
struct RecordingLine {
    /// Is it as it was written?
    intact: bool,
    /// What is wrong with it.
    why: String,
}

#[derive(Serialize, JsonSchema)]
struct TallyLine<'a> {
    /// Who; `null` for the host's own processes only.
    container: Option<&'a Container>,
    /// The client's address; `null` where no packet of it was seen and nobody told it.
    address: Option<IpAddr>,
    /// Exchanges in all.
    exchanges: u64,
    /// Exchanges without an answer.
    unanswered: u64,
    /// Hop limit observed and needed.
    hop_limit: HopLimit,
    /// Names of the rules that fired, each once.
    findings: &'a [&'static str],
}

#[derive(Serialize, JsonSchema)]
struct OtherLine {
    /// Who sent them.
    source: Option<IpAddr>,
    /// To whom.
    destination: IpAddr,
    /// Number of the protocol, as in the IP header.
    protocol: u8,
    /// How many.
    packets: u64,
}

#[derive(Serialize, JsonSchema)]
struct SpentLine {
    /// Drops seen in the host's namespace.
    seen: u64,
    /// Packets that vanished with a used-up TTL without a drop being seen.
    inferred: u64,
    /// By how much the kernel's own counters rose (`IpInHdrErrors`); `null` if they were not read.
    counted_by_kernel: Option<u64>,
    /// A sentence where the counts do not agree.
    difference: Option<String>,
}

pub fn line(at: Timestamp, report: &Report, boot_time: BootTime) -> ReportLine<'_> {
    ReportLine {
        at: When::of(at, boot_time),
        containers: report.subjects.iter().map(tally).collect(),
        coverage: coverage::line(&report.coverage, at, boot_time),
        lost: report.lost.sum(),
        spent: SpentLine {
            seen: report.spent.seen,
            inferred: report.spent.inferred,
            counted_by_kernel: report.spent.counted,
            difference: report.spent.difference(),
        },
        other_packets: report.other.iter().map(other).collect(),
        expectations: &report.expectations,
        recording: (!report.broken.is_empty()).then(|| RecordingLine { intact: false, why: report.broken.join("; ") }),
    }
}

fn tally(tally: &Tally) -> TallyLine<'_> {
    TallyLine {
        container: tally.who.told(),
        address: tally.who.address,
        exchanges: tally.exchanges,
        unanswered: tally.unanswered,
        hop_limit: tally.hop_limit,
        findings: &tally.findings,
    }
}

fn other(other: &OtherPackets) -> OtherLine {
    let OtherPackets { source, destination, protocol, packets } = *other;
    OtherLine { source, destination, protocol, packets }
}
