//! Do the routes to IMDS lead out: from the host, from each client's namespace, and from there on?

use std::net::IpAddr;

use super::inside::Inside;
use super::sight::{Leg, Sight};
use super::{Answer, Check, Status, Subject, onward};
use crate::interfaces::snapshot::{Snapshot, Way};

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
            let out = onward::Out { interface: network.name(*interface), gateway: *gateway, source: *source };
            let leg =
                |index| place.sight.legs.iter().find(move |leg: &&Leg| leg.inside == index && leg.endpoint == endpoint);
            match place.inside {
                Some((index, _)) => onward::further(place.sight, network, &out, leg(index), &answer),
                None => {
                    let look = || format!("{family} route get {endpoint}");
                    let said = onward::out_of_host(place.sight, Some((*interface, *gateway, *source)), endpoint, "");
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
