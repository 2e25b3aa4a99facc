//! What came of it all, container by container?

mod group;

use std::collections::HashMap;

use serde::Serialize;

use crate::event::{Event, Lost};
use crate::finding::{Finding, HopLimit};
use crate::identity::{Attribution, Subject};
use crate::journey::OtherPackets;
pub use group::{Credentials, Group, Groups, job};

/// Subjects counted apart at most; the rest is counted as lost.
const MAX_SUBJECTS: usize = 8_192;

/// Tallies of a run.
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
    /// Exchanges that are not shown, as was asked for.
    pub hidden: u64,
    /// What was asserted, and whether it held.
    pub expectations: Vec<Asserted>,
    /// What is shown, counted together, if that was asked for.
    pub groups: Option<Groups>,
    /// What is wrong with the recording that this was concluded from, a sentence each; empty if nothing is, and of a live run.
    pub broken: Vec<String>,
}

/// Something that was asserted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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

/// Makes the report of the events.
#[derive(Debug, Default)]
pub struct Tallies {
    subjects: HashMap<Subject, usize>,
    report: Report,
    over: u64,
}

impl Tallies {
    /// Takes in an event.
    pub fn absorb(&mut self, event: &Event) {
        match event {
            Event::Exchange(event) => {
                if let Some(tally) = self.tally(&event.who) {
                    tally.exchanges += 1;
                    tally.unanswered += u64::from(event.exchange.answered.is_none());
                    tally.hop_limit = tally.hop_limit.and(event.hop_limit);
                }
            }
            Event::Finding(_, finding) => {
                if let Some(tally) = self.tally(&finding.who) {
                    tally.hop_limit = tally.hop_limit.and(finding.hop_limit);
                    if !tally.findings.contains(&finding.rule) {
                        tally.findings.push(finding.rule);
                    }
                }
                let findings = &mut self.report.findings;
                match findings.iter().position(|known| same(known, finding)) {
                    Some(at) => findings[at] = (**finding).clone(),
                    None if findings.len() < MAX_SUBJECTS => findings.push((**finding).clone()),
                    None => self.over += 1,
                }
            }
            // What was lost is given to `finish`, whole.
            Event::Ready(..) | Event::Packet(_) | Event::Loss(..) | Event::Probed(..) | Event::Report(..) => {}
        }
    }

    /// The report.
    pub fn finish(&mut self, lost: Lost, spent: Reconciled) -> Report {
        let mut report = std::mem::take(&mut self.report);
        report.lost = lost;
        report.lost.state_evicted += self.over;
        report.spent = spent;
        report.findings.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.first.cmp(&b.first)));
        report
    }

    fn tally(&mut self, who: &Attribution) -> Option<&mut Tally> {
        let subject = who.subject();
        let index = match self.subjects.get(&subject) {
            Some(index) => *index,
            None if self.report.subjects.len() >= MAX_SUBJECTS => {
                self.over += 1;
                return None;
            }
            None => {
                self.subjects.insert(subject, self.report.subjects.len());
                self.report.subjects.push(Tally {
                    who: who.clone(),
                    exchanges: 0,
                    unanswered: 0,
                    hop_limit: HopLimit::default(),
                    findings: Vec::new(),
                });
                self.report.subjects.len() - 1
            }
        };
        let tally = self.report.subjects.get_mut(index)?;
        if let (Some(known), Some(seen)) = (&mut tally.who.container, &who.container) {
            // What was said of the container since: its name, its networks. Of several inside it none is named.
            let inner = known.inner.take().filter(|inner| seen.inner.as_ref() == Some(inner));
            if known.name.is_none() || seen.name.is_some() {
                *known = seen.clone();
            }
            known.inner = inner;
        }
        Some(tally)
    }
}

/// Is it the same finding, told again? Its first sighting and its evidence name it.
fn same(known: &Finding, told: &Finding) -> bool {
    known.rule == told.rule
        && known.first == told.first
        && known.evidence.first() == told.evidence.first()
        && known.who.subject() == told.who.subject()
}
