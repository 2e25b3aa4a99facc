//! May a client have asked for a token unseen? Over a connection whose request was not seen: the tracer or the capture began in the middle
//! of it, or that packet is missing.

use std::collections::VecDeque;

use super::client::{Key, NEXT_STEP, Tie, keys, sought};
use crate::exchange::{Exchange, ExchangeId};
use crate::identity::Attribution;
use crate::net::Timestamp;

/// Connections remembered at most.
const MAX_REMEMBERED: usize = 1_024;

/// Requests that were not seen.
#[derive(Debug, Default)]
pub struct Unheard {
    /// When it began, and whose it was; the latest ones.
    exchanges: VecDeque<(Option<ExchangeId>, Timestamp, Vec<Key>)>,
    /// When connections were first seen that had begun before; the latest ones.
    connections: VecDeque<Timestamp>,
    /// When the first connection was established that no hook saw, whoever's it was.
    unseen: Option<Timestamp>,
}

impl Unheard {
    /// An exchange of which the request was not seen.
    pub fn note(&mut self, exchange: &Exchange, who: &Attribution) {
        if self.exchanges.back().is_some_and(|(id, ..)| *id == Some(exchange.id)) {
            return;
        }
        self.remember(Some(exchange.id), exchange.opened, who);
    }

    /// A connection that was established at this moment, and that no hook saw.
    pub fn note_unseen(&mut self, established: Timestamp, who: &Attribution) {
        self.unseen = Some(self.unseen.map_or(established, |known| known.min(established)));
        self.remember(None, established, who);
    }

    /// May somebody have been given a token unseen before this moment? Clients may share one.
    pub fn may_have_issued(&self, at: Timestamp) -> bool {
        self.unseen.is_some_and(|unseen| unseen <= at)
    }

    fn remember(&mut self, id: Option<ExchangeId>, at: Timestamp, who: &Attribution) {
        let keys = keys(who).into_iter().map(|(key, _)| key).collect();
        self.exchanges.push_back((id, at, keys));
        if self.exchanges.len() > MAX_REMEMBERED {
            self.exchanges.pop_front();
        }
    }

    /// A packet of a connection that was first seen at this moment, and had begun before.
    pub fn note_half_seen(&mut self, since: Timestamp) {
        if self.connections.back() != Some(&since) {
            self.connections.push_back(since);
        }
        if self.connections.len() > MAX_REMEMBERED {
            self.connections.pop_front();
        }
    }

    /// May the client of this exchange have asked for something shortly before it, unseen? In a capture one client has several
    /// addresses, and of what began before it was seen nobody knows when, and which belong together.
    pub fn is_possible(&self, exchange: &Exchange, who: &Attribution, is_capture: bool) -> bool {
        let Some(asked) = exchange.asked else { return true };
        let is_recent = |at: Timestamp| at <= asked && asked.since(at) < NEXT_STEP;
        let sought = sought(who);
        let is_own = |key: &Key| {
            let mut by = sought.iter().filter(|sought| sought.tie != Tie::Place || who.process.is_none());
            by.any(|sought| sought.key == *key)
        };
        let mut exchanges = self.exchanges.iter().filter(|(_, at, _)| is_recent(*at));
        exchanges.any(|(.., keys)| keys.iter().any(is_own))
            || (is_capture && self.connections.iter().any(|at| asked.since(*at).max(at.since(asked)) < NEXT_STEP))
    }
}
