//! What is said at the end of a run?

use schemars::JsonSchema;
use serde::Serialize;

use super::{Lost, Ready, WhatIf};
use crate::config::GroupBy;
use crate::coverage::Span;
use crate::finding::{Finding, HopLimit, Severity};
use crate::identity::Attribution;
use crate::journey::OtherPackets;
use crate::net::{Endpoint, Timestamp};

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order in which they were first seen.
    pub subjects: Vec<Tally>,
    /// Every finding with its last count, worst first, then in the order in which they were found.
    pub findings: Vec<Finding>,
    /// What could not be kept.
    pub lost: Lost,
    /// The kernel's own count beside ours.
    pub spent: Reconciled,
    /// Packets to IMDS that are no TCP: nothing else is said of them.
    pub other: Vec<OtherPackets>,
    /// What was listened to, and what was missed.
    pub coverage: Covered,
    /// Exchanges that are not shown, as was asked for.
    pub hidden: u64,
    /// What was asserted, and whether it held.
    pub expectations: Vec<Asserted>,
    /// What is shown, counted together, if that was asked for.
    pub groups: Option<Groups>,
    /// What would be if the instance were set otherwise, in the order asked.
    pub what_if: Vec<WhatIf>,
    /// What is wrong with the recording or capture that this was concluded from, a sentence each; empty if nothing is, and of a live run.
    pub broken: Vec<String>,
}

/// What came of one host of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSum {
    /// What it is called.
    pub name: String,
    /// When its last run was over.
    pub at: Timestamp,
    /// Clients.
    pub clients: u64,
    /// Exchanges in all.
    pub exchanges: u64,
    /// Exchanges without an answer.
    pub unanswered: u64,
    /// Errors, warnings and notices.
    pub findings: [u64; 3],
    /// Hop limit observed, and what its clients need.
    pub hop_limit: HopLimit,
    /// Everything together that could not be kept.
    pub lost: u64,
}

impl HostSum {
    /// Of its report.
    pub fn of(name: &str, at: Timestamp, report: &Report) -> Self {
        let of = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count() as u64;
        Self {
            name: name.to_owned(),
            at,
            clients: report.subjects.len() as u64,
            exchanges: report.subjects.iter().map(|tally| tally.exchanges).sum(),
            unanswered: report.subjects.iter().map(|tally| tally.unanswered).sum(),
            findings: [Severity::Error, Severity::Warning, Severity::Notice].map(of),
            hop_limit: report.subjects.iter().fold(HopLimit::default(), |all, tally| all.and(tally.hop_limit)),
            lost: report.lost.sum(),
        }
    }

    /// All of them as one; what they need is not one thing.
    pub fn together(hosts: &[Self]) -> Self {
        let sum = |of: fn(&Self) -> u64| hosts.iter().map(of).sum();
        Self {
            name: String::new(),
            at: hosts.iter().map(|host| host.at).max().unwrap_or_default(),
            clients: sum(|host| host.clients),
            exchanges: sum(|host| host.exchanges),
            unanswered: sum(|host| host.unanswered),
            findings: [0, 1, 2].map(|kind| hosts.iter().map(|host| host.findings[kind]).sum()),
            hop_limit: HopLimit::default(),
            lost: sum(|host| host.lost),
        }
    }
}

/// What was listened to, and what was missed.
#[derive(Clone, Debug, Default)]
pub struct Covered {
    /// What was attached, run by run; the first 16 of several.
    pub listened: Vec<Listened>,
    /// When there were hooks on every interface towards IMDS.
    pub watched: Vec<Span>,
    /// When records were lost.
    pub losses: Vec<Span>,
    /// Whose connections no hook saw.
    pub unseen: Vec<Unwatched>,
}

/// What was attached when a run began.
#[derive(Clone, Debug)]
pub struct Listened {
    /// When everything was.
    pub from: Timestamp,
    /// What, and what not.
    pub ready: Ready,
}

/// One subject's connections to an endpoint that no hook saw.
#[derive(Clone, Debug)]
pub struct Unwatched {
    /// Whose.
    pub who: Attribution,
    /// Where to.
    pub endpoint: Endpoint,
    /// How many.
    pub connections: u64,
    /// Payload bytes that their sockets received in all; `None` if one of them did not say.
    pub received: Option<u64>,
}

/// Something that was asserted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Asserted {
    /// As typed.
    pub expect: String,
    /// Did it hold?
    pub held: bool,
    /// One sentence that says what was seen.
    pub why: String,
}

/// One subject's tallies.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Who.
    pub who: Attribution,
    /// Exchanges in all.
    pub exchanges: u64,
    /// Exchanges without an answer.
    pub unanswered: u64,
    /// Exchanges whose answer was seen, and nothing that shows that it arrived.
    pub unproved: u64,
    /// Exchanges whose answer arrived, and its status or its request was not seen whole.
    pub unread: u64,
    /// Hop limit observed and needed.
    pub hop_limit: HopLimit,
    /// Names of the rules that fired, each once.
    pub findings: Vec<&'static str>,
}

/// Packets lost to a used-up TTL: what we saw, and what the host's namespace counted (`IpInHdrErrors` and `Ip6InHdrErrors`, which
/// count other packets as well).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Drops seen in the host's namespace.
    pub seen: u64,
    /// Packets that vanished with a used-up TTL without a drop being seen.
    pub inferred: u64,
    /// By how much the kernel's counters rose; `None` if they were not read twice.
    pub counted: Option<u64>,
}

impl Reconciled {
    /// Both together, of two runs.
    pub fn and(self, other: Self) -> Self {
        Self {
            seen: self.seen + other.seen,
            inferred: self.inferred + other.inferred,
            counted: self.counted.zip(other.counted).map(|(one, two)| one + two),
        }
    }

    /// The sentence to say where the counts do not agree.
    pub fn difference(&self) -> Option<String> {
        let counted = self.counted?;
        let ours = self.seen + self.inferred;
        if counted == ours {
            None
        } else if counted > ours {
            Some(format!(
                "the kernel refused {counted} packets for their IP header (IpInHdrErrors), {ours} of them are the IMDS packets \
                 above: the other {} were other traffic, or were not seen here",
                counted - ours
            ))
        } else {
            Some(format!(
                "{ours} IMDS packets were lost to their TTL, but the kernel counts only {counted} (IpInHdrErrors): {} of those \
                 inferred may have been lost otherwise",
                ours - counted
            ))
        }
    }
}

/// The groups of a run.
#[derive(Clone, Debug)]
pub struct Groups {
    /// What they are made by.
    pub by: GroupBy,
    /// What the host is called that they are on; `None` if nobody said.
    pub host: Option<String>,
    /// In the order in which they were first seen.
    pub groups: Vec<Group>,
    /// Exchanges that found no room in a group.
    pub over: u64,
}

/// What is counted together.
#[derive(Clone, Debug)]
pub struct Group {
    /// To whom the first exchange belongs. With [`GroupBy::Image`], [`GroupBy::Job`], [`GroupBy::Path`] and where no pod is known only one of
    /// several.
    pub who: Attribution,
    /// The path; `None` where groups are not made by it, or the request was not seen.
    pub path: Option<String>,
    /// Exchanges in all.
    pub exchanges: u64,
    /// Exchanges that were answered.
    pub answered: u64,
    /// Requests for a token, with one, without one, and others.
    pub asked: [u64; 4],
    /// What became of requests for credentials.
    pub credentials: Credentials,
    /// When the first exchange began.
    pub first: Timestamp,
    /// When the last one began.
    pub last: Timestamp,
}

/// What became of requests for a role's credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Requests for them.
    pub asked: u64,
    /// Answers with them that reached the client.
    pub taken: u64,
    /// Those among them that were taken without a token.
    pub over_v1: u64,
    /// Roles whose credentials were taken.
    pub roles: Vec<String>,
    /// When they were taken first.
    pub first: Option<Timestamp>,
    /// When they were taken last.
    pub last: Option<Timestamp>,
}
