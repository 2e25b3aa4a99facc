//! Which HTTP messages begin or go on in this segment? A head may be split over segments, and a segment may hold several.
//!
//! Each hook has its own view of each direction of a connection. Keeps the bytes of a head that is not whole yet, and of a token
//! until it is whole, for no longer; what leaves are the facts of [`super::redact`].
//!
//! Cannot know: what was said in bytes that were not seen (records hold the first kilobyte of a segment). Then it waits for a
//! segment that begins like a message.

use std::collections::{HashMap, VecDeque};

use super::redact::{self, Body, Marker, Message, TOKEN_LENGTH};
use super::{Head, Hook, Tcp};
use crate::net::{Direction, Flow, Ifindex};

/// Directions at hooks remembered at most: a quarter of a second of the fastest client seen, and a stream is read within milliseconds.
/// A table with room for 28,672 that is never more than half full tidies itself up in place, and never doubles.
const MAX_STREAMS: usize = 14_000;
/// A head longer than this is given up; SDKs send some hundred bytes.
const MAX_HEAD: usize = 4_096;
/// A line between chunks longer than this is none; the longest ones are signatures of chunks, which nobody sends to IMDS.
const MAX_LINE: usize = 512;
/// Segments with heads remembered of a stream, for those that are sent again.
const MAX_SENT: usize = 4;
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
    /// The next byte's sequence number.
    next: u32,
    within: Within,
    /// Latest segments with heads, by sequence number and a keyed hash of their bytes: a forged one has the numbers of another.
    sent: VecDeque<(u32, u64, Vec<Head>)>,
}

/// Reads HTTP out of TCP segments.
#[derive(Debug, Default)]
pub struct Streams {
    marker: Marker,
    streams: HashMap<Key, Stream>,
    order: VecDeque<Key>,
}

impl Streams {
    /// The heads that are whole with this segment, seen at `hook`. `payload` is its beginning.
    pub fn heads(&mut self, hook: &Hook, flow: Flow, tcp: Tcp, payload: &[u8]) -> Vec<Head> {
        if payload.is_empty() {
            return Vec::new();
        }
        let key = Key { interface: hook.interface.index, direction: hook.direction, flow };
        if self.streams.len() >= MAX_STREAMS
            && !self.streams.contains_key(&key)
            && let Some(oldest) = self.order.pop_front()
        {
            self.streams.remove(&oldest);
        }
        let stream = self.streams.entry(key).or_insert_with(|| {
            self.order.push_back(key);
            Stream { next: tcp.seq, within: Within::Head(Vec::new()), sent: VecDeque::new() }
        });
        let bytes = self.marker.tell_apart(payload);
        if let Some((.., heads)) = stream.sent.iter().find(|(seq, known, _)| (*seq, *known) == (tcp.seq, bytes)) {
            return heads.clone();
        }
        // The same numbers and other bytes: one of the two is forged, and nobody knows which. Each speaks for itself.
        if stream.sent.iter().any(|(seq, ..)| *seq == tcp.seq) {
            return redact::head(payload, &self.marker).into_iter().collect();
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
}

impl Stream {
    fn take(&mut self, marker: &Marker, tcp: Tcp, payload: &[u8]) -> Vec<Head> {
        let end = tcp.seq.wrapping_add(tcp.len);
        let (ahead, behind) = (tcp.seq.wrapping_sub(self.next), self.next.wrapping_sub(tcp.seq));
        let new = match (ahead, payload.get(behind as usize..)) {
            (0, _) => payload,
            // Part of it was there before.
            (_, Some(new)) if behind < tcp.len => new,
            // Sent again.
            _ if behind < WINDOW => return Vec::new(),
            // A connection with old addresses, or bytes were missed: it must speak for itself.
            _ => {
                self.within = Within::Lost;
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
            rest = self.step(marker, rest, &mut heads);
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
                    heads.extend(redact::head(&seen, marker));
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
mod tests {
    use super::*;
    use crate::net::{Endpoint, Interface, Netns};
    use crate::observation::TcpFlags;

    const TOKEN: &str = "AQAEAEXAMPLEtokenEXAMPLEtokenEXAMPLEtoken0123456789abc==";

    /// One side of a connection at one hook.
    struct Side {
        streams: Streams,
        seq: u32,
    }

    impl Side {
        fn new() -> Self {
            Self { streams: Streams::default(), seq: u32::MAX - 20 }
        }

        fn at(&mut self, seq: u32, len: usize, payload: &[u8]) -> Vec<Head> {
            let end = |port| Endpoint { address: std::net::Ipv4Addr::LOCALHOST.into(), port };
            let interface = Interface { netns: Netns(1), index: Ifindex(2), name: "ens5".into() };
            let hook = Hook { interface, direction: Direction::Ingress };
            let tcp = Tcp { seq, ack: 0, flags: TcpFlags(TcpFlags::ACK), len: len as u32 };
            self.streams.heads(&hook, Flow { source: end(1), destination: end(2) }, tcp, payload)
        }

        fn says(&mut self, text: &str) -> Vec<Head> {
            let seq = self.seq;
            self.seq = seq.wrapping_add(text.len() as u32);
            self.at(seq, text.len(), text.as_bytes())
        }
    }

    fn paths(heads: &[Head]) -> Vec<String> {
        let path = |head: &'_ Head| match head {
            Head::Request(request) => Some(request.path.clone()),
            Head::Response(_) | Head::Token(_) => None,
        };
        heads.iter().filter_map(path).collect()
    }

    #[test]
    fn a_head_in_pieces_is_read_with_its_last_piece() {
        let mut side = Side::new();
        let text = format!("GET /latest/ HTTP/1.1\r\nX-aws-ec2-metadata-token: {TOKEN}\r\n\r\n");
        let (last, others) = text.split_at(text.len() - 1);
        for piece in last.as_bytes().chunks(7) {
            assert!(side.says(std::str::from_utf8(piece).unwrap()).is_empty());
        }
        let heads = side.says(others);
        assert_eq!(paths(&heads), ["/latest/"]);
        assert!(matches!(&heads[..], [Head::Request(head)] if head.token && head.mark.is_some()), "{heads:?}");
    }

    #[test]
    fn several_requests_in_a_segment_are_all_read() {
        let mut side = Side::new();
        assert_eq!(paths(&side.says("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\nGET /c HT")), ["/a", "/b"]);
        assert_eq!(paths(&side.says("TP/1.1\r\n\r\n")), ["/c"]);
    }

    #[test]
    fn a_token_is_marked_as_it_is_issued_and_as_it_is_used() {
        let mut side = Side::new();
        let mut heads =
            side.says("HTTP/1.1 200 OK\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: 60\r\nContent-Length: 56\r\n\r\n");
        heads.extend(side.says(&TOKEN[..30]));
        heads.extend(side.says(&TOKEN[30..]));
        heads.extend(side.says(&format!("GET / HTTP/1.1\r\nx-aws-ec2-metadata-token: {TOKEN}\r\n\r\n")));
        let [Head::Response(_), Head::Token(issued), Head::Request(request)] = &heads[..] else { panic!("{heads:?}") };
        assert_eq!(request.mark, Some(*issued));
    }

    #[test]
    fn a_segment_sent_again_says_the_same_again() {
        let mut side = Side::new();
        let seq = side.seq;
        let text = "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno!";
        let first = side.says(text);
        assert_eq!(first.len(), 1);
        assert_eq!(side.at(seq, text.len(), text.as_bytes()), first);
        assert_eq!(side.says("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").len(), 1);
    }

    #[test]
    fn a_forged_segment_does_not_speak_for_the_real_one() {
        let mut side = Side::new();
        let seq = side.seq;
        assert_eq!(paths(&side.says("GET /forged HTTP/1.1\r\n\r\n")), ["/forged"]);
        let real = "PUT /really HTTP/1.1\r\n\r\n";
        assert_eq!(paths(&side.at(seq, real.len(), real.as_bytes())), ["/really"]);
    }

    #[test]
    fn a_piece_sent_again_changes_nothing() {
        let mut side = Side::new();
        let seq = side.seq;
        assert!(side.says("GET /in/pi").is_empty());
        assert!(side.says("eces HTTP/1.1\r\n").is_empty());
        assert!(side.at(seq, 10, b"GET /in/pi").is_empty());
        assert_eq!(paths(&side.says("\r\n")), ["/in/pieces"]);
    }

    #[test]
    fn ports_used_again_begin_anew() {
        let mut side = Side::new();
        assert!(side.says("GET /cut-sh").is_empty());
        assert_eq!(paths(&side.at(side.seq.wrapping_add(1 << 30), 21, b"GET /b HTTP/1.1\r\n\r\n")), ["/b"]);
        assert_eq!(paths(&side.at(side.seq.wrapping_sub(1 << 30), 21, b"GET /c HTTP/1.1\r\n\r\n")), ["/c"]);
    }

    #[test]
    fn a_body_is_no_head_whatever_it_looks_like() {
        let mut side = Side::new();
        let heads = side.says("HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\nx GET /secret HTTP/1.1\r\n\r\n");
        assert_eq!(heads.len(), 1);
        assert!(side.says("and the rest").is_empty());
    }

    #[test]
    fn after_missed_bytes_it_goes_on_with_the_next_message() {
        let mut side = Side::new();
        let seq = side.seq;
        // A segment of which the record holds a part.
        let heads = side.at(seq, 2_000, b"GET /long HTTP/1.1\r\nUser-Agent: a\r\nX-Rest: b");
        assert_eq!(paths(&heads), ["/long"]);
        assert!(side.at(seq.wrapping_add(2_000), 5, b"more ").is_empty());
        assert_eq!(paths(&side.at(seq.wrapping_add(9_000), 21, b"GET /b HTTP/1.1\r\n\r\n")), ["/b"]);
    }

    #[test]
    fn an_answer_to_head_has_a_length_and_no_body() {
        let mut side = Side::new();
        assert_eq!(side.says("HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n").len(), 1);
        assert_eq!(side.says("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").len(), 1);
    }

    #[test]
    fn an_interim_answer_is_followed_by_the_answer_in_the_same_segment_or_a_later_one() {
        let statuses = |heads: Vec<Head>| -> Vec<(u16, bool)> {
            let status = |head: &Head| match head {
                Head::Response(head) => Some((head.status, head.is_interim())),
                Head::Request(_) | Head::Token(_) => None,
            };
            heads.iter().filter_map(status).collect()
        };
        let mut side = Side::new();
        let both = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(statuses(side.says(both)), [(100, true), (200, false)]);
        assert_eq!(statuses(side.says("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r")), []);
        assert_eq!(statuses(side.says("\nHTTP/1.1 102 Processing\r\n\r\nHT")), [(103, true), (102, true)]);
        assert_eq!(statuses(side.says("TP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")), [(404, false)]);
    }

    #[test]
    fn a_body_in_chunks_ends_and_the_next_message_is_read() {
        let mut side = Side::new();
        let put =
            "PUT /latest/api/token HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /a HTTP/1.1\r\n\r\n";
        assert_eq!(paths(&side.says(put)), ["/latest/api/token", "/a"]);
        let long = "POST /b HTTP/1.1\r\ntransfer-encoding: gzip, Chunked\r\n\r\n12;x=y\r\nGET /in HTTP/1.1\r\n";
        assert_eq!(paths(&side.says(long)), ["/b"]);
        assert!(side.says("\r\n0\r\nTrailer: GET /in\r\n").is_empty());
        assert_eq!(paths(&side.says("\r\nGET /c HTTP/1.1\r\n\r\n")), ["/c"]);
    }

    #[test]
    fn a_token_in_chunks_is_the_same_token() {
        let mut side = Side::new();
        let head = "HTTP/1.1 200 OK\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: 60\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut heads = side.says(head);
        heads.extend(side.says(&format!("1e\r\n{}\r\n1A\r\n", &TOKEN[..30])));
        heads.extend(side.says(&format!("{}\r\n0\r\n\r\n", &TOKEN[30..])));
        heads.extend(side.says(&format!("GET / HTTP/1.1\r\nx-aws-ec2-metadata-token: {TOKEN}\r\n\r\n")));
        let [Head::Response(_), Head::Token(issued), Head::Request(request)] = &heads[..] else { panic!("{heads:?}") };
        assert_eq!(request.mark, Some(*issued));
    }

    #[test]
    fn chunks_that_are_none_are_waited_out() {
        let mut side = Side::new();
        assert_eq!(side.says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a length\r\n").len(), 1);
        assert!(side.says("and what follows").is_empty());
        assert_eq!(side.says("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").len(), 1);
    }

    #[test]
    fn an_old_answer_without_a_length_is_read_once() {
        let mut side = Side::new();
        assert_eq!(side.says("HTTP/1.0 200 OK\r\nServer: EC2ws\r\n\r\ni-0123").len(), 1);
        assert!(side.says("456789").is_empty());
    }
}
