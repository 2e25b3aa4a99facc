//! What is known of the host itself: its namespace, its addresses, its ways to IMDS?

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::allow::AllowList;
use crate::identity::fact::{Forwarding, Network};
use crate::journey::{Evidence, Hop};
use crate::net::{Direction, Ifindex, Netns};

/// Interfaces whose counters are remembered at most.
const MAX_COUNTERS: usize = 64;
/// Addresses that were answered that are remembered at most: more than a network interface has.
const MAX_ANSWERED: usize = 4_096;
/// The loopback interface: what goes out by it stays on the host.
const LOOPBACK: &str = "lo";

/// What the sources said of the host.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The namespace that the hooks are in.
    pub netns: Netns,
    /// The EC2 instance's id, if known.
    pub instance: Option<String>,
    /// What is all of it known from?
    pub evidence: Evidence,
    /// Who may take a token or credentials, if that was said.
    pub allow: Option<AllowList>,
    /// Interfaces towards IMDS.
    pub uplinks: Vec<Ifindex>,
    /// Interfaces that containers are behind.
    pub inward: Vec<Ifindex>,
    /// Are there hooks on all of them?
    pub watched: bool,
    /// Addresses of this host; empty if nobody said.
    pub addresses: Vec<IpAddr>,
    /// The networks of those addresses; empty if nobody said.
    pub networks: Vec<Network>,
    /// Does its namespace forward?
    pub forwarding: Forwarding,
    /// Source addresses with which requests left this host and were answered.
    answered: BTreeSet<IpAddr>,
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
        hop.hook.direction == direction && self.uplinks.contains(&interface.index) && *interface.name != *LOOPBACK
    }

    /// A request that left this host with this source address was answered: EC2 knows it.
    pub fn was_answered(&mut self, source: IpAddr) {
        if self.answered.len() < MAX_ANSWERED {
            self.answered.insert(source);
        }
    }

    /// Does EC2 know this source address, as an answer to it showed?
    pub fn is_known_to_ec2(&self, source: IpAddr) -> bool {
        self.answered.contains(&source)
    }

    /// Can this address, with which a request left, be none of the instance's? Only one of a network that ends on this host, a bridge's, is
    /// known to be none: a network interface of EC2 may have addresses that no interface of the host has (pods of the VPC CNI, macvlan,
    /// delegated prefixes).
    pub fn is_inner(&self, address: IpAddr) -> bool {
        if self.is_known_to_ec2(address) || self.addresses.contains(&address) || is_link_local(address) {
            return false;
        }
        let is_outward =
            |network: &&Network| self.uplinks.contains(&network.interface) && !self.inward.contains(&network.interface);
        let mut held = self.networks.iter().filter(|network| network.holds(address)).peekable();
        if self.networks.is_empty() {
            return !self.addresses.is_empty() && !self.addresses.iter().any(|own| may_share_a_subnet(*own, address));
        }
        held.peek().is_some() && !held.any(|network| is_outward(&network))
    }

    /// Is this interface one that containers are behind, and IMDS is not? An answer from there is a stand-in's.
    pub fn is_inside(&self, interface: Ifindex) -> bool {
        self.inward.contains(&interface) && !self.uplinks.contains(&interface)
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

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// May an address be of the same subnet of a VPC as this one of the host's, whose network's length nobody told (in older recordings)? A
/// subnet is a /16 at most, a /64 with IPv6, and has its router, which is not the host, at its first address: a bridge has the host there.
fn may_share_a_subnet(own: IpAddr, address: IpAddr) -> bool {
    match (own, address) {
        (IpAddr::V4(own), IpAddr::V4(address)) => own.octets()[3] != 1 && own.octets()[..2] == address.octets()[..2],
        (IpAddr::V6(own), IpAddr::V6(address)) => {
            own.segments()[4..] != [0, 0, 0, 1] && own.segments()[..4] == address.segments()[..4]
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(networks: &[(u32, &str, u8)]) -> Surroundings {
        let mut host = Surroundings::new(Netns(1), None);
        (host.uplinks, host.inward) = (vec![Ifindex(2)], vec![Ifindex(3)]);
        host.addresses =
            ["10.77.0.10", "172.17.0.1", "fd00:d0c::1", "2001:db8::10"].map(|text| text.parse().unwrap()).to_vec();
        let network = |(interface, address, bits): &(u32, &str, u8)| Network {
            interface: Ifindex(*interface),
            address: address.parse().unwrap(),
            bits: *bits,
        };
        host.networks = networks.iter().map(network).collect();
        host
    }

    #[test]
    fn only_an_address_of_a_bridge_is_known_to_be_none_of_the_instances() {
        let host =
            host(&[(2, "10.77.0.10", 24), (3, "172.17.0.1", 16), (2, "2001:db8::10", 64), (3, "fd00:d0c::1", 64)]);
        let inner = |text: &str| host.is_inner(text.parse().unwrap());
        for none in ["172.17.0.2", "fd00:d0c::2"] {
            assert!(inner(none), "{none}");
        }
        // The interface's own subnet, a pod's of another one, link-local ones, the host's own.
        for perhaps in ["10.77.0.200", "100.64.3.7", "169.254.7.7", "2001:db8::77", "fe80::2", "10.77.0.10"] {
            assert!(!inner(perhaps), "{perhaps}");
        }
    }

    #[test]
    fn where_nobody_told_the_networks_a_neighbours_address_may_be_the_instances() {
        let host = host(&[]);
        let inner = |text: &str| host.is_inner(text.parse().unwrap());
        assert!(inner("172.17.0.2") && inner("fd00:d0c::2"));
        assert!(!inner("10.77.200.3") && !inner("2001:db8::77") && !inner("169.254.7.7"));
    }

    #[test]
    fn an_address_that_was_answered_is_known_to_ec2() {
        let mut host = host(&[(2, "10.77.0.10", 24), (3, "172.17.0.1", 16)]);
        let address = "172.17.0.2".parse().unwrap();
        assert!(host.is_inner(address));
        host.was_answered(address);
        assert!(!host.is_inner(address));
    }
}
