//! What tells one packet from another, wherever on the host it is seen?

use std::hash::{Hash, Hasher};

use crate::net::Heading;
use crate::observation::{Icmp, Observation, Tcp};

/// The numbers of a packet that no forwarding changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketKey {
    heading: Heading,
    /// The TCP header.
    pub tcp: Tcp,
    /// IPv4 identification; 0 on IPv6.
    pub ip_id: u16,
    icmp: Option<Icmp>,
}

/// In one piece, as that of [`crate::net::Endpoint`].
impl Hash for PacketKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { heading, tcp: Tcp { seq, ack, flags, len }, ip_id, icmp } = self;
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&seq.to_ne_bytes());
        bytes[4..8].copy_from_slice(&ack.to_ne_bytes());
        bytes[8..12].copy_from_slice(&len.to_ne_bytes());
        bytes[12..14].copy_from_slice(&ip_id.to_ne_bytes());
        bytes[14] = flags.0;
        bytes[15] = u8::from(*heading == Heading::FromImds);
        state.write(&bytes);
        if let Some(icmp) = icmp {
            icmp.hash(state);
        }
    }
}

impl PacketKey {
    /// The numbers of `observation`, which has a TCP header `tcp`.
    pub fn new(observation: &Observation, tcp: Tcp) -> Self {
        Self { heading: observation.heading, tcp, ip_id: observation.ip_id, icmp: observation.icmp }
    }
}
