//! What was one packet at one place? Refuses payload: of HTTP only the allow-listed facts of [`redact`] are kept.

mod host;
pub mod redact;
mod stream;

use serde::{Deserialize, Deserializer, Serialize};

use crate::net::{Direction, Flow, Heading, Interface, Netns, Timestamp, Ttl};
pub use redact::{Head, RequestHead, ResponseHead, TokenMark};
pub use stream::Streams;

/// Where we listen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Hook {
    /// The interface.
    pub interface: Interface,
    /// Which way the packet passed it.
    pub direction: Direction,
}

/// The reason of what has the MAC address of another host.
pub const OTHERHOST: &str = "OTHERHOST";

/// The kernel's own word for a drop.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Drop {
    /// Function that dropped the packet, as the kernel's symbol table spells it; `None` where the kernel does not name it to us. Never
    /// its address, which gives away where the kernel lies (KASLR).
    #[serde(with = "named")]
    pub location: Option<String>,
    /// Reason as the kernel spells it without `SKB_DROP_REASON_`; `None` on kernels that give none.
    pub reason: Option<String>,
    /// The interface the packet was on.
    pub interface: Option<Interface>,
    /// Network namespace in which it was dropped.
    pub netns: Netns,
    /// Functions that led there, the caller of `location` first; empty where the kernel cannot tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub callers: Vec<String>,
}

impl Drop {
    /// The function, for a sentence: `dropped in ...`.
    pub fn function(&self) -> &str {
        self.location.as_deref().unwrap_or("an unnamed function")
    }

    /// Was it dropped for its MAC address?
    pub fn is_misaddressed(&self) -> bool {
        self.reason.as_deref() == Some(OTHERHOST)
    }
}

/// In recordings a function without a name is the word `unnamed`.
mod named {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    const UNNAMED: &str = "unnamed";

    pub(super) fn serialize<S: Serializer>(function: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
        function.as_deref().unwrap_or(UNNAMED).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
        Ok(Some(String::deserialize(deserializer)?).filter(|function| function != UNNAMED))
    }
}

/// What an ICMP error says of the packet that it quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Icmp {
    /// ICMP or ICMPv6 type.
    #[serde(rename = "type")]
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// Who sent the error.
    pub sender: std::net::IpAddr,
}

/// Where a packet was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Passing a tc hook.
    Hook(Hook),
    /// Being dropped.
    Drop(Drop),
}

/// TCP flags byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data will come.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Ends a connection at once.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;

    /// Is `flag` set?
    pub fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    /// The first packet of a connection.
    pub fn opens(self) -> bool {
        self.has(Self::SYN) && !self.has(Self::ACK)
    }
}

/// The TCP header of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tcp {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags.
    pub flags: TcpFlags,
    /// Payload bytes.
    pub len: u32,
}

impl Tcp {
    /// The sequence number behind this packet's last byte; SYN and FIN count as one each.
    pub fn end(&self) -> u32 {
        let control = u32::from(self.flags.has(TcpFlags::SYN)) + u32::from(self.flags.has(TcpFlags::FIN));
        self.seq.wrapping_add(self.len).wrapping_add(control)
    }
}

/// One packet at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// When it was there.
    pub at: Timestamp,
    /// Where it was.
    pub place: Place,
    /// Which way it travels.
    pub heading: Heading,
    /// Addresses and ports as they stood in the packet there: translation changes them on the way.
    pub flow: Flow,
    /// TTL or hop limit there.
    pub ttl: Ttl,
    /// IPv4 identification; 0 on IPv6.
    pub ip_id: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// The TCP header; `None` for other protocols and for later fragments.
    pub tcp: Option<Tcp>,
    /// What its payload says of HTTP messages that begin or go on in it.
    #[serde(default, alias = "head", deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<Head>,
    /// Set if it is an ICMP error about a packet to IMDS. `flow` and `tcp` (its sequence number, no more) are then that packet's,
    /// turned round as an answer's would be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
    /// Is it the SYN of a connection to IMDS that something on this host sent elsewhere? `flow` says where to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub redirected: bool,
}

/// The first recordings had one head at most, and not as a list.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Head>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Heads {
        Many(Vec<Head>),
        One(Head),
    }
    Ok(match Heads::deserialize(deserializer)? {
        Heads::Many(heads) => heads,
        Heads::One(head) => vec![head],
    })
}

/// IP protocol number of TCP.
pub const IPPROTO_TCP: u8 = 6;
