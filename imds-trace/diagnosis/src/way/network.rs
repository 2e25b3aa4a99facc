//! What does the network of one namespace consist of: links, addresses, routes, policy rules?

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::net::Ifindex;

/// Tables that the kernel asks where nobody changed its rules (`include/uapi/linux/rtnetlink.h`).
pub const DEFAULT_TABLES: [u32; 3] = [255, 254, 253];

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: Ifindex,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Is it administratively up?
    pub up: bool,
    /// Has it a carrier? Without one the kernel sends nothing by it.
    pub carrier: bool,
    /// The bridge, bond or VRF that it is a port of.
    pub master: Option<Ifindex>,
    /// `IFLA_LINK`: the other end of a pair, or the interface that it is stacked on.
    pub other: Option<Ifindex>,
    /// Is [`Self::other`] in another namespace? The kernel's number for it, as this namespace counts.
    pub other_netns: Option<i32>,
    /// A VRF's table.
    pub table: Option<u32>,
    /// The program that XDP runs on what comes in, by its id.
    pub xdp: Option<u32>,
    /// Its Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// Does it do without neighbours (`NOARP`)?
    pub no_arp: bool,
    /// How many bytes a packet may have there, if that is known.
    pub mtu: Option<u32>,
    /// How its bridge is set at it, if it is a bridge's port.
    pub port: Option<Port>,
}

/// How a bridge is set at one of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// What it does with frames.
    pub state: PortState,
    /// Does it let in only stations that are in the bridge's table for it (`locked`)?
    pub locked: bool,
    /// Does the table also hold stations that are not let in yet (`mab`)?
    pub holds_strangers: bool,
    /// Does the bridge learn which stations are behind it?
    pub learns: bool,
    /// Does it get frames to stations of which the bridge knows no port (`flood`)?
    pub floods: bool,
}

/// What a bridge's port does with frames (`BR_STATE_...` in `include/uapi/linux/if_bridge.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// It passes them.
    Forwarding,
    /// The spanning tree listens or learns, and passes none yet.
    Starting,
    /// It is disabled.
    Disabled,
    /// The spanning tree blocks it.
    Blocking,
}

impl Port {
    /// As a bridge sets it where nobody said otherwise.
    pub fn new(state: PortState) -> Self {
        Self { state, locked: false, holds_strangers: false, learns: true, floods: true }
    }
}

impl Link {
    /// A link that is up, and nothing more.
    pub fn new(index: Ifindex, name: impl Into<String>, kind: Kind) -> Self {
        Self {
            index,
            name: name.into(),
            kind,
            up: true,
            carrier: true,
            master: None,
            other: None,
            other_netns: None,
            table: None,
            xdp: None,
            mac: None,
            no_arp: false,
            mtu: None,
            port: None,
        }
    }
}

/// What an interface is, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Loopback.
    Loopback,
    /// Hardware, or what a hypervisor shows as such: nothing that Linux made of something else.
    Nic,
    /// A bridge.
    Bridge,
    /// One end of a pair (veth, netkit), of which the other may be in another namespace.
    Pair,
    /// macvlan or macvtap: a MAC of its own on another interface.
    Macvlan,
    /// ipvlan or ipvtap: addresses of its own on another interface, under its MAC.
    Ipvlan,
    /// A VLAN of another interface.
    Vlan,
    /// A bond or team of several.
    Bond,
    /// A routing domain.
    Vrf,
    /// The end of a tunnel (WireGuard, VXLAN, GRE, a VPN's tun), by the kernel's name for its kind.
    Tunnel(String),
    /// A virtual machine's network card, or a program's that reads frames.
    Tap,
    /// Something else, by the kernel's name for it.
    Other(String),
}

/// A route of some table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRoute {
    /// Its table.
    pub table: u32,
    /// To where: an address of the family, and how many bits of it count.
    pub to: (IpAddr, u8),
    /// What it says.
    pub kind: RouteKind,
    /// Out by these; several where it has several next hops.
    pub by: Vec<Ifindex>,
    /// Does it name a next router, rather than say that whom it leads to is on the link?
    pub routed_on: bool,
}

/// What a route says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Out.
    Unicast,
    /// To this host.
    Local,
    /// Something that sends nobody anywhere, as `prohibit`.
    Nowhere,
    /// That its table says nothing of them: the next rule is asked (`throw`).
    Throw,
}

impl TableRoute {
    /// Does it lead to this address?
    pub fn covers(&self, address: IpAddr) -> bool {
        in_prefix(address, self.to)
    }
}

/// A policy rule: which table is asked for whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyRule {
    /// The table that it sends to; `None` if it sends to none (goto, prohibit, a VRF's).
    pub table: Option<u32>,
    /// Does it send to the table of the VRF that the packet is of?
    pub vrf: bool,
    /// Rules of a lower one are asked before.
    pub priority: u32,
    /// It holds for whom its conditions do not hold.
    pub inverted: bool,
    /// From these addresses.
    pub from: Option<(IpAddr, u8)>,
    /// To these addresses.
    pub to: Option<(IpAddr, u8)>,
    /// In by this interface; `lo` stands for what this host sends.
    pub iif: Option<String>,
    /// With these bits of the mark under this mask.
    pub mark: Option<(u32, u32)>,
    /// A route whose prefix is no longer than this is passed over.
    pub suppressed: Option<u32>,
    /// It asks for something else besides.
    pub other: bool,
    /// Among that: for some users' processes, and not for all.
    pub users: bool,
}

/// By what an endpoint is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Towards {
    /// By these interfaces.
    pub by: BTreeSet<Ifindex>,
    /// By these of them over a router.
    pub by_router: BTreeSet<Ifindex>,
}

/// Routes and rules of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Routes of all tables.
    pub routes: Vec<TableRoute>,
    /// Policy rules.
    pub rules: Vec<PolicyRule>,
}

impl Routing {
    /// Interfaces by which an endpoint is reached by some route of some table that some rule asks: from whatever source, with whatever
    /// mark, bound to whatever interface. More than the kernel would ever use, and nothing that it would use is missing.
    pub fn towards(&self, endpoints: &[IpAddr], links: &BTreeMap<Ifindex, Link>) -> Towards {
        let mut tables: BTreeSet<u32> = self.rules.iter().filter_map(|rule| rule.table).collect();
        if self.rules.iter().any(|rule| rule.vrf) {
            tables.extend(links.values().filter_map(|link| link.table));
        }
        if self.rules.is_empty() {
            tables.extend(DEFAULT_TABLES);
        }
        let leads = |route: &&TableRoute| {
            matches!(route.kind, RouteKind::Unicast | RouteKind::Local)
                && tables.contains(&route.table)
                && endpoints.iter().any(|endpoint| route.covers(*endpoint))
        };
        let mut towards = Towards::default();
        for route in self.routes.iter().filter(leads) {
            towards.by.extend(&route.by);
            if route.routed_on {
                towards.by_router.extend(&route.by);
            }
        }
        towards
    }

    /// Interfaces that some unicast route names.
    pub fn routed(&self) -> BTreeSet<Ifindex> {
        let unicast = self.routes.iter().filter(|route| route.kind == RouteKind::Unicast);
        unicast.flat_map(|route| route.by.iter().copied()).collect()
    }
}

/// Do the first bits of an address equal those of a prefix?
pub fn in_prefix(address: IpAddr, (prefix, length): (IpAddr, u8)) -> bool {
    match (address, prefix) {
        (IpAddr::V4(address), IpAddr::V4(prefix)) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(length.into())).unwrap_or(0);
            (address.to_bits() ^ prefix.to_bits()) & mask == 0
        }
        (IpAddr::V6(address), IpAddr::V6(prefix)) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length.into())).unwrap_or(0);
            (address.to_bits() ^ prefix.to_bits()) & mask == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn route(table: u32, to: &str, length: u8, kind: RouteKind, by: u32) -> TableRoute {
        TableRoute { table, to: (address(to), length), kind, by: vec![Ifindex(by)], routed_on: false }
    }

    #[test]
    fn a_prefix_holds_its_addresses_and_no_other() {
        let imds = address("169.254.169.254");
        assert!(in_prefix(imds, (address("0.0.0.0"), 0)) && in_prefix(imds, (address("169.254.0.0"), 16)));
        assert!(in_prefix(imds, (imds, 32)) && !in_prefix(imds, (address("169.254.169.253"), 32)));
        assert!(in_prefix(address("fd00:ec2::254"), (address("fd00::"), 8)));
        assert!(!in_prefix(imds, (address("::"), 0)));
    }

    #[test]
    fn every_table_that_a_rule_asks_counts_and_no_other() {
        let routing = Routing {
            routes: vec![
                route(254, "0.0.0.0", 0, RouteKind::Unicast, 2),
                route(7, "0.0.0.0", 0, RouteKind::Unicast, 3),
                route(8, "0.0.0.0", 0, RouteKind::Unicast, 4),
                route(254, "172.17.0.0", 16, RouteKind::Unicast, 5),
                route(254, "169.254.0.0", 16, RouteKind::Nowhere, 6),
                route(254, "fd00:ec2::", 32, RouteKind::Unicast, 7),
            ],
            rules: [255, 254, 253, 7].map(|table| PolicyRule { table: Some(table), ..PolicyRule::default() }).into(),
        };
        let endpoints = [address("169.254.169.254")];
        assert_eq!(routing.towards(&endpoints, &BTreeMap::new()).by, BTreeSet::from([Ifindex(2), Ifindex(3)]));
        let routed: Vec<u32> = routing.routed().into_iter().map(|index| index.0).collect();
        assert_eq!(routed, [2, 3, 4, 5, 7]);
    }

    #[test]
    fn a_vrf_s_table_is_asked_by_the_rule_for_all_of_them() {
        let link = Link { table: Some(10), ..Link::new(Ifindex(9), "blue", Kind::Vrf) };
        let links = BTreeMap::from([(link.index, link)]);
        let mut routing = Routing { routes: vec![route(10, "0.0.0.0", 0, RouteKind::Unicast, 3)], rules: Vec::new() };
        let endpoints = [address("169.254.169.254")];
        assert!(routing.towards(&endpoints, &links).by.is_empty());
        routing.rules.push(PolicyRule { vrf: true, ..PolicyRule::default() });
        assert_eq!(routing.towards(&endpoints, &links).by, BTreeSet::from([Ifindex(3)]));
    }
}
