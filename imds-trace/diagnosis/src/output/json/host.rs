//! What is said where there are several hosts?

use schemars::JsonSchema;
use serde::Serialize;

use super::when::When;
use crate::event::HostSum;
use crate::finding::HopLimit;
use crate::net::BootTime;

/// What follows, up to the next such line, is of this host. Only where a replay is of several.
#[derive(Serialize, JsonSchema)]
pub struct HostLine<'a> {
    /// When its first run began.
    pub at: When,
    /// Its instance's id, or what its first file is called.
    pub name: &'a str,
}

/// What came of several hosts, after all of them.
#[derive(Serialize, JsonSchema)]
pub struct SumLine<'a> {
    /// When the last run of all was over.
    at: When,
    /// Host by host.
    hosts: Vec<OfHost<'a>>,
    #[serde(flatten)]
    all: Counts,
}

#[derive(Serialize, JsonSchema)]
struct OfHost<'a> {
    /// As in the line of type `host`.
    name: &'a str,
    #[serde(flatten)]
    own: Counts,
    /// Hop limit observed, and what its clients need.
    hop_limit: HopLimit,
}

#[derive(Serialize, JsonSchema)]
struct Counts {
    /// Clients.
    clients: u64,
    /// Exchanges.
    exchanges: u64,
    /// Exchanges without an answer.
    unanswered: u64,
    /// Findings that are errors.
    errors: u64,
    /// Findings that are warnings.
    warnings: u64,
    /// Findings that are notices.
    notices: u64,
    /// Everything together that could not be kept.
    lost: u64,
}

pub fn sum(hosts: &[HostSum], boot_time: BootTime) -> SumLine<'_> {
    let all = HostSum::together(hosts);
    SumLine { at: When::of(all.at, boot_time), hosts: hosts.iter().map(of_host).collect(), all: counts(&all) }
}

fn of_host(host: &HostSum) -> OfHost<'_> {
    OfHost { name: &host.name, own: counts(host), hop_limit: host.hop_limit }
}

fn counts(of: &HostSum) -> Counts {
    let HostSum { name: _, at: _, clients, exchanges, unanswered, findings, hop_limit: _, lost } = of;
    let [errors, warnings, notices] = *findings;
    Counts { clients: *clients, exchanges: *exchanges, unanswered: *unanswered, errors, warnings, notices, lost: *lost }
}
