//! What is behind the link layer's header of a captured frame, and what does that say of where it passed?

use super::linktype::{ETHERNET, IPV4, IPV6, LINUX_SLL, LINUX_SLL2, OLD_RAW, RAW};
use crate::net::{Direction, Heading};

/// EtherTypes.
pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_IPV6: u16 = 0x86dd;
pub const ETH_P_8021Q: u16 = 0x8100;
const VLAN_TAGS: [u16; 3] = [ETH_P_8021Q, 0x88a8, 0x9100];
const ETH_P_MPLS: [u16; 2] = [0x8847, 0x8848];
const ETH_P_PPPOE: u16 = 0x8864;
/// Envelopes that are not opened.
const UNOPENED: [(u16, &str); 3] = [(0x88e5, "MACsec"), (0x88e7, "802.1ah (MAC in MAC)"), (0x894f, "NSH")];
/// VLAN tags or MPLS labels of a frame at most; 802.1ad allows two tags, and nobody stacks so many labels.
const MAX_TAGS: usize = 8;

/// Lengths of headers.
const ETHERNET_HEADER: usize = 14;
const SLL_HEADER: usize = 16;
const SLL2_HEADER: usize = 20;
const VLAN_TAG: usize = 4;
/// Cooked captures' word for what this machine sent.
const PACKET_OUTGOING: u8 = 4;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// What is behind the link layer.
pub enum Linked<'a> {
    /// An IP packet.
    Ip(Ip<'a>),
    /// Something else.
    Other,
    /// Too little was kept to see what it is.
    Cut,
    /// Something that may hold an IP packet, by name.
    Unopened(&'static str),
    /// Nobody here reads such frames.
    Foreign,
}

/// An IP packet, and what the link layer said of it.
pub struct Ip<'a> {
    /// From its first byte on.
    pub bytes: &'a [u8],
    /// Which way it passed, if that was said.
    pub direction: Option<Direction>,
    /// The interface's index, if that was said.
    pub index: Option<u32>,
    /// From whom on this link, and to whom.
    macs: Option<(Mac, Mac)>,
}

impl<'a> Ip<'a> {
    /// One without a link layer.
    pub fn bare(bytes: &'a [u8]) -> Self {
        Self { bytes, direction: None, index: None, macs: None }
    }

    /// Who stands on this link at the client's end: it sends what goes to IMDS, and gets what comes from there. A link has only one
    /// for each client, whichever way a packet goes.
    pub fn client_end(&self, heading: Heading) -> Option<Mac> {
        self.macs.map(|(source, destination)| match heading {
            Heading::ToImds => source,
            Heading::FromImds => destination,
        })
    }
}

/// Takes off the link layer's header.
pub fn link(link: i32, frame: &[u8]) -> Linked<'_> {
    let (mut direction, mut index, mut macs) = (None, None, None);
    let (mut ether_type, mut bytes) = match link {
        RAW | OLD_RAW | IPV4 | IPV6 => return Linked::Ip(Ip { bytes: frame, direction, index, macs }),
        ETHERNET => match frame.split_at_checked(ETHERNET_HEADER) {
            Some((header, rest)) => {
                macs = Some((mac(header, 6), mac(header, 0)));
                (u16_at(header, 12), rest)
            }
            None => return Linked::Cut,
        },
        LINUX_SLL => match frame.split_at_checked(SLL_HEADER) {
            Some((header, rest)) => {
                direction = Some(cooked(header[1]));
                (u16_at(header, 14), rest)
            }
            None => return Linked::Cut,
        },
        LINUX_SLL2 => match frame.split_at_checked(SLL2_HEADER) {
            Some((header, rest)) => {
                direction = Some(cooked(header[10]));
                index = Some(u32::from_be_bytes([header[4], header[5], header[6], header[7]]));
                (u16_at(header, 0), rest)
            }
            None => return Linked::Cut,
        },
        _ => return Linked::Foreign,
    };
    for _ in 0..MAX_TAGS {
        if VLAN_TAGS.contains(&ether_type) {
            let Some((tag, rest)) = bytes.split_at_checked(VLAN_TAG) else { return Linked::Cut };
            (ether_type, bytes) = (u16_at(tag, 2), rest);
        }
    }
    if ETH_P_MPLS.contains(&ether_type) {
        return match behind_labels(bytes) {
            Some(bytes) => Linked::Ip(Ip { bytes, direction, index, macs }),
            None => Linked::Unopened("MPLS that carries no IP"),
        };
    }
    if ether_type == ETH_P_PPPOE {
        return match behind_ppp(bytes) {
            Some(bytes) => Linked::Ip(Ip { bytes, direction, index, macs }),
            None => Linked::Other,
        };
    }
    match ether_type {
        ETH_P_IP | ETH_P_IPV6 => Linked::Ip(Ip { bytes, direction, index, macs }),
        other => match UNOPENED.iter().find(|(known, _)| *known == other) {
            Some((_, name)) => Linked::Unopened(name),
            None => Linked::Other,
        },
    }
}

/// The IP packet behind MPLS labels (RFC 3032): nothing names what is behind the last one, but IP begins with its version, and what
/// may carry Ethernet instead begins with a zero (RFC 4385).
fn behind_labels(mut bytes: &[u8]) -> Option<&[u8]> {
    for _ in 0..MAX_TAGS {
        let (label, rest) = bytes.split_at_checked(4)?;
        bytes = rest;
        let is_last = label[2] & 1 != 0;
        if is_last {
            return bytes.first().is_some_and(|first| matches!(first >> 4, 4 | 6)).then_some(bytes);
        }
    }
    None
}

/// The IP packet in a PPPoE session (RFC 2516): six bytes of its own, then PPP's number of the protocol.
fn behind_ppp(bytes: &[u8]) -> Option<&[u8]> {
    let (header, rest) = bytes.split_at_checked(8)?;
    matches!(u16_at(header, 6), 0x0021 | 0x0057).then_some(rest)
}

fn cooked(packet_type: u8) -> Direction {
    if packet_type == PACKET_OUTGOING { Direction::Egress } else { Direction::Ingress }
}

fn mac(bytes: &[u8], at: usize) -> Mac {
    [0, 1, 2, 3, 4, 5].map(|next| bytes[at + next])
}

/// A number in the order of networks.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
