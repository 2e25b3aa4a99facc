//! Which observations are one packet, and how did it end? Joined across forwarding and address translation.
//!
//! The kernel rewrites addresses and ports on the way, never TCP sequence numbers and, when it forwards, not the IP
//! identification. The first sequence number of a SYN ties both sides of a translation together; from then on the rewrite is known.
//! A retransmission repeats its numbers at a hook that has seen them: that is a new journey.
//!
//! Cannot know: what happened between hooks. A packet that went on and was not seen again is [`Fate::Unresolved`].

mod connections;
mod drops;
mod join;
mod origin;
mod other;
mod packet_key;

use schemars::JsonSchema;
use serde::Serialize;

use crate::net::{Endpoint, Heading, Timestamp, Ttl};
use crate::observation::{Drop, Head, Hook, Icmp, Tcp, TcpFlags};
pub use join::{END, Joiner};
pub use other::{OtherPackets, Others};

/// Numbers connections within one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// A TCP connection between a client and IMDS, whatever its addresses were on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its number.
    pub id: ConnectionId,
    /// The client's end, nearest to the client that was seen.
    pub client: Endpoint,
    /// The IMDS end as the client addressed it.
    pub endpoint: Endpoint,
    /// First sequence number; `None` if the SYN was not seen.
    pub isn: Option<u32>,
    /// When a packet of it was first seen.
    pub since: Timestamp,
}

/// One step of a journey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// When.
    pub at: Timestamp,
    /// Where.
    pub hook: Hook,
    /// With what TTL.
    pub ttl: Ttl,
    /// The client's address and port as they stood in the packet there.
    pub client: Endpoint,
}

/// What everything rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Evidence {
    /// Hooks at all places of a host's ways, the kernel's drops, and its sockets.
    #[default]
    Kernel,
    /// Somebody's capture: no drops, no processes, and only the places where it listened.
    Capture,
}

/// How sure it is that the observations are one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Join {
    /// The same addresses at every hop.
    Exact,
    /// Through a translation that the connection's SYN showed.
    Rewritten,
    /// By its numbers alone: the SYN was not seen.
    Guessed,
}

/// How a journey ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Left this host towards IMDS, or reached its client's side.
    Delivered,
    /// The kernel dropped it.
    Dropped(Dropped),
    /// Went on from its last hop and was not seen again.
    Unresolved,
}

/// A drop, and the packet's TTL there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// When.
    pub at: Timestamp,
    /// The kernel's word.
    pub drop: Drop,
    /// TTL at that point.
    pub ttl: Ttl,
    /// The client's address and port as they stood in the packet there.
    pub client: Endpoint,
}

impl Journey {
    /// Does it carry what an exchange is made of: the opening of a connection, or payload?
    pub fn carries(&self) -> bool {
        self.tcp.len > 0 || self.tcp.flags.has(TcpFlags::SYN)
    }
}

/// What something on this host made of a packet to IMDS (DNAT, a redirect).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Where it went, as it stood in the packet that was seen last.
    pub to: Endpoint,
    /// Was it on its way there already at the first place that saw it? Then it was redirected in its client's own network namespace, or on
    /// a bridge (br_netfilter).
    pub before: bool,
}

/// One packet followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journey {
    /// The connection it belongs to, as known now.
    pub connection: Connection,
    /// Which way it travelled.
    pub heading: Heading,
    /// Its TCP header.
    pub tcp: Tcp,
    /// IPv4 identification; 0 on IPv6.
    pub ip_id: u16,
    /// What its payload says of HTTP messages.
    pub heads: Vec<Head>,
    /// Did two hooks see different messages in it? Then a packet with its numbers was forged, and nobody knows which one.
    pub contradicted: bool,
    /// Set if it is an ICMP error about a packet of the client's: then `tcp` has that one's sequence number.
    pub icmp: Option<Icmp>,
    /// Had the other side acknowledged all of it before it was first seen? Then it was sent for nothing: a copy too many, or a probe whether
    /// somebody is still there.
    pub needless: bool,
    /// Had the client acknowledged it before any copy of it came? Then it has somebody else's bytes in its place.
    pub forestalled: bool,
    /// Was it sent elsewhere instead of to IMDS?
    pub redirected: Option<Redirect>,
    /// Where it was seen, in order; empty if only its drop was seen.
    pub hops: Vec<Hop>,
    /// How it ended.
    pub fate: Fate,
    /// Did the other side acknowledge it?
    pub acked: bool,
    /// How the hops were joined.
    pub join: Join,
    /// When it was last seen.
    pub at: Timestamp,
}
