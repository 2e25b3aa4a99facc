//! Which interfaces are there, which do the routes to the endpoints use, and what comes and goes? Asked of rtnetlink.

pub mod snapshot;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use thiserror::Error;
use tokio::sync::mpsc;

use diagnosis::net::Ifindex;

/// An interface of our namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: Ifindex,
    /// Its name.
    pub name: String,
    /// Is it a bridge?
    pub bridge: bool,
    /// Is it one end of a veth pair?
    pub veth: bool,
    /// The bridge or bond it is a port of.
    pub master: Option<Ifindex>,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An interface is there, or is another than before.
    Link(Link),
    /// An interface is gone.
    Gone(Ifindex),
    /// Routes changed: ask again which interfaces they use.
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

/// Opens the line. Changes are told from now on.
pub fn open() -> Result<(Interfaces, mpsc::Receiver<Change>), Error> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
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
                RouteNetlinkMessage::NewLink(link) => Change::Link(read(&link)),
                RouteNetlinkMessage::DelLink(link) => Change::Gone(Ifindex(link.header.index)),
                RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => Change::Routes,
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
        self.handle.link().get().execute().map_ok(|message| read(&message)).try_collect().await.map_err(Error::Ask)
    }

    /// Addresses of this namespace, on whatever interface; the first [`MAX_ADDRESSES`].
    pub async fn addresses(&self) -> BTreeSet<IpAddr> {
        let mut found = BTreeSet::new();
        let mut addresses = std::pin::pin!(self.handle.address().get().execute());
        while let Ok(Some(message)) = addresses.try_next().await {
            let own = |attribute: &AddressAttribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            };
            let any = |attribute: &AddressAttribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            };
            // On a point-to-point link `Address` is the other end's; IPv6 has nothing else.
            let address = message.attributes.iter().find_map(own).or(message.attributes.iter().find_map(any));
            found.extend(address.filter(|_| found.len() < MAX_ADDRESSES));
        }
        found
    }

    /// The interfaces by which the endpoints are reached now. An endpoint without a route has none.
    pub async fn towards(&self, endpoints: &[IpAddr]) -> BTreeSet<Ifindex> {
        let mut found = BTreeSet::new();
        for endpoint in endpoints {
            let route = match endpoint {
                IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(*address, 32).build(),
                IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(*address, 128).build(),
            };
            let mut routes = std::pin::pin!(self.handle.route().get(route).execute());
            // An error is "network is unreachable": no route, no interface.
            while let Ok(Some(route)) = routes.try_next().await {
                found.extend(outgoing(&route));
            }
        }
        found
    }
}

fn outgoing(route: &RouteMessage) -> Option<Ifindex> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(Ifindex(*index)),
        _ => None,
    })
}

fn read(message: &LinkMessage) -> Link {
    let mut link =
        Link { index: Ifindex(message.header.index), name: String::new(), bridge: false, veth: false, master: None };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(master) => link.master = Some(Ifindex(*master)),
            LinkAttribute::LinkInfo(infos) => {
                link.bridge = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge)));
                link.veth = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
            }
            _ => {}
        }
    }
    link
}
