//! What does it mean? Rules look at one exchange at one moment and say what they conclude; the ledger counts.
//!
//! Refuses to repeat itself: a finding is one per rule, subject and cause, with a count. Each says what it rests on.

mod aftermath;
mod answered_locally;
mod answerer;
mod client;
mod commands;
mod contradiction;
mod drops;
mod firewall_drop;
mod forged_request;
mod history;
mod hop_budget_spent;
mod hop_limit_too_low;
mod imds_disabled;
mod imdsv1_fallback;
mod imdsv1_refused;
mod imdsv1_used;
mod kernel_drop;
mod ledger;
mod misrouted_answer;
mod netfilter;
mod no_port;
mod no_role;
mod no_route;
mod not_forwarding;
mod not_masqueraded;
mod programs;
mod redirected_away;
mod refused;
mod reverse_path;
mod silence;
mod slow_answer;
mod socket_error;
mod surroundings;
mod throttled;
mod token_refused;
mod token_request_refused;
mod tokens;
mod unanswered;
mod unexpected_client;
mod unheard;
mod vantage;

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::coverage::{Absent, Coverage, Span, WhyNot};
use crate::exchange::{Exchange, ExchangeId, Moment, Travel};
use crate::identity::{Attribution, Directory};
use crate::journey::{Dropped, Evidence, Fate, Hop, Journey};
use crate::net::{Netns, Timestamp, Ttl};
pub use aftermath::{Aftermath, Refused};
pub use drops::{Spent, is_spent, spent};
pub use history::History;
use history::Tries;
pub use ledger::Ledger;
pub use surroundings::Surroundings;
pub use tokens::TokenUse;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Works, and is worth knowing: one hop more would be too many, say.
    Notice,
    /// Works, but not as it should.
    Warning,
    /// Does not work.
    Error,
}

/// What a finding rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// Inferred; the summary says from what.
    Likely,
    /// Seen in the kernel.
    Certain,
}

/// The instance's hop limit and what this client needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
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

/// Numbers findings within one run: a finding that is told again has the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FindingId(pub u64);

/// A conclusion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its number.
    pub id: FindingId,
    /// The rule's name.
    pub rule: &'static str,
    /// How bad.
    pub severity: Severity,
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
    /// Exchanges that show it, the first 16.
    pub evidence: Vec<ExchangeId>,
    /// What the rule concluded; `weight` and `last` are those of one case.
    pub says: Verdict,
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

/// Where IMDS and its relatives (ECS tasks, EKS Pod Identity) listen.
const IMDS_PORT: u16 = 80;

/// Bytes of a container's name in a sentence; Docker allows any length.
const MAX_NAME: usize = 64;

/// A client that ends its side sooner has not given up waiting: it says that it will send no more.
const LEAST_WAIT: Duration = Duration::from_millis(100);

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
    /// What is known of the host.
    pub host: &'a Surroundings,
    /// Who is who.
    pub directory: &'a Directory,
    /// What was watched, and when.
    pub coverage: &'a Coverage,
    /// From the begin of its connection to now.
    pub span: Span,
}

/// What a client did before a request shows so far back: no client pauses longer between two tries.
const LOOKS_BACK: Duration = Duration::from_secs(60);

impl<'a> Case<'a> {
    /// The exchange, if it has just closed.
    fn closed(&self) -> Option<&'a Exchange> {
        matches!(self.moment, Moment::Closed).then_some(self.exchange)
    }

    /// May it be concluded that what was not seen at the places that saw the rest was not there?
    fn absent(&self) -> Result<Absent, WhyNot> {
        self.coverage.absence(self.span)
    }

    /// The same of everything that passes an interface towards IMDS.
    fn absent_everywhere(&self) -> Result<Absent, WhyNot> {
        self.coverage.absence_everywhere(self.span)
    }

    /// The same of what comes in from outside, where it is known by which interfaces that could be.
    fn absent_outside(&self) -> Result<Absent, WhyNot> {
        if self.host.uplinks.is_empty() { self.absent() } else { self.absent_everywhere() }
    }

    /// The same of what its client did shortly before.
    fn absent_before(&self) -> Result<Absent, WhyNot> {
        self.coverage.absence(Span { from: self.span.from.before(LOOKS_BACK), ..self.span })
    }

    /// A refusal of a client that may have taken a new token since, unnoticed, is none for certain.
    fn unless_it_went_on(&self, mut verdict: Verdict) -> Verdict {
        if self.history.may_have_gone_on(self.exchange, self.who) {
            verdict.confidence = Confidence::Likely;
            verdict.summary.push_str(
                " (A client of the same place whose process was not seen had a token later, or asked for one.)",
            );
        }
        verdict
    }

    /// The exchange, if it was refused, and what its client did next is known now.
    fn afterwards(&self) -> Option<&'a Exchange> {
        matches!(self.moment, Moment::Afterwards).then_some(self.exchange)
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
            None => way(self.exchange.rest_lost().or_else(|| self.exchange.response_travel())),
        };
        (!outward.hops.is_empty() || !inward.hops.is_empty()).then_some(Path { outward, inward })
    }

    /// The exchange, if it is certain now that no answer will come, or that it came too late.
    fn settled(&self) -> Option<&'a Exchange> {
        matches!(self.moment, Moment::Settled).then_some(self.exchange)
    }

    /// Is nothing known but what a capture shows?
    fn rests_on_capture(&self) -> bool {
        self.host.evidence == Evidence::Capture
    }

    /// The instance's id, or what to put in its place.
    fn instance(&self) -> &'a str {
        self.host.instance.as_deref().unwrap_or("<instance-id>")
    }

    /// `The connection attempt of container job-17`, with its port where that is none of IMDS's.
    fn connection_attempt(&self) -> String {
        let port = match self.exchange.endpoint.port {
            IMDS_PORT => String::new(),
            port => format!(" to port {port}"),
        };
        format!("The connection attempt of {}{port}", self.subject())
    }

    /// Whose namespace it is, in a sentence about the client.
    fn whose(&self, netns: Netns) -> &'static str {
        match netns {
            netns if self.enter(netns).is_empty() => "this host",
            netns if self.who.netns == Some(netns) => "the client's own network namespace",
            _ => "a network namespace on its way",
        }
    }

    /// What the client asked, e.g. `PUT /latest/api/token`.
    fn request_line(&self) -> String {
        match &self.exchange.request {
            Some(request) => format!("{} {}", request.method, request.path),
            None => "request".to_owned(),
        }
    }

    /// The client's software in brackets behind a sentence's end, as a hint; empty if it did not say.
    fn hint(&self) -> String {
        self.exchange.software().map(|software| format!(" (it calls itself {})", software.label())).unwrap_or_default()
    }

    /// What the client of a token request did that got no answer, as far as it was seen, as a sentence of its own.
    fn what_the_client_did(&self) -> String {
        let software = self.exchange.software();
        let name = software.as_ref().map_or("The client".into(), |software| software.label());
        let mut did = String::new();
        let tries = self.history.tries(self.exchange, self.who);
        if let Some(Tries { waited, number, in_all, .. }) = tries.filter(|tries| tries.waited >= LEAST_WAIT) {
            did = format!(" {name} gave up after {:.1} s", waited.as_secs_f64());
            match number {
                1 => did.push('.'),
                _ => did.push_str(&format!("; {number} tries took {:.1} s in all.", in_all.as_secs_f64())),
            }
        }
        let went_on = tries.is_some_and(|tries| tries.went_on);
        if software.as_ref().is_some_and(|software| software.never_falls_back()) && !went_on {
            did.push_str(&format!(" {name} never asks without a token: it fails."));
        }
        did
    }

    /// The subject in a sentence, e.g. `container job-17`.
    fn subject(&self) -> String {
        use crate::identity::{Key, Process};
        let process = self.who.process.as_deref();
        let named = |Process { comm, pid, .. }: &Process| format!("{comm} (pid {pid})");
        match (&self.who.container, self.who.by) {
            (Some(container), _) => container.phrase(MAX_NAME),
            (None, Key::Cgroup) => process.map_or("a process of this host".to_owned(), named),
            (None, _) => match (process, self.who.address) {
                (Some(process), Some(address)) => format!("{} at {address}", named(process)),
                (Some(process), None) => named(process),
                (None, _) => self.who.unnamed(),
            },
        }
    }
}

/// A sentence begins with a capital letter, unless a name stands there.
fn capitalised(sentence: String) -> String {
    match sentence.strip_prefix("container ") {
        Some(rest) => format!("Container {rest}"),
        None => match sentence.strip_prefix("the ") {
            Some(rest) => format!("The {rest}"),
            None => sentence,
        },
    }
}

/// What a rule concludes from one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Findings of one rule and subject with the same cause are one.
    pub cause: String,
    /// What it rests on.
    pub confidence: Confidence,
    /// That something was not there, if it rests on that and has taken it for proved.
    pub absent: Option<Absent>,
    /// How much it adds to the count.
    pub weight: u64,
    /// When it was last seen, if that was later than the case's own moment.
    pub last: Option<Timestamp>,
    /// The drop it is about.
    pub drop: Option<Dropped>,
    /// Time the client lost waiting, where the rule is about that: in this case, and in a finding in all.
    pub waited: Option<Duration>,
    /// The way of one exchange that shows it; `None` where the way says nothing about it.
    pub path: Option<Path>,
    /// One sentence.
    pub summary: String,
    /// Commands to run.
    pub remedy: Vec<String>,
    /// How to say the same where instances are described, so that it lasts.
    pub lasting: Option<String>,
    /// What the commands cost in safety, and what to do instead.
    pub caution: Option<String>,
}

impl Verdict {
    /// Takes in what was concluded again from another case of the same cause. The words are the later ones, unless those are less sure.
    fn absorb(&mut self, later: Self) {
        let waited = match (self.waited, later.waited) {
            (Some(known), Some(more)) => Some(known + more),
            (known, more) => known.or(more),
        };
        let drop = self.drop.take().or_else(|| later.drop.clone());
        let path = self.path.take();
        if later.confidence >= self.confidence {
            *self = later;
        }
        (self.waited, self.drop, self.path) = (waited, drop, path);
    }

    /// Something of it rests on what was not seen: no more than likely without the proof that it would have been.
    fn resting_on(mut self, absent: Result<Absent, WhyNot>) -> Self {
        match absent {
            Ok(absent) => self.absent = Some(absent),
            Err(why) => self.doubt(why),
        }
        self
    }

    /// What it takes for absent may have been there.
    fn doubt(&mut self, why: WhyNot) {
        let why = match why {
            WhyNot::Lost => "Some records were lost: what is missing here may have been there.",
            WhyNot::NotWatched => {
                "Not every interface towards IMDS was watched: what is missing here may have passed there."
            }
        };
        (self.confidence, self.absent) = (Confidence::Likely, None);
        self.summary.push_str(&format!(" ({why})"));
    }

    /// One exchange, and what follows from the proof that something would have been seen.
    fn certain_by_absence(cause: impl Into<String>, summary: String, absent: Absent) -> Self {
        Self { absent: Some(absent), ..Self::certain(cause, summary) }
    }

    /// One exchange, and what is concluded from not seeing something: no more than likely, and only with the proof that it would have been
    /// seen.
    fn likely(cause: impl Into<String>, summary: String, _: Absent) -> Self {
        Self { confidence: Confidence::Likely, ..Self::certain(cause, summary) }
    }

    /// One exchange, seen in the kernel, nothing to run.
    pub(crate) fn certain(cause: impl Into<String>, summary: String) -> Self {
        Self {
            cause: cause.into(),
            confidence: Confidence::Certain,
            absent: None,
            weight: 1,
            last: None,
            drop: None,
            waited: None,
            path: None,
            summary,
            remedy: Vec::new(),
            lasting: None,
            caution: None,
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
    token_refused::RULE,
    token_request_refused::RULE,
    imds_disabled::RULE,
    no_role::RULE,
    firewall_drop::RULE,
    refused::RULE,
    redirected_away::RULE,
    answered_locally::RULE,
    not_forwarding::RULE,
    not_masqueraded::RULE,
    no_port::RULE,
    no_route::RULE,
    reverse_path::RULE,
    misrouted_answer::RULE,
    kernel_drop::RULE,
    unanswered::RULE,
    slow_answer::RULE,
    throttled::RULE,
    hop_budget_spent::RULE,
    unexpected_client::RULE,
    forged_request::RULE,
];
