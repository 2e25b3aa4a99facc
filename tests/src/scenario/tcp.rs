//! Which numbers does a packet carry that only its words are known of?

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use imds_trace::net::Heading;
use imds_trace::observation::{Head, RequestHead, ResponseHead, Tcp, TcpFlags};

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
    ip_id: [u16; 2],
}

/// A packet with all its numbers.
#[derive(Debug)]
pub struct Filled {
    pub heading: Heading,
    pub tcp: Tcp,
    pub ip_id: u16,
    pub head: Option<Head>,
}

impl Conversation {
    /// Before its first packet. `number` tells conversations apart.
    pub fn new(number: usize, isn: Option<u32>) -> Self {
        let number = u32::try_from(number).unwrap_or(0);
        let next = [isn.unwrap_or(1_000 + number * 1_000_000), 500_000_000 + number * 1_000_000];
        Self { next, arrived: next, sent: HashMap::new(), ip_id: [100, 30_000] }
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
        let (flags, len, head) = meaning(words, side, packet)?;
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
        self.ip_id[side] += 1;
        Ok(Filled { heading, tcp, ip_id: packet.ip_id.unwrap_or(self.ip_id[side]), head })
    }
}

fn meaning(words: &str, side: usize, packet: &Packet) -> Result<(u8, u32, Option<Head>)> {
    let flags = match words {
        "syn" if side == 0 => return Ok((TcpFlags::SYN, 0, None)),
        "syn-ack" if side == 1 => return Ok((TcpFlags::SYN | TcpFlags::ACK, 0, None)),
        "ack" => TcpFlags::ACK,
        "fin" => TcpFlags::FIN | TcpFlags::ACK,
        "rst" => TcpFlags::RST | TcpFlags::ACK,
        "data" => return Ok((TcpFlags::ACK | PSH, DATA, None)),
        _ if side == 0 => {
            let (method, path) = words.split_once(' ').with_context(|| format!("{words:?} is not METHOD PATH"))?;
            let head = Head::Request(RequestHead {
                method: method.to_owned(),
                path: path.to_owned(),
                token: packet.token,
                requested_ttl: (method == "PUT").then_some(TOKEN_TTL),
                forwarded_for: false,
                user_agent: packet.user_agent.clone(),
            });
            return Ok((TcpFlags::ACK | PSH, REQUEST, Some(head)));
        }
        _ => {
            let status = words.parse().with_context(|| format!("{words:?} is neither a status nor a word"))?;
            let head = Head::Response(ResponseHead {
                status,
                content_length: None,
                token_ttl: None,
                server: Some("EC2ws".to_owned()),
            });
            return Ok((TcpFlags::ACK | PSH, RESPONSE, Some(head)));
        }
    };
    Ok((flags, 0, None))
}
