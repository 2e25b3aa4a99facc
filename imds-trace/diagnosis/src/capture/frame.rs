//! What does a captured frame hold of a packet to or from IMDS? Its headers, and what was kept of its payload.

use std::net::IpAddr;

use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket, TransportSlice};

use crate::net::{Direction, Endpoint, Flow, Heading, Ttl};
use crate::observation::{Icmp, Tcp, TcpFlags};

/// Link types, tcpdump.org/linktypes.html.
const ETHERNET: i32 = 1;
const RAW: i32 = 101;
/// What raw IP was in old files.
const OLD_RAW: i32 = 12;
const LINUX_SLL: i32 = 113;
const IPV4: i32 = 228;
const IPV6: i32 = 229;
const LINUX_SLL2: i32 = 276;

/// EtherTypes.
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const VLAN_TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
/// VLAN tags of a frame at most; 802.1ad allows two.
const MAX_VLAN_TAGS: usize = 2;

/// Lengths of headers.
const ETHERNET_HEADER: usize = 14;
const SLL_HEADER: usize = 16;
const SLL2_HEADER: usize = 20;
const VLAN_TAG: usize = 4;
/// Cooked captures' word for what this machine sent.
const PACKET_OUTGOING: u8 = 4;

/// ICMP types that say that a packet went no further: destination unreachable and time exceeded (RFC 792, RFC 4443). The kernel half
/// looks at the same.
const ICMP_ERRORS: [u8; 2] = [3, 11];
const ICMPV6_ERRORS: [u8; 2] = [1, 3];
/// What an ICMP error quotes of a TCP header at least: ports and sequence number.
const QUOTED: usize = 8;

/// What is behind the link layer.
pub enum Linked<'a> {
    /// An IP packet.
    Ip(Ip<'a>),
    /// Something else, or too little of it.
    Other,
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
}

/// How a person calls a link type.
pub fn link_name(link: i32) -> &'static str {
    match link {
        ETHERNET => "ethernet",
        RAW | OLD_RAW => "raw",
        LINUX_SLL => "linux_sll",
        LINUX_SLL2 => "linux_sll2",
        IPV4 => "ipv4",
        IPV6 => "ipv6",
        _ => "other",
    }
}

/// Does a frame of this link type say which way it passed?
pub fn says_direction(link: i32) -> bool {
    matches!(link, LINUX_SLL | LINUX_SLL2)
}

/// Takes off the link layer's header.
pub fn link(link: i32, frame: &[u8]) -> Linked<'_> {
    let (ether_type, bytes, direction, index) = match link {
        RAW | OLD_RAW | IPV4 | IPV6 => return Linked::Ip(Ip { bytes: frame, direction: None, index: None }),
        ETHERNET => match frame.get(..ETHERNET_HEADER) {
            Some(header) => (u16_at(header, 12), &frame[ETHERNET_HEADER..], None, None),
            None => return Linked::Other,
        },
        LINUX_SLL => match frame.get(..SLL_HEADER) {
            Some(header) => (u16_at(header, 14), &frame[SLL_HEADER..], Some(cooked(header[1])), None),
            None => return Linked::Other,
        },
        LINUX_SLL2 => match frame.get(..SLL2_HEADER) {
            Some(header) => {
                let index = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                (u16_at(header, 0), &frame[SLL2_HEADER..], Some(cooked(header[10])), Some(index))
            }
            None => return Linked::Other,
        },
        _ => return Linked::Foreign,
    };
    let (mut ether_type, mut bytes) = (ether_type, bytes);
    for _ in 0..MAX_VLAN_TAGS {
        if VLAN_TAGS.contains(&ether_type) && bytes.len() >= VLAN_TAG {
            (ether_type, bytes) = (u16_at(bytes, 2), &bytes[VLAN_TAG..]);
        }
    }
    match ether_type {
        ETH_P_IP | ETH_P_IPV6 => Linked::Ip(Ip { bytes, direction, index }),
        _ => Linked::Other,
    }
}

fn cooked(packet_type: u8) -> Direction {
    if packet_type == PACKET_OUTGOING { Direction::Egress } else { Direction::Ingress }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// A packet.
pub enum Packet<'a> {
    /// One to or from an endpoint, or an error about one.
    Seen(Seen<'a>),
    /// Another.
    Other,
    /// One of those, of which too little was kept.
    Cut,
}

/// The fields of an observation of the same names.
pub struct Seen<'a> {
    pub heading: Heading,
    pub flow: Flow,
    pub ttl: Ttl,
    pub ip_id: u16,
    pub protocol: u8,
    pub tcp: Option<Tcp>,
    pub icmp: Option<Icmp>,
    /// What was kept of it.
    pub payload: &'a [u8],
}

/// An IP header and what is behind it.
struct Network<'a> {
    source: IpAddr,
    destination: IpAddr,
    ttl: Ttl,
    id: u16,
    protocol: IpNumber,
    is_fragment: bool,
    /// What was kept behind the header.
    payload: &'a [u8],
    /// Bytes that there were.
    length: usize,
}

/// Reads an IP packet.
pub fn packet(bytes: &[u8], is_endpoint: impl Fn(IpAddr) -> bool) -> Packet<'_> {
    let Ok(sliced) = LaxSlicedPacket::from_ip(bytes) else { return Packet::Other };
    let Some(network) = network(&sliced, bytes) else { return Packet::Other };
    let is_icmp = network.protocol == IpNumber::ICMP || network.protocol == IpNumber::IPV6_ICMP;
    if is_icmp && let Some(error) = error(&sliced, &network, &is_endpoint) {
        return Packet::Seen(error);
    }
    let heading = if is_endpoint(network.destination) {
        Heading::ToImds
    } else if is_endpoint(network.source) {
        Heading::FromImds
    } else {
        return Packet::Other;
    };
    if network.is_fragment {
        return Packet::Other;
    }
    if network.protocol != IpNumber::TCP {
        return no_tcp(&network, heading, is_icmp);
    }
    let Some(TransportSlice::Tcp(segment)) = &sliced.transport else { return Packet::Cut };
    let header = segment.header_slice();
    let tcp = Tcp {
        seq: segment.sequence_number(),
        ack: segment.acknowledgment_number(),
        flags: TcpFlags(header[13]),
        len: network.length.saturating_sub(header.len()) as u32,
    };
    let flow = Flow {
        source: Endpoint { address: network.source, port: segment.source_port() },
        destination: Endpoint { address: network.destination, port: segment.destination_port() },
    };
    let payload = segment.payload();
    Packet::Seen(Seen {
        heading,
        flow,
        ttl: network.ttl,
        ip_id: network.id,
        protocol: network.protocol.0,
        tcp: Some(tcp),
        icmp: None,
        payload: &payload[..payload.len().min(tcp.len as usize)],
    })
}

/// A packet of another protocol, of which no more is asked than that it was there.
fn no_tcp<'a>(network: &Network<'a>, heading: Heading, is_icmp: bool) -> Packet<'a> {
    let two = |at: usize| network.payload.get(at..at + 2).map_or(0, |bytes| u16_at(bytes, 0));
    // As the kernel half does: type and code of ICMP stand where others have their port.
    let (source_port, destination_port) = if is_icmp { (0, two(0)) } else { (two(0), two(2)) };
    Packet::Seen(Seen {
        heading,
        flow: Flow {
            source: Endpoint { address: network.source, port: source_port },
            destination: Endpoint { address: network.destination, port: destination_port },
        },
        ttl: network.ttl,
        ip_id: network.id,
        protocol: network.protocol.0,
        tcp: None,
        icmp: None,
        payload: &[],
    })
}

fn network<'a>(sliced: &LaxSlicedPacket<'a>, bytes: &[u8]) -> Option<Network<'a>> {
    let (network, payload, declared) = match sliced.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            let payload = ip.payload();
            let network = Network {
                source: IpAddr::V4(header.source_addr()),
                destination: IpAddr::V4(header.destination_addr()),
                ttl: Ttl(header.ttl()),
                id: header.identification(),
                protocol: payload.ip_number,
                is_fragment: payload.fragmented,
                payload: payload.payload,
                length: 0,
            };
            (network, payload, usize::from(header.total_len()))
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            let payload = ip.payload();
            let network = Network {
                source: IpAddr::V6(header.source_addr()),
                destination: IpAddr::V6(header.destination_addr()),
                ttl: Ttl(header.hop_limit()),
                id: 0,
                protocol: payload.ip_number,
                is_fragment: payload.fragmented,
                payload: payload.payload,
                length: 0,
            };
            (network, payload, header.slice().len() + usize::from(header.payload_length()))
        }
        _ => return None,
    };
    // What is before the payload was kept whole, or there would be none.
    let before = bytes.len().saturating_sub(payload.payload.len());
    let length = if payload.incomplete { declared.saturating_sub(before) } else { payload.payload.len() };
    Some(Network { length, ..network })
}

/// An ICMP error that quotes a packet to an endpoint.
fn error<'a>(
    sliced: &LaxSlicedPacket<'a>,
    outer: &Network<'a>,
    is_endpoint: impl Fn(IpAddr) -> bool,
) -> Option<Seen<'a>> {
    let (kind, code, quoted) = match sliced.transport.as_ref()? {
        TransportSlice::Icmpv4(icmp) if ICMP_ERRORS.contains(&icmp.type_u8()) => {
            (icmp.type_u8(), icmp.code_u8(), icmp.payload())
        }
        TransportSlice::Icmpv6(icmp) if ICMPV6_ERRORS.contains(&icmp.type_u8()) => {
            (icmp.type_u8(), icmp.code_u8(), icmp.payload())
        }
        _ => return None,
    };
    let inner_packet = LaxSlicedPacket::from_ip(quoted).ok()?;
    let inner = network(&inner_packet, quoted)?;
    if inner.protocol != IpNumber::TCP || inner.is_fragment || !is_endpoint(inner.destination) {
        return None;
    }
    let tcp = inner.payload.get(..QUOTED)?;
    let end = |address, at| Endpoint { address, port: u16_at(tcp, at) };
    Some(Seen {
        heading: Heading::FromImds,
        flow: Flow { source: end(inner.destination, 2), destination: end(inner.source, 0) },
        ttl: outer.ttl,
        ip_id: outer.id,
        protocol: inner.protocol.0,
        tcp: Some(Tcp {
            seq: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
            ack: 0,
            flags: TcpFlags(0),
            len: 0,
        }),
        icmp: Some(Icmp { kind, code, sender: outer.source }),
        payload: &[],
    })
}
