//! What was one client seen to need?

use super::way;
use crate::event::{ExchangeEvent, Needed};
use crate::exchange::imds::{self, is_success, may_be_v1};
use crate::exchange::{Exchange, Imds};
use crate::identity::Attribution;
use crate::net::Timestamp;
use crate::observation::RequestHead;

/// How often, and when last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub count: u64,
    pub last: Timestamp,
}

impl Count {
    fn note(&mut self, at: Timestamp) {
        self.count += 1;
        self.last = self.last.max(at);
    }
}

/// What was seen of one client.
#[derive(Debug)]
pub struct Client {
    pub who: Attribution,
    pub exchanges: u64,
    pub first: Timestamp,
    pub last: Timestamp,
    /// Asked without a token, and not because a token request came to nothing.
    pub bare: Count,
    /// Those of them that were refused with 401.
    pub refused: u64,
    /// Asked without a token after its own token request came to nothing.
    pub fell_back: Count,
    /// May have asked without a token: its request was not read, or not whole.
    pub unread: Count,
    /// Requests for a token, and with one.
    pub tokens: Count,
    pub reads: Count,
    /// Requests for something else than a token, with one or without, that brought it something. A 404 is an answer of use.
    pub served: u64,
    /// Those that brought it nothing, but for those without one that were refused for that.
    pub failed: Count,
    /// Token requests to which the answer was no token.
    pub denied: Count,
    /// Requests that may be meant for EC2, on which neither setting bears, and that brought it nothing.
    pub vain: Count,
    /// Connections that no hook saw.
    pub unseen: Count,
    /// What its token requests show of the way; that of everything it asked.
    pub token_way: Option<Needed>,
    pub way: Option<Needed>,
}

impl Client {
    pub fn new(who: &Attribution, at: Timestamp) -> Self {
        let none = Count::default();
        Self {
            who: who.clone(),
            exchanges: 0,
            first: at,
            last: at,
            bare: none,
            refused: 0,
            fell_back: none,
            unread: none,
            tokens: none,
            reads: none,
            served: 0,
            failed: none,
            denied: none,
            vain: none,
            unseen: none,
            token_way: None,
            way: None,
        }
    }

    /// What was said of its container since: its name.
    pub fn meet(&mut self, who: &Attribution, at: Timestamp) {
        (self.first, self.last) = (self.first.min(at), self.last.max(at));
        if let (Some(known), Some(told)) = (&mut self.who.container, &who.container)
            && known.name.is_none()
        {
            *known = told.clone();
        }
    }

    pub fn note_unseen(&mut self, at: Timestamp) {
        self.unseen.note(at);
    }

    pub fn note(&mut self, event: &ExchangeEvent) {
        let exchange = &event.exchange;
        let at = exchange.asked.unwrap_or(exchange.opened);
        self.exchanges += 1;
        let join = |known: Option<Needed>, seen| Some(known.map_or(seen, |known| way::both(known, seen)));
        if exchange.request.is_some() {
            self.way = join(self.way, way::of(event));
        }
        let asks = asks(exchange);
        if exchange.begins_unseen() || exchange.ends_unseen {
            // There may have been more on its connection.
            self.unread.note(at);
        }
        if matches!(asks, Asks::WithToken | Asks::WithoutToken) {
            match exchange.is_served() {
                true => self.served += 1,
                // What 401 says of those without one is counted by itself.
                false if matches!(asks, Asks::WithToken) || exchange.status() != Some(401) => self.failed.note(at),
                false => {}
            }
        }
        match asks {
            Asks::Token => {
                self.tokens.note(at);
                self.token_way = join(self.token_way, way::of_token(event));
                if exchange.status().is_some_and(|status| !is_success(status)) {
                    self.denied.note(at);
                }
            }
            Asks::WithToken => self.reads.note(at),
            Asks::WithoutToken if event.fell_back => self.fell_back.note(at),
            Asks::WithoutToken => {
                self.bare.note(at);
                self.refused += u64::from(exchange.status() == Some(401));
            }
            Asks::Unread => self.unread.note(at),
            Asks::Nothing if !exchange.is_served() && !is_of_another(exchange) => self.vain.note(at),
            Asks::Nothing => {}
        }
    }

    /// Did it ask for nothing that is known to work?
    pub fn asks_in_vain(&self) -> bool {
        let others = [self.tokens, self.reads, self.bare, self.fell_back, self.unread];
        self.vain.count > 0 && others.iter().all(|other| other.count == 0)
    }

    /// What is known of the hop limit that it needs: by its token requests; where it made none, by what else it asked.
    pub fn needed(&self) -> Needed {
        self.token_way.or(self.way).unwrap_or_default()
    }
}

/// What a request says of how its client asks.
enum Asks {
    Token,
    WithToken,
    WithoutToken,
    /// What it asked, or whether with a token, is not known.
    Unread,
    /// Something on which neither setting bears.
    Nothing,
}

/// Is it a request to another cloud's service?
fn is_of_another(exchange: &Exchange) -> bool {
    let is_foreign = |request: &RequestHead| request.other_cloud || imds::is_foreign(&request.path);
    imds::is_of_others(exchange.endpoint.address) || exchange.request.as_ref().is_some_and(is_foreign)
}

fn asks(exchange: &Exchange) -> Asks {
    let Some(request) = &exchange.request else { return Asks::Unread };
    let may_be_v1 = may_be_v1(request, exchange.endpoint.address);
    match exchange.imds() {
        Some(Imds::Token) => Asks::Token,
        Some(Imds::V2) if request.empty_token => Asks::WithoutToken,
        Some(Imds::V2) => Asks::WithToken,
        Some(Imds::V1) => Asks::WithoutToken,
        _ if !may_be_v1 => Asks::Nothing,
        // Only its beginning was seen: behind that there may have been a token.
        _ if request.cut => Asks::Unread,
        // What is refused with a token or without one, it does not use.
        _ => match exchange.status() {
            Some(status) if is_success(status) || status == 401 => Asks::WithoutToken,
            Some(_) => Asks::Nothing,
            None => Asks::Unread,
        },
    }
}
