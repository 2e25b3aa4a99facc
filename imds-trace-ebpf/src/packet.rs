//! What do a packet's headers say? Bounds-checked reads of VLAN tags, IPv4, IPv6 with extension headers, and TCP.
//!
//! The same parser reads a packet at a tc hook and a packet being freed: only where the bytes come from differs ([`Bytes`]).

use aya_ebpf::{
    bindings::{__sk_buff, bpf_hdr_start_off},
    helpers::{
        bpf_probe_read_kernel_buf,
        generated::{bpf_skb_load_bytes, bpf_skb_load_bytes_relative},
    },
};
use imds_trace_ebpf::record::Network;

use crate::{global, redirect};

pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_IPV6: u16 = 0x86dd;
pub const ETH_P_8021Q: u16 = 0x8100;
pub const ETH_P_8021AD: u16 = 0x88a8;

const IPPROTO_HOPOPTS: u8 = 0;
pub const IPPROTO_ICMP: u8 = 1;
pub const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_FRAGMENT: u8 = 44;
const IPPROTO_AH: u8 = 51;
pub const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_DSTOPTS: u8 = 60;

/// TCP flags: a packet with the first alone of these opens a connection.
pub const SYN: u8 = 0x02;
pub const SYN_ACK_RST_FIN: u8 = 0x17;
/// A SYN is no longer than two full headers and an IPv6 header: what is longer need not be looked at.
const LONGEST_SYN: u32 = 120;

/// Where sequence and acknowledgement number stand in a TCP header.
const TCP_NUMBERS: u32 = 4;
/// ICMP types that say that a packet went no further: destination unreachable and time exceeded (RFC 792, RFC 4443).
const ICMP_UNREACHABLE: u8 = 3;
const ICMP_TIME_EXCEEDED: u8 = 11;
const ICMPV6_UNREACHABLE: u8 = 1;
const ICMPV6_TIME_EXCEEDED: u8 = 3;
/// An ICMP header, behind which the packet it is about is quoted.
const ICMP_HEADER: u32 = 8;

/// Most VLAN tags in the payload; the outermost is in the skb's metadata. 802.1ad allows two.
const MAX_VLAN_TAGS: u32 = 2;
/// Most IPv6 extension headers followed. RFC 8200 lists seven kinds, four of which can stand in a packet we can read.
const MAX_EXTENSIONS: u32 = 6;

/// Bytes of one packet, counted from its network header.
pub trait Bytes {
    /// Fills `to` from `offset`; `None` where the packet has no such bytes. In place, for the sake of the stack.
    fn read<const N: usize>(&self, offset: u32, to: &mut [u8; N]) -> Option<()>;
}

/// A packet at a tc hook.
pub struct Skb(pub *mut __sk_buff);

/// Bytes before the network header, most likely first: Ethernet, a device without link layer (tun, WireGuard), Ethernet with one
/// or two VLAN tags in front of the packet.
const LINK_LAYERS: [u32; 4] = [14, 0, 18, 22];

impl Bytes for Skb {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32, to: &mut [u8; N]) -> Option<()> {
        // Relative to the network header, whatever lies before it. Sees the linear part only, in which the kernel keeps headers;
        // if it does not, the other helper finds them, for Ethernet.
        // SAFETY: `to` has room for N bytes, which the verifier proves.
        let result = unsafe {
            bpf_skb_load_bytes_relative(
                self.0.cast(),
                offset,
                to.as_mut_ptr().cast(),
                N as u32,
                bpf_hdr_start_off::BPF_HDR_START_NET,
            )
        };
        (result == 0 || self.load(LINK_LAYERS[0] + offset, to.as_mut_ptr(), N as u32)).then_some(())
    }
}

impl Skb {
    /// Copies `len` payload bytes to `to`; says whether the packet had them. The payload mostly lies outside of the linear part,
    /// where only offsets from the packet's beginning reach: the link layer's length is found by looking for the TCP numbers.
    #[inline(always)]
    pub fn read_payload(&self, parsed: &Parsed, to: *mut u8, len: u32) -> bool {
        for link_layer in LINK_LAYERS {
            let mut numbers = [0u8; 8];
            let at = link_layer + parsed.transport_offset + TCP_NUMBERS;
            if self.load(at, numbers.as_mut_ptr(), 8)
                && u32::from_be(word(&numbers, 0)) == parsed.network.seq
                && u32::from_be(word(&numbers, 4)) == parsed.network.ack
            {
                return self.load(link_layer + parsed.payload_offset, to, len);
            }
        }
        false
    }

    #[inline(always)]
    fn load(&self, offset: u32, to: *mut u8, len: u32) -> bool {
        // SAFETY: the verifier proves that `to` has room for `len` bytes.
        unsafe { bpf_skb_load_bytes(self.0.cast(), offset, to.cast(), len) == 0 }
    }
}

/// A packet somewhere in kernel memory; the address of its network header.
pub struct Kernel(pub *const u8);

impl Bytes for Kernel {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32, to: &mut [u8; N]) -> Option<()> {
        // SAFETY: the helper fails on an address that cannot be read. What lies behind the packet's end may be read, as bytes
        // that no header claims: `parse` believes lengths only from headers inside the fixed parts.
        unsafe { bpf_probe_read_kernel_buf(self.0.wrapping_add(offset as usize), to) }.ok()
    }
}

/// An IMDS packet's headers. Offsets count from the network header.
///
/// Filled in place: the BPF stack holds 512 bytes, which copies of this would use up.
#[derive(Default)]
pub struct Parsed {
    pub network: Network,
    /// Where the transport header begins.
    pub transport_offset: u32,
    /// Where the payload begins.
    pub payload_offset: u32,
    /// Who sent the ICMP error that quotes `network`; for such an error alone.
    pub sender: [u8; 16],
    /// ICMP type; 0 if this is no ICMP error (the type 0 is none).
    pub icmp_type: u8,
    /// ICMP code.
    pub icmp_code: u8,
}

/// Reads `bytes` into `parsed` if it is a packet to or from a watched endpoint, else `None`. `ethertype` in host order. Leaves
/// as early as it can.
#[inline(always)]
pub fn parse(bytes: &impl Bytes, ethertype: u16, parsed: &mut Parsed) -> Option<()> {
    let mut ethertype = ethertype;
    let mut start = 0;
    for _ in 0..MAX_VLAN_TAGS {
        if ethertype != ETH_P_8021Q && ethertype != ETH_P_8021AD {
            break;
        }
        // Whether the network header is said to begin at the tag or behind it depends on who made the packet: a tag left behind
        // after the outer one was taken off, or a packet socket.
        if let Some(found) = ip_here(bytes, start) {
            ethertype = found;
            break;
        }
        let mut tag = [0u8; 4];
        bytes.read(start, &mut tag)?;
        ethertype = u16::from_be_bytes([tag[2], tag[3]]);
        start += 4;
    }
    match ethertype {
        ETH_P_IP => parse_v4(bytes, start, parsed),
        ETH_P_IPV6 => parse_v6(bytes, start, parsed),
        _ => None,
    }
}

/// The ethertype, if an IP header to or from a watched endpoint begins at `start`.
#[inline(always)]
fn ip_here(bytes: &impl Bytes, start: u32) -> Option<u16> {
    let mut version = [0u8; 1];
    bytes.read(start, &mut version)?;
    if version[0] >> 4 == 4 {
        let mut v4 = [0u8; 8];
        bytes.read(start + 12, &mut v4)?;
        (global::is_endpoint_v4(word(&v4, 0)) || global::is_endpoint_v4(word(&v4, 4))).then_some(ETH_P_IP)
    } else if version[0] >> 4 == 6 {
        let mut addresses = [0u8; 32];
        bytes.read(start + 8, &mut addresses)?;
        let source = [word(&addresses, 0), word(&addresses, 4), word(&addresses, 8), word(&addresses, 12)];
        let destination = [word(&addresses, 16), word(&addresses, 20), word(&addresses, 24), word(&addresses, 28)];
        (global::is_endpoint_v6(&source) || global::is_endpoint_v6(&destination)).then_some(ETH_P_IPV6)
    } else {
        None
    }
}

#[inline(always)]
fn parse_v4(bytes: &impl Bytes, start: u32, parsed: &mut Parsed) -> Option<()> {
    let mut ip = [0u8; 20];
    bytes.read(start, &mut ip)?;
    if !global::is_endpoint_v4(word(&ip, 16)) && !global::is_endpoint_v4(word(&ip, 12)) {
        return match ip[9] {
            IPPROTO_ICMP => error_v4(bytes, start, &ip, parsed),
            IPPROTO_TCP => redirected_v4(bytes, start, &ip, parsed),
            _ => None,
        };
    }
    if ip[0] >> 4 != 4 || ip[0] & 0xf < 5 {
        return None;
    }
    let header_len = u32::from(ip[0] & 0xf) * 4;
    let total_len = u32::from(u16::from_be_bytes([ip[2], ip[3]]));
    let network = &mut parsed.network;
    network.version = 4;
    network.ttl = ip[8];
    network.protocol = ip[9];
    network.ip_id = u16::from_be_bytes([ip[4], ip[5]]);
    network.later_fragment = u8::from(u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff != 0);
    network.source[..4].copy_from_slice(&ip[12..16]);
    network.destination[..4].copy_from_slice(&ip[16..20]);
    transport(bytes, parsed, start, header_len, total_len);
    Some(())
}

#[inline(always)]
fn parse_v6(bytes: &impl Bytes, start: u32, parsed: &mut Parsed) -> Option<()> {
    let mut ip = [0u8; 40];
    bytes.read(start, &mut ip)?;
    let source = [word(&ip, 8), word(&ip, 12), word(&ip, 16), word(&ip, 20)];
    let destination = [word(&ip, 24), word(&ip, 28), word(&ip, 32), word(&ip, 36)];
    if !global::is_endpoint_v6(&destination) && !global::is_endpoint_v6(&source) {
        return match ip[6] {
            IPPROTO_ICMPV6 => error_v6(bytes, start, &ip, parsed),
            IPPROTO_TCP => redirected_v6(bytes, start, &ip, parsed),
            _ => None,
        };
    }
    if ip[0] >> 4 != 6 {
        return None;
    }
    let network = &mut parsed.network;
    network.version = 6;
    network.ttl = ip[7];
    network.source.copy_from_slice(&ip[8..24]);
    network.destination.copy_from_slice(&ip[24..40]);
    let total_len = 40 + u32::from(u16::from_be_bytes([ip[4], ip[5]]));
    let mut next = ip[6];
    let mut offset = 40u32;
    for _ in 0..MAX_EXTENSIONS {
        match next {
            IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS => {
                let mut extension = [0u8; 2];
                bytes.read(start + offset, &mut extension)?;
                next = extension[0];
                offset += (u32::from(extension[1]) + 1) * 8;
            }
            IPPROTO_AH => {
                let mut extension = [0u8; 2];
                bytes.read(start + offset, &mut extension)?;
                next = extension[0];
                offset += (u32::from(extension[1]) + 2) * 4;
            }
            IPPROTO_FRAGMENT => {
                let mut extension = [0u8; 8];
                bytes.read(start + offset, &mut extension)?;
                next = extension[0];
                network.ip_id = u16::from_be_bytes([extension[6], extension[7]]);
                if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0 {
                    network.later_fragment = 1;
                }
                offset += 8;
            }
            _ => break,
        }
    }
    network.protocol = next;
    transport(bytes, parsed, start, offset, total_len);
    Some(())
}

/// The SYN of a connection to a watched endpoint that goes elsewhere.
#[inline(always)]
fn redirected_v4(bytes: &impl Bytes, start: u32, ip: &[u8; 20], parsed: &mut Parsed) -> Option<()> {
    let total_len = u32::from(u16::from_be_bytes([ip[2], ip[3]]));
    if total_len > LONGEST_SYN || u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff != 0 {
        return None;
    }
    redirected_syn(bytes, start + u32::from(ip[0] & 0xf) * 4, parsed)?;
    let network = &mut parsed.network;
    network.version = 4;
    network.ttl = ip[8];
    network.ip_id = u16::from_be_bytes([ip[4], ip[5]]);
    network.source[..4].copy_from_slice(&ip[12..16]);
    network.destination[..4].copy_from_slice(&ip[16..20]);
    Some(())
}

/// The same for IPv6.
#[inline(always)]
fn redirected_v6(bytes: &impl Bytes, start: u32, ip: &[u8; 40], parsed: &mut Parsed) -> Option<()> {
    if 40 + u32::from(u16::from_be_bytes([ip[4], ip[5]])) > LONGEST_SYN {
        return None;
    }
    redirected_syn(bytes, start + 40, parsed)?;
    let network = &mut parsed.network;
    network.version = 6;
    network.ttl = ip[7];
    network.source.copy_from_slice(&ip[8..24]);
    network.destination.copy_from_slice(&ip[24..40]);
    Some(())
}

#[inline(always)]
fn redirected_syn(bytes: &impl Bytes, at: u32, parsed: &mut Parsed) -> Option<()> {
    let mut tcp = [0u8; 14];
    bytes.read(at, &mut tcp)?;
    if tcp[13] & SYN_ACK_RST_FIN != SYN {
        return None;
    }
    let (isn, source_port) = (u32::from_be(word(&tcp, 4)), u16::from_be_bytes([tcp[0], tcp[1]]));
    if !redirect::is_known(isn, source_port) {
        return None;
    }
    let network = &mut parsed.network;
    network.protocol = IPPROTO_TCP;
    network.source_port = source_port;
    network.destination_port = u16::from_be_bytes([tcp[2], tcp[3]]);
    network.seq = isn;
    network.tcp_flags = tcp[13];
    network.redirected = 1;
    Some(())
}

/// An ICMP error that quotes a packet to a watched endpoint.
#[inline(always)]
fn error_v4(bytes: &impl Bytes, start: u32, ip: &[u8; 20], parsed: &mut Parsed) -> Option<()> {
    let icmp = start + u32::from(ip[0] & 0xf) * 4;
    error(bytes, icmp, ICMP_UNREACHABLE, ICMP_TIME_EXCEEDED, parsed)?;
    let mut quoted = [0u8; 20];
    bytes.read(icmp + ICMP_HEADER, &mut quoted)?;
    if !global::is_endpoint_v4(word(&quoted, 16)) {
        return None;
    }
    parsed.sender[..4].copy_from_slice(&ip[12..16]);
    let network = &mut parsed.network;
    network.version = 4;
    network.ttl = ip[8];
    network.ip_id = u16::from_be_bytes([ip[4], ip[5]]);
    network.protocol = quoted[9];
    network.source[..4].copy_from_slice(&quoted[12..16]);
    network.destination[..4].copy_from_slice(&quoted[16..20]);
    quoted_ports(bytes, icmp + ICMP_HEADER + u32::from(quoted[0] & 0xf) * 4, parsed)
}

/// The same for IPv6.
#[inline(always)]
fn error_v6(bytes: &impl Bytes, start: u32, ip: &[u8; 40], parsed: &mut Parsed) -> Option<()> {
    let icmp = start + 40;
    error(bytes, icmp, ICMPV6_UNREACHABLE, ICMPV6_TIME_EXCEEDED, parsed)?;
    parsed.sender.copy_from_slice(&ip[8..24]);
    let network = &mut parsed.network;
    network.version = 6;
    network.ttl = ip[7];
    let mut next = [0u8; 1];
    bytes.read(icmp + ICMP_HEADER + 6, &mut next)?;
    network.protocol = next[0];
    bytes.read(icmp + ICMP_HEADER + 8, &mut network.source)?;
    let mut destination = [0u8; 16];
    bytes.read(icmp + ICMP_HEADER + 24, &mut destination)?;
    let words = [word(&destination, 0), word(&destination, 4), word(&destination, 8), word(&destination, 12)];
    if !global::is_endpoint_v6(&words) {
        return None;
    }
    network.destination = destination;
    quoted_ports(bytes, icmp + ICMP_HEADER + 40, parsed)
}

/// Type and code, if the type is one of these two.
#[inline(always)]
fn error(bytes: &impl Bytes, icmp: u32, one: u8, other: u8, parsed: &mut Parsed) -> Option<()> {
    let mut head = [0u8; 2];
    bytes.read(icmp, &mut head)?;
    if head[0] != one && head[0] != other {
        return None;
    }
    parsed.icmp_type = head[0];
    parsed.icmp_code = head[1];
    Some(())
}

/// Ports and sequence number: all that RFC 792 has an error quote of TCP.
#[inline(always)]
fn quoted_ports(bytes: &impl Bytes, at: u32, parsed: &mut Parsed) -> Option<()> {
    let mut ports = [0u8; 8];
    bytes.read(at, &mut ports)?;
    let network = &mut parsed.network;
    network.source_port = u16::from_be_bytes([ports[0], ports[1]]);
    network.destination_port = u16::from_be_bytes([ports[2], ports[3]]);
    if network.protocol == IPPROTO_TCP {
        network.seq = u32::from_be(word(&ports, 4));
    }
    Some(())
}

/// Reads ports and TCP numbers. `header_len` and `total_len` count from the IP header at `start`.
#[inline(always)]
fn transport(bytes: &impl Bytes, parsed: &mut Parsed, start: u32, header_len: u32, total_len: u32) {
    parsed.transport_offset = start + header_len;
    parsed.payload_offset = start + header_len;
    let network = &mut parsed.network;
    if network.later_fragment == 0 {
        match network.protocol {
            IPPROTO_TCP => {
                // A header cut short is still a packet at this hook: said without ports.
                let mut tcp = [0u8; 20];
                if bytes.read(start + header_len, &mut tcp).is_some() {
                    network.source_port = u16::from_be_bytes([tcp[0], tcp[1]]);
                    network.destination_port = u16::from_be_bytes([tcp[2], tcp[3]]);
                    network.seq = u32::from_be(word(&tcp, 4));
                    network.ack = u32::from_be(word(&tcp, 8));
                    network.tcp_flags = tcp[13];
                    let tcp_len = u32::from(tcp[12] >> 4) * 4;
                    parsed.payload_offset += tcp_len;
                    // Big TCP (total length 0) does not occur towards a service with a 1500-byte MTU.
                    network.payload_len = total_len.saturating_sub(header_len + tcp_len);
                }
            }
            IPPROTO_UDP => {
                let mut udp = [0u8; 4];
                if bytes.read(start + header_len, &mut udp).is_some() {
                    network.source_port = u16::from_be_bytes([udp[0], udp[1]]);
                    network.destination_port = u16::from_be_bytes([udp[2], udp[3]]);
                }
            }
            IPPROTO_ICMP | IPPROTO_ICMPV6 => {
                let mut kind = [0u8; 2];
                if bytes.read(start + header_len, &mut kind).is_some() {
                    network.destination_port = u16::from_be_bytes(kind);
                }
            }
            _ => {}
        }
    }
}

/// Four bytes as they lie in memory, whatever the byte order.
#[inline(always)]
fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
