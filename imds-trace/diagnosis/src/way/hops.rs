//! Which interfaces of a host does a client's packet pass, from where it comes in to where it goes out? Pure.
//!
//! An answer passes the same ones in the other direction, unless its way back is another, which `back` tells.

use std::collections::BTreeMap;

use super::network::{Kind, Link};
use crate::net::Ifindex;

/// Links that are stacked on each other at most.
const MAX_STACK: usize = 8;

/// From the interface that a client's link ends at, `None` for what the host itself sends, to the one by which the route leads out.
pub fn hops(links: &BTreeMap<Ifindex, Link>, end: Option<Ifindex>, out: Option<Ifindex>) -> Vec<Ifindex> {
    let mut passed = Vec::new();
    let inward = end.into_iter().chain(end.and_then(|end| upper(links, end)));
    for index in inward.chain(out.into_iter().flat_map(|out| below(links, out))) {
        if !passed.contains(&index) {
            passed.push(index);
        }
    }
    passed
}

/// The bridge or VRF whose port takes a packet in.
fn upper(links: &BTreeMap<Ifindex, Link>, end: Ifindex) -> Option<Ifindex> {
    links.get(&end)?.master.filter(|master| links.contains_key(master))
}

/// An interface, and those that it is stacked on and hands its frames to.
pub fn below(links: &BTreeMap<Ifindex, Link>, top: Ifindex) -> Vec<Ifindex> {
    let mut stack = vec![top];
    let mut from = 0;
    while from < stack.len() && stack.len() < MAX_STACK * MAX_STACK {
        let index = stack[from];
        from += 1;
        let Some(link) = links.get(&index) else { continue };
        let lower: Vec<Ifindex> = match link.kind {
            // What they are stacked on may be in another namespace, which has numbers of its own.
            Kind::Vlan | Kind::Macvlan | Kind::Ipvlan if link.other_netns.is_none() => link.other.into_iter().collect(),
            Kind::Bond => ports(links, index, |_| true),
            // A bridge sends out by a card in it; its other ports lead to clients.
            Kind::Bridge => ports(links, index, |kind| matches!(kind, Kind::Nic | Kind::Bond | Kind::Vlan)),
            _ => Vec::new(),
        };
        for index in lower {
            if !stack.contains(&index) {
                stack.push(index);
            }
        }
    }
    stack
}

fn ports(links: &BTreeMap<Ifindex, Link>, master: Ifindex, wanted: impl Fn(&Kind) -> bool) -> Vec<Ifindex> {
    let ports = links.values().filter(|port| port.master == Some(master) && wanted(&port.kind));
    ports.map(|port| port.index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> BTreeMap<Ifindex, Link> {
        let link = |index: u32, name: &str, kind| Link::new(Ifindex(index), name, kind);
        let port = |index, name: &str, kind, master| Link { master: Some(Ifindex(master)), ..link(index, name, kind) };
        let on = |index, name: &str, lower| Link { other: Some(Ifindex(lower)), ..link(index, name, Kind::Vlan) };
        let links = [
            link(3, "docker0", Kind::Bridge),
            port(4, "veth4", Kind::Pair, 3),
            port(5, "veth5", Kind::Pair, 3),
            link(6, "bond0", Kind::Bond),
            port(7, "ens5", Kind::Nic, 6),
            port(8, "ens6", Kind::Nic, 6),
            on(9, "bond0.7", 6),
            link(10, "br0", Kind::Bridge),
            port(11, "ens7", Kind::Nic, 10),
            port(12, "tap0", Kind::Tap, 10),
            link(13, "eni13", Kind::Pair),
        ];
        links.into_iter().map(|link| (link.index, link)).collect()
    }

    fn passed(end: Option<u32>, out: Option<u32>) -> Vec<u32> {
        hops(&host(), end.map(Ifindex), out.map(Ifindex)).into_iter().map(|index| index.0).collect()
    }

    #[test]
    fn by_a_port_its_bridge_and_all_that_the_uplink_is_stacked_on() {
        assert_eq!(passed(Some(4), Some(9)), [4, 3, 9, 6, 7, 8]);
        assert_eq!(passed(Some(13), Some(10)), [13, 10, 11]);
        assert_eq!(passed(None, Some(7)), [7]);
        assert_eq!(passed(Some(4), None), [4, 3]);
        assert_eq!(passed(Some(4), Some(3)), [4, 3], "back into the same bridge");
    }

    #[test]
    fn watch_listens_where_they_come_in_and_where_they_go_out() {
        use crate::way::listen::{Ways, plan};
        use crate::way::network::Towards;
        let links = host();
        for (end, out) in [(4, 9), (5, 10), (13, 6)].map(|(end, out)| (Ifindex(end), Ifindex(out))) {
            let towards = Towards { by: [out].into(), by_router: [out].into() };
            let ways = Ways { towards, settled: links.keys().copied().collect(), ..Ways::default() };
            // A pod's own link has its other end elsewhere.
            let links: BTreeMap<Ifindex, Link> = links
                .iter()
                .map(|(index, link)| {
                    (*index, Link { other_netns: (link.kind == Kind::Pair).then_some(0), ..link.clone() })
                })
                .collect();
            let wanted: Vec<Ifindex> = plan(&links, &ways, &[]).into_iter().map(|wanted| wanted.index).collect();
            let inward = hops(&links, Some(end), None);
            assert!(inward.iter().any(|index| wanted.contains(index)), "{end:?} in {wanted:?}");
            assert!(below(&links, out).iter().any(|index| wanted.contains(index)), "{out:?} in {wanted:?}");
        }
    }

    #[test]
    fn links_that_are_stacked_in_a_circle_end() {
        let ring = |index: u32, lower| Link {
            other: Some(Ifindex(lower)),
            ..Link::new(Ifindex(index), format!("v{index}"), Kind::Vlan)
        };
        let links = BTreeMap::from([(Ifindex(1), ring(1, 2)), (Ifindex(2), ring(2, 1))]);
        assert_eq!(below(&links, Ifindex(1)).len(), 2);
    }
}
