//! What becomes of a client's packets at the host's routes, out and back, once they have left its namespace?

use std::net::IpAddr;

use super::astray::{self, Astray};
use super::firewall::fate::fate;
use super::listeners::refused;
use super::masquerade;
use super::setting::setting;
use super::sight::{Arrival, Leg, Passage, Sight, is_link_local, own, refuses};
use super::{Answer, Status, lost, start_ttl, stuck};
use crate::interfaces::snapshot::{Snapshot, Way};
use diagnosis::net::Ifindex;
use diagnosis::printable::shell_word;
use diagnosis::way::network::{Kind, RouteKind, TableRoute, in_prefix};

/// Where a route leads.
pub struct Out<'a> {
    /// By this interface.
    pub interface: &'a str,
    /// To this router.
    pub gateway: Option<IpAddr>,
    /// Under this address.
    pub source: Option<IpAddr>,
}

impl std::fmt::Display for Out<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.interface)?;
        self.gateway.map_or(Ok(()), |gateway| write!(f, " via {gateway}"))
    }
}

/// What is wrong with a route that leads out of the host's namespace, if something is: how bad, a sentence, and a command that mends.
pub fn out_of_host(
    sight: &Sight,
    way: Option<(Ifindex, Option<IpAddr>, Option<IpAddr>)>,
    endpoint: IpAddr,
    whose: &str,
) -> Option<(Status, String, Option<String>)> {
    let network = sight.host.network.as_ref().ok()?;
    let (interface, gateway, source) = way?;
    let name = network.name(interface);
    // A route to that address alone, as the default route leads: nothing else goes another way by it.
    let straight =
        network.router.filter(|(card, _)| endpoint.is_ipv4() && astray::of(sight, *card, None, endpoint).is_none());
    let verb = verb(&network.routing.routes, endpoint);
    let mend = straight.zip(verb).map(|((card, router), verb)| {
        format!("ip route {verb} {endpoint}/32 via {router} dev {}", shell_word(network.name(card)))
    });
    let astray = astray::of(sight, interface, gateway, endpoint);
    if astray.is_none()
        && let Some((status, why)) = stuck::leaving(network, interface, stuck::is_passed_over(name, endpoint))
    {
        return Some((status, format!("The route to {endpoint}{whose} leads by {name}, and {why}."), None));
    }
    // A VPN's routes lie in tables of its own, which are asked before.
    let mend = mend.filter(|_| !matches!(astray, Some(Astray::Tunnel(_))));
    let (status, summary) = match astray {
        Some(Astray::Tunnel(kind)) => (
            Status::Broken,
            format!(
                "The route to {endpoint}{whose} leads into the tunnel {name} ({kind}), at whose other end this instance's IMDS is not: make the VPN leave 169.254.169.254 out of what it routes."
            ),
        ),
        Some(Astray::StandIn(who)) => {
            return Some((
                Status::Warning,
                format!(
                    "The route to {endpoint}{whose} leads into {name}, a container network, where {who} has that address: it is answered there, and not by IMDS."
                ),
                None,
            ));
        }
        Some(Astray::Nobody(of)) => (
            Status::Broken,
            // IPv6's link-local addresses make no route to the endpoint.
            if endpoint.is_ipv6() {
                format!(
                    "The route to {endpoint}{whose} leads into {name}, {of}, where nobody has that address: nothing answers."
                )
            } else {
                format!(
                    "The route to {endpoint}{whose} leads into {name}, {of}, where nobody has that address: nothing answers. An address of 169.254.0.0/16 on {name}, as a DHCP client gives itself one, makes such a route; keep that client off {name}."
                )
            },
        ),
        Some(Astray::Through(who)) => {
            return Some((
                Status::Unknown,
                format!(
                    "The route to {endpoint}{whose} leads by {name} to {who}: what that does with it is not known here."
                ),
                None,
            ));
        }
        None => {
            let source = source.filter(IpAddr::is_ipv4)?;
            if !is_link_local(source) {
                return foreign(sight, network, interface, endpoint, source).filter(|_| whose.is_empty());
            }
            (
                Status::Broken,
                format!(
                    "Requests to {endpoint} by {name} would leave under {source}, a link-local address that a DHCP client gave itself: EC2 answers only addresses of the network interface."
                ),
            )
        }
    };
    Some((status, summary, mend))
}

/// What is to be said of requests of the host itself that a route gives a source of another interface's subnet.
fn foreign(
    sight: &Sight,
    network: &Snapshot,
    interface: Ifindex,
    endpoint: IpAddr,
    source: IpAddr,
) -> Option<(Status, String, Option<String>)> {
    if !is_elsewhere(&network.addresses, interface, source) {
        return None;
    }
    let masqueraded = fate(&sight.host.firewall.chains, &own(String::new(), Some(network), endpoint)?).masqueraded;
    let (status, rule) = match masqueraded {
        Some(true) if !masquerade::is_bare(network, interface, false) => return None,
        Some(true) => (Status::Warning, "the rule that masquerades them finds no address on it"),
        None if sight.host.firewall.unread().is_none() => (Status::Warning, "no rule gives them another"),
        _ => (Status::Unknown, "whether a rule gives them another is not known"),
    };
    let name = network.name(interface);
    let summary = format!(
        "Requests to {endpoint} by {name} would leave under {source}, which is not of that interface's subnets, and {rule}: EC2 drops them then, unless it is the network interface's own."
    );
    Some((status, summary, None))
}

/// Is an address of none of an interface's subnets?
fn is_elsewhere(addresses: &[(Ifindex, IpAddr, u8)], interface: Ifindex, address: IpAddr) -> bool {
    let mut subnets = addresses.iter().filter(|(index, _, _)| *index == interface);
    !subnets.any(|(_, held, length)| in_prefix(address, (*held, *length)))
}

/// How `ip route` makes a route to an endpoint alone: where the main table has one already, another cannot be added. `None` if there is
/// one that is asked before, or one that somebody made to lead nowhere.
fn verb(routes: &[TableRoute], endpoint: IpAddr) -> Option<&'static str> {
    const MAIN: u32 = 254;
    let mut there = routes.iter().filter(|route| route.to == (endpoint, 32)).peekable();
    match there.peek() {
        None => Some("add"),
        Some(_) => there.all(|route| route.table == MAIN && route.kind == RouteKind::Unicast).then_some("replace"),
    }
}

/// A client's way, from its namespace on.
pub fn further(
    sight: &Sight,
    network: &Snapshot,
    out: &Out,
    leg: Option<&Leg>,
    answer: &dyn Fn(Status, String) -> Answer,
) -> Answer {
    let endpoint = leg.map(|leg| leg.endpoint);
    let (Some(leg), Some(endpoint)) = (leg, endpoint) else {
        return answer(Status::Ok, format!("It sends by {out}."));
    };
    let begins = format!("{endpoint} is reached by {out}");
    if let Some(Kind::Tunnel(kind)) =
        network.links.values().find(|link| link.name == out.interface).map(|link| &link.kind)
    {
        let summary = format!(
            "The route to {endpoint} leads into the tunnel {} ({kind}), at whose other end this instance's IMDS is not.",
            out.interface
        );
        return answer(Status::Broken, summary);
    }
    let by = match &leg.arrival {
        Arrival::Host(by) => by,
        Arrival::Card(Kind::Macvlan, card) => {
            return answer(
                Status::Warning,
                format!(
                    "{begins}, a macvlan on {card}: EC2 delivers only what has the network interface's own MAC address, so it does not reach IMDS, unless the macvlan is in mode passthru."
                ),
            );
        }
        Arrival::Card(_, card) => {
            let source = leg.source.map_or("its address".to_owned(), |source| source.to_string());
            return answer(
                Status::Unknown,
                format!(
                    "{begins}, an ipvlan on {card}: EC2 answers {source} only if it is assigned to that network interface, which is not known here."
                ),
            );
        }
        Arrival::Own => {
            let inside = &sight.inside[leg.inside];
            let card = network.links.values().find(|link| link.name == out.interface).map(|link| link.index);
            if let Some((status, why)) = card.and_then(|card| stuck::leaving(network, card, false)) {
                return answer(status, format!("{begins}, a card of its own, and {why}."));
            }
            let link_local = out.source.filter(|source| source.is_ipv4() && is_link_local(*source));
            return match link_local {
                Some(source) => answer(
                    Status::Broken,
                    format!(
                        "{begins}, a card of its own, under {source}, a link-local address: EC2 answers only addresses of the network interface."
                    ),
                ),
                None => {
                    let said = answer(Status::Ok, format!("{begins}, a card of its own."));
                    let Some(card) = card else { return said };
                    let said = stuck::little(network, (card, out.gateway), endpoint, said);
                    lost::station(network, (card, out.gateway), endpoint, &|command| inside.command(command), said)
                }
            };
        }
        Arrival::Unknown(why) => {
            return answer(Status::Unknown, format!("{begins}. From there on its way is not known: {why}."));
        }
    };
    let host = |command: &str| command.to_owned();
    let family = if endpoint.is_ipv6() { "ip -6" } else { "ip" };
    let source = leg.source.map(|source| source.to_string()).unwrap_or_default();
    let look = host(&format!("{family} route get {endpoint} from {source} iif {}", shell_word(by)));
    let name = |interface| sight.host.network.as_ref().map_or("?", |network| network.name(interface));
    if let Some(down) = down(sight, leg) {
        return answer(Status::Broken, format!("{begins}, and on the host {down} is down: nothing passes it."))
            .look(host(&format!("ip link show dev {}", shell_word(&down))));
    }
    if let Some(silence) = &leg.silence {
        let next = out.gateway.unwrap_or(endpoint);
        let show = |address: IpAddr| format!("ip neigh show to {address}");
        let look = match (&silence.look, silence.inside) {
            (Some(look), _) => look.clone(),
            (None, true) => sight.inside[leg.inside].command(&show(next)),
            (None, false) => show(leg.source.unwrap_or(next)),
        };
        let status = if silence.sure { Status::Broken } else { Status::Unknown };
        let straight = if out.gateway.is_none() { ", by no router" } else { "" };
        return answer(status, format!("{begins}{straight}, and {}.", silence.why)).look(look);
    }
    let passage = leg.source.and_then(|source| sight.passage(source, by, endpoint));
    if passage.is_some_and(|passage| !passage.sure) {
        let summary = format!(
            "{begins}. How the host sends it on, or answers back, depends on marks that its rules set, which are not known here."
        );
        return answer(Status::Unknown, summary).look(host("ip rule"));
    }
    match passage.map(|passage| &passage.onward) {
        Some(Way::Out { interface, gateway, .. }) => {
            let under = masked_by(sight, leg, *interface, *gateway);
            match out_of_host(sight, Some((*interface, *gateway, under)), endpoint, " on the host") {
                Some((status, summary, mend)) => {
                    let said = answer(status, summary).look(look);
                    mend.into_iter().fold(said, Answer::mend)
                }
                None => match passage.and_then(|passage| strays_back(passage, name(*interface), &name, &|by| leads_to(sight, leg, by))) {
                    Some((status, why)) => {
                        let look = format!(
                            "{family} route get {source} from {endpoint} iif {}",
                            shell_word(name(*interface))
                        );
                        answer(status, format!("{begins}, and from the host by {}; {why}.", name(*interface))).look(look)
                    }
                    None => {
                        let said = answer(Status::Ok, format!("{begins}, and from the host by {}.", name(*interface)));
                        let Ok(there) = &sight.host.network else { return said };
                        let said = start_ttl::enough(sight, network, leg, said);
                        let said = stuck::narrow(&sight.inside[leg.inside], there, endpoint, said);
                        let said = stuck::little(there, (*interface, *gateway), endpoint, said);
                        let said = lost::station(there, (*interface, *gateway), endpoint, &host, said);
                        one_of_several(sight, *interface, *gateway, said)
                    }
                },
            }
        }
        Some(Way::Local) if refused(&sight.host.listeners, &sight.host.firewall.chains, endpoint) => answer(
            Status::Broken,
            format!("{begins}, and the host has that address itself, and nobody listens on port 80 there: connections are refused."),
        )
        .look(look),
        Some(Way::Local) => answer(
            Status::Warning,
            format!("{begins}, and the host has that address itself: it would be answered there, not by IMDS."),
        )
        .look(look),
        Some(Way::Nowhere { why: "reverse path", .. }) => answer(
            Status::Broken,
            format!("{begins}, and the host drops what comes in by {by} from {source}: its way back does not lead there (rp_filter strict), or the address is not one that may come in."),
        )
        .look(look),
        Some(Way::Nowhere { .. }) if !forwards(by, endpoint) => answer(
            Status::Broken,
            format!("{begins}, and the host does not forward what comes in by {by} (see ip-forward)."),
        ),
        // The kernel says the same of a source that it takes from nobody by that interface.
        Some(Way::Nowhere { why: "blackhole", .. }) if !has_blackhole(sight, endpoint) => answer(
            Status::Broken,
            format!(
                "{begins}, and the host drops what comes in by {by} from {source}: it takes that for an address from which nothing may come in there (a martian source)."
            ),
        )
        .look(look),
        Some(Way::Nowhere { why: why @ ("broadcast" | "multicast"), .. }) => answer(
            Status::Broken,
            format!("{begins}, and the host has a route of type {why} for it: nothing is sent on."),
        )
        .look(look),
        Some(Way::Nowhere { why, answer: said }) => answer(
            Status::Broken,
            format!("{begins}, and the host has {} for it: it gets \"{said}\".", if *why == "no route" { "no route".to_owned() } else { format!("a route of type {why}") }),
        )
        .look(look),
        Some(Way::Unknown(why)) => {
            answer(Status::Unknown, format!("{begins}. The host's kernel did not tell how it goes on: {why}.")).look(look)
        }
        None => answer(Status::Unknown, format!("{begins}. How the host sends it on is not known.")).look(look),
    }
}

/// Of a default route with several next hops the kernel tells one: a client's other connections may take another.
pub fn one_of_several(sight: &Sight, interface: Ifindex, gateway: Option<IpAddr>, said: Answer) -> Answer {
    let Ok(network) = &sight.host.network else { return said };
    let is_one = network.next_hops.len() > 1 && network.next_hops.contains(&(interface, gateway));
    if !is_one || said.status != Status::Ok {
        return said;
    }
    let others = network.next_hops.iter().filter(|hop| **hop != (interface, gateway));
    let others: Vec<&str> = others.map(|(other, _)| network.name(*other)).collect();
    let summary = format!(
        "{} That is one next hop of the default route; connections that take another ({}) were not followed.",
        said.summary,
        others.join(", ")
    );
    Answer { status: Status::Unknown, summary, ..said }.look("ip route show default")
}

/// The link-local address that a client's requests get where the host masquerades them: of an interface's addresses the kernel takes one
/// in whose subnet the next router is, or the endpoint itself if it is on the link (`inet_select_addr`).
fn masked_by(sight: &Sight, leg: &Leg, out: Ifindex, gateway: Option<IpAddr>) -> Option<IpAddr> {
    let network = sight.host.network.as_ref().ok()?;
    let fate = fate(&sight.host.firewall.chains, &sight.client(leg)?);
    // What a rule names is no route's doing: the check of masquerading tells of it.
    if fate.masqueraded != Some(true) || fate.ends || fate.becomes.is_some() {
        return None;
    }
    let next = gateway.unwrap_or(leg.endpoint);
    let of_subnet = network.addresses.iter().find(|(index, held, length)| {
        *index == out && held.is_ipv4() && is_link_local(*held) && in_prefix(next, (*held, *length))
    });
    of_subnet.map(|(_, address, _)| *address)
}

/// Does the host forward what comes in by an interface? Where it does not, its kernel says that there is no way.
fn forwards(by: &str, endpoint: IpAddr) -> bool {
    setting(endpoint.is_ipv6(), by, "forwarding") != Some(0)
}

/// The interface on the host's side of a client's link that is down, if one is.
fn down(sight: &Sight, leg: &Leg) -> Option<String> {
    let links = &sight.host.network.as_ref().ok()?.links;
    let end = links.get(&sight.inside[leg.inside].host_end(leg.endpoint)?)?;
    let master = end.master.and_then(|master| links.get(&master));
    std::iter::once(end).chain(master).find(|link| !link.up).map(|link| link.name.clone())
}

/// Does an interface of the host lead to a client's namespace: its link's end, or a bridge that this is a port of?
fn leads_to(sight: &Sight, leg: &Leg, by: &str) -> bool {
    let (Ok(network), Ok(view)) = (&sight.host.network, &sight.inside[leg.inside].view) else { return false };
    let ends = view.outward.values().filter_map(|end| network.links.get(end));
    ends.flat_map(|end| [Some(end.index), end.master]).flatten().any(|index| network.name(index) == by)
}

/// What is wrong with the way of answers back to the client, if something is.
fn strays_back<'a>(
    passage: &Passage,
    uplink: &str,
    name: &dyn Fn(Ifindex) -> &'a str,
    leads_to: &dyn Fn(&str) -> bool,
) -> Option<(Status, String)> {
    let (source, by) = (passage.source, &passage.by);
    Some(match passage.back.as_ref()? {
        Way::Out { interface, .. } if name(*interface) == by => return None,
        Way::Out { interface, .. } if leads_to(name(*interface)) => (
            Status::Unknown,
            format!(
                "answers to {source} then leave the host by {}, and not by {by}: the client is there as well, and whether its own reverse-path filter (rp_filter) takes them is not known here",
                name(*interface)
            ),
        ),
        Way::Out { interface, .. } => (
            Status::Broken,
            format!(
                "but answers to {source} then leave the host by {}, and not by {by}, where it is",
                name(*interface)
            ),
        ),
        Way::Local => (Status::Broken, format!("but the host has the address {source} itself, and keeps the answers")),
        // Where that is so is told by rp-filter.
        Way::Nowhere { why: "reverse path", .. } => (
            Status::Broken,
            format!(
                "but its answers, coming in by {uplink}, are dropped: the way back to IMDS does not lead there (see rp-filter)"
            ),
        ),
        Way::Nowhere { .. } if !forwards(uplink, passage.endpoint) => {
            (Status::Broken, format!("but the host does not forward what comes in by {uplink} (see ip-forward)"))
        }
        Way::Nowhere { why, .. } => {
            let route = if *why == "no route" { "no route".to_owned() } else { format!("a route of type {why}") };
            (Status::Broken, format!("but the host has {route} for answers to {source}"))
        }
        Way::Unknown(why) => (Status::Unknown, format!("the kernel did not tell how answers to {source} go on: {why}")),
    })
}

/// Has the host a route that leads nowhere for an endpoint? Also if its routes are not known.
fn has_blackhole(sight: &Sight, endpoint: IpAddr) -> bool {
    let Ok(network) = &sight.host.network else { return true };
    endpoint.is_ipv6() || refuses(&network.routing, endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_that_is_there_is_replaced_and_no_other_is_added_beside_it() {
        let endpoint = IpAddr::from([169, 254, 169, 254]);
        let route =
            |table, length, kind| TableRoute { table, to: (endpoint, length), kind, by: Vec::new(), routed_on: false };
        assert_eq!(verb(&[route(254, 16, RouteKind::Unicast)], endpoint), Some("add"));
        assert_eq!(verb(&[route(254, 32, RouteKind::Unicast)], endpoint), Some("replace"));
        assert_eq!(verb(&[route(254, 32, RouteKind::Nowhere)], endpoint), None);
        assert_eq!(verb(&[route(9, 32, RouteKind::Unicast)], endpoint), None);
    }

    #[test]
    fn answers_by_another_interface_of_the_same_client_may_arrive() {
        let address = |last: [u8; 4]| IpAddr::from(last);
        let passage = Passage {
            source: address([10, 42, 0, 10]),
            by: "br9".into(),
            endpoint: address([169, 254, 169, 254]),
            onward: Way::Out { interface: Ifindex(2), gateway: None, source: None },
            back: Some(Way::Out { interface: Ifindex(4), gateway: None, source: None }),
            sure: true,
        };
        let status = |to: &str| strays_back(&passage, "ens5", &|_| "cni0", &|by| by == to).map(|(status, _)| status);
        assert_eq!(status("cni0"), Some(Status::Unknown));
        assert_eq!(status("br9"), Some(Status::Broken), "the client is not there");
        assert_eq!(strays_back(&passage, "ens5", &|_| "br9", &|_| true), None);
    }

    #[test]
    fn a_source_of_another_interface_is_known_as_such() {
        let of = |address: [u8; 4], length| (IpAddr::from(address), length);
        let addresses = [(2, of([10, 77, 0, 10], 24)), (3, of([172, 17, 0, 1], 16))];
        let addresses = addresses.map(|(index, (address, length))| (Ifindex(index), address, length));
        let elsewhere = |address: [u8; 4]| is_elsewhere(&addresses, Ifindex(2), IpAddr::from(address));
        assert!(elsewhere([172, 17, 0, 1]));
        assert!(!elsewhere([10, 77, 0, 10]) && !elsewhere([10, 77, 0, 11]), "a second one of the card");
    }
}
