//! Which tokens were issued while tracing, and is the one that a request carries among them?

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::exchange::imds::is_success;
use crate::exchange::{Exchange, TokenMark};
use crate::net::Timestamp;

/// Tokens remembered at most: a table that is never more than half full (of 114,688) tidies itself up in place, and never doubles.
const MAX_TOKENS: usize = 57_000;
/// A token holds for so long at most.
const LONGEST_LIFETIME: Duration = Duration::from_hours(6);

/// A token that was issued while tracing.
#[derive(Clone, Copy, Debug)]
struct Issued {
    at: Timestamp,
    lifetime: Option<Duration>,
}

/// A token, the moment it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenUse {
    /// Since it was issued.
    pub age: Duration,
    /// What it was issued for; `None` if that was not seen.
    pub lifetime: Option<Duration>,
}

/// Tokens by their marks; bounded.
#[derive(Debug, Default)]
pub struct Tokens {
    known: HashMap<TokenMark, Issued>,
    order: VecDeque<TokenMark>,
    /// When a token was last issued that could not be read, or is not remembered any more.
    unread: Option<Timestamp>,
}

impl Tokens {
    /// Notes what a token request came to so far; `is_over`: no more will be seen of it.
    pub fn note(&mut self, exchange: &Exchange, is_over: bool) {
        let Some(at) = exchange.came else { return };
        let Some(mark) = exchange.issued else {
            if is_over && exchange.came_status().is_none_or(is_success) {
                self.unread = self.unread.max(Some(at));
            }
            return;
        };
        let granted = exchange.response.as_ref().and_then(|response| response.token_ttl);
        let asked_for = exchange.request.as_ref().and_then(|request| request.requested_ttl);
        let lifetime = granted.or(asked_for).map(|seconds| Duration::from_secs(seconds.into()));
        if self.known.insert(mark, Issued { at, lifetime }).is_none() {
            self.order.push_back(mark);
        }
        while self.order.len() > MAX_TOKENS {
            if let Some(oldest) = self.order.pop_front().and_then(|mark| self.known.remove(&mark)) {
                self.unread = self.unread.max(Some(oldest.at));
            }
        }
    }

    /// The token that an exchange's request carried, if it was issued while tracing.
    pub fn used(&self, exchange: &Exchange) -> Option<TokenUse> {
        let issued = self.known.get(&exchange.request.as_ref()?.mark?)?;
        Some(TokenUse { age: exchange.asked?.since(issued.at), lifetime: issued.lifetime })
    }

    /// May the token of this request have been issued while tracing, though none that was read is it? Its own or another could not be read.
    pub fn may_be_unread(&self, exchange: &Exchange) -> bool {
        let unread =
            self.unread.zip(exchange.asked).is_some_and(|(issued, used)| used.since(issued) < LONGEST_LIFETIME);
        unread || exchange.request.as_ref().is_none_or(|request| request.mark.is_none() && request.cut)
    }
}
