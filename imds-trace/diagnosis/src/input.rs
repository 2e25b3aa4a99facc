//! What comes in over the seam? Everything below it is a pure function of a list of these.

use serde::{Deserialize, Serialize};

use crate::identity::fact::Fact;
use crate::net::Timestamp;
use crate::observation::Observation;

/// One thing that the pipeline is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// A packet at a place.
    Observation(Observation),
    /// A source's word on who is who.
    Fact(Fact),
    /// Time has passed.
    Tick {
        /// It is now.
        at: Timestamp,
    },
    /// Records that could not be kept.
    Lost {
        /// When that was noticed.
        at: Timestamp,
        /// Records that found no room in the ring buffer.
        ring_buffer: u64,
        /// Records that could not be read.
        unreadable: u64,
    },
}

impl Input {
    /// When.
    pub fn at(&self) -> Timestamp {
        match self {
            Self::Observation(observation) => observation.at,
            Self::Fact(fact) => fact.at,
            Self::Tick { at } | Self::Lost { at, .. } => *at,
        }
    }

    /// The same, so many nanoseconds later: told by the clock of another boot.
    pub fn later(mut self, by: u64) -> Self {
        let at = match &mut self {
            Self::Observation(observation) => &mut observation.at,
            Self::Fact(fact) => &mut fact.at,
            Self::Tick { at } | Self::Lost { at, .. } => at,
        };
        at.0 = at.0.saturating_add(by);
        self
    }
}
