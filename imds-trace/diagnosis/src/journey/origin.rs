//! Did a packet that says it is from IMDS come from there?
//!
//! A container with a raw socket can send such packets. They come in by another interface than those towards IMDS; they, and what
//! becomes of them further on, say nothing of IMDS. Which way is up is learned from the packets: what a request left by, its answer comes
//! in by, and no container is behind an interface that none is known to be behind; the host's own routes are one hint among several. A packet may be forged with the very numbers of the one that is about to come:
//! the one that comes in by a way to IMDS is the real one, whatever came before it or after.

use std::collections::{HashSet, VecDeque};

use super::packet_key::PacketKey;
use crate::net::{Direction, Heading, Ifindex};
use crate::observation::{Observation, Place};

/// Packets remembered at most, forged and genuine ones apart; each crosses the host within microseconds.
const MAX_PACKETS: usize = 4096;

/// Which packets are from IMDS.
#[derive(Debug, Default)]
pub(super) struct Origins {
    /// Interfaces towards IMDS; empty if nobody said.
    uplinks: Vec<Ifindex>,
    /// Interfaces that containers are behind; empty if nobody said.
    inward: Vec<Ifindex>,
    forged: Latest,
    genuine: Latest,
}

impl Origins {
    /// The routes to the endpoints use these interfaces now, and containers are behind those.
    pub(super) fn learn(&mut self, uplinks: &[Ifindex], inward: &[Ifindex]) {
        self.uplinks = uplinks.to_vec();
        self.inward = inward.to_vec();
    }

    fn is_up(&self, interface: Ifindex) -> bool {
        let is_outward = !self.inward.is_empty() && !self.inward.contains(&interface);
        self.uplinks.contains(&interface) || is_outward
    }

    /// Does this interface lead to IMDS, and to no container?
    pub(super) fn is_only_up(&self, interface: Ifindex) -> bool {
        self.uplinks.contains(&interface) && !self.inward.contains(&interface)
    }

    /// Is it a sighting of a packet that is not from IMDS, though it says so? `left_by`: did requests of its connection leave by this
    /// interface?
    pub(super) fn is_forged(
        &mut self,
        observation: &Observation,
        key: PacketKey,
        left_by: impl FnOnce(Ifindex) -> bool,
    ) -> bool {
        if observation.heading != Heading::FromImds || self.uplinks.is_empty() {
            return false;
        }
        match &observation.place {
            Place::Hook(hook) if hook.direction == Direction::Ingress => {
                let index = hook.interface.index;
                if self.is_up(index) || left_by(index) {
                    self.forged.remove(&key);
                    self.genuine.insert(key);
                    return false;
                }
                if !self.genuine.contains(&key) {
                    self.forged.insert(key);
                }
                true
            }
            Place::Hook(_) | Place::Drop(_) => self.forged.contains(&key),
        }
    }
}

/// The latest packets of a kind.
#[derive(Debug, Default)]
struct Latest {
    packets: HashSet<PacketKey>,
    order: VecDeque<PacketKey>,
}

impl Latest {
    fn contains(&self, key: &PacketKey) -> bool {
        self.packets.contains(key)
    }

    fn insert(&mut self, key: PacketKey) {
        if self.packets.insert(key) {
            self.order.push_back(key);
        }
        while self.order.len() > MAX_PACKETS {
            if let Some(oldest) = self.order.pop_front() {
                self.packets.remove(&oldest);
            }
        }
    }

    fn remove(&mut self, key: &PacketKey) {
        // Its place in the order stays, and goes with its turn.
        self.packets.remove(key);
    }
}
