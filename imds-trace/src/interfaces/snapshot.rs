//! What do interfaces, addresses and routes look like at this moment, in the namespace of the calling thread?

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::message::{self, ip};
pub use super::neighbour::{Known, Mac, Neighbour};
use super::{Error, outgoing, queue, routing};
use diagnosis::net::Ifindex;
use diagnosis::way::network::{DEFAULT_TABLES, Link, Routing};

/// `errno` values with which the kernel answers for a route that leads nowhere (`include/uapi/asm-generic/errno.h`,
/// `fib_props` in `net/ipv4/fib_semantics.c`).
const EACCES: i32 = 13;
const EXDEV: i32 = 18;
const EINVAL: i32 = 22;
const ENETUNREACH: i32 = 101;
const EHOSTUNREACH: i32 = 113;

/// TCP's number, and IMDS's port.
const TCP: u8 = 6;
const PORT: u16 = 80;

/// A namespace's network at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Interfaces.
    pub links: BTreeMap<Ifindex, Link>,
    /// Addresses with the length of their prefix.
    pub addresses: Vec<(Ifindex, IpAddr, u8)>,
    /// How each endpoint is reached by a process of this namespace.
    pub ways: Vec<(IpAddr, Way)>,
    /// With which TTL, or hop limit, a process's packets to each endpoint start, where that is known.
    pub ttls: Vec<(IpAddr, u8)>,
    /// Interfaces of default routes, of any table.
    pub defaults: BTreeSet<Ifindex>,
    /// The router of IPv4's default route that a process of this namespace takes where no rule says otherwise.
    pub router: Option<(Ifindex, IpAddr)>,
    /// The next hops of IPv4's default route there, if it has several.
    pub next_hops: Vec<(Ifindex, Option<IpAddr>)>,
    /// Routes and policy rules of IPv4, as far as they could be had.
    pub routing: Routing,
    /// What the kernel knows of neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Addresses for which it answers in others' place.
    pub proxies: Vec<IpAddr>,
    /// What bridges know to be behind their ports, if some port lets in or out only that; `None` if that could not be had.
    pub stations: Option<BTreeSet<(Ifindex, Mac)>>,
    /// Links whose queue drops whatever they are to send, and what queue that is.
    pub mute: BTreeMap<Ifindex, &'static str>,
}

/// A packet of a connection to IMDS whose route the kernel is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// To where.
    pub to: IpAddr,
    /// From where, and the interface by which it comes in; `None` if a process here sends it.
    pub inward: Option<(IpAddr, Ifindex)>,
    /// The address under which a process here sends it, if that is settled.
    pub own: Option<Ipv4Addr>,
    /// Its mark.
    pub mark: u32,
    /// The server's port; rules may ask for it.
    pub port: u16,
    /// Is it an answer, and not a request?
    pub answer: bool,
}

impl Asked {
    /// A request to IMDS that a process here sends.
    pub fn own(to: IpAddr) -> Self {
        Self { to, inward: None, own: None, mark: 0, port: PORT, answer: false }
    }
}

/// The kernel's answer when asked for a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Out by an interface.
    Out {
        /// Which.
        interface: Ifindex,
        /// The next router; `None` if the endpoint is on the link.
        gateway: Option<IpAddr>,
        /// The address that a process's packets get.
        source: Option<IpAddr>,
    },
    /// To this host itself.
    Local,
    /// Nowhere.
    Nowhere {
        /// What kind of route says so: `no route`, `prohibit`, `blackhole`, `unreachable`, `broadcast`, `multicast`; or `reverse path`: the kernel would drop
        /// what comes in, because the way back leads elsewhere.
        why: &'static str,
        /// What a program is told, e.g. `Network is unreachable`.
        answer: String,
    },
    /// The kernel would not say.
    Unknown(String),
}

/// Looks once. Must not be called on a thread that runs an asynchronous runtime.
pub fn look(endpoints: &[IpAddr]) -> Result<Snapshot, Error> {
    with_handle(async |handle| snapshot(&handle, endpoints).await)
}

/// Asks the kernel for the routes of packets. Must not be called on a thread that runs an asynchronous runtime.
pub fn ask(packets: &[Asked]) -> Result<Vec<Way>, Error> {
    with_handle(async |handle| {
        let mut ways = Vec::with_capacity(packets.len());
        for asked in packets {
            ways.push(way(&handle, asked).await);
        }
        Ok(ways)
    })
}

#[expect(clippy::disallowed_methods, reason = "it ends with the runtime, which ends with this call")]
fn with_handle<T>(work: impl AsyncFnOnce(Handle) -> Result<T, Error>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Open)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Open)?;
        tokio::spawn(connection);
        work(handle).await
    })
}

async fn snapshot(handle: &Handle, endpoints: &[IpAddr]) -> Result<Snapshot, Error> {
    let links: Vec<Link> = handle
        .link()
        .get()
        .execute()
        .map_ok(|message| message::link(&message))
        .try_collect()
        .await
        .map_err(Error::Ask)?;
    let links: BTreeMap<Ifindex, Link> = links.into_iter().map(|link| (link.index, link)).collect();
    let mut addresses = Vec::new();
    let mut listed = std::pin::pin!(handle.address().get().execute());
    while let Some(message) = listed.try_next().await.map_err(Error::Ask)? {
        addresses.extend(message::address(&message));
    }
    let mut snapshot = Snapshot { links, addresses, ..Snapshot::default() };
    for endpoint in endpoints {
        let (way, limit) = connected(handle, *endpoint).await;
        if let Way::Out { interface, .. } = way {
            let set = || initial_ttl(snapshot.name(interface), *endpoint);
            snapshot.ttls.extend(limit.or_else(set).map(|ttl| (*endpoint, ttl)));
        }
        snapshot.ways.push((*endpoint, way));
    }
    for all in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()] {
        let mut routes = std::pin::pin!(handle.route().get(all).execute());
        while let Ok(Some(route)) = routes.try_next().await {
            if route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast {
                snapshot.defaults.extend(outgoing(&route));
                let hops = message::next_hops(&route);
                snapshot.defaults.extend(hops.iter().map(|(interface, _)| *interface));
                let is_taken = DEFAULT_TABLES.contains(&route.header.table.into());
                if is_taken
                    && snapshot.next_hops.is_empty()
                    && hops.iter().any(|(_, router)| router.is_some_and(|to| to.is_ipv4()))
                {
                    snapshot.next_hops = hops;
                }
                if let Way::Out { interface, gateway: Some(gateway), .. } = answered(&route)
                    && gateway.is_ipv4()
                    && is_taken
                {
                    // The one of the lowest metric comes first.
                    snapshot.router.get_or_insert((interface, gateway));
                }
            }
        }
    }
    // Without them less is known of what answers.
    let mut known = std::pin::pin!(handle.neighbours().get().execute());
    while let Ok(Some(one)) = known.try_next().await {
        snapshot.neighbours.extend(message::neighbour(&one));
    }
    let mut proxies = std::pin::pin!(handle.neighbours().get().proxies().execute());
    while let Ok(Some(one)) = proxies.try_next().await {
        snapshot.proxies.extend(message::neighbour(&one).map(|one| one.address));
    }
    snapshot.stations = stations(handle, &snapshot.links).await;
    let mut queues = std::pin::pin!(handle.qdisc().get().execute());
    while let Ok(Some(one)) = queues.try_next().await {
        snapshot.mute.extend(queue::drops_all(&one));
    }
    snapshot.routing = routing(handle, &[IpAddr::V4(Ipv4Addr::UNSPECIFIED)]).await;
    Ok(snapshot)
}

/// What bridges know to be behind their ports, which may be thousands: only where it decides.
async fn stations(handle: &Handle, links: &BTreeMap<Ifindex, Link>) -> Option<BTreeSet<(Ifindex, Mac)>> {
    let mut found = BTreeSet::new();
    if links.values().filter_map(|link| link.port).any(|port| port.locked || !port.learns) {
        let table = handle.neighbours().get().set_address_family(AddressFamily::Bridge);
        let mut entries = std::pin::pin!(table.execute());
        while let Some(entry) = entries.try_next().await.ok()? {
            found.extend(message::station(&entry));
        }
    }
    Some(found)
}

/// The way of what a process of this namespace sends. Of IPv4 connect(2) asks twice, the second time with the address that the first
/// answer gives (`ip_route_connect`), about which rules may ask. With the hop limit that the route sets, if it sets one.
async fn connected(handle: &Handle, endpoint: IpAddr) -> (Way, Option<u8>) {
    let own = Asked::own(endpoint);
    let (first, limit) = told(handle, &own).await;
    let Way::Out { source: Some(IpAddr::V4(source)), .. } = first else { return (first, limit) };
    let (second, limit) = told(handle, &Asked { own: Some(source), ..own }).await;
    (settled(first, second), limit)
}

/// With which TTL the calling thread's namespace starts what no route says otherwise of (`ip4_dst_hoplimit`, `ip6_dst_hoplimit`).
fn initial_ttl(interface: &str, endpoint: IpAddr) -> Option<u8> {
    let path = match endpoint {
        IpAddr::V4(_) => "/proc/sys/net/ipv4/ip_default_ttl".to_owned(),
        IpAddr::V6(_) => format!("/proc/sys/net/ipv6/conf/{interface}/hop_limit"),
    };
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The second answer, under the address that the first gave: the kernel does not repeat what it was told.
fn settled(first: Way, second: Way) -> Way {
    match (first, second) {
        (Way::Out { source, .. }, Way::Out { interface, gateway, .. }) => Way::Out { interface, gateway, source },
        (_, second) => second,
    }
}

async fn way(handle: &Handle, asked: &Asked) -> Way {
    told(handle, asked).await.0
}

/// The way, and the hop limit that the route sets.
async fn told(handle: &Handle, asked: &Asked) -> (Way, Option<u8>) {
    let inward = asked.inward.filter(|(from, _)| from.is_ipv4() == asked.to.is_ipv4());
    let mut message = match asked.to {
        IpAddr::V4(to) => {
            let mut message = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32);
            if let Some((IpAddr::V4(from), by)) = inward {
                message = message.source_prefix(from, 32).input_interface(by.0);
            } else if let Some(own) = asked.own {
                message = message.source_prefix(own, 32);
            }
            message.build()
        }
        IpAddr::V6(to) => {
            let mut message = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, 128);
            if let Some((IpAddr::V6(from), by)) = inward {
                message = message.source_prefix(from, 128).input_interface(by.0);
            }
            message.build()
        }
    };
    let port = if asked.answer { RouteAttribute::Sport(asked.port) } else { RouteAttribute::Dport(asked.port) };
    message.attributes.extend([RouteAttribute::IpProto(TCP), port]);
    if asked.mark != 0 {
        message.attributes.push(RouteAttribute::Mark(asked.mark));
    }
    let asked = message;
    let mut routes = std::pin::pin!(handle.route().get(asked).execute());
    let way = match routes.try_next().await {
        Ok(Some(route)) => return (answered(&route), hop_limit(&route)),
        Ok(None) => Way::Unknown("no answer".into()),
        Err(rtnetlink::Error::NetlinkError(error)) => refused(error.raw_code().abs()),
        Err(error) => Way::Unknown(error.to_string()),
    };
    (way, None)
}

/// The hop limit that a route sets; 0 is none.
fn hop_limit(route: &RouteMessage) -> Option<u8> {
    let metrics = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => Some(metrics),
        _ => None,
    })?;
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Hoplimit(limit) if *limit != 0 => u8::try_from(*limit).ok(),
        _ => None,
    })
}

fn answered(route: &RouteMessage) -> Way {
    match route.header.kind {
        RouteType::Local => return Way::Local,
        RouteType::Prohibit => return refused(EACCES),
        RouteType::BlackHole => return refused(EINVAL),
        RouteType::Unreachable => return refused(EHOSTUNREACH),
        // No connection is made to many (`tcp_v4_connect`), and what comes in for them is not sent on.
        RouteType::Broadcast => return Way::Nowhere { why: "broadcast", answer: errno_text(ENETUNREACH) },
        RouteType::Multicast => return Way::Nowhere { why: "multicast", answer: errno_text(ENETUNREACH) },
        _ => {}
    }
    let Some(interface) = outgoing(route) else { return Way::Unknown("a route without an interface".into()) };
    let (mut gateway, mut source) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            _ => {}
        }
    }
    Way::Out { interface, gateway, source }
}

/// What the kernel means by an error in place of a route.
fn refused(errno: i32) -> Way {
    let why = match errno {
        EACCES => "prohibit",
        EXDEV => "reverse path",
        EINVAL => "blackhole",
        EHOSTUNREACH => "unreachable",
        ENETUNREACH => "no route",
        _ => return Way::Unknown(errno_text(errno)),
    };
    Way::Nowhere { why, answer: errno_text(errno) }
}

/// `Network is unreachable`, without the number that Rust puts behind it.
fn errno_text(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

impl Snapshot {
    /// An interface's name.
    pub fn name(&self, index: Ifindex) -> &str {
        self.links.get(&index).map_or("?", |link| link.name.as_str())
    }

    /// The interface that has this address.
    pub fn holder(&self, address: IpAddr) -> Option<Ifindex> {
        self.addresses.iter().find(|(_, held, _)| *held == address).map(|(index, _, _)| *index)
    }

    /// How a process of this namespace reaches an endpoint.
    pub fn way(&self, endpoint: IpAddr) -> Option<&Way> {
        self.ways.iter().find(|(known, _)| *known == endpoint).map(|(_, way)| way)
    }

    /// With which TTL a process of this namespace starts what it sends to an endpoint.
    pub fn ttl(&self, endpoint: IpAddr) -> Option<u8> {
        self.ttls.iter().find(|(known, _)| *known == endpoint).map(|(_, ttl)| *ttl)
    }

    /// Can a process of this namespace reach an endpoint by some interface?
    pub fn leaves_by(&self, endpoint: IpAddr) -> Option<Ifindex> {
        match self.way(endpoint)? {
            Way::Out { interface, .. } => Some(*interface),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_refusals_have_names() {
        let Way::Nowhere { why, answer } = refused(ENETUNREACH) else { panic!("a missing route leads nowhere") };
        assert_eq!((why, answer.as_str()), ("no route", "Network is unreachable"));
        assert!(matches!(refused(EACCES), Way::Nowhere { why: "prohibit", .. }));
        assert!(matches!(refused(1), Way::Unknown(_)));
    }

    #[test]
    fn the_second_answer_counts_under_the_address_of_the_first() {
        let out = |interface, source: Option<[u8; 4]>| Way::Out {
            interface: Ifindex(interface),
            gateway: None,
            source: source.map(IpAddr::from),
        };
        let first = || out(2, Some([10, 77, 0, 10]));
        assert_eq!(settled(first(), out(3, None)), out(3, Some([10, 77, 0, 10])));
        assert_eq!(settled(first(), refused(EHOSTUNREACH)), refused(EHOSTUNREACH));
    }
}
