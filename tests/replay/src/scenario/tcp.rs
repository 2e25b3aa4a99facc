//! Which numbers does a packet carry that only its words are known of?

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use diagnosis::net::Heading;
use diagnosis::observation::{Head, Icmp, RequestHead, ResponseHead, Tcp, TcpFlags, TokenMark};

use super::Packet;

const PSH: u8 = 0x08;
/// Payload of a request and of a response, in bytes; that of `data`.
const REQUEST: u32 = 150;
const RESPONSE: u32 = 300;
const DATA: u32 = 100;
/// What SDKs ask for, seconds.
const TOKEN_TTL: u32 = 21_600;

/// Both ends of one client's connection.
#[derive(Debug)]
pub struct Conversation {
    /// Where the next byte goes, to IMDS and from it.
    next: [u32; 2],
    /// What has arrived of the other side's, to be acknowledged; as above by the side that sent it.
    arrived: [u32; 2],
    /// By heading and words: the numbers of the last such packet.
    sent: HashMap<(usize, String), Tcp>,
    /// Sequence number of the last packet to IMDS.
    last: u32,
    ip_id: [u16; 2],
}

/// A packet with all its numbers.
#[derive(Debug)]
pub struct Filled {
    pub heading: Heading,
    pub tcp: Tcp,
    pub ip_id: u16,
    pub heads: Vec<Head>,
    pub icmp: Option<Icmp>,
}

impl Conversation {
    /// Before its first packet. `number` tells conversations apart.
    pub fn new(number: usize, isn: Option<u32>) -> Self {
        let number = u32::try_from(number).unwrap_or(0);
        let next = [isn.unwrap_or(1_000 + number * 1_000_000), 500_000_000 + number * 1_000_000];
        Self { next, arrived: next, sent: HashMap::new(), last: next[0], ip_id: [100, 30_000] }
    }

    /// The first sequence number of the side that connects.
    pub fn isn(&self) -> u32 {
        self.next[0]
    }

    /// The numbers of a packet.
    pub fn fill(&mut self, packet: &Packet) -> Result<Filled> {
        let (side, words, heading) = match (&packet.to, &packet.from) {
            (Some(words), None) => (0, words, Heading::ToImds),
            (None, Some(words)) => (1, words, Heading::FromImds),
            _ => bail!("the packet at {} ms goes `to` IMDS or comes `from` it", packet.ms),
        };
        if let Some(words) = words.strip_prefix("icmp ") {
            self.ip_id[side] += 1;
            let tcp = Tcp { seq: self.last, ack: 0, flags: TcpFlags(0), len: 0 };
            return Ok(Filled { heading, tcp, ip_id: self.ip_id[side], heads: Vec::new(), icmp: Some(icmp(words)?) });
        }
        let (flags, len, heads) = meaning(words, side, packet)?;
        let known = self.sent.get(&(side, words.clone())).copied();
        if packet.again && known.is_none() {
            bail!("the packet at {} ms is sent again, but no {words:?} was sent before", packet.ms);
        }
        let repeated = known.filter(|_| packet.again);
        let len = packet.len.or(repeated.map(|tcp| tcp.len)).unwrap_or(len);
        let seq = packet.seq.or(repeated.map(|tcp| tcp.seq)).unwrap_or(self.next[side]);
        let opens = flags == TcpFlags::SYN;
        let ack = packet.ack.unwrap_or(if opens { 0 } else { self.arrived[1 - side] });
        let tcp = Tcp { seq, ack, flags: TcpFlags(packet.flags.unwrap_or(flags)), len };
        self.sent.insert((side, words.clone()), tcp);
        if !packet.again {
            self.next[side] = tcp.end();
        }
        let lost = packet.lost.unwrap_or_else(|| packet.at.last().is_some_and(super::Place::is_drop));
        if !lost && (tcp.end().wrapping_sub(self.arrived[side]) as i32) > 0 {
            self.arrived[side] = tcp.end();
        }
        if side == 0 {
            self.last = seq;
        }
        self.ip_id[side] += 1;
        Ok(Filled { heading, tcp, ip_id: packet.ip_id.unwrap_or(self.ip_id[side]), heads, icmp: None })
    }
}

fn icmp(words: &str) -> Result<Icmp> {
    match words.split(' ').collect::<Vec<_>>()[..] {
        [kind, code, sender] => Ok(Icmp { kind: kind.parse()?, code: code.parse()?, sender: sender.parse()? }),
        _ => bail!("an ICMP error is `icmp TYPE CODE SENDER`"),
    }
}

fn meaning(words: &str, side: usize, packet: &Packet) -> Result<(u8, u32, Vec<Head>)> {
    let flags = match words {
        "syn" if side == 0 => return Ok((TcpFlags::SYN, 0, Vec::new())),
        "syn-ack" if side == 1 => return Ok((TcpFlags::SYN | TcpFlags::ACK, 0, Vec::new())),
        "ack" => TcpFlags::ACK,
        "fin" => TcpFlags::FIN | TcpFlags::ACK,
        "rst" => TcpFlags::RST | TcpFlags::ACK,
        "data" => return Ok((TcpFlags::ACK | PSH, DATA, Vec::new())),
        _ => {
            let parts: Vec<&str> = words.split(" & ").collect();
            let len = if side == 0 { REQUEST } else { RESPONSE } * parts.len() as u32;
            let mut heads = Vec::new();
            for part in parts {
                heads.push(if side == 0 { Head::Request(request(part, packet)?) } else { response(part, packet)? });
                heads.extend(packet.mark.filter(|_| side == 1).map(|mark| Head::Token(TokenMark(mark))));
            }
            return Ok((TcpFlags::ACK | PSH, len, heads));
        }
    };
    Ok((flags, 0, Vec::new()))
}

fn request(words: &str, packet: &Packet) -> Result<RequestHead> {
    let (method, path) = words.split_once(' ').with_context(|| format!("{words:?} is not METHOD PATH"))?;
    let lifetime = packet.lifetime.unwrap_or(TOKEN_TTL.into());
    Ok(RequestHead {
        method: method.to_owned(),
        path: path.to_owned(),
        token: packet.token || packet.empty_token,
        empty_token: packet.empty_token,
        mark: packet.mark.filter(|_| packet.token).map(TokenMark),
        requested_ttl: u32::try_from(lifetime).ok().filter(|_| method == "PUT"),
        forwarded_for: packet.forwarded_for,
        via: packet.via,
        foreign_host: packet.foreign_host,
        absolute: packet.absolute,
        expects_continue: packet.expects_continue,
        other_cloud: packet.other_cloud,
        user_agent: packet.user_agent.clone(),
        cut: false,
        ..RequestHead::default()
    })
}

fn response(words: &str, packet: &Packet) -> Result<Head> {
    let status = words.parse().with_context(|| format!("{words:?} is neither a status nor a word"))?;
    Ok(Head::Response(ResponseHead {
        status,
        content_length: None,
        token_ttl: None,
        server: Some(packet.server.clone().unwrap_or_else(|| "EC2ws".to_owned())),
        ..ResponseHead::default()
    }))
}
