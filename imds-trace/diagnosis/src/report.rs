//! What came of it all, container by container?

mod group;
mod last_words;

use std::collections::HashMap;

use crate::event::{End, Event, Listened, Report, Tally, UnseenConnection, Unwatched};
use crate::finding::HopLimit;
use crate::identity::{Attribution, Subject};
pub use group::Grouping;
pub use last_words::LastWords;

/// Subjects counted apart at most; the rest is counted as lost.
const MAX_SUBJECTS: usize = 8_192;

/// Runs of which it is told what they listened on at most.
const MAX_RUNS: usize = 16;
/// Subjects told at most whose connections no hook saw.
const MAX_UNWATCHED: usize = 256;

/// Makes the report of events. Each exchange and each finding is counted once, by the last word on it (see [`LastWords`]).
#[derive(Debug, Default)]
pub struct Tallies {
    subjects: HashMap<Subject, usize>,
    report: Report,
    over: u64,
}

impl Tallies {
    /// Counts the last word on something.
    pub fn count(&mut self, event: &Event) {
        match event {
            Event::Exchange(event) => {
                if let Some(tally) = self.tally(&event.who) {
                    tally.exchanges += 1;
                    let exchange = &event.exchange;
                    tally.unanswered += u64::from(exchange.answered.is_none());
                    let is_whole = exchange.response_proof.is_some() && !exchange.incomplete;
                    tally.unproved += u64::from(exchange.answered.is_some() && !is_whole);
                    let is_read =
                        exchange.response.is_some() && exchange.is_request_read() && !exchange.is_unexplained();
                    tally.unread += u64::from(exchange.response_proof.is_some() && !is_read);
                    tally.hop_limit = tally.hop_limit.and(event.hop_limit);
                }
            }
            // Withdrawn: nothing of it was left.
            Event::Finding(_, finding) if finding.count == 0 => {}
            Event::Finding(_, finding) => {
                if let Some(tally) = self.tally(&finding.who) {
                    tally.hop_limit = tally.hop_limit.and(finding.hop_limit);
                    if !tally.findings.contains(&finding.rule) {
                        tally.findings.push(finding.rule);
                    }
                }
                let findings = &mut self.report.findings;
                if findings.len() < MAX_SUBJECTS {
                    findings.push((**finding).clone());
                } else {
                    self.over += 1;
                }
            }
            Event::Ready(from, ready) => {
                let listened = &mut self.report.coverage.listened;
                if listened.len() < MAX_RUNS {
                    listened.push(Listened { from: *from, ready: ready.clone() });
                }
            }
            Event::Unseen(_, unseen) => self.count_unseen(unseen),
            // What was lost is given to `finish`, whole.
            Event::Settled(_) | Event::Packet(_) | Event::Loss(..) | Event::Probed(..) | Event::End(..) => {}
        }
    }

    fn count_unseen(&mut self, unseen: &UnseenConnection) {
        let UnseenConnection { who, endpoint, counted, .. } = unseen;
        let received = counted.map(|(received, _)| received);
        let all = &mut self.report.coverage.unseen;
        let (subject, room) = (who.subject(), all.len() < MAX_UNWATCHED);
        match all.iter_mut().find(|known| known.who.subject() == subject && known.endpoint == *endpoint) {
            Some(known) => {
                known.connections += 1;
                known.received = known.received.zip(received).map(|(known, more)| known + more);
            }
            None if room => all.push(Unwatched { who: who.clone(), endpoint: *endpoint, connections: 1, received }),
            None => self.over += 1,
        }
    }

    /// The report.
    pub fn finish(&mut self, end: End) -> Report {
        let mut report = std::mem::take(&mut self.report);
        let End { lost, spent, other, watched, losses, unwatched: _ } = end;
        (report.lost, report.spent, report.other) = (lost, spent, other);
        (report.coverage.watched, report.coverage.losses) = (watched, losses);
        report.lost.state_evicted += self.over;
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
                    unproved: 0,
                    unread: 0,
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
