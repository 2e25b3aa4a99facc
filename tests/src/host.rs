//! What does the runner host consist of, and how is it put up and taken down?

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::container::{Backend, Container, Network, NetworkBackend};
use crate::docker::{DockerContainer, DockerNetwork, GO};
use crate::engine::{self, DockerEngine};
use crate::expect::wait_until;
use crate::house;
use crate::imds::{Behaviour, ENDPOINT, ENDPOINT6, FakeImds};
use crate::netns::Namespace;
use crate::plain::{Place, PlainContainer, PlainNetwork};
use crate::spec::{ContainerSpec, NetworkSpec};

/// Who makes the containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// A private dockerd in the runner namespace.
    Docker,
    /// Nobody: bridges and namespaces by hand, for machines without an engine.
    Plain,
}

/// What the runner host is to be like.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Who makes the containers.
    pub engine: Engine,
    /// IPv6 on ens5, on docker0 and at `[fd00:ec2::254]:80`.
    pub ipv6: bool,
    /// How the fake IMDS begins.
    pub behaviour: Behaviour,
}

impl Default for HostOptions {
    fn default() -> HostOptions {
        HostOptions { engine: Engine::Docker, ipv6: true, behaviour: Behaviour::default() }
    }
}

impl HostOptions {
    /// With an engine if this machine can have one, else without; the second value says why not.
    ///
    /// `IMDS_LAB_ENGINE=plain` asks for none, `IMDS_LAB_ENGINE=docker` insists on one.
    pub fn best() -> (HostOptions, Option<String>) {
        let plain = HostOptions { engine: Engine::Plain, ..HostOptions::default() };
        let wish = std::env::var("IMDS_LAB_ENGINE").unwrap_or_default();
        match (wish.as_str(), RunnerHost::engine_available()) {
            ("plain", _) => (plain, Some("IMDS_LAB_ENGINE says plain".into())),
            // Without root it will not start anyhow; `start` says that better.
            _ if !nix::unistd::geteuid().is_root() => (HostOptions::default(), None),
            ("docker", _) | (_, Ok(())) => (HostOptions::default(), None),
            (_, Err(why)) => (plain, Some(why)),
        }
    }
}

/// A CI runner in a bottle: its network, the IMDS behind it, and who makes its containers. Dropping it takes it all down.
pub struct RunnerHost {
    // Fields are dropped in this order: what uses a namespace before the namespace.
    engine: Option<Arc<DockerEngine>>,
    /// Networks made by hand, while they last.
    networks: Mutex<HashMap<String, Weak<PlainNetwork>>>,
    _docker0: Option<Arc<PlainNetwork>>,
    imds: FakeImds,
    runner: Namespace,
    imds_ns: Namespace,
    name: String,
    dir: LabDir,
    options: HostOptions,
}

struct LabDir(PathBuf);

impl Drop for LabDir {
    fn drop(&mut self) {
        house::remove_dir(&self.0);
    }
}

/// The runner's address on ens5.
pub const RUNNER: &str = "10.77.0.10";
/// The runner's interface towards IMDS.
pub const UPLINK: &str = "ens5";

impl RunnerHost {
    /// Puts it up: 0.1 s, with an engine about a second. Sweeps what dead labs left first.
    pub fn start(options: HostOptions) -> Result<RunnerHost> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the lab makes network namespaces and needs root; run it with sudo");
        }
        for pid in house::sweep_stale() {
            eprintln!("swept what the lab of process {pid} left behind");
        }
        let name = lab_name();
        let dir = LabDir(house::make_dir(&name).context("make the lab's folder")?);
        let imds_ns = Namespace::create(&format!("{name}-imds"))?;
        let runner = Namespace::create(&format!("{name}-runner"))?;
        lay_cable(&imds_ns, &runner, options.ipv6)?;
        let mut addresses = vec![SocketAddr::new(IpAddr::V4(ENDPOINT), 80)];
        if options.ipv6 {
            addresses.push(SocketAddr::new(IpAddr::V6(ENDPOINT6), 80));
        }
        let imds = FakeImds::start(&imds_ns, &addresses, options.behaviour.clone())?;
        let mut networks = HashMap::new();
        let (engine, docker0) = match options.engine {
            Engine::Docker => {
                RunnerHost::engine_available().map_err(anyhow::Error::msg)?;
                (Some(Arc::new(DockerEngine::start(&dir.0, &runner, options.ipv6)?)), None)
            }
            Engine::Plain => {
                let docker0 = Arc::new(PlainNetwork::docker0(&runner, options.ipv6)?);
                networks.insert("bridge".to_owned(), Arc::downgrade(&docker0));
                (None, Some(docker0))
            }
        };
        let networks = Mutex::new(networks);
        Ok(RunnerHost { engine, networks, _docker0: docker0, imds, runner, imds_ns, name, dir, options })
    }

    /// Whether [`Engine::Docker`] can be had here; if not, one sentence saying why.
    pub fn engine_available() -> Result<(), String> {
        engine::available()
    }

    /// Who makes the containers.
    pub fn engine(&self) -> Engine {
        self.options.engine
    }

    /// Whether it has IPv6.
    pub fn ipv6(&self) -> bool {
        self.options.ipv6
    }

    /// The namespace of the runner host itself.
    pub fn runner(&self) -> &Namespace {
        &self.runner
    }

    /// The namespace the fake IMDS is in.
    pub fn imds_ns(&self) -> &Namespace {
        &self.imds_ns
    }

    /// The fake IMDS.
    pub fn imds(&self) -> &FakeImds {
        &self.imds
    }

    /// A folder that goes with the host.
    pub fn dir(&self) -> &Path {
        &self.dir.0
    }

    /// `unix://…` of the engine; without one, of a socket that does not exist (never the machine's own engine).
    pub fn docker_host_url(&self) -> String {
        match &self.engine {
            Some(engine) => engine.url(),
            None => format!("unix://{}", self.dir().join("no-engine.sock").display()),
        }
    }

    /// A command that runs on the runner host (in its network namespace), dying with the thread that starts it.
    pub fn in_runner(&self, program: &str) -> Command {
        let mut command = self.runner.command(program);
        command.env("DOCKER_HOST", self.docker_host_url());
        command
    }

    /// The `docker` command speaking to the private engine.
    pub fn docker(&self) -> Result<Command> {
        match &self.engine {
            Some(engine) => Ok(engine.docker()),
            None => bail!("this host has no engine"),
        }
    }

    /// Kills the engine and starts it again, which ends its containers.
    pub fn restart_engine(&self) -> Result<()> {
        match &self.engine {
            Some(engine) => engine.restart(&self.runner, self.options.ipv6),
            None => bail!("this host has no engine"),
        }
    }

    /// IPv4 packets the runner namespace discarded for their header, a spent TTL above all (`Ip: InHdrErrors`).
    pub fn ip_in_hdr_errors(&self) -> Result<u64> {
        self.runner.counter("Ip", "InHdrErrors")
    }

    /// The same for IPv6 (`Ip6InHdrErrors`).
    pub fn ip6_in_hdr_errors(&self) -> Result<u64> {
        let text = self.runner.proc_net("snmp6")?;
        let line = text.lines().find(|line| line.starts_with("Ip6InHdrErrors")).context("Ip6InHdrErrors in snmp6")?;
        line.split_whitespace().nth(1).and_then(|value| value.parse().ok()).context("a number for Ip6InHdrErrors")
    }

    /// Waits until the fake IMDS has nothing more to send on any connection: no lost answer will be sent again, and the
    /// counters of header errors stand still.
    pub fn settle(&self, deadline: Duration) -> Result<()> {
        wait_until("the fake IMDS to give up its last connection", deadline, || {
            let tables = [self.imds_ns.proc_net("tcp").ok()?, self.imds_ns.proc_net("tcp6").ok()?];
            let states =
                tables.iter().flat_map(|table| table.lines().skip(1)).map(|line| line.split_whitespace().nth(3));
            // TIME_WAIT and LISTEN, as linux/tcp_states.h numbers them.
            states.into_iter().all(|state| matches!(state, Some("06" | "0A"))).then_some(())
        })
    }

    /// Runs a container.
    pub fn run(&self, spec: ContainerSpec) -> Result<Container> {
        let backend = match &self.engine {
            Some(engine) => Backend::Docker(DockerContainer::run(engine, &spec)?),
            None => self.run_plain(&spec)?,
        };
        let go = spec.wait_for_go.then(|| match &backend {
            Backend::Docker(_) => PathBuf::from(GO),
            Backend::Plain(_) => self.plain_go(&spec.name),
        });
        Ok(Container { name: spec.name, go, backend })
    }

    fn run_plain(&self, spec: &ContainerSpec) -> Result<Backend> {
        let networks = self.networks.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let place = match spec.network.as_deref().unwrap_or("bridge") {
            "host" => Place::Host(&self.runner),
            "none" => Place::Alone,
            name => {
                let network = networks.get(name).and_then(Weak::upgrade);
                Place::On(network.with_context(|| format!("no network is called {name}"))?)
            }
        };
        drop(networks);
        let go = self.plain_go(&spec.name);
        let _ = std::fs::remove_file(&go);
        Ok(Backend::Plain(PlainContainer::run(self.dir(), &self.name, place, spec, &go)?))
    }

    fn plain_go(&self, name: &str) -> PathBuf {
        self.dir().join(format!("{name}.go"))
    }

    /// Makes a network with a bridge of its own.
    pub fn network_create(&self, spec: NetworkSpec) -> Result<Network> {
        let (bridge, backend) = match &self.engine {
            Some(engine) => {
                let network = DockerNetwork::create(engine, &spec)?;
                (format!("br-{}", &network.id[..12.min(network.id.len())]), NetworkBackend::Docker(network))
            }
            None => {
                let network = Arc::new(PlainNetwork::create(&self.runner, &spec)?);
                let mut networks = self.networks.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                networks.insert(spec.name.clone(), Arc::downgrade(&network));
                (network.bridge.clone(), NetworkBackend::Plain(network))
            }
        };
        Ok(Network { name: spec.name, bridge, _backend: backend })
    }
}

/// `imdslab-<pid>`, and `imdslab-<pid>.2` for a second host in the same process.
fn lab_name() -> String {
    static HOSTS: AtomicU32 = AtomicU32::new(1);
    match (std::process::id(), HOSTS.fetch_add(1, Ordering::Relaxed)) {
        (pid, 1) => format!("{}{pid}", house::PREFIX),
        (pid, number) => format!("{}{pid}.{number}", house::PREFIX),
    }
}

fn lay_cable(imds: &Namespace, runner: &Namespace, ipv6: bool) -> Result<()> {
    imds.ip(&format!("link add eth0 type veth peer name {UPLINK} netns {}", runner.name()))?;
    // A SYN whose answer is lost is forgotten after three seconds instead of a minute: who waits for rest need not wait so long.
    imds.sysctl("net/ipv4/tcp_synack_retries", "1")?;
    imds.ip("addr add 10.77.0.1/24 dev eth0")?;
    imds.ip(&format!("addr add {ENDPOINT}/32 dev eth0"))?;
    runner.ip(&format!("addr add {RUNNER}/24 dev {UPLINK}"))?;
    if ipv6 {
        imds.ip("addr add fd77::1/64 dev eth0 nodad")?;
        imds.ip(&format!("addr add {ENDPOINT6}/128 dev eth0 nodad"))?;
        runner.ip(&format!("addr add fd77::10/64 dev {UPLINK} nodad"))?;
    }
    imds.ip("link set eth0 up")?;
    runner.ip(&format!("link set {UPLINK} up"))?;
    runner.ip("route add default via 10.77.0.1")?;
    runner.sysctl("net/ipv4/ip_forward", "1")?;
    if ipv6 {
        runner.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        // A bridge begins duplicate address detection when its first container comes, and is deaf for a second or two.
        runner.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        runner.ip("-6 route add default via fd77::1")?;
    }
    Ok(())
}
