//! At which place was a packet seen, where the file does not name it; and which of two places is nearer to the client?
//!
//! A capture of one interface says nothing of which one that is, and several merged into one look like one. But what was seen at two
//! places shows where they are: a TTL falls on the way, so the packet with the higher one was nearer to its sender.

use std::collections::HashMap;

use super::frame::Mac;
use super::packet::Headers;
use crate::net::{Direction, Heading, Ifindex, Interface, Netns, has_fallen};
use crate::observation::Hook;

/// Places told apart at most; all others are one.
const MAX_PLACES: usize = 4_096;
/// Interfaces that lead to containers, by the beginnings of their names: Docker's, Podman's, libvirt's, LXC's, Kubernetes'.
const TO_CONTAINERS: [&str; 10] = ["docker", "br-", "veth", "podman", "cni", "cbr", "virbr", "lxc", "cali", "vnet"];
/// Interfaces that have no index of their own get numbers from here on, as far as those of others are above what Linux gives.
const FIRST_OWN: u32 = 1 << 20;

/// What a frame says of where it was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Spot {
    /// The interface's name.
    pub name: Option<String>,
    /// Its index.
    pub index: Option<u32>,
    /// Who stands at the client's end of the link, where nothing else is known.
    pub client_end: Option<Mac>,
    /// The tunnel that it came out of, where the interface that mattered is at the other end.
    pub tunnel: Option<String>,
    /// Does the file say which way packets passed, on all interfaces together?
    pub is_any: bool,
}

/// Number of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlaceId(usize);

/// A sighting of a packet, for others of the same packet.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    pub place: PlaceId,
    /// Which way it passed, if that was said.
    pub direction: Option<Direction>,
    pub ttl: u8,
}

/// Where a place is on the way of a client's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Role {
    /// Another place is nearer to the client.
    has_nearer: bool,
    /// Another is farther from it.
    has_farther: bool,
}

#[derive(Debug, Default)]
struct Place {
    spot: Spot,
    role: Role,
    /// Two interfaces that look like one: one packet passed both, without being told apart by anything but its TTL. For each
    /// direction that may be said.
    is_two: [bool; 3],
}

/// All places.
#[derive(Debug, Default)]
pub struct Places {
    places: Vec<Place>,
    by_spot: HashMap<Spot, PlaceId>,
    /// Indexes of interfaces, by name and whether it is the nearer one of two.
    indexes: HashMap<(String, bool), Ifindex>,
}

impl Places {
    /// The place's number.
    pub fn number(&mut self, spot: &Spot) -> PlaceId {
        if let Some(id) = self.by_spot.get(spot) {
            return *id;
        }
        if self.places.len() >= MAX_PLACES {
            return PlaceId(MAX_PLACES - 1);
        }
        let id = PlaceId(self.places.len());
        self.places.push(Place { spot: spot.clone(), ..Place::default() });
        self.by_spot.insert(spot.clone(), id);
        id
    }

    /// Learns from two sightings of one packet. Gives the nearer and the farther place, if they are two.
    pub fn relate(&mut self, heading: Heading, one: Sighting, other: Sighting) -> Option<(PlaceId, PlaceId)> {
        if one.ttl == other.ttl {
            return None;
        }
        let one_is_nearer = (one.ttl > other.ttl) == (heading == Heading::ToImds);
        let (near, far) = if one_is_nearer { (one, other) } else { (other, one) };
        if near.place == far.place {
            if near.direction == far.direction {
                self.places[near.place.0].is_two[slot(near.direction)] = true;
            }
            return None;
        }
        self.places[near.place.0].role.has_farther = true;
        self.places[far.place.0].role.has_nearer = true;
        Some((near.place, far.place))
    }

    /// Where a packet was seen. `others`: all sightings of it.
    pub fn hook(&mut self, headers: &Headers, seen: Sighting, others: &[Sighting]) -> Hook {
        let place = &self.places[seen.place.0];
        let is_two = place.is_two[slot(seen.direction)];
        let is_nearer = is_two && is_nearer(headers, seen, others);
        let mut role = place.role;
        role.has_farther |= is_nearer;
        role.has_nearer |= is_two && !is_nearer;
        let name = place.spot.called(role, is_nearer);
        let direction = seen.direction.unwrap_or_else(|| role.direction(headers.heading, &name));
        // Links of several clients lead to one interface, as far as can be seen. Between two others there may be several.
        let own = (role.has_nearer && role.has_farther && place.spot.is_nameless()).then_some(seen.place.0);
        let key = (own.map_or(name.clone(), |own| format!("{name} {own}")), is_nearer);
        let index = self.index(key, self.places[seen.place.0].spot.index);
        Hook { interface: Interface { netns: Netns::default(), index, name: name.into() }, direction }
    }

    /// An index that no other interface has: HTTP is read by it.
    fn index(&mut self, key: (String, bool), said: Option<u32>) -> Ifindex {
        if let Some(index) = self.indexes.get(&key) {
            return *index;
        }
        let free = |index: &u32| !self.indexes.values().any(|taken| taken.0 == *index);
        let index = said.filter(|_| !key.1).filter(free).or_else(|| {
            let first = if said.is_some() { FIRST_OWN } else { 1 };
            (first..=u32::MAX).find(free)
        });
        let index = Ifindex(index.unwrap_or_default());
        self.indexes.insert(key, index);
        index
    }

    /// How a place is called in a sentence.
    pub fn name(&self, id: PlaceId) -> String {
        let place = &self.places[id.0];
        place.spot.called(place.role, false)
    }
}

impl Spot {
    fn is_nameless(&self) -> bool {
        self.name.is_none() && self.index.is_none() && !self.is_any
    }

    fn called(&self, role: Role, is_nearer: bool) -> String {
        let name = match (self.index, &self.name) {
            (Some(index), _) => format!("if{index}"),
            (None, Some(name)) => name.clone(),
            (None, None) if self.is_any => "any".to_owned(),
            (None, None) => {
                let side = match (role.has_nearer, role.has_farther) {
                    (false, false) => None,
                    (false, true) => Some("client-side"),
                    (true, false) => Some("imds-side"),
                    (true, true) => Some("between"),
                };
                return match (self.tunnel.as_deref(), side) {
                    (None, side) => side.unwrap_or("capture").to_owned(),
                    (Some(tunnel), None) => tunnel.to_owned(),
                    (Some(tunnel), Some(side)) => format!("{tunnel}:{side}"),
                };
            }
        };
        if is_nearer { format!("{name}:client-side") } else { name }
    }
}

impl Role {
    /// Which way a packet passed, where the capture does not say. What was seen at two places shows it. Of one place its name does:
    /// what heads for IMDS comes in by an interface that leads to containers, and goes out by any other. If the interface is named
    /// unlike what it is, then every packet seems to begin and end there, which accuses nobody. The farthest of several that were captured
    /// leads to containers, too, if it is named so: docker0 beside a bridge in a container is no way out of the host.
    fn direction(self, heading: Heading, name: &str) -> Direction {
        let to_containers = self.has_farther || TO_CONTAINERS.iter().any(|beginning| name.starts_with(beginning));
        match (heading, to_containers) {
            (Heading::ToImds, true) | (Heading::FromImds, false) => Direction::Ingress,
            (Heading::ToImds, false) | (Heading::FromImds, true) => Direction::Egress,
        }
    }
}

/// Was it at the nearer one of two interfaces that look like one?
fn is_nearer(headers: &Headers, seen: Sighting, others: &[Sighting]) -> bool {
    let here = others.iter().filter(|other| (other.place, other.direction) == (seen.place, seen.direction));
    let (mut higher, mut lower) = (false, false);
    for other in here {
        higher |= other.ttl > seen.ttl;
        lower |= other.ttl < seen.ttl;
    }
    match (headers.heading, higher, lower) {
        (Heading::ToImds, false, true) | (Heading::FromImds, true, false) => true,
        // Seen once: a whole TTL is one that no forward was passed with. What comes from IMDS passes the farther one first.
        (Heading::ToImds, false, false) => !has_fallen(headers.ttl),
        _ => false,
    }
}

fn slot(direction: Option<Direction>) -> usize {
    match direction {
        None => 0,
        Some(Direction::Ingress) => 1,
        Some(Direction::Egress) => 2,
    }
}
