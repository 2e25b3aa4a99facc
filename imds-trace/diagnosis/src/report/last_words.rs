//! What is the last word on each exchange and each finding? Both are told again when their outcome changes, and only the last word
//! counts: it takes the place of the one before, where that stood.
//!
//! An exchange of which nothing new comes is settled, and so is the oldest beyond so many: each with what was said of it last, in the order
//! in which they were first told.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

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
    /// Those of which nothing new comes, and that wait for one before them.
    settled: HashSet<ExchangeId>,
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
        if self.exchanges.len() <= MAX_EXCHANGES { None } else { self.settle_oldest() }
    }

    /// Nothing new comes of these. Gives the last words on those that wait for no other any more.
    pub fn settle(&mut self, exchanges: &[ExchangeId]) -> Vec<Event> {
        let known = exchanges.iter().filter(|id| self.places.contains_key(&Key::Exchange(**id)));
        self.settled.extend(known);
        let mut settled = Vec::new();
        while self.exchanges.front().is_some_and(|oldest| self.settled.contains(oldest)) {
            settled.extend(self.settle_oldest());
        }
        settled
    }

    fn settle_oldest(&mut self) -> Option<Event> {
        let oldest = self.exchanges.pop_front()?;
        self.settled.remove(&oldest);
        let place = self.places.remove(&Key::Exchange(oldest))?;
        self.words.remove(&place)
    }

    /// All that are left.
    pub fn take(&mut self) -> Vec<Event> {
        std::mem::take(self).words.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_settled_is_given_in_the_order_in_which_it_was_told_and_once() {
        let told = |id: u64| Event::Settled(vec![ExchangeId(id)]);
        let mut last = LastWords::default();
        for id in 1..=3 {
            let place = last.next;
            last.places.insert(Key::Exchange(ExchangeId(id)), place);
            last.words.insert(place, told(id));
            last.exchanges.push_back(ExchangeId(id));
            last.next += 1;
        }
        let mut settle = |ids: &[u64]| {
            let ids: Vec<_> = ids.iter().map(|id| ExchangeId(*id)).collect();
            let events = last.settle(&ids).into_iter();
            events
                .map(|event| match event {
                    Event::Settled(ids) => ids[0].0,
                    _ => 0,
                })
                .collect::<Vec<_>>()
        };
        assert!(settle(&[2, 7]).is_empty(), "the first waits");
        assert_eq!(settle(&[1]), [1, 2]);
        assert!(settle(&[1, 2]).is_empty(), "they are counted");
        assert_eq!(settle(&[3]), [3]);
        assert!(last.settled.is_empty() && last.words.is_empty() && last.places.is_empty());
    }
}
