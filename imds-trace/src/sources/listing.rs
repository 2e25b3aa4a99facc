//! What runs now, as the Docker engine says once? For those who look at one moment and follow nothing.
//!
//! Of a container's environment only what decides about IMDS is kept, by name; a proxy's address, which may hold a password, is
//! never.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use bollard::Docker;
use bollard::models::{ContainerInspectResponse, Network as Described};
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptions, ListNetworksOptions};

use super::docker;
use diagnosis::printable::causes;
use diagnosis::secret;

/// How long the engine may take for all answers together.
const PATIENCE: Duration = Duration::from_secs(10);
/// Option by which an engine is told the name of a network's bridge.
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
/// Digits of a network's id in its bridge's name.
const BRIDGE_ID: usize = 12;

/// Variables whose values are kept: switches of the SDKs, and lists of hosts.
const WITH_VALUE: &[&str] = &[
    "AWS_EC2_METADATA_DISABLED",
    "AWS_EC2_METADATA_V1_DISABLED",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "no_proxy",
    "NO_PROXY",
];
/// Variables of which only is kept that they are set.
const BY_NAME: &[&str] = &["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];

/// What the engine said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Running containers.
    pub containers: Vec<Running>,
    /// Networks.
    pub networks: Vec<Network>,
    /// Does the engine run without root? Then what its containers send ends in user space and begins anew.
    pub rootless: bool,
}

/// A running container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// Full id.
    pub id: String,
    /// Its name; else its id.
    pub name: String,
    /// Its first process, as the engine's host sees it.
    pub pid: Option<u32>,
    /// `bridge`, `host`, `none`, `container:<id>` or the name of a network.
    pub mode: String,
    /// Names of the networks it is on, with its addresses there.
    pub networks: Vec<(String, Vec<IpAddr>)>,
    /// Variables that decide about IMDS; no value for those whose value may be a secret.
    pub environment: Vec<(String, Option<String>)>,
}

/// A network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// `bridge`, `macvlan`, ...
    pub driver: String,
    /// The bridge's name, if it has one.
    pub bridge: Option<String>,
    /// Its subnets.
    pub subnets: Vec<(IpAddr, u8)>,
    /// Without a way out by intention.
    pub internal: bool,
}

/// Asks the engines (else that of `$DOCKER_HOST`, else all that are found). The error is a sentence: none of them can be asked.
pub fn ask(asked: &[String], root: &Path) -> Result<Listing, String> {
    let mut all: Option<Listing> = None;
    let mut failed = Vec::new();
    for host in docker::hosts(asked, root) {
        match (ask_one(&host), &mut all) {
            (Ok(listing), Some(all)) => all.add(listing),
            (Ok(listing), None) => all = Some(listing),
            (Err(why), _) => failed.push(why),
        }
    }
    all.ok_or_else(|| failed.join("; "))
}

impl Listing {
    /// What runs without root is told of all only where all engines do: its containers need less than they would otherwise.
    fn add(&mut self, other: Self) {
        let Self { containers, networks, rootless } = other;
        self.containers.extend(containers);
        self.networks.extend(networks);
        self.rootless &= rootless;
    }
}

fn ask_one(host: &str) -> Result<Listing, String> {
    let failed = |why: String| format!("Docker engine at {host}: {why}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed(error.to_string()))?;
    runtime.block_on(async {
        match tokio::time::timeout(PATIENCE, list(host)).await {
            Ok(listing) => listing.map_err(|error| failed(causes(&error))),
            Err(_) => Err(failed(format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    })
}

async fn list(host: &str) -> Result<Listing, bollard::errors::Error> {
    let docker = Docker::connect_with_host(host)?.negotiate_version().await?;
    let mut listing = Listing::default();
    let options = docker.info().await?.security_options.unwrap_or_default();
    listing.rootless = options.iter().any(|option| option.contains("name=rootless"));
    let running = docker.list_containers(None::<ListContainersOptions>).await?;
    for id in running.into_iter().filter_map(|container| container.id) {
        // Gone since: then it does not run.
        if let Ok(container) = docker.inspect_container(&id, None::<InspectContainerOptions>).await {
            listing.containers.push(inspected(id, container));
        }
    }
    listing.containers.sort_by(|one, other| one.name.cmp(&other.name));
    let networks = docker.list_networks(None::<ListNetworksOptions>).await?;
    listing.networks = networks.into_iter().map(described).collect();
    listing.networks.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(listing)
}

fn inspected(id: String, container: ContainerInspectResponse) -> Running {
    let pid = container.state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok());
    let networks = container.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let mut networks: Vec<_> = networks
        .into_iter()
        .map(|(name, network)| {
            let addresses = [network.ip_address, network.global_ipv6_address];
            (name, addresses.into_iter().flatten().filter_map(|address| address.parse().ok()).collect())
        })
        .collect();
    networks.sort();
    let name = container.name.map(|name| name.trim_start_matches('/').to_owned());
    let environment = container.config.and_then(|config| config.env).unwrap_or_default();
    Running {
        name: name.filter(|name| !name.is_empty()).unwrap_or_else(|| id.clone()),
        id,
        pid: pid.filter(|pid| *pid != 0),
        mode: container.host_config.and_then(|config| config.network_mode).unwrap_or_default(),
        networks,
        environment: environment.iter().filter_map(|variable| telling(variable)).collect(),
    }
}

/// A variable that decides about IMDS. One that is set to nothing is as good as not set.
fn telling(variable: &str) -> Option<(String, Option<String>)> {
    let (name, value) = variable.split_once('=')?;
    if value.is_empty() {
        return None;
    }
    let kept = WITH_VALUE.contains(&name).then(|| secret::mask_value(name, value));
    (kept.is_some() || BY_NAME.contains(&name)).then(|| (name.to_owned(), kept))
}

fn described(network: Described) -> Network {
    let options = network.options.unwrap_or_default();
    let driver = network.driver.unwrap_or_default();
    let id = network.id.unwrap_or_default();
    let bridge = (driver == "bridge").then(|| {
        let short = id.get(..BRIDGE_ID).unwrap_or(&id);
        options.get(BRIDGE_NAME).cloned().unwrap_or_else(|| format!("br-{short}"))
    });
    let subnets = network.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
    Network {
        name: network.name.unwrap_or(id),
        driver,
        bridge,
        subnets: subnets.into_iter().filter_map(|subnet| prefix(&subnet.subnet?)).collect(),
        internal: network.internal.unwrap_or(false),
    }
}

fn prefix(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    Some((address.parse().ok()?, length.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_is_kept_that_may_be_a_secret() {
        assert_eq!(telling("HTTP_PROXY=http://user:password@proxy:3128"), Some(("HTTP_PROXY".into(), None)));
        assert_eq!(telling("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI"), None);
        assert_eq!(telling("http_proxy="), None);
        let endpoint = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
        let kept = (endpoint.to_owned(), Some("http://***@proxy:80/".to_owned()));
        assert_eq!(telling(&format!("{endpoint}=http://user:password@proxy:80/")), Some(kept));
        let kept = ("AWS_EC2_METADATA_DISABLED".to_owned(), Some("true".to_owned()));
        assert_eq!(telling("AWS_EC2_METADATA_DISABLED=true"), Some(kept));
    }
}
