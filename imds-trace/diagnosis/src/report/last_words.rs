//! What is the last word on each exchange and each finding? Both are told again when their outcome changes, and only the last word
//! counts: it takes the place of the one before, where that stood.
//!
//! Bounded: beyond so many exchanges the oldest is settled with what was said of it so far.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::event::Event;
use crate::exchange::ExchangeId;
use crate::finding::FindingId;

/// Exchanges that can still be revised at most. A revision comes within the client's patience; most exchanges have none.
const MAX_EXCHANGES: usize = 2_048;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Exchange(ExchangeId),
    Finding(FindingId),
}

/// The last words so far, in the order in which each was first told.
#[derive(Debug, Default)]
pub struct LastWords {
    words: BTreeMap<u64, Event>,
    places: HashMap<Key, u64>,
    exchanges: VecDeque<ExchangeId>,
    next: u64,
}

impl LastWords {
    /// Takes in an event about an exchange or a finding. Gives the oldest exchange, if that had to be settled.
    pub fn hear(&mut self, event: &Event) -> Option<Event> {
        let key = match event {
            Event::Exchange(event) => Key::Exchange(event.exchange.id),
            Event::Finding(_, finding) => Key::Finding(finding.id),
            _ => return None,
        };
        let place = *self.places.entry(key).or_insert(self.next);
        self.words.insert(place, event.clone());
        if place == self.next {
            self.next += 1;
            if let Key::Exchange(id) = key {
                self.exchanges.push_back(id);
            }
        }
        if self.exchanges.len() <= MAX_EXCHANGES {
            return None;
        }
        let oldest = self.exchanges.pop_front()?;
        let place = self.places.remove(&Key::Exchange(oldest))?;
        self.words.remove(&place)
    }

    /// All that are left.
    pub fn take(&mut self) -> Vec<Event> {
        std::mem::take(self).words.into_values().collect()
    }
}
