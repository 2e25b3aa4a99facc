//! In which order did the packets pass, where captures were merged whose times do not fit? Holds packets back until those that were
//! seen at several places are known, and puts clocks right that contradict each other.
//!
//! dumpcap reads each interface by a thread of its own and writes as they come, tools append one file to another, and two machines
//! have two clocks. A packet is seen nearer to its sender first: if the times say otherwise, the clocks differ.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use super::packet::Headers;
use super::places::{PlaceId, Places, Sighting, Spot};
use crate::net::{Direction, Heading, Timestamp};
use crate::observation::{Hook, Icmp, Tcp};

/// Packets held back at most: all those to and from IMDS of nearly every capture.
const MAX_HELD: usize = 65_536;
/// Bytes of payload held back at most.
const MAX_BYTES: usize = 64 << 20;
/// What a packet takes besides its payload, about.
const OVERHEAD: usize = 256;
/// A clock that falls behind itself by so much was set back; by less, its frames were written out of order (libpcap lets a frame wait
/// for others for a second at most by default).
const SET_BACK: Duration = Duration::from_secs(2);
/// Sightings of one packet that are compared; a stack of bridges has fewer.
const MAX_SIGHTINGS: usize = 32;
/// Of one packet, the order of sightings so close together is told by their TTLs: no TCP sends anything again so soon.
const CLOSE: Duration = Duration::from_millis(5);
/// Differences of times kept of two places.
const MAX_SAMPLES: usize = 64;
/// So many tell how two clocks differ, where they differ by more than a retransmission comes later.
const ENOUGH: usize = 3;
/// A retransmission does not come sooner (Linux TCP_RTO_MIN).
const RETRANSMISSION: i64 = 200_000_000;
/// No forward takes longer: what came so much later was told by another clock.
const FORWARD: i64 = 100_000_000;
/// How often clocks are put right.
const MAX_SETTLED: usize = 16;
/// Clocks that differ by less are not worth a word.
const WORTH_TELLING: u64 = 1_000_000;

/// A packet as it was seen at one place.
#[derive(Debug)]
pub struct Sighted {
    pub at: Timestamp,
    pub spot: Spot,
    pub direction: Option<Direction>,
    pub headers: Headers,
    pub payload: Vec<u8>,
}

/// What no forwarding changes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    heading: Heading,
    tcp: Tcp,
    ip_id: u16,
    icmp: Option<Icmp>,
}

/// A sighting of one packet.
#[derive(Clone, Copy, Debug)]
struct Member {
    number: u64,
    raw: Timestamp,
    at: Timestamp,
    seen: Sighting,
}

struct Held {
    /// By this they are ordered: the time, unless a clock was set back.
    turn: Timestamp,
    /// Its place among all, for those of one time.
    number: u64,
    at: Timestamp,
    place: PlaceId,
    packet: Sighted,
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.turn, self.number).cmp(&(other.turn, other.number))
    }
}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Held {}

/// The clock that a place's times are told by.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    /// By so many nanoseconds it is ahead of the others.
    ahead: i64,
    /// By so much it was set back.
    back: Duration,
    latest: Timestamp,
}

/// How much later packets were seen at the farther one of two places.
#[derive(Debug, Default)]
struct Delays {
    to_imds: Vec<i64>,
    from_imds: Vec<i64>,
}

/// Packets that wait.
#[derive(Default)]
pub struct Order {
    places: Places,
    held: BinaryHeap<Reverse<Held>>,
    bytes: usize,
    read: u64,
    sightings: HashMap<Key, Vec<Member>>,
    keys: VecDeque<Key>,
    clocks: HashMap<PlaceId, Clock>,
    /// By the nearer and the farther place.
    delays: BTreeMap<(PlaceId, PlaceId), Delays>,
    /// Is there something new in it?
    is_unsettled: bool,
    settled: usize,
}

impl Order {
    /// Is there no room for another?
    pub fn is_full(&self) -> bool {
        self.held.len() >= MAX_HELD || self.bytes >= MAX_BYTES
    }

    /// Takes one in.
    pub fn push(&mut self, packet: Sighted) {
        let place = self.places.number(&packet.spot);
        self.read += 1;
        let number = self.read;
        self.learn(number, place, &packet);
        self.bytes += OVERHEAD + packet.payload.len();
        self.hold(number, place, packet);
    }

    /// The first of those that wait, and where it was seen.
    pub fn pop(&mut self) -> Option<(Timestamp, Hook, Sighted)> {
        if self.is_unsettled && self.settled < MAX_SETTLED {
            self.is_unsettled = false;
            self.settle();
        }
        let Reverse(Held { at, place, packet, .. }) = self.held.pop()?;
        self.bytes -= OVERHEAD + packet.payload.len();
        let seen = sighting(place, &packet);
        let members = key(&packet.headers).and_then(|key| self.sightings.get(&key));
        let others: Vec<Sighting> = members.into_iter().flatten().map(|member| member.seen).collect();
        let hook = self.places.hook(&packet.headers, seen, &others);
        Some((at, hook, packet))
    }

    /// A sentence for each clock that was put right.
    pub fn notes(&self) -> Vec<String> {
        let mut told = BTreeSet::new();
        for (near, far) in self.delays.keys() {
            let ahead = self.ahead(*far) - self.ahead(*near);
            if ahead.unsigned_abs() > WORTH_TELLING {
                let seconds = ahead as f64 / 1e9;
                let [near, far] = [*near, *far].map(|place| self.places.name(place));
                told.insert(format!(
                    "the clock of {far} is {seconds:+.3} s beside that of {near}, as one packet seen at both shows: times are put right"
                ));
            }
        }
        told.into_iter().collect()
    }

    fn ahead(&self, place: PlaceId) -> i64 {
        self.clocks.get(&place).map_or(0, |clock| clock.ahead)
    }

    /// What other sightings of the same packet tell.
    fn learn(&mut self, number: u64, place: PlaceId, packet: &Sighted) {
        let Some(key) = key(&packet.headers) else { return };
        if !self.sightings.contains_key(&key) {
            self.keys.push_back(key);
            while self.keys.len() > 2 * MAX_HELD {
                if let Some(oldest) = self.keys.pop_front() {
                    self.sightings.remove(&oldest);
                }
            }
        }
        let members = self.sightings.entry(key).or_default();
        if members.len() >= MAX_SIGHTINGS {
            return;
        }
        let seen = sighting(place, packet);
        let is_alone = |place: PlaceId| members.iter().filter(|member| member.seen.place == place).count() <= 1;
        for other in members.iter() {
            let Some((near, far)) = self.places.relate(packet.headers.heading, other.seen, seen) else { continue };
            // If it was sent again, nobody knows which sightings belong together.
            if members.iter().any(|member| member.seen.place == place) || !is_alone(other.seen.place) {
                continue;
            }
            let (at_near, at_far) = if near == place { (packet.at, other.raw) } else { (other.raw, packet.at) };
            let later = i64::try_from(i128::from(at_far.0) - i128::from(at_near.0)).unwrap_or(i64::MAX);
            let delays = self.delays.entry((near, far)).or_default();
            let samples = match packet.headers.heading {
                Heading::ToImds => &mut delays.to_imds,
                Heading::FromImds => &mut delays.from_imds,
            };
            if samples.len() < MAX_SAMPLES {
                samples.push(later);
                self.is_unsettled = true;
            }
        }
        members.push(Member { number, raw: packet.at, at: packet.at, seen });
    }

    /// Puts one among those that wait.
    fn hold(&mut self, number: u64, place: PlaceId, packet: Sighted) {
        let clock = self.clocks.entry(place).or_default();
        let mut at = Timestamp(packet.at.0.saturating_add_signed(clock.ahead.saturating_neg()));
        let turn = at.after(clock.back);
        if clock.latest.since(turn) > SET_BACK {
            clock.back += clock.latest.since(turn);
        }
        clock.latest = clock.latest.max(at.after(clock.back));
        let back = clock.back;
        if let Some(members) = key(&packet.headers).and_then(|key| self.sightings.get_mut(&key)) {
            let ttl = packet.headers.ttl.0;
            for other in members.iter().filter(|other| other.number < number && other.seen.ttl != ttl) {
                let apart = at.since(other.at).max(other.at.since(at));
                if apart <= CLOSE && other.seen.ttl > ttl && at < other.at {
                    at = Timestamp(other.at.0.saturating_add(1));
                } else if apart <= CLOSE && other.seen.ttl < ttl && at >= other.at {
                    at = Timestamp(other.at.0.saturating_sub(1));
                }
            }
            if let Some(own) = members.iter_mut().find(|member| member.number == number) {
                own.at = at;
            }
        }
        self.held.push(Reverse(Held { turn: at.after(back), number, at, place, packet }));
    }

    /// Puts clocks right that contradict each other. The place that was seen first has the right one.
    fn settle(&mut self) {
        let mut ahead: BTreeMap<PlaceId, i64> = BTreeMap::new();
        let mut edges: BTreeMap<PlaceId, Vec<(PlaceId, i64)>> = BTreeMap::new();
        for ((near, far), delays) in &self.delays {
            let difference = delays.difference();
            edges.entry(*near).or_default().push((*far, difference));
            edges.entry(*far).or_default().push((*near, difference.saturating_neg()));
        }
        let mut changed = false;
        for first in edges.keys() {
            if ahead.contains_key(first) {
                continue;
            }
            ahead.insert(*first, 0);
            let mut next = VecDeque::from([*first]);
            while let Some(place) = next.pop_front() {
                for (other, difference) in edges.get(&place).into_iter().flatten() {
                    if !ahead.contains_key(other) {
                        ahead.insert(*other, ahead[&place].saturating_add(*difference));
                        next.push_back(*other);
                    }
                }
            }
        }
        for (place, ahead) in ahead {
            let clock = self.clocks.entry(place).or_default();
            changed |= clock.ahead != ahead;
            clock.ahead = ahead;
        }
        if changed {
            self.settled += 1;
            self.clocks.values_mut().for_each(|clock| (clock.back, clock.latest) = Default::default());
            let mut all = std::mem::take(&mut self.held).into_vec();
            all.sort_by_key(|Reverse(held)| held.number);
            for Reverse(Held { number, place, packet, .. }) in all {
                self.hold(number, place, packet);
            }
        }
    }
}

impl Delays {
    /// By how much the farther place's clock is ahead of the nearer one's, as far as that must be so.
    fn difference(&self) -> i64 {
        let (to, from) = (median(&self.to_imds), median(&self.from_imds));
        let (count, counted) = (self.to_imds.len(), self.from_imds.len());
        // What goes to IMDS comes later to the farther place, what comes from it sooner.
        let (difference, samples) = match (to, from) {
            (Some(to), Some(from)) if to >= 0 && from <= 0 => return 0,
            (Some(to), Some(from)) if (-FORWARD..=FORWARD).contains(&(to.saturating_sub(from) / 2)) => {
                (to.midpoint(from), count + counted)
            }
            // They contradict each other: some are of other packets.
            (Some(to), Some(_)) if count > counted => (to, count),
            (Some(_), Some(from)) => (from, counted),
            (Some(to), None) if (0..=FORWARD).contains(&to) => return 0,
            (Some(to), None) => (to, count),
            (None, Some(from)) if (-FORWARD..=0).contains(&from) => return 0,
            (None, Some(from)) => (from, counted),
            (None, None) => return 0,
        };
        let may_be_sent_again = difference.saturating_abs() >= RETRANSMISSION;
        if may_be_sent_again && samples < ENOUGH { 0 } else { difference }
    }
}

fn median(samples: &[i64]) -> Option<i64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

fn key(headers: &Headers) -> Option<Key> {
    let Headers { heading, ip_id, icmp, .. } = *headers;
    headers.tcp.map(|tcp| Key { heading, tcp, ip_id, icmp })
}

fn sighting(place: PlaceId, packet: &Sighted) -> Sighting {
    Sighting { place, direction: packet.direction, ttl: packet.headers.ttl.0 }
}
