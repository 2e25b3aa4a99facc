//! What if there is more than one forwarding namespace between a client and IMDS?
//!
//! ```text
//! Nested   inner namespace - br0 - container (forwards, masquerades) - docker0 - runner host - IMDS
//! Relayed  container - bridge of another network - relay (forwards, masquerades) - docker0 - runner host - IMDS
//! ```
//!
//! In both an answer needs a hop limit of 3. Both need an engine. Obstacles go into the forwarding container's namespace, e.g.
//! `obstacle::iptables(&nested.outer().namespace()?, "FORWARD", …)`.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::children;
use crate::container::{Container, Network};
use crate::expect::wait_until;
use crate::host::RunnerHost;
use crate::netns::Namespace;
use crate::spec::{ContainerSpec, NetworkSpec};

const SOON: Duration = Duration::from_secs(20);
/// Long enough for any test; who drops the container ends it.
const LINGER: [&str; 3] = ["imds-client", "linger", "3600"];

/// A container with an engine of its own in it, as docker:dind has, without its weight: a bridge with masquerading, and
/// behind that a namespace. The inner processes are in the container's cgroup, as those of an inner engine are.
pub struct Nested {
    outer: Container,
    inside: Namespace,
    /// The pid of a process in the inner namespace, as the container counts.
    inner_pid: String,
}

impl Nested {
    /// Starts the container on docker0 and builds what is in it.
    pub fn start(host: &RunnerHost, name: &str) -> Result<Nested> {
        let spec =
            ContainerSpec::new(name, &["sh", "-c", "busybox unshare -n sleep 3600 & exec imds-client linger 3600"]);
        // For `unshare` and `nsenter` in the container; what is built, is built from outside.
        let extra = ["--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined"].map(str::to_owned);
        let outer = host.run(ContainerSpec { extra: extra.into(), ..spec })?;
        let (namespace, pid) = (outer.namespace()?, outer.pid()?);
        let (inside, child) = wait_until("the inner namespace", SOON, || {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            let child: u32 = children.split_whitespace().next()?.parse().ok()?;
            let inside = Namespace::of_process(child).ok()?;
            (inside.inum() != namespace.inum()).then_some((inside, child))
        })?;
        for words in [
            "link add br0 type bridge",
            "addr add 192.168.99.1/24 dev br0",
            "link set br0 up",
            &format!("link add veth0 type veth peer name eth0 netns {child}"),
            "link set veth0 master br0 up",
        ] {
            namespace.ip(words)?;
        }
        forward_masqueraded(&namespace)?;
        for words in [
            "link set lo up",
            "addr add 192.168.99.2/24 dev eth0",
            "link set eth0 up",
            "route add default via 192.168.99.1",
        ] {
            inside.ip(words)?;
        }
        let status =
            std::fs::read_to_string(format!("/proc/{child}/status")).context("read the inner process's status")?;
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let inner_pid =
            numbers.and_then(|numbers| numbers.split_whitespace().last()).context("the inner process's pid")?;
        Ok(Nested { outer, inside, inner_pid: inner_pid.to_owned() })
    }

    /// The container.
    pub fn outer(&self) -> &Container {
        &self.outer
    }

    /// The namespace in it.
    pub fn inside(&self) -> &Namespace {
        &self.inside
    }

    /// Runs an `imds-client` with these words in the inner namespace, as a process of the container, to its end; what it
    /// reported.
    pub fn asks(&self, words: &str) -> Result<Vec<Value>> {
        let mut args = vec!["busybox", "nsenter", "-t", &self.inner_pid, "-n", "imds-client"];
        args.extend(words.split_whitespace());
        Ok(self.outer.exec(&args)?.attempts())
    }
}

/// A container on a second bridge, whose way out is not the host but another container, the relay.
pub struct Relayed {
    // Dropped in this order: a network goes when nobody is on it any more.
    client: Container,
    relay: Container,
    network: Network,
}

impl Relayed {
    /// Makes the network `NAME-net`, the relay `NAME-relay` on it and on docker0, and the client `NAME` on it alone.
    pub fn start(host: &RunnerHost, name: &str) -> Result<Relayed> {
        let network = host.network_create(NetworkSpec::new(&format!("{name}-net")))?;
        let relay = host.run(ContainerSpec::new(&format!("{name}-relay"), &LINGER))?;
        let mut connect = host.docker()?;
        connect.args(["network", "connect", network.name(), relay.id()]);
        children::output(connect)?;
        let namespace = relay.namespace()?;
        forward_masqueraded(&namespace)?;
        let addresses = namespace.ip("-4 -o addr show dev eth1")?;
        let address = addresses.split_whitespace().nth(3).and_then(|address| address.split('/').next());
        let address = address.with_context(|| format!("{name}-relay has no address on {name}-net"))?;
        let client = host.run(ContainerSpec::new(name, &LINGER).network(network.name()))?;
        client.namespace()?.ip(&format!("route replace default via {address}"))?;
        Ok(Relayed { client, relay, network })
    }

    /// Who asks.
    pub fn client(&self) -> &Container {
        &self.client
    }

    /// Who forwards.
    pub fn relay(&self) -> &Container {
        &self.relay
    }

    /// The network of the two.
    pub fn network(&self) -> &Network {
        &self.network
    }
}

/// Lets a container's namespace forward what comes from behind, as from its own address on docker0.
fn forward_masqueraded(namespace: &Namespace) -> Result<()> {
    namespace.sysctl("net/ipv4/ip_forward", "1")?;
    let rule = ["-w", "-t", "nat", "-A", "POSTROUTING", "-o", "eth0", "-j", "MASQUERADE"];
    namespace.run("iptables", &rule)?;
    Ok(())
}
