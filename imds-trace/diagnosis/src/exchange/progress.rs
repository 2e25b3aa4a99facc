//! What does one packet change about an exchange?

use super::delivery::{Proof, Received, later, raise};
use super::imds::is_success;
use super::{Decrements, Exchange, Imds, Moment, Returned, Sink, Travel};
use crate::journey::{Fate, Hop, Journey};
use crate::net::{Direction, Timestamp, is_before};
use crate::observation::{ResponseHead, Tcp, TcpFlags};

/// Bytes of the longest body that is believed in: user data of 16 KiB are the longest that IMDS has.
const MAX_BODY: u32 = 1 << 20;

/// Bytes of the shortest head of a response with a length: `HTTP/1.1 200 OK`, `Content-Length: 1` and the ends of three lines.
const LEAST_HEAD: u64 = 38;

/// Where a head is: the sequence number of its first byte, wherever segments end, and its place among those that are said to begin there
/// (older recordings say of all heads of a segment that they begin where it does).
pub(super) type Position = (u32, usize);

/// What came of an exchange, as far as it may change when it is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcome {
    answered: bool,
    proved: bool,
    incomplete: bool,
    responded: bool,
    discarded: bool,
}

/// An exchange, and what its assembly needs to know of it.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) exchange: Exchange,
    pub(super) request_at: Option<Position>,
    pub(super) response_at: Option<Position>,
    /// The sequence number of the segment in which the response's head became whole.
    pub(super) response_in: Option<u32>,
    /// The sequence number behind the segment that carried the request's head, and behind the one that carried the response's.
    pub(super) request_end: Option<u32>,
    pub(super) response_end: Option<u32>,
    /// Where the request begins, and the sequence number behind the whole of it, its body too; behind its segment if it does not say.
    pub(super) request_from: Option<u32>,
    pub(super) request_to: Option<u32>,
    /// Was something sent before it that could not be read? Then nobody knows which answer is its.
    pub(super) is_behind_unread: bool,
    /// Did a part of what it asked pass, of which no head was seen?
    has_sent: bool,
    /// The sequence number behind the last byte of its response that was seen, wherever that was.
    rest_end: Option<u32>,
    /// The highest sequence number of a part of its response that was lost.
    rest_lost_at: Option<u32>,
    /// Is the hop limit that is known one with which a token went on to its client?
    limit_arrived: bool,
    /// The sequence number at which the other side ended, by FIN or by reset, if this is the last response before it.
    pub(super) ends_at: Option<u32>,
    /// Did its client end its side, or reset the connection?
    pub(super) client_ended: bool,
    /// Up to where the request goes that its answer is to, if that answer was seen before any request was.
    pub(super) answers_to: Option<u32>,
    /// The head of that answer, until it is known whose it is.
    pub(super) unclaimed: Option<ResponseHead>,
    /// The sequence number at which its answer begins, if nothing else is to come before it.
    pub(super) answer_begins: Option<u32>,
    pub(super) settled: bool,
    /// What had come of it when it was told last.
    told_as: Outcome,
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
            response_in: None,
            request_from: None,
            request_to: None,
            is_behind_unread: false,
            request_end: None,
            response_end: None,
            has_sent: false,
            rest_end: None,
            rest_lost_at: None,
            limit_arrived: false,
            ends_at: None,
            client_ended: false,
            answers_to: None,
            unclaimed: None,
            answer_begins: None,
            settled: false,
            told_as: Outcome::default(),
            told: false,
        }
    }

    fn outcome(&self) -> Outcome {
        let exchange = &self.exchange;
        Outcome {
            answered: exchange.answered.is_some(),
            proved: exchange.response_proof.is_some(),
            incomplete: exchange.incomplete,
            responded: exchange.responded,
            discarded: exchange.discarded,
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

    /// It is over, with so much received.
    pub(super) fn close(&mut self, at: Timestamp, received: &Received, sink: &mut Sink<'_>) {
        if self.exchange.closed.is_none() {
            self.exchange.closed = Some(at);
            self.exchange.incomplete = self.exchange.response_proof.is_some() && self.lacks_rest(received);
            self.told_as = self.outcome();
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
        // The SYN that was sent again may have gone another way: the latest one led to what came.
        let left = journey.hops.last().is_some_and(|last| last.hook.direction == Direction::Egress);
        if flags.opens() && left && !exchange.handshake {
            exchange.redirected = journey.redirected;
        } else {
            exchange.redirected = journey.redirected.or(exchange.redirected);
        }
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
                let leaves = |hop: &&Hop| hop.hook.direction == Direction::Egress;
                exchange.decrements = Decrements {
                    seen,
                    back: exchange.decrements.back,
                    forwards: journey.hops.iter().filter(leaves).count(),
                    first: Some((first.ttl, first.hook.direction)),
                    last: Some(last.ttl),
                    hops: journey.hops.len(),
                };
            }
        }
        // The exchange was asked for in this packet, and in no earlier one.
        let asks = exchange.asked.is_some() && exchange.outward.is_none();
        self.told |= journey.tcp.flags.opens() || asks || journey.fate != Fate::Delivered;
        let is_dropped = matches!(journey.fate, Fate::Dropped(_)) && journey.icmp.is_none();
        if exchange.asked.is_none() && exchange.closed.is_none() && journey.tcp.len > 0 && !self.has_sent {
            self.has_sent = !is_dropped;
            // Dropped before its head was seen: that the SYN got through is not what became of the request.
            self.request_end = is_dropped.then_some(journey.tcp.end());
            exchange.outward = exchange.outward.take().filter(|syn| !is_dropped || syn.fate != Fate::Delivered);
        }
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
        let decides = has_payload && (self.response_at.is_none() || self.response_in == Some(journey.tcp.seq));
        let exchange = &mut self.exchange;
        let dropped = matches!(journey.fate, Fate::Dropped(_));
        if decides && dropped && exchange.response_proof.is_none() && exchange.answered.is_some() {
            // A copy of what seemed to have arrived was dropped, and nobody acknowledged any: it was dropped then as well, unseen.
            (exchange.answered, exchange.inward) = (None, None);
        }
        exchange.handshake |= journey.tcp.flags.has(TcpFlags::SYN);
        // What was said of an earlier copy of the SYN: a later one came through.
        exchange.refusal = exchange.refusal.filter(|refusal| refusal.stands() || !journey.tcp.flags.has(TcpFlags::SYN));
        self.told |= answers.is_some() || journey.fate != Fate::Delivered;
        let begins = has_payload && exchange.came.is_none();
        if begins {
            exchange.responded = true;
            exchange.came = Some(journey.hops.first().map_or(journey.at, |hop| hop.at));
            // The handshake led here.
            exchange.inward = None;
        }
        if let Some(head) = answers {
            let grants_token = exchange.imds() == Some(Imds::Token) && is_success(head.status) && head.may_hold_token();
            if let Some(hop) =
                journey.hops.first().filter(|hop| grants_token && hop.hook.direction == Direction::Ingress)
            {
                // Of several copies the first that went on says with what TTL one arrives.
                let went_on = journey.fate == Fate::Delivered && !self.limit_arrived;
                self.limit_arrived |= went_on;
                exchange.hop_limit = exchange.hop_limit.filter(|_| !went_on).or(Some(hop.ttl));
            }
        }
        if let (Some(first), Some(last)) = (journey.hops.first(), journey.hops.last())
            && first.hook.direction == Direction::Ingress
            && last.hook.direction == Direction::Egress
        {
            let asked = exchange.outward.as_ref().and_then(|travel| travel.hops.first().zip(travel.hops.last()));
            let is_whole = asked.is_none_or(|(entered, left)| {
                entered.hook.interface == last.hook.interface && left.hook.interface == first.hook.interface
            });
            let back = &mut exchange.decrements.back;
            // That of the response's own head counts; until then any.
            if is_whole && (answers.is_some() || *back == Returned::Unseen) {
                *back = first.ttl.0.checked_sub(last.ttl.0).map_or(Returned::Rose, Returned::Fell);
            }
        }
        // What was known is of the begin of a head that ends here.
        if decides && answers.is_some() && self.response_end.is_some_and(|known| !is_before(journey.tcp.seq, known)) {
            (exchange.answered, exchange.response_proof, exchange.inward) = (None, None, None);
        }
        if decides && journey.forestalled {
            (exchange.forestalled, exchange.response_proof) = (true, None);
        }
        if decides {
            self.response_end = Some(journey.tcp.seq.wrapping_add(journey.tcp.len));
        }
        if has_payload {
            raise(&mut self.rest_end, journey.tcp.seq.wrapping_add(journey.tcp.len));
        }
        // What comes for a client that has ended is of no use to it.
        let is_rest = has_payload && !decides && !self.client_ended;
        let made_good = self.rest_lost_at.is_some_and(|lost| !is_before(lost, journey.tcp.seq));
        if is_rest && (journey.fate != Fate::Delivered || made_good) {
            travelled(&mut exchange.rest, journey, false);
            if journey.fate != Fate::Delivered {
                raise(&mut self.rest_lost_at, journey.tcp.seq);
            }
        }
        let answered = decides && journey.fate == Fate::Delivered && exchange.answered.is_none();
        if answered {
            exchange.answered = Some(journey.hops.last().map_or(journey.at, |hop| hop.at));
        }
        let tells = !has_payload || decides;
        // An answer that comes behind the end is told of, with the way it took.
        let is_late = begins && journey.fate == Fate::Delivered;
        travelled(&mut exchange.inward, journey, exchange.closed.is_some() && !is_late || !tells);
        if answered {
            sink(exchange, Moment::Answered);
        }
        if journey.fate != Fate::Delivered {
            sink(exchange, Moment::Lost(journey));
        }
    }

    /// Looks at what both ends are known to have received.
    pub(super) fn prove(&mut self, received: &Received, at: Timestamp, sink: &mut Sink<'_>) {
        let exchange = &mut self.exchange;
        if let Some(end) = self.request_end {
            exchange.request_proof = exchange.request_proof.or_else(|| received.proves_request(end));
        }
        // An error about a packet is no refusal of one that IMDS has.
        exchange.refusal = exchange.refusal.filter(|refusal| refusal.stands() || exchange.request_proof.is_none());
        // What the client has in its place proves nothing of it.
        let Some(end) = self.response_end.filter(|_| !exchange.forestalled) else { return };
        let proof = received.proves_response(end);
        exchange.response_proof = match exchange.response_proof.max(proof) {
            Some(Proof::Ack) if received.refutes_response(end) => None,
            proof => proof,
        };
        let has_head = exchange.response_proof.is_some();
        let incomplete = has_head && self.lacks_rest(received);
        let exchange = &mut self.exchange;
        exchange.incomplete = incomplete;
        if proof.is_some() && exchange.answered.is_none() {
            exchange.answered = Some(at);
            sink(exchange, Moment::Answered);
        } else if exchange.response_proof.is_none() && received.refutes_response(end) {
            (exchange.answered, exchange.response_refuted) = (None, true);
        }
    }

    /// Is it known that the client has not all of what came behind the response's head?
    fn lacks_rest(&self, received: &Received) -> bool {
        let Some(end) = self.rest_end else { return false };
        let said = self.declared_end();
        // Its last bytes may have come unseen. Where it ends by its head alone what was seen may go on behind.
        let is_exact = self.exchange.response.as_ref().is_some_and(|response| response.ends.is_some());
        let all = if is_exact { said } else { Some(later(end, said)) };
        if all.is_some_and(|all| received.proves_response(all).is_some()) {
            return false;
        }
        // Sent again it may have arrived.
        let was_lost = self.exchange.rest.as_ref().is_some_and(|rest| rest.fate != Fate::Delivered)
            && received.proves_response(end).is_none();
        let declared = later(end, said);
        // It ended with less than its head declares.
        let was_cut = self.ends_at.is_some_and(|end| is_before(end, declared));
        // Its client left before the rest came.
        let was_left = self.client_ended && said.is_some_and(|said| received.is_acked_short_of(said));
        // It has gone quiet, and the rest was never seen.
        let is_missing = self.exchange.closed.is_some() && is_before(end, declared);
        was_lost || was_cut || was_left || is_missing || received.refutes_response(declared)
    }

    /// The sequence number behind the whole response, if its head says where it ends.
    pub(super) fn answered_to(&self) -> Option<u32> {
        // An answer to HEAD says how long the body would be.
        let has_body = self.exchange.request.as_ref().is_some_and(|request| request.method != "HEAD");
        let ends = self.exchange.response.as_ref().filter(|_| has_body)?.ends?;
        Some(self.response_at?.0.wrapping_add(u32::try_from(ends).ok()?))
    }

    /// The sequence number behind the whole response as its head says, to whatever it is the answer.
    pub(super) fn response_to(&self) -> Option<u32> {
        let ends = self.exchange.response.as_ref().or(self.unclaimed.as_ref())?.ends?;
        Some(self.response_at?.0.wrapping_add(u32::try_from(ends).ok()?))
    }

    /// A sequence number before which the response cannot end, by the length of its body that its head declares.
    fn declared_end(&self) -> Option<u32> {
        let has_body = self.exchange.request.as_ref().is_some_and(|request| request.method != "HEAD");
        let response = self.exchange.response.as_ref().filter(|response| has_body && is_success(response.status));
        let response = response?;
        let (begins, place) = self.response_at?;
        // How long its head was older recordings do not say.
        let by_body = || response.content_length.filter(|_| place == 0)?.checked_add(LEAST_HEAD);
        let length = response.ends.or_else(by_body)?;
        let length = u32::try_from(length).ok().filter(|length| *length <= MAX_BODY)?;
        Some(begins.wrapping_add(length))
    }

    /// Its answer came, seen nowhere, before a response here, or is that response: who has everything before `end` has it.
    pub(super) fn came_by(&mut self, position: Position, segment: u32, end: u32) {
        (self.response_at, self.response_in, self.response_end) = (Some(position), Some(segment), Some(end));
        self.responded_unseen();
    }

    /// An answer came of which no packet was seen: what is known of the way back is the handshake's.
    pub(super) fn responded_unseen(&mut self) {
        if !self.exchange.responded {
            (self.exchange.responded, self.exchange.inward) = (true, None);
        }
    }

    /// Does a packet of its client acknowledge the head of its answer?
    pub(super) fn is_acknowledged_by(&self, tcp: Tcp) -> bool {
        tcp.flags.has(TcpFlags::ACK) && self.response_end.is_some_and(|end| !is_before(tcp.ack, end))
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
        (self.response_at, self.response_in) = (Some((begins, usize::MAX)), Some(begins));
        self.responded_unseen();
        (self.exchange.answered, self.exchange.response_proof) = (Some(at), Some(proof));
        sink(&self.exchange, Moment::Answered);
        true
    }

    /// Tells anew what was told before, if its outcome has changed since.
    pub(super) fn revise(&mut self, sink: &mut Sink<'_>) {
        if self.exchange.closed.is_none() || !self.told || self.told_as == self.outcome() {
            return;
        }
        self.told_as = self.outcome();
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
