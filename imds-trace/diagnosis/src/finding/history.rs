//! What was there before? Token requests that brought nothing, by process where it is known; tokens that were issued; and when IMDS
//! last answered with anything but 403.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use crate::exchange::{Exchange, ExchangeId, Imds, Moment, TokenMark};
use crate::identity::Attribution;
use crate::net::Timestamp;

/// Clients remembered at most.
const MAX_CLIENTS: usize = 8_192;
/// Token requests remembered per client.
const MAX_REQUESTS: usize = 16;
/// A request without a token belongs to a token request that failed at most this long before. The slowest client, cloud-init,
/// waits 50 s.
const FALLS_BACK_WITHIN: Duration = Duration::from_secs(60);
/// Tokens remembered at most.
const MAX_TOKENS: usize = 65_536;
/// An answer other than 403 shows so long that the endpoint is not switched off.
const OPEN_FOR: Duration = Duration::from_secs(10);
/// No SDK gives up a token request sooner (Go v2 waits 500 ms): one that is still open after less is not lost yet.
const GIVES_UP_AFTER: Duration = Duration::from_millis(400);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Client {
    Process(u32),
    /// The processes that one process started: a script with `curl` in it is one client.
    ChildrenOf(u32),
    Address(IpAddr),
}

/// Processes that start others which have nothing to do with each other, by the beginnings of their names.
const STARTERS: [&str; 8] = ["systemd", "init", "containerd", "docker", "runc", "conmon", "crio", "tini"];

#[derive(Clone, Copy, Debug)]
struct TokenRequest {
    exchange: ExchangeId,
    asked: Timestamp,
    answered: Option<Timestamp>,
}

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

/// A token request of the same client that brought nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forsaken {
    /// Time between that request and the one without a token.
    pub waited: Duration,
}

/// Token requests by client, and tokens; bounded.
#[derive(Debug, Default)]
pub struct History {
    requests: HashMap<Client, VecDeque<TokenRequest>>,
    order: VecDeque<Client>,
    tokens: HashMap<TokenMark, Issued>,
    token_order: VecDeque<TokenMark>,
    /// By endpoint: when it last answered with anything but 403.
    opened: HashMap<IpAddr, Timestamp>,
}

impl History {
    /// Notes what has just happened.
    pub fn note(&mut self, exchange: &Exchange, moment: Moment<'_>, who: &Attribution) {
        let endpoint = exchange.connection.endpoint.address;
        if let (Some(at), Some(status)) = (exchange.answered, exchange.status())
            && status != 403
        {
            self.opened.insert(endpoint, at);
        }
        if exchange.imds() != Some(Imds::Token) {
            return;
        }
        self.note_token(exchange);
        let Some(asked) = exchange.asked else { return };
        for client in clients(who).into_iter().flatten() {
            match moment {
                Moment::Asked => self.enter(client, TokenRequest { exchange: exchange.id, asked, answered: None }),
                Moment::Answered | Moment::Closed => {
                    let requests = self.requests.get_mut(&client).into_iter().flatten();
                    for request in requests.filter(|request| request.exchange == exchange.id) {
                        request.answered = exchange.answered;
                    }
                }
                Moment::Lost(_) | Moment::Settled => {}
            }
        }
    }

    /// The token request that this client gave up before it asked without one in `exchange`.
    pub fn forsaken(&self, exchange: &Exchange, who: &Attribution) -> Option<Forsaken> {
        let asked = exchange.asked?;
        // Its own requests, else those of its siblings.
        let last = clients(who)
            .into_iter()
            .flatten()
            .find_map(|client| self.requests.get(&client)?.iter().rev().find(|request| request.asked < asked))?;
        let waited = asked.since(last.asked);
        // An answer that came when the client had gone on is none.
        let answered = last.answered.is_some_and(|answered| answered < asked);
        (!answered && (GIVES_UP_AFTER..FALLS_BACK_WITHIN).contains(&waited)).then_some(Forsaken { waited })
    }

    fn enter(&mut self, client: Client, request: TokenRequest) {
        if !self.requests.contains_key(&client) {
            self.order.push_back(client);
        }
        let requests = self.requests.entry(client).or_default();
        if requests.len() == MAX_REQUESTS {
            requests.pop_front();
        }
        requests.push_back(request);
        while self.order.len() > MAX_CLIENTS {
            if let Some(oldest) = self.order.pop_front() {
                self.requests.remove(&oldest);
            }
        }
    }

    fn note_token(&mut self, exchange: &Exchange) {
        let (Some(mark), Some(at)) = (exchange.issued, exchange.came) else { return };
        let granted = exchange.response.as_ref().and_then(|response| response.token_ttl);
        let asked_for = exchange.request.as_ref().and_then(|request| request.requested_ttl);
        let lifetime = granted.or(asked_for).map(|seconds| Duration::from_secs(seconds.into()));
        if self.tokens.insert(mark, Issued { at, lifetime }).is_none() {
            self.token_order.push_back(mark);
        }
        while self.token_order.len() > MAX_TOKENS {
            if let Some(oldest) = self.token_order.pop_front() {
                self.tokens.remove(&oldest);
            }
        }
    }

    /// Did this client ask for a token shortly before, whatever came of it?
    pub fn asked_for_token(&self, exchange: &Exchange, who: &Attribution) -> bool {
        let before = |request: &TokenRequest| {
            exchange.asked.is_some_and(|asked| request.asked < asked && asked.since(request.asked) < FALLS_BACK_WITHIN)
        };
        let mut asked = clients(who).into_iter().flatten().filter_map(|client| self.requests.get(&client));
        asked.any(|requests| requests.iter().any(before))
    }

    /// The token that an exchange's request carried, if it was issued while tracing.
    pub fn token_use(&self, exchange: &Exchange) -> Option<TokenUse> {
        let issued = self.tokens.get(&exchange.request.as_ref()?.mark?)?;
        Some(TokenUse { age: exchange.asked?.since(issued.at), lifetime: issued.lifetime })
    }

    /// Did this exchange's endpoint answer somebody with anything but 403 shortly before?
    pub fn was_open(&self, exchange: &Exchange) -> bool {
        let opened = self.opened.get(&exchange.connection.endpoint.address);
        opened.zip(exchange.answered).is_some_and(|(opened, now)| now.since(*opened) < OPEN_FOR)
    }
}

/// As whom a process is remembered: as itself, and as one of its parent's.
fn clients(who: &Attribution) -> [Option<Client>; 2] {
    let Some(process) = &who.process else { return [Some(Client::Address(who.address)), None] };
    let parent = process
        .ancestors
        .first()
        .filter(|parent| parent.pid > 1 && !STARTERS.iter().any(|starter| parent.comm.starts_with(starter)));
    [Some(Client::Process(process.pid)), parent.map(|parent| Client::ChildrenOf(parent.pid))]
}
