//! What does one frame say of a packet to or from IMDS, whatever is around it; and what is to be said of those that say nothing?

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::file::{Described, Frame};
use super::frame::{self, Ip, Linked};
use super::linktype::{ETHERNET, called, says_direction};
use super::order::Sighted;
use super::packet::{self, Packet, Seen};
use super::places::Spot;
use super::tunnel::{self, Inside};

/// Envelopes in envelopes that are opened.
const MAX_TUNNELS: usize = 3;
/// Kinds that are counted apart at most.
const MAX_KINDS: usize = 64;
/// What keeps all that is asked of a packet: Ethernet with two VLAN tags, IPv6 and a TCP header.
const ENOUGH: &str = "capture with -s 128 or more";

/// Frames, counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// To and from IMDS.
    ours: u64,
    /// Of these, with a payload of which not a byte was kept.
    bare: u64,
    /// Of these, without a time.
    timeless: u64,
    /// Too little was kept to see whose they are, or what.
    cut: u64,
    /// Of link types that are not read.
    foreign: BTreeMap<i32, u64>,
    /// In envelopes that are not opened.
    unopened: BTreeMap<&'static str, u64>,
    /// In VXLAN, as mirrors make it.
    mirrored: u64,
    /// Of those that could not be read: not told yet.
    unreadable: u64,
}

/// Where a frame was seen, as far as it says.
struct Around<'a> {
    ip: Ip<'a>,
    tunnel: Option<String>,
}

impl Counts {
    /// What a frame says; `None` if it is nothing of ours.
    pub fn read(&mut self, interfaces: &[Described], frame: &Frame, endpoints: &[IpAddr]) -> Option<Sighted> {
        let described = interfaces.get(frame.interface)?;
        let ip = self.linked(frame.link, &frame.bytes)?;
        let (around, seen) = self.opened(Around { ip, tunnel: None }, endpoints)?;
        let spot = spot(described, &around, &seen)?;
        self.ours += 1;
        let carries = seen.headers.tcp.is_some_and(|tcp| tcp.len > 0);
        self.bare += u64::from(carries && seen.payload.is_empty());
        if !frame.is_timed {
            // What follows from how long something took cannot be told.
            self.timeless += 1;
            self.unreadable += 1;
        }
        let direction = around.ip.direction.or(frame.direction).filter(|_| around.tunnel.is_none());
        Some(Sighted { at: frame.at, spot, direction, headers: seen.headers, payload: seen.payload.to_vec() })
    }

    /// How many could not be read since the last call.
    pub fn take_unreadable(&mut self) -> u64 {
        std::mem::take(&mut self.unreadable)
    }

    /// What is to be said of what was not told, of so many frames.
    pub fn notes(&self, frames: u64, endpoints: &[IpAddr]) -> Vec<String> {
        let mut notes = Vec::new();
        for (link, count) in &self.foreign {
            notes.push(format!("{count} of {frames} packets have {}, which is not read", called(*link)));
        }
        for (name, count) in &self.unopened {
            notes.push(format!("{count} of {frames} packets are in {name}, which is not looked into"));
        }
        if self.cut > 0 {
            notes.push(format!(
                "{} of {frames} packets are cut off before their addresses and ports end: {ENOUGH}",
                self.cut
            ));
        }
        if self.bare > 0 {
            notes.push(format!(
                "{} of {} packets to and from IMDS were kept without a byte of their HTTP (captured with a short -s): what was \
                 asked and answered in them is not known",
                self.bare, self.ours
            ));
        }
        if self.timeless > 0 {
            notes.push(format!(
                "{} of {} packets to and from IMDS have no time (simple packet blocks): how long anything took is not known",
                self.timeless, self.ours
            ));
        }
        if self.ours == 0 {
            let endpoints: Vec<String> = endpoints.iter().map(IpAddr::to_string).collect();
            let endpoints = endpoints.join(" or ");
            let mut note = format!("none of {frames} packets is to or from {endpoints} (--endpoint)");
            if self.mirrored > 0 {
                note += "; VPC Traffic Mirroring does not mirror what goes to IMDS: capture on the instance";
            }
            notes.push(note);
        }
        notes
    }

    fn linked<'a>(&mut self, link: i32, bytes: &'a [u8]) -> Option<Ip<'a>> {
        match frame::link(link, bytes) {
            Linked::Ip(ip) => return Some(ip),
            Linked::Other => {}
            Linked::Unopened(name) => *self.unopened.entry(name).or_default() += 1,
            Linked::Foreign => {
                self.unreadable += 1;
                if self.foreign.len() < MAX_KINDS || self.foreign.contains_key(&link) {
                    *self.foreign.entry(link).or_default() += 1;
                }
            }
        }
        None
    }

    /// The packet to or from IMDS in it, out of its envelopes.
    fn opened<'a>(&mut self, mut around: Around<'a>, endpoints: &[IpAddr]) -> Option<(Around<'a>, Seen<'a>)> {
        let is_endpoint = |address: IpAddr| endpoints.contains(&address);
        for _ in 0..=MAX_TUNNELS {
            match packet::packet(around.ip.bytes, is_endpoint) {
                Packet::Seen(seen) => return Some((around, seen)),
                Packet::Cut | Packet::Nameless => {
                    self.cut += 1;
                    self.unreadable += 1;
                    return None;
                }
                Packet::Other => {}
            }
            around = match tunnel::open(around.ip.bytes) {
                Inside::Frame { tunnel, frame } => {
                    self.mirrored += u64::from(tunnel.starts_with("vxlan"));
                    Around { ip: self.linked(ETHERNET, frame)?, tunnel: Some(tunnel) }
                }
                Inside::Ip { tunnel, bytes } => Around { ip: Ip::bare(bytes), tunnel: Some(tunnel) },
                Inside::Unopened(name) => {
                    *self.unopened.entry(name).or_default() += 1;
                    return None;
                }
                Inside::Nothing => return None,
            };
        }
        None
    }
}

/// Where it was seen; `None` where the packet had been dropped, in a file of our own.
fn spot(described: &Described, around: &Around<'_>, seen: &Seen<'_>) -> Option<Spot> {
    let client_end = around.ip.client_end(seen.headers.heading);
    if let Some(tunnel) = &around.tunnel {
        // Whose link it was stands in the frame inside.
        return Some(Spot { tunnel: Some(tunnel.clone()), client_end, ..Spot::default() });
    }
    if let Some(index) = around.ip.index {
        return Some(Spot { index: Some(index), ..Spot::default() });
    }
    let Some(name) = &described.name else {
        return Some(match says_direction(described.link) {
            true => Spot { is_any: true, ..Spot::default() },
            false => Spot { client_end, ..Spot::default() },
        });
    };
    if described.is_ours && name.starts_with("drop ") {
        return None;
    }
    // One interface of the machine is two of such a file.
    let bare = name.rsplit_once(' ').filter(|_| described.is_ours).map_or(name.as_str(), |(bare, _)| bare);
    Some(Spot { name: Some(bare.to_owned()), ..Spot::default() })
}
