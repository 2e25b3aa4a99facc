//! How does a test put a frame of its own making on a wire of the lab?

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use nix::libc;
use nix::net::if_::if_nametoindex;

use crate::netns::Namespace;

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
/// Broadcast and a locally administered source: the frame is looked at, and nobody's.
const MACS: [u8; 12] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1];
const TCP_PSH_ACK: u8 = 0x18;
const IPPROTO_TCP: u8 = 6;

/// Sends `frame`, an Ethernet frame without checksum, out by an interface of a namespace.
pub fn send(namespace: &Namespace, interface: &str, frame: &[u8]) -> Result<()> {
    namespace.run_inside(|| send_here(interface, frame))?.with_context(|| format!("send a frame by {interface}"))
}

fn send_here(interface: &str, frame: &[u8]) -> io::Result<()> {
    let index = if_nametoindex(interface)?;
    // SAFETY: takes no pointer; the descriptor it gives is closed below.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = index as i32;
    // SAFETY: the frame and the address live until the call returns, with these lengths.
    let sent = unsafe {
        libc::sendto(
            socket,
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    let result = if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: opened above, and used no more.
    unsafe { libc::close(socket) };
    result
}

/// An Ethernet frame; `tags` are (ethertype, VLAN id), the outermost first.
pub fn ethernet(tags: &[(u16, u16)], packet: &[u8]) -> Vec<u8> {
    let mut frame = MACS.to_vec();
    for (ethertype, id) in tags {
        frame.extend(ethertype.to_be_bytes());
        frame.extend(id.to_be_bytes());
    }
    let is_v4 = packet.first().is_some_and(|first| first >> 4 == 4);
    frame.extend(if is_v4 { ETH_P_IP } else { ETH_P_IPV6 }.to_be_bytes());
    frame.extend(packet);
    frame
}

/// An IPv4 packet; `options` are a multiple of four bytes, `fragment` its offset in units of eight bytes.
pub fn ipv4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ttl: u8,
    options: &[u8],
    fragment: u16,
    segment: &[u8],
) -> Vec<u8> {
    let header = 20 + options.len();
    let mut packet = vec![0x40 | (header / 4) as u8, 0];
    packet.extend(((header + segment.len()) as u16).to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([ttl, IPPROTO_TCP, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(options);
    packet.extend(segment);
    packet
}

/// An IPv6 packet; `extensions` are (kind, header of a multiple of eight bytes whose first byte is filled in here).
pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, ttl: u8, extensions: &[(u8, &[u8])], segment: &[u8]) -> Vec<u8> {
    let length: usize = extensions.iter().map(|(_, header)| header.len()).sum::<usize>() + segment.len();
    let kind_of = |number: usize| extensions.get(number).map_or(IPPROTO_TCP, |(kind, _)| *kind);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((length as u16).to_be_bytes());
    packet.extend([kind_of(0), ttl]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    for (number, (_, header)) in extensions.iter().enumerate() {
        packet.push(kind_of(number + 1));
        packet.extend(&header[1..]);
    }
    packet.extend(segment);
    packet
}

/// A TCP segment with `options` (a multiple of four bytes) in the middle of a connection.
pub fn tcp(source: u16, destination: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(source.to_be_bytes());
    segment.extend(destination.to_be_bytes());
    segment.extend(1_000_u32.to_be_bytes());
    segment.extend(2_000_u32.to_be_bytes());
    segment.extend([(((20 + options.len()) / 4) << 4) as u8, TCP_PSH_ACK, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(options);
    segment.extend(payload);
    segment
}
