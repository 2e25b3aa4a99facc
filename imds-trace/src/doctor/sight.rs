//! What do all checks look at? The host's network, its clients with their ways, and the rules in each namespace, gathered once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use super::firewall::fate::{Client, fate};
use super::firewall::{self};
use super::inside::{self, Inside, View};
use super::listeners::Listeners;
use super::neighbour::{self, Crossing, Sender, Silence, silence};
use super::setting::{by_filter, is_strict};
use super::stuck;
use crate::interfaces::snapshot::{self, Asked, Snapshot, Way};
use crate::kernel::programs::Program;
use crate::sources::listing::{self, Listing, Running};
use crate::sources::runtime::Runtimes;
use diagnosis::net::Ifindex;
use diagnosis::way::hops::below;
use diagnosis::way::network::{Kind, RouteKind, Routing};

/// Docker's first bridge.
const DEFAULT_BRIDGE: &str = "docker0";
/// User-defined bridges: `br-` and the beginning of the network's id.
const USER_BRIDGE: &str = "br-";

/// A bridge on which containers hang, or could.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// The engine's name of its network.
    pub network: Option<String>,
    /// Its subnets.
    pub subnets: Vec<(IpAddr, u8)>,
    /// Is it meant to have no way out?
    pub internal: bool,
    /// Is a veth pair's end a port of it? Then there is somebody on it, whatever the engine knows.
    pub used: bool,
}

/// Where a client's requests are once they have left its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// In the host's namespace, by this interface: a bridge, or a pod's own link.
    Host(String),
    /// On a card of the host's, beside its routes and rules: macvlan or ipvlan, by this one.
    Card(Kind, String),
    /// On a card that was moved into the namespace, as an ENI is.
    Own,
    /// That is not known, and why.
    Unknown(&'static str),
}

/// The way of a client's requests to an endpoint, from its namespace on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Whose, by its place in [`Sight::inside`].
    pub inside: usize,
    /// Its name.
    pub name: String,
    /// To where.
    pub endpoint: IpAddr,
    /// Under which address.
    pub source: Option<IpAddr>,
    /// Where they arrive.
    pub arrival: Arrival,
    /// Why they do not get so far, or answers not back from there.
    pub silence: Option<Silence>,
}

/// What the host's kernel says of packets between a client and an endpoint, given where they come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// From this address.
    pub source: IpAddr,
    /// In by this interface.
    pub by: String,
    /// To this endpoint.
    pub endpoint: IpAddr,
    /// Where the requests go.
    pub onward: Way,
    /// Where the answers go that come in by where the requests left; `None` if these do not leave.
    pub back: Option<Way>,
    /// Are all marks known that a rule for routes looks at?
    pub sure: bool,
}

/// Everything gathered.
#[derive(Clone, Debug)]
pub struct Sight {
    /// Endpoints.
    pub endpoints: Vec<IpAddr>,
    /// What the engine said; the error is a sentence.
    pub engine: Result<Listing, String>,
    /// The host's own namespace.
    pub host: View,
    /// The clients' namespaces.
    pub inside: Vec<Inside>,
    /// Their ways.
    pub legs: Vec<Leg>,
    /// Bridges.
    pub bridges: Vec<Bridge>,
    /// What becomes of the clients' packets at the host's routes.
    pub passages: Vec<Passage>,
}

impl Sight {
    /// Gathers everything. What cannot be known is kept as such.
    pub fn gather(endpoints: &[IpAddr], docker_hosts: &[String], host_root: &Path) -> Self {
        let engine = listing::ask(docker_hosts, host_root);
        let network = snapshot::look(endpoints).map_err(|error| error.to_string());
        let containers = engine.as_ref().map(|listing| listing.containers.as_slice()).unwrap_or_default();
        let runtimes = Runtimes::of_host(host_root);
        // The host's rules may be thousands; meanwhile there is time to look into the clients' namespaces.
        let (inside, firewall) = std::thread::scope(|scope| {
            let reading = scope.spawn(firewall::read);
            let inside = inside::look(containers, &runtimes, endpoints, network.as_ref().ok());
            (inside, reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let programs = inside::on_links(&network);
        let mut legs = legs(&inside, endpoints, network.as_ref().ok());
        if let Ok(network) = &network {
            let senders = legs.iter().map(|leg| Sender {
                inside: leg.inside,
                by: leg.by(),
                endpoint: leg.endpoint,
                source: leg.source,
            });
            let heard = neighbour::asked(senders, &inside, network);
            for (leg, heard) in legs.iter_mut().zip(&heard) {
                leg.silence = silence_of(leg, &inside, network, &programs, heard.as_ref());
            }
        }
        let bridges = bridges(network.as_ref().ok(), engine.as_ref().ok());
        let listeners = Listeners::here();
        let host = View { network, firewall, listeners, outward: BTreeMap::new(), programs };
        let mut sight =
            Self { endpoints: endpoints.to_vec(), engine, host, inside, legs, bridges, passages: Vec::new() };
        sight.passages = sight.pass().unwrap_or_default();
        sight
    }

    /// Asks the host's kernel about everybody's packets, with the marks that rules give them; about a bridge on which nobody is, with
    /// an address that somebody could have.
    fn pass(&self) -> Option<Vec<Passage>> {
        let network = self.host.network.as_ref().ok()?;
        let index = |name: &str| network.links.values().find(|link| link.name == name).map(|link| link.index);
        let mut passages: Vec<Passage> = Vec::new();
        let examples = self.bridges.iter().flat_map(|bridge| {
            let one = |endpoint: &IpAddr| Some((bridge.example(*endpoint)?, bridge.name.clone(), *endpoint));
            self.endpoints.iter().filter_map(one)
        });
        let seen = self.legs.iter().filter_map(|leg| Some((leg.source?, leg.by()?.to_owned(), leg.endpoint)));
        for (source, by, endpoint) in seen.chain(examples) {
            let known = |one: &Passage| (one.source, &one.by, one.endpoint) == (source, &by, endpoint);
            if source.is_ipv4() == endpoint.is_ipv4() && index(&by).is_some() && !passages.iter().any(known) {
                let onward = Way::Unknown("it was not asked".into());
                passages.push(Passage { source, by, endpoint, onward, back: None, sure: true });
            }
        }
        let marked = network.routing.rules.iter().any(|rule| rule.mark.is_some());
        let (mut requests, mut answers) = (Vec::new(), Vec::new());
        for passage in &mut passages {
            // Where they leave is not asked before they have been marked.
            let client = self.passing(String::new(), Some(passage.source), &passage.by, None, passage.endpoint)?;
            let [mark, _] = if marked { fate(&self.host.firewall.chains, &client).marks } else { Default::default() };
            passage.sure &= mark.is_known();
            let inward = index(&passage.by).map(|by| (passage.source, by));
            requests.push(Asked { inward, mark: mark.known_part(), ..Asked::own(passage.endpoint) });
        }
        let onward = snapshot::ask(&requests).ok()?;
        let filtered = |way: Way, to: IpAddr, by: &str| {
            let strict = to.is_ipv4() && is_strict(by) && !refuses(&network.routing, to);
            by_filter(way, strict)
        };
        for (passage, way) in passages.iter_mut().zip(onward) {
            passage.onward = filtered(way, passage.endpoint, &passage.by);
            let Way::Out { interface, .. } = passage.onward else { continue };
            let client =
                self.passing(String::new(), Some(passage.source), &passage.by, Some(interface), passage.endpoint)?;
            let [_, mark] = if marked { fate(&self.host.firewall.chains, &client).marks } else { Default::default() };
            passage.sure &= mark.is_known();
            let inward = Some((passage.endpoint, interface));
            answers.push(Asked { inward, mark: mark.known_part(), answer: true, ..Asked::own(passage.source) });
        }
        let mut back = snapshot::ask(&answers).ok()?.into_iter();
        for passage in passages.iter_mut().filter(|passage| matches!(passage.onward, Way::Out { .. })) {
            let Way::Out { interface, .. } = passage.onward else { continue };
            passage.back = back.next().map(|way| filtered(way, passage.source, network.name(interface)));
        }
        Some(passages)
    }

    /// Running containers; none if the engine could not be asked.
    pub fn containers(&self) -> &[Running] {
        self.engine.as_ref().map(|listing| listing.containers.as_slice()).unwrap_or_default()
    }

    /// What the host's kernel says of packets between an address that comes in by an interface, and an endpoint.
    pub fn passage(&self, source: IpAddr, by: &str, endpoint: IpAddr) -> Option<&Passage> {
        let fits = |one: &&Passage| one.source == source && one.endpoint == endpoint && one.by == by;
        self.passages.iter().find(fits)
    }

    /// The way of requests from there.
    pub fn forwarded(&self, source: IpAddr, by: &str, endpoint: IpAddr) -> Option<&Way> {
        self.passage(source, by, endpoint).map(|passage| &passage.onward)
    }

    /// The same for a client's requests.
    pub fn onward(&self, leg: &Leg) -> Option<&Way> {
        self.forwarded(leg.source?, leg.by()?, leg.endpoint)
    }

    /// A bridge by its name.
    pub fn bridge(&self, name: &str) -> Option<&Bridge> {
        self.bridges.iter().find(|bridge| bridge.name == name)
    }

    /// Does somebody's way come in by this interface?
    pub fn is_entered(&self, name: &str) -> bool {
        self.legs.iter().any(|leg| leg.by() == Some(name))
    }

    /// Interfaces of the host by which somebody reaches an endpoint.
    pub fn uplinks(&self) -> Vec<String> {
        let Ok(network) = &self.host.network else { return Vec::new() };
        let own = self.endpoints.iter().filter_map(|endpoint| network.way(*endpoint));
        let mut names: Vec<String> = Vec::new();
        for way in own.chain(self.passages.iter().map(|passage| &passage.onward)) {
            if let Way::Out { interface, .. } = way
                && !names.iter().any(|name| name == network.name(*interface))
            {
                names.push(network.name(*interface).to_owned());
            }
        }
        names
    }

    /// What the host's rules are asked about for a client's requests; `None` if they do not pass the host's rules, or nobody knows.
    pub fn client(&self, leg: &Leg) -> Option<Client> {
        if leg.silence.as_ref().is_some_and(|silence| silence.sure) {
            return None;
        }
        let Some(Way::Out { interface, .. }) = self.onward(leg) else { return None };
        let port = self.port(leg);
        let client = self.passing(leg.name.clone(), leg.source, leg.by()?, Some(*interface), leg.endpoint)?;
        Some(Client { port, ..client })
    }

    /// The bridge's port by which a client's packets come in, if they come by a bridge.
    fn port(&self, leg: &Leg) -> Option<String> {
        let network = self.host.network.as_ref().ok()?;
        let end = network.links.get(&self.inside[leg.inside].host_end(leg.endpoint)?)?;
        end.master.is_some().then(|| end.name.clone())
    }

    /// A client that comes in by one interface and goes out by another, if it is known which.
    pub fn passing(
        &self,
        name: String,
        address: Option<IpAddr>,
        by: &str,
        out: Option<Ifindex>,
        endpoint: IpAddr,
    ) -> Option<Client> {
        let network = self.host.network.as_ref().ok()?;
        let masked = network.addresses.iter().find_map(|(index, address, _)| {
            (Some(*index) == out && address.is_ipv4() == endpoint.is_ipv4() && !is_link_local(*address))
                .then_some(*address)
        });
        let client = Client { name, address, by: Some(by.to_owned()), masked, ..Client::default() };
        Some(leaving(client, network, out, endpoint))
    }

    /// Somebody on a bridge on which nobody is now.
    pub fn example(&self, bridge: &Bridge, endpoint: IpAddr) -> Option<Client> {
        if bridge.internal || bridge.used || self.is_entered(&bridge.name) {
            return None;
        }
        let source = bridge.example(endpoint)?;
        let Way::Out { interface, .. } = self.forwarded(source, &bridge.name, endpoint)? else { return None };
        let name = format!("containers on {}, where nobody is now", bridge.name);
        let client = self.passing(name, Some(source), &bridge.name, Some(*interface), endpoint)?;
        Some(Client { is_example: true, ..client })
    }

    /// Everybody whose packets pass the host's rules.
    pub fn clients(&self) -> Vec<Client> {
        let mut clients = Vec::new();
        for endpoint in &self.endpoints {
            clients.extend(own("the host's own processes".into(), self.host.network.as_ref().ok(), *endpoint));
            clients.extend(self.legs.iter().filter(|leg| leg.endpoint == *endpoint).filter_map(|leg| self.client(leg)));
            clients.extend(self.bridges.iter().filter_map(|bridge| self.example(bridge, *endpoint)));
        }
        clients
    }
}

impl Leg {
    /// The interface by which they come into the host's namespace.
    pub fn by(&self) -> Option<&str> {
        match &self.arrival {
            Arrival::Host(by) => Some(by),
            _ => None,
        }
    }
}

/// With the interface by which it leaves, and those below.
fn leaving(client: Client, network: &Snapshot, out: Option<Ifindex>, endpoint: IpAddr) -> Client {
    let name = |index: Ifindex| network.name(index).to_owned();
    let over_bridge = out.and_then(|out| network.links.get(&out)).is_some_and(|link| link.kind == Kind::Bridge);
    let cards = out.map(|out| below(&network.links, out).into_iter().skip(1).map(name).collect()).unwrap_or_default();
    Client { uplink: out.map(name), endpoint: Some(endpoint), cards, over_bridge, ..client }
}

/// Processes of a namespace, whose packets pass its rules.
pub fn own(name: String, network: Option<&Snapshot>, endpoint: IpAddr) -> Option<Client> {
    let network = network?;
    let Way::Out { interface, source, .. } = network.way(endpoint)? else { return None };
    let client = Client { name, address: *source, masked: *source, ..Client::default() };
    Some(leaving(client, network, Some(*interface), endpoint))
}

/// What keeps a client's packets from crossing to the host, or back, if something does.
fn silence_of(
    leg: &Leg,
    insides: &[Inside],
    host: &Snapshot,
    programs: &Result<BTreeMap<Ifindex, Vec<Program>>, String>,
    heard: Option<&Way>,
) -> Option<Silence> {
    let inside = insides.get(leg.inside)?;
    let Way::Out { gateway, .. } = inside.network()?.way(leg.endpoint)? else { return None };
    let by = leg.by()?;
    let ends = host.links.values().filter(|link| link.name == by).map(|link| link.index);
    let ends: Vec<Ifindex> = ends.chain(inside.host_end(leg.endpoint)).collect();
    let has_programs = programs.as_ref().map_or(true, |all| ends.iter().any(|end| all.contains_key(end)));
    let (endpoint, gateway, source) = (leg.endpoint, *gateway, leg.source);
    let stuck = stuck::between(inside, host, endpoint, gateway.unwrap_or(endpoint), has_programs);
    if stuck.is_some() {
        return stuck;
    }
    silence(&Crossing { host, insides, inside, endpoint, gateway, source, by, heard, has_programs })
}

/// The ways out of all namespaces.
fn legs(insides: &[Inside], endpoints: &[IpAddr], host: Option<&Snapshot>) -> Vec<Leg> {
    let mut legs = Vec::new();
    for (index, inside) in insides.iter().enumerate() {
        let Some(network) = inside.network() else { continue };
        for endpoint in endpoints {
            let Some(Way::Out { interface, source, gateway }) = network.way(*endpoint) else { continue };
            let Some(link) = network.links.get(interface) else { continue };
            let is_hosts = |gateway: &IpAddr| host.is_some_and(|host| host.holder(*gateway).is_some());
            let end = inside.host_end(*endpoint).and_then(|end| host?.links.get(&end));
            let arrival = match (&link.kind, end) {
                (Kind::Pair, Some(end)) => match end.master.and_then(|master| host?.links.get(&master)) {
                    // A bridge hands on to whoever has the router's address.
                    Some(master) if master.kind == Kind::Bridge && gateway.as_ref().is_some_and(|to| !is_hosts(to)) => {
                        Arrival::Unknown("its router's address is not this host's")
                    }
                    Some(master) if master.kind == Kind::Bridge => Arrival::Host(master.name.clone()),
                    // What comes in by a VRF's port is the VRF's, and rules name the port.
                    Some(master) if master.kind == Kind::Vrf => Arrival::Host(end.name.clone()),
                    Some(_) => Arrival::Unknown("a switch that is not the kernel's bridge takes it"),
                    None => Arrival::Host(end.name.clone()),
                },
                (Kind::Macvlan | Kind::Ipvlan, Some(end)) => Arrival::Card(link.kind.clone(), end.name.clone()),
                (Kind::Nic, _) => Arrival::Own,
                (Kind::Loopback, _) => continue,
                (Kind::Tap | Kind::Tunnel(_), _) => Arrival::Unknown("a program in user space or a tunnel takes it"),
                _ => Arrival::Unknown("its link does not lead into this host's own network namespace"),
            };
            let (name, endpoint, source) = (inside.name(), *endpoint, *source);
            legs.push(Leg { inside: index, name, endpoint, source, arrival, silence: None });
        }
    }
    legs
}

impl Bridge {
    /// Has it addresses of the endpoint's family?
    pub fn speaks(&self, endpoint: IpAddr) -> bool {
        self.subnets.iter().any(|(address, _)| address.is_ipv4() == endpoint.is_ipv4())
    }

    /// An address that a container on it could have.
    pub fn example(&self, endpoint: IpAddr) -> Option<IpAddr> {
        let (address, length) =
            self.subnets.iter().find(|(address, _)| address.is_ipv4() == endpoint.is_ipv4()).copied()?;
        let (first, _) = firewall::rules::range(&format!("{address}/{length}"))?;
        // The first is the network's, the second the bridge's own.
        Some(match first {
            IpAddr::V4(first) => IpAddr::V4(first.to_bits().checked_add(2)?.into()),
            IpAddr::V6(first) => IpAddr::V6(first.to_bits().checked_add(2)?.into()),
        })
    }
}

/// The engine's bridges; without it, those that are named as it names them; and those that a veth pair leads to, whoever made them.
fn bridges(network: Option<&Snapshot>, engine: Option<&Listing>) -> Vec<Bridge> {
    let mut found: BTreeMap<String, Bridge> = BTreeMap::new();
    for described in engine.map(|listing| listing.networks.as_slice()).unwrap_or_default() {
        let Some(name) = &described.bridge else { continue };
        let bridge = Bridge {
            name: name.clone(),
            network: Some(described.name.clone()),
            subnets: described.subnets.clone(),
            internal: described.internal,
            used: false,
        };
        found.insert(name.clone(), bridge);
    }
    let Some(network) = network else { return found.into_values().collect() };
    // An engine elsewhere has bridges that are not here.
    found.retain(|name, _| network.links.values().any(|link| link.kind == Kind::Bridge && link.name == *name));
    let ports = |bridge: &str| {
        let index = network.links.values().find(|link| link.name == bridge).map(|link| link.index);
        network.links.values().any(|link| link.kind == Kind::Pair && link.master.is_some() && link.master == index)
    };
    for link in network.links.values().filter(|link| link.kind == Kind::Bridge) {
        let named_so = link.name == DEFAULT_BRIDGE || link.name.starts_with(USER_BRIDGE);
        if found.contains_key(&link.name) || !(ports(&link.name) || named_so && engine.is_none()) {
            continue;
        }
        let own =
            network.addresses.iter().filter(|(index, address, _)| *index == link.index && !is_link_local(*address));
        let subnets = own.filter_map(|(_, address, length)| {
            let (first, _) = firewall::rules::range(&format!("{address}/{length}"))?;
            Some((first, *length))
        });
        let subnets = subnets.collect();
        let bridge = Bridge { name: link.name.clone(), network: None, subnets, internal: false, used: false };
        found.insert(link.name.clone(), bridge);
    }
    found.into_values().map(|bridge| Bridge { used: ports(&bridge.name), ..bridge }).collect()
}

/// May a route or a rule refuse what goes to an address?
pub fn refuses(routing: &Routing, address: IpAddr) -> bool {
    routing.routes.iter().any(|route| route.kind == RouteKind::Nowhere && route.covers(address))
        || routing.rules.iter().any(|rule| rule.table.is_none() && !rule.vrf)
}

/// Is it an address that nobody routes?
pub fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
