//! What is known of the host itself: its namespace, its addresses, its ways to IMDS?

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::journey::Hop;
use crate::net::{Direction, Ifindex, Netns};

/// Interfaces whose counters are remembered at most.
const MAX_COUNTERS: usize = 64;
/// The loopback interface: what goes out by it stays on the host.
const LOOPBACK: &str = "lo";

/// What the sources said of the host.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The namespace that the hooks are in.
    pub netns: Netns,
    /// The EC2 instance's id, if known.
    pub instance: Option<String>,
    /// Is nothing known but what a capture shows? No drops, no processes, and only the places where it listened.
    pub capture: bool,
    /// Interfaces towards IMDS.
    pub uplinks: Vec<Ifindex>,
    /// Are there hooks on all of them?
    pub watched: bool,
    /// Addresses of this host; empty if nobody said.
    pub addresses: Vec<IpAddr>,
    /// ENA's `linklocal_allowance_exceeded` by interface: first and last seen.
    exceeded: BTreeMap<String, (u64, u64)>,
}

impl Surroundings {
    /// A host of which nothing more was said yet.
    pub fn new(netns: Netns, instance: Option<String>) -> Self {
        Self { netns, instance, ..Self::default() }
    }

    /// Is this on the way out to IMDS, or in from it?
    pub fn is_uplink(&self, hop: &Hop, direction: Direction) -> bool {
        let interface = &hop.hook.interface;
        hop.hook.direction == direction && self.uplinks.contains(&interface.index) && interface.name != LOOPBACK
    }

    /// Takes in a reading of the ENA driver's counter.
    pub fn exceeded(&mut self, interface: &str, packets: u64) {
        if let Some((_, last)) = self.exceeded.get_mut(interface) {
            *last = packets;
        } else if self.exceeded.len() < MAX_COUNTERS {
            self.exceeded.insert(interface.to_owned(), (packets, packets));
        }
    }

    /// By how much ENA's counter has risen since it was first read; `None` if the driver has none.
    pub fn rise_of_exceeded(&self, interface: &str) -> Option<u64> {
        self.exceeded.get(interface).map(|(first, last)| last.saturating_sub(*first))
    }
}
