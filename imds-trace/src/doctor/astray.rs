//! Does an interface of the host lead to where IMDS cannot be: into a tunnel, or back to the host's own clients?

use std::net::IpAddr;

use super::inside::Inside;
use super::sight::Sight;
use diagnosis::net::Ifindex;
use diagnosis::way::network::{Kind, Link};

/// Where else it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Astray {
    /// Into a tunnel of this kind.
    Tunnel(String),
    /// To somebody who has the endpoint's address.
    StandIn(String),
    /// Among clients, of whom nobody has that address; what the interface is.
    Nobody(&'static str),
    /// To a client that is to send it on.
    Through(String),
}

/// Where an interface of the host leads; `None`: out, as far as is known.
pub fn of(sight: &Sight, interface: Ifindex, gateway: Option<IpAddr>, endpoint: IpAddr) -> Option<Astray> {
    let network = sight.host.network.as_ref().ok()?;
    let link = network.links.get(&interface)?;
    if let Kind::Tunnel(kind) = &link.kind {
        return Some(Astray::Tunnel(kind.clone()));
    }
    let ends: Vec<&Link> = match link.kind {
        Kind::Bridge => network.links.values().filter(|port| port.master == Some(link.index)).collect(),
        Kind::Pair => vec![link],
        _ => return None,
    };
    // Clients at the other ends, and whether all ends are theirs.
    let leads_to = |inside: &&Inside, end: &Link| {
        inside.view.as_ref().is_ok_and(|view| view.outward.values().any(|theirs| *theirs == end.index))
    };
    let there: Vec<&Inside> =
        sight.inside.iter().filter(|inside| ends.iter().any(|end| leads_to(inside, end))).collect();
    let holds = |address: IpAddr| {
        there.iter().find(|inside| inside.network().is_some_and(|network| network.holder(address).is_some()))
    };
    if let Some(stand_in) = holds(endpoint) {
        return Some(Astray::StandIn(stand_in.name()));
    }
    if let Some(sends_on) = gateway.and_then(holds) {
        return Some(Astray::Through(sends_on.name()));
    }
    let is_bridge = link.kind == Kind::Bridge;
    // A bridge with a card in it leads out, and one that only the engine knows leads nowhere.
    let only_clients =
        ends.iter().all(|end| end.kind == Kind::Pair && there.iter().any(|inside| leads_to(inside, end)));
    let engines = is_bridge && sight.bridge(&link.name).is_some_and(|bridge| bridge.network.is_some());
    if gateway.is_none() && only_clients && (!there.is_empty() || engines) {
        return Some(Astray::Nobody(if is_bridge { "a container network" } else { "a container's link" }));
    }
    // An end that is a port of a bridge takes nothing out by itself.
    (link.kind == Kind::Pair && link.master.is_some()).then_some(Astray::Nobody("a container's link"))
}
