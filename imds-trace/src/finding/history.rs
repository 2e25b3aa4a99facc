//! What did this client ask before? Token requests that brought nothing, by process where it is known.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use crate::exchange::{Exchange, ExchangeId, Imds, Moment};
use crate::identity::Attribution;
use crate::net::Timestamp;

/// Clients remembered at most.
const MAX_CLIENTS: usize = 8_192;
/// Token requests remembered per client.
const MAX_REQUESTS: usize = 16;
/// A request without a token belongs to a token request that failed at most this long before. The slowest client, cloud-init,
/// waits 50 s.
const FALLS_BACK_WITHIN: Duration = Duration::from_secs(60);
/// No SDK gives up a token request sooner (Go v2 waits 500 ms): one that is still open after less is not lost yet.
const GIVES_UP_AFTER: Duration = Duration::from_millis(400);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Client {
    Process(u32),
    Address(IpAddr),
}

#[derive(Clone, Copy, Debug)]
struct TokenRequest {
    exchange: ExchangeId,
    asked: Timestamp,
    answered: bool,
}

/// A token request of the same client that brought nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forsaken {
    /// Time between that request and the one without a token.
    pub waited: Duration,
}

/// Token requests by client, bounded.
#[derive(Debug, Default)]
pub struct History {
    requests: HashMap<Client, VecDeque<TokenRequest>>,
    order: VecDeque<Client>,
}

impl History {
    /// Notes what has just happened.
    pub fn note(&mut self, exchange: &Exchange, moment: Moment<'_>, who: &Attribution) {
        if exchange.imds() != Some(Imds::Token) {
            return;
        }
        let Some(asked) = exchange.asked else { return };
        let client = client(who);
        match moment {
            Moment::Asked => {
                if !self.requests.contains_key(&client) {
                    self.order.push_back(client);
                }
                let requests = self.requests.entry(client).or_default();
                if requests.len() == MAX_REQUESTS {
                    requests.pop_front();
                }
                requests.push_back(TokenRequest { exchange: exchange.id, asked, answered: false });
                while self.order.len() > MAX_CLIENTS {
                    if let Some(oldest) = self.order.pop_front() {
                        self.requests.remove(&oldest);
                    }
                }
            }
            Moment::Answered | Moment::Closed => {
                let requests = self.requests.get_mut(&client).into_iter().flatten();
                for request in requests.filter(|request| request.exchange == exchange.id) {
                    request.answered = exchange.answered.is_some();
                }
            }
            Moment::Lost(_) => {}
        }
    }

    /// The token request that this client gave up before it asked without one in `exchange`.
    pub fn forsaken(&self, exchange: &Exchange, who: &Attribution) -> Option<Forsaken> {
        let asked = exchange.asked?;
        let requests = self.requests.get(&client(who))?;
        let last = requests.iter().rev().find(|request| request.asked < asked)?;
        let waited = asked.since(last.asked);
        (!last.answered && (GIVES_UP_AFTER..FALLS_BACK_WITHIN).contains(&waited)).then_some(Forsaken { waited })
    }
}

fn client(who: &Attribution) -> Client {
    match &who.process {
        Some(process) => Client::Process(process.pid),
        None => Client::Address(who.address),
    }
}
