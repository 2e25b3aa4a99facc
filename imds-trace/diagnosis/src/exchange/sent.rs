//! Did one side of a connection send bytes that were seen nowhere? What they asked or answered nobody knows.

use super::delivery::{later, raise};
use crate::net::is_before;

/// Pieces behind a gap that are remembered at most. Of more than that it is said that some are missing, which may be too much.
const MAX_AHEAD: usize = 32;

/// By how many bytes a number is believed to be ahead of what was seen; one further away is no part of this connection.
pub(super) const MAX_JUMP: u32 = 1 << 20;

/// What one side sent on one connection. Numbers are TCP sequence numbers.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// Behind the last byte before which none is missing.
    whole_to: Option<u32>,
    /// Begin and end of what was seen behind missing bytes.
    ahead: Vec<(u32, u32)>,
    /// Behind the last byte that was seen.
    seen_to: Option<u32>,
    /// Behind the last byte that there is: one that was seen, or that the other side or the client's own TCP says was received.
    known_to: Option<u32>,
    /// The first byte.
    first: Option<u32>,
    /// Was something seen behind missing bytes, whether or not those came later?
    jumbled: bool,
}

impl Sent {
    /// A packet from `begin` to `end` was seen. Where the connection's first sequence number is known, nothing before it is missing.
    pub(super) fn see(&mut self, isn: Option<u32>, begin: u32, end: u32) {
        raise(&mut self.seen_to, end);
        raise(&mut self.known_to, end);
        if let Some(isn) = isn {
            self.begin(isn.wrapping_add(1));
        }
        let whole_to = self.whole_to.get_or_insert(begin);
        if is_before(*whole_to, begin) {
            self.jumbled = true;
            let piece = (begin, end);
            if self.ahead.len() < MAX_AHEAD && !self.ahead.contains(&piece) {
                self.ahead.push(piece);
            }
            return;
        }
        let mut end = end;
        loop {
            if is_before(*whole_to, end) {
                *whole_to = end;
            }
            let Some(next) = self.ahead.iter().position(|(begin, _)| !is_before(*whole_to, *begin)) else { break };
            (_, end) = self.ahead.swap_remove(next);
        }
    }

    /// The first byte has this number: before it there is nothing.
    pub(super) fn begin(&mut self, first: u32) {
        self.first.get_or_insert(first);
        self.whole_to.get_or_insert(first);
    }

    /// A reset has this number, and everything before it was sent; one far from it is no part of this connection.
    pub(super) fn reach_nearly(&mut self, end: u32) {
        let near = |known: u32| end.wrapping_sub(known) <= MAX_JUMP;
        if self.whole_to.is_some_and(near) {
            self.reach(end);
        }
    }

    /// Somebody has everything before `end`.
    pub(super) fn reach(&mut self, end: u32) {
        raise(&mut self.known_to, end);
    }

    /// Does this number lie behind everything that was seen, so that there was another request?
    pub(super) fn is_beyond(&self, end: u32) -> bool {
        self.seen_to.is_some_and(|seen| holds_request(seen, end))
    }

    /// Can this be a number of this side's? Of one whose first byte is not known any may be.
    pub(super) fn is_near(&self, number: u32) -> bool {
        let (Some(first), Some(known)) = (self.first, self.known_to) else { return true };
        // Its SYN has the number before its first byte.
        let begin = first.wrapping_sub(1);
        number.wrapping_sub(begin) <= known.wrapping_sub(begin).saturating_add(MAX_JUMP)
    }

    /// Was any of it seen?
    pub(super) fn has_any(&self) -> bool {
        self.first.zip(self.seen_to).is_some_and(|(first, seen)| holds_request(first, seen))
    }

    /// The first byte, if it is known.
    pub(super) fn first(&self) -> Option<u32> {
        self.first
    }

    /// Does this number lie behind the last byte that was seen?
    pub(super) fn is_new(&self, end: u32) -> bool {
        self.seen_to.is_some_and(|seen| is_before(seen, end))
    }

    /// Was everything before this byte seen, and in its order?
    pub(super) fn is_in_order_to(&self, begin: u32) -> bool {
        !self.jumbled && !self.lacks_before(begin)
    }

    /// Are bytes before this one missing?
    pub(super) fn lacks_before(&self, begin: u32) -> bool {
        self.whole_to.is_some_and(|whole| is_before(whole, begin))
    }

    /// Was something seen besides what lies before `forgotten_to` and these pieces, which are in order?
    pub(super) fn holds_besides(&self, forgotten_to: Option<u32>, pieces: &[(u32, u32)]) -> bool {
        let (Some(first), Some(seen)) = (self.first, self.seen_to) else { return false };
        let mut whole = later(first, forgotten_to);
        for (begin, end) in pieces {
            if holds_request(whole, *begin) {
                return true;
            }
            whole = if is_before(whole, *end) { *end } else { whole };
        }
        holds_request(whole, seen)
    }

    /// Are bytes missing?
    pub(super) fn is_missing(&self) -> bool {
        self.whole_to.zip(self.known_to).is_some_and(|(whole, known)| holds_request(whole, known))
    }
}

/// Is there room for a request? A FIN has a number, too, and no request is one byte.
fn holds_request(begin: u32, end: u32) -> bool {
    is_before(begin.wrapping_add(1), end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_in_any_order_is_whole() {
        let mut sent = Sent::default();
        sent.see(Some(u32::MAX), u32::MAX, 0);
        sent.see(Some(u32::MAX), 200, 300);
        sent.see(Some(u32::MAX), 100, 200);
        assert!(sent.is_missing() && sent.lacks_before(100) && !sent.lacks_before(0));
        sent.see(Some(u32::MAX), 0, 100);
        assert!(!sent.is_missing() && !sent.is_beyond(301) && !sent.lacks_before(300));
        sent.reach(301);
        assert!(!sent.is_missing(), "its FIN");
        sent.reach(302);
        assert!(sent.is_missing() && sent.is_beyond(302));
    }

    #[test]
    fn nothing_is_missing_before_what_was_seen_first_of_a_connection_that_had_begun() {
        let mut sent = Sent::default();
        sent.reach(5_000);
        assert!(!sent.is_missing());
        sent.see(None, 5_000, 5_100);
        assert!(!sent.is_missing());
        sent.see(None, 5_200, 5_300);
        assert!(sent.is_missing());
    }

    #[test]
    fn numbers_of_whoever_had_these_ends_before_are_far_away() {
        let mut sent = Sent::default();
        assert!(sent.is_near(7));
        sent.see(Some(u32::MAX), u32::MAX, 0);
        sent.see(Some(u32::MAX), 0, 200);
        assert!(sent.is_near(u32::MAX) && sent.is_near(200) && sent.is_near(200 + MAX_JUMP));
        assert!(!sent.is_near(202 + MAX_JUMP) && !sent.is_near(u32::MAX - 1));
    }

    #[test]
    fn what_cannot_be_remembered_counts_as_missing() {
        let mut sent = Sent::default();
        sent.see(Some(0), 0, 1);
        let pieces = u32::try_from(MAX_AHEAD).unwrap() + 1;
        (0..pieces).for_each(|piece| sent.see(Some(0), 11 + piece * 10, 21 + piece * 10));
        sent.see(Some(0), 1, 11);
        assert!(sent.is_missing());
    }
}
