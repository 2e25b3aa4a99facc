//! What would be reported of these events?

use diagnosis::event::{End, Event, Report};
use diagnosis::report::{LastWords, Tallies};

/// Counts events as the program does, without outputs.
#[derive(Debug, Default)]
pub struct Reported {
    last: LastWords,
    tallies: Tallies,
    end: Option<End>,
}

impl Reported {
    /// Takes in an event.
    pub fn take(&mut self, event: &Event) {
        if let Some(settled) = self.last.hear(event) {
            self.tallies.count(&settled);
        }
        if let Event::End(_, end) = event {
            self.end = Some(end.clone());
        }
    }

    /// The report, if the run came to its end.
    pub fn report(mut self) -> Option<Report> {
        self.last.take().iter().for_each(|event| self.tallies.count(event));
        Some(self.tallies.finish(self.end?))
    }
}
