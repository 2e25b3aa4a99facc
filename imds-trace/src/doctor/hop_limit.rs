//! Which hop limit does each container need? By its network mode, or by its way where no engine knows that; `watch` measures it.

use super::firewall::fate::fate;
use super::inside::Inside;
use super::sight::{Arrival, Leg, Sight};
use super::{Answer, Check, Status, Subject};
use crate::sources::listing::{Listing, Network, Running};

/// The check.
pub const CHECK: Check =
    Check { id: "hop-limit", explain: "which hop limit each container needs, by its network mode or its way", examine };

/// Containers that share another's network may form a chain; more links than this are a circle.
const MAX_SHARES: usize = 8;

/// What a network mode means for the hop limit.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Need {
    /// At least this.
    Least(u8, String),
    /// It has no network.
    None,
    /// Not to be known from the mode.
    Unknown(String),
}

const LOOK: &str =
    "aws ec2 describe-instances --instance-ids <instance-id> --query 'Reservations[].Instances[].MetadataOptions'";

fn examine(sight: &Sight) -> Vec<Answer> {
    let mut answers = sight.engine.as_ref().map(|listing| by_mode(sight, listing)).unwrap_or_default();
    answers.extend(by_way(sight));
    answers
}

/// Of containers and pods that no engine told of: does the host forward what they send?
fn by_way(sight: &Sight) -> Vec<Answer> {
    let listed: Vec<&String> =
        sight.engine.iter().flat_map(|listing| &listing.containers).map(|container| &container.name).collect();
    let others = sight.inside.iter().enumerate();
    let others = others.filter(|(_, inside)| !inside.containers.iter().any(|name| listed.contains(&name)));
    let answer = |(index, inside): (usize, &Inside)| {
        // IPv4 first: most have nothing else.
        let leg = sight.legs.iter().filter(|leg| leg.inside == index).min_by_key(|leg| leg.endpoint.is_ipv6())?;
        let (status, summary) = match &leg.arrival {
            Arrival::Host(_) if is_unsettled(sight, leg) => (Status::Unknown, UNSETTLED.to_owned()),
            Arrival::Host(by) => (
                Status::Ok,
                format!(
                    "It needs a hop limit of 2 or more: the host forwards what comes in by {by}; one more for each bridge inside it."
                ),
            ),
            Arrival::Card(..) | Arrival::Own => (
                Status::Ok,
                "It needs a hop limit of 1, which every instance has: the host does not forward what it sends."
                    .to_owned(),
            ),
            Arrival::Unknown(why) => {
                (Status::Unknown, format!("The hop limit it needs is not known: {why}. watch measures it."))
            }
        };
        Some(Answer::new(Subject::Container(inside.name()), status, summary).look(LOOK))
    };
    others.filter_map(answer).collect()
}

/// Of an engine's containers.
fn by_mode(sight: &Sight, listing: &Listing) -> Vec<Answer> {
    let answer = |container: &Running| {
        let (status, summary) = match need(container, &listing.containers, &listing.networks, 0) {
            Need::Least(2.., how) if listing.rootless => (
                Status::Ok,
                format!(
                    "It needs a hop limit of 1, which every instance has: its network mode ({how}) would need 2, but its engine \
                     runs without root, so the host sends its traffic anew, as its own."
                ),
            ),
            Need::Least(1, how) => {
                (Status::Ok, format!("It needs a hop limit of 1, which every instance has, by network mode ({how})."))
            }
            Need::Least(2.., _) if is_unsettled_by_name(sight, &container.name) => {
                (Status::Unknown, UNSETTLED.to_owned())
            }
            Need::Least(least, how) => (
                Status::Ok,
                format!(
                    "It needs a hop limit of {least} or more, by network mode ({how}); one more for each bridge inside it."
                ),
            ),
            Need::None if is_wired(sight, &container.name) => (
                Status::Unknown,
                "Its network mode is none, and yet it has a network, of which the engine does not know (as ECS gives it with \
                 awsvpc): the hop limit it needs is not known, watch measures it."
                    .to_owned(),
            ),
            Need::None => {
                (Status::Ok, "It has no network by its mode (none), so no hop limit lets it reach IMDS.".to_owned())
            }
            Need::Unknown(how) => (
                Status::Unknown,
                format!("The hop limit it needs is not known from its network mode ({how}): watch measures it."),
            ),
        };
        Answer::new(Subject::Container(container.name.clone()), status, summary).look(LOOK)
    };
    listing.containers.iter().map(answer).collect()
}

/// What is said where rules make the TTL another.
const UNSETTLED: &str = "The hop limit it needs is not known: a firewall rule of the host changes the TTL of what it is answered. watch \
                         measures with which TTL that arrives.";

/// May the host's rules change the TTL of a client's answers?
fn is_unsettled(sight: &Sight, leg: &Leg) -> bool {
    sight.client(leg).is_some_and(|client| fate(&sight.host.firewall.chains, &client).ttl_changed)
}

fn is_unsettled_by_name(sight: &Sight, container: &str) -> bool {
    let is_its = |leg: &&Leg| sight.inside[leg.inside].containers.iter().any(|name| name == container);
    sight.legs.iter().filter(is_its).any(|leg| is_unsettled(sight, leg))
}

/// Has a container's namespace more than loopback?
fn is_wired(sight: &Sight, container: &str) -> bool {
    let inside = sight.inside.iter().find(|inside| inside.containers.iter().any(|name| name == container));
    let network = inside.and_then(|inside| inside.network());
    network.is_some_and(|network| network.links.values().any(|link| link.name != "lo"))
}

fn need(container: &Running, all: &[Running], networks: &[Network], depth: usize) -> Need {
    match container.mode.as_str() {
        "host" => return Need::Least(1, "host".into()),
        "none" => return Need::None,
        mode => {
            if let Some(other) = mode.strip_prefix("container:") {
                let other =
                    all.iter().find(|known| known.id == other || known.name == other).filter(|_| depth < MAX_SHARES);
                return match other.map(|other| (other, need(other, all, networks, depth + 1))) {
                    Some((other, Need::Least(least, how))) => Need::Least(least, format!("as {}: {how}", other.name)),
                    Some((_, need)) => need,
                    None => Need::Unknown(mode.to_owned()),
                };
            }
        }
    }
    let driver =
        |name: &str| networks.iter().find(|network| network.name == name).map(|network| network.driver.as_str());
    let drivers = container.networks.iter().map(|(name, _)| (name, driver(name)));
    let needs: Vec<Need> = drivers
        .map(|(name, driver)| match driver {
            Some("bridge" | "overlay") => Need::Least(2, driver.unwrap_or_default().to_owned()),
            Some("macvlan" | "ipvlan") => {
                Need::Least(1, format!("{}, if EC2 knows its address", driver.unwrap_or_default()))
            }
            _ => Need::Unknown(format!("network {name}")),
        })
        .collect();
    match needs.as_slice() {
        [] => Need::Unknown(container.mode.clone()),
        [first, rest @ ..] if rest.iter().all(|other| other == first) => first.clone(),
        _ => Need::Unknown(format!("{} networks of different kinds", needs.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_says_how_often_the_host_forwards() {
        let network =
            |name: &str, driver: &str| Network { name: name.into(), driver: driver.into(), ..Network::default() };
        let networks = [network("bridge", "bridge"), network("lan", "macvlan"), network("odd", "weave")];
        let on = |id: &str, mode: &str, networks: &[&str]| Running {
            id: id.into(),
            name: id.into(),
            mode: mode.into(),
            networks: networks.iter().map(|name| ((*name).to_owned(), Vec::new())).collect(),
            ..Running::default()
        };
        let all = [
            on("host", "host", &["host"]),
            on("none", "none", &["none"]),
            on("bridged", "bridge", &["bridge"]),
            on("sharer", "container:bridged", &[]),
            on("lan", "lan", &["lan"]),
            on("odd", "odd", &["odd"]),
            on("both", "bridge", &["bridge", "lan"]),
            on("circle", "container:circle", &[]),
        ];
        let least = |index: usize| match need(&all[index], &all, &networks, 0) {
            Need::Least(least, _) => Some(least),
            Need::None => Some(0),
            Need::Unknown(_) => None,
        };
        let found: Vec<_> = (0..all.len()).map(least).collect();
        assert_eq!(found, [Some(1), Some(0), Some(2), Some(2), Some(1), None, None, None]);
    }
}
