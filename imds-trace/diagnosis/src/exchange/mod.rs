//! Which journeys are one HTTP exchange with IMDS, and what came of it?
//!
//! Cannot know: what a request said whose first bytes were not seen (then it has no method), nor anything about bodies.

mod assemble;
mod connection;
mod delivery;
pub mod imds;
mod progress;
mod sent;
pub mod software;

use crate::journey::{Connection, Dropped, Fate, Hop, Join, Journey, Redirect};
use crate::net::{Direction, Endpoint, INITIAL_TTLS, Netns, Timestamp, Ttl, has_fallen};
pub use crate::observation::{Icmp, TokenMark};
use crate::observation::{RequestHead, ResponseHead};
pub use assemble::Assembler;
pub use delivery::{Delivery, Proof};
pub use imds::Imds;
pub use software::Software;

/// Numbers exchanges within one run, in the order in which their first packets' journeys ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeId(pub u64);

/// How one side of an exchange travelled: the hops of the packet that tells most, and what became of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Travel {
    /// Hops of the packet that carried the head, or of the first one if none did.
    pub hops: Vec<Hop>,
    /// How it ended: delivered if any copy was.
    pub fate: Fate,
    /// Copies that were lost.
    pub copies: u64,
    /// When the last of them was.
    pub last_lost: Option<Timestamp>,
    /// How the hops were joined.
    pub join: Join,
}

/// Forwards before the first place that is watched, at most: containers in containers are not nested deeper, and a TTL that differs by more
/// was set.
const MAX_NESTED: u8 = 8;

/// What is known of the TTL from a client's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decrements {
    /// How often the TTL of a request packet fell between the hooks that saw it.
    pub seen: Option<u8>,
    /// The same of an answer that passed all of the way that was watched.
    pub back: Returned,
    /// TTL of a request packet at its first hook, and whether it came in there from somewhere else.
    pub first: Option<(Ttl, Direction)>,
    /// Its TTL at its last.
    pub last: Option<Ttl>,
    /// Hooks that saw that packet.
    pub hops: usize,
    /// Those among them that saw it leave: each is one forward, and the TTL falls by no more unless something sets it.
    pub forwards: usize,
}

/// How often the TTL of an answer fell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Returned {
    /// None was seen all the way.
    #[default]
    Unseen,
    /// So often.
    Fell(u8),
    /// It rose: something on this host sets it.
    Rose,
}

impl Decrements {
    /// Was a packet seen behind a forward, so that the client is behind the host that it was seen on? By its TTL, which had fallen.
    pub fn forwarded(&self) -> bool {
        let fell_before = match self.first {
            Some((first, Direction::Egress)) => has_fallen(first),
            Some((_, Direction::Ingress)) | None => false,
        };
        fell_before || self.fell()
    }

    /// Did a TTL fall between the hooks that saw a packet?
    pub fn fell(&self) -> bool {
        self.seen.is_some_and(|seen| seen > 0) || matches!(self.back, Returned::Fell(1..))
    }

    /// The TTL that the client's packets started with, most likely: the next of those in use.
    pub fn likely_initial(&self) -> Option<Ttl> {
        let (first, _) = self.first?;
        INITIAL_TTLS.into_iter().find(|initial| first.0 <= *initial).map(Ttl)
    }

    /// The hop limit a response needs to reach the client: one more than the number of times its TTL falls on the way, as an answer shows
    /// or, where none passed all of it, the request. `initial` is the TTL that the client's socket starts with, which shows decrements
    /// before the first hook (in a nested network namespace). `None` if not known, or if something on this host sets the TTL.
    pub fn needed(&self, initial: Option<Ttl>) -> Option<Ttl> {
        let seen = match self.back {
            // Less than the forwards take, and than the request shows: something set it on the way.
            Returned::Fell(fell) if usize::from(fell) < self.forwards && self.seen != Some(fell) => return None,
            Returned::Fell(fell) => fell,
            Returned::Rose => return None,
            Returned::Unseen => self.seen.filter(|seen| usize::from(*seen) <= self.forwards)?,
        };
        let before = match (initial, self.first) {
            // First seen leaving: what its TTL had fallen by then is this host's doing as well, and is not to be counted twice.
            (Some(initial), Some((_, Direction::Egress))) => {
                return initial.0.checked_sub(self.last?.0)?.checked_add(1).map(Ttl);
            }
            (Some(initial), Some((first, _))) => initial.0.checked_sub(first.0).filter(|fell| *fell <= MAX_NESTED)?,
            // How often it had fallen before nobody saw.
            (None, Some((first, _))) if has_fallen(first) => return None,
            _ => 0,
        };
        seen.checked_add(before)?.checked_add(1).map(Ttl)
    }
}

/// What an exchange went over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Over {
    /// A connection of which packets were seen.
    Connection(Connection),
    /// A connect that failed before a packet was made: there is nothing else of such an exchange.
    Attempt {
        /// The number of the attempt.
        number: u64,
        /// When it began.
        since: Timestamp,
    },
}

/// A request and its response, as far as they were seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Its number.
    pub id: ExchangeId,
    /// Where to, as the client addressed it.
    pub endpoint: Endpoint,
    /// What it went over.
    pub over: Over,
    /// When its first packet was first seen.
    pub opened: Timestamp,
    /// When the request's head was sent; `None` if it was not seen.
    pub asked: Option<Timestamp>,
    /// When the response's head was received by the client or, where that was not seen, left the last place that is watched:
    /// `response_proof` says which.
    pub answered: Option<Timestamp>,
    /// What proves that the client has the response's head.
    pub response_proof: Option<Proof>,
    /// The client had acknowledged the response's head before it came: it has somebody else's bytes in its place.
    pub forestalled: bool,
    /// The client's TCP ended without having received the response's head.
    pub response_refuted: bool,
    /// The client has the response's head, and not all of what came behind it: a part was dropped, or its TCP ended with less.
    pub incomplete: bool,
    /// How a part of the response behind the head's segment travelled, if one was lost.
    pub rest: Option<Travel>,
    /// What proves that IMDS has the request.
    pub request_proof: Option<Proof>,
    /// When it was over; `None` while it is open.
    pub closed: Option<Timestamp>,
    /// The request's head; `None` if it was not seen, or if several that contradict each other were.
    pub request: Option<RequestHead>,
    /// The response's head, as it came in from IMDS; it may not have reached the client.
    pub response: Option<ResponseHead>,
    /// How the request travelled (the SYN, while no request was sent).
    pub outward: Option<Travel>,
    /// How the response travelled; before that, the SYN-ACK.
    pub inward: Option<Travel>,
    /// Was the SYN answered with a SYN-ACK, as far as this host?
    pub handshake: bool,
    /// Did anything with payload come back, as far as this host?
    pub responded: bool,
    /// When the first of it was seen, wherever that was.
    pub came: Option<Timestamp>,
    /// Somebody said no, and nothing else came back.
    pub refusal: Option<Refusal>,
    /// Somebody said no, and that was dropped before it reached the client.
    pub lost_refusal: Option<Refused>,
    /// Was its SYN sent elsewhere instead of to IMDS?
    pub redirected: Option<Redirect>,
    /// When the client ended its side, if it had no answer by then.
    pub left: Option<Timestamp>,
    /// Did its client acknowledge anything? Then it has heard from the other end, whether that was seen or not.
    pub acknowledges: bool,
    /// Did its client send bytes before its request, or without one, that were not seen?
    pub unheard: bool,
    /// Did the run end while an answer could still come?
    pub under_way: bool,
    /// Was it answered on a connection that a capture does not show to the end? Then more may have been asked on it.
    pub ends_unseen: bool,
    /// Did an answer come in that lets in whoever had its connection's ends before?
    pub answers_another: bool,
    /// Was its connection not seen to end when it was over? More may be asked on it.
    pub left_open: bool,
    /// When a packet of its client was last seen leaving this host: so long, at least, that place was listened at.
    pub last_leaving: Option<Timestamp>,
    /// The answering side ended its side of the connection, and this was not the first request that waited on it: it was not to be answered
    /// on it, and its client asks again on another one.
    pub cut_off: bool,
    /// An earlier request on its connection has no answer: answers come in the order of the requests, and this one's turn did not come.
    pub queued: bool,
    /// The answering side ended its side of the connection and had not answered this.
    pub hung_up: bool,
    /// The client's host reset the connection when the answer came: nobody was there any more.
    pub discarded: bool,
    /// The token in the response.
    pub issued: Option<TokenMark>,
    /// TTL of the token response as it came in from IMDS: the instance's hop limit, read off the wire.
    pub hop_limit: Option<Ttl>,
    /// What its packets' TTLs say of the way to this client.
    pub decrements: Decrements,
}

impl Exchange {
    /// An exchange of which nothing is known but its connection.
    pub(crate) fn new(id: ExchangeId, connection: Connection, opened: Timestamp) -> Self {
        Self::of(id, connection.endpoint, Over::Connection(connection), opened)
    }

    /// An exchange of which nothing is known but where to, and what it went over.
    fn of(id: ExchangeId, endpoint: Endpoint, over: Over, opened: Timestamp) -> Self {
        Self {
            id,
            endpoint,
            over,
            opened,
            asked: None,
            answered: None,
            response_proof: None,
            forestalled: false,
            response_refuted: false,
            incomplete: false,
            rest: None,
            request_proof: None,
            closed: None,
            request: None,
            response: None,
            outward: None,
            inward: None,
            handshake: false,
            responded: false,
            came: None,
            refusal: None,
            lost_refusal: None,
            redirected: None,
            left: None,
            acknowledges: false,
            unheard: false,
            under_way: false,
            ends_unseen: false,
            answers_another: false,
            left_open: false,
            last_leaving: None,
            cut_off: false,
            queued: false,
            hung_up: false,
            discarded: false,
            issued: None,
            hop_limit: None,
            decrements: Decrements::default(),
        }
    }

    /// The connection it went over; `None` if its connect failed before a packet was made.
    pub fn connection(&self) -> Option<&Connection> {
        match &self.over {
            Over::Connection(connection) => Some(connection),
            Over::Attempt { .. } => None,
        }
    }

    /// The client's end, as [`Connection::client`].
    pub fn client(&self) -> Option<Endpoint> {
        self.connection().map(|connection| connection.client)
    }

    /// Did its connect fail before a packet was made?
    pub fn is_attempt(&self) -> bool {
        self.connection().is_none()
    }

    /// Did its connection begin before it was seen? Then nobody knows what was asked on it before.
    pub fn begins_unseen(&self) -> bool {
        self.connection().is_some_and(|connection| connection.isn.is_none())
    }

    /// When the first of what it went over was seen.
    pub fn since(&self) -> Timestamp {
        match &self.over {
            Over::Connection(connection) => connection.since,
            Over::Attempt { since, .. } => *since,
        }
    }

    /// Were its client's packets seen coming in to this host?
    pub fn comes_in(&self) -> bool {
        let first = self.outward.as_ref().and_then(|travel| travel.hops.first());
        let first = first.map(|hop| hop.hook.direction).or(self.decrements.first.map(|(_, direction)| direction));
        first == Some(Direction::Ingress)
    }

    /// Was it answered, and does something show that the answer arrived, or was it late?
    pub fn is_answered(&self) -> bool {
        self.response_proof.is_some() || self.is_late()
    }

    /// Was its SYN answered as far as this host, and did its client never acknowledge that?
    pub fn is_unacknowledged(&self) -> bool {
        let nothing_came = self.answered.is_none() && !self.responded && self.asked.is_none();
        self.handshake && nothing_came && !self.acknowledges && !self.unheard && !self.begins_unseen()
    }

    /// What was asked for; `None` if the request was not seen.
    pub fn imds(&self) -> Option<Imds> {
        self.request.as_ref().map(|request| imds::classify(request, self.endpoint.address))
    }

    /// Did it ask something that was not seen? Where the connection's begin was not seen either, it may have.
    pub fn is_unheard(&self) -> bool {
        self.request.is_none() && (self.responded || self.unheard || self.begins_unseen())
    }

    /// Could what was asked, or what came back, not be read?
    pub fn is_unread(&self) -> bool {
        self.is_unheard() || self.responded && self.came_status().is_none()
    }

    /// Is it known what was asked? Of a request that is cut short the token may be behind the cut.
    pub fn is_request_read(&self) -> bool {
        self.request.as_ref().is_some_and(|request| !request.cut || request.token)
    }

    /// Was it refused, and is it not known for what? What was asked was not seen, or not whole.
    pub fn is_unexplained(&self) -> bool {
        let is_known = self.request.as_ref().is_some_and(|request| !request.cut) && !self.begins_unseen();
        !is_known && self.status().is_some_and(|status| status >= 400)
    }

    /// The status that the client got: of a head of which it is proved that the client has it, or that came too late for it.
    pub fn status(&self) -> Option<u16> {
        self.answered?;
        let counts = self.response_proof.is_some() || self.is_late();
        self.response.as_ref().filter(|_| counts).map(|response| response.status)
    }

    /// The status of the response as it came in from IMDS, whether its client got it or not.
    pub fn came_status(&self) -> Option<u16> {
        self.response.as_ref().map(|response| response.status)
    }

    /// Did the client get what it asked for, as far as is known? 206 is a part of it; what answers a HEAD has no content.
    pub fn brought(&self) -> bool {
        let has_content = self.request.as_ref().is_none_or(|request| request.method != "HEAD");
        has_content && !self.incomplete && self.status().is_some_and(imds::is_success) && !self.lacks_token()
    }

    /// Did the client get an answer of use? A 404 to a read is one: IMDS let it in.
    pub fn is_served(&self) -> bool {
        match self.status() {
            _ if self.is_late() || self.incomplete || self.lacks_token() => false,
            Some(200..=299) => true,
            Some(404) => matches!(self.imds(), Some(Imds::V1 | Imds::V2)),
            _ => false,
        }
    }

    /// Did a token request bring something that is no token?
    pub fn lacks_token(&self) -> bool {
        let is_other = || self.response.as_ref().is_some_and(|response| !response.may_hold_token());
        self.imds() == Some(Imds::Token) && self.issued.is_none() && is_other()
    }

    /// Did the answer come after the client had given up?
    pub fn is_late(&self) -> bool {
        let came_after = |left| self.came.is_some_and(|came| came > left);
        self.discarded && self.left.is_some_and(came_after)
    }

    /// Does what was seen show the way to IMDS only, though there was a way back?
    pub fn is_one_way(&self) -> bool {
        self.acknowledges && !self.handshake && !self.responded && self.inward.is_none()
    }

    /// Is it proved that the client has an answer? One of which all that is known is that it was forwarded may have been lost behind.
    pub fn is_answered_for_sure(&self) -> bool {
        self.answered.is_some() && self.response_proof.is_some()
    }

    /// The client's software, as its User-Agent hints.
    pub fn software(&self) -> Option<Software> {
        software::of(self.request.as_ref()?.user_agent.as_deref()?)
    }

    /// Time from the first packet to the answer, or to the end if there was none.
    pub fn duration(&self) -> Option<std::time::Duration> {
        self.answered.or(self.closed).map(|end| end.since(self.opened))
    }

    /// How the response travelled; `None` if nothing of it came. A SYN-ACK that arrived is no response, one that was lost is why
    /// there is none.
    pub fn response_travel(&self) -> Option<&Travel> {
        self.inward.as_ref().filter(|travel| self.responded || travel.fate != Fate::Delivered)
    }

    /// The drop that ended the response, if one did.
    pub fn response_drop(&self) -> Option<&Dropped> {
        dropped(self.inward.as_ref())
    }

    /// How what came behind the response's head was lost, if the client lacks it for that.
    pub fn rest_lost(&self) -> Option<&Travel> {
        self.rest.as_ref().filter(|_| self.incomplete)
    }

    /// The drop that ended the request, if one did.
    pub fn request_drop(&self) -> Option<&Dropped> {
        dropped(self.outward.as_ref())
    }

    /// Was it dropped in a network namespace that is neither the one that is watched, nor the client's, nor one that its packets are known
    /// to pass before they are seen? Then it may have been a copy.
    pub fn is_aside(&self, dropped: &Dropped, client: Option<Netns>) -> bool {
        let netns = dropped.drop.netns;
        let travels = [&self.outward, &self.inward].into_iter().flatten();
        let mut hops = travels.flat_map(|travel| &travel.hops).peekable();
        // Where nothing else was seen, nobody knows what is watched.
        let watched = hops.peek().is_none() || hops.any(|hop| hop.hook.interface.netns == netns);
        let is_nested = matches!(self.decrements.first, Some((first, Direction::Ingress)) if has_fallen(first));
        client != Some(netns) && !watched && !is_nested
    }
}

fn dropped(travel: Option<&Travel>) -> Option<&Dropped> {
    match &travel?.fate {
        Fate::Dropped(dropped) => Some(dropped),
        Fate::Delivered | Fate::Unresolved => None,
    }
}

/// A no in place of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// When it was first seen.
    pub at: Timestamp,
    /// In what form.
    pub how: Refused,
    /// Did it come in from outside? If not, this host said it.
    pub from_outside: bool,
    /// Had its TTL fallen before it was first seen, going out? Then somebody else said it, and it came in unseen.
    pub was_forwarded: bool,
}

impl Refusal {
    /// Does it stand whatever comes later? An error about one packet does not.
    pub fn stands(&self) -> bool {
        self.how == Refused::Reset
    }
}

/// In what form a connection or a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A TCP reset in IMDS's name.
    Reset,
    /// An ICMP error.
    Icmp(Icmp),
}

/// What has just happened to an exchange.
#[derive(Clone, Copy, Debug)]
pub enum Moment<'a> {
    /// Its request was sent.
    Asked,
    /// The head of a response reached the client.
    Answered,
    /// A packet of it was lost, perhaps after it was closed.
    Lost(&'a Journey),
    /// The client ended its side without an answer.
    Left,
    /// It is over. Said again when its outcome has changed since.
    Closed,
    /// It has been over for so long that nothing more will come of it.
    Settled,
    /// It was refused, and so much time has passed that its client has done what it does next.
    Afterwards,
}

/// Takes what happens to exchanges.
pub type Sink<'a> = dyn FnMut(&Exchange, Moment<'_>) + 'a;
