//! What do all checks look at? The host's network, its clients with their ways, and the rules in each namespace, gathered once.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::firewall::fate::Client;
use super::firewall::{self};
use super::inside::{self, Inside, View};
use super::listeners;
use crate::interfaces::snapshot::{self, Inward, Snapshot, Way};
use crate::sources::listing::{self, Listing, Running};
use diagnosis::net::Ifindex;
use diagnosis::way::network::Kind;

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
}

impl Sight {
    /// Gathers everything. What cannot be known is kept as such.
    pub fn gather(endpoints: &[IpAddr], docker_host: Option<&str>) -> Self {
        let engine = listing::ask(docker_host);
        // Once for what is there, and again with what comes in.
        let first = snapshot::look(endpoints, &[]).map_err(|error| error.to_string());
        let containers = engine.as_ref().map(|listing| listing.containers.as_slice()).unwrap_or_default();
        let inside = inside::look(containers, endpoints, first.as_ref().ok());
        let legs = legs(&inside, endpoints, first.as_ref().ok());
        let bridges = bridges(first.as_ref().ok(), engine.as_ref().ok());
        let mut inward: Vec<Inward> = Vec::new();
        let examples = bridges.iter().flat_map(|bridge| {
            endpoints.iter().filter_map(|endpoint| Some((bridge.example(*endpoint)?, bridge.name.clone())))
        });
        let seen = legs.iter().filter_map(|leg| Some((leg.source?, leg.by()?.to_owned())));
        for (source, interface) in seen.chain(examples) {
            let one = Inward { source, interface };
            if !inward.contains(&one) {
                inward.push(one);
            }
        }
        let network = snapshot::look(endpoints, &inward).map_err(|error| error.to_string());
        let (firewall, listeners) = (firewall::read(), listeners::read());
        let host = View { network, firewall, listeners, outward: BTreeMap::new() };
        Self { endpoints: endpoints.to_vec(), engine, host, inside, legs, bridges }
    }

    /// Running containers; none if the engine could not be asked.
    pub fn containers(&self) -> &[Running] {
        self.engine.as_ref().map(|listing| listing.containers.as_slice()).unwrap_or_default()
    }

    /// What the host's kernel says of the way to an endpoint, for what comes in from an address by an interface.
    pub fn forwarded(&self, source: IpAddr, by: &str, endpoint: IpAddr) -> Option<&Way> {
        let network = self.host.network.as_ref().ok()?;
        let asked = |inward: &Inward| inward.source == source && inward.interface == by;
        network.forwarded.iter().find(|(inward, to, _)| asked(inward) && *to == endpoint).map(|(_, _, way)| way)
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
        for way in own.chain(network.forwarded.iter().map(|(_, _, way)| way)) {
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
        let Some(Way::Out { interface, .. }) = self.onward(leg) else { return None };
        self.passing(leg.name.clone(), leg.source, leg.by()?, *interface, leg.endpoint)
    }

    /// A client that comes in by one interface and goes out by another.
    pub fn passing(
        &self,
        name: String,
        address: Option<IpAddr>,
        by: &str,
        out: Ifindex,
        endpoint: IpAddr,
    ) -> Option<Client> {
        let network = self.host.network.as_ref().ok()?;
        let masked = network.addresses.iter().find_map(|(index, address, _)| {
            (*index == out && address.is_ipv4() == endpoint.is_ipv4() && !is_link_local(*address)).then_some(*address)
        });
        Some(Client {
            name,
            address,
            by: Some(by.to_owned()),
            uplink: Some(network.name(out).to_owned()),
            masked,
            endpoint: Some(endpoint),
        })
    }

    /// Somebody on a bridge on which nobody is now.
    pub fn example(&self, bridge: &Bridge, endpoint: IpAddr) -> Option<Client> {
        if bridge.internal || bridge.used || self.is_entered(&bridge.name) {
            return None;
        }
        let source = bridge.example(endpoint)?;
        let Way::Out { interface, .. } = self.forwarded(source, &bridge.name, endpoint)? else { return None };
        self.passing(format!("containers on {}", bridge.name), Some(source), &bridge.name, *interface, endpoint)
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

/// Processes of a namespace, whose packets pass its rules.
pub fn own(name: String, network: Option<&Snapshot>, endpoint: IpAddr) -> Option<Client> {
    let Way::Out { interface, source, .. } = network?.way(endpoint)? else { return None };
    let uplink = Some(network?.name(*interface).to_owned());
    Some(Client { name, address: *source, by: None, uplink, masked: *source, endpoint: Some(endpoint) })
}

/// The ways out of all namespaces.
fn legs(insides: &[Inside], endpoints: &[IpAddr], host: Option<&Snapshot>) -> Vec<Leg> {
    let mut legs = Vec::new();
    for (index, inside) in insides.iter().enumerate() {
        let Some(network) = inside.network() else { continue };
        for endpoint in endpoints {
            let Some(Way::Out { interface, source, .. }) = network.way(*endpoint) else { continue };
            let Some(link) = network.links.get(interface) else { continue };
            let end = inside.host_end(*endpoint).and_then(|end| host?.links.get(&end));
            let arrival = match (&link.kind, end) {
                (Kind::Pair, Some(end)) => match end.master.and_then(|master| host?.links.get(&master)) {
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
            legs.push(Leg { inside: index, name, endpoint, source, arrival });
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

/// Is it an address that nobody routes?
pub fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
