//! What did a client do before, and after? Token requests and what they came to; requests that IMDS let in; and when the instance last
//! answered with anything but 403.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::client::{Key, Made, Maker, Tie, goes_on, keys, sought};
use super::contradiction::WITHIN;
use super::tokens::Tokens;
use super::unheard::Unheard;
use super::{imds_disabled, no_role};
use crate::exchange::imds::{is_success, known_by};
use crate::exchange::{Exchange, ExchangeId, Imds, Moment};
use crate::identity::{Attribution, Subject};
use crate::net::Timestamp;

// A table that is never more than half full (of 28,672) tidies itself up in place, and never doubles.
/// Clients remembered at most, under each of their keys.
const MAX_CLIENTS: usize = 28_000;
/// Token requests remembered per client.
const MAX_REQUESTS: usize = 16;
/// Token requests remembered at most.
const MAX_TOKEN_REQUESTS: usize = 28_000;
/// Roles remembered at most: an instance has one.
const MAX_ROLES: usize = 64;
/// An answer other than 403 shows so long that the endpoint is not switched off.
const OPEN_FOR: Duration = Duration::from_secs(10);
/// What a client does later than so long after a request was over, it was not kept waiting for by that.
const NEXT_TRY: Duration = Duration::from_secs(5);
/// What is further apart has nothing to do with each other: no client seen pauses longer between two tries.
const SAME_GROUP: Duration = Duration::from_secs(60);

/// What a token request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    /// Nobody knows, or it is not over.
    Unknown,
    /// A token reached the client.
    Granted,
    /// A status that is no success reached it.
    Refused(u16),
    /// Nothing reached it. `to_host`: an answer came as far as this host.
    Nothing { to_host: bool },
}

#[derive(Clone, Copy, Debug)]
struct TokenRequest {
    made: Made,
    came: Came,
    /// Is it proved that its client has the answer?
    proved: bool,
    /// The first exchange that went on without it: its time counts there.
    charged: Option<ExchangeId>,
}

/// What is remembered under one key.
#[derive(Debug, Default)]
struct Timeline {
    requests: VecDeque<(ExchangeId, Tie)>,
    /// When a request with a token was made that IMDS let in.
    let_in: Option<Timestamp>,
    /// The same by whom no process was known.
    nobody_let_in: Option<Timestamp>,
}

/// What a client had before it made a request without a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Had {
    /// It was not seen asking for a token.
    NotAsked,
    /// It was not seen asking either, but another process of its container was, and nobody knows whether they belong together.
    NotSure,
    /// It asked for one, and it was not seen what came of that.
    Unclear,
    /// A token reached it.
    Token,
    /// Its token requests came to nothing.
    Nothing(Forsaken),
}

/// Token requests that came to nothing, before their client went on without a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forsaken {
    /// How many, one after the other.
    pub tries: u32,
    /// How long they kept the client, in all.
    pub waited: Duration,
    /// How much of that was not counted at an earlier request without a token.
    pub uncounted: Duration,
    /// The status with which the last one was refused.
    pub refused: Option<u16>,
    /// An answer to the last one came as far as this host.
    pub came: bool,
    /// Is it sure that it was the same client?
    pub sure: bool,
}

/// What a client did whose token request got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tries {
    /// How long it waited for this one.
    pub waited: Duration,
    /// How many it made, one after the other.
    pub number: u32,
    /// How long all of them took.
    pub in_all: Duration,
    /// It went on without a token.
    pub went_on: bool,
}

/// What clients did, and tokens; bounded.
#[derive(Debug, Default)]
pub struct History {
    clients: HashMap<Key, Timeline>,
    order: VecDeque<Key>,
    requests: HashMap<ExchangeId, TokenRequest>,
    request_order: VecDeque<ExchangeId>,
    /// When a request was last made after which it is of interest whether its client is let in.
    expected: Option<Timestamp>,
    /// Where a role was listed (an empty name) or its credentials were given, and when last; the latest ones.
    roles: VecDeque<(IpAddr, String, Timestamp)>,
    /// By endpoint: when the instance last answered with anything but 403.
    opened: HashMap<IpAddr, Timestamp>,
    /// Endpoints of which something was asked or answered that could not be read.
    unread: HashSet<IpAddr>,
    /// Tokens that were issued.
    pub tokens: Tokens,
    /// What was asked unseen.
    pub unheard: Unheard,
}

impl History {
    /// Notes what has just happened. `stands_in`: somebody answers in the instance's place.
    pub fn note(&mut self, exchange: &Exchange, moment: Moment<'_>, who: &Attribution, stands_in: bool) {
        let status = exchange.status();
        // What it says of the instance it says, whether it reached the client or not.
        if let (Some(at), Some(status)) = (exchange.came, exchange.came_status())
            && imds_disabled::shows_open(status)
            && !stands_in
        {
            let opened = self.opened.entry(known_by(exchange.endpoint.address)).or_insert(at);
            *opened = at.max(*opened);
        }
        if matches!(moment, Moment::Closed) && !stands_in {
            self.note_role(exchange);
            if exchange.is_unread() && self.unread.len() < MAX_ROLES {
                self.unread.insert(known_by(exchange.endpoint.address));
            }
        }
        if exchange.is_unheard() {
            self.unheard.note(exchange, who);
        }
        match (exchange.imds(), moment) {
            (Some(Imds::Token), Moment::Asked | Moment::Left | Moment::Answered | Moment::Closed) => {
                self.tokens.note(exchange, matches!(moment, Moment::Closed));
                self.note_request(exchange, who);
            }
            (Some(Imds::V1), Moment::Closed) => self.note_read(exchange, status, who),
            (Some(Imds::V2), Moment::Closed) if lacks_token(exchange) => self.note_read(exchange, status, who),
            (Some(Imds::V2), Moment::Closed) if status == Some(401) => self.expect(exchange, who),
            (Some(Imds::V2), Moment::Closed) if status.is_some() => self.note_let_in(exchange, who),
            _ => {}
        }
    }

    fn note_role(&mut self, exchange: &Exchange) {
        let Some(role) = no_role::shown(exchange) else { return };
        let (endpoint, at) = (known_by(exchange.endpoint.address), exchange.asked.unwrap_or(exchange.opened));
        self.roles.retain(|(known, name, _)| (*known, name.as_str()) != (endpoint, role));
        self.roles.push_back((endpoint, role.to_owned(), at));
        if self.roles.len() > MAX_ROLES {
            self.roles.pop_front();
        }
    }

    /// Did the instance show shortly before, at this exchange's endpoint, that it has this role, or any if the name is empty?
    pub fn had_role(&self, exchange: &Exchange, role: &str) -> bool {
        let (endpoint, asked) = (known_by(exchange.endpoint.address), exchange.asked.unwrap_or(exchange.opened));
        self.roles.iter().any(|(known, name, at)| {
            *known == endpoint && (role.is_empty() || name == role) && asked.since(*at) < WITHIN
        })
    }

    fn note_request(&mut self, exchange: &Exchange, who: &Attribution) {
        let Some(asked) = exchange.asked else { return };
        let over = exchange.left.or(exchange.answered);
        let is_over = over.or(exchange.closed).is_some();
        // An answer of which it is not proved that the client has it, and that came when that had ended its side, brought nothing.
        let after_the_end = exchange.left.zip(exchange.answered).is_some_and(|(left, answered)| left < answered);
        let brought =
            exchange.answered.is_some() && !exchange.is_late() && !(after_the_end && exchange.response_proof.is_none());
        let came = match exchange.status().filter(|_| brought) {
            Some(status) if is_success(status) => Came::Granted,
            Some(status) => Came::Refused(status),
            // It went on to a client that only does not send any more: whether it arrived was not seen.
            None if after_the_end && !exchange.discarded => Came::Unknown,
            None if is_over && !brought => Came::Nothing { to_host: exchange.responded },
            None => Came::Unknown,
        };
        let made = Made { maker: Maker::of(who), asked, over, closed: exchange.closed };
        let charged = self.requests.get(&exchange.id).and_then(|request| request.charged);
        if self
            .requests
            .insert(exchange.id, TokenRequest { made, came, proved: exchange.response_proof.is_some(), charged })
            .is_none()
        {
            self.request_order.push_back(exchange.id);
            if self.request_order.len() > MAX_TOKEN_REQUESTS
                && let Some(oldest) = self.request_order.pop_front()
            {
                self.requests.remove(&oldest);
            }
        }
        for (key, tie) in keys(who) {
            let requests = &mut self.client(key).requests;
            if !requests.iter().any(|(known, _)| *known == exchange.id) {
                if requests.len() == MAX_REQUESTS {
                    requests.pop_front();
                }
                requests.push_back((exchange.id, tie));
            }
        }
    }

    /// A request without a token: the time that token requests cost before it is counted with it.
    fn note_read(&mut self, exchange: &Exchange, status: Option<u16>, who: &Attribution) {
        if status == Some(401) {
            self.expect(exchange, who);
        }
        let Some((key, last, _)) = self.last_request(exchange, who) else { return };
        for (id, _) in self.group(&key, last, exchange.id) {
            if let Some(request) = self.requests.get_mut(&id) {
                request.charged.get_or_insert(exchange.id);
            }
        }
    }

    /// What this client does next will be asked for.
    fn expect(&mut self, exchange: &Exchange, who: &Attribution) {
        self.expected = self.expected.max(exchange.asked);
        for sought in sought(who) {
            self.client(sought.key);
        }
    }

    fn note_let_in(&mut self, exchange: &Exchange, who: &Attribution) {
        let recently = |(asked, expected): (Timestamp, Timestamp)| asked.since(expected) < SAME_GROUP;
        if !exchange.asked.zip(self.expected).is_some_and(recently) {
            return;
        }
        for (key, _) in keys(who) {
            if let Some(timeline) = self.clients.get_mut(&key) {
                timeline.let_in = timeline.let_in.max(exchange.asked);
                if who.process.is_none() {
                    timeline.nobody_let_in = timeline.nobody_let_in.max(exchange.asked);
                }
            }
        }
    }

    fn client(&mut self, key: Key) -> &mut Timeline {
        if !self.clients.contains_key(&key) {
            self.order.push_back(key.clone());
            if self.order.len() > MAX_CLIENTS
                && let Some(oldest) = self.order.pop_front()
            {
                self.clients.remove(&oldest);
            }
        }
        self.clients.entry(key).or_default()
    }

    /// The token request that the client of `exchange` made last before it, under which key it stands, and whether it is sure that it
    /// was the same client.
    fn last_request(&self, exchange: &Exchange, who: &Attribution) -> Option<(Key, ExchangeId, bool)> {
        let asked = exchange.asked?;
        let maker = Maker::of(who);
        let mut best: Option<(Tie, Timestamp)> = None;
        let mut found = None;
        for sought in sought(who) {
            for (id, noted) in self.under(&sought.key) {
                let tie = sought.tie.max(*noted);
                let Some(request) = self.requests.get(id).filter(|request| request.made.asked < asked) else {
                    continue;
                };
                let Some(sure) = goes_on(&request.made, &maker, asked, tie, &sought) else { continue };
                let at = request.made.asked;
                if best.is_none_or(|(known, latest)| tie < known || tie == known && latest < at) {
                    best = Some((tie, at));
                    found = Some((sought.key.clone(), *id, sure));
                }
            }
        }
        found
    }

    fn under(&self, key: &Key) -> impl DoubleEndedIterator<Item = &(ExchangeId, Tie)> {
        self.clients.get(key).into_iter().flat_map(|timeline| &timeline.requests)
    }

    /// The token requests that came to nothing one after the other, the last one first, with none between them that was taken into
    /// account by another read than this one.
    fn group(&self, key: &Key, last: ExchangeId, read: ExchangeId) -> Vec<(ExchangeId, TokenRequest)> {
        let mut group: Vec<(ExchangeId, TokenRequest)> = Vec::new();
        let known = self.under(key).rev().filter_map(|(id, _)| Some((*id, *self.requests.get(id)?)));
        for (id, request) in known.skip_while(|(id, _)| *id != last) {
            let elsewhere = |request: &TokenRequest| request.charged.filter(|charged| *charged != read);
            let follows = group.last().is_none_or(|(_, next)| {
                let over = request.made.over.or(request.made.closed).unwrap_or(request.made.asked);
                elsewhere(next) == elsewhere(&request) && next.made.asked.since(over) < SAME_GROUP
            });
            if !follows || !matches!(request.came, Came::Nothing { .. } | Came::Refused(_)) {
                break;
            }
            group.push((id, request));
        }
        group
    }

    /// What the client of a request without a token had before.
    pub fn had(&self, exchange: &Exchange, who: &Attribution) -> Had {
        let Some(asked) = exchange.asked else { return Had::NotSure };
        let Some((key, last, sure)) = self.last_request(exchange, who) else {
            return match (self.asked_itself(asked, who), self.another_asked(asked, who)) {
                (true, _) => Had::Unclear,
                (false, true) => Had::NotSure,
                (false, false) => Had::NotAsked,
            };
        };
        let group = self.group(&key, last, exchange.id);
        let Some((_, request)) = group.first() else {
            let came = self.requests.get(&last).map(|request| request.came);
            return if came == Some(Came::Granted) && sure { Had::Token } else { Had::Unclear };
        };
        let mut next = asked;
        let mut waited = Duration::ZERO;
        for (_, TokenRequest { made, .. }) in &group {
            let over = made.over.unwrap_or(next).min(next);
            let kept = if next.since(over) <= NEXT_TRY { next } else { over };
            waited += kept.since(made.asked);
            next = made.asked;
        }
        let counted = request.charged.is_some_and(|charged| charged != exchange.id);
        let (refused, came) = match request.came {
            Came::Refused(status) => (Some(status), true),
            Came::Nothing { to_host } => (None, to_host),
            Came::Unknown | Came::Granted => (None, false),
        };
        Had::Nothing(Forsaken {
            tries: u32::try_from(group.len()).unwrap_or(u32::MAX),
            waited,
            uncounted: if counted { Duration::ZERO } else { waited },
            refused,
            came,
            sure,
        })
    }

    /// Did somebody there ask for a token shortly before, and was not seen to have it by then? Or, `whatever_came` of it. Where nobody
    /// knows processes it may have been the client of this exchange.
    pub fn somebody_asked(&self, exchange: &Exchange, place: Subject, whatever_came: bool) -> bool {
        let Some(asked) = exchange.asked else { return false };
        let place = Key::Place(place);
        let mut requests = self.under(&place).filter_map(|(id, _)| self.requests.get(id));
        requests.any(|TokenRequest { made, came, proved, .. }| {
            let is_recent = made.asked <= asked && asked.since(made.asked) < SAME_GROUP;
            let may_have_it = matches!(came, Came::Unknown | Came::Granted) && !proved;
            let waits = may_have_it || made.over.is_none_or(|over| over >= asked);
            made.maker.is_nobody() && is_recent && (waits || whatever_came)
        })
    }

    /// Did the client of a request without a token ask for one before, which came to nothing?
    pub fn fell_back(&self, exchange: &Exchange, who: &Attribution) -> bool {
        let asks_without = exchange.imds() == Some(Imds::V1) || lacks_token(exchange);
        asks_without && matches!(self.had(exchange, who), Had::Nothing(_))
    }

    /// Were token requests counted as those that came to nothing before this one?
    pub fn is_charged(&self, exchange: &Exchange, who: &Attribution) -> bool {
        let last = self.last_request(exchange, who).and_then(|(_, last, _)| self.requests.get(&last));
        last.is_some_and(|request| request.charged == Some(exchange.id))
    }

    /// Did the same process ask for a token before, whatever came of it?
    fn asked_itself(&self, asked: Timestamp, who: &Attribution) -> bool {
        let Some(process) = &who.process else { return false };
        let own = Key::Process(process.pid);
        let mut requests = self.under(&own).filter_map(|(id, _)| self.requests.get(id));
        requests.any(|request| request.made.asked < asked)
    }

    /// Did another process of the same place ask for a token, of which nobody knows whether it is the same client?
    fn another_asked(&self, asked: Timestamp, who: &Attribution) -> bool {
        let maker = Maker::of(who);
        let place = Key::Place(who.subject());
        let mut requests = self.under(&place).filter_map(|(id, _)| self.requests.get(id));
        requests.any(|TokenRequest { made, .. }| {
            let is_over = made.over.is_none_or(|over| over <= asked && asked.since(over) < SAME_GROUP);
            made.asked < asked && is_over && (maker.is_adrift() || made.maker.is_adrift())
        })
    }

    /// How the client of a token request that got no answer has waited for a token so far; `None` while it waits.
    pub fn tries(&self, exchange: &Exchange, who: &Attribution) -> Option<Tries> {
        let (asked, left) = (exchange.asked?, exchange.left?);
        let (key, _) = keys(who).into_iter().next()?;
        let group = self.group(&key, exchange.id, exchange.id);
        let first = group.last().map_or(asked, |(_, first)| first.made.asked);
        Some(Tries {
            waited: left.since(asked),
            number: u32::try_from(group.len().max(1)).unwrap_or(u32::MAX),
            in_all: left.since(first),
            went_on: group.first().is_some_and(|(_, request)| request.charged.is_some()),
        })
    }

    /// Did the client of this exchange ask for a token after it?
    pub fn asks_for_token_later(&self, exchange: &Exchange, who: &Attribution) -> bool {
        self.later(exchange, who, |history, key| {
            let requests = history.under(key).filter_map(|(id, _)| history.requests.get(id));
            requests.map(|request| request.made.asked).max()
        })
    }

    /// Was the client of this exchange let in with a token after it?
    pub fn is_let_in_later(&self, exchange: &Exchange, who: &Attribution) -> bool {
        self.later(exchange, who, |history, key| history.clients.get(key)?.let_in)
    }

    /// Did somebody of the same place of whom no process is known ask for a token after it, or was let in with one? It may have been the
    /// client of this exchange.
    pub fn may_have_gone_on(&self, exchange: &Exchange, who: &Attribution) -> bool {
        let place = Key::Place(who.subject());
        let let_in = self.clients.get(&place).and_then(|timeline| timeline.nobody_let_in);
        let requests = self.under(&place).filter_map(|(id, _)| self.requests.get(id));
        let asked = requests.filter(|request| request.made.maker.is_nobody()).map(|request| request.made.asked).max();
        exchange.asked.is_some_and(|at| let_in.max(asked).is_some_and(|later| at < later))
    }

    fn later(&self, exchange: &Exchange, who: &Attribution, when: impl Fn(&Self, &Key) -> Option<Timestamp>) -> bool {
        let has_process = who.process.is_some();
        let mut sought = sought(who).into_iter().filter(|sought| sought.tie != Tie::Place || !has_process);
        sought.any(|sought| when(self, &sought.key).is_some_and(|at| exchange.asked.is_some_and(|asked| asked < at)))
    }

    /// Did the instance ever answer somebody at this exchange's endpoint with anything but 403?
    pub fn was_open(&self, exchange: &Exchange) -> bool {
        self.opened.contains_key(&known_by(exchange.endpoint.address))
    }

    /// Was something asked or answered at this exchange's endpoint that could not be read?
    pub fn is_unread(&self, exchange: &Exchange) -> bool {
        self.unread.contains(&known_by(exchange.endpoint.address))
    }

    /// Did the instance answer somebody at this exchange's endpoint with anything but 403, shortly before or later?
    pub fn is_open(&self, exchange: &Exchange) -> bool {
        let opened = self.opened.get(&known_by(exchange.endpoint.address));
        opened.zip(exchange.answered).is_some_and(|(opened, now)| now.since(*opened) < OPEN_FOR)
    }
}

/// Was there a place for a token in the request, and none in it?
pub(super) fn lacks_token(exchange: &Exchange) -> bool {
    exchange.request.as_ref().is_some_and(|request| request.empty_token)
}
