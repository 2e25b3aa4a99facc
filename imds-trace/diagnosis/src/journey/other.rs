//! Which packets go to IMDS that are no TCP, and from where? Counted alone: there is no connect to name a process by, and no HTTP.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use crate::net::{Endpoint, Heading};
use crate::observation::{Hook, IPPROTO_TCP, Observation, Place};

/// Packets remembered at most, to know them again at the next hook; each crosses the host within microseconds.
const MAX_PACKETS: usize = 4096;
/// Sources counted apart at most: a container can choose its source address.
const MAX_SOURCES: usize = 64;

/// Protocols, and what a ping sends of them (RFC 792, RFC 4443).
const ICMP: u8 = 1;
const ECHO: u8 = 8;
const ICMPV6: u8 = 58;
const ECHO_V6: u8 = 128;

/// Packets of one kind from one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherPackets {
    /// Where they came from, as it stood at the first hook; `None` for all beyond the first 64 sources.
    pub source: Option<IpAddr>,
    /// The watched address.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// How many.
    pub packets: u64,
}

/// What no forwarding changes; a translation leaves it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    protocol: u8,
    ip_id: u16,
    destination: Endpoint,
}

/// Counts them, each once however many hooks it passes.
#[derive(Debug, Default)]
pub struct Others {
    rows: Vec<OtherPackets>,
    /// Packets with the same numbers, and how many of them each hook has seen.
    passed: HashMap<Key, (u64, Vec<(Hook, u64)>)>,
    order: VecDeque<Key>,
}

impl Others {
    /// Takes in an observation, of TCP too.
    pub fn note(&mut self, observation: &Observation) {
        let Place::Hook(hook) = &observation.place else { return };
        if observation.heading != Heading::ToImds || !is_counted(observation) {
            return;
        }
        let destination = observation.flow.destination;
        let key = Key { protocol: observation.protocol, ip_id: observation.ip_id, destination };
        if !self.passed.contains_key(&key) {
            self.order.push_back(key);
        }
        let (packets, hooks) = self.passed.entry(key).or_default();
        let here = match hooks.iter_mut().find(|(seen, _)| seen == hook) {
            Some((_, here)) => here,
            None => {
                hooks.push((hook.clone(), 0));
                &mut hooks.last_mut().unwrap_or_else(|| unreachable!("pushed just now")).1
            }
        };
        *here += 1;
        // The first hook that a packet passes has seen more of them than any other.
        let is_new = *here > *packets;
        *packets = (*here).max(*packets);
        while self.order.len() > MAX_PACKETS {
            if let Some(oldest) = self.order.pop_front() {
                self.passed.remove(&oldest);
            }
        }
        if is_new {
            self.count(observation.flow.source.address, destination.address, observation.protocol);
        }
    }

    fn count(&mut self, source: IpAddr, destination: IpAddr, protocol: u8) {
        let is_known = self.rows.iter().any(|row| row.source == Some(source));
        let source = (is_known || self.rows.len() < MAX_SOURCES).then_some(source);
        let same =
            |row: &&mut OtherPackets| (row.source, row.destination, row.protocol) == (source, destination, protocol);
        match self.rows.iter_mut().find(same) {
            Some(row) => row.packets += 1,
            None => self.rows.push(OtherPackets { source, destination, protocol, packets: 1 }),
        }
    }

    /// All of them, in the order in which they were first seen.
    pub fn take(&mut self) -> Vec<OtherPackets> {
        std::mem::take(&mut self.rows)
    }
}

/// Of ICMP only what asks: this host itself sends IMDS errors about answers whose TTL is used up.
fn is_counted(observation: &Observation) -> bool {
    // The kernel half puts type and code where others have their port.
    let [kind, _] = observation.flow.destination.port.to_be_bytes();
    match observation.protocol {
        IPPROTO_TCP => false,
        ICMP => kind == ECHO,
        ICMPV6 => kind == ECHO_V6,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Direction, Flow, Ifindex, Interface, Netns, Timestamp, Ttl};

    const UDP: u8 = 17;

    fn packet(source: [u8; 4], hook: (u32, Direction), ip_id: u16) -> Observation {
        let end = |address: [u8; 4], port| Endpoint { address: address.into(), port };
        let interface = Interface { netns: Netns(1), index: Ifindex(hook.0), name: "".into() };
        Observation {
            at: Timestamp(0),
            place: Place::Hook(Hook { interface, direction: hook.1 }),
            heading: Heading::ToImds,
            flow: Flow { source: end(source, 999), destination: end([169, 254, 169, 254], 80) },
            ttl: Ttl(64),
            ip_id,
            protocol: UDP,
            tcp: None,
            heads: Vec::new(),
            icmp: None,
            redirected: false,
        }
    }

    #[test]
    fn each_packet_counts_once_and_under_its_first_address() {
        let (bridge, uplink) = ((2, Direction::Ingress), (3, Direction::Egress));
        let (inside, outside) = ([172, 17, 0, 2], [10, 0, 0, 1]);
        let mut others = Others::default();
        // Two overtake each other without a number of their own, one has one; then the host itself sends one.
        for (source, hook, ip_id) in [
            (inside, bridge, 0),
            (inside, bridge, 0),
            (outside, uplink, 0),
            (outside, uplink, 0),
            (inside, bridge, 7),
            (outside, uplink, 7),
            (outside, uplink, 0),
        ] {
            others.note(&packet(source, hook, ip_id));
        }
        let rows: Vec<_> = others.take().into_iter().map(|row| (row.source, row.packets)).collect();
        assert_eq!(rows, [(Some(inside.into()), 3), (Some(outside.into()), 1)]);
    }

    #[test]
    fn an_error_about_an_answer_is_no_question() {
        let mut others = Others::default();
        for (protocol, kind) in [(ICMP, 11), (ICMP, ECHO), (ICMPV6, 3), (ICMPV6, 135), (ICMPV6, ECHO_V6), (6, 0)] {
            let mut packet = packet([10, 0, 0, 1], (3, Direction::Egress), 1);
            (packet.protocol, packet.flow.destination.port) = (protocol, u16::from_be_bytes([kind, 0]));
            others.note(&packet);
        }
        let kinds: Vec<_> = others.take().iter().map(|row| (row.protocol, row.packets)).collect();
        assert_eq!(kinds, [(ICMP, 1), (ICMPV6, 1)]);
    }

    #[test]
    fn a_flood_of_sources_stays_bounded_and_is_counted() {
        let mut others = Others::default();
        for n in 0..10_000u16 {
            let [high, low] = n.to_be_bytes();
            others.note(&packet([10, 0, high, low], (2, Direction::Ingress), n));
        }
        assert!(others.passed.len() <= MAX_PACKETS);
        let rows = others.take();
        assert_eq!(rows.len(), MAX_SOURCES + 1);
        assert_eq!(rows.last().map(|row| (row.source, row.packets)), Some((None, 10_000 - MAX_SOURCES as u64)));
    }
}
