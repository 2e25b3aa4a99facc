//! Which refusals are too fresh to judge? A client that is refused may ask for a token next, take a new one and go on: then nothing was
//! wrong. So a refusal is looked at again a little later, when what followed is known.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::exchange::{Exchange, ExchangeId};
use crate::identity::Attribution;
use crate::net::Timestamp;

/// SDKs pause a second at most before they try again.
const WAIT: Duration = Duration::from_secs(5);
/// Refusals that wait at most; beyond that the oldest is judged by what is known then.
const MAX_WAITING: usize = 4_096;

/// A refusal, and whose it was when it was over: by the time it is judged its socket may be forgotten.
pub type Refused = (Exchange, Attribution);

/// Refusals that wait to be judged.
#[derive(Debug, Default)]
pub struct Aftermath {
    waiting: HashMap<ExchangeId, Refused>,
    /// In the order of their time.
    due: VecDeque<(Timestamp, ExchangeId)>,
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
        self.pop()
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
