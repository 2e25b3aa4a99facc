//! Which refusals are too fresh to judge? A client that is refused may ask for a token next, take a new one and go on: then nothing was
//! wrong. So a refusal is looked at again a little later, when what followed is known.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::contradiction::WITHIN;
use crate::exchange::{Exchange, ExchangeId};
use crate::identity::Attribution;
use crate::net::Timestamp;

/// SDKs pause a second at most before they try again.
const WAIT: Duration = Duration::from_secs(5);
/// Refusals that wait at most; beyond that the oldest is judged by what is known then.
const MAX_WAITING: usize = 4_096;

/// Refusals that can be judged again at most.
const MAX_JUDGED: usize = 256;

/// A refusal, and whose it was when it was over: by the time it is judged its socket may be forgotten.
pub type Refused = (Exchange, Attribution);

/// Refusals that wait to be judged.
#[derive(Debug, Default)]
pub struct Aftermath {
    waiting: HashMap<ExchangeId, Refused>,
    /// In the order of their time.
    due: VecDeque<(Timestamp, ExchangeId)>,
    /// Those with 403 that were judged shortly before: what they came of may be contradicted.
    judged: VecDeque<Refused>,
}

impl Aftermath {
    /// An exchange is over. It is kept if it is one that is to be judged later; gives the one that had to go for it.
    pub fn note(&mut self, exchange: &Exchange, who: &Attribution, now: Timestamp) -> Option<Refused> {
        if let Some((known, whose)) = self.waiting.get_mut(&exchange.id) {
            // Its outcome was told anew.
            known.clone_from(exchange);
            whose.clone_from(who);
        } else if is_refusal(exchange) {
            self.waiting.insert(exchange.id, (exchange.clone(), who.clone()));
            self.due.push_back((now.after(WAIT), exchange.id));
        }
        if self.due.len() > MAX_WAITING { self.pop() } else { None }
    }

    /// When the next one is to be judged.
    pub fn due(&self) -> Option<Timestamp> {
        self.due.front().map(|(due, _)| *due)
    }

    /// The next one that is to be judged by `now`.
    pub fn next(&mut self, now: Timestamp) -> Option<Refused> {
        self.due().filter(|due| *due <= now)?;
        let refused = self.pop()?;
        if refused.0.status() == Some(403) {
            self.judged.push_back(refused.clone());
            if self.judged.len() > MAX_JUDGED {
                self.judged.pop_front();
            }
        }
        Some(refused)
    }

    /// What was judged and is contradicted by an answer of `endpoint`, given at this moment: to be judged again.
    pub fn again(&mut self, endpoint: IpAddr, at: Timestamp) -> VecDeque<Refused> {
        let all = std::mem::take(&mut self.judged);
        let is_recent = |(exchange, _): &Refused| at.since(exchange.opened) < WITHIN;
        let recent = all.into_iter().filter(is_recent);
        let (again, others) = recent.partition(|(exchange, _)| exchange.endpoint.address == endpoint);
        self.judged = others;
        again
    }

    fn pop(&mut self) -> Option<Refused> {
        let (_, id) = self.due.pop_front()?;
        self.waiting.remove(&id)
    }
}

/// A refusal whose reason shows in what follows: a token is missing or no good, or nothing is allowed.
fn is_refusal(exchange: &Exchange) -> bool {
    matches!(exchange.status(), Some(401 | 403))
}
