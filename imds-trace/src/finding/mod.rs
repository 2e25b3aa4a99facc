//! What does it mean? Rules look at one exchange at one moment and say what they conclude; the ledger counts.
//!
//! Refuses to repeat itself: a finding is one per rule, subject and cause, with a count. Each says what it rests on.

mod history;
mod hop_budget_spent;
mod hop_limit_too_low;
mod imdsv1_fallback;
mod imdsv1_refused;
mod imdsv1_used;
mod kernel_drop;
mod ledger;
mod unanswered;

use std::time::Duration;

use serde::Serialize;

use crate::exchange::{Exchange, ExchangeId, Moment, Travel};
use crate::identity::Attribution;
use crate::journey::{Dropped, Fate, Hop, Journey};
use crate::net::{Direction, Heading, Timestamp, Ttl};
pub use history::History;
pub use ledger::Ledger;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Works, with nothing to spare.
    Notice,
    /// Works, but not as it should.
    Warning,
    /// Does not work.
    Error,
}

/// What a finding rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// Inferred; the summary says from what.
    Likely,
    /// Seen in the kernel.
    Certain,
}

/// The instance's hop limit and what this client needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HopLimit {
    /// As read off the wire: the TTL with which a token response reaches the host.
    pub observed: Option<Ttl>,
    /// TTL decrements on the way to the client plus one.
    pub needed: Option<Ttl>,
}

impl HopLimit {
    /// What two sightings together say: the latest observation, the most that was ever needed.
    pub fn and(self, later: Self) -> Self {
        Self { observed: later.observed.or(self.observed), needed: later.needed.max(self.needed) }
    }
}

/// A conclusion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule's name.
    pub rule: &'static str,
    /// How bad.
    pub severity: Severity,
    /// What it rests on.
    pub confidence: Confidence,
    /// To whom it belongs; the process is the first one it was seen with.
    pub who: Attribution,
    /// Copies for drops, exchanges otherwise.
    pub count: u64,
    /// When it was first seen.
    pub first: Timestamp,
    /// When it was last seen.
    pub last: Timestamp,
    /// Hop limit observed and needed, as far as known.
    pub hop_limit: HopLimit,
    /// The drop it is about.
    pub drop: Option<Dropped>,
    /// Time the client lost waiting, in all, where the rule is about that.
    pub waited: Option<Duration>,
    /// One sentence.
    pub summary: String,
    /// Commands to run.
    pub remedy: Vec<String>,
    /// What the commands cost in safety, and what to do instead; empty if nothing.
    pub caution: String,
    /// The way of one exchange that shows it; `None` where the way says nothing about it.
    pub path: Option<Path>,
    /// Exchanges that show it, the first 16.
    pub evidence: Vec<ExchangeId>,
}

/// The way of a request and its response, hop by hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The request's.
    pub outward: Way,
    /// The response's; no hops if none was seen.
    pub inward: Way,
}

/// One direction of a [`Path`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Where it was seen.
    pub hops: Vec<Hop>,
    /// How it ended.
    pub fate: Fate,
}

/// Bytes of a container's name in a sentence; Docker allows any length.
const MAX_NAME: usize = 64;

/// What a rule looks at.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// The exchange.
    pub exchange: &'a Exchange,
    /// What has just happened to it.
    pub moment: Moment<'a>,
    /// To whom it belongs.
    pub who: &'a Attribution,
    /// What is known of the hop limit, this exchange's and its subject's.
    pub hop_limit: HopLimit,
    /// What this client did before.
    pub history: &'a History,
    /// The EC2 instance's id, if this host knows it.
    pub instance: Option<&'a str>,
    /// Was everything kept so far? If not, what was not seen may have been there.
    pub complete: bool,
}

impl<'a> Case<'a> {
    /// The exchange, if it has just closed.
    fn closed(&self) -> Option<&'a Exchange> {
        matches!(self.moment, Moment::Closed).then_some(self.exchange)
    }

    /// The way of the exchange; that of `response`, if given, in place of the response that tells most.
    fn path(&self, response: Option<&Journey>) -> Option<Path> {
        let way = |travel: Option<&Travel>| match travel {
            Some(travel) => Way { hops: travel.hops.clone(), fate: travel.fate.clone() },
            None => Way { hops: Vec::new(), fate: Fate::Unresolved },
        };
        let outward = way(self.exchange.outward.as_ref());
        let inward = match response {
            Some(journey) => Way { hops: journey.hops.clone(), fate: journey.fate.clone() },
            None => way(self.exchange.response_travel()),
        };
        (!outward.hops.is_empty() || !inward.hops.is_empty()).then_some(Path { outward, inward })
    }

    /// The instance's id, or what to put in its place.
    fn instance(&self) -> &'a str {
        self.instance.unwrap_or("<instance-id>")
    }

    /// The subject in a sentence, e.g. `container job-17`.
    fn subject(&self) -> String {
        use crate::identity::{Key, Process};
        let process = self.who.process.as_ref();
        let named = |Process { comm, pid, .. }: &Process| format!("{comm} (pid {pid})");
        match (&self.who.container, self.who.by) {
            (Some(container), _) => match &container.name {
                Some(name) => format!("container {}", crate::net::bounded(name, MAX_NAME)),
                None => format!("container {}", crate::net::bounded(&container.id, 12)),
            },
            (None, Key::Cgroup) => process.map_or("a process of this host".to_owned(), named),
            (None, _) => match process {
                Some(process) => format!("{} at {}", named(process), self.who.address),
                None => format!("the client at {}", self.who.address),
            },
        }
    }
}

/// A sentence begins with a capital letter, unless a name stands there.
fn capitalised(sentence: String) -> String {
    match sentence.strip_prefix("container ") {
        Some(rest) => format!("Container {rest}"),
        None => match sentence.strip_prefix("the client ") {
            Some(rest) => format!("The client {rest}"),
            None => sentence,
        },
    }
}

/// What a rule concludes from one case.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Findings of one rule and subject with the same cause are one.
    pub cause: String,
    /// What it rests on.
    pub confidence: Confidence,
    /// How much it adds to the count.
    pub weight: u64,
    /// When it was last seen, if that was later than the case's own moment.
    pub last: Option<Timestamp>,
    /// The drop it is about.
    pub drop: Option<Dropped>,
    /// Time the client lost.
    pub waited: Option<Duration>,
    /// The way to show.
    pub path: Option<Path>,
    /// One sentence.
    pub summary: String,
    /// Commands to run.
    pub remedy: Vec<String>,
    /// What they cost in safety, and the alternative.
    pub caution: String,
}

impl Verdict {
    /// It rests on something that was not seen: no more than likely if records were lost.
    fn resting_on_absence(mut self, case: &Case<'_>) -> Self {
        if !case.complete {
            self.confidence = Confidence::Likely;
            self.summary.push_str(" (Some records were lost: what is missing here may have been there.)");
        }
        self
    }

    /// One exchange, seen in the kernel, nothing to run.
    fn certain(cause: impl Into<String>, summary: String) -> Self {
        Self {
            cause: cause.into(),
            confidence: Confidence::Certain,
            weight: 1,
            last: None,
            drop: None,
            waited: None,
            path: None,
            summary,
            remedy: Vec::new(),
            caution: String::new(),
        }
    }
}

/// One rule.
#[derive(Clone, Copy)]
pub struct Rule {
    /// Its name on the outside.
    pub id: &'static str,
    /// How bad what it finds is.
    pub severity: Severity,
    /// When it fires, for people.
    pub explain: &'static str,
    /// Looks at a case.
    pub examine: fn(&Case<'_>) -> Option<Verdict>,
}

/// All rules. One file and one line each.
pub const RULES: &[Rule] = &[
    hop_limit_too_low::RULE,
    imdsv1_fallback::RULE,
    imdsv1_refused::RULE,
    imdsv1_used::RULE,
    kernel_drop::RULE,
    unanswered::RULE,
    hop_budget_spent::RULE,
];

/// Functions in which the kernel drops a packet that it should forward and whose TTL is used up.
const FORWARDS: [&str; 2] = ["ip_forward", "ip6_forward"];

/// How a packet was lost to its TTL, if it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent<'a> {
    /// The kernel dropped it where it forwards, with a TTL of 1 or less.
    Dropped(&'a Dropped),
    /// It came in with a TTL of 1 or less for a client behind this host and was not seen again; no drop was seen either.
    Vanished,
}

/// Was this response packet lost because its TTL was used up? The reason's name is no test: the kernel uses it for broken
/// headers as well, and older kernels give none. Function and TTL decide.
pub fn spent(journey: &Journey) -> Option<Spent<'_>> {
    if journey.heading != Heading::FromImds {
        return None;
    }
    match &journey.fate {
        Fate::Dropped(dropped) => is_spent(dropped).then_some(Spent::Dropped(dropped)),
        Fate::Unresolved => {
            let last = journey.hops.last()?;
            (last.hook.direction == Direction::Ingress && last.ttl.0 <= 1).then_some(Spent::Vanished)
        }
        Fate::Delivered => None,
    }
}

/// A drop at a forward with a used-up TTL.
fn is_spent(dropped: &Dropped) -> bool {
    // Compilers add a suffix to clones of a function: ip_forward.isra.0.
    let function = dropped.drop.location.split('.').next().unwrap_or_default();
    dropped.ttl.0 <= 1 && FORWARDS.contains(&function)
}
