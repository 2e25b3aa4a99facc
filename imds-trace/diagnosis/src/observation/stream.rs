//! Which HTTP messages begin or go on in this segment? A head may be split over segments, and a segment may hold several.
//!
//! Each hook has its own view of each direction of a connection. Keeps the bytes of a head that is not whole yet, and of a token
//! until it is whole, for no longer; what leaves are the facts of [`super::redact`].
//!
//! Cannot know: what was said in bytes that were not seen (records hold the first kilobyte of a segment). Then it waits for a
//! segment that begins like a message.

use std::collections::{HashMap, VecDeque};

use super::redact::{self, Marker, Message, TOKEN_LENGTH};
use super::{Head, Hook, Tcp};
use crate::net::{Direction, Flow, Ifindex};

/// Directions at hooks remembered at most. IMDS closes after each answer: some seconds of the fastest client seen.
const MAX_STREAMS: usize = 16_384;
/// A head longer than this is given up; SDKs send some hundred bytes.
const MAX_HEAD: usize = 4_096;
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
    /// Nobody knows: bytes were missed, or the body has no length.
    #[default]
    Lost,
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
            Within::Lost => (Within::Lost, &bytes[bytes.len()..]),
        };
        self.within = within;
        rest
    }
}

/// What follows a head. `body` is the length it announces.
fn after(head: &Head, body: Option<u64>) -> Within {
    match (head, body) {
        (Head::Response(response), Some(length))
            if response.status == 200 && response.token_ttl.is_some() && TOKEN_LENGTH.contains(&length) =>
        {
            Within::Token(Vec::new(), length)
        }
        (_, Some(0)) => Within::Head(Vec::new()),
        (_, Some(length)) => Within::Body(length),
        (_, None) => Within::Lost,
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
    fn an_old_answer_without_a_length_is_read_once() {
        let mut side = Side::new();
        assert_eq!(side.says("HTTP/1.0 200 OK\r\nServer: EC2ws\r\n\r\ni-0123").len(), 1);
        assert!(side.says("456789").is_empty());
    }
}
