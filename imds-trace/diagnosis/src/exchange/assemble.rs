//! Which exchange does this journey belong to, and is that one over?
//!
//! A connection may carry several, one after the other or before the answer to the one before: the answers come in the order of
//! the requests (RFC 9112 section 9.3.2). A head that is seen again at the same sequence number is one that was sent again.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::delivery::Received;
use super::progress::{Live, Position, new};
use super::{Exchange, ExchangeId, Moment, Refusal, Refused, Sink};
use crate::journey::{Connection, ConnectionId, Journey};
use crate::net::{Direction, Endpoint, Heading, Timestamp};
use crate::observation::{Head, RequestHead, ResponseHead, TcpFlags};

/// An exchange in which nothing moves for so long is over. SDKs wait 0.5 to 5 s for an answer; a SYN is repeated after 1, 2 and
/// 4 s.
pub const QUIET: Duration = Duration::from_secs(5);
/// An exchange that ends is told so much later: a client that closed its side may still listen for its answer, and another that
/// ended before it is told first.
pub const LINGER: Duration = Duration::from_millis(500);
/// An exchange without an answer is settled so long after its end: until then the answer may come, too late for the client.
pub const SETTLE: Duration = Duration::from_secs(5);
/// A closed exchange is remembered so long for copies that are lost afterwards: a server repeats an unacknowledged segment with
/// growing gaps of up to 120 s (RFC 6298; Linux TCP_RTO_MAX).
const REMEMBER: Duration = Duration::from_secs(125);
/// An exchange whose socket is open but was not heard of for so long is told all the same: its end may have been lost. cloud-init, the
/// slowest client, waits 50 s a request.
const SOCKET_QUIET: Duration = Duration::from_secs(130);
/// Later than any due time.
const NEVER: Timestamp = Timestamp(u64::MAX);
/// Connections remembered at most.
const MAX_CONNECTIONS: usize = 65_536;
/// Exchanges remembered of one connection at most.
const MAX_EXCHANGES: usize = 256;

#[derive(Debug)]
struct Entry {
    /// In the order of their requests; never empty.
    live: VecDeque<Live>,
    last: Timestamp,
    /// When one side said that this is the end.
    ending: Option<Timestamp>,
    /// When all of it was over.
    closed: Option<Timestamp>,
    /// What both ends are known to have received.
    received: Received,
    /// Is the client's socket known to be open? Then nothing of it is over.
    socket_open: bool,
    /// When it is looked at next, at the latest.
    scheduled: Timestamp,
}

/// What is known of a client's socket that promised to say what its TCP counts.
#[derive(Clone, Copy, Debug, Default)]
struct Witness {
    received: u64,
    acked: u64,
    /// When it was over.
    closed: Option<Timestamp>,
}

/// Makes exchanges of journeys.
#[derive(Debug, Default)]
pub struct Assembler {
    entries: HashMap<ConnectionId, Entry>,
    due: BinaryHeap<Reverse<(Timestamp, ConnectionId)>>,
    order: VecDeque<ConnectionId>,
    by_isn: HashMap<u32, ConnectionId>,
    /// Sockets by first sequence number.
    witnesses: HashMap<u32, Witness>,
    witness_order: VecDeque<u32>,
    next: u64,
    evicted: u64,
}

impl Assembler {
    /// Takes in a journey.
    pub fn push(&mut self, journey: &Journey, sink: &mut Sink<'_>) {
        let id = journey.connection.id;
        if !self.entries.contains_key(&id) {
            self.enter(journey);
        }
        let next = &mut self.next;
        let witness = journey.connection.isn.and_then(|isn| self.witnesses.get(&isn)).copied();
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if let Some(witness) = witness {
            entry.hear(witness, journey.connection.isn);
        }
        entry.note_received(journey);
        entry.prove(journey.at, sink);
        entry.last = entry.last.max(journey.at);
        for live in entry.live.iter_mut().filter(|live| live.exchange.closed.is_none()) {
            live.exchange.connection = journey.connection.clone();
        }
        match journey.heading {
            Heading::ToImds => entry.outward(journey, next, sink),
            Heading::FromImds if journey.icmp.is_some() => entry.refused(journey),
            Heading::FromImds => entry.inward(journey, sink),
        }
        entry.prove(journey.at, sink);
        while entry.live.len() > MAX_EXCHANGES {
            let gone = entry.live.pop_front();
            self.evicted += u64::from(gone.is_some_and(|live| live.exchange.closed.is_none()));
        }
        let flags = journey.tcp.flags;
        let is_open = entry.live.iter().any(Live::waits);
        let fin = flags.has(TcpFlags::FIN) && (journey.heading == Heading::ToImds || !is_open);
        if (fin || flags.has(TcpFlags::RST)) && entry.ending.is_none() && entry.closed.is_none() {
            entry.ending = Some(journey.at);
        }
        schedule(&mut self.due, entry, id);
    }

    /// The latest exchange of a connection, unless it is forgotten.
    pub fn latest(&self, connection: ConnectionId) -> Option<&Exchange> {
        self.entries.get(&connection)?.live.back().map(|live| &live.exchange)
    }

    /// A connect that failed before a packet was made: an exchange of which there is nothing but that.
    pub fn failed(&mut self, attempt: u64, at: Timestamp, endpoint: Endpoint, sink: &mut Sink<'_>) {
        self.next += 1;
        let nowhere = match endpoint.address {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let client = Endpoint { address: nowhere, port: 0 };
        let connection = Connection { id: ConnectionId(0), client, endpoint, isn: None, since: at };
        let mut exchange = new(ExchangeId(self.next), connection, at);
        exchange.attempt = Some(attempt);
        exchange.closed = Some(at);
        sink(&exchange, Moment::Closed);
        sink(&exchange, Moment::Settled);
    }

    /// A socket was established that will say what its TCP counts when it changes its state.
    pub fn opened(&mut self, isn: u32) {
        if self.witnesses.insert(isn, Witness::default()).is_none() {
            self.witness_order.push_back(isn);
        }
        while self.witness_order.len() > MAX_CONNECTIONS {
            if let Some(oldest) = self.witness_order.pop_front() {
                self.witnesses.remove(&oldest);
            }
        }
        self.heard(isn, None, &mut |_, _| {});
    }

    /// A socket's TCP has counted so many payload bytes received and acknowledged; `closed`: it will count no more.
    pub fn counted(
        &mut self,
        (at, isn): (Timestamp, u32),
        (received, acked): (u64, u64),
        closed: bool,
        sink: &mut Sink<'_>,
    ) {
        let Some(witness) = self.witnesses.get_mut(&isn) else { return };
        *witness = Witness {
            received: witness.received.max(received),
            acked: witness.acked.max(acked),
            closed: witness.closed.or(closed.then_some(at)),
        };
        self.heard(isn, Some(at), sink);
    }

    /// Tells the connection of a socket what that said.
    fn heard(&mut self, isn: u32, at: Option<Timestamp>, sink: &mut Sink<'_>) {
        let (Some(id), Some(witness)) = (self.by_isn.get(&isn).copied(), self.witnesses.get(&isn).copied()) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.hear(witness, Some(isn));
        if let Some(at) = at {
            entry.prove(at, sink);
        }
        schedule(&mut self.due, entry, id);
    }

    /// Forgets a connection.
    fn forget(&mut self, id: ConnectionId) {
        let Some(entry) = self.entries.remove(&id) else { return };
        let isn = entry.live.back().and_then(|live| live.exchange.connection.isn);
        if let Some(isn) = isn.filter(|isn| self.by_isn.get(isn) == Some(&id)) {
            self.by_isn.remove(&isn);
        }
    }

    /// Closes what has gone quiet at `now` and forgets what is long over.
    pub fn advance(&mut self, now: Timestamp, sink: &mut Sink<'_>) {
        while let Some(&Reverse((due, id))) = self.due.peek() {
            if due > now {
                break;
            }
            self.due.pop();
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            // An entry that an earlier one replaced.
            if entry.scheduled != due {
                continue;
            }
            entry.scheduled = NEVER;
            let due = entry.due();
            if due > now {
                schedule(&mut self.due, entry, id);
                continue;
            }
            match entry.closed {
                None => entry.close(entry.ending.unwrap_or(due), sink),
                Some(_) if entry.is_settled() => {
                    self.forget(id);
                    continue;
                }
                Some(_) => entry.settle(sink),
            }
            schedule(&mut self.due, entry, id);
        }
    }

    /// When [`Self::advance`] will have something to tell. Forgetting can wait for it.
    pub fn due(&self) -> Option<Timestamp> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// Closes everything: the run ends `at`.
    pub fn finish(&mut self, at: Timestamp, sink: &mut Sink<'_>) {
        let mut entries: Vec<&mut Entry> = self.entries.values_mut().collect();
        entries.sort_by_key(|entry| entry.live.front().map(|live| live.exchange.id));
        for entry in &mut entries {
            if entry.closed.is_none() {
                let end = entry.ending.unwrap_or(entry.last.max(at));
                entry.close(end, sink);
            }
        }
        for entry in entries {
            entry.settle(sink);
        }
    }

    /// How many exchanges had to go before their time; counted anew after each call.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    fn enter(&mut self, journey: &Journey) {
        let id = journey.connection.id;
        self.next += 1;
        let opened = journey.hops.first().map_or(journey.at, |hop| hop.at);
        let exchange = new(ExchangeId(self.next), journey.connection.clone(), opened);
        let live = VecDeque::from([Live::new(exchange)]);
        let received = Received::default();
        let last = journey.at;
        let entry = Entry { live, last, ending: None, closed: None, received, socket_open: false, scheduled: NEVER };
        self.entries.insert(id, entry);
        if let Some(isn) = journey.connection.isn {
            self.by_isn.insert(isn, id);
        }
        self.order.push_back(id);
        while self.entries.len() > MAX_CONNECTIONS {
            match self.order.pop_front() {
                Some(oldest) => {
                    // What is over and told is no loss.
                    let is_open = self.entries.get(&oldest).is_some_and(|entry| entry.closed.is_none());
                    self.forget(oldest);
                    self.evicted += u64::from(is_open);
                }
                None => break,
            }
        }
        while self.order.front().is_some_and(|oldest| !self.entries.contains_key(oldest)) {
            self.order.pop_front();
        }
    }
}

/// Has a connection looked at when something is due, and not more often.
fn schedule(due: &mut BinaryHeap<Reverse<(Timestamp, ConnectionId)>>, entry: &mut Entry, id: ConnectionId) {
    let at = entry.due();
    if at < entry.scheduled {
        entry.scheduled = at;
        due.push(Reverse((at, id)));
    }
}

impl Entry {
    /// When something is to be done next.
    fn due(&self) -> Timestamp {
        match (self.closed, self.ending) {
            (Some(closed), _) if !self.is_settled() => closed.max(self.last.after(SETTLE)),
            (Some(_), _) => self.last.after(REMEMBER),
            (None, Some(end)) => end.after(LINGER),
            (None, None) if self.socket_open => self.last.after(SOCKET_QUIET),
            (None, None) => self.last.after(QUIET),
        }
    }

    fn is_settled(&self) -> bool {
        self.live.iter().all(|live| live.settled)
    }

    fn close(&mut self, at: Timestamp, sink: &mut Sink<'_>) {
        self.closed = Some(at);
        for live in &mut self.live {
            live.close(at, sink);
        }
    }

    /// Takes in what the client's socket said.
    fn hear(&mut self, witness: Witness, isn: Option<u32>) {
        self.socket_open = witness.closed.is_none();
        if self.closed.is_none() && self.ending.is_none() {
            self.ending = witness.closed;
        }
        self.received.counted(witness.received, witness.closed.is_some());
        if let (Some(isn), Ok(acked)) = (isn, u32::try_from(witness.acked)) {
            self.received.by_imds(isn.wrapping_add(1).wrapping_add(acked));
        }
    }

    /// Takes in what a packet says of what its sender has received.
    fn note_received(&mut self, journey: &Journey) {
        let flags = journey.tcp.flags;
        if journey.icmp.is_some() {
            return;
        }
        match journey.heading {
            Heading::ToImds if flags.has(TcpFlags::ACK) => {
                let is_first = self.live.len() == 1 && self.live.iter().all(|live| !live.exchange.responded);
                if is_first && journey.tcp.len > 0 {
                    self.received.answered_from(journey.tcp.ack.wrapping_sub(1));
                }
                self.received.by_client(journey.tcp.ack);
            }
            Heading::FromImds => {
                if flags.has(TcpFlags::SYN) {
                    self.received.answered_from(journey.tcp.seq);
                }
                // A reset acknowledges what a firewall wants it to.
                if flags.has(TcpFlags::ACK) && !flags.has(TcpFlags::RST) {
                    self.received.by_imds(journey.tcp.ack);
                }
            }
            Heading::ToImds => {}
        }
    }

    /// Looks whether what is known to be received changes what came of an exchange, and tells those anew that were told.
    fn prove(&mut self, at: Timestamp, sink: &mut Sink<'_>) {
        for live in &mut self.live {
            if live.prove(&self.received, at, sink) {
                live.revise(sink);
            }
        }
    }

    fn settle(&mut self, sink: &mut Sink<'_>) {
        for live in &mut self.live {
            live.settle(sink);
        }
    }

    fn outward(&mut self, journey: &Journey, next: &mut u64, sink: &mut Sink<'_>) {
        let requests = journey.heads.iter().filter_map(|head| match head {
            Head::Request(request) => Some(request),
            Head::Response(_) | Head::Token(_) => None,
        });
        let mut seen = false;
        for (number, request) in requests.enumerate() {
            seen = true;
            let index = self.asks(journey, request, (journey.tcp.seq, number), next, sink);
            self.live[index].outward(journey, sink);
        }
        if !seen && let Some(last) = self.live.back_mut() {
            last.outward(journey, sink);
        }
        let flags = journey.tcp.flags;
        let ends = flags.has(TcpFlags::FIN) || flags.has(TcpFlags::RST);
        for live in self.live.iter_mut().filter(|_| ends) {
            let exchange = &mut live.exchange;
            if exchange.answered.is_none() && exchange.left.is_none() {
                exchange.left = Some(journey.at);
                if exchange.asked.is_some() {
                    sink(exchange, Moment::Left);
                }
            }
            exchange.discarded |= flags.has(TcpFlags::RST) && exchange.responded;
        }
    }

    /// Enters a request's head; gives the index of its exchange.
    fn asks(
        &mut self,
        journey: &Journey,
        request: &RequestHead,
        position: Position,
        next: &mut u64,
        sink: &mut Sink<'_>,
    ) -> usize {
        if let Some(again) = self.live.iter().position(|live| live.request_at == Some(position)) {
            if journey.contradicted || self.live[again].exchange.request.as_ref() != Some(request) {
                self.live[again].exchange.request = None;
            }
            return again;
        }
        let at = journey.hops.first().map_or(journey.at, |hop| hop.at);
        let needs_another = self.live.back().is_none_or(|last| last.exchange.asked.is_some());
        if needs_another && let Some(last) = self.live.back_mut() {
            if last.exchange.answered.is_some() {
                // Another request on a connection that was kept alive.
                last.close(journey.at, sink);
                last.settle(sink);
            }
            *next += 1;
            let mut exchange = new(ExchangeId(*next), journey.connection.clone(), at);
            exchange.handshake = last.exchange.handshake;
            exchange.decrements = last.exchange.decrements;
            self.live.push_back(Live::new(exchange));
            (self.closed, self.ending) = (None, None);
        } else if let Some(last) = self.live.back_mut() {
            // A connection that had gone quiet before its first request was told as one without: it goes on.
            last.exchange.closed = None;
            last.settled = false;
            (self.closed, self.ending) = (None, None);
        }
        let index = self.live.len() - 1;
        let live = &mut self.live[index];
        live.request_at = Some(position);
        live.request_end = Some(journey.tcp.seq.wrapping_add(journey.tcp.len));
        live.exchange.request = (!journey.contradicted).then(|| request.clone());
        live.exchange.asked = Some(at);
        // What happened to the SYN matters no more: it led here.
        live.exchange.outward = None;
        index
    }

    fn inward(&mut self, journey: &Journey, sink: &mut Sink<'_>) {
        let mut number = 0;
        let mut target = None;
        let mut interim = false;
        for head in &journey.heads {
            match head {
                Head::Response(response) if response.is_interim() => interim = true,
                Head::Response(response) => {
                    let index = self.answers(response, (journey.tcp.seq, number));
                    number += 1;
                    target = Some(index);
                    self.live[index].inward(journey, Some(response), sink);
                }
                Head::Token(mark) => {
                    let index = target.unwrap_or_else(|| self.goes_on());
                    self.live[index].exchange.issued = Some(*mark);
                }
                Head::Request(_) => {}
            }
        }
        if target.is_none() && interim {
            let last = self.live.len() - 1;
            let waits = self.live.iter().position(|live| live.exchange.response.is_none());
            self.live[waits.unwrap_or(last)].interim(journey, sink);
        } else if target.is_none() {
            let flags = journey.tcp.flags;
            if flags.has(TcpFlags::RST) {
                self.refused(journey);
            }
            let index = self.goes_on();
            self.live[index].inward(journey, None, sink);
        }
    }

    /// The index of the exchange that a response's head belongs to.
    fn answers(&mut self, response: &ResponseHead, position: Position) -> usize {
        if let Some(again) = self.live.iter().position(|live| live.response_at == Some(position)) {
            return again;
        }
        let last = self.live.len() - 1;
        let index = self.live.iter().position(|live| live.response_at.is_none()).unwrap_or(last);
        let live = &mut self.live[index];
        live.response_at.get_or_insert(position);
        live.exchange.response.get_or_insert_with(|| response.clone());
        index
    }

    /// The index of the exchange that a packet without a head belongs to: the one whose answer has begun, else the first that waits.
    fn goes_on(&self) -> usize {
        match self.live.iter().position(|live| live.exchange.response.is_none()) {
            None => self.live.len() - 1,
            Some(first) => first.saturating_sub(1),
        }
    }

    /// Somebody said no.
    fn refused(&mut self, journey: &Journey) {
        let how = journey.icmp.map_or(Refused::Reset, Refused::Icmp);
        let came_in = journey.hops.first().is_some_and(|hop| hop.hook.direction == Direction::Ingress);
        let at = journey.hops.first().map_or(journey.at, |hop| hop.at);
        for live in &mut self.live {
            let exchange = &mut live.exchange;
            if exchange.answered.is_none() && !exchange.responded && exchange.refusal.is_none() {
                live.told |= journey.icmp.is_some();
                exchange.refusal = Some(Refusal { at, how, from_outside: came_in });
            }
        }
    }
}
