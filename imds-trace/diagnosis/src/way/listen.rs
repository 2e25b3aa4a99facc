//! On which interfaces is traffic to IMDS to be listened to? All by which some client's can come in, or leave this host.

use std::collections::{BTreeMap, BTreeSet};

use super::network::{Kind, Link, Towards};
use crate::net::Ifindex;

/// Docker's first bridge.
const DEFAULT_BRIDGE: &str = "docker0";
/// User-defined bridges: `br-` and the beginning of the network's id.
const USER_BRIDGE: &str = "br-";

/// An interface to listen on, in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its index.
    pub index: Ifindex,
    /// Its name.
    pub name: String,
    /// Why.
    pub why: Why,
}

/// Why we listen on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// `--interface` names it.
    Asked,
    /// Some route to an endpoint goes out by it.
    Route,
    /// It is a network card: what is stacked on it, or forwarded by a program, needs no route.
    Nic,
    /// Containers hang on it.
    Bridge,
    /// It leads to one container or pod, without a bridge.
    Pair,
}

/// What is known of the host's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Interfaces that some route to an endpoint uses.
    pub towards: Towards,
    /// Interfaces that some route uses, to wherever.
    pub routed: BTreeSet<Ifindex>,
    /// Interfaces that were there a while ago already. A bridge's port is nobody's port in its first moment.
    pub settled: BTreeSet<Ifindex>,
}

impl Ways {
    /// Interfaces by which some way to IMDS leaves the host: every route's, and network cards, on which others may be stacked.
    pub fn uplinks(&self, links: &BTreeMap<Ifindex, Link>) -> BTreeSet<Ifindex> {
        let cards = links.values().filter(|link| is_card(link, links)).map(|link| link.index);
        // A network of containers that holds the endpoint's address (a stand-in's) is no way out of this host.
        let ends_here = |link: &Link| is_container_bridge(link, links) && !self.towards.by_router.contains(&link.index);
        let leads_out = |index: &Ifindex| links.get(index).is_some_and(|link| !ends_here(link));
        cards.chain(self.towards.by.iter().copied().filter(leads_out)).collect()
    }

    /// Interfaces that containers, pods or guests are behind. One may be an uplink, too, if a route to IMDS leads to a container.
    pub fn inward(&self, links: &BTreeMap<Ifindex, Link>) -> BTreeSet<Ifindex> {
        // A route to IMDS may lead into a bridge's port.
        let port =
            |link: &Link| link.master.is_some() && link.kind == Kind::Pair && self.towards.by.contains(&link.index);
        let holds = |link: &&Link| is_container_bridge(link, links) || self.is_containers_end(link) || port(link);
        links.values().filter(holds).map(|link| link.index).collect()
    }

    /// Is it the host's end of one container's own link? One that a router to IMDS is behind is none: in a container, or a virtual
    /// lab, that is what leads to the world.
    fn is_containers_end(&self, link: &Link) -> bool {
        let there = self.routed.contains(&link.index) || self.settled.contains(&link.index);
        let alone = link.master.is_none() && !self.towards.by_router.contains(&link.index);
        link.kind == Kind::Pair && link.up && link.other_netns.is_some() && alone && there
    }
}

/// What of the interfaces that are there is wanted. With `asked`, only what it names (`*` stands for any characters).
///
/// Ports of bridges are not: there may be hundreds, and what they bring passes the bridge.
pub fn plan(links: &BTreeMap<Ifindex, Link>, ways: &Ways, asked: &[String]) -> Vec<Wanted> {
    let why = |link: &Link| {
        if !asked.is_empty() {
            let named = asked.iter().any(|pattern| wildmatch::WildMatch::new(pattern).matches(&link.name));
            named.then_some(Why::Asked)
        } else if ways.towards.by.contains(&link.index) {
            Some(Why::Route)
        } else if is_card(link, links) {
            Some(Why::Nic)
        } else if is_container_bridge(link, links) {
            Some(Why::Bridge)
        } else {
            ways.is_containers_end(link).then_some(Why::Pair)
        }
    };
    let wanted = |link: &Link| Some(Wanted { index: link.index, name: link.name.clone(), why: why(link)? });
    links.values().filter_map(wanted).collect()
}

/// A network card that is up. Those that only carry a bond's frames are left to the bond; ports of a bridge are not left to the bridge,
/// which forwards frames between its ports without showing them on itself.
fn is_card(link: &Link, links: &BTreeMap<Ifindex, Link>) -> bool {
    let master = link.master.and_then(|master| links.get(&master));
    link.kind == Kind::Nic && link.up && master.is_none_or(|master| matches!(master.kind, Kind::Bridge | Kind::Vrf))
}

fn is_container_bridge(link: &Link, links: &BTreeMap<Ifindex, Link>) -> bool {
    let has_guests =
        || links.values().any(|port| port.master == Some(link.index) && matches!(port.kind, Kind::Pair | Kind::Tap));
    link.kind == Kind::Bridge && (link.name == DEFAULT_BRIDGE || link.name.starts_with(USER_BRIDGE) || has_guests())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: Kind) -> (Ifindex, Link) {
        (Ifindex(index), Link::new(Ifindex(index), name, kind))
    }

    fn port(index: u32, name: &str, kind: Kind, master: u32) -> (Ifindex, Link) {
        let (index, link) = link(index, name, kind);
        (index, Link { master: Some(Ifindex(master)), other_netns: Some(0), ..link })
    }

    fn pair(index: u32, name: &str) -> (Ifindex, Link) {
        let (index, link) = link(index, name, Kind::Pair);
        (index, Link { other_netns: Some(0), ..link })
    }

    fn host() -> BTreeMap<Ifindex, Link> {
        let (down, link_down) = link(12, "ens8", Kind::Nic);
        BTreeMap::from([
            link(1, "lo", Kind::Loopback),
            link(2, "ens5", Kind::Nic),
            link(3, "ens6", Kind::Nic),
            link(4, "docker0", Kind::Bridge),
            link(5, "br-0123456789ab", Kind::Bridge),
            link(6, "gitlab", Kind::Bridge),
            port(7, "veth1", Kind::Pair, 6),
            link(8, "virbr0", Kind::Bridge),
            link(9, "br-not-a-bridge", Kind::Other("dummy".into())),
            pair(10, "eni1a2b3c"),
            pair(11, "cali9"),
            (down, Link { up: false, ..link_down }),
            link(13, "bond0", Kind::Bond),
            port(14, "ens9", Kind::Nic, 13),
            port(15, "ens10", Kind::Nic, 6),
            link(16, "vlan.eth.1", Kind::Vlan),
        ])
    }

    fn ways() -> Ways {
        let of = |indices: &[u32]| indices.iter().copied().map(Ifindex).collect();
        let towards = Towards { by: of(&[2, 16]), by_router: of(&[2, 16]) };
        Ways { towards, routed: of(&[2, 4, 10, 16]), settled: BTreeSet::new() }
    }

    fn names(ways: &Ways, asked: &[&str]) -> Vec<String> {
        let asked: Vec<String> = asked.iter().map(|name| (*name).to_owned()).collect();
        plan(&host(), ways, &asked).into_iter().map(|wanted| wanted.name).collect()
    }

    #[test]
    fn by_default_routes_cards_bridges_and_containers_own_links() {
        let expected = ["ens5", "ens6", "docker0", "br-0123456789ab", "gitlab", "eni1a2b3c", "ens10", "vlan.eth.1"];
        assert_eq!(names(&ways(), &[]), expected);
    }

    #[test]
    fn a_link_that_no_route_names_counts_when_it_stays_nobody_s_port() {
        let ways = Ways { settled: BTreeSet::from([Ifindex(11)]), ..ways() };
        assert!(names(&ways, &[]).contains(&"cali9".to_owned()));
    }

    #[test]
    fn what_is_asked_for_and_nothing_else() {
        assert_eq!(names(&ways(), &["ens6"]), ["ens6"]);
        assert_eq!(names(&ways(), &["br-*", "lo"]), ["lo", "br-0123456789ab", "br-not-a-bridge"]);
        assert!(names(&ways(), &["nosuch"]).is_empty());
    }

    #[test]
    fn uplinks_lead_out_and_containers_are_behind_the_others() {
        let indices = |set: BTreeSet<Ifindex>| set.into_iter().map(|index| index.0).collect::<Vec<_>>();
        assert_eq!(indices(ways().uplinks(&host())), [2, 3, 15, 16]);
        assert_eq!(indices(ways().inward(&host())), [4, 5, 6, 10]);
        // An address of 169.254.0.0/16 on a bridge's port, and a router behind a pair.
        let towards = Towards { by: [7, 10].map(Ifindex).into(), by_router: [10].map(Ifindex).into() };
        let ways = Ways { towards, ..ways() };
        assert_eq!(indices(ways.uplinks(&host())), [2, 3, 7, 10, 15]);
        assert_eq!(indices(ways.inward(&host())), [4, 5, 6, 7]);
        // A network of containers that has a stand-in at IMDS's address: listened to, and no way out.
        let towards = Towards { by: [2, 5].map(Ifindex).into(), by_router: [2].map(Ifindex).into() };
        let ways = Ways { towards, ..self::ways() };
        assert_eq!(indices(ways.uplinks(&host())), [2, 3, 15]);
        assert!(names(&ways, &[]).contains(&"br-0123456789ab".to_owned()));
    }

    #[test]
    fn of_hundreds_of_containers_on_one_bridge_only_the_bridge_is_wanted() {
        let mut links = BTreeMap::from([link(2, "ens5", Kind::Nic), link(3, "docker0", Kind::Bridge)]);
        links.extend((10..510).map(|index| port(index, &format!("veth{index}"), Kind::Pair, 3)));
        let settled = links.keys().copied().collect();
        let wanted = plan(&links, &Ways { settled, ..Ways::default() }, &[]);
        assert_eq!(wanted.iter().map(|wanted| wanted.name.as_str()).collect::<Vec<_>>(), ["ens5", "docker0"]);
    }
}
