//! What do rtnetlink's messages say, in the words of the room `way`?

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    BridgePortState, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVrf, LinkAttribute, LinkFlags, LinkInfo,
    LinkLayerType, LinkMessage, LinkXdp,
};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::neighbour::{Known, Mac, Neighbour};
use diagnosis::net::Ifindex;
use diagnosis::way::network::{Kind, Link, PolicyRule, Port, PortState, RouteKind, TableRoute};

/// A link.
pub fn link(message: &LinkMessage) -> Link {
    let header = &message.header;
    let mut link = Link::new(Ifindex(header.index), "", Kind::Nic);
    link.up = header.flags.contains(LinkFlags::Up);
    link.carrier = header.flags.contains(LinkFlags::LowerUp);
    link.no_arp = header.flags.contains(LinkFlags::Noarp);
    let mut kind = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = Some(*mtu),
            LinkAttribute::Controller(master) => link.master = Some(Ifindex(*master)),
            LinkAttribute::Link(other) => link.other = Some(Ifindex(*other)),
            LinkAttribute::LinkNetNsId(netns) => link.other_netns = Some(*netns),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(said) => kind = Some(said.clone()),
                        LinkInfo::PortData(InfoPortData::BridgePort(said)) => link.port = port(said),
                        LinkInfo::Data(InfoData::Vrf(infos)) => {
                            link.table = infos.iter().find_map(|info| match info {
                                InfoVrf::TableId(table) => Some(*table),
                                _ => None,
                            });
                        }
                        _ => {}
                    }
                }
            }
            LinkAttribute::Xdp(infos) => {
                link.xdp = infos.iter().find_map(|info| match info {
                    LinkXdp::ProgId(id) if *id != 0 => Some(*id),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link.kind = match kind {
        Some(kind) => named(&kind, header.link_layer_type),
        None if header.flags.contains(LinkFlags::Loopback) => Kind::Loopback,
        None => Kind::Nic,
    };
    link
}

/// How a bridge is set at a port; `None` if its state is none that is known here.
fn port(said: &[InfoBridgePort]) -> Option<Port> {
    let state = said.iter().find_map(|one| match one {
        InfoBridgePort::State(BridgePortState::Forwarding) => Some(PortState::Forwarding),
        InfoBridgePort::State(BridgePortState::Listening | BridgePortState::Learning) => Some(PortState::Starting),
        InfoBridgePort::State(BridgePortState::Disabled) => Some(PortState::Disabled),
        InfoBridgePort::State(BridgePortState::Blocking) => Some(PortState::Blocking),
        _ => None,
    })?;
    let mut port = Port::new(state);
    for one in said {
        match one {
            InfoBridgePort::Locked(locked) => port.locked = *locked,
            InfoBridgePort::Mab(holds) => port.holds_strangers = *holds,
            InfoBridgePort::Learning(learns) => port.learns = *learns,
            InfoBridgePort::UnicastFlood(floods) => port.floods = *floods,
            _ => {}
        }
    }
    Some(port)
}

fn named(kind: &InfoKind, layer: LinkLayerType) -> Kind {
    let text = kind.to_string();
    match kind {
        InfoKind::Bridge => Kind::Bridge,
        InfoKind::Veth | InfoKind::Netkit => Kind::Pair,
        InfoKind::MacVlan | InfoKind::MacVtap => Kind::Macvlan,
        InfoKind::IpVlan | InfoKind::IpVtap => Kind::Ipvlan,
        InfoKind::Vlan => Kind::Vlan,
        InfoKind::Bond => Kind::Bond,
        InfoKind::Vrf => Kind::Vrf,
        InfoKind::Tun if layer == LinkLayerType::Ether => Kind::Tap,
        InfoKind::Tun | InfoKind::Wireguard | InfoKind::Vxlan | InfoKind::Xfrm => Kind::Tunnel(text),
        InfoKind::Dummy => Kind::Other(text),
        _ if text == "team" => Kind::Bond,
        _ if ["gre", "ipip", "tnl", "sit", "vti", "geneve", "bareudp", "gtp", "amt", "erspan"]
            .iter()
            .any(|tunnel| text.contains(tunnel)) =>
        {
            Kind::Tunnel(text)
        }
        _ => Kind::Other(text),
    }
}

/// This host's own address in a message, with its interface and the length of its prefix.
///
/// On a point-to-point link `Address` is the other end's; IPv6 has nothing else.
pub fn address(message: &AddressMessage) -> Option<(Ifindex, IpAddr, u8)> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let any = || {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    };
    Some((Ifindex(message.header.index), local.or_else(any)?, message.header.prefix_len))
}

/// What a namespace's kernel knows of a neighbour; `None` of a bridge's table, which has no addresses of IP.
pub fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let known = match message.header.state {
        NeighbourState::Permanent | NeighbourState::Noarp => Known::Fixed,
        NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe => {
            Known::Found
        }
        NeighbourState::Failed => Known::Failed,
        _ => Known::Not,
    };
    Some(Neighbour { interface: Ifindex(message.header.ifindex), address: address?, mac, known })
}

/// A station that a bridge's table has behind a port; `None` of the bridge's own addresses.
pub fn station(message: &NeighbourMessage) -> Option<(Ifindex, Mac)> {
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    })?;
    (message.header.state != NeighbourState::Permanent).then_some((Ifindex(message.header.ifindex), mac))
}

/// The next hops of a route, if it has several.
pub fn next_hops(message: &RouteMessage) -> Vec<(Ifindex, Option<IpAddr>)> {
    let hops = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    let router = |hop: &RouteNextHop| {
        hop.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => ip(address),
            _ => None,
        })
    };
    hops.into_iter().flatten().map(|hop| (Ifindex(hop.interface_index), router(hop))).collect()
}

/// A route of a table. Entries of the cache, which IPv6 lists among them, are none.
pub fn route(message: &RouteMessage) -> Option<TableRoute> {
    let header = &message.header;
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => RouteKind::Nowhere,
        RouteType::Throw => RouteKind::Throw,
        _ => return None,
    };
    let any = match u8::from(header.address_family) {
        2 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        10 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut route = TableRoute {
        table: header.table.into(),
        to: (any, header.destination_prefix_length),
        kind,
        by: Vec::new(),
        routed_on: false,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Destination(address) => route.to.0 = ip(address)?,
            RouteAttribute::Oif(index) => route.by.push(Ifindex(*index)),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => route.routed_on = true,
            RouteAttribute::MultiPath(hops) => {
                route.by.extend(hops.iter().map(|hop| Ifindex(hop.interface_index)));
                let routed_on = |attribute: &RouteAttribute| {
                    matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_))
                };
                route.routed_on |= hops.iter().any(|hop| hop.attributes.iter().any(routed_on));
            }
            _ => {}
        }
    }
    Some(route)
}

/// A policy rule.
pub fn rule(message: &RuleMessage) -> PolicyRule {
    let header = &message.header;
    let mut rule = PolicyRule { inverted: header.flags.contains(RuleFlags::Invert), ..PolicyRule::default() };
    if header.action == RuleAction::ToTable {
        rule.table = Some(header.table.into());
    }
    rule.other |= header.tos != 0;
    let mut mark = (0, u32::MAX, false);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(table) if rule.table.is_some() => rule.table = Some(*table),
            RuleAttribute::L3MDev(true) => rule.vrf = true,
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Source(address) => rule.from = Some((*address, header.src_len)),
            RuleAttribute::Destination(address) => rule.to = Some((*address, header.dst_len)),
            RuleAttribute::Iifname(name) => rule.iif = Some(name.clone()),
            RuleAttribute::FwMark(value) => mark = (*value, mark.1, true),
            RuleAttribute::FwMask(mask) => mark = (mark.0, *mask, true),
            // The kernel's -1 stands for none.
            RuleAttribute::SuppressPrefixLen(length) if *length != u32::MAX => rule.suppressed = Some(*length),
            RuleAttribute::SuppressIfGroup(group) if *group != u32::MAX => rule.other = true,
            RuleAttribute::UidRange(range) => {
                rule.users = (range.start, range.end) != (0, u32::MAX);
                rule.other |= rule.users;
            }
            RuleAttribute::Oifname(_)
            | RuleAttribute::Goto(_)
            | RuleAttribute::TunId(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_) => rule.other = true,
            _ => {}
        }
    }
    rule.mark = (mark.2 && mark.1 != 0).then_some((mark.0, mark.1));
    rule
}

/// An address in a route.
pub fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
