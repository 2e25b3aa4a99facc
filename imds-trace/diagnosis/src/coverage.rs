//! Would it have been seen? The only place where absence may be concluded from: who says that something was not there needs an
//! [`Absent`], and gets one only where nothing can have been missed.
//!
//! Cannot know: what passes by interfaces of which nobody told this host.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::identity::fact::Socket;
use crate::net::{Endpoint, Timestamp};

/// Windows of loss remembered at most; older ones are merged.
const MAX_WINDOWS: usize = 256;
/// A loss is noticed at most so long after it happened: the live shell looks every 50 ms.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);

/// A time from its begin to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// When it begins.
    pub from: Timestamp,
    /// When it ends.
    pub to: Timestamp,
}

impl Span {
    /// Have both a moment in common?
    pub fn touches(&self, other: &Self) -> bool {
        self.from <= other.to && other.from <= self.to
    }
}

/// Proof that what was not seen in a span of time was not there, as far as losses are known by now. Made by [`Coverage::absence`] alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absent(Span);

impl Absent {
    /// Is it refuted by records that were lost in this time, which became known later?
    pub fn is_refuted_by(&self, loss: Span) -> bool {
        self.0.touches(&loss)
    }
}

/// Why absence cannot be concluded from not seeing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// Records were lost in that time.
    Lost,
    /// There are no hooks on every interface towards IMDS.
    NotWatched,
}

/// What was watched, and when records were lost.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// In the order of their time; the last one may still be open.
    losses: VecDeque<Span>,
    /// Is the latest loss followed by nothing yet? Then its end is not known.
    open: bool,
    /// Since when there are hooks on every interface towards IMDS; `None` while there are not.
    watched_since: Option<Timestamp>,
    /// When there were, and are no more; the latest.
    watched: VecDeque<Span>,
    /// Since when there are not, if somebody said that there are not; and when that was so last before.
    unwatched_since: Option<Timestamp>,
    unwatched: Option<Span>,
}

impl Coverage {
    /// Something came in at this moment: whatever was lost before it was lost by then.
    pub fn heard(&mut self, at: Timestamp) {
        if self.open {
            self.open = false;
            if let Some(last) = self.losses.back_mut() {
                last.to = last.to.max(at);
            }
        }
    }

    /// Records were lost, noticed `at`, after `heard`, the latest that was not. `gap`: what follows it in time may be lost, too, up to
    /// what is heard next. Gives the time in which they may have been lost.
    pub fn lost(&mut self, at: Timestamp, heard: Timestamp, gap: bool) -> Span {
        let slack = u64::try_from(NOTICED_WITHIN.as_nanos()).unwrap_or(u64::MAX);
        let from = Timestamp(at.min(heard).0.saturating_sub(slack));
        let span = Span { from, to: at };
        self.open = gap;
        match self.losses.back_mut() {
            Some(last) if last.touches(&span) => *last = Span { from: last.from.min(from), to: last.to.max(at) },
            _ => self.losses.push_back(span),
        }
        if self.losses.len() > MAX_WINDOWS
            && let Some(oldest) = self.losses.pop_front()
            && let Some(next) = self.losses.front_mut()
        {
            next.from = next.from.min(oldest.from);
        }
        span
    }

    /// From this moment on there are hooks on every interface towards IMDS, or there are not.
    pub fn watched(&mut self, at: Timestamp, everywhere: bool) {
        if everywhere {
            let since = self.unwatched_since.take().filter(|since| *since < at);
            self.unwatched = since.map(|from| Span { from, to: at }).or(self.unwatched);
        } else {
            self.unwatched_since.get_or_insert(at);
        }
        self.watched_since = match (everywhere, self.watched_since) {
            (true, Some(since)) => Some(since),
            (true, None) => Some(at),
            (false, since) => {
                self.watched.extend(since.map(|from| Span { from, to: at }));
                if self.watched.len() > MAX_WINDOWS {
                    self.watched.pop_front();
                }
                None
            }
        };
    }

    /// When records were lost.
    pub fn losses(&self) -> impl Iterator<Item = Span> {
        self.losses.iter().copied()
    }

    /// When there were hooks on every interface towards IMDS, up to `end`.
    pub fn watched_until(&self, end: Timestamp) -> impl Iterator<Item = Span> {
        let open = self.watched_since.map(|from| Span { from, to: end.max(from) });
        self.watched.iter().copied().chain(open)
    }

    /// When there were not last, up to `now`, if that was said.
    pub fn unwatched_until(&self, now: Timestamp) -> Option<Span> {
        self.unwatched_since.map(|from| Span { from, to: now.max(from) }).or(self.unwatched)
    }

    /// May it be concluded that what was not seen at the places that saw the rest was not there?
    pub fn absence(&self, span: Span) -> Result<Absent, WhyNot> {
        let mut losses = self.losses.iter();
        let is_last = |loss: &Span| self.open && self.losses.back() == Some(loss);
        if losses.any(|loss| loss.touches(&span) || (is_last(loss) && span.to >= loss.from)) {
            return Err(WhyNot::Lost);
        }
        Ok(Absent(span))
    }

    /// May it be concluded that what was not seen passed no interface towards IMDS?
    pub fn absence_everywhere(&self, span: Span) -> Result<Absent, WhyNot> {
        match self.watched_since {
            Some(since) if since <= span.from => self.absence(span),
            _ => Err(WhyNot::NotWatched),
        }
    }
}

/// A connection that its socket told of, and no hook yet.
#[derive(Clone, Copy, Debug)]
pub struct Unseen {
    /// First sequence number.
    pub isn: u32,
    /// The socket's own end.
    pub client: Endpoint,
    /// The other end.
    pub endpoint: Endpoint,
    /// When it was established.
    pub established: Timestamp,
    /// Payload bytes that its TCP received and that were acknowledged to it; `None` if it did not say.
    pub counted: Option<(u64, u64)>,
}

/// Connections that are open and that no hook has seen.
#[derive(Debug, Default)]
pub struct UnseenSockets {
    /// By first sequence number.
    open: HashMap<u32, Unseen>,
    by_ends: HashMap<(Endpoint, Endpoint), u32>,
    order: VecDeque<u32>,
    evicted: u64,
}

/// Connections remembered at most.
const MAX_UNSEEN: usize = 4_096;

impl UnseenSockets {
    /// A socket was established, and no hook had seen its SYN.
    pub fn established(&mut self, at: Timestamp, socket: &Socket) {
        let (client, endpoint) = (socket.source, socket.destination);
        let unseen = Unseen { isn: socket.isn, client, endpoint, established: at, counted: None };
        if self.open.insert(socket.isn, unseen).is_none() {
            self.order.push_back(socket.isn);
        }
        self.by_ends.insert((client, endpoint), socket.isn);
        while self.open.len() > MAX_UNSEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.evicted += u64::from(self.over(oldest).is_some());
        }
        if self.order.len() > 2 * MAX_UNSEEN {
            let open = &self.open;
            self.order.retain(|isn| open.contains_key(isn));
        }
    }

    /// A hook saw a packet between these two ends, a SYN with this number if it was one: what was not seen of that connection before
    /// is seen now.
    pub fn saw(&mut self, syn: Option<u32>, client: Endpoint, endpoint: Endpoint) {
        if self.open.is_empty() {
            return;
        }
        if let Some(isn) = syn.or_else(|| self.by_ends.get(&(client, endpoint)).copied()) {
            self.over(isn);
        }
    }

    /// A socket's TCP has counted these payload bytes received and acknowledged.
    pub fn counted(&mut self, isn: u32, counts: (u64, u64)) {
        if let Some(unseen) = self.open.get_mut(&isn) {
            unseen.counted = Some(counts);
        }
    }

    /// A socket's connection is over: what was known of it, if no hook had seen it.
    pub fn over(&mut self, isn: u32) -> Option<Unseen> {
        let unseen = self.open.remove(&isn)?;
        let ends = (unseen.client, unseen.endpoint);
        if self.by_ends.get(&ends) == Some(&isn) {
            self.by_ends.remove(&ends);
        }
        Some(unseen)
    }

    /// All that are still open, in their order: the run ends.
    pub fn take(&mut self) -> Vec<Unseen> {
        let mut open: Vec<Unseen> = std::mem::take(&mut self.open).into_values().collect();
        open.sort_by_key(|unseen| (unseen.established, unseen.isn));
        open
    }

    /// How many had to go to stay within bounds; counted anew after each call.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn span(from: u64, to: u64) -> Span {
        Span { from: Timestamp(from * SECOND), to: Timestamp(to * SECOND) }
    }

    #[test]
    fn a_loss_says_nothing_of_another_time() {
        let mut coverage = Coverage::default();
        coverage.lost(Timestamp(10 * SECOND), Timestamp(10 * SECOND), true);
        assert_eq!(coverage.absence(span(11, 12)), Err(WhyNot::Lost), "it may go on");
        coverage.heard(Timestamp(11 * SECOND));
        assert_eq!(coverage.absence(span(11, 12)), Err(WhyNot::Lost));
        assert!(coverage.absence(span(12, 13)).is_ok());
        assert!(coverage.absence(span(7, 8)).is_ok());
        assert_eq!(coverage.absence(span(8, 9)), Err(WhyNot::Lost));
    }

    #[test]
    fn windows_are_bounded_and_none_is_forgotten() {
        let mut coverage = Coverage::default();
        for n in 1..1000 {
            let at = Timestamp(n * 10 * SECOND);
            coverage.lost(at, at, false);
        }
        assert_eq!(coverage.losses().count(), MAX_WINDOWS);
        assert_eq!(coverage.absence(span(10, 10)), Err(WhyNot::Lost));
        assert!(coverage.absence(span(9_985, 9_986)).is_ok());
    }

    #[test]
    fn an_interface_that_is_not_watched_may_have_let_it_pass() {
        let mut coverage = Coverage::default();
        assert_eq!(coverage.absence_everywhere(span(1, 2)), Err(WhyNot::NotWatched));
        coverage.watched(Timestamp(3 * SECOND), true);
        assert_eq!(coverage.absence_everywhere(span(2, 4)), Err(WhyNot::NotWatched));
        assert!(coverage.absence_everywhere(span(3, 4)).is_ok());
        coverage.watched(Timestamp(5 * SECOND), false);
        assert!(coverage.absence_everywhere(span(3, 4)).is_err());
    }
}
