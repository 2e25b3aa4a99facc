//! Which interfaces are there, which do the routes to the endpoints use, and what comes and goes? Asked of rtnetlink.

mod message;
mod neighbour;
pub mod nsid;
mod queue;
pub mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::{Handle, IpVersion, MulticastGroup, RouteMessageBuilder};
use thiserror::Error;
use tokio::sync::mpsc;

use diagnosis::identity::fact::Network;
use diagnosis::net::Ifindex;
use diagnosis::way::network::{Link, Routing, Towards};

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An interface is there, or is another than before.
    Link(Link),
    /// An interface is gone.
    Gone(Ifindex),
    /// Routes or policy rules changed: ask again which interfaces they use.
    Routes,
    /// Addresses changed: ask again which there are.
    Addresses,
}

/// Why the kernel could not be asked.
#[derive(Debug, Error)]
pub enum Error {
    /// No socket.
    #[error("open a netlink socket: {0}")]
    Open(std::io::Error),
    /// No answer.
    #[error("ask the kernel for its interfaces: {0}")]
    Ask(rtnetlink::Error),
}

/// A line to the kernel.
#[derive(Clone, Debug)]
pub struct Interfaces {
    handle: Handle,
}

/// Changes that wait to be taken at most; a host with more at once has them listed anew.
const BACKLOG: usize = 1024;

/// Addresses of this host that are remembered; a node of many pods has some hundred.
const MAX_ADDRESSES: usize = 4096;

/// Routes that are looked at, at most; a node of many pods has some hundred, a router with the whole Internet in its table a million.
pub const MAX_ROUTES: usize = 100_000;

/// Opens the line. Changes are told from now on.
#[expect(
    clippy::disallowed_methods,
    reason = "both end with the connection, when its handle and the receiver are dropped"
)]
pub fn open() -> Result<(Interfaces, mpsc::Receiver<Change>), Error> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ];
    let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&groups).map_err(Error::Open)?;
    tokio::spawn(connection);
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        while let Some((message, _)) = messages.next().await {
            let NetlinkPayload::InnerMessage(message) = message.payload else { continue };
            let change = match message {
                RouteNetlinkMessage::NewLink(link) => Change::Link(message::link(&link)),
                RouteNetlinkMessage::DelLink(link) => Change::Gone(Ifindex(link.header.index)),
                RouteNetlinkMessage::NewRoute(_)
                | RouteNetlinkMessage::DelRoute(_)
                | RouteNetlinkMessage::NewRule(_)
                | RouteNetlinkMessage::DelRule(_) => Change::Routes,
                RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => Change::Addresses,
                _ => continue,
            };
            if sender.send(change).await.is_err() {
                break;
            }
        }
    });
    Ok((Interfaces { handle }, receiver))
}

impl Interfaces {
    /// All interfaces of our namespace.
    pub async fn list(&self) -> Result<Vec<Link>, Error> {
        let links = self.handle.link().get().execute();
        links.map_ok(|message| message::link(&message)).try_collect().await.map_err(Error::Ask)
    }

    /// Addresses of this namespace, on whatever interface; the first [`MAX_ADDRESSES`].
    pub async fn addresses(&self) -> BTreeSet<Network> {
        let mut found = BTreeSet::new();
        let mut addresses = std::pin::pin!(self.handle.address().get().execute());
        while let Ok(Some(message)) = addresses.try_next().await {
            let network =
                message::address(&message).map(|(interface, address, bits)| Network { interface, address, bits });
            found.extend(network.filter(|_| found.len() < MAX_ADDRESSES));
        }
        found
    }

    /// Routes of all tables, and the policy rules, of the endpoints' families. What cannot be had is left out.
    async fn routing(&self, endpoints: &[IpAddr]) -> Routing {
        routing(&self.handle, endpoints).await
    }

    /// The interfaces that routes use now: towards the endpoints, and at all. An endpoint without a route has none.
    pub async fn routes(&self, endpoints: &[IpAddr], links: &BTreeMap<Ifindex, Link>) -> (Towards, BTreeSet<Ifindex>) {
        let routing = self.routing(endpoints).await;
        let mut towards = routing.towards(endpoints, links);
        // What the kernel says of our own packets counts whatever the tables were understood to say.
        for endpoint in endpoints {
            let route = match endpoint {
                IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(*address, 32).build(),
                IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(*address, 128).build(),
            };
            let mut routes = std::pin::pin!(self.handle.route().get(route).execute());
            // An error is "network is unreachable": no route, no interface.
            while let Ok(Some(route)) = routes.try_next().await {
                towards.by.extend(outgoing(&route));
            }
        }
        (towards, routing.routed())
    }
}

/// Routes of all tables, and the policy rules, of the endpoints' families. What cannot be had is left out.
async fn routing(handle: &Handle, endpoints: &[IpAddr]) -> Routing {
    let mut routing = Routing::default();
    for v6 in [false, true] {
        if !endpoints.iter().any(|endpoint| endpoint.is_ipv6() == v6) {
            continue;
        }
        let (all, version) = if v6 {
            (RouteMessageBuilder::<Ipv6Addr>::new().build(), IpVersion::V6)
        } else {
            (RouteMessageBuilder::<Ipv4Addr>::new().build(), IpVersion::V4)
        };
        let mut routes = std::pin::pin!(handle.route().get(all).execute());
        while let Ok(Some(route)) = routes.try_next().await {
            routing.routes.extend(message::route(&route).filter(|_| routing.routes.len() < MAX_ROUTES));
        }
        let mut rules = std::pin::pin!(handle.rule().get(version).execute());
        while let Ok(Some(rule)) = rules.try_next().await {
            routing.rules.push(message::rule(&rule));
        }
    }
    routing
}

fn outgoing(route: &RouteMessage) -> Option<Ifindex> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(Ifindex(*index)),
        _ => None,
    })
}
