//! Why does nothing pass a link to which a route leads, though the route is there?

use std::net::IpAddr;

use super::inside::Inside;
use super::neighbour::Silence;
use super::setting::setting;
use super::{Answer, Status};
use crate::interfaces::snapshot::{Known, Neighbour, Snapshot};
use diagnosis::net::Ifindex;
use diagnosis::printable::shell_word;
use diagnosis::way::hops::below;
use diagnosis::way::network::{Kind, Link, PortState};

/// What every host takes in one packet (RFC 791); with less, requests and answers do not fit.
const LEAST_MTU: u32 = 576;

/// Why nothing leaves a namespace by an interface, if nothing does: how bad, and a part of a sentence.
pub fn leaving(network: &Snapshot, interface: Ifindex, passed_over: bool) -> Option<(Status, String)> {
    is_cut_off(network, interface, passed_over).or_else(|| {
        let stack = below(&network.links, interface);
        // Of several cards another may send.
        let links = if stack.len() > 2 { &stack[..1] } else { &stack };
        links.iter().find_map(|link| Some((Status::Broken, mute(network, *link)?)))
    })
}

/// What is said of a way that is else as it should be, if little or nothing leaves by its interface, as far as is seen here.
pub fn little(
    network: &Snapshot,
    (interface, gateway): (Ifindex, Option<IpAddr>),
    endpoint: IpAddr,
    said: Answer,
) -> Answer {
    doubted(hardly(network, interface, gateway.unwrap_or(endpoint)), said)
}

/// `next`: the next router, or the endpoint on the link.
fn hardly(network: &Snapshot, interface: Ifindex, next: IpAddr) -> Option<String> {
    let link = network.links.get(&interface)?;
    lacks_neighbours(network, link, next).or_else(|| narrowest(network, below(&network.links, interface)))
}

/// The kernel keeps routes by what has lost its carrier. Those that it passes over (`passed_over`) it does so a second later.
fn is_cut_off(network: &Snapshot, interface: Ifindex, passed_over: bool) -> Option<(Status, String)> {
    let link = network.links.get(&interface)?;
    match (link.up, link.carrier) {
        (false, _) => Some((Status::Broken, format!("{} is down: nothing leaves by it", link.name))),
        (true, false) if passed_over => Some((
            Status::Unknown,
            format!(
                "{} has just lost its carrier: whether another route is taken (ignore_routes_with_linkdown) is not known yet",
                link.name
            ),
        )),
        (true, false) => Some((Status::Broken, format!("{} has no carrier: nothing leaves by it", link.name))),
        (true, true) => None,
    }
}

/// Does the host's kernel pass over routes by an interface that has no carrier?
pub fn is_passed_over(name: &str, endpoint: IpAddr) -> bool {
    let is_on = |name| setting(endpoint.is_ipv6(), name, "ignore_routes_with_linkdown").is_some_and(|said| said != 0);
    ["all", name].into_iter().any(is_on)
}

/// Why a link sends nothing, by its queue.
fn mute(network: &Snapshot, interface: Ifindex) -> Option<String> {
    let queue = network.mute.get(&interface)?;
    Some(format!("the root qdisc of {} ({queue}) drops whatever it is to send", network.name(interface)))
}

/// To whom a link without neighbours sends what is for another station: the kernel gives that its own Ethernet address
/// (`arp_constructor`, `ndisc_constructor`).
fn lacks_neighbours(network: &Snapshot, link: &Link, next: IpAddr) -> Option<String> {
    let own = link.mac.filter(|mac| *mac != [0; 6])?;
    let has_some = matches!(link.kind, Kind::Nic | Kind::Pair | Kind::Bridge | Kind::Vlan | Kind::Bond | Kind::Macvlan);
    let entered = |one: &Neighbour| {
        one.interface == link.index
            && one.address == next
            && one.known == Known::Fixed
            && one.mac.is_some_and(|mac| mac != own)
    };
    if !link.no_arp || !has_some || network.neighbours.iter().any(entered) {
        return None;
    }
    Some(format!(
        "{} does not take part in ARP (NOARP): what is for {next} is sent to its own Ethernet address, where nobody else takes it",
        link.name
    ))
}

/// The link among some through which only less than any host takes fits.
fn narrowest(network: &Snapshot, links: impl IntoIterator<Item = Ifindex>) -> Option<String> {
    let links = links.into_iter().filter_map(|index| network.links.get(&index));
    let (mtu, link) = links.filter_map(|link| Some((link.mtu?, link))).min_by_key(|(mtu, _)| *mtu)?;
    (mtu < LEAST_MTU).then(|| {
        format!(
            "the MTU of {} is {mtu}, less than the {LEAST_MTU} bytes that every host takes (RFC 791): larger packets are lost there, or cut up",
            link.name
        )
    })
}

/// A client's link, by its end in its own namespace and the host's: both networks, and the ends.
fn ends<'a>(
    inside: &'a Inside,
    host: &'a Snapshot,
    endpoint: IpAddr,
) -> Option<(&'a Snapshot, &'a Link, &'a Link, Option<&'a Link>)> {
    let own = inside.network()?;
    let link = own.links.get(&own.leaves_by(endpoint)?)?;
    let end = host.links.get(&inside.host_end(endpoint)?)?;
    Some((own, link, end, end.master.and_then(|master| host.links.get(&master))))
}

/// Why nothing crosses a client's link, though all of it is up, if nothing does. `next`: to whom the client sends first; `has_programs`:
/// one on the host could take the packets before.
pub fn between(
    inside: &Inside,
    host: &Snapshot,
    endpoint: IpAddr,
    next: IpAddr,
    has_programs: bool,
) -> Option<Silence> {
    let (own, link, end, master) = ends(inside, host, endpoint)?;
    if !end.up || !end.carrier || master.is_some_and(|master| !master.up) {
        return None;
    }
    let show = |tool: &str, name: &str| format!("{tool} -d link show dev {}", shell_word(name));
    let theirs = |why, look: &str| Some(Silence { sure: true, why, inside: true, look: Some(inside.command(look)) });
    let silence = if let Some(why) = mute(own, link.index) {
        theirs(why, "tc qdisc show")
    } else if let Some(why) = lacks_neighbours(own, link, next) {
        theirs(why, &show("ip", &link.name))
    } else if let Some(why) = [Some(end), master].into_iter().flatten().find_map(|link| mute(host, link.index)) {
        let why = format!("on the host {why}: answers are lost");
        Some(Silence { sure: true, why, inside: false, look: Some("tc qdisc show".to_owned()) })
    } else {
        let (sure, why) = closed(host, end, link.mac)?;
        Some(Silence { sure, why, inside: false, look: Some(show("bridge", &end.name)) })
    };
    silence.map(|silence| Silence { sure: silence.sure && !has_programs, ..silence })
}

/// What is said of a client's way that is else as it should be, if its link lets through little.
pub fn narrow(inside: &Inside, host: &Snapshot, endpoint: IpAddr, said: Answer) -> Answer {
    let Some((own, link, end, master)) = ends(inside, host, endpoint) else { return said };
    let on_host = [Some(end), master].into_iter().flatten().map(|link| link.index);
    let why = narrowest(own, [link.index]).or_else(|| Some(format!("on the host {}", narrowest(host, on_host)?)));
    doubted(why, said)
}

fn doubted(why: Option<String>, said: Answer) -> Answer {
    match why.filter(|_| said.status == Status::Ok) {
        Some(why) => Answer { status: Status::Warning, summary: format!("{} But {why}.", said.summary), ..said },
        None => said,
    }
}

/// Why a bridge passes nothing of, or to, the station behind a port; and is that sure (`br_handle_frame_finish`, `br_flood`)?
fn closed(host: &Snapshot, end: &Link, mac: Option<[u8; 6]>) -> Option<(bool, String)> {
    let (port, bridge) = (end.port?, host.name(end.master?));
    let begins = format!("on the host the port {} of {bridge}", end.name);
    match port.state {
        PortState::Disabled => return Some((true, format!("{begins} is in state disabled: it passes nothing"))),
        PortState::Blocking => {
            return Some((true, format!("{begins} is in state blocking: the spanning tree lets it pass nothing")));
        }
        PortState::Starting => {
            let why =
                "the spanning tree lets it pass nothing until that is over (twice the bridge's forward_delay), if ever";
            return Some((false, format!("{begins} is in state listening or learning: {why}")));
        }
        PortState::Forwarding => {}
    }
    let is_known = mac.zip(host.stations.as_ref()).map(|(mac, all)| all.contains(&(end.index, mac)));
    let shut = match port {
        _ if port.locked => "is locked: it lets in only stations that the bridge's table has there",
        _ if !port.learns && !port.floods => {
            "neither learns nor floods: it gets only what is for stations that the bridge's table has there"
        }
        _ => return None,
    };
    match is_known {
        Some(false) => Some((true, format!("{begins} {shut}, and the client is not among them"))),
        Some(true) if port.locked && port.holds_strangers => {
            Some((false, format!("{begins} {shut}, and whether the client is let in is not known")))
        }
        Some(true) => None,
        None => Some((false, format!("{begins} {shut}, and whether the client is among them is not known"))),
    }
}

#[cfg(test)]
mod tests {
    use diagnosis::way::network::Port;

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    fn network(link: Link) -> Snapshot {
        Snapshot { links: [(link.index, link)].into(), ..Snapshot::default() }
    }

    #[test]
    fn by_what_has_no_carrier_nothing_leaves() {
        let cut_off = |up, carrier, passed_over| {
            let link = Link { up, carrier, ..Link::new(Ifindex(2), "ens6", Kind::Nic) };
            is_cut_off(&network(link), Ifindex(2), passed_over).map(|(status, _)| status)
        };
        assert_eq!(cut_off(true, true, false), None);
        assert_eq!(cut_off(true, false, false), Some(Status::Broken));
        assert_eq!(cut_off(true, false, true), Some(Status::Unknown), "the kernel has yet to look for another route");
        assert_eq!(cut_off(false, false, true), Some(Status::Broken));
    }

    #[test]
    fn a_card_without_neighbours_a_narrow_one_and_a_mute_one_are_told() {
        let next = IpAddr::from([10, 77, 0, 1]);
        let card = || Link { mac: Some(MAC), mtu: Some(1500), ..Link::new(Ifindex(2), "ens5", Kind::Nic) };
        let mute = Snapshot { mute: [(Ifindex(2), "pfifo limit 0")].into(), ..network(card()) };
        assert!(matches!(leaving(&mute, Ifindex(2), false), Some((Status::Broken, _))));
        assert_eq!(leaving(&network(card()), Ifindex(2), false), None);
        let told = |network: &Snapshot| hardly(network, Ifindex(2), next).is_some();
        assert!(told(&network(Link { mtu: Some(575), ..card() })));
        assert!(!told(&network(Link { mtu: Some(576), ..card() })));
        let silent = || Link { no_arp: true, ..card() };
        assert!(told(&network(silent())));
        assert!(!told(&network(Link { kind: Kind::Ipvlan, ..silent() })), "it has no neighbours in mode l3");
        assert!(!told(&network(Link { mac: Some([0; 6]), ..silent() })), "nor has a netkit");
        let entry = |mac| Neighbour { interface: Ifindex(2), address: next, mac: Some(mac), known: Known::Fixed };
        let with = |mac| Snapshot { neighbours: vec![entry(mac)], ..network(silent()) };
        assert!(!told(&with([2, 0, 0, 0, 0, 9])), "somebody entered the router");
        assert!(told(&with(MAC)), "the kernel entered its own");
    }

    #[test]
    fn a_port_that_does_not_forward_or_does_not_know_the_client_is_closed() {
        let end =
            |port| Link { port: Some(port), master: Some(Ifindex(3)), ..Link::new(Ifindex(4), "veth4", Kind::Pair) };
        let sure = |port, stations: Option<&[(u32, [u8; 6])]>| {
            let stations = stations.map(|all| all.iter().map(|(port, mac)| (Ifindex(*port), *mac)).collect());
            let host = Snapshot { stations, ..Snapshot::default() };
            closed(&host, &end(port), Some(MAC)).map(|(sure, _)| sure)
        };
        let new = Port::new;
        assert_eq!(sure(new(PortState::Forwarding), None), None);
        assert_eq!(sure(new(PortState::Disabled), None), Some(true));
        assert_eq!(sure(new(PortState::Blocking), None), Some(true));
        assert_eq!(sure(new(PortState::Starting), None), Some(false));
        let locked = Port { locked: true, ..new(PortState::Forwarding) };
        let deaf = Port { learns: false, floods: false, ..new(PortState::Forwarding) };
        for port in [locked, deaf] {
            assert_eq!(sure(port, Some(&[])), Some(true));
            assert_eq!(sure(port, Some(&[(5, MAC)])), Some(true), "it is behind another port");
            assert_eq!(sure(port, Some(&[(4, MAC)])), None);
            assert_eq!(sure(port, None), Some(false));
        }
        assert_eq!(sure(Port { holds_strangers: true, ..locked }, Some(&[(4, MAC)])), Some(false));
        assert_eq!(sure(Port { learns: false, ..new(PortState::Forwarding) }, Some(&[])), None, "it floods");
    }
}
