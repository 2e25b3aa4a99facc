//! What of an event is shown? `--container` and `--pid` narrow what is told, never what is recorded.

use crate::config::Filter;
use crate::event::Event;
use crate::identity::Attribution;

/// A shorter beginning of a container id is taken for a name.
const MIN_ID: usize = 4;

impl Filter {
    /// Is anything left out at all?
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty() && self.pids.is_empty()
    }

    /// What of an event is shown; `None` if nothing.
    pub fn apply(&self, event: &Event) -> Option<Event> {
        if self.is_empty() {
            return Some(event.clone());
        }
        match event {
            Event::Exchange(exchange) => self.shows(&exchange.who).then(|| event.clone()),
            Event::Finding(_, finding) => self.shows(&finding.who).then(|| event.clone()),
            Event::Ready(..) | Event::Loss(..) => Some(event.clone()),
            Event::Report(at, report) => {
                let mut report = report.clone();
                report.subjects.retain(|tally| self.shows_container(&tally.who));
                report.findings.retain(|finding| self.shows(&finding.who));
                Some(Event::Report(*at, report))
            }
        }
    }

    fn shows(&self, who: &Attribution) -> bool {
        let process = who.process.as_ref().map(|process| process.pid);
        self.shows_container(who) && (self.pids.is_empty() || process.is_some_and(|pid| self.pids.contains(&pid)))
    }

    fn shows_container(&self, who: &Attribution) -> bool {
        let Some(container) = &who.container else { return self.containers.is_empty() };
        self.containers.is_empty()
            || self.containers.iter().any(|wanted| {
                container.name.as_deref() == Some(wanted)
                    || (wanted.len() >= MIN_ID && container.id.starts_with(wanted))
            })
    }
}
