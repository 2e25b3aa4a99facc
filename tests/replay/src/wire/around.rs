//! What stands around an IP packet in a capture? Link layers, mirrors and overlays.

use etherparse::PacketBuilder;

use super::Sent;

/// An Ethernet frame.
pub fn ethernet(sent: &Sent) -> Vec<u8> {
    let [from, to] = sent.macs;
    [&to[..], &from, &ether_type(sent), &sent.ip].concat()
}

/// The same with this between the addresses and the packet: tags or labels, from the EtherType of the first on.
pub fn tagged(sent: &Sent, tags: &[u8]) -> Vec<u8> {
    let [from, to] = sent.macs;
    [&to[..], &from, tags, &sent.ip].concat()
}

/// The EtherType of what was sent.
pub fn ether_type(sent: &Sent) -> [u8; 2] {
    if sent.ip[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] }
}

/// As `tcpdump -i any` writes it, on the interface of this index.
pub fn cooked2(sent: &Sent, index: u32, outgoing: bool) -> Vec<u8> {
    let kind = ether_type(sent);
    let packet_type = if outgoing { 4 } else { 0 };
    let head = [&kind[..], &[0, 0], &index.to_be_bytes(), &[0, 1, packet_type, 6], &sent.macs[0], &[0, 0]].concat();
    [head, sent.ip.clone()].concat()
}

/// A frame in a UDP packet to this port, behind this header, in an Ethernet frame between two others.
pub fn in_udp(inside: &[u8], port: u16, header: &[u8]) -> Vec<u8> {
    let payload = [header, inside].concat();
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 9, 0, 1], [10, 9, 0, 2], 30).udp(55_555, port);
    let mut bytes = Vec::new();
    let _ = builder.write(&mut bytes, &payload);
    bytes
}

/// The same over IP alone.
pub fn in_ip(inside: &[u8], protocol: u8, header: &[u8]) -> Vec<u8> {
    let payload = [header, inside].concat();
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 9, 0, 1], [10, 9, 0, 2], 30);
    let mut bytes = Vec::new();
    let _ = builder.write(&mut bytes, etherparse::IpNumber(protocol), &payload);
    bytes
}
