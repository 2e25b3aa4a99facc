//! What does somebody's capture say? Packets of a tcpdump or Wireshark file as observations at hooks.
//!
//! What is read of a packet goes through the same allow-list as what the kernel half sends ([`crate::observation::redact`]): a
//! capture may hold tokens, and nothing of them comes out.
//!
//! Cannot know: what was dropped, which process or container it was, and where the capture was not listening. Where it does not say
//! which way a packet passed an interface, that is inferred from where the packet heads: see [`inferred`].

mod file;
mod frame;
mod order;

use std::collections::VecDeque;
use std::io::Read;
use std::net::IpAddr;
use std::time::Duration;

use crate::event::{Attached, Directions, Missing, Ready};
use crate::input::Input;
use crate::net::{Direction, Flow, Heading, Ifindex, Interface, Netns, Timestamp, Ttl, bounded};
use crate::observation::{Hook, Icmp, Observation, Place, Streams, Tcp};
use file::{Described, Frame};
pub use file::{Error, MAGIC_LENGTH, is_capture};
use frame::{Linked, Packet, Seen};
use order::Ordered;

/// A capture on all interfaces shows a packet at each that it passes, and where interfaces have no names, several times at one.
/// Crossing them takes microseconds, and no TCP sends anything again so soon.
const SAME_PACKET: Duration = Duration::from_millis(1);
/// Packets compared at most.
const MAX_RECENT: usize = 256;
/// Bytes kept of an interface's name. Linux allows 15; Windows writes 60.
const MAX_NAME: usize = 64;
/// Interfaces that lead to containers, by the beginnings of their names: Docker's, Podman's, libvirt's, LXC's, Kubernetes'.
const TO_CONTAINERS: [&str; 10] = ["docker", "br-", "veth", "podman", "cni", "cbr", "virbr", "lxc", "cali", "vnet"];

/// What tells that two sightings are one packet at one place.
#[derive(Debug, PartialEq)]
struct Sighting {
    hook: Hook,
    flow: Flow,
    ttl: Ttl,
    ip_id: u16,
    tcp: Option<Tcp>,
    icmp: Option<Icmp>,
}

/// Reads a capture.
pub struct Reader {
    ordered: Ordered,
    endpoints: Vec<IpAddr>,
    streams: Streams,
    /// Read already, to know what the file is like.
    first: Option<Frame>,
    recent: VecDeque<(Timestamp, Sighting)>,
    frames: u64,
    ours: u64,
    /// Frames of a link type that is not read.
    foreign: u64,
    started: Timestamp,
    over: bool,
}

impl Reader {
    /// Reads up to the first packet. A capture without any is one all the same.
    pub fn new(input: Box<dyn Read + Send>, endpoints: Vec<IpAddr>) -> Result<Self, Error> {
        let mut ordered = Ordered::new(input)?;
        let first = ordered.next_frame()?;
        let interfaces = ordered.file().interfaces();
        let is_foreign = |interface: &Described| matches!(frame::link(interface.link, &[]), Linked::Foreign);
        match interfaces {
            [interface, ..] if interfaces.iter().all(is_foreign) => return Err(Error::Foreign(interface.link)),
            _ => {}
        }
        let started = first.as_ref().map(|frame| frame.at).unwrap_or_default();
        Ok(Self {
            ordered,
            endpoints,
            streams: Streams::default(),
            first,
            recent: VecDeque::new(),
            frames: 0,
            ours: 0,
            foreign: 0,
            started,
            over: false,
        })
    }

    /// When the first packet was seen. Times of a capture count from the Unix epoch.
    pub fn started(&self) -> Timestamp {
        self.started
    }

    /// What a capture has of what is traced.
    pub fn ready(&self) -> Ready {
        let says = self.first.as_ref().is_some_and(|frame| frame.direction.is_some());
        let hooks = self.ordered.file().interfaces().iter().map(|interface| Attached::Capture {
            interface: interface.name.as_deref().map(|name| bounded(name, MAX_NAME).to_owned()),
            link: frame::link_name(interface.link).to_owned(),
            directions: if says || frame::says_direction(interface.link) {
                Directions::Recorded
            } else {
                Directions::Inferred
            },
        });
        let lacks = |hook: &str, why: &str| Missing { hook: hook.to_owned(), why: why.to_owned() };
        Ready {
            version: None,
            kernel: None,
            hooks: hooks.collect(),
            missing: vec![
                lacks("skb:kfree_skb", "a capture shows no drops"),
                lacks("sock:inet_sock_set_state", "a capture names no processes and no containers"),
            ],
            features: Vec::new(),
        }
    }

    /// What is to be said of what it did not tell.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.foreign > 0 {
            notes.push(format!("{} of its {} packets have a link type that is not read", self.foreign, self.frames));
        }
        if self.ours == 0 {
            let endpoints: Vec<String> = self.endpoints.iter().map(IpAddr::to_string).collect();
            let endpoints = endpoints.join(" or ");
            notes.push(format!("none of its {} packets is to or from {endpoints} (--endpoint)", self.frames));
        }
        notes
    }

    /// What a frame says; `None` if it is nothing of ours.
    fn input(&mut self, frame: &Frame) -> Option<Input> {
        self.frames += 1;
        let is_endpoint = |address: IpAddr| self.endpoints.contains(&address);
        let linked = match frame::link(frame.link, &frame.bytes) {
            Linked::Ip(linked) => linked,
            Linked::Other => return None,
            Linked::Foreign => {
                self.foreign += 1;
                return None;
            }
        };
        let seen = match frame::packet(linked.bytes, is_endpoint) {
            Packet::Seen(seen) => seen,
            Packet::Other => return None,
            Packet::Cut => return Some(Input::Lost { at: frame.at, ring_buffer: 0, unreadable: 1 }),
        };
        let Seen { heading, flow, ttl, ip_id, protocol, tcp, icmp, payload } = seen;
        let hook = self.hook(frame, linked.direction, linked.index, heading)?;
        self.ours += 1;
        if self.is_again(frame.at, Sighting { hook: hook.clone(), flow, ttl, ip_id, tcp, icmp }) {
            return None;
        }
        let tcp_payload = tcp.filter(|_| icmp.is_none());
        let heads = tcp_payload.map(|tcp| self.streams.heads(&hook, flow, tcp, payload)).unwrap_or_default();
        Some(Input::Observation(Observation {
            at: frame.at,
            place: Place::Hook(hook),
            heading,
            flow,
            ttl,
            ip_id,
            protocol,
            tcp,
            heads,
            icmp,
        }))
    }

    /// Where the frame was; `None` where the packet had been dropped, in a file of our own.
    fn hook(&self, frame: &Frame, linked: Option<Direction>, index: Option<u32>, heading: Heading) -> Option<Hook> {
        let described = &self.ordered.file().interfaces()[frame.interface];
        let mut number = described.number;
        let mut name = match (index, &described.name) {
            (Some(index), _) => format!("if{index}"),
            (None, Some(name)) => bounded(name, MAX_NAME).to_owned(),
            (None, None) if frame::says_direction(described.link) => "any".to_owned(),
            (None, None) => "capture".to_owned(),
        };
        if described.is_ours {
            if name.starts_with("drop ") {
                return None;
            }
            // One interface of the machine is two of the file.
            let bare = |name: &str| name.rsplit_once(' ').map_or(name, |(bare, _)| bare).to_owned();
            name = bare(&name);
            let same = |other: &&Described| other.name.as_deref().is_some_and(|other| bare(other) == name);
            number = self.ordered.file().interfaces().iter().find(same).map_or(number, |first| first.number);
        }
        let index = Ifindex(index.unwrap_or(number));
        let direction = linked.or(frame.direction).unwrap_or_else(|| inferred(heading, &name));
        Some(Hook { interface: Interface { netns: Netns::default(), index, name }, direction })
    }

    /// Was this packet seen at this place just now?
    fn is_again(&mut self, at: Timestamp, sighting: Sighting) -> bool {
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
    type Item = Result<Input, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.over {
            let frame = match self.first.take() {
                Some(first) => Ok(Some(first)),
                None => self.ordered.next_frame(),
            };
            match frame {
                Ok(Some(frame)) => {
                    if let Some(input) = self.input(&frame) {
                        return Some(Ok(input));
                    }
                }
                Ok(None) => self.over = true,
                Err(error) => {
                    self.over = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

/// Which way a packet passed an interface, where the capture does not say: what heads for IMDS comes in by an interface that leads
/// to containers, and goes out by any other. If the interface is named unlike what it is, a bridge of another name say, then every
/// packet seems to begin and end there, which accuses nobody.
fn inferred(heading: Heading, name: &str) -> Direction {
    let to_containers = TO_CONTAINERS.iter().any(|beginning| name.starts_with(beginning));
    match (heading, to_containers) {
        (Heading::ToImds, true) | (Heading::FromImds, false) => Direction::Ingress,
        (Heading::ToImds, false) | (Heading::FromImds, true) => Direction::Egress,
    }
}
