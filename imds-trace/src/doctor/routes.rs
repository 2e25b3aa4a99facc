//! Do the routes to IMDS lead out: from the host, from each client's namespace, and from there on?

use std::net::IpAddr;

use super::astray::{self, Astray};
use super::firewall::fate::fate;
use super::inside::Inside;
use super::sight::{Arrival, Leg, Sight, is_link_local};
use super::{Answer, Check, Status, Subject};
use crate::interfaces::snapshot::{Snapshot, Way};
use diagnosis::net::Ifindex;
use diagnosis::printable::shell_word;
use diagnosis::way::network::{Kind, in_prefix};

/// The check.
pub const CHECK: Check = Check { id: "route", explain: "whether routes to the endpoints lead out", examine };

fn examine(sight: &Sight) -> Vec<Answer> {
    let plain = |command: &str| command.to_owned();
    let mut answers = match &sight.host.network {
        Ok(network) => {
            let place = Place { sight, inside: None, about: &|| Subject::Host, command: &plain };
            judge(&place, network)
        }
        Err(why) => vec![Answer::new(Subject::Host, Status::Unknown, format!("The routes could not be read: {why}."))],
    };
    for (index, inside) in sight.inside.iter().enumerate() {
        let about = || Subject::Container(inside.name());
        match inside.view.as_ref().map(|view| &view.network) {
            Ok(Ok(network)) if network.links.values().all(|link| link.name == "lo") => {
                let summary = "It has no network but loopback: it cannot reach IMDS, and was perhaps meant not to.";
                answers.push(Answer::new(about(), Status::Warning, summary).look(inside.command("ip addr")));
            }
            Ok(Ok(network)) => {
                let command = |command: &str| inside.command(command);
                let place = Place { sight, inside: Some((index, inside)), about: &about, command: &command };
                answers.extend(judge(&place, network));
            }
            Ok(Err(why)) => {
                answers.push(Answer::new(about(), Status::Unknown, format!("Its routes could not be read: {why}.")))
            }
            Err(why) => {
                answers.push(Answer::new(about(), Status::Unknown, format!("Its routes are not known: {why}.")))
            }
        }
    }
    answers
}

/// A namespace, and how it is spoken of.
struct Place<'a> {
    sight: &'a Sight,
    inside: Option<(usize, &'a Inside)>,
    about: &'a dyn Fn() -> Subject,
    command: &'a dyn Fn(&str) -> String,
}

/// The routes of one namespace.
fn judge(place: &Place, network: &Snapshot) -> Vec<Answer> {
    place.sight.endpoints.iter().map(|endpoint| one(place, network, *endpoint)).collect()
}

/// Most have no IPv6, which is no fault where IPv4 leads to IMDS.
fn one(place: &Place, network: &Snapshot, endpoint: IpAddr) -> Answer {
    let v4_asked = place.sight.endpoints.iter().any(IpAddr::is_ipv4);
    let family = if endpoint.is_ipv6() { "ip -6" } else { "ip" };
    let answer = |status, summary: String| {
        let look = (place.command)(&format!("{family} route get {endpoint}"));
        Answer::new((place.about)(), status, summary).look(look)
    };
    match network.way(endpoint) {
        Some(Way::Out { interface, .. }) if network.name(*interface) == "lo" => answer(
            Status::Warning,
            format!("The route to {endpoint} leads to loopback: it would be answered locally, not by IMDS."),
        ),
        Some(Way::Out { interface, gateway, source }) => {
            let out = Out { interface: network.name(*interface), gateway: *gateway, source: *source };
            let leg =
                |index| place.sight.legs.iter().find(move |leg: &&Leg| leg.inside == index && leg.endpoint == endpoint);
            match place.inside {
                Some((index, _)) => further(place, network, &out, leg(index), &answer),
                None => {
                    let look = || format!("{family} route get {endpoint}");
                    let said = out_of_host(place.sight, Some((*interface, *gateway, *source)), endpoint, "");
                    said.map_or_else(
                        || answer(Status::Ok, format!("{endpoint} is reached by {out}.")),
                        |(status, summary, mend)| {
                            let said = answer(status, summary).look(look());
                            mend.into_iter().fold(said, Answer::mend)
                        },
                    )
                }
            }
        }
        Some(Way::Local) => answer(
            Status::Warning,
            format!(
                "{endpoint} is an address of this very namespace (a local route): it would be answered locally, not by IMDS."
            ),
        ),
        Some(Way::Nowhere { why: "no route", answer: said }) if endpoint.is_ipv6() && v4_asked => {
            answer(Status::Ok, format!("{endpoint} has no route ({said}), as is usual where only IPv4 is used."))
        }
        Some(Way::Nowhere { why, answer: said }) => {
            let kind = if *why == "no route" { "no route".to_owned() } else { format!("a route of type {why}") };
            let said = answer(Status::Broken, format!("There is {kind} to {endpoint}: programs get \"{said}\"."));
            if *why == "no route" {
                said
            } else {
                // It may be a route to a wider prefix, and somebody's way to keep it off IMDS.
                said.look((place.command)(&format!("{family} route show table all type {why}")))
            }
        }
        Some(Way::Unknown(why)) => {
            answer(Status::Unknown, format!("The kernel did not tell how {endpoint} is reached: {why}."))
        }
        None => answer(Status::Unknown, format!("The kernel was not asked how {endpoint} is reached.")),
    }
}

/// Where a route leads.
struct Out<'a> {
    interface: &'a str,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
}

impl std::fmt::Display for Out<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.interface)?;
        self.gateway.map_or(Ok(()), |gateway| write!(f, " via {gateway}"))
    }
}

/// What is wrong with a route that leads out of the host's namespace, if something is: how bad, a sentence, and a command that mends.
fn out_of_host(
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
    let mend = straight.map(|(card, router)| {
        format!("ip route add {endpoint}/32 via {router} dev {}", shell_word(network.name(card)))
    });
    let astray = astray::of(sight, interface, gateway, endpoint);
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
            format!(
                "The route to {endpoint}{whose} leads into {name}, {of}, where nobody has that address: nothing answers. An address of 169.254.0.0/16 on {name}, as a DHCP client gives itself one, makes such a route; keep that client off {name}."
            ),
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
            let source = source.filter(|source| source.is_ipv4() && is_link_local(*source))?;
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

/// A client's way, from its namespace on.
fn further(
    place: &Place,
    network: &Snapshot,
    out: &Out,
    leg: Option<&Leg>,
    answer: &dyn Fn(Status, String) -> Answer,
) -> Answer {
    let sight = place.sight;
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
            let link_local = out.source.filter(|source| source.is_ipv4() && is_link_local(*source));
            return match link_local {
                Some(source) => answer(
                    Status::Broken,
                    format!(
                        "{begins}, a card of its own, under {source}, a link-local address: EC2 answers only addresses of the network interface."
                    ),
                ),
                None => answer(Status::Ok, format!("{begins}, a card of its own.")),
            };
        }
        Arrival::Unknown(why) => {
            return answer(Status::Ok, format!("{begins}. From there on its way is not known: {why}."));
        }
    };
    let host = |command: &str| command.to_owned();
    let family = if endpoint.is_ipv6() { "ip -6" } else { "ip" };
    let source = leg.source.map(|source| source.to_string()).unwrap_or_default();
    let look = host(&format!("{family} route get {endpoint} from {source} iif {}", shell_word(by)));
    let name = |interface| sight.host.network.as_ref().map_or("?", |network| network.name(interface));
    match sight.onward(leg) {
        Some(Way::Out { interface, gateway, .. }) => {
            let under = masked_by(sight, leg, *interface, *gateway);
            match out_of_host(sight, Some((*interface, *gateway, under)), endpoint, " on the host") {
                Some((status, summary, mend)) => {
                    let said = answer(status, summary).look(look);
                    mend.into_iter().fold(said, Answer::mend)
                }
                None => answer(Status::Ok, format!("{begins}, and from the host by {}.", name(*interface))),
            }
        }
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

/// The link-local address that a client's requests get where the host masquerades them: of an interface's addresses the kernel takes one
/// in whose subnet the next router is, or the endpoint itself if it is on the link (`inet_select_addr`).
fn masked_by(sight: &Sight, leg: &Leg, out: Ifindex, gateway: Option<IpAddr>) -> Option<IpAddr> {
    let network = sight.host.network.as_ref().ok()?;
    let next = gateway.unwrap_or(leg.endpoint);
    let of_subnet = network.addresses.iter().find(|(index, held, length)| {
        *index == out && held.is_ipv4() && is_link_local(*held) && in_prefix(next, (*held, *length))
    });
    let (_, address, _) = of_subnet?;
    let fate = fate(&sight.host.firewall.chains, &sight.client(leg)?);
    (fate.masqueraded == Some(true) && !fate.ends).then_some(*address)
}

/// Does the host forward what comes in by an interface? Where it does not, its kernel says that there is no way.
fn forwards(by: &str, endpoint: IpAddr) -> bool {
    let family = if endpoint.is_ipv6() { "ipv6" } else { "ipv4" };
    let said = std::fs::read_to_string(format!("/proc/sys/net/{family}/conf/{by}/forwarding"));
    said.map_or(true, |said| said.trim() != "0")
}
