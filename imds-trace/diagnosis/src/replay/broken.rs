//! What is wrong with what is replayed? A sentence each: on stderr, and in the report.

use super::MAX_SHOWN;
use crate::printable::printable;

/// Sentences that are told; the rest is counted.
const MAX_BROKEN: usize = 8;

/// The sentences.
#[derive(Debug, Default)]
pub struct Broken {
    noted: Vec<String>,
    /// Those beyond.
    unsaid: u64,
}

impl Broken {
    /// Notes one. It is said at the end: if nothing can be used, the first is the one sentence that is said.
    pub fn note(&mut self, why: String) {
        if self.noted.len() < MAX_BROKEN {
            self.noted.push(why);
        } else {
            self.unsaid += 1;
        }
    }

    /// How many were noted.
    pub fn count(&self) -> u64 {
        self.noted.len() as u64 + self.unsaid
    }

    /// The first of them.
    pub fn first(&self) -> Option<&str> {
        self.noted.first().map(String::as_str)
    }

    /// Says them on stderr, and gives them to be told in the report.
    pub fn tell(&mut self) -> Vec<String> {
        let Self { mut noted, unsaid } = std::mem::take(self);
        if unsaid > 0 {
            noted.push(format!("{unsaid} more places like these"));
        }
        for why in &noted {
            crate::say!("imds-trace: {}", printable(why, MAX_SHOWN));
        }
        noted
    }
}
