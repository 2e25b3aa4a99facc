//! Is this packet the envelope of another? What mirrors and overlays put around frames: VXLAN (VPC Traffic Mirroring, Docker's
//! overlay), Geneve, GRE with ERSPAN, and IP in IP.

use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket};

use super::frame::{ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, u16_at};

/// UDP ports: VXLAN's of IANA and of Linux, and Geneve's.
const VXLAN_PORTS: [u16; 2] = [4789, 8472];
const GENEVE_PORT: u16 = 6081;
const UDP_HEADER: usize = 8;
/// Ports of tunnels that are not opened.
const UNOPENED: [(u16, &str); 5] =
    [(1_701, "L2TP"), (2_152, "GTP"), (4_500, "IPsec (ESP in UDP)"), (6_635, "MPLS in UDP"), (51_820, "WireGuard")];
/// RFC 7348, section 5: a flag says that there is a network's number. All else but the number is zero, so that it is known at other
/// ports, too (`docker swarm init --data-path-port`).
const VXLAN_HEADER: usize = 8;
const VXLAN_HAS_NUMBER: u8 = 0x08;
const VXLAN_ZEROS: [usize; 4] = [1, 2, 3, 7];
/// Ethernet addresses, and where behind them it says what follows.
const ETHERNET_HEADER: usize = 14;
const ETHERNET_TYPE: usize = 12;
/// RFC 8926, section 3.4.
const GENEVE_HEADER: usize = 8;
/// RFC 2784 and RFC 2890: flags, protocol, and up to three words that the flags announce.
const GRE_HEADER: usize = 4;
const GRE_CHECKSUM: u8 = 0x80;
const GRE_KEY: u8 = 0x20;
const GRE_SEQUENCE: u8 = 0x10;
const GRE_VERSION: u8 = 0x07;
/// EtherTypes of what is inside: a frame, and frames of ERSPAN (draft-foschiano-erspan-03) of the types I and II, and III.
const FRAME: u16 = 0x6558;
const ERSPAN: u16 = 0x88be;
const ERSPAN_III: u16 = 0x22eb;
const ERSPAN_HEADER: usize = 8;
const ERSPAN_III_HEADER: usize = 12;
/// One more header of 8 bytes follows.
const ERSPAN_III_MORE: u8 = 0x01;

/// What is in it.
pub enum Inside<'a> {
    /// An Ethernet frame.
    Frame {
        /// The tunnel, e.g. `vxlan 17`.
        tunnel: String,
        frame: &'a [u8],
    },
    /// An IP packet.
    Ip { tunnel: String, bytes: &'a [u8] },
    /// Something that is not opened, by name.
    Unopened(&'static str),
    /// It is no envelope.
    Nothing,
}

/// Opens an IP packet.
pub fn open(bytes: &[u8]) -> Inside<'_> {
    let Ok(sliced) = LaxSlicedPacket::from_ip(bytes) else { return Inside::Nothing };
    let payload = match &sliced.net {
        Some(LaxNetSlice::Ipv4(ip)) => ip.payload(),
        Some(LaxNetSlice::Ipv6(ip)) => ip.payload(),
        _ => return Inside::Nothing,
    };
    if payload.fragmented {
        return Inside::Nothing;
    }
    let inside = match payload.ip_number {
        IpNumber::UDP => udp(payload.payload),
        IpNumber::GRE => gre(payload.payload),
        IpNumber::IPV4 | IpNumber::IPV6 => Some(Inside::Ip { tunnel: "ipip".to_owned(), bytes: payload.payload }),
        IpNumber::ENCAPSULATING_SECURITY_PAYLOAD => Some(Inside::Unopened("IPsec (ESP)")),
        IpNumber::MPLS_IN_IP => Some(Inside::Unopened("MPLS")),
        _ => None,
    };
    inside.unwrap_or(Inside::Nothing)
}

fn udp(bytes: &[u8]) -> Option<Inside<'_>> {
    let (header, rest) = bytes.split_at_checked(UDP_HEADER)?;
    match u16_at(header, 2) {
        port if VXLAN_PORTS.contains(&port) => {
            let (header, frame) = rest.split_at_checked(VXLAN_HEADER)?;
            let has_number = header[0] & VXLAN_HAS_NUMBER != 0;
            has_number.then(|| Inside::Frame { tunnel: format!("vxlan {}", number(header)), frame })
        }
        GENEVE_PORT => {
            let (header, rest) = rest.split_at_checked(GENEVE_HEADER)?;
            // Two bits of version, then the length of the options in words.
            let (version, options) = (header[0] >> 6, usize::from(header[0] & 0x3f) * 4);
            let (kind, tunnel) = (u16_at(header, 2), format!("geneve {}", number(header)));
            inside(kind, tunnel, rest.get(options..).filter(|_| version == 0)?)
        }
        port if let Some((_, name)) = UNOPENED.iter().find(|(known, _)| *known == port) => Some(Inside::Unopened(name)),
        _ => {
            let (header, behind) = rest.split_at_checked(VXLAN_HEADER)?;
            if header[0] == VXLAN_HAS_NUMBER && VXLAN_ZEROS.iter().all(|at| header[*at] == 0) {
                let tunnel = format!("vxlan {}", number(header));
                return carries_ip(behind).then_some(Inside::Frame { tunnel, frame: behind });
            }
            let is_geneve = header[0] >> 6 == 0 && header[1] == 0 && u16_at(header, 2) == FRAME && header[7] == 0;
            let frame = behind.get(usize::from(header[0] & 0x3f) * 4..).filter(|_| is_geneve)?;
            carries_ip(frame).then(|| Inside::Frame { tunnel: format!("geneve {}", number(header)), frame })
        }
    }
}

/// Is this an Ethernet frame with IP in it? Asked where only its header tells that an envelope is one.
fn carries_ip(frame: &[u8]) -> bool {
    frame.len() >= ETHERNET_HEADER && matches!(u16_at(frame, ETHERNET_TYPE), ETH_P_IP | ETH_P_IPV6 | ETH_P_8021Q)
}

/// The number of a virtual network, which stands at the same place in both.
fn number(header: &[u8]) -> u32 {
    u32::from_be_bytes([0, header[4], header[5], header[6]])
}

fn gre(bytes: &[u8]) -> Option<Inside<'_>> {
    let (header, mut rest) = bytes.split_at_checked(GRE_HEADER)?;
    let (flags, kind) = (header[0], u16_at(header, 2));
    if header[1] & GRE_VERSION != 0 {
        return Some(Inside::Unopened("GRE of PPTP"));
    }
    for flag in [GRE_CHECKSUM, GRE_KEY, GRE_SEQUENCE] {
        if flags & flag != 0 {
            rest = rest.get(4..)?;
        }
    }
    let erspan = |frame| Inside::Frame { tunnel: "erspan".to_owned(), frame };
    match kind {
        // Type I has neither a sequence number nor a header of its own.
        ERSPAN if flags & GRE_SEQUENCE == 0 => Some(erspan(rest)),
        ERSPAN => Some(erspan(rest.get(ERSPAN_HEADER..)?)),
        ERSPAN_III => {
            let (header, rest) = rest.split_at_checked(ERSPAN_III_HEADER)?;
            let more = if header[ERSPAN_III_HEADER - 1] & ERSPAN_III_MORE != 0 { 8 } else { 0 };
            Some(erspan(rest.get(more..)?))
        }
        _ => inside(kind, "gre".to_owned(), rest).or(Some(Inside::Unopened("GRE"))),
    }
}

fn inside(kind: u16, tunnel: String, bytes: &[u8]) -> Option<Inside<'_>> {
    match kind {
        FRAME => Some(Inside::Frame { tunnel, frame: bytes }),
        ETH_P_IP | ETH_P_IPV6 => Some(Inside::Ip { tunnel, bytes }),
        _ => None,
    }
}
