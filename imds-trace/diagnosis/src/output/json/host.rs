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
    /// Clients of all.
    clients: u64,
    /// Exchanges of all.
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

#[derive(Serialize, JsonSchema)]
struct OfHost<'a> {
    /// As in the line of type `host`.
    name: &'a str,
    /// Its clients.
    clients: u64,
    /// Its exchanges.
    exchanges: u64,
    /// Exchanges without an answer.
    unanswered: u64,
    /// Findings that are errors.
    errors: u64,
    /// Findings that are warnings.
    warnings: u64,
    /// Findings that are notices.
    notices: u64,
    /// Hop limit observed, and what its clients need.
    hop_limit: HopLimit,
    /// Everything together that could not be kept.
    lost: u64,
}

pub fn sum(hosts: &[HostSum], boot_time: BootTime) -> SumLine<'_> {
    let all = HostSum::together(hosts);
    let [errors, warnings, notices] = all.findings;
    SumLine {
        at: When::of(all.at, boot_time),
        hosts: hosts.iter().map(of_host).collect(),
        clients: all.clients,
        exchanges: all.exchanges,
        unanswered: all.unanswered,
        errors,
        warnings,
        notices,
        lost: all.lost,
    }
}

fn of_host(host: &HostSum) -> OfHost<'_> {
    let HostSum { name, at: _, clients, exchanges, unanswered, findings, hop_limit, lost } = host;
    let [errors, warnings, notices] = *findings;
    OfHost {
        name,
        clients: *clients,
        exchanges: *exchanges,
        unanswered: *unanswered,
        errors,
        warnings,
        notices,
        hop_limit: *hop_limit,
        lost: *lost,
    }
}
