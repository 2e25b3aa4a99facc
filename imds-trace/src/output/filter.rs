//! What of an event is shown? `--container` and `--pid` narrow what is told, never what is recorded.

use crate::config::Filter;
use crate::event::Event;
use crate::identity::Attribution;

impl Filter {
    /// Is anything left out at all?
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty() && self.pids.is_empty()
    }

    /// Is an event shown? A report is made anew, of what was.
    pub fn shows(&self, event: &Event) -> bool {
        match event {
            Event::Exchange(exchange) => self.shows_one(&exchange.who),
            Event::Finding(_, finding) => self.shows_one(&finding.who),
            Event::Ready(..) | Event::Loss(..) | Event::Probed(..) | Event::Report(..) => true,
        }
    }

    fn shows_one(&self, who: &Attribution) -> bool {
        let process = who.process.as_ref().map(|process| process.pid);
        self.shows_container(who) && (self.pids.is_empty() || process.is_some_and(|pid| self.pids.contains(&pid)))
    }

    fn shows_container(&self, who: &Attribution) -> bool {
        let Some(container) = &who.container else { return self.containers.is_empty() };
        self.containers.is_empty() || self.containers.iter().any(|wanted| container.is_called(wanted))
    }
}
