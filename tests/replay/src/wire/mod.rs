//! Which packets pass the links between a container and IMDS? Made by code: a client that asks for a token, and reads with it.

pub mod around;
pub mod file;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{Ipv4Header, Ipv6Header, TcpHeader, TcpOptionElement};

/// When it begins, nanoseconds since the Unix epoch; and between two packets.
pub const BEGIN: u64 = 1_764_300_000_000_000_000;
const STEP: u64 = 40_000;
/// What a forward takes.
const FORWARD: u64 = 12_000;
/// Nanoseconds of a second.
pub const SECOND: u64 = 1_000_000_000;
/// How long the client waits.
const PATIENCE: u64 = SECOND;

const TOKEN: &str = "AQAEAEXAMPLEtokenEXAMPLEtokenEXAMPLEtoken0123456789abc==";

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// A link that packets pass. The client is behind the first; a link further on is behind one forward more.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The client's address as it stands in packets there.
    pub client: IpAddr,
    /// Who stands at the client's end, and who at the other.
    pub ends: [[u8; 6]; 2],
}

/// What happens.
#[derive(Clone, Debug)]
pub struct Story {
    /// From the client on.
    pub links: Vec<Link>,
    /// The TTL with which a token's response comes to the last link; `None`: IMDS says nothing at all.
    pub hop_limit: Option<u8>,
    /// The client's port; each further connection has the next.
    pub port: u16,
}

/// A packet on a link.
#[derive(Clone, Debug)]
pub struct Sent {
    /// When.
    pub at: u64,
    /// On which of the story's links.
    pub link: usize,
    /// Towards IMDS?
    pub to_imds: bool,
    /// From whom on this link, and to whom.
    pub macs: [[u8; 6]; 2],
    /// From the IP header on.
    pub ip: Vec<u8>,
}

/// The numbers of a packet that are the same on every link.
struct Packet<'a> {
    to_imds: bool,
    seq: u32,
    ack: u32,
    flags: u8,
    payload: &'a str,
    /// The TTL that it starts with.
    ttl: u8,
    id: u16,
}

impl Story {
    /// A container behind a bridge that masquerades.
    pub fn masqueraded(hop_limit: Option<u8>) -> Self {
        let client = |last| IpAddr::V4(Ipv4Addr::new(172, 17, 0, last));
        let bridge = Link { client: client(2), ends: [[2, 0x42, 172, 17, 0, 2], [2, 0x42, 1, 1, 1, 1]] };
        let uplink =
            Link { client: Ipv4Addr::new(10, 0, 0, 10).into(), ends: [[2, 5, 5, 5, 5, 5], [2, 6, 6, 6, 6, 6]] };
        Self { links: vec![bridge, uplink], hop_limit, port: 40_000 }
    }

    /// A pod with an address of the VPC: no translation.
    pub fn routed(hop_limit: Option<u8>) -> Self {
        let mut story = Self::masqueraded(hop_limit);
        story.links[1].client = story.links[0].client;
        story
    }

    /// A container in a container: two forwards, two translations.
    pub fn nested(hop_limit: Option<u8>) -> Self {
        let mut story = Self::masqueraded(hop_limit);
        let inner = Link {
            client: Ipv4Addr::new(172, 18, 0, 2).into(),
            ends: [[2, 0x42, 172, 18, 0, 2], [2, 0x42, 2, 2, 2, 2]],
        };
        story.links.insert(0, inner);
        story
    }

    /// IPv6, where packets have no identification.
    pub fn over_ipv6(hop_limit: Option<u8>) -> Self {
        let mut story = Self::masqueraded(hop_limit);
        let address = |last| IpAddr::V6(Ipv6Addr::new(0xfd00, 0xd0c, 0, 0, 0, 0, 0, last));
        story.links[0].client = address(2);
        story.links[1].client = address(0x10);
        story
    }

    /// All packets, in the order of their time.
    pub fn tell(&self) -> Vec<Sent> {
        let mut telling = Telling { story: self, sent: Vec::new(), at: BEGIN, id: 7_000, port: self.port };
        match self.hop_limit {
            None => telling.silence(),
            Some(hop_limit) => telling.asks(hop_limit),
        }
        telling.sent.sort_by_key(|sent| sent.at);
        telling.sent
    }
}

struct Telling<'a> {
    story: &'a Story,
    sent: Vec<Sent>,
    at: u64,
    id: u16,
    port: u16,
}

impl Telling<'_> {
    /// A connect that nothing answers, and one again after a second.
    fn silence(&mut self) {
        for after in [0, SECOND, 3 * SECOND] {
            self.at = BEGIN + after;
            self.id += 1;
            let syn = Packet { to_imds: true, seq: 99, ack: 0, flags: SYN, payload: "", ttl: 64, id: self.id };
            self.send(&syn);
        }
    }

    /// A token, and a read with it or, if none came, without one.
    fn asks(&mut self, hop_limit: u8) {
        let put = "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600\r\nContent-Length: 0\r\n\r\n";
        let granted = format!(
            "HTTP/1.1 200 OK\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21600\r\nContent-Length: {}\r\n\r\n{TOKEN}",
            TOKEN.len()
        );
        self.connection(put, &granted, hop_limit);
        self.at += SECOND / 100;
        let is_lost = usize::from(hop_limit) < self.story.links.len();
        if is_lost {
            let get = "GET /latest/meta-data/instance-id HTTP/1.1\r\n\r\n";
            self.connection(get, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", 64);
        } else {
            let get =
                format!("GET /latest/meta-data/instance-id HTTP/1.1\r\nX-aws-ec2-metadata-token: {TOKEN}\r\n\r\n");
            self.connection(&get, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ni-12", 64);
        }
    }

    fn connection(&mut self, request: &str, response: &str, ttl: u8) {
        self.port += 1;
        let (isn, other) = (1_000 * u32::from(self.port), 77_000 * u32::from(self.port));
        let asked = isn + 1 + request.len() as u32;
        let answered = other + 1 + response.len() as u32;
        self.says(true, isn, 0, SYN, "", 64);
        self.says(false, other, isn + 1, SYN | ACK, "", 64);
        self.says(true, isn + 1, other + 1, ACK, "", 64);
        self.says(true, isn + 1, other + 1, PSH | ACK, request, 64);
        self.says(false, other + 1, asked, ACK, "", 64);
        let arrives = usize::from(ttl) >= self.story.links.len();
        if arrives {
            self.says(false, other + 1, asked, PSH | ACK, response, ttl);
            self.says(true, asked, answered, ACK, "", 64);
            self.says(true, asked, answered, FIN | ACK, "", 64);
            self.says(false, answered, asked + 1, FIN | ACK, "", 64);
            self.says(true, asked + 1, answered + 1, ACK, "", 64);
            return;
        }
        let begin = self.at;
        for after in [0, SECOND / 5, SECOND * 3 / 5] {
            self.at = begin + after;
            self.says(false, other + 1, asked, PSH | ACK, response, ttl);
        }
        self.at = begin + PATIENCE;
        self.says(true, asked, other + 1, FIN | ACK, "", 64);
        let left = self.at;
        self.says(false, other + 1, asked + 1, ACK, "", 64);
        self.at = begin + SECOND * 7 / 5;
        self.says(false, other + 1, asked + 1, PSH | ACK, response, ttl);
        self.at = left;
    }

    fn says(&mut self, to_imds: bool, seq: u32, ack: u32, flags: u8, payload: &str, ttl: u8) {
        self.id += 1;
        let is_syn_ack = flags == SYN | ACK;
        // As Linux has it: what answers a SYN has no number.
        let id = if is_syn_ack { 0 } else { self.id };
        self.send(&Packet { to_imds, seq, ack, flags, payload, ttl, id });
        self.at += STEP * 2;
    }

    /// Sends a packet over the links, as far as its TTL goes.
    fn send(&mut self, packet: &Packet<'_>) {
        let mut order: Vec<usize> = (0..self.story.links.len()).collect();
        if !packet.to_imds {
            order.reverse();
        }
        for (hops, link) in (0u8..).zip(order) {
            let Some(ttl) = packet.ttl.checked_sub(hops).filter(|ttl| *ttl > 0) else { return };
            let Link { client, ends } = self.story.links[link];
            let macs = if packet.to_imds { ends } else { [ends[1], ends[0]] };
            let at = self.at + u64::from(hops) * FORWARD;
            let ip = bytes(packet, client, self.port, ttl, self.at);
            self.sent.push(Sent { at, link, to_imds: packet.to_imds, macs, ip });
        }
    }
}

fn bytes(packet: &Packet<'_>, client: IpAddr, port: u16, ttl: u8, at: u64) -> Vec<u8> {
    let (from, to) = if packet.to_imds { (port, 80) } else { (80, port) };
    let mut tcp = TcpHeader::new(from, to, packet.seq, 64_000);
    tcp.acknowledgment_number = packet.ack;
    let has = |flag| packet.flags & flag != 0;
    (tcp.fin, tcp.syn, tcp.psh, tcp.ack) = (has(FIN), has(SYN), has(PSH), has(ACK));
    let mut options =
        vec![TcpOptionElement::Noop, TcpOptionElement::Noop, TcpOptionElement::Timestamp((at / 1_000_000) as u32, 1)];
    if has(SYN) {
        options.splice(
            0..2,
            [TcpOptionElement::MaximumSegmentSize(1460), TcpOptionElement::SelectiveAcknowledgementPermitted],
        );
    }
    tcp.set_options(&options).unwrap_or_default();
    let segment = [&tcp.to_bytes()[..], packet.payload.as_bytes()].concat();
    let length = segment.len() as u16;
    let header = match client {
        IpAddr::V4(client) => {
            let imds = [169, 254, 169, 254];
            let (source, destination) = if packet.to_imds { (client.octets(), imds) } else { (imds, client.octets()) };
            let mut header =
                Ipv4Header::new(length, ttl, etherparse::IpNumber::TCP, source, destination).unwrap_or_default();
            header.identification = packet.id;
            header.to_bytes().to_vec()
        }
        IpAddr::V6(client) => {
            let imds = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254).octets();
            let (source, destination) = if packet.to_imds { (client.octets(), imds) } else { (imds, client.octets()) };
            let header = Ipv6Header {
                payload_length: length,
                next_header: etherparse::IpNumber::TCP,
                hop_limit: ttl,
                source,
                destination,
                ..Ipv6Header::default()
            };
            header.to_bytes().to_vec()
        }
    };
    [header, segment].concat()
}
