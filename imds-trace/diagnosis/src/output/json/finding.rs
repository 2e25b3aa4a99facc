//! What is said of a finding?

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Serialize;

use super::exchange::{DropLine, drop_line};
use super::process::{self, ProcessLine};
use super::when::{When, milliseconds};
use crate::finding::{Confidence, Finding, HopLimit, Severity};
use crate::identity::{Container, Key};
use crate::net::{BootTime, Timestamp};

/// A conclusion, one for each rule, container and cause. Written again when its count changes: the last one stands, and with a count
/// of 0 it is withdrawn.
#[derive(Serialize, JsonSchema)]
pub struct FindingLine<'a> {
    /// When it was told.
    at: When,
    /// The rule's name; `imds-trace --help` lists them.
    rule: &'static str,
    /// How bad it is.
    severity: Severity,
    /// What it rests on.
    confidence: Confidence,
    /// Who; `null` for the host's own processes only.
    container: Option<&'a Container>,
    /// Who; `null` if its connect was not seen.
    process: Option<ProcessLine<'a>>,
    /// The client's address; `null` where no packet of it was seen and nobody told it.
    address: Option<IpAddr>,
    /// What the naming of the container rests on.
    attributed_by: Key,
    /// Lost copies of a packet for drops, exchanges otherwise.
    count: u64,
    /// When it was seen first.
    first: When,
    /// When it was seen last.
    last: When,
    /// Hop limit observed and needed.
    hop_limit: HopLimit,
    /// The drop that it rests on; `null` if on none.
    drop: Option<DropLine<'a>>,
    /// How long the client waited in vain, in all.
    waited_ms: Option<f64>,
    /// One sentence.
    summary: &'a str,
    /// Commands that mend it, with the values measured.
    remedy: &'a [String],
    /// How to make that last; empty if nothing needs to be.
    lasting: &'a str,
    /// What it costs in safety; empty if nothing.
    caution: &'a str,
    /// Exchanges that it rests on.
    evidence: Vec<u64>,
}

pub fn line(at: Timestamp, finding: &Finding, boot_time: BootTime) -> FindingLine<'_> {
    FindingLine {
        at: When::of(at, boot_time),
        rule: finding.rule,
        severity: finding.severity,
        confidence: finding.says.confidence,
        container: finding.who.told(),
        process: process::line(finding.who.process.as_deref(), boot_time),
        address: finding.who.address,
        attributed_by: finding.who.by,
        count: finding.count,
        first: When::of(finding.first, boot_time),
        last: When::of(finding.last, boot_time),
        hop_limit: finding.hop_limit,
        drop: finding.says.drop.as_ref().map(drop_line),
        waited_ms: finding.says.waited.map(milliseconds),
        summary: &finding.says.summary,
        remedy: &finding.says.remedy,
        lasting: finding.says.lasting.as_deref().unwrap_or_default(),
        caution: finding.says.caution.as_deref().unwrap_or_default(),
        evidence: finding.evidence.iter().map(|id| id.0).collect(),
    }
}
