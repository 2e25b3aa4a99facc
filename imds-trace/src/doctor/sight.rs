//! What do all checks look at? The host's network, its containers and the rules in each of their namespaces, gathered once.
//!
//! A container's namespace is entered by a thread of its own, which ends there.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;

use nix::sched::{CloneFlags, setns};

use super::firewall::{self, Client, Firewall};
use crate::interfaces::snapshot::{self, Inward, Snapshot, Way};
use crate::sources::listing::{self, Listing, Running};
use diagnosis::identity::cgroup;
use diagnosis::net::bounded;
use diagnosis::way::network::Kind;

/// Docker's first bridge.
const DEFAULT_BRIDGE: &str = "docker0";
/// User-defined bridges: `br-` and the beginning of the network's id.
const USER_BRIDGE: &str = "br-";
/// Bytes of a command that are shown of a container's name: engines allow no longer ones in practice.
const MAX_NAME: usize = 128;

/// What a namespace looks like from within.
#[derive(Clone, Debug)]
pub struct View {
    /// Its network; the error is a sentence.
    pub network: Result<Snapshot, String>,
    /// Its rules.
    pub firewall: Firewall,
}

/// A network namespace that is not the host's, and who is in it.
#[derive(Clone, Debug)]
pub struct Inside {
    /// Names of its containers.
    pub containers: Vec<String>,
    /// A process in it.
    pub pid: Option<u32>,
    /// What it looks like; the error says why nobody could look, and what would be needed.
    pub view: Result<View, String>,
}

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
    /// Running containers on it, with their addresses.
    pub containers: Vec<(String, Vec<IpAddr>)>,
    /// Is a veth pair's end a port of it? Then there is somebody on it, whatever the engine knows.
    pub used: bool,
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
    /// The containers' namespaces.
    pub inside: Vec<Inside>,
    /// Bridges.
    pub bridges: Vec<Bridge>,
}

impl Sight {
    /// Gathers everything. What cannot be known is kept as such.
    pub fn gather(endpoints: &[IpAddr], docker_host: Option<&str>) -> Self {
        let engine = listing::ask(docker_host);
        // Once for the bridges, and again with what comes in by them.
        let first = snapshot::look(endpoints, &[]).map_err(|error| error.to_string());
        let bridges = bridges(first.as_ref().ok(), engine.as_ref().ok());
        let inward: Vec<Inward> = bridges
            .iter()
            .flat_map(|bridge| {
                let sources = bridge.containers.iter().flat_map(|(_, addresses)| addresses.iter().copied());
                sources.map(|source| Inward { source, interface: bridge.name.clone() })
            })
            .collect();
        let network = snapshot::look(endpoints, &inward).map_err(|error| error.to_string());
        let host = View { network, firewall: firewall::read() };
        let containers = engine.as_ref().map(|listing| listing.containers.as_slice()).unwrap_or_default();
        let inside = insides(containers, endpoints);
        Self { endpoints: endpoints.to_vec(), engine, host, inside, bridges }
    }

    /// Running containers; none if the engine could not be asked.
    pub fn containers(&self) -> &[Running] {
        self.engine.as_ref().map(|listing| listing.containers.as_slice()).unwrap_or_default()
    }

    /// The interface by which what comes in from a bridge goes out to an endpoint, and by which the host's own goes.
    pub fn uplink(&self, bridge: Option<&Bridge>, endpoint: IpAddr) -> Option<String> {
        let network = self.host.network.as_ref().ok()?;
        let inward = bridge.and_then(|bridge| {
            network.forwarded.iter().find_map(|(inward, to, way)| match way {
                Way::Out { interface, .. } if inward.interface == bridge.name && *to == endpoint => Some(*interface),
                _ => None,
            })
        });
        inward.or_else(|| network.leaves_by(endpoint)).map(|interface| network.name(interface).to_owned())
    }

    /// Interfaces of the host by which an endpoint is reached.
    pub fn uplinks(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let ways = std::iter::once(None).chain(self.bridges.iter().map(Some));
        for (bridge, endpoint) in ways.flat_map(|bridge| self.endpoints.iter().map(move |endpoint| (bridge, *endpoint)))
        {
            names.extend(self.uplink(bridge, endpoint).filter(|name| !names.contains(name)));
        }
        names
    }

    /// Everybody whose packets pass the host's rules.
    pub fn clients(&self) -> Vec<Client> {
        let mut clients = Vec::new();
        for endpoint in &self.endpoints {
            let own = self.uplink(None, *endpoint).map(|uplink| Client {
                name: "the host's own processes".into(),
                address: source(self.host.network.as_ref().ok(), *endpoint),
                bridge: None,
                uplink: Some(uplink),
                endpoint: *endpoint,
            });
            clients.extend(own);
            for bridge in self.bridges.iter().filter(|bridge| !bridge.internal && bridge.speaks(*endpoint)) {
                // Without a way out, the rules on it do not matter.
                let Some(uplink) = self.uplink(Some(bridge), *endpoint) else { continue };
                let client = |name: String, address| Client {
                    name,
                    address,
                    bridge: Some(bridge.name.clone()),
                    uplink: Some(uplink.clone()),
                    endpoint: *endpoint,
                };
                for (container, addresses) in &bridge.containers {
                    let of_family = addresses.iter().find(|address| address.is_ipv4() == endpoint.is_ipv4());
                    clients.extend(of_family.map(|address| client(container.clone(), Some(*address))));
                }
                if bridge.containers.is_empty() {
                    clients.push(client(format!("containers on {}", bridge.name), bridge.example(*endpoint)));
                }
            }
        }
        clients
    }
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

impl Inside {
    /// `container job-17`, or the first of several that share it.
    pub fn name(&self) -> String {
        super::some_of(&self.containers)
    }

    /// A command that runs in this namespace.
    pub fn command(&self, command: &str) -> String {
        match self.pid {
            Some(pid) => format!("nsenter -t {pid} -n {command}"),
            None => command.to_owned(),
        }
    }

    /// Its processes, whose packets pass its rules.
    pub fn clients(&self, endpoints: &[IpAddr]) -> Vec<Client> {
        let Some(network) = self.view.as_ref().ok().and_then(|view| view.network.as_ref().ok()) else {
            return Vec::new();
        };
        endpoints
            .iter()
            .filter_map(|endpoint| {
                let uplink = network.leaves_by(*endpoint)?;
                Some(Client {
                    name: self.name(),
                    address: source(Some(network), *endpoint),
                    bridge: None,
                    uplink: Some(network.name(uplink).to_owned()),
                    endpoint: *endpoint,
                })
            })
            .collect()
    }
}

fn source(network: Option<&Snapshot>, endpoint: IpAddr) -> Option<IpAddr> {
    match network?.way(endpoint)? {
        Way::Out { source, .. } => *source,
        _ => None,
    }
}

/// The engine's bridges; without it, those that are named as it names them; and those that a veth pair leads to, whoever made them.
fn bridges(network: Option<&Snapshot>, engine: Option<&Listing>) -> Vec<Bridge> {
    let mut found: BTreeMap<String, Bridge> = BTreeMap::new();
    for described in engine.map(|listing| listing.networks.as_slice()).unwrap_or_default() {
        let Some(name) = &described.bridge else { continue };
        let containers = engine.map(|listing| listing.containers.as_slice()).unwrap_or_default();
        let on_it = containers.iter().filter_map(|container| {
            let (_, addresses) = container.networks.iter().find(|(network, _)| *network == described.name)?;
            Some((container.name.clone(), addresses.clone()))
        });
        let bridge = Bridge {
            name: name.clone(),
            network: Some(described.name.clone()),
            subnets: described.subnets.clone(),
            internal: described.internal,
            containers: on_it.collect(),
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
        let bridge = Bridge {
            name: link.name.clone(),
            network: None,
            subnets,
            internal: false,
            containers: Vec::new(),
            used: false,
        };
        found.insert(link.name.clone(), bridge);
    }
    found.into_values().map(|bridge| Bridge { used: ports(&bridge.name), ..bridge }).collect()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Looks into each namespace that is not the host's, once.
fn insides(containers: &[Running], endpoints: &[IpAddr]) -> Vec<Inside> {
    let mut found: Vec<(Option<u64>, Inside)> = Vec::new();
    let own = std::fs::metadata("/proc/self/ns/net").map(|data| data.ino()).ok();
    for container in containers.iter().filter(|container| container.mode != "host") {
        let name = bounded(&container.name, MAX_NAME).to_owned();
        let opened = open(container);
        let inode = opened.as_ref().ok().and_then(|file| file.metadata().ok()).map(|data| data.ino());
        if inode.is_some() && inode == own {
            continue;
        }
        if let Some((_, known)) = found.iter_mut().find(|(known, _)| known.is_some() && *known == inode) {
            known.containers.push(name);
            continue;
        }
        let view = opened.and_then(|file| look_inside(&file, endpoints));
        found.push((inode, Inside { containers: vec![name], pid: container.pid, view }));
    }
    found.into_iter().map(|(_, inside)| inside).collect()
}

/// The namespace of a container's first process, if that is a process here: an engine elsewhere has other numbers.
fn open(container: &Running) -> Result<File, String> {
    let pid = container.pid.ok_or("the engine names no process of it")?;
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
    let cgroups = cgroups.map_err(|_| format!("its process {pid} is not visible here"))?;
    if cgroup::read(&cgroups).is_none_or(|found| found.outer.id != container.id) {
        return Err(format!("process {pid} of this host is not the container's: does the engine run elsewhere?"));
    }
    File::open(format!("/proc/{pid}/ns/net")).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => "needs root to look into its network namespace".to_owned(),
        _ => format!("its network namespace cannot be opened: {error}"),
    })
}

fn look_inside(namespace: &File, endpoints: &[IpAddr]) -> Result<View, String> {
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|error| match error {
                nix::Error::EPERM => "needs root to look into its network namespace".to_owned(),
                error => format!("its network namespace cannot be entered: {error}"),
            })?;
            let network = snapshot::look(endpoints, &[]).map_err(|error| error.to_string());
            Ok(View { network, firewall: firewall::read() })
        });
        looking.join().unwrap_or_else(|_| Err("looking into its network namespace failed".into()))
    })
}
