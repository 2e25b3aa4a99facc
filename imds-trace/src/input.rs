//! What comes in over the seam? Everything below it is a pure function of a list of these.

use imds_trace_ebpf::record;
use serde::{Deserialize, Serialize};

use crate::identity::fact::{Connected, Connecting, Fact, Said};
use crate::net::{Endpoint, Ifindex, Interface, Netns, Timestamp, Ttl, address};
use crate::observation::{self, Drop, Head, Hook, Observation, Place, redact};

/// One thing that the pipeline is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// A packet at a place.
    Observation(Observation),
    /// A source's word on who is who.
    Fact(Fact),
    /// Time has passed.
    Tick {
        /// It is now.
        at: Timestamp,
    },
    /// Records that could not be kept.
    Lost {
        /// When that was noticed.
        at: Timestamp,
        /// Records that found no room in the ring buffer.
        ring_buffer: u64,
        /// Records that could not be read.
        unreadable: u64,
    },
}

impl Input {
    /// When.
    pub fn at(&self) -> Timestamp {
        match self {
            Self::Observation(observation) => observation.at,
            Self::Fact(fact) => fact.at,
            Self::Tick { at } | Self::Lost { at, .. } => *at,
        }
    }
}

/// A kernel record as it lies in the ring buffer.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// A packet at a hook, with its first payload bytes.
    Packet(&'a record::Packet, &'a [u8]),
    /// A drop.
    Drop(&'a record::Drop),
    /// A connect.
    Connect(&'a record::Connect),
    /// The port of one.
    Connected(&'a record::Connected),
}

/// What only the machine knows: names for the numbers in a record.
pub trait Names {
    /// The namespace in which the hooks are attached.
    fn host_netns(&self) -> Netns;
    /// The name of an interface in that namespace.
    fn interface(&self, index: Ifindex) -> Option<String>;
    /// The function at an address in the kernel's text.
    fn symbol(&self, address: u64) -> String;
    /// A drop reason.
    fn reason(&self, number: u32) -> Option<String>;
    /// Is this a watched endpoint?
    fn is_endpoint(&self, address: std::net::IpAddr) -> bool;
}

/// The record's meaning.
pub fn from_record(record: Record<'_>, names: &impl Names) -> Input {
    match record {
        Record::Packet(packet, payload) => {
            let (heading, flow, tcp) = observation::headers(&packet.network, |address| names.is_endpoint(address));
            let index = Ifindex(packet.ifindex);
            let name = names.interface(index).unwrap_or_else(|| format!("if{}", index.0));
            let direction = if packet.direction == record::direction::INGRESS {
                crate::net::Direction::Ingress
            } else {
                crate::net::Direction::Egress
            };
            let interface = Interface { netns: names.host_netns(), index, name };
            Input::Observation(Observation {
                at: Timestamp(packet.header.at),
                place: Place::Hook(Hook { interface, direction }),
                heading,
                flow,
                ttl: Ttl(packet.network.ttl),
                ip_id: packet.network.ip_id,
                protocol: packet.network.protocol,
                tcp,
                head: tcp.and_then(|_| head(payload)),
            })
        }
        Record::Drop(drop) => {
            let (heading, flow, tcp) = observation::headers(&drop.network, |address| names.is_endpoint(address));
            let netns = Netns(drop.netns);
            let interface = (drop.ifindex != 0).then(|| Interface {
                netns,
                index: Ifindex(drop.ifindex),
                name: text(&drop.ifname),
            });
            Input::Observation(Observation {
                at: Timestamp(drop.header.at),
                place: Place::Drop(Drop {
                    location: names.symbol(drop.location),
                    reason: names.reason(drop.reason),
                    interface,
                    netns,
                }),
                heading,
                flow,
                ttl: Ttl(drop.network.ttl),
                ip_id: drop.network.ip_id,
                protocol: drop.network.protocol,
                tcp,
                head: None,
            })
        }
        Record::Connect(connect) => fact(
            connect.header.at,
            Said::Connecting(Connecting {
                socket: connect.socket,
                destination: end(connect.version, connect.destination, connect.destination_port),
                netns: Netns(connect.netns),
                pid: connect.tgid,
                tid: connect.tid,
                uid: connect.uid,
                gid: connect.gid,
                comm: text(&connect.comm),
                cgroup: connect.cgroup,
                ttl: (connect.ttl != 0).then_some(Ttl(connect.ttl)),
            }),
        ),
        Record::Connected(connected) => fact(
            connected.header.at,
            Said::Connected(Connected {
                socket: connected.socket,
                source: end(connected.version, connected.source, connected.source_port),
                destination: end(connected.version, connected.destination, connected.destination_port),
                isn: connected.isn,
                netns: Netns(connected.netns),
                established: connected.established == 1,
            }),
        ),
    }
}

fn fact(at: u64, said: Said) -> Input {
    Input::Fact(Fact { at: Timestamp(at), said })
}

fn head(payload: &[u8]) -> Option<Head> {
    redact::head(payload)
}

fn end(version: u8, bytes: [u8; 16], port: u16) -> Endpoint {
    Endpoint { address: address(version, bytes), port }
}

/// A NUL-padded name. What is not UTF-8 becomes U+FFFD.
fn text(bytes: &[u8; 16]) -> String {
    let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}
