//! What did a packet look like at a place? Its headers made anew from what was observed of it.

use std::net::IpAddr;

use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv6Header, TcpHeader};

use crate::journey::Journey;
use crate::net::{Endpoint, Heading, Ttl};
use crate::observation::{Head, Icmp, Tcp};

/// A window was not observed; one that is not closed draws no attention.
const WINDOW: u16 = u16::MAX;
/// The beginning of a TCP header, which an ICMP error quotes at least.
const QUOTED: usize = 8;
/// The quoted packet's own TTL was not observed.
const QUOTED_TTL: Ttl = Ttl(64);

/// A packet, cut off where nothing more is kept.
pub struct Packet {
    /// From its IP header on.
    pub bytes: Vec<u8>,
    /// Bytes that it had, without TCP options.
    pub length: u32,
}

/// The packet of a journey where its client stood in it as `client`, with this TTL.
pub fn packet(journey: &Journey, client: Endpoint, ttl: Ttl) -> Packet {
    let endpoint = journey.connection.endpoint;
    if let Some(icmp) = journey.icmp {
        return error(journey, icmp, client, ttl);
    }
    let (source, destination) = match journey.heading {
        Heading::ToImds => (client, endpoint),
        Heading::FromImds => (endpoint, client),
    };
    let tcp = tcp_header(source, destination, journey.tcp);
    let payload = journey.tcp.len as usize;
    let mut bytes =
        ip_header(source.address, destination.address, IpNumber::TCP, ttl, journey.ip_id, tcp.len() + payload);
    bytes.extend(tcp);
    let length = (bytes.len() + payload) as u32;
    let mut line = line(journey);
    line.truncate(payload);
    bytes.extend(line);
    Packet { bytes, length }
}

/// The request or status line, as far as it is kept.
fn line(journey: &Journey) -> Vec<u8> {
    let line = journey.heads.iter().find_map(|head| match head {
        Head::Request(head) => Some(format!("{} {} HTTP/1.1\r\n", head.method, head.path)),
        Head::Response(head) => Some(format!("HTTP/1.1 {} \r\n", head.status)),
        Head::Token(_) => None,
    });
    line.unwrap_or_default().into_bytes()
}

fn tcp_header(source: Endpoint, destination: Endpoint, tcp: Tcp) -> Vec<u8> {
    let mut header = TcpHeader::new(source.port, destination.port, tcp.seq, WINDOW);
    header.acknowledgment_number = tcp.ack;
    header = with_flags(header, tcp);
    if tcp.len == 0 {
        // Of a payload that is not here no checksum can be made.
        let checksum = match (source.address, destination.address) {
            (IpAddr::V4(from), IpAddr::V4(to)) => header.calc_checksum_ipv4_raw(from.octets(), to.octets(), &[]),
            (IpAddr::V6(from), IpAddr::V6(to)) => header.calc_checksum_ipv6_raw(from.octets(), to.octets(), &[]),
            _ => Ok(0),
        };
        header.checksum = checksum.unwrap_or_default();
    }
    header.to_bytes().to_vec()
}

fn with_flags(header: TcpHeader, tcp: Tcp) -> TcpHeader {
    let has = |flag| tcp.flags.has(flag);
    TcpHeader {
        fin: has(0x01),
        syn: has(0x02),
        rst: has(0x04),
        psh: has(0x08),
        ack: has(0x10),
        urg: has(0x20),
        ece: has(0x40),
        cwr: has(0x80),
        ..header
    }
}

/// `payload`: bytes behind it. A longer one than the field can say is 0 there, as the kernel writes it.
fn ip_header(source: IpAddr, destination: IpAddr, protocol: IpNumber, ttl: Ttl, id: u16, payload: usize) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = Ipv4Header {
                total_len: u16::try_from(payload + Ipv4Header::MIN_LEN).unwrap_or_default(),
                identification: id,
                dont_fragment: true,
                time_to_live: ttl.0,
                protocol,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv4Header::default()
            };
            header.header_checksum = header.calc_header_checksum();
            header.to_bytes().to_vec()
        }
        (source, destination) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            let header = Ipv6Header {
                payload_length: u16::try_from(payload).unwrap_or_default(),
                next_header: protocol,
                hop_limit: ttl.0,
                source: octets(source),
                destination: octets(destination),
                ..Ipv6Header::default()
            };
            header.to_bytes().to_vec()
        }
    }
}

/// An ICMP error about a packet of the client's.
fn error(journey: &Journey, icmp: Icmp, client: Endpoint, ttl: Ttl) -> Packet {
    let endpoint = journey.connection.endpoint;
    let (from, to) = (icmp.sender, client.address);
    let tcp = tcp_header(client, endpoint, journey.tcp);
    let mut quoted = ip_header(client.address, endpoint.address, IpNumber::TCP, QUOTED_TTL, 0, tcp.len());
    quoted.extend(&tcp[..QUOTED]);
    let Icmp { kind: type_u8, code: code_u8, .. } = icmp;
    let unused = [0; 4];
    let (protocol, header) = match (from, to) {
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let kind = Icmpv6Type::Unknown { type_u8, code_u8, bytes5to8: unused };
            let header = Icmpv6Header::with_checksum(kind, from.octets(), to.octets(), &quoted);
            (IpNumber::IPV6_ICMP, header.unwrap_or_else(|_| Icmpv6Header::new(kind)).to_bytes().to_vec())
        }
        _ => {
            let kind = Icmpv4Type::Unknown { type_u8, code_u8, bytes5to8: unused };
            (IpNumber::ICMP, Icmpv4Header::with_checksum(kind, &quoted).to_bytes().to_vec())
        }
    };
    let mut bytes = ip_header(from, to, protocol, ttl, journey.ip_id, header.len() + quoted.len());
    bytes.extend(header);
    bytes.extend(quoted);
    Packet { length: bytes.len() as u32, bytes }
}
