//! Does what was asserted hold? Counts what happened, shown or not; [`judge`] gives a sentence about each `--expect`.
//!
//! Refuses to take silence for health: `blocked`, `v2-only` and `no-errors` do not hold where records were lost, where nothing was seen of the
//! container they are about, or where a client that nobody could name broke them.

mod judge;
mod seen;

use std::collections::HashMap;

use crate::config::{Claim, Expectation};
use crate::event::Asserted;
use crate::event::{Attached, End, Event, Probed};
use crate::finding::Severity;
use crate::identity::{Attribution, Key, Subject};
use crate::net::Timestamp;
use crate::what_if::{Needs, unwatched};
use judge::{Scope, asserted, blocked, is_about, no_errors, reachable, v2_only, works_at};
use seen::Seen;

/// Subjects told apart at most; the rest is counted as lost.
const MAX_SUBJECTS: usize = 8_192;

/// What was asserted, and what was seen of everybody.
#[derive(Debug, Default)]
pub struct Expectations {
    asked: Vec<Expectation>,
    subjects: HashMap<Subject, usize>,
    seen: Vec<Seen>,
    over: u64,
    listened: Listened,
    /// What does not watch that shows who asks at all.
    missing: Option<String>,
    /// Is a claim about what clients need?
    about_settings: bool,
    /// What they need, if one is.
    needs: Needs,
    /// What a probe was answered, which it knows whether its packets were seen or not.
    probed: Option<Probed>,
}

/// Where packets were listened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Listened {
    /// On interfaces of this host.
    #[default]
    Here,
    /// There was no interface when it began.
    Nowhere,
    /// Where somebody captured, and nobody knows what passed elsewhere.
    InCapture,
}

impl Listened {
    fn by(hooks: &[Attached]) -> Self {
        let has = |is: fn(&Attached) -> bool| hooks.iter().any(is);
        if has(|hook| matches!(hook, Attached::Tc { .. })) {
            Self::Here
        } else if has(|hook| matches!(hook, Attached::Capture { .. })) {
            Self::InCapture
        } else {
            Self::Nowhere
        }
    }
}

impl Expectations {
    /// Nothing seen yet.
    pub fn new(asked: Vec<Expectation>) -> Self {
        let about_settings = asked.iter().any(|asked| matches!(asked.claim, Claim::WorksAt(_)));
        Self { asked, about_settings, ..Self::default() }
    }

    /// Counts the last word on an exchange or a finding, and every other event.
    pub fn count(&mut self, event: &Event) {
        if self.asked.is_empty() {
            return;
        }
        if self.about_settings {
            self.needs.count(event);
        }
        match event {
            Event::Exchange(event) => {
                if let Some(seen) = self.of(&event.who) {
                    seen.note(event);
                }
            }
            Event::Finding(_, finding) if finding.severity == Severity::Error && finding.count > 0 => {
                if let Some(seen) = self.of(&finding.who) {
                    let by_address = finding.who.by == Key::Address;
                    let noted = if by_address { &mut seen.errors_by_address } else { &mut seen.errors };
                    noted.note(|| finding.says.summary.clone());
                }
            }
            Event::Ready(_, ready) => {
                self.listened = Listened::by(&ready.hooks);
                self.missing = self.missing.take().or_else(|| unwatched(ready));
            }
            Event::Probed(_, probed) => self.probed = Some((**probed).clone()),
            Event::Unseen(_, unseen) => {
                if let Some(seen) = self.of(&unseen.who) {
                    seen.note_unseen(unseen);
                }
            }
            // What was lost, and when not all was watched, is given to `judge`, whole.
            Event::Settled(_) | Event::Packet(_) | Event::Finding(..) | Event::Loss(..) | Event::End(..) => {}
        }
    }

    /// What came of each, in the order asked; the run ended `at`, and so.
    pub fn judge(&mut self, at: Timestamp, end: &End) -> Vec<Asserted> {
        if let Some(unwatched) = end.unwatched {
            self.seen.iter_mut().for_each(|seen| seen.note_unwatched(unwatched));
        }
        let lost = end.lost.sum() + self.over;
        let judged = self.asked.iter().map(|asked| {
            let scope = Scope::of(asked, &self.seen, self.probed.as_ref(), self.listened);
            let held = match asked.claim {
                Claim::Reachable => reachable(&scope),
                Claim::Blocked => blocked(&scope, lost).and_then(|why| self.covered(why)),
                Claim::V2Only => v2_only(&scope, lost).and_then(|why| self.covered(why)),
                Claim::NoErrors => no_errors(&scope, lost).and_then(|why| self.covered(why)),
                Claim::WorksAt(settings) => {
                    works_at(self.needs.judge(settings, at, end.lost, &|who| is_about(asked, who)))
                }
            };
            asserted(asked, held)
        });
        judged.collect()
    }

    /// What was not seen may have been there, where something does not watch.
    fn covered(&self, why: String) -> Result<String, String> {
        match &self.missing {
            Some(missing) => Err(format!("{}, but {missing}", why.trim_end_matches('.'))),
            None => Ok(why),
        }
    }

    fn of(&mut self, who: &Attribution) -> Option<&mut Seen> {
        let subject = who.subject();
        let index = match self.subjects.get(&subject) {
            Some(index) => *index,
            None if self.seen.len() >= MAX_SUBJECTS => {
                self.over += 1;
                return None;
            }
            None => {
                self.subjects.insert(subject, self.seen.len());
                self.seen.push(Seen::new(who));
                self.seen.len() - 1
            }
        };
        let seen = self.seen.get_mut(index)?;
        if let (Some(known), Some(told)) = (&mut seen.who.container, &who.container)
            && known.name.is_none()
        {
            *known = told.clone();
        }
        Some(seen)
    }
}

#[cfg(test)]
mod tests;
