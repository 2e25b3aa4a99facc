//! Do the routes to IMDS lead out: from the host, from each client's namespace, and from there on?

use std::net::IpAddr;

use super::astray::{self, Astray};
use super::inside::Inside;
use super::sight::{Leg, Sight, is_link_local};
use super::{Answer, Check, Status, Subject, onward};
use crate::interfaces::snapshot::{Snapshot, Way};
use diagnosis::net::Ifindex;
use diagnosis::printable::shell_word;

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
                Some((index, _)) => onward::further(place.sight, network, &out, leg(index), &answer),
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
pub struct Out<'a> {
    pub interface: &'a str,
    pub gateway: Option<IpAddr>,
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
