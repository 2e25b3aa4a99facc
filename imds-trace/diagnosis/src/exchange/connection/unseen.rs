//! What did IMDS send on a connection that was seen nowhere, and to which requests was it the answer?

use super::Entry;
use crate::exchange::Sink;
use crate::exchange::delivery::{Received, later};
use crate::exchange::sent::MAX_JUMP;
use crate::net::{Timestamp, is_before};

impl Entry {
    /// IMDS sent bytes that were seen nowhere. Those behind a request that waits alone are its answer, and noticed elsewhere; of several
    /// that were sent at once each may have one, and what was answered to a request that nobody saw may be something else.
    pub(super) fn notice_holes(&mut self) {
        if let Some(to) = self.received.counted_to() {
            self.heard.reach(to);
        }
        self.notice_unread_answers();
        if !self.heard.is_missing() {
            return;
        }
        let mut any = false;
        for live in &mut self.live {
            let exchange = &live.exchange;
            let waits = exchange.asked.is_some() && !live.has_answer() && exchange.response_drop().is_none();
            if waits && live.answer_begins.is_none() {
                live.responded_unseen();
                any = true;
            }
        }
        for live in self.live.iter_mut().filter(|live| !any && live.exchange.asked.is_none() && live.has_answer()) {
            live.exchange.response = None;
        }
    }

    /// What came behind an answer of which nobody knows where it ends may be the answer to the next request.
    fn notice_unread_answers(&mut self) {
        for index in 1..self.live.len() {
            let before = &self.live[index - 1];
            let goes_on = |(end, seen): (u32, u32)| is_before(end, seen);
            let is_open = before.answered_to().is_none() && before.response_end.zip(self.seen_to).is_some_and(goes_on);
            let live = &mut self.live[index];
            if is_open && live.exchange.asked.is_some() && !live.has_answer() && live.answer_begins.is_none() {
                live.responded_unseen();
            }
        }
    }

    /// The client has bytes from IMDS that were seen nowhere: they are the answer to the first request that has none. Looked at when no
    /// sighting of them will come any more.
    pub(super) fn notice_unseen(&mut self, received: &Received, at: Timestamp, sink: &mut Sink<'_>) -> bool {
        let waits = self.live.iter().position(|live| !live.has_answer());
        let Some(live) = waits.and_then(|index| self.live.get_mut(index)) else { return false };
        live.notice_unseen(received, self.seen_to, at, sink)
    }

    /// IMDS goes on from this number: what lies between it and what was seen of its answers came unseen, whether it arrived or not.
    pub(super) fn notice_unseen_response(&mut self, seq: u32) {
        let Some(waits) = self.live.iter_mut().find(|live| !live.has_answer()) else { return };
        let Some(begins) = waits.answer_begins.filter(|_| waits.exchange.asked.is_some()) else { return };
        // One number may be that of its FIN.
        let expected = later(begins, self.seen_to);
        if is_before(expected.wrapping_add(1), seq) && seq.wrapping_sub(expected) <= MAX_JUMP {
            waits.responded_unseen();
        }
    }
}
