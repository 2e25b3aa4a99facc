//! What does a captured IP packet hold of what goes to or comes from IMDS? Its headers, and what was kept of its payload.

use std::net::IpAddr;

use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket, TransportSlice};

use super::frame::u16_at;
use crate::net::{Endpoint, Flow, Heading, Ttl};
use crate::observation::{Icmp, Tcp, TcpFlags};

/// ICMP types that say that a packet went no further: destination unreachable and time exceeded (RFC 792, RFC 4443). The kernel half
/// looks at the same.
const ICMP_ERRORS: [u8; 2] = [3, 11];
const ICMPV6_ERRORS: [u8; 2] = [1, 3];
/// What an ICMP error quotes of a TCP header at least: ports and sequence number.
const QUOTED: usize = 8;
/// A TCP header up to its flags: what is behind them is not asked for.
const UP_TO_FLAGS: usize = 14;
/// Words of a TCP header without options.
const MIN_TCP_WORDS: usize = 5;
/// The whole of it, without extensions.
const IPV6_HEADER: usize = 40;

/// A packet.
pub enum Packet<'a> {
    /// One to or from an endpoint, or an error about one.
    Seen(Seen<'a>),
    /// Another.
    Other,
    /// A part of one of those.
    Fragment,
    /// One of those, of which too little was kept.
    Cut,
    /// Too little was kept to see whose it is.
    Nameless,
}

/// The fields of an observation of the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    pub heading: Heading,
    pub flow: Flow,
    pub ttl: Ttl,
    pub ip_id: u16,
    pub protocol: u8,
    pub tcp: Option<Tcp>,
    pub icmp: Option<Icmp>,
}

/// A packet to or from IMDS.
#[derive(Debug)]
pub struct Seen<'a> {
    pub headers: Headers,
    /// What was kept of what it carries.
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

impl Network<'_> {
    /// What is known of every packet.
    fn headers(&self) -> Headers {
        let end = |address| Endpoint { address, port: 0 };
        Headers {
            heading: Heading::ToImds,
            flow: Flow { source: end(self.source), destination: end(self.destination) },
            ttl: self.ttl,
            ip_id: self.id,
            protocol: self.protocol.0,
            tcp: None,
            icmp: None,
        }
    }
}

/// Reads an IP packet.
pub fn packet(bytes: &[u8], is_endpoint: impl Fn(IpAddr) -> bool) -> Packet<'_> {
    let Ok(sliced) = LaxSlicedPacket::from_ip(bytes) else {
        return if is_cut(bytes) { Packet::Nameless } else { Packet::Other };
    };
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
        return Packet::Fragment;
    }
    if network.protocol != IpNumber::TCP {
        return no_tcp(&network, heading, is_icmp);
    }
    let Some(Segment { flow, tcp, payload }) = segment(&network) else { return Packet::Cut };
    let headers = Headers { heading, flow, tcp: Some(tcp), icmp: None, ..network.headers() };
    Packet::Seen(Seen { headers, payload })
}

/// A TCP segment.
struct Segment<'a> {
    flow: Flow,
    tcp: Tcp,
    payload: &'a [u8],
}

/// Reads a segment's header, whose options may be cut off (`tcpdump -s 64`), and what was kept behind it.
fn segment<'a>(network: &Network<'a>) -> Option<Segment<'a>> {
    let header = network.payload.get(..UP_TO_FLAGS)?;
    // Its length is in words of four bytes; without options it has five.
    let length = usize::from(header[12] >> 4).max(MIN_TCP_WORDS) * 4;
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let tcp = Tcp {
        seq: number(4),
        ack: number(8),
        flags: TcpFlags(header[13]),
        len: network.length.saturating_sub(length) as u32,
    };
    let flow = Flow {
        source: Endpoint { address: network.source, port: u16_at(header, 0) },
        destination: Endpoint { address: network.destination, port: u16_at(header, 2) },
    };
    let payload = network.payload.get(length..).unwrap_or_default();
    Some(Segment { flow, tcp, payload: &payload[..payload.len().min(tcp.len as usize)] })
}

/// Is an IP packet cut off in its header?
fn is_cut(bytes: &[u8]) -> bool {
    match bytes.first().map(|first| (first >> 4, first & 0xf)) {
        None => true,
        Some((4, words)) => bytes.len() < usize::from(words) * 4,
        Some((6, _)) => bytes.len() < IPV6_HEADER,
        Some(_) => false,
    }
}

/// A packet of another protocol, of which no more is asked than that it was there.
fn no_tcp<'a>(network: &Network<'a>, heading: Heading, is_icmp: bool) -> Packet<'a> {
    let two = |at: usize| network.payload.get(at..at + 2).map_or(0, |bytes| u16_at(bytes, 0));
    // As the kernel half does: type and code of ICMP stand where others have their port.
    let (source_port, destination_port) = if is_icmp { (0, two(0)) } else { (two(0), two(2)) };
    let flow = Flow {
        source: Endpoint { address: network.source, port: source_port },
        destination: Endpoint { address: network.destination, port: destination_port },
    };
    Packet::Seen(Seen { headers: Headers { heading, flow, ..network.headers() }, payload: &[] })
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
    let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    let headers = Headers {
        heading: Heading::FromImds,
        flow: Flow { source: end(inner.destination, 2), destination: end(inner.source, 0) },
        protocol: inner.protocol.0,
        tcp: Some(Tcp { seq, ack: 0, flags: TcpFlags(0), len: 0 }),
        icmp: Some(Icmp { kind, code, sender: outer.source }),
        ..outer.headers()
    };
    Some(Seen { headers, payload: &[] })
}
