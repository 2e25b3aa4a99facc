//! What does one packet change about an exchange?

use super::delivery::{Received, later};
use super::imds::is_success;
use super::{Decrements, Exchange, Imds, Moment, Sink, Travel};
use crate::journey::{Fate, Hop, Journey};
use crate::net::{Direction, Timestamp, Ttl, is_before};
use crate::observation::{ResponseHead, TcpFlags};

/// Where a head was: sequence number of the segment, and its place among the heads there.
pub(super) type Position = (u32, usize);

/// An exchange, and what its assembly needs to know of it.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) exchange: Exchange,
    pub(super) request_at: Option<Position>,
    pub(super) response_at: Option<Position>,
    /// The sequence number behind the segment that carried the request's head, and behind the one that carried the response's.
    pub(super) request_end: Option<u32>,
    response_end: Option<u32>,
    /// Up to where the request goes that its answer is to, if that answer was seen before any request was.
    pub(super) answers_to: Option<u32>,
    /// The head of that answer, until it is known whose it is.
    pub(super) unclaimed: Option<ResponseHead>,
    /// The sequence number at which its answer begins, if nothing else is to come before it.
    pub(super) answer_begins: Option<u32>,
    pub(super) settled: bool,
    /// Worth telling: something besides the end of an older connection was seen.
    pub(super) told: bool,
}

impl Live {
    /// Nothing has happened yet.
    pub(super) fn new(exchange: Exchange) -> Self {
        Self {
            exchange,
            request_at: None,
            response_at: None,
            request_end: None,
            response_end: None,
            answers_to: None,
            unclaimed: None,
            answer_begins: None,
            settled: false,
            told: false,
        }
    }

    /// Is an answer still to come?
    pub(super) fn waits(&self) -> bool {
        self.exchange.answered.is_none() && self.exchange.closed.is_none()
    }

    /// Was its answer one to bytes that lie before this one?
    pub(super) fn is_answered_before(&self, begin: u32) -> bool {
        self.answers_to.is_some_and(|end| !is_before(begin, end))
    }

    /// It is over.
    pub(super) fn close(&mut self, at: Timestamp, sink: &mut Sink<'_>) {
        if self.exchange.closed.is_none() {
            self.exchange.closed = Some(at);
            if self.told {
                sink(&self.exchange, Moment::Closed);
            }
        }
    }

    /// Nothing more will come of it.
    pub(super) fn settle(&mut self, sink: &mut Sink<'_>) {
        if !self.settled {
            self.settled = true;
            if self.is_to_settle() {
                sink(&self.exchange, Moment::Settled);
            }
        }
    }

    /// Does it matter that nothing more comes?
    pub(super) fn is_to_settle(&self) -> bool {
        self.told && (self.exchange.answered.is_none() || self.exchange.is_late())
    }

    /// A packet of its client.
    pub(super) fn outward(&mut self, journey: &Journey, sink: &mut Sink<'_>) {
        let exchange = &mut self.exchange;
        let flags = journey.tcp.flags;
        exchange.redirected = journey.redirected.or(exchange.redirected);
        exchange.acknowledges |= flags.has(TcpFlags::ACK) && !flags.has(TcpFlags::RST);
        let first_byte = journey.connection.isn.map(|isn| isn.wrapping_add(1));
        // A FIN has a number, too, and no request is one byte.
        let is_behind = |first: u32| !flags.has(TcpFlags::RST) && is_before(first.wrapping_add(1), journey.tcp.seq);
        exchange.unheard |= journey.icmp.is_none() && exchange.asked.is_none() && first_byte.is_some_and(is_behind);
        if let (Some(first), Some(last)) = (journey.hops.first(), journey.hops.last()) {
            if last.hook.direction == Direction::Egress {
                exchange.last_leaving = exchange.last_leaving.max(Some(last.at));
            }
            // Both numbers from one packet, the one that most hooks saw. The way to somewhere else says nothing of the way to IMDS.
            if journey.redirected.is_none()
                && last.hook.direction == Direction::Egress
                && journey.hops.len() > exchange.decrements.hops
            {
                let seen = first.ttl.0.checked_sub(last.ttl.0);
                exchange.decrements =
                    Decrements { seen, first: Some((first.ttl, first.hook.direction)), hops: journey.hops.len() };
            }
        }
        // The exchange was asked for in this packet, and in no earlier one.
        let asks = exchange.asked.is_some() && exchange.outward.is_none();
        self.told |= journey.tcp.flags.opens() || asks || journey.fate != Fate::Delivered;
        travelled(&mut exchange.outward, journey, exchange.closed.is_some());
        if asks {
            sink(exchange, Moment::Asked);
        }
        if journey.fate != Fate::Delivered {
            sink(exchange, Moment::Lost(journey));
        }
    }

    /// A packet of the answering side; `answers` if its head is in it.
    pub(super) fn inward(&mut self, journey: &Journey, answers: Option<&ResponseHead>, sink: &mut Sink<'_>) {
        let doomed;
        let journey = if self.is_doomed(journey) {
            doomed = Journey { fate: Fate::Unresolved, ..journey.clone() };
            &doomed
        } else {
            journey
        };
        let has_payload = journey.tcp.len > 0;
        // Of a response whose head was seen only the head's own segment decides: the rest without it is of no use to the client.
        let decides = has_payload && self.response_at.is_none_or(|(seq, _)| seq == journey.tcp.seq);
        let exchange = &mut self.exchange;
        let dropped = matches!(journey.fate, Fate::Dropped(_));
        if decides && dropped && exchange.response_proof.is_none() && exchange.answered.is_some() {
            // A copy of what seemed to have arrived was dropped, and nobody acknowledged any: it was dropped then as well, unseen.
            (exchange.answered, exchange.inward) = (None, None);
        }
        exchange.handshake |= journey.tcp.flags.has(TcpFlags::SYN);
        self.told |= answers.is_some() || journey.fate != Fate::Delivered;
        if has_payload && exchange.came.is_none() {
            exchange.responded = true;
            exchange.came = Some(journey.hops.first().map_or(journey.at, |hop| hop.at));
            // The handshake led here.
            exchange.inward = None;
        }
        if let Some(head) = answers {
            let grants_token = exchange.imds() == Some(Imds::Token) && is_success(head.status);
            if let Some(hop) =
                journey.hops.first().filter(|hop| grants_token && hop.hook.direction == Direction::Ingress)
            {
                exchange.hop_limit.get_or_insert(hop.ttl);
            }
        }
        if let (Some(first), Some(last)) = (journey.hops.first(), journey.hops.last())
            && first.hook.direction == Direction::Ingress
            && last.hook.direction == Direction::Egress
        {
            fell(&mut exchange.decrements.seen, first.ttl, last.ttl);
        }
        if decides {
            self.response_end = Some(journey.tcp.seq.wrapping_add(journey.tcp.len));
        }
        let answered = decides && journey.fate == Fate::Delivered && exchange.answered.is_none();
        if answered {
            exchange.answered = Some(journey.hops.last().map_or(journey.at, |hop| hop.at));
        }
        let tells = !has_payload || decides;
        travelled(&mut exchange.inward, journey, exchange.closed.is_some() || !tells);
        if answered {
            sink(exchange, Moment::Answered);
        }
        if journey.fate != Fate::Delivered {
            sink(exchange, Moment::Lost(journey));
        }
    }

    /// Looks at what both ends are known to have received. Gives whether that changes what came of the exchange.
    pub(super) fn prove(&mut self, received: &Received, at: Timestamp, sink: &mut Sink<'_>) -> bool {
        let exchange = &mut self.exchange;
        let before = (exchange.answered.is_some(), exchange.response_proof.is_some());
        if let Some(end) = self.request_end {
            exchange.request_proof = exchange.request_proof.or_else(|| received.proves_request(end));
        }
        let Some(end) = self.response_end else { return false };
        let proof = received.proves_response(end);
        exchange.response_proof = exchange.response_proof.max(proof);
        if proof.is_some() && exchange.answered.is_none() {
            exchange.answered = Some(at);
            sink(exchange, Moment::Answered);
        } else if exchange.response_proof.is_none() && received.refutes_response(end) {
            (exchange.answered, exchange.response_refuted) = (None, true);
        }
        before != (exchange.answered.is_some(), exchange.response_proof.is_some())
    }

    /// Its answer came, seen nowhere, before a response here, or is that response: who has everything before `end` has it.
    pub(super) fn came_by(&mut self, position: Position, end: u32) {
        (self.response_at, self.response_end) = (Some(position), Some(end));
        self.responded_unseen();
    }

    /// An answer came of which no packet was seen: what is known of the way back is the handshake's.
    pub(super) fn responded_unseen(&mut self) {
        if !self.exchange.responded {
            (self.exchange.responded, self.exchange.inward) = (true, None);
        }
    }

    /// Was anything of its answer seen?
    pub(super) fn has_answer(&self) -> bool {
        self.response_at.is_some() || self.response_end.is_some() || self.exchange.answered.is_some()
    }

    /// Looks whether the client has an answer of which nothing was seen. Gives whether that changes what came of the exchange. What was
    /// seen, up to `seen_to`, is the end of the answer to another request.
    pub(super) fn notice_unseen(
        &mut self,
        received: &Received,
        seen_to: Option<u32>,
        at: Timestamp,
        sink: &mut Sink<'_>,
    ) -> bool {
        let exchange = &mut self.exchange;
        let Some(begins) = self.answer_begins.filter(|_| exchange.asked.is_some()) else { return false };
        let begins = later(begins, seen_to);
        // One more may be the end that the other side said.
        let Some(proof) = received.proves_response(begins.wrapping_add(2)) else { return false };
        // What is seen later is the answer to another request.
        self.response_at = Some((begins, usize::MAX));
        self.responded_unseen();
        (self.exchange.answered, self.exchange.response_proof) = (Some(at), Some(proof));
        sink(&self.exchange, Moment::Answered);
        true
    }

    /// Tells anew what was told before, for its outcome has changed.
    pub(super) fn revise(&mut self, sink: &mut Sink<'_>) {
        if self.exchange.closed.is_none() || !self.told {
            return;
        }
        sink(&self.exchange, Moment::Closed);
        if self.settled {
            self.settled = false;
            self.settle(sink);
        }
    }

    /// A packet of the answering side that says no more than that an answer will come.
    pub(super) fn interim(&mut self, journey: &Journey, sink: &mut Sink<'_>) {
        let exchange = &mut self.exchange;
        self.told = true;
        self.answer_begins = None;
        exchange.responded = true;
        if journey.fate != Fate::Delivered {
            travelled(&mut exchange.inward, journey, exchange.closed.is_some());
            sink(exchange, Moment::Lost(journey));
        }
    }

    /// Does it only seem to have arrived? A copy before it was dropped behind the same hook, where it had the same TTL, or was not seen
    /// again, and nobody acknowledged this one: that its drop was not seen does not mean that there was none.
    fn is_doomed(&self, journey: &Journey) -> bool {
        let Some(before) = &self.exchange.inward else { return false };
        let spent = match &before.fate {
            Fate::Dropped(dropped) => dropped.ttl.0 <= 1,
            Fate::Unresolved => before.copies > 0 && journey.carries(),
            Fate::Delivered => false,
        };
        let same = |(hop, last): (&Hop, &Hop)| hop.hook == last.hook && hop.ttl == last.ttl;
        let last = journey.hops.last().zip(before.hops.last());
        !journey.acked && journey.fate == Fate::Delivered && spent && last.is_some_and(same)
    }
}

/// Enters how often a TTL fell between two hooks; the most that was seen, as ways may differ.
fn fell(seen: &mut Option<u8>, first: Ttl, last: Ttl) {
    if let Some(decrements) = first.0.checked_sub(last.0) {
        *seen = Some(seen.map_or(decrements, |known| known.max(decrements)));
    }
}

/// Enters how a packet travelled. Bare acknowledgements, FIN and RST tell nothing of the way but that they were lost, and what
/// happens after the end is not why it ended: of those only the losses are counted.
fn travelled(travel: &mut Option<Travel>, journey: &Journey, is_over: bool) {
    let tells = !is_over && journey.carries();
    let lost = u64::from(journey.fate != Fate::Delivered);
    let last_lost = (lost > 0).then_some(journey.at);
    match travel {
        None if !tells => {}
        None => {
            *travel = Some(Travel {
                hops: journey.hops.clone(),
                fate: journey.fate.clone(),
                copies: lost,
                last_lost,
                join: journey.join,
            });
        }
        Some(travel) => {
            travel.copies += lost;
            travel.last_lost = last_lost.or(travel.last_lost);
            let better = match (&travel.fate, &journey.fate) {
                (Fate::Delivered, _) | (Fate::Dropped(_), Fate::Unresolved) => false,
                (_, Fate::Delivered) => true,
                (Fate::Unresolved, Fate::Dropped(_)) => true,
                (Fate::Dropped(_), Fate::Dropped(_)) | (Fate::Unresolved, Fate::Unresolved) => false,
            };
            if better && tells {
                travel.hops.clone_from(&journey.hops);
                travel.fate = journey.fate.clone();
                travel.join = journey.join;
            }
        }
    }
}
