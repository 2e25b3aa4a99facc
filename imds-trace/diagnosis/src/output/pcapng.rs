//! How is it told to Wireshark? Each place where a packet was seen is one packet of a pcapng file.
//!
//! Each hook, and each place of drops, is an interface of the file (`docker0 ingress`, `drop ip_forward`). A packet is headers made
//! anew from what was observed, and the request or status line as far as it may be kept; the rest was never here, so the packet is
//! cut off there, with its true length beside it. A comment says to a person whose it was and what became of it; the custom option
//! [`blocks::JSON`] says it to a program.
//!
//! Refuses HTTP versions and TCP options, which are not observed: the lines say `HTTP/1.1`, and headers have no options.

mod blocks;
mod packet;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use self::packet::Packet;
use super::{Kind, Output};
use crate::event::{Event, PacketEvent, Report};
use crate::identity::{Attribution, Key};
use crate::journey::{Fate, Journey};
use crate::net::{BootTime, Direction, Endpoint, Heading, Netns, Timestamp, Ttl, bounded};
use crate::observation::Hook;
use crate::printable::{json_safe, printable};

/// The kind.
pub const KIND: Kind = Kind {
    name: "pcapng",
    explain: "every packet at every place, for Wireshark",
    needs_path: true,
    packets: true,
    verbatim: true,
    several: false,
    generated: false,
    open: |stream, boot_time| Box::new(Pcapng::new(stream, boot_time)),
};

/// A packet is told once its journey is over, so packets come a little out of order: they are put in order within so much time.
/// Crossing a host takes microseconds, a queue or a firewall's queue to user space some milliseconds.
const WINDOW: Duration = Duration::from_secs(1);
/// Packets that wait to be put in order at most.
const MAX_WAITING: usize = 65_536;
/// Interfaces of one section at most: containers come and go, and each may have its own. Then another section begins.
const MAX_INTERFACES: usize = 4_096;
/// Bytes of a name in a comment.
const MAX_NAME: usize = 64;
/// Bytes of a container's title, in a pod with three names.
const MAX_TITLE: usize = 256;

/// What an interface of the file stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    Hook(Hook),
    Drop { location: Option<String>, netns: Netns },
}

struct Waiting {
    place: Place,
    packet: Packet,
    comment: String,
    json: String,
}

struct Pcapng {
    stream: Box<dyn Write>,
    boot_time: BootTime,
    /// By time, then in the order of coming.
    waiting: BTreeMap<(Timestamp, u64), Waiting>,
    came: u64,
    latest: Timestamp,
    interfaces: HashMap<Place, u32>,
    begun: bool,
}

impl Output for Pcapng {
    fn tell(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Packet(event) => {
                self.take(event);
                let before = Timestamp(self.latest.0.saturating_sub(WINDOW.as_nanos() as u64));
                while let Some((&(at, _), _)) = self.waiting.first_key_value()
                    && (at < before || self.waiting.len() > MAX_WAITING)
                {
                    self.write_first()?;
                }
                Ok(())
            }
            // A file without packets is one all the same.
            Event::Ready(..) => self.begin(),
            Event::Exchange(_)
            | Event::Finding(..)
            | Event::Settled(_)
            | Event::Unseen(..)
            | Event::Loss(..)
            | Event::Probed(..)
            | Event::End(..) => Ok(()),
        }
    }

    fn report(&mut self, _: Timestamp, _: &Report) -> io::Result<()> {
        self.begin()?;
        while !self.waiting.is_empty() {
            self.write_first()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Pcapng {
    fn new(stream: Box<dyn Write>, boot_time: BootTime) -> Self {
        Self {
            stream,
            boot_time,
            waiting: BTreeMap::new(),
            came: 0,
            latest: Timestamp(0),
            interfaces: HashMap::new(),
            begun: false,
        }
    }

    fn begin(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.begun, true) { Ok(()) } else { blocks::section(&mut self.stream) }
    }

    /// Every place where the packet was seen.
    fn take(&mut self, event: &PacketEvent) {
        let journey = &event.journey;
        self.latest = self.latest.max(journey.at);
        let whose = whose(&event.who);
        let drop = match &journey.fate {
            Fate::Dropped(dropped) => Some(dropped),
            Fate::Delivered | Fate::Unresolved => None,
        };
        let places = journey.hops.len() + usize::from(drop.is_some());
        for (number, hop) in journey.hops.iter().enumerate() {
            let is_last = number + 1 == journey.hops.len();
            let comment = format!("{whose}: {}", became(journey, number + 1, places, is_last));
            self.wait(event, hop.at, Place::Hook(hop.hook.clone()), (hop.client, hop.ttl), (number, places), comment);
        }
        if let Some(dropped) = drop {
            let drop = &dropped.drop;
            let place = Place::Drop { location: drop.location.clone(), netns: drop.netns };
            let comment = format!("{whose}: {}", dropped_at(journey));
            let number = journey.hops.len();
            self.wait(event, dropped.at, place, (dropped.client, dropped.ttl), (number, places), comment);
        }
    }

    fn wait(
        &mut self,
        event: &PacketEvent,
        at: Timestamp,
        place: Place,
        (client, ttl): (Endpoint, Ttl),
        (number, places): (usize, usize),
        comment: String,
    ) {
        self.came += 1;
        let packet = packet::packet(&event.journey, client, ttl);
        let json = json(event, number + 1, places);
        self.waiting.insert((at, self.came), Waiting { place, packet, comment, json });
    }

    fn write_first(&mut self) -> io::Result<()> {
        let Some(((at, _), Waiting { place, packet, comment, json })) = self.waiting.pop_first() else { return Ok(()) };
        self.begin()?;
        if self.interfaces.len() >= MAX_INTERFACES && !self.interfaces.contains_key(&place) {
            self.interfaces.clear();
            blocks::section(&mut self.stream)?;
        }
        let inbound = match &place {
            Place::Hook(hook) => Some(hook.direction == Direction::Ingress),
            Place::Drop { .. } => None,
        };
        let known = self.interfaces.len() as u32;
        let interface = match self.interfaces.get(&place) {
            Some(interface) => *interface,
            None => {
                let (name, description) = described(&place);
                blocks::interface(&mut self.stream, &name, &description)?;
                self.interfaces.insert(place, known);
                known
            }
        };
        let nanoseconds = i128::from(self.boot_time.0) + i128::from(at.0);
        let block = blocks::Enhanced {
            interface,
            at: u64::try_from(nanoseconds).unwrap_or_default(),
            bytes: &packet.bytes,
            length: packet.length,
            inbound,
            comment: &comment,
            json: &json,
        };
        blocks::enhanced(&mut self.stream, &block)
    }
}

/// Name and description of an interface of the file.
fn described(place: &Place) -> (String, String) {
    match place {
        Place::Hook(Hook { interface, direction }) => {
            let name = printable(&interface.name, MAX_NAME);
            let how = match direction {
                Direction::Ingress => "packets that came in by",
                Direction::Egress => "packets that went out by",
            };
            (
                format!("{name} {direction}"),
                format!("{how} {name} (index {}{})", interface.index.0, in_netns(interface.netns)),
            )
        }
        Place::Drop { location, netns } => {
            let location = printable(location.as_deref().unwrap_or("unnamed"), MAX_NAME);
            (format!("drop {location}"), format!("packets dropped by the kernel in {location}{}", in_netns(*netns)))
        }
    }
}

fn in_netns(netns: Netns) -> String {
    if netns == Netns::default() { String::new() } else { format!(", network namespace {}", netns.0) }
}

/// Whose packet it was: `container job-17, python3[4711]`.
fn whose(who: &Attribution) -> String {
    let whose = match (&who.container, who.by) {
        (Some(container), _) => printable(&container.phrase(MAX_NAME), MAX_TITLE),
        (None, Key::Cgroup) => "host".to_owned(),
        (None, _) => who.unnamed(),
    };
    match &who.process {
        Some(process) => format!("{whose}, {}[{}]", printable(&process.comm, MAX_NAME), process.pid),
        None => whose,
    }
}

/// What a packet's comment says at a hook.
fn became(journey: &Journey, number: usize, places: usize, is_last: bool) -> String {
    let heading = heading(journey.heading);
    let next = match (&journey.fate, is_last) {
        (Fate::Delivered, false) => String::new(),
        (Fate::Delivered, true) => ", delivered".to_owned(),
        (Fate::Dropped(_), _) => format!(", then {}", dropped_at(journey)),
        (Fate::Unresolved, false) => ", then lost".to_owned(),
        (Fate::Unresolved, true) => ", not seen again".to_owned(),
    };
    format!("{heading}, seen {number} of {places}{next}")
}

fn dropped_at(journey: &Journey) -> String {
    let Fate::Dropped(dropped) = &journey.fate else { return String::new() };
    let reason = dropped.drop.reason.as_deref().map(|reason| format!(" ({})", printable(reason, MAX_NAME)));
    format!(
        "TTL {}: dropped in {}{}",
        dropped.ttl.0,
        printable(dropped.drop.function(), MAX_NAME),
        reason.unwrap_or_default()
    )
}

fn heading(heading: Heading) -> &'static str {
    match heading {
        Heading::ToImds => "to IMDS",
        Heading::FromImds => "from IMDS",
    }
}

/// What the custom option holds.
#[derive(Serialize)]
struct Json<'a> {
    /// Version of this format.
    imds_trace: u32,
    /// Packets with the same number are one packet at several places.
    journey: u64,
    connection: u64,
    /// As in `--output json`.
    exchange: Option<u64>,
    /// Place on its way, from 1, and how many there are.
    place: usize,
    places: usize,
    heading: Heading,
    fate: &'static str,
    join: crate::journey::Join,
    /// The container's id.
    container: Option<&'a str>,
    pid: Option<u32>,
}

fn json(event: &PacketEvent, place: usize, places: usize) -> String {
    let PacketEvent { number, journey, exchange, who } = event;
    let json = Json {
        imds_trace: 1,
        journey: *number,
        connection: journey.connection.id.0,
        exchange: exchange.map(|exchange| exchange.0),
        place,
        places,
        heading: journey.heading,
        fate: match journey.fate {
            Fate::Delivered => "delivered",
            Fate::Dropped(_) => "dropped",
            Fate::Unresolved => "unresolved",
        },
        join: journey.join,
        container: who.container.as_ref().map(|container| bounded(&container.id, MAX_NAME)),
        pid: who.process.as_ref().map(|process| process.pid),
    };
    serde_json::to_string(&json).map(|text| json_safe(&text).into_owned()).unwrap_or_default()
}
