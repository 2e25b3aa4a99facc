//! To which request does an answer belong? To the one whose answer begins where this one does; what begins elsewhere is nobody's.

use super::Entry;
use crate::exchange::Sink;
use crate::exchange::delivery::later;
use crate::exchange::progress::{Live, Position};
use crate::journey::Journey;
use crate::net::is_before;
use crate::observation::ResponseHead;

/// Where the heads of one segment begin.
pub(super) struct Positions {
    seq: u32,
    last: Option<Position>,
}

impl Positions {
    pub(super) fn of(journey: &Journey) -> Self {
        Self { seq: journey.tcp.seq, last: None }
    }

    /// The next one, so many bytes from the segment's begin.
    pub(super) fn next(&mut self, begins: Option<i32>) -> Position {
        let first = self.seq.wrapping_add_signed(begins.unwrap_or_default());
        let number = self.last.filter(|(last, _)| *last == first).map_or(0, |(_, number)| number + 1);
        *self.last.insert((first, number))
    }
}

impl Entry {
    /// The index of the exchange of a response's head to a request that was seen nowhere: IMDS acknowledges more than any that was
    /// seen. It may be the answer to one of several, so none has its status; those that wait have an answer if the client has this.
    pub(super) fn answers_unseen(
        &mut self,
        response: &ResponseHead,
        position: Position,
        journey: &Journey,
        next: &mut u64,
        sink: &mut Sink<'_>,
    ) -> usize {
        let mut others_wait = false;
        for live in self.live.iter_mut().filter(|live| live.response_at.is_none() && live.exchange.asked.is_some()) {
            live.came_by(position, journey.tcp.seq, journey.tcp.end());
            others_wait = true;
        }
        let is_free = |live: &Live| live.exchange.asked.is_none() && live.response_at.is_none();
        let index = match self.live.iter().position(is_free) {
            Some(index) => index,
            None => self.one_more(journey, next, sink),
        };
        self.is_unclaimed(index, position, journey, (!others_wait).then(|| response.said()));
        index
    }

    /// What came is the answer to something that was not seen; `head`, if that may be told of it.
    fn is_unclaimed(&mut self, index: usize, position: Position, journey: &Journey, head: Option<ResponseHead>) {
        let live = &mut self.live[index];
        (live.response_at, live.response_in) = (Some(position), Some(journey.tcp.seq));
        (live.answers_to, live.unclaimed, live.told) = (Some(journey.tcp.ack), head, true);
    }

    /// Where the answer to this request begins, if that is known. A client may ask again before it has all of the answer before: then that
    /// goes on where this one seems to begin.
    fn begins_at(&self, index: usize) -> Option<u32> {
        let before = index.checked_sub(1).and_then(|before| self.live[before].answered_to());
        self.live[index].answer_begins.map(|begins| later(begins, before)).or(before)
    }

    /// Whose answer begins here? `None` if nobody knows. `is_told`: it is known to begin here, and not only to become whole in the segment
    /// that does.
    pub(super) fn is_due(&self, begins: u32, is_told: bool, ack: u32) -> Option<usize> {
        let first = self.live.iter().position(|live| live.response_at.is_none())?;
        let waiting = (first..self.live.len()).filter(|index| self.live[*index].response_at.is_none());
        let exact = waiting.clone().find(|index| self.begins_at(*index) == Some(begins));
        // Where an answer begins is not known of what was asked before that was seen, or behind an answer without a length.
        // Of a head in pieces older recordings say where the last one is.
        let may_be = self.begins_at(first).is_none_or(|due| !is_told && !is_before(begins, due));
        let in_turn = || may_be && self.heard.is_in_order_to(begins);
        let index = exact.or_else(|| in_turn().then_some(first))?;
        // Nobody answers what he does not have.
        let live = &self.live[index];
        let has_it = live.request_end.is_none_or(|end| !is_before(ack, end));
        (has_it && !live.is_behind_unread).then_some(index)
    }

    /// Does a head that begins here lie in an answer that was seen, or before one?
    fn is_within_answer(&self, begins: u32, is_told: bool) -> bool {
        let last = self.live.back().and_then(|live| live.response_to());
        match last.filter(|_| is_told) {
            Some(to) => is_before(begins, to),
            None => self.seen_to.is_some_and(|seen| is_before(begins, seen)),
        }
    }

    /// The first of them that wait, so many in all, have an answer that ends before this one: no head of it could be read.
    fn have_unread_answers(&mut self, first: usize, position: Position, segment: u32) {
        let waits = self.live.iter_mut().take(first).filter(|live| live.response_at.is_none());
        waits.for_each(|live| live.came_by(position, segment, position.0));
    }

    /// The index of the exchange that a response's head belongs to.
    pub(super) fn answers(
        &mut self,
        response: &ResponseHead,
        position: Position,
        journey: &Journey,
        next: &mut u64,
        sink: &mut Sink<'_>,
    ) -> usize {
        let segment = journey.tcp.seq;
        if self.live.iter().any(|live| live.response_at.is_none()) {
            let Some(index) = self.is_due(position.0, response.begins.is_some(), journey.tcp.ack) else {
                // It begins where no answer is due: all that wait have one then, and none of them this status.
                self.have_unread_answers(self.live.len(), position, segment);
                return self.live.len() - 1;
            };
            self.have_unread_answers(index, position, segment);
            let live = &mut self.live[index];
            (live.response_at, live.response_in) = (Some(position), Some(segment));
            live.exchange.response = Some(response.said());
            if live.exchange.asked.is_none() {
                // What is asked behind what it answers is something else.
                (live.answers_to, live.unclaimed) = (Some(journey.tcp.ack), Some(response.said()));
            }
            return index;
        }
        if self.is_within_answer(position.0, response.begins.is_some()) {
            return self.live.len() - 1;
        }
        // All requests that were seen have their answers: it is to one that was not, or that could not be read.
        let index = self.one_more(journey, next, sink);
        self.is_unclaimed(index, position, journey, Some(response.said()));
        index
    }

    /// Enters an exchange of which this packet is the first that was seen: the connection goes on, or its ends are used again.
    fn one_more(&mut self, journey: &Journey, next: &mut u64, sink: &mut Sink<'_>) -> usize {
        (self.closed, self.ending) = (None, None);
        self.another(journey.at, journey.at, next, sink)
    }

    /// The index of the exchange that a packet without a head belongs to: the last one whose answer begins before its end; where that is not
    /// known, the one whose answer has begun, or else the first that waits.
    pub(super) fn goes_on(&self, journey: &Journey) -> usize {
        let end = journey.tcp.seq.wrapping_add(journey.tcp.len);
        let has_begun = |index: &usize| self.begins_at(*index).is_some_and(|begins| is_before(begins, end));
        if let Some(index) = (0..self.live.len()).rev().find(has_begun).filter(|_| journey.tcp.len > 0) {
            return index;
        }
        match self.live.iter().position(|live| live.response_at.is_none()) {
            None => self.live.len() - 1,
            Some(first) => first.saturating_sub(1),
        }
    }
}
