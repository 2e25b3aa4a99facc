//! Which requests and answers did one connection carry, and when is it over?
//!
//! One after the other, or before the answer to the one before: the answers come in the order of the requests (RFC 9112 section 9.3.2).
//! A head whose first byte has the sequence number of another's is one that was sent again, however it was cut then. What is not known
//! to begin where an answer is due is given to no request: nobody knows whose it is.

mod answers;
mod ending;
mod unseen;

use std::collections::VecDeque;
use std::time::Duration;

use answers::Positions;

use super::delivery::{Received, raise};
use super::imds::is_success;
use super::progress::{Live, Position};
use super::sent::Sent;
use super::{Exchange, ExchangeId, Moment, Sink};
use crate::journey::{END, Evidence, Journey};
use crate::net::{Heading, Timestamp, is_before};
use crate::observation::{Head, RequestHead, TcpFlags};

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
    /// What was seen of what IMDS sent.
    heard: Sent,
    /// The sequence number behind the requests that are no longer remembered.
    forgotten_to: Option<u32>,
    /// When the other side's FIN came.
    hung_up: Option<Timestamp>,
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
            heard: Sent::default(),
            forgotten_to: None,
            hung_up: None,
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
        if self.sent.is_missing() || self.has_unread() {
            let index = match self.live.iter().position(|live| live.exchange.asked.is_none()) {
                Some(index) => index,
                None => self.another(at, at, next, sink),
            };
            let live = &mut self.live[index];
            (live.exchange.unheard, live.told) = (true, true);
        }
        self.notice_holes();
        if self.live.iter().all(|live| live.exchange.asked.is_none()) && self.sent.has_any() {
            // What it asked was seen, and is no request that can be read.
            self.live.iter_mut().for_each(|live| live.exchange.unheard = true);
        }
        // Of a connection that is not seen to end a capture may lack the rest.
        if self.evidence == Evidence::Capture && self.ending.is_none() {
            for exchange in self.live.iter_mut().map(|live| &mut live.exchange) {
                exchange.unheard |= exchange.handshake && exchange.asked.is_none();
                exchange.under_way |=
                    exchange.asked.is_some() && exchange.answered.is_none() && exchange.refusal.is_none();
                exchange.ends_unseen = exchange.answered.is_some();
            }
        }
        self.closed = Some(at);
        let mut waits = false;
        for live in &mut self.live {
            live.exchange.queued = waits;
            waits |= live.exchange.asked.is_some() && live.exchange.answered.is_none();
            live.exchange.left_open = self.ending.is_none() && live.exchange.closed.is_none();
            live.close(at, &received, sink);
        }
    }

    /// Forgets its oldest exchange.
    pub(super) fn forget_oldest(&mut self) -> Option<Live> {
        let gone = self.live.pop_front()?;
        if let Some(to) = gone.request_to {
            raise(&mut self.forgotten_to, to);
        }
        Some(gone)
    }

    /// Did the client send what could not be read as a request, beside what could?
    fn has_unread(&self) -> bool {
        let mut read: Vec<(u32, u32)> =
            self.live.iter().filter_map(|live| live.request_from.zip(live.request_to)).collect();
        let Some(&(first, _)) = read.first() else { return false };
        read.sort_by_key(|(begin, _)| begin.wrapping_sub(first) as i32);
        self.sent.holds_besides(self.forgotten_to, &read)
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
            // A reset that acknowledges the answer is sent by a socket, which had it: where there is none, a reset acknowledges nothing.
            let came = self.live.iter_mut().filter(|live| !live.is_acknowledged_by(journey.tcp));
            let came = came.map(|live| &mut live.exchange).filter(|exchange| exchange.responded);
            // What was acknowledged before was read, or could have been.
            for exchange in came.filter(|exchange| exchange.response_proof.is_none()) {
                exchange.discarded = true;
            }
        }
        match journey.heading {
            Heading::ToImds if flags.has(TcpFlags::ACK) => {
                // Its number shows that nothing was asked before it, and so nothing was answered.
                let is_first = journey.connection.isn.is_some_and(|isn| isn.wrapping_add(1) == journey.tcp.seq);
                if is_first && journey.tcp.len > 0 {
                    self.received.answered_from(journey.tcp.ack.wrapping_sub(1));
                    self.heard.begin(journey.tcp.ack);
                }
                self.received.by_client(journey.tcp.ack);
                self.heard.reach(journey.tcp.ack);
            }
            Heading::FromImds => {
                if flags.has(TcpFlags::SYN) {
                    self.received.answered_from(journey.tcp.seq);
                    self.heard.begin(journey.tcp.seq.wrapping_add(1));
                } else {
                    self.notice_unseen_response(journey.tcp.seq);
                    match flags.has(TcpFlags::RST) {
                        true => self.heard.reach_nearly(journey.tcp.seq),
                        false => self.heard.see(None, journey.tcp.seq, journey.tcp.end()),
                    }
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

    /// Looks whether what is known to be received changes what came of an exchange, and tells those anew that were told.
    pub(super) fn prove(&mut self, at: Timestamp, sink: &mut Sink<'_>) {
        self.live.iter_mut().for_each(|live| live.prove(&self.received, at, sink));
        // Its socket's last word may come after its end.
        let received = self.received;
        if self.closed.is_some() {
            self.notice_unseen(&received, at, sink);
        }
        self.live.iter_mut().for_each(|live| live.revise(sink));
    }

    /// Has a packet numbers that are not this connection's? Its ends were used before, and what was sent then still comes.
    pub(super) fn is_of_another(&self, journey: &Journey) -> bool {
        let number = match journey.heading {
            Heading::ToImds => Some(journey.tcp.seq),
            Heading::FromImds => journey.tcp.flags.has(TcpFlags::ACK).then_some(journey.tcp.ack),
        };
        let number = number.filter(|_| journey.icmp.is_none() && journey.connection.isn.is_some());
        number.is_some_and(|number| !self.sent.is_near(number))
    }

    /// Such a packet came in: whoever had the ends before was let in, perhaps.
    pub(super) fn note_another(&mut self, journey: &Journey) {
        if journey.heads.iter().any(|head| matches!(head, Head::Response(response) if is_success(response.status))) {
            self.live.iter_mut().for_each(|live| live.exchange.answers_another = true);
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
        let goes_on = self.closed.is_some() && journey.tcp.len > 0 && self.sent.is_new(journey.tcp.end());
        match journey.tcp.flags.has(TcpFlags::RST) {
            true => self.sent.reach_nearly(journey.tcp.seq),
            false => self.sent.see(journey.connection.isn, journey.tcp.seq, journey.tcp.end()),
        }
        let mut seen = false;
        let mut positions = Positions::of(journey);
        for request in requests {
            seen = true;
            let index = self.asks(journey, request, positions.next(request.begins), next, sink);
            self.live[index].outward(journey, sink);
        }
        if !seen && let Some(last) = self.live.back_mut() {
            last.outward(journey, sink);
        }
        if !seen && goes_on {
            // What it asks now cannot be read, or not yet: that is known when it is quiet again.
            (self.closed, self.ending) = (None, None);
        }
        let flags = journey.tcp.flags;
        let ends = flags.has(TcpFlags::FIN) || flags.has(TcpFlags::RST);
        for live in self.live.iter_mut().filter(|_| ends) {
            live.client_ended = true;
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
        let said = request.said();
        // Older recordings do not say where its first byte is: the same bytes end where they did.
        let ends_alike = |live: &Live| {
            let is_in_another = live.request_at.is_some_and(|(first, _)| first != journey.tcp.seq);
            let ends = live.request_end == Some(journey.tcp.end());
            is_in_another && ends && live.exchange.request.as_ref() == Some(&said)
        };
        let is_again = |live: &Live| live.request_at == Some(position) || request.begins.is_none() && ends_alike(live);
        if let Some(again) = self.live.iter().position(is_again) {
            let known = &mut self.live[again].exchange.request;
            match known {
                Some(_) if journey.contradicted => *known = None,
                Some(head) if head.is_begin_of(&said) => *known = Some(said),
                Some(head) if said.is_begin_of(head) => {}
                _ => *known = None,
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
            if last.answers_to.is_some() {
                let is_alone = last.answers_to == Some(journey.tcp.end()) && !self.sent.lacks_before(journey.tcp.seq);
                // It was told of late: what came was the answer to this and to nothing else.
                last.exchange.response = last.unclaimed.take().filter(|_| is_alone);
            }
        }
        (self.closed, self.ending) = (None, None);
        // The answer to the one before begins at the same number: this one's is behind it, nobody knows where.
        let alone = !self.live.iter().any(|live| live.answer_begins == Some(journey.tcp.ack));
        let is_next = journey.tcp.flags.has(TcpFlags::ACK) && alone && !request.expects_continue;
        let mut read_to = self.sent.first();
        self.live
            .iter()
            .filter_map(|live| live.request_to)
            .chain(self.forgotten_to)
            .for_each(|to| raise(&mut read_to, to));
        let index = self.live.len() - 1;
        let live = &mut self.live[index];
        live.is_behind_unread = request.begins.is_some() && read_to.is_some_and(|to| is_before(to, position.0));
        live.request_at = Some(position);
        live.request_end = Some(journey.tcp.seq.wrapping_add(journey.tcp.len));
        let to = request.ends.and_then(|ends| u32::try_from(ends).ok());
        // Older recordings do not say: then all that was before belongs to it.
        live.request_from = request.begins.map(|_| position.0).or(self.sent.first());
        live.request_to = to.map(|to| journey.tcp.seq.wrapping_add(to)).or(live.request_end);
        live.answer_begins = is_next.then_some(journey.tcp.ack);
        live.exchange.request = (!journey.contradicted).then_some(said);
        live.exchange.asked = Some(at);
        // It is reset for that: its client had not read the end.
        live.exchange.cut_off |= index > 0 && self.hung_up.is_some_and(|ended| ended < at);
        // What happened to the SYN matters no more: it led here.
        live.exchange.outward = None;
        index
    }

    /// Enters one more exchange of this connection, of which nothing is known yet; gives its index.
    fn another(&mut self, opened: Timestamp, at: Timestamp, next: &mut u64, sink: &mut Sink<'_>) -> usize {
        let received = self.received;
        let Some(last) = self.live.back_mut() else { return 0 };
        if last.exchange.answered.is_some() {
            // Another request on a connection that was kept alive.
            last.close(at, &received, sink);
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
        let mut positions = Positions::of(journey);
        let mut target = None;
        let mut interim = None;
        for head in &journey.heads {
            match head {
                Head::Response(response) if response.is_interim() => {
                    let (begins, _) = positions.next(response.begins);
                    if let Some(index) = self.is_due(begins, response.begins.is_some(), journey.tcp.ack) {
                        // The answer itself begins behind it.
                        let to = response.ends.and_then(|ends| u32::try_from(ends).ok());
                        self.live[index].answer_begins = to.map(|to| journey.tcp.seq.wrapping_add(to));
                        interim = Some(index);
                    }
                }
                Head::Response(response) => {
                    let position = positions.next(response.begins);
                    let index = match self.live.iter().position(|live| live.response_at == Some(position)) {
                        Some(again) => {
                            let live = &mut self.live[again];
                            live.response_in = Some(journey.tcp.seq);
                            let known = &mut live.exchange.response;
                            if known.as_ref().is_some_and(|known| known.status != response.status) {
                                // Two that contradict each other: which of them the client has, nobody knows.
                                *known = None;
                            }
                            again
                        }
                        None if target.is_none() && self.sent.is_beyond(journey.tcp.ack) => {
                            self.answers_unseen(response, position, journey, next, sink)
                        }
                        None => self.answers(response, position, journey, next, sink),
                    };
                    target = Some(index);
                    // What is known to be no answer of this exchange's says nothing of it but that it came.
                    let known = self.live[index].exchange.response.is_some();
                    self.live[index].inward(journey, Some(response).filter(|_| known), sink);
                }
                Head::Token(mark) => {
                    let index = target.unwrap_or_else(|| self.goes_on(journey));
                    let exchange = &mut self.live[index].exchange;
                    exchange.issued = Some(*mark);
                    if exchange.answered.is_some() && target.is_none() {
                        // Its head came before, in a segment of its own: the token may be used before this exchange is over.
                        sink(exchange, Moment::Answered);
                    }
                }
                Head::Request(_) => {}
            }
        }
        if let (None, Some(index)) = (target, interim) {
            self.live[index].interim(journey, sink);
        } else if target.is_none() {
            if journey.tcp.flags.has(TcpFlags::RST) {
                self.refused(journey);
            }
            let index = self.goes_on(journey);
            self.live[index].inward(journey, None, sink);
        }
        if journey.tcp.flags.has(TcpFlags::FIN) {
            self.ends(journey);
        }
        if journey.tcp.len > 0 {
            raise(&mut self.seen_to, journey.tcp.end());
        }
    }
}
