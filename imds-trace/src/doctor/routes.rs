//! Do the routes to IMDS lead out: from the host, from each client's namespace, and from there on?

use std::net::IpAddr;

use super::firewall::fate::{Client, fate};
use super::firewall::holds::Holds;
use super::firewall::mark::Bits;
use super::firewall::rules::Chain;
use super::inside::Inside;
use super::listeners::{Listeners, refused};
use super::sight::{self, Leg, Sight};
use super::{Answer, Check, Status, Subject, lost, onward, stuck};
use crate::interfaces::MAX_ROUTES;
use crate::interfaces::snapshot::{Snapshot, Way};
use diagnosis::way::network::{PolicyRule, RouteKind, Routing, TableRoute, in_prefix};

/// The check.
pub const CHECK: Check = Check { id: "route", explain: "whether routes to the endpoints lead out", examine };

fn examine(sight: &Sight) -> Vec<Answer> {
    let plain = |command: &str| command.to_owned();
    let mut answers = match &sight.host.network {
        Ok(network) => {
            let place = Place {
                sight,
                inside: None,
                chains: &sight.host.firewall.chains,
                listeners: Some(&sight.host.listeners),
                about: &|| Subject::Host,
                command: &plain,
            };
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
                let chains = inside.view.as_ref().map(|view| view.firewall.chains.as_slice()).unwrap_or_default();
                let place = Place {
                    sight,
                    inside: Some((index, inside)),
                    chains,
                    listeners: inside.view.as_ref().ok().map(|view| &view.listeners),
                    about: &about,
                    command: &command,
                };
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
    chains: &'a [Chain],
    listeners: Option<&'a Listeners>,
    about: &'a dyn Fn() -> Subject,
    command: &'a dyn Fn(&str) -> String,
}

/// The routes of one namespace.
fn judge(place: &Place, network: &Snapshot) -> Vec<Answer> {
    let of = |endpoint: &IpAddr| {
        let said = keeps_answers(place, network, *endpoint, one(place, network, *endpoint));
        if said.status == Status::Ok && asks_users(&network.routing, *endpoint) {
            return of_some_users(said).look((place.command)("ip rule"));
        }
        said
    };
    place.sight.endpoints.iter().map(of).collect()
}

/// Does the namespace take answers for the address under which it asks? Without a local route to it, they are not for it.
fn keeps_answers(place: &Place, network: &Snapshot, endpoint: IpAddr, said: Answer) -> Answer {
    let Some(Way::Out { source: Some(source), .. }) = network.way(endpoint) else { return said };
    if said.status == Status::Broken || !is_disowned(network, *source) {
        return said;
    }
    let summary = format!(
        "{endpoint} is asked under {source}, to which no table has a local route, so answers to it are taken for somebody else's."
    );
    Answer::new((place.about)(), Status::Broken, summary).look((place.command)("ip route show table local"))
}

/// Is an IPv4 address that a namespace has none of its own by its routes, of which all are known?
fn is_disowned(network: &Snapshot, address: IpAddr) -> bool {
    let routes = &network.routing.routes;
    let is_local = |route: &TableRoute| route.kind == RouteKind::Local && route.covers(address);
    address.is_ipv4()
        && network.holder(address).is_some()
        && !routes.is_empty()
        && routes.len() < MAX_ROUTES
        && !routes.iter().any(is_local)
}

/// May a rule for routes send what some users' processes send elsewhere than others'?
fn asks_users(routing: &Routing, endpoint: IpAddr) -> bool {
    let may_hold =
        |rule: &&PolicyRule| rule.users && (rule.inverted || rule.to.is_none_or(|to| in_prefix(endpoint, to)));
    endpoint.is_ipv4() && routing.rules.iter().any(|rule| may_hold(&rule))
}

fn of_some_users(said: Answer) -> Answer {
    let summary = format!(
        "{} That is so for root; a rule for routes asks whose process it is (uidrange), and whether other users' reach it cannot be decided here.",
        said.summary
    );
    Answer { status: Status::Unknown, summary, ..said }
}

/// Most have no IPv6, which is no fault where IPv4 leads to IMDS.
fn one(place: &Place, network: &Snapshot, endpoint: IpAddr) -> Answer {
    let v4_asked = place.sight.endpoints.iter().any(IpAddr::is_ipv4);
    let family = if endpoint.is_ipv6() { "ip -6" } else { "ip" };
    let answer = |status, summary: String| {
        let look = (place.command)(&format!("{family} route get {endpoint}"));
        Answer::new((place.about)(), status, summary).look(look)
    };
    if is_rerouted(place.chains, network, endpoint) {
        let summary = format!(
            "How {endpoint} is reached depends on marks that firewall rules set in OUTPUT, and on rules for routes that ask for them: not decided here."
        );
        return answer(Status::Unknown, summary).look((place.command)("ip rule"));
    }
    match network.way(endpoint) {
        Some(Way::Out { interface, .. }) if network.name(*interface) == "lo" => answer(
            Status::Warning,
            format!("The route to {endpoint} leads to loopback: it would be answered locally, not by IMDS."),
        ),
        Some(Way::Out { interface, gateway, source }) => {
            let out = onward::Out { interface: network.name(*interface), gateway: *gateway, source: *source };
            let leg =
                |index| place.sight.legs.iter().find(move |leg: &&Leg| leg.inside == index && leg.endpoint == endpoint);
            match place.inside {
                Some((index, _)) => onward::further(place.sight, network, &out, leg(index), &answer),
                None => {
                    let look = || format!("{family} route get {endpoint}");
                    let said = onward::out_of_host(place.sight, Some((*interface, *gateway, *source)), endpoint, "");
                    said.map_or_else(
                        || {
                            let said = answer(Status::Ok, format!("{endpoint} is reached by {out}."));
                            let hop = (*interface, *gateway);
                            let said = stuck::little(network, hop, endpoint, said);
                            let said = lost::station(network, hop, endpoint, place.command, said);
                            onward::one_of_several(place.sight, *interface, *gateway, said)
                        },
                        |(status, summary, mend)| {
                            let said = answer(status, summary).look(look());
                            mend.into_iter().fold(said, Answer::mend)
                        },
                    )
                }
            }
        }
        Some(Way::Local) if place.listeners.is_some_and(|listeners| refused(listeners, place.chains, endpoint)) => {
            answer(
                Status::Broken,
                format!(
                    "{endpoint} is an address of this very namespace (a local route), and nobody listens on port 80 there: connections are refused."
                ),
            )
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

/// May a mark that firewall rules give to what processes of this namespace send choose another route than no mark does?
fn is_rerouted(chains: &[Chain], network: &Snapshot, endpoint: IpAddr) -> bool {
    let mut asked = network.routing.rules.iter().filter_map(|rule| rule.mark).peekable();
    if asked.peek().is_none() {
        return false;
    }
    let nowhere = || Client { endpoint: Some(endpoint), ..Client::default() };
    let client = sight::own(String::new(), Some(network), endpoint).unwrap_or_else(nowhere);
    let [mark, _] = fate(chains, &client).marks;
    asked.any(|(value, mask)| {
        let unmarked = Bits::default().are(value, mask);
        let marked = mark.are(value, mask);
        marked == Holds::Maybe || marked != unmarked
    })
}

#[cfg(test)]
mod tests {
    use super::super::firewall::iptables;
    use super::*;
    use diagnosis::net::Ifindex;

    #[test]
    fn a_mark_set_in_output_counts_where_a_rule_for_routes_asks_for_it() {
        let rerouted = |mark: Option<(u32, u32)>, rule: &str| {
            let text = format!("*mangle\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{rule}\nCOMMIT\n");
            let mut network = Snapshot::default();
            network.routing.rules.push(PolicyRule { mark, ..PolicyRule::default() });
            is_rerouted(&iptables::read(&text, "iptables"), &network, IpAddr::from([169, 254, 169, 254]))
        };
        let seven = Some((7, u32::MAX));
        assert!(rerouted(seven, "-A OUTPUT -d 169.254.0.0/16 -j MARK --set-xmark 0x7/0xffffffff"));
        assert!(rerouted(seven, "-A OUTPUT -m owner --uid-owner 0 -j MARK --set-xmark 0x7/0xffffffff"));
        assert!(!rerouted(None, "-A OUTPUT -d 169.254.0.0/16 -j MARK --set-xmark 0x7/0xffffffff"));
        assert!(!rerouted(seven, "-A OUTPUT -d 10.0.0.0/8 -j MARK --set-xmark 0x7/0xffffffff"));
        assert!(!rerouted(seven, "-A OUTPUT -j MARK --set-xmark 0x80/0x80"));
        assert!(!rerouted(seven, "-A PREROUTING -j MARK --set-xmark 0x7/0xffffffff"));
    }

    #[test]
    fn an_address_without_a_local_route_takes_no_answers() {
        let held = IpAddr::from([10, 77, 0, 10]);
        let route =
            |kind, to, length| TableRoute { table: 255, to: (to, length), kind, by: Vec::new(), routed_on: false };
        let disowned = |routes: Vec<TableRoute>| {
            let routing = Routing { routes, ..Routing::default() };
            let addresses = vec![(Ifindex(2), held, 24)];
            is_disowned(&Snapshot { addresses, routing, ..Snapshot::default() }, held)
        };
        let default = || route(RouteKind::Unicast, IpAddr::from([0, 0, 0, 0]), 0);
        assert!(disowned(vec![default()]));
        assert!(!disowned(vec![default(), route(RouteKind::Local, held, 32)]));
        assert!(!disowned(vec![default(), route(RouteKind::Local, IpAddr::from([10, 0, 0, 0]), 8)]));
        assert!(!disowned(Vec::new()), "they could not be had");
        assert!(!disowned(vec![default(); MAX_ROUTES]), "not all are known");
    }

    #[test]
    fn a_rule_for_some_users_leaves_the_others_way_open() {
        let endpoint = IpAddr::from([169, 254, 169, 254]);
        let asks = |users, to: Option<([u8; 4], u8)>| {
            let to = to.map(|(address, length)| (IpAddr::from(address), length));
            let rule = PolicyRule { users, other: users, to, ..PolicyRule::default() };
            asks_users(&Routing { rules: vec![rule], ..Routing::default() }, endpoint)
        };
        assert!(asks(true, None) && asks(true, Some(([169, 254, 0, 0], 16))));
        assert!(!asks(true, Some(([10, 0, 0, 0], 8))) && !asks(false, None));
        let said = of_some_users(Answer::new(Subject::Host, Status::Ok, "It is reached."));
        assert!(said.status == Status::Unknown && said.summary.starts_with("It is reached. "), "{said:?}");
    }
}
