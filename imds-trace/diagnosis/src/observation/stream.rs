//! Which HTTP messages begin or go on in this segment? A head may be split over segments, and a segment may hold several.
//!
//! Each hook has its own view of each direction of a connection. Keeps the bytes of a head that is not whole yet, and of a token
//! until it is whole, for no longer; what leaves are the facts of [`super::redact`].
//!
//! Cannot know: what was said in bytes that were not seen (records hold the first kilobyte of a segment). Then it waits for a
//! segment that begins like a message.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::redact::{self, Body, Marker, Message, TOKEN_LENGTH};
use super::{Head, Hook, Tcp, TcpFlags};
use crate::net::{Direction, Flow, Ifindex, Timestamp, is_before};
use crate::room;

/// Directions at hooks remembered at most: a quarter of a second of the fastest client seen, and a stream is read within milliseconds.
/// A table with room for 28,672 that is never more than half full tidies itself up in place, and never doubles.
const MAX_STREAMS: usize = 14_000;
/// A stream in which nothing was said for so long is forgotten, if no message is half read: what is sent again is read again, and says the
/// same. Fourteen thousand of them are 20 MB.
const FORGET: Duration = Duration::from_secs(5);
/// One with half a message: by then its connection is forgotten too (`journey::connections`).
const FORGET_HALF: Duration = Duration::from_secs(130);
/// A head longer than this is given up; SDKs send some hundred bytes.
const MAX_HEAD: usize = 4_096;
/// A line between chunks longer than this is none; the longest ones are signatures of chunks, which nobody sends to IMDS.
const MAX_LINE: usize = 512;
/// Segments with heads remembered of a stream, for those that are sent again.
const MAX_SENT: usize = 4;
/// Gaps remembered of a stream: bytes that were passed over, and may come late.
const MAX_GAPS: usize = 8;
/// A sequence number this far behind belongs to another connection between the same ports. IMDS sends some kilobytes.
const WINDOW: u32 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    interface: Ifindex,
    direction: Direction,
    flow: Flow,
}

/// Where in a message the next byte is.
#[derive(Debug, Default)]
enum Within {
    /// At the beginning of a message, or in its head, of which this much was seen.
    Head(Vec<u8>),
    /// In a body of which so many bytes are to come.
    Body(u64),
    /// In the body that is a token, of which so many bytes are to come.
    Token(Vec<u8>, u64),
    /// In a body in chunks.
    Chunks(Chunks),
    /// Nobody knows: bytes were missed, or the body has no length.
    #[default]
    Lost,
}

/// Where in a body in chunks (RFC 9112 section 7.1) the next byte is.
#[derive(Debug, Default)]
struct Chunks {
    /// Bytes of this chunk to come.
    left: u64,
    /// The line that is not whole yet: a chunk's length, the end of its data, or a trailer.
    line: Vec<u8>,
    /// The last chunk was there.
    ended: bool,
    /// What there is of the token that the body is, if it is one.
    token: Option<Vec<u8>>,
}

/// What a piece of a body in chunks comes to.
enum Chunked {
    /// More must come.
    GoesOn,
    /// It is over.
    Ended,
    /// It is none.
    Bad,
}

#[derive(Debug)]
struct Stream {
    /// The moment after which the latest segment came.
    last: Timestamp,
    /// The next byte's sequence number.
    next: u32,
    within: Within,
    /// Begin and end of what was passed over; the latest ones.
    gaps: VecDeque<(u32, u32)>,
    /// Latest segments with heads, by sequence number and a keyed hash of their bytes: a forged one has the numbers of another.
    sent: VecDeque<(u32, u64, Vec<Head>)>,
}

/// Reads HTTP out of TCP segments.
#[derive(Debug, Default)]
pub struct Streams {
    marker: Marker,
    streams: HashMap<Key, Stream>,
    /// Each stream once, and its `last` as it was entered here.
    order: VecDeque<(Timestamp, Key)>,
    /// As it was told last.
    now: Timestamp,
}

impl Streams {
    /// The heads that are whole with this segment, seen at `hook`. `payload` is its beginning.
    pub fn heads(&mut self, hook: &Hook, flow: Flow, tcp: Tcp, payload: &[u8]) -> Vec<Head> {
        let key = Key { interface: hook.interface.index, direction: hook.direction, flow };
        let opens = tcp.flags.has(TcpFlags::SYN);
        if payload.is_empty() && !opens {
            return Vec::new();
        }
        if self.streams.len() >= MAX_STREAMS
            && !self.streams.contains_key(&key)
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.streams.remove(&oldest);
        }
        let first = if opens { tcp.seq.wrapping_add(1) } else { tcp.seq };
        let stream = self.streams.entry(key).or_insert_with(|| {
            self.order.push_back((self.now, key));
            // Where a connection was not seen to begin this may be the middle of a message.
            let begins = opens || redact::may_begin(payload);
            Stream::new(self.now, first, if begins { Within::Head(Vec::new()) } else { Within::Lost })
        });
        if opens && stream.next != first {
            // Another connection between the same ends.
            *stream = Stream::new(self.now, first, Within::Head(Vec::new()));
        }
        stream.last = self.now;
        if payload.is_empty() {
            return Vec::new();
        }
        let bytes = self.marker.tell_apart(payload);
        if let Some((.., heads)) = stream.sent.iter().find(|(seq, known, _)| (*seq, *known) == (tcp.seq, bytes)) {
            return heads.clone();
        }
        // The same numbers and other bytes: one of the two is forged, and nobody knows which. Each speaks for itself.
        if stream.sent.iter().any(|(seq, ..)| *seq == tcp.seq) {
            return own_head(payload, &self.marker).into_iter().collect();
        }
        let heads = stream.take(&self.marker, tcp, payload);
        if !heads.is_empty() {
            if stream.sent.len() == MAX_SENT {
                stream.sent.pop_front();
            }
            stream.sent.push_back((tcp.seq, bytes, heads.clone()));
        }
        heads
    }

    /// Lets time pass: forgets what has gone quiet. Who does not call this forgets only what there is no room for.
    pub fn tick(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        while let Some(&(listed, key)) = self.order.front() {
            if listed.after(FORGET) > self.now {
                break;
            }
            self.order.pop_front();
            let Some(stream) = self.streams.get(&key) else { continue };
            let (last, is_half) = (stream.last, stream.is_within_message());
            if last.after(if is_half { FORGET_HALF } else { FORGET }) > self.now {
                // One that waits with half a message is looked at again as late as if it had just spoken.
                self.order.push_back((if last > listed { last } else { self.now }, key));
                continue;
            }
            self.streams.remove(&key);
            room::give_back(&mut self.streams);
        }
        let streams = &self.streams;
        room::tidy(&mut self.order, streams.len(), |(_, key)| streams.contains_key(key));
    }
}

impl Stream {
    /// One of which the next byte has this sequence number.
    fn new(now: Timestamp, next: u32, within: Within) -> Self {
        Self { last: now, next, within, gaps: VecDeque::new(), sent: VecDeque::new() }
    }

    /// Was this segment passed over, or a part of it? It comes late, then, and is no longer missing.
    fn comes_late(&mut self, seq: u32, end: u32) -> bool {
        let lies_in = |(from, to): &(u32, u32)| is_before(*from, end) && is_before(seq, *to);
        let Some(found) = self.gaps.iter().position(lies_in) else { return false };
        let (from, to) = self.gaps[found];
        self.gaps.remove(found);
        let left = [(from, seq), (end, to)];
        self.gaps.extend(left.into_iter().filter(|(from, to)| is_before(*from, *to)));
        true
    }

    /// Is a message half read, of which more may come?
    fn is_within_message(&self) -> bool {
        match &self.within {
            Within::Head(seen) => !seen.is_empty(),
            Within::Body(_) | Within::Token(..) | Within::Chunks(_) => true,
            Within::Lost => false,
        }
    }

    /// How much of a body that has a length is to come; none if a message is over.
    fn body_left(&self) -> Option<u64> {
        match &self.within {
            Within::Head(seen) if seen.is_empty() => Some(0),
            Within::Body(left) | Within::Token(_, left) => Some(*left),
            Within::Head(_) | Within::Chunks(_) | Within::Lost => None,
        }
    }

    /// Bytes that were read of a head that is not whole yet.
    fn head_read(&self) -> usize {
        match &self.within {
            Within::Head(seen) => seen.len(),
            _ => 0,
        }
    }

    fn take(&mut self, marker: &Marker, tcp: Tcp, payload: &[u8]) -> Vec<Head> {
        let end = tcp.seq.wrapping_add(tcp.len);
        let (ahead, behind) = (tcp.seq.wrapping_sub(self.next), self.next.wrapping_sub(tcp.seq));
        let new = match (ahead, payload.get(behind as usize..)) {
            (0, _) => payload,
            // Part of it was there before.
            (_, Some(new)) if behind < tcp.len => new,
            // It was passed over, and comes behind what follows it: it must speak for itself.
            _ if behind < WINDOW && self.comes_late(tcp.seq, end) => {
                return own_head(payload, marker).into_iter().collect();
            }
            // Sent again.
            _ if behind < WINDOW => return Vec::new(),
            // A connection with old addresses, or bytes were missed: it must speak for itself.
            _ => {
                self.within = Within::Lost;
                if ahead < WINDOW {
                    self.gaps.push_back((self.next, tcp.seq));
                }
                while self.gaps.len() > MAX_GAPS {
                    self.gaps.pop_front();
                }
                payload
            }
        };
        self.next = end;
        // The beginning of a message where none is due: the answer to a HEAD has a length and no body, and after bytes that were
        // missed this is where reading begins anew.
        let begins = matches!(self.within, Within::Lost | Within::Body(_)) && redact::begins(new);
        if begins {
            self.within = Within::Head(Vec::new());
        }
        let mut heads = Vec::new();
        let mut rest = new;
        while !rest.is_empty() {
            let (read, known) = (heads.len(), (payload.len() - rest.len()) as i64 - self.head_read() as i64);
            rest = self.step(marker, rest, &mut heads);
            let to = self.body_left().map(|left| (payload.len() - rest.len()) as u64 + left);
            heads.iter_mut().skip(read).for_each(|head| head.lies(known, to));
        }
        // What the record did not hold.
        let missed = u64::from(tcp.len).saturating_sub(payload.len() as u64);
        if missed > 0 {
            self.within = match std::mem::take(&mut self.within) {
                Within::Body(left) if left >= missed => Within::Body(left - missed),
                Within::Chunks(chunks) if chunks.left >= missed => {
                    Within::Chunks(Chunks { left: chunks.left - missed, token: None, ..chunks })
                }
                Within::Head(seen) if !seen.is_empty() => {
                    // Its whole lines are all that will be known of it.
                    let begins = payload.len() as i64 - seen.len() as i64;
                    heads.extend(redact::head(&seen, marker).map(|head| lying(head, begins, None)));
                    Within::Lost
                }
                _ => Within::Lost,
            };
        }
        heads
    }

    /// Reads on from `bytes` and gives what is behind what it read.
    fn step<'a>(&mut self, marker: &Marker, bytes: &'a [u8], heads: &mut Vec<Head>) -> &'a [u8] {
        let (within, rest) = match std::mem::take(&mut self.within) {
            Within::Head(mut seen) => {
                let before = seen.len();
                seen.extend_from_slice(bytes);
                match redact::message(&seen, marker) {
                    Some(Message::Whole { head, length, body }) => {
                        let within = after(&head, body);
                        heads.push(head);
                        (within, bytes.get(length - before..).unwrap_or_default())
                    }
                    Some(Message::Partial) if seen.len() <= MAX_HEAD => (Within::Head(seen), &bytes[bytes.len()..]),
                    _ => {
                        // Bad, or too long: what can be read of it, and no more.
                        heads.extend(redact::head(&seen, marker));
                        (Within::Lost, &bytes[bytes.len()..])
                    }
                }
            }
            Within::Body(left) => {
                let taken = left.min(bytes.len() as u64);
                let within = if taken == left { Within::Head(Vec::new()) } else { Within::Body(left - taken) };
                (within, &bytes[taken as usize..])
            }
            Within::Token(mut token, left) => {
                let taken = left.min(bytes.len() as u64);
                token.extend_from_slice(&bytes[..taken as usize]);
                let within = if taken == left {
                    heads.extend(marker.mark(&token).map(Head::Token));
                    Within::Head(Vec::new())
                } else {
                    Within::Token(token, left - taken)
                };
                (within, &bytes[taken as usize..])
            }
            Within::Chunks(mut chunks) => {
                let (taken, end) = chunks.take(bytes);
                let within = match end {
                    Chunked::GoesOn => Within::Chunks(chunks),
                    Chunked::Ended => {
                        heads.extend(chunks.token.and_then(|token| marker.mark(&token)).map(Head::Token));
                        Within::Head(Vec::new())
                    }
                    Chunked::Bad => Within::Lost,
                };
                (within, &bytes[taken..])
            }
            Within::Lost => (Within::Lost, &bytes[bytes.len()..]),
        };
        self.within = within;
        rest
    }
}

impl Chunks {
    /// Reads on; gives how many bytes it took.
    fn take(&mut self, bytes: &[u8]) -> (usize, Chunked) {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            if self.left > 0 {
                let taken = self.left.min(rest.len() as u64);
                self.left -= taken;
                at += taken as usize;
                if let Some(token) = &mut self.token {
                    token.extend_from_slice(&rest[..taken as usize]);
                    // Too long for one: it need not be kept.
                    self.token.take_if(|token| token.len() as u64 > *TOKEN_LENGTH.end());
                }
                continue;
            }
            let end = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |end| end + 1);
            self.line.extend_from_slice(&rest[..end]);
            at += end;
            if self.line.len() > MAX_LINE {
                return (at, Chunked::Bad);
            }
            if self.line.last() == Some(&b'\n') {
                match self.line() {
                    Chunked::GoesOn => {}
                    end => return (at, end),
                }
            }
        }
        (at, Chunked::GoesOn)
    }

    /// Takes in a whole line.
    fn line(&mut self) -> Chunked {
        let line = std::mem::take(&mut self.line);
        let line = line.trim_ascii();
        match (line.is_empty(), self.ended) {
            (true, true) => return Chunked::Ended,
            // The end of a chunk's data; a trailer.
            (true, false) | (false, true) => return Chunked::GoesOn,
            (false, false) => {}
        }
        let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        match std::str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
            Some(length) => {
                self.left = length;
                self.ended = length == 0;
                Chunked::GoesOn
            }
            None => Chunked::Bad,
        }
    }
}

/// The head that this payload begins with, whatever was before it.
fn own_head(payload: &[u8], marker: &Marker) -> Option<Head> {
    if !redact::begins(payload) {
        return None;
    }
    match redact::message(payload, marker) {
        Some(Message::Whole { head, length, body: Body::Length(body) }) => {
            Some(lying(head, 0, body.checked_add(length as u64)))
        }
        Some(Message::Whole { head, .. }) => Some(lying(head, 0, None)),
        Some(Message::Partial) | None => redact::head(payload, marker).map(|head| lying(head, 0, None)),
    }
}

fn lying(mut head: Head, at: i64, to: Option<u64>) -> Head {
    head.lies(at, to);
    head
}

/// What follows a head. `body` is what it announces.
fn after(head: &Head, body: Body) -> Within {
    let grants = matches!(head, Head::Response(head) if head.status == 200 && head.token_ttl.is_some());
    match body {
        Body::Length(length) if grants && TOKEN_LENGTH.contains(&length) => Within::Token(Vec::new(), length),
        Body::Length(0) => Within::Head(Vec::new()),
        Body::Length(length) => Within::Body(length),
        Body::Chunked => Within::Chunks(Chunks { token: grants.then(Vec::new), ..Chunks::default() }),
        Body::Unknown => Within::Lost,
    }
}

#[cfg(test)]
mod tests;
