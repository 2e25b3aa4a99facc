//! What does somebody's capture say? Packets of tcpdump or Wireshark files as observations at hooks.
//!
//! What is read of a packet goes through the same allow-list as what the kernel half sends ([`crate::observation::redact`]): a
//! capture may hold tokens, and nothing of them comes out.
//!
//! Cannot know: what was dropped, which process or container it was, and where the capture was not listening. Where it does not say
//! at which interface, or which way, a packet passed, that is inferred from what else was seen of it: see [`places`].

mod file;
mod format;
mod frame;
mod known;
mod linktype;
mod order;
mod packet;
mod places;
mod read;
mod sources;
mod tunnel;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use crate::event::{Attached, Directions, Missing, Ready};
use crate::input::Input;
use crate::net::Timestamp;
use crate::observation::{Hook, Observation, Place, Streams};
use crate::unpack;
use crate::words::counted_were;
pub use file::Error;
pub use format::{Format, Nothing, Unread, open};
use known::Known;
use linktype::says_direction;
use order::{Order, Sighted};
use packet::Headers;
use read::Counts;
use sources::Sources;
pub use sources::{Failed, From, Source};

/// A capture on all interfaces shows a packet at each that it passes, and where interfaces have no names, several times at one.
/// Crossing them takes microseconds, and no TCP sends anything again so soon.
const SAME_PACKET: Duration = Duration::from_millis(1);
/// Packets compared at most.
const MAX_RECENT: usize = 256;
/// Interfaces that are told of at most.
const MAX_HOOKS: usize = 256;

/// What tells that two sightings are one packet at one place.
#[derive(Debug, PartialEq)]
struct Again {
    hook: Hook,
    headers: Headers,
    /// Of two that contradict each other neither is the other again.
    begins: [u8; STATUS_LINE],
}

/// Reads captures.
pub struct Reader {
    sources: Sources<Sighted>,
    order: Order,
    endpoints: Vec<IpAddr>,
    streams: Streams,
    recent: VecDeque<(Timestamp, Again)>,
    counts: Counts,
    known: Known,
    started: Timestamp,
    /// Was everything read?
    is_read: bool,
    failures: VecDeque<Failed>,
    /// Packets that were dropped before they could be captured, of which that was told.
    told_missed: u64,
    last: Timestamp,
}

/// Bytes of `HTTP/1.1 200`.
const STATUS_LINE: usize = 12;

/// How a payload begins, if so much of it was kept.
fn begin(payload: &[u8]) -> [u8; STATUS_LINE] {
    payload.first_chunk().copied().unwrap_or_default()
}

impl Reader {
    /// Reads one capture.
    pub fn new(input: unpack::Input, endpoints: Vec<IpAddr>) -> Result<Self, Failed> {
        Self::of(vec![Source { name: "capture".to_owned(), from: From::Stream(input) }], endpoints)
    }

    /// Reads captures of one host, as one. A capture without a packet is one all the same.
    pub fn of(sources: Vec<Source>, endpoints: Vec<IpAddr>) -> Result<Self, Failed> {
        let sources = Sources::open(sources)?;
        let started = sources.started();
        let mut reader = Self {
            sources,
            order: Order::default(),
            endpoints,
            streams: Streams::default(),
            recent: VecDeque::new(),
            counts: Counts::default(),
            known: Known::default(),
            started,
            is_read: false,
            failures: VecDeque::new(),
            told_missed: 0,
            last: started,
        };
        reader.fill();
        Ok(reader)
    }

    /// When the first packet was seen. Times of a capture count from the Unix epoch.
    pub fn started(&self) -> Timestamp {
        self.started
    }

    /// What a capture has of what is traced.
    pub fn ready(&self) -> Ready {
        let mut hooks: Vec<Attached> = Vec::new();
        for interface in self.sources.interfaces() {
            let says = interface.says_direction || says_direction(interface.link);
            let hook = Attached::Capture {
                interface: interface.name.clone(),
                link: interface.link_name().to_owned(),
                directions: if says { Directions::Recorded } else { Directions::Inferred },
            };
            if hooks.len() < MAX_HOOKS && !hooks.contains(&hook) {
                hooks.push(hook);
            }
        }
        let lacks = |hook: &str, why: &str| Missing { hook: hook.to_owned(), why: why.to_owned() };
        Ready {
            version: None,
            kernel: None,
            hooks,
            missing: vec![
                lacks("skb:kfree_skb", "a capture shows no drops"),
                lacks("sock:inet_sock_set_state", "a capture names no processes and no containers"),
            ],
            features: Vec::new(),
        }
    }

    /// What is to be said of what it did not tell.
    pub fn notes(&self) -> Vec<String> {
        let frames = self.sources.frames();
        let missed = match self.missed() {
            0 => Vec::new(),
            missed => {
                let packets = counted_were(missed, "packet");
                vec![format!(
                    "{packets} dropped before they could be captured, as the file says itself: what was in them is not known"
                )]
            }
        };
        [self.order.notes(), self.counts.notes(frames, &self.endpoints), missed].concat()
    }

    /// How many packets were dropped before they could be captured, as far as the files say.
    fn missed(&self) -> u64 {
        self.sources.interfaces().map(|interface| interface.missed).fold(0, u64::saturating_add)
    }

    /// Reads on until there is no room for more.
    fn fill(&mut self) {
        while !self.is_read && !self.order.is_full() {
            let Self { sources, counts, known, endpoints, .. } = self;
            match sources.next(&mut |name, interfaces, frame| {
                counts.read(name, interfaces, frame, endpoints).filter(|packet| !known.is_again(packet))
            }) {
                Some(packet) => self.order.push(packet),
                None => self.is_read = true,
            }
        }
        self.failures.extend(self.sources.failures());
    }

    /// What a packet says; `None` if it is one that was seen just now.
    fn observation(&mut self, at: Timestamp, hook: Hook, packet: &Sighted) -> Option<Observation> {
        let Headers { heading, flow, ttl, ip_id, protocol, tcp, icmp } = packet.headers;
        if self.is_again(at, Again { hook: hook.clone(), headers: packet.headers, begins: begin(&packet.payload) }) {
            return None;
        }
        let tcp_payload = tcp.filter(|_| icmp.is_none());
        let heads = tcp_payload.map(|tcp| self.streams.heads(&hook, flow, tcp, &packet.payload)).unwrap_or_default();
        Some(Observation {
            at,
            place: Place::Hook(hook),
            heading,
            flow,
            ttl,
            ip_id,
            protocol,
            tcp,
            heads,
            icmp,
            redirected: false,
        })
    }

    /// Was this packet seen at this place just now?
    fn is_again(&mut self, at: Timestamp, sighting: Again) -> bool {
        while self.recent.front().is_some_and(|(before, _)| at.since(*before) > SAME_PACKET)
            || self.recent.len() >= MAX_RECENT
        {
            self.recent.pop_front();
        }
        let again = self.recent.iter().any(|(_, before)| *before == sighting);
        self.recent.push_back((at, sighting));
        again
    }
}

impl Iterator for Reader {
    type Item = Result<Input, Failed>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.fill();
            // Whatever follows from not seeing something must know it.
            let unreadable = self.counts.take_unreadable();
            if unreadable > 0 {
                return Some(Ok(Input::Lost { at: self.last, ring_buffer: 0, unreadable }));
            }
            let Some((at, hook, packet)) = self.order.pop() else { break };
            self.last = self.last.max(at);
            if let Some(observation) = self.observation(at, hook, &packet) {
                return Some(Ok(Input::Observation(observation)));
            }
        }
        let missed = self.missed();
        if missed > self.told_missed {
            let ring_buffer = missed - std::mem::replace(&mut self.told_missed, missed);
            return Some(Ok(Input::Lost { at: self.last, ring_buffer, unreadable: 0 }));
        }
        // Everything that could be read comes before what could not.
        self.failures.pop_front().map(Err)
    }
}
