//! Which requests and answers did one connection carry, and when is it over?
//!
//! One after the other, or before the answer to the one before: the answers come in the order of the requests (RFC 9112 section 9.3.2).
//! A head that is seen again at the same sequence number is one that was sent again.

use std::collections::VecDeque;
use std::time::Duration;

use super::delivery::{Received, later, raise};
use super::progress::{Live, Position};
use super::sent::Sent;
use super::{Exchange, ExchangeId, Moment, Refusal, Refused, Sink};
use crate::journey::{END, Evidence, Fate, Journey};
use crate::net::{Direction, Heading, Timestamp, is_before};
use crate::observation::{Head, RequestHead, ResponseHead, TcpFlags};

/// An exchange in which nothing moves for so long is over. SDKs wait 0.5 to 5 s for an answer; a SYN is repeated after 1, 2 and
/// 4 s.
pub const QUIET: Duration = Duration::from_secs(5);
/// An exchange that ends is told so much later: a client that closed its side may still listen for its answer, and another that
/// ended before it is told first.
pub const LINGER: Duration = Duration::from_millis(500);
/// An exchange without an answer is settled so long after its end: until then the answer may come, too late for the client.
pub const SETTLE: Duration = Duration::from_secs(5);
/// An exchange whose socket is open but was not heard of for so long is told all the same: its end may have been lost. cloud-init, the
/// slowest client, waits 50 s a request.
const SOCKET_QUIET: Duration = Duration::from_secs(130);

/// A connection.
#[derive(Debug)]
pub(super) struct Entry {
    /// In the order of their requests; never empty.
    pub(super) live: VecDeque<Live>,
    pub(super) last: Timestamp,
    /// When one side said that this is the end.
    pub(super) ending: Option<Timestamp>,
    /// When all of it was over.
    pub(super) closed: Option<Timestamp>,
    /// What both ends are known to have received.
    received: Received,
    /// The sequence number behind the last byte from IMDS that was seen, wherever that was.
    seen_to: Option<u32>,
    /// What was seen of what the client sent.
    sent: Sent,
    /// Is the client's socket known to be open? Then nothing of it is over.
    socket_open: bool,
    /// When it is looked at next, at the latest.
    pub(super) scheduled: Timestamp,
    /// No packet of it comes any more: the joiner has forgotten it.
    pub(super) forsaken: bool,
    evidence: Evidence,
}

/// What is known of a client's socket that promised to say what its TCP counts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Witness {
    pub(super) received: u64,
    pub(super) acked: u64,
    /// When it was over.
    pub(super) closed: Option<Timestamp>,
}

impl Entry {
    /// A connection whose first packet's journey ended `at`.
    pub(super) fn new(first: Live, at: Timestamp, evidence: Evidence) -> Self {
        Self {
            live: VecDeque::from([first]),
            last: at,
            ending: None,
            closed: None,
            received: Received::default(),
            seen_to: None,
            sent: Sent::default(),
            socket_open: false,
            scheduled: END,
            forsaken: false,
            evidence,
        }
    }

    /// When something is to be done next.
    pub(super) fn due(&self) -> Timestamp {
        match (self.closed, self.ending) {
            (Some(closed), _) if !self.is_settled() => closed.max(self.last.after(SETTLE)),
            (Some(_), _) => END,
            (None, Some(end)) => end.after(LINGER),
            (None, None) if self.socket_open => self.last.after(SOCKET_QUIET),
            (None, None) => self.last.after(QUIET),
        }
    }

    fn is_settled(&self) -> bool {
        self.live.iter().all(|live| live.settled)
    }

    /// Is it over, and nothing left to be told of it?
    pub(super) fn is_told(&self) -> bool {
        self.closed.is_some() && self.live.iter().all(|live| live.settled || !live.is_to_settle())
    }

    pub(super) fn close(&mut self, at: Timestamp, next: &mut u64, sink: &mut Sink<'_>) {
        let received = self.received;
        self.notice_unseen(&received, at, sink);
        if self.sent.is_missing() {
            let index = match self.live.iter().position(|live| live.exchange.asked.is_none()) {
                Some(index) => index,
                None => self.another(at, at, next, sink),
            };
            let live = &mut self.live[index];
            (live.exchange.unheard, live.told) = (true, true);
        }
        // Of a connection that is not seen to end a capture may lack the rest.
        if self.evidence == Evidence::Capture && self.ending.is_none() {
            let silent = self.live.iter_mut().map(|live| &mut live.exchange);
            silent.filter(|it| it.handshake && it.asked.is_none()).for_each(|it| it.unheard = true);
        }
        self.closed = Some(at);
        for live in &mut self.live {
            live.close(at, sink);
        }
    }

    /// The run ends at this moment: an answer that is not too late yet may still have come.
    pub(super) fn cut_off_by_the_end(&mut self, end: Timestamp) {
        if self.ending.is_some() || end.since(self.last) >= QUIET {
            return;
        }
        for exchange in self.live.iter_mut().map(|live| &mut live.exchange) {
            let was_dropped = exchange.request_drop().is_some() || exchange.response_drop().is_some();
            exchange.under_way = exchange.answered.is_none() && exchange.refusal.is_none() && !was_dropped;
        }
    }

    /// The client has bytes from IMDS that were seen nowhere: they are the answer to the first request that has none. Looked at when no
    /// sighting of them will come any more.
    fn notice_unseen(&mut self, received: &Received, at: Timestamp, sink: &mut Sink<'_>) -> bool {
        let waits = self.live.iter().position(|live| !live.has_answer());
        let Some(live) = waits.and_then(|index| self.live.get_mut(index)) else { return false };
        live.notice_unseen(received, self.seen_to, at, sink)
    }

    /// Takes in what the client's socket said.
    pub(super) fn hear(&mut self, witness: Witness, isn: Option<u32>) {
        self.socket_open = witness.closed.is_none();
        if self.closed.is_none() && self.ending.is_none() {
            self.ending = witness.closed;
        }
        self.received.counted(witness.received, witness.closed.is_some());
        if let (Some(isn), Ok(acked)) = (isn, u32::try_from(witness.acked)) {
            let acked = isn.wrapping_add(1).wrapping_add(acked);
            self.received.by_imds(acked);
            self.sent.reach(acked);
        }
    }

    /// Takes in what a packet says of what its sender has received.
    pub(super) fn note_received(&mut self, journey: &Journey) {
        let flags = journey.tcp.flags;
        if journey.icmp.is_some() {
            return;
        }
        if journey.heading == Heading::ToImds && flags.has(TcpFlags::RST) {
            // Known before what it acknowledges proves that the answer arrived: it did, and nobody was there any more.
            for live in self.live.iter_mut().filter(|live| live.exchange.responded) {
                live.exchange.discarded = true;
            }
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
                } else if !flags.has(TcpFlags::RST) {
                    self.notice_unseen_response(journey.tcp.seq);
                }
                // A reset acknowledges what a firewall wants it to.
                if flags.has(TcpFlags::ACK) && !flags.has(TcpFlags::RST) {
                    self.received.by_imds(journey.tcp.ack);
                    self.sent.reach(journey.tcp.ack);
                }
            }
            Heading::ToImds => {}
        }
    }

    /// IMDS goes on from this number: what lies between it and what was seen of its answers came unseen, whether it arrived or not.
    fn notice_unseen_response(&mut self, seq: u32) {
        let Some(waits) = self.live.iter_mut().find(|live| !live.has_answer()) else { return };
        let Some(begins) = waits.answer_begins.filter(|_| waits.exchange.asked.is_some()) else { return };
        // One number may be that of its FIN.
        if is_before(later(begins, self.seen_to).wrapping_add(1), seq) {
            waits.responded_unseen();
        }
    }

    /// Looks whether what is known to be received changes what came of an exchange, and tells those anew that were told.
    pub(super) fn prove(&mut self, at: Timestamp, sink: &mut Sink<'_>) {
        for live in &mut self.live {
            if live.prove(&self.received, at, sink) {
                live.revise(sink);
            }
        }
        // Its socket's last word may come after its end.
        let received = self.received;
        if self.closed.is_some() && self.notice_unseen(&received, at, sink) {
            self.live.iter_mut().for_each(|live| live.revise(sink));
        }
    }

    pub(super) fn settle(&mut self, sink: &mut Sink<'_>) {
        for live in &mut self.live {
            live.settle(sink);
        }
    }

    pub(super) fn outward(&mut self, journey: &Journey, next: &mut u64, sink: &mut Sink<'_>) {
        let requests = journey.heads.iter().filter_map(|head| match head {
            Head::Request(request) => Some(request),
            Head::Response(_) | Head::Token(_) => None,
        });
        if !journey.tcp.flags.has(TcpFlags::RST) {
            self.sent.see(journey.connection.isn, journey.tcp.seq, journey.tcp.end());
        }
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
        // A client that asks again acknowledges what it has of the answer before. Its socket's count may be of answers whose journeys are
        // not over yet.
        let mut acknowledged = Received::default();
        acknowledged.by_client(journey.tcp.ack);
        self.notice_unseen(&acknowledged, journey.at, sink);
        let needs_another = |last: &Live| last.exchange.asked.is_some() || last.is_answered_before(journey.tcp.seq);
        if self.live.back().is_none_or(needs_another) {
            self.another(at, journey.at, next, sink);
        } else if let Some(last) = self.live.back_mut() {
            // A connection that had gone quiet before its first request was told as one without: it goes on.
            last.exchange.closed = None;
            last.settled = false;
            if last.answers_to == Some(journey.tcp.end()) && !self.sent.lacks_before(journey.tcp.seq) {
                // It was told of late: what came was the answer to this and to nothing else.
                last.exchange.response = last.unclaimed.take();
            }
        }
        (self.closed, self.ending) = (None, None);
        // The answer to the one before begins at the same number: this one's is behind it, nobody knows where.
        let alone = !self.live.iter().any(|live| live.answer_begins == Some(journey.tcp.ack));
        let is_next = journey.tcp.flags.has(TcpFlags::ACK) && alone && !request.expects_continue;
        let index = self.live.len() - 1;
        let live = &mut self.live[index];
        live.request_at = Some(position);
        live.request_end = Some(journey.tcp.seq.wrapping_add(journey.tcp.len));
        live.answer_begins = is_next.then_some(journey.tcp.ack);
        live.exchange.request = (!journey.contradicted).then(|| request.clone());
        live.exchange.asked = Some(at);
        // What happened to the SYN matters no more: it led here.
        live.exchange.outward = None;
        index
    }

    /// Enters one more exchange of this connection, of which nothing is known yet; gives its index.
    fn another(&mut self, opened: Timestamp, at: Timestamp, next: &mut u64, sink: &mut Sink<'_>) -> usize {
        let Some(last) = self.live.back_mut() else { return 0 };
        if last.exchange.answered.is_some() {
            // Another request on a connection that was kept alive.
            last.close(at, sink);
            last.settle(sink);
        }
        *next += 1;
        let Exchange { endpoint, over, .. } = &last.exchange;
        let mut exchange = Exchange::of(ExchangeId(*next), *endpoint, over.clone(), opened);
        exchange.handshake = last.exchange.handshake;
        exchange.decrements = last.exchange.decrements;
        self.live.push_back(Live::new(exchange));
        self.live.len() - 1
    }

    pub(super) fn inward(&mut self, journey: &Journey, next: &mut u64, sink: &mut Sink<'_>) {
        let mut number = 0;
        let mut target = None;
        let mut interim = false;
        for head in &journey.heads {
            match head {
                Head::Response(response) if response.is_interim() => interim = true,
                Head::Response(response) => {
                    let position = (journey.tcp.seq, number);
                    let index = match self.live.iter().position(|live| live.response_at == Some(position)) {
                        Some(again) => again,
                        None if number == 0 && self.sent.is_beyond(journey.tcp.ack) => {
                            self.answers_unseen(response, journey, next, sink)
                        }
                        None => self.answers(response, position, number == 0 && self.follows_unseen(journey)),
                    };
                    number += 1;
                    target = Some(index);
                    // What is known to be no answer of this exchange's says nothing of it but that it came.
                    let known = self.live[index].exchange.response.is_some();
                    self.live[index].inward(journey, Some(response).filter(|_| known), sink);
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
        if journey.tcp.flags.has(TcpFlags::FIN) && journey.fate == Fate::Delivered {
            // `Connection: close`, or a connection kept alive for long enough: its client asks again on another one.
            let later = self.live.iter_mut().skip(1).map(|live| &mut live.exchange);
            later.filter(|later| later.answered.is_none() && !later.responded).for_each(|later| later.cut_off = true);
        }
        if journey.tcp.len > 0 {
            raise(&mut self.seen_to, journey.tcp.end());
        }
    }

    /// Does a response come behind bytes that were seen nowhere? It begins further on than the first that is awaited would.
    fn follows_unseen(&self, journey: &Journey) -> bool {
        let begins = self.live.iter().find(|live| live.response_at.is_none()).and_then(|live| live.answer_begins);
        begins.is_some_and(|begins| is_before(later(begins, self.seen_to), journey.tcp.seq))
    }

    /// The index of the exchange of a response's head to a request that was seen nowhere: IMDS acknowledges more than any that was
    /// seen. It may be the answer to one of several, so none has its status; those that wait have an answer if the client has this.
    fn answers_unseen(
        &mut self,
        response: &ResponseHead,
        journey: &Journey,
        next: &mut u64,
        sink: &mut Sink<'_>,
    ) -> usize {
        let position = (journey.tcp.seq, 0);
        let mut others_wait = false;
        for live in self.live.iter_mut().filter(|live| live.response_at.is_none() && live.exchange.asked.is_some()) {
            live.came_by(position, journey.tcp.end());
            others_wait = true;
        }
        let is_free = |live: &Live| live.exchange.asked.is_none() && live.response_at.is_none();
        let index = match self.live.iter().position(is_free) {
            Some(index) => index,
            None => self.another(journey.at, journey.at, next, sink),
        };
        let live = &mut self.live[index];
        (live.response_at, live.answers_to, live.told) = (Some(position), Some(journey.tcp.ack), true);
        live.unclaimed = (!others_wait).then(|| response.clone());
        index
    }

    /// The index of the exchange that a response's head belongs to. Behind `unseen` bytes nobody knows which: all that wait have an
    /// answer then, and none of them this status.
    fn answers(&mut self, response: &ResponseHead, position: Position, unseen: bool) -> usize {
        let last = self.live.len() - 1;
        if unseen {
            self.live
                .iter_mut()
                .filter(|live| live.response_at.is_none())
                .for_each(|live| live.came_by(position, position.0));
            return last;
        }
        let index = self.live.iter().position(|live| live.response_at.is_none()).unwrap_or(last);
        let live = &mut self.live[index];
        if live.response_at.is_none() {
            live.response_at = Some(position);
            live.exchange.response = Some(response.clone());
        }
        index
    }

    /// The index of the exchange that a packet without a head belongs to: the one whose answer has begun, else the first that waits.
    fn goes_on(&self) -> usize {
        match self.live.iter().position(|live| live.response_at.is_none()) {
            None => self.live.len() - 1,
            Some(first) => first.saturating_sub(1),
        }
    }

    /// Somebody said no.
    pub(super) fn refused(&mut self, journey: &Journey) {
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
