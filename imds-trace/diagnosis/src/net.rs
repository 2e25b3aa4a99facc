//! Which nouns do all rooms share? Time, addresses, interfaces, TTLs.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When: nanoseconds since boot, suspend included (`CLOCK_BOOTTIME`, the clock of the kernel half).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This moment plus `duration`.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// So much earlier, and not before the clock began.
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to this moment; zero if that is the later one.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// What turns a [`Timestamp`] into wall-clock time. Read once at the start and written to the recording's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(
    /// Nanoseconds from the Unix epoch to boot.
    pub i64,
);

/// Interface index, unique in its network namespace only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ifindex(pub u32);

/// Network namespace: the inode number in `/proc/PID/ns/net`. 0 is "not known".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Netns(pub u32);

/// The IPv4 TTL or IPv6 hop limit field of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Ttl(pub u8);

/// Initial TTLs in use (Linux 64, Windows 128, network gear 255). Only to recognise a packet whose TTL has not fallen yet.
pub const INITIAL_TTLS: [u8; 3] = [64, 128, 255];

/// Sequence number arithmetic, RFC 9293 section 3.4.
pub fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Has a packet with this TTL been forwarded?
pub fn has_fallen(ttl: Ttl) -> bool {
    !INITIAL_TTLS.contains(&ttl.0)
}

/// An address and a TCP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Endpoint {
    /// IP address.
    pub address: IpAddr,
    /// TCP or UDP port; 0 where the packet has none.
    pub port: u16,
}

/// In one piece: a keyed hash costs by the pieces it is given, and every packet is looked up by its ends.
impl Hash for Endpoint {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (address, family) = match self.address {
            IpAddr::V4(address) => (u128::from(address.to_bits()), 4),
            IpAddr::V6(address) => (address.to_bits(), 6),
        };
        let mut bytes = [0; 19];
        bytes[..16].copy_from_slice(&address.to_ne_bytes());
        bytes[16..18].copy_from_slice(&self.port.to_ne_bytes());
        bytes[18] = family;
        state.write(&bytes);
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// Source and destination of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Flow {
    /// Who sent it.
    pub source: Endpoint,
    /// To whom.
    pub destination: Endpoint,
}

/// Relative to the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The packet came in by the interface.
    Ingress,
    /// The packet goes out by the interface.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// Which way a packet travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Heading {
    /// From a client towards IMDS.
    ToImds,
    /// From IMDS towards a client.
    FromImds,
}

/// A network interface, by the only key that is unique on a host: namespace and index.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Interface {
    /// The namespace it is in.
    pub netns: Netns,
    /// Its index there.
    pub index: Ifindex,
    /// Its name at the time. Whoever owns the namespace chose it: escape it before a terminal sees it.
    pub name: Arc<str>,
}

/// An IP address from the 16 bytes of a record; IPv4 stands in the first four.
pub fn address(version: u8, bytes: [u8; 16]) -> IpAddr {
    if version == 4 {
        IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
    } else {
        IpAddr::V6(Ipv6Addr::from(bytes))
    }
}

/// At most `limit` bytes of `text`, cut at a character.
pub fn bounded(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_text_is_cut_at_a_character() {
        assert_eq!(bounded("añb", 2), "a");
        assert_eq!(bounded("añb", 3), "añ");
        assert_eq!(bounded("", 3), "");
    }
}
