//! Did a client send bytes that were seen nowhere? What they asked, and what came of it, nobody knows.

use super::delivery::raise;
use crate::net::is_before;

/// Pieces behind a gap that are remembered at most. Of more than that it is said that some are missing, which may be too much.
const MAX_AHEAD: usize = 32;

/// What a client sent on one connection. Numbers are TCP sequence numbers.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// Behind the last byte before which none is missing.
    whole_to: Option<u32>,
    /// Begin and end of what was seen behind missing bytes.
    ahead: Vec<(u32, u32)>,
    /// Behind the last byte that was seen.
    seen_to: Option<u32>,
    /// Behind the last byte that there is: one that was seen, or that IMDS or the client's own TCP says was received.
    known_to: Option<u32>,
}

impl Sent {
    /// A packet from `begin` to `end` was seen. Where the connection's first sequence number is known, nothing before it is missing.
    pub(super) fn see(&mut self, isn: Option<u32>, begin: u32, end: u32) {
        raise(&mut self.seen_to, end);
        raise(&mut self.known_to, end);
        let whole_to = self.whole_to.get_or_insert_with(|| isn.map_or(begin, |isn| isn.wrapping_add(1)));
        if is_before(*whole_to, begin) {
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

    /// Somebody has everything before `end`.
    pub(super) fn reach(&mut self, end: u32) {
        raise(&mut self.known_to, end);
    }

    /// Does this number lie behind everything that was seen, so that there was another request?
    pub(super) fn is_beyond(&self, end: u32) -> bool {
        self.seen_to.is_some_and(|seen| holds_request(seen, end))
    }

    /// Are bytes before this one missing?
    pub(super) fn lacks_before(&self, begin: u32) -> bool {
        self.whole_to.is_some_and(|whole| is_before(whole, begin))
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
    fn what_cannot_be_remembered_counts_as_missing() {
        let mut sent = Sent::default();
        sent.see(Some(0), 0, 1);
        let pieces = u32::try_from(MAX_AHEAD).unwrap() + 1;
        (0..pieces).for_each(|piece| sent.see(Some(0), 11 + piece * 10, 21 + piece * 10));
        sent.see(Some(0), 1, 11);
        assert!(sent.is_missing());
    }
}
