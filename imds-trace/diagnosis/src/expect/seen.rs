//! What was seen of one subject that a claim may be about?

use crate::coverage::Span;
use crate::event::{ExchangeEvent, UnseenConnection};
use crate::exchange::imds::{is_of_others, is_success, may_be_v1};
use crate::exchange::{Delivery, Exchange, ExchangeId, Imds};
use crate::identity::{Attribution, Key};
use crate::journey::Dropped;
use crate::net::Timestamp;
use crate::observation::RequestHead;
use crate::secret::MASK;

/// Longer paths are cut where they are read (`observation::redact`): what stood behind is not known.
const MAX_PATH: usize = 250;

/// How often, and what it was the first time.
#[derive(Debug, Default)]
pub(super) struct Noted {
    pub(super) first: String,
    pub(super) count: u64,
}

/// What was seen of one subject.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) who: Attribution,
    pub(super) exchanges: u64,
    /// When it asked last for what it got, and for what it did not get.
    served_at: Option<(Timestamp, ExchangeId)>,
    refused_at: Option<(Timestamp, ExchangeId)>,
    /// It did not get what it asked for.
    pub(super) refused: Noted,
    /// What it did not get last, and the status that it got in its place.
    pub(super) last_refused: String,
    refused_with: Option<u16>,
    /// It was told that IMDS cannot serve it, or does not want to.
    pub(super) denied: Noted,
    /// Nothing came, or nothing shows that what came arrived.
    pub(super) unanswered: Noted,
    /// Was a socket of it seen?
    pub(super) known: bool,
    /// Findings of severity error.
    pub(super) errors: Noted,
    /// Those that rest on its address alone: an answer to whoever had the address before may be sent again for two minutes.
    pub(super) errors_by_address: Noted,
    /// A token or credentials reached it.
    pub(super) granted: Noted,
    /// Something reached it that may have been a token or credentials.
    pub(super) unclear: Noted,
    /// It asked for a token or credentials, or did not even get to ask, and neither reached it.
    pub(super) stopped: Noted,
    /// Other answers with 200 that reached it.
    pub(super) read: Noted,
    /// It asked without a token.
    pub(super) v1: Noted,
    /// It was answered, and what it had asked was not seen.
    pub(super) unread: Noted,
    /// It sent something that was not seen, and nothing that came back was.
    pub(super) unheard: Noted,
    /// It was answered, and with what was not seen.
    pub(super) unknown: Noted,
    /// Connections that no hook saw and that brought it something, and those by which it may have asked for something.
    pub(super) unseen: Noted,
    pub(super) asked_unseen: Noted,
    /// When the first of its connections began that were not seen to end, and whose packets are seen only where they leave.
    pub(super) open_since: Option<Timestamp>,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    Token,
    Credentials,
    Other,
    /// The path is not known in full.
    Unclear,
    /// The request was not seen.
    Unseen,
}

impl Noted {
    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        if self.count == 0 {
            self.first = what();
        }
        self.count += 1;
    }
}

impl Seen {
    pub(super) fn new(who: &Attribution) -> Self {
        Self {
            who: who.clone(),
            exchanges: 0,
            served_at: None,
            refused_at: None,
            refused: Noted::default(),
            last_refused: String::new(),
            refused_with: None,
            denied: Noted::default(),
            unanswered: Noted::default(),
            known: false,
            errors: Noted::default(),
            errors_by_address: Noted::default(),
            granted: Noted::default(),
            unclear: Noted::default(),
            stopped: Noted::default(),
            read: Noted::default(),
            v1: Noted::default(),
            unread: Noted::default(),
            unheard: Noted::default(),
            unknown: Noted::default(),
            unseen: Noted::default(),
            asked_unseen: Noted::default(),
            open_since: None,
        }
    }

    /// Its errors, as sure as its own sockets make them.
    pub(super) fn errors(&self) -> &Noted {
        if self.known || self.errors.count > 0 { &self.errors } else { &self.errors_by_address }
    }

    /// Did it get what it asked for, and last?
    pub(super) fn is_served(&self) -> bool {
        self.served_at.is_some() && self.served_at >= self.refused_at
    }

    /// Was it turned away with its last request, and not let in since? A rule says so of the instance, and no rule of who stands in for it.
    pub(super) fn is_turned_away(&self) -> bool {
        self.refused_with == Some(401) && !self.is_served()
    }

    /// Takes in a connection that no hook saw. One by which nothing came proves that nothing did.
    pub(super) fn note_unseen(&mut self, unseen: &UnseenConnection) {
        self.known |= self.who.by != Key::Address;
        let endpoint = unseen.endpoint;
        match unseen.counted {
            Some((0, 0)) => {}
            Some((0, acked)) => {
                self.unanswered.note(|| format!("its socket sent {acked} bytes to {endpoint} and got none"))
            }
            Some((received, _)) => self.unseen.note(|| format!("its socket received {received} bytes from {endpoint}")),
            None => self.unseen.note(|| format!("it was connected to {endpoint}, and what came is not known")),
        }
        if unseen.counted.is_none_or(|(_, acked)| acked > 0) {
            self.asked_unseen.note(|| format!("it was connected to {endpoint}"));
        }
    }

    /// Not every interface towards IMDS was watched at this time, for the last time: what it asked then was not seen.
    pub(super) fn note_unwatched(&mut self, unwatched: Span) {
        if self.open_since.is_some_and(|since| since <= unwatched.to) {
            self.unheard.note(|| "a connection was open".to_owned());
        }
    }

    pub(super) fn note(&mut self, event: &ExchangeEvent) {
        let exchange = &event.exchange;
        self.exchanges += 1;
        self.known |= event.who.by != Key::Address;
        let answered = exchange.answered.is_some();
        let status = exchange.status();
        let asks = asks(exchange);
        let at = Some((exchange.asked.unwrap_or(exchange.opened), exchange.id));
        if exchange.is_served() {
            self.served_at = self.served_at.max(at);
        } else {
            self.refused.note(|| happened(exchange));
            if self.refused_at <= at {
                (self.refused_at, self.last_refused, self.refused_with) = (at, happened(exchange), status);
            }
        }
        if status.is_some_and(|status| denies(status, exchange.imds())) || exchange.lacks_token() && answered {
            self.denied.note(|| happened(exchange));
        }
        let is_doubtful = exchange.incomplete || exchange.is_unexplained() || exchange.ends_unseen;
        if !exchange.is_answered_for_sure() || exchange.is_late() || is_doubtful {
            self.unanswered.note(|| happened(exchange));
        }
        // A response that may have arrived, or may not, may have been any.
        let is_open = match exchange.response_delivery() {
            Delivery::Forwarded | Delivery::Unknown => true,
            // It went on, perhaps, and a copy of it was dropped.
            Delivery::Dropped => exchange.response_drop().is_some_and(|drop| exchange.is_aside(drop, event.who.netns)),
            Delivery::Received(_) => false,
        };
        let unproved = exchange.responded && !exchange.response_refuted && is_open;
        // An answer whose status was not seen may have been any.
        // Behind 101 another protocol begins, in which anything may come.
        let delivered = answered && status.is_none_or(|status| is_success(status) || status == 101);
        let takes_token = exchange.imds() == Some(Imds::V2);
        // What goes on where something took the connection is seen in part at most.
        let elsewhere = asks == Asks::Unseen && exchange.redirected.is_some() && exchange.handshake;
        match asks {
            _ if elsewhere && !answered => self.unclear.note(|| happened(exchange)),
            _ if exchange.forestalled => {
                self.unclear.note(|| format!("{}, and it had acknowledged that before it came", happened(exchange)));
            }
            _ if exchange.under_way => self.unclear.note(|| format!("{}, and the trace ended", happened(exchange))),
            Asks::Token | Asks::Credentials | Asks::Unclear | Asks::Unseen if unproved && status.is_none() => {
                self.unclear.note(|| happened(exchange));
            }
            // Whatever the request was: a token was in the answer.
            _ if answered && exchange.issued.is_some() => self.granted.note(|| happened(exchange)),
            Asks::Token | Asks::Credentials if exchange.brought() => {
                self.granted.note(|| happened(exchange));
            }
            // IMDS takes no token that it did not give out.
            Asks::Credentials | Asks::Other if takes_token && (delivered || unproved && status.is_none()) => {
                self.unclear.note(|| format!("{}, with a token that it was not seen to be given", happened(exchange)));
            }
            Asks::Credentials | Asks::Other if delivered && status.is_some() => self.read.note(|| happened(exchange)),
            Asks::Other => {}
            // The client went on as if it had been answered: the way back is not shown.
            _ if delivered || exchange.is_one_way() => self.unclear.note(|| happened(exchange)),
            _ => self.stopped.note(|| happened(exchange)),
        }
        let endpoint = exchange.endpoint.address;
        // Where the head was cut, its token may be behind the cut.
        let request = exchange.request.as_ref().filter(|request| !request.cut);
        let may_be_v1 = || request.is_some_and(|request| may_be_v1(request, endpoint));
        let bare = request.is_some_and(|request| request.empty_token);
        // What was let in without a token was, whether the response reached it or not.
        let let_in = exchange.came_status().is_some_and(is_success);
        if exchange.imds() == Some(Imds::V1) || let_in && (bare || may_be_v1()) {
            self.v1.note(|| happened(exchange));
        }
        // A method that is none was masked; who takes it for one that reads, reads.
        let is_odd = |request: &RequestHead| request.method.contains(MASK) && status.is_some_and(is_success);
        let request = exchange.request.as_ref();
        let unread = request.is_some_and(|request| !request.token && (request.cut || is_odd(request)));
        let came = answered || exchange.responded;
        // What was asked before on the same connection.
        let before = exchange.begins_unseen() || exchange.ends_unseen;
        // Several that contradict each other.
        let is_disputed = exchange.asked.is_some() && request.is_none();
        if asks == Asks::Unseen && came || unread || before || elsewhere || is_disputed {
            self.unread.note(|| happened(exchange));
        }
        if exchange.left_open && !exchange.comes_in() {
            let since = exchange.since();
            self.open_since = Some(self.open_since.map_or(since, |known| known.min(since)));
        }
        if event.unwatched {
            self.unheard.note(|| happened(exchange));
        }
        let is_unheard = exchange.is_unheard() || asks == Asks::Unseen && exchange.under_way;
        if is_unheard && (!came || exchange.unheard) {
            self.unheard.note(|| happened(exchange));
        }
        if answered && status.is_none() {
            self.unknown.note(|| happened(exchange));
        }
    }
}

/// Does this status say that the client gets nothing, for a reason that no finding may name? What 401 is for, and 417 to a token request,
/// is told by rules, and a client that asks again as it should is let in; 404 is an answer of use, and of what is no request to EC2's IMDS only the
/// server's own errors count.
fn denies(status: u16, imds: Option<Imds>) -> bool {
    match status {
        500.. => true,
        200..=299 | 304 | 401 | 404 => false,
        417 => imds != Some(Imds::Token),
        _ => imds != Some(Imds::Other),
    }
}

fn asks(exchange: &Exchange) -> Asks {
    let Some(request) = &exchange.request else { return Asks::Unseen };
    if exchange.imds() == Some(Imds::Token) {
        return Asks::Token;
    }
    // Those give credentials of a task's or pod's role below whatever path they were told.
    if is_of_others(exchange.endpoint.address) {
        let names = request.path.to_ascii_lowercase().contains("credentials");
        return if names { Asks::Credentials } else { Asks::Unclear };
    }
    // `iam/security-credentials/ROLE`, `…-extended/ROLE`, `identity-credentials/ec2/security-credentials/NAME`.
    let mut below = false;
    for segment in request.path.split('/').filter(|segment| !segment.is_empty()) {
        if below {
            return Asks::Credentials;
        }
        below = segment.starts_with("security-credentials");
    }
    // A masked or cut path, or one spelled otherwise, may have been one of them; so may a token's with another method.
    let spelled = request.path.len() < MAX_PATH && !request.path.contains(['%', '*', ';', '\\']);
    let plain = spelled && matches!(request.method.as_str(), "GET" | "HEAD");
    if plain { Asks::Other } else { Asks::Unclear }
}

/// What an exchange asked, and what became of it.
fn happened(exchange: &Exchange) -> String {
    let asked = match &exchange.request {
        Some(request) => format!("{} {}", request.method, request.path),
        None => "a connection".to_owned(),
    };
    if let Some(status) = exchange.status() {
        let but = match exchange.is_late() {
            true => ", after the client had given up",
            false if exchange.incomplete => ", and the response was not seen to arrive whole",
            false if exchange.ends_unseen => ", and the end of its connection was not seen",
            false => "",
        };
        return format!("{asked} was answered with {status}{but}");
    }
    if exchange.answered.is_some() {
        if exchange.response_proof.is_none() {
            return format!("the response to {asked} was forwarded, and nothing shows that it arrived");
        }
        return format!("{asked} was answered");
    }
    let dropped = |what: &str, dropped: &Dropped| {
        let drop = &dropped.drop;
        let on = drop.interface.as_ref().map(|interface| format!(" on {}", interface.name)).unwrap_or_default();
        let reason = drop.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        format!("{what} was dropped in {}{on} with TTL {}{reason}", drop.function(), dropped.ttl.0)
    };
    match (exchange.response_drop(), exchange.request_drop()) {
        (Some(drop), _) => dropped(&format!("the answer to {asked}"), drop),
        (None, Some(drop)) => dropped(&asked, drop),
        (None, None) if exchange.refusal.is_some() => format!("{asked} was refused"),
        (None, None) if exchange.responded => format!("{asked} was answered, and nothing shows that it arrived"),
        (None, None) => format!("{asked} got no answer"),
    }
}
