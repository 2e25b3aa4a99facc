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
use crate::net::Heading;

/// Envelopes in envelopes that are opened.
const MAX_TUNNELS: usize = 3;
/// Kinds that are counted apart at most.
const MAX_KINDS: usize = 64;
/// What sees most on a host: what is typed where frames are in something that is not looked into.
const INSTEAD: &str = "capture where they are bare, on the host or in the container:  tcpdump -i any -w capture.pcap 'host \
                       169.254.169.254 or host fd00:ec2::254'";
/// What keeps packets whole. The head of an SDK's request has up to 600 bytes.
const ENOUGH: &str = "capture with -s 0";
/// How a head ends.
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// Frames of one kind.
#[derive(Debug, Default)]
struct Kind {
    count: u64,
    /// The first of them: name of the file, number of the packet in it.
    first: (String, u64),
}

impl Kind {
    fn add(&mut self, file: &str, frame: &Frame) {
        if self.count == 0 {
            self.first = (file.to_owned(), frame.number);
        }
        self.count += 1;
    }

    /// How many of how many, and where to look.
    fn of(&self, all: u64, what: &str) -> String {
        let (file, packet) = &self.first;
        format!("{} of {all} {what} (the first is packet {packet} of {file})", self.count)
    }
}

/// Frames, counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// To and from IMDS.
    ours: u64,
    /// Of these, with a payload of which not a byte was kept.
    bare: Kind,
    /// Of these, requests of which the end of the head was not kept.
    headless: Kind,
    /// Of these, without a time.
    timeless: Kind,
    /// Too little was kept to see whose they are, or what.
    cut: Kind,
    /// Parts of packets to and from IMDS.
    fragments: Kind,
    /// Of link types that are not read.
    foreign: BTreeMap<i32, Kind>,
    /// In envelopes that are not opened.
    unopened: BTreeMap<&'static str, Kind>,
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

/// What a frame turned out to be.
enum Looked<'a> {
    Seen(Around<'a>, Seen<'a>),
    Other,
    /// Too little of it was kept.
    Cut,
    /// A part of a packet to or from IMDS.
    Fragment,
    /// In an envelope of this name.
    Unopened(&'static str),
    /// Of a link type that is not read.
    Foreign,
}

impl Counts {
    /// What a frame of this file says; `None` if it is nothing of ours.
    pub fn read(
        &mut self,
        file: &str,
        interfaces: &[Described],
        frame: &Frame,
        endpoints: &[IpAddr],
    ) -> Option<Sighted> {
        let described = interfaces.get(frame.interface)?;
        let (around, seen) = match self.opened(frame, endpoints) {
            Looked::Seen(around, seen) => (around, seen),
            Looked::Other => return None,
            Looked::Cut => {
                self.cut.add(file, frame);
                self.unreadable += 1;
                return None;
            }
            Looked::Fragment => {
                self.fragments.add(file, frame);
                self.unreadable += 1;
                return None;
            }
            Looked::Unopened(name) => {
                self.unopened.entry(name).or_default().add(file, frame);
                return None;
            }
            Looked::Foreign => {
                self.unreadable += 1;
                if self.foreign.len() < MAX_KINDS || self.foreign.contains_key(&frame.link) {
                    self.foreign.entry(frame.link).or_default().add(file, frame);
                }
                return None;
            }
        };
        let spot = spot(described, &around, &seen)?;
        self.ours += 1;
        let sent = seen.headers.tcp.map_or(0, |tcp| tcp.len);
        if sent > 0 && seen.payload.is_empty() {
            self.bare.add(file, frame);
        } else if !described.is_ours && seen.headers.heading == Heading::ToImds && is_cut_in_head(sent, seen.payload) {
            self.headless.add(file, frame);
        }
        if !frame.is_timed {
            // What follows from how long something took cannot be told.
            self.timeless.add(file, frame);
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
        for (link, kind) in &self.foreign {
            notes.push(format!("{} have {}, which is not read", kind.of(frames, "packets"), called(*link)));
        }
        for (name, kind) in &self.unopened {
            notes.push(format!("{} are in {name}, which is not looked into: {INSTEAD}", kind.of(frames, "packets")));
        }
        if self.cut.count > 0 {
            let cut = self.cut.of(frames, "packets");
            notes.push(format!("{cut} are cut off before their addresses and ports end: {ENOUGH}"));
        }
        if self.fragments.count > 0 {
            let fragments = self.fragments.of(frames, "packets");
            notes.push(format!(
                "{fragments} are IP fragments to or from IMDS, which are not put together: what was asked and answered in them is not \
                 known"
            ));
        }
        if self.bare.count > 0 {
            notes.push(format!(
                "{} were kept without a byte of their HTTP (captured with a short -s): what was asked and answered in them is not \
                 known; {ENOUGH}",
                self.bare.of(self.ours, "packets to and from IMDS")
            ));
        }
        if self.headless.count > 0 {
            notes.push(format!(
                "{} hold requests whose headers were not kept to their end (captured with a short -s): whether a token was sent may \
                 not be known; {ENOUGH}",
                self.headless.of(self.ours, "packets to and from IMDS")
            ));
        }
        if self.timeless.count > 0 {
            notes.push(format!(
                "{} have no time (simple packet blocks, or 0): how long anything took is not known",
                self.timeless.of(self.ours, "packets to and from IMDS")
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

    /// The packet to or from IMDS in a frame, out of its envelopes.
    fn opened<'a>(&mut self, frame: &'a Frame, endpoints: &[IpAddr]) -> Looked<'a> {
        let is_endpoint = |address: IpAddr| endpoints.contains(&address);
        let mut linked = frame::link(frame.link, &frame.bytes);
        let mut tunnel = None;
        for _ in 0..=MAX_TUNNELS {
            let ip = match linked {
                Linked::Ip(ip) => ip,
                Linked::Other => return Looked::Other,
                Linked::Cut => return Looked::Cut,
                Linked::Unopened(name) => {
                    // What is in it may be anything.
                    self.unreadable += 1;
                    return Looked::Unopened(name);
                }
                Linked::Foreign => return Looked::Foreign,
            };
            match packet::packet(ip.bytes, is_endpoint) {
                Packet::Seen(seen) => return Looked::Seen(Around { ip, tunnel }, seen),
                Packet::Cut | Packet::Nameless => return Looked::Cut,
                Packet::Fragment => return Looked::Fragment,
                Packet::Other => {}
            }
            (linked, tunnel) = match tunnel::open(ip.bytes) {
                Inside::Frame { tunnel, frame } => {
                    self.mirrored += u64::from(tunnel.starts_with("vxlan"));
                    (frame::link(ETHERNET, frame), Some(tunnel))
                }
                Inside::Ip { tunnel, bytes } => (Linked::Ip(Ip::bare(bytes)), Some(tunnel)),
                Inside::Unopened(name) => return Looked::Unopened(name),
                Inside::Nothing => return Looked::Other,
            };
        }
        Looked::Other
    }
}

/// Was a request of so many bytes cut off before its head ends?
fn is_cut_in_head(sent: u32, kept: &[u8]) -> bool {
    kept.len() < sent as usize && !kept.windows(END_OF_HEAD.len()).any(|bytes| bytes == END_OF_HEAD)
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
