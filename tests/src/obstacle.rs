//! What can stand between a container and IMDS, how is it put there, and how is it taken away?
//!
//! Each function here puts up one obstacle and returns an [`Obstacle`]; dropping that takes it away. Keep it in a variable
//! with a name (`let _firewall = …`; `let _ = …` would drop it at once).
//!
//! | What | Here | What `imds-client` says at once or at its timeout |
//! |---|---|---|
//! | packets vanish | [`docker_user`], [`iptables`], [`nft`] with [`Verdict::Drop`] | `connect timeout`; of answers only: `read timeout` |
//! | somebody refuses | the same with [`Verdict::Reject`], [`Verdict::Reset`] | `connect refused` |
//! | the server itself refuses | [`FakeImds::stop_listening`] | `connect refused` |
//! | no way out of the container | [`no_route`], [`prohibited_route`] in its namespace | `connect network unreachable`, `connect permission denied` |
//! | no way on from the runner host | the same in the runner namespace | `connect network unreachable`, `connect host unreachable` |
//! | answers fail the reverse path check | [`reverse_path`] | `connect timeout` |
//! | source addresses stay a container's | [`NetworkSpec::unmasqueraded`](crate::NetworkSpec::unmasqueraded) | `connect timeout` |
//! | somebody else answers | [`MetadataProxy`] | success |

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::host::{Engine, RUNNER, RunnerHost, UPLINK};
use crate::imds::{Behaviour, ENDPOINT, ENDPOINT6, FakeImds, ORDINARY_TTL};
use crate::netns::Namespace;

/// Something in the way; dropping it takes it away, in the reverse order of its parts.
#[derive(Default)]
#[must_use = "dropped at once, it is never in the way"]
pub struct Obstacle {
    undo: Vec<Box<dyn FnOnce() + Send>>,
}

impl Drop for Obstacle {
    fn drop(&mut self) {
        while let Some(undo) = self.undo.pop() {
            undo();
        }
    }
}

impl Obstacle {
    /// Runs a program, and in the end the one that undoes it (its failure is ignored: the namespace may have gone).
    fn with(&mut self, namespace: &Namespace, program: &'static str, words: &str, undo: &str) -> Result<()> {
        namespace.run(program, &words.split_whitespace().collect::<Vec<_>>())?;
        let (namespace, undo) = (namespace.clone(), undo.to_owned());
        self.undo.push(Box::new(move || {
            let _ = namespace.run(program, &undo.split_whitespace().collect::<Vec<_>>());
        }));
        Ok(())
    }

    /// Sets a sysctl, and in the end what it was.
    fn with_sysctl(&mut self, namespace: &Namespace, key: &str, value: &str) -> Result<()> {
        let before = namespace.sysctl_value(key)?;
        namespace.sysctl(key, value)?;
        let (namespace, key) = (namespace.clone(), key.to_owned());
        self.undo.push(Box::new(move || {
            let _ = namespace.sysctl(&key, &before);
        }));
        Ok(())
    }
}

/// By which of its two addresses IMDS is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// 169.254.169.254
    V4,
    /// `fd00:ec2::254`
    V6,
}

/// Which packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// All to IMDS: connecting fails.
    ToImds,
    /// All from IMDS: connecting fails, though the server heard of it.
    FromImds,
    /// Those from IMDS with data (PSH): connecting succeeds, and then no answer comes, as with a hop limit.
    Answers,
}

/// What becomes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They vanish.
    Drop,
    /// Their sender gets ICMP(v6) port unreachable.
    Reject,
    /// Their sender gets a RST.
    Reset,
}

impl Family {
    /// IMDS's address.
    pub fn endpoint(self) -> String {
        match self {
            Family::V4 => ENDPOINT.to_string(),
            Family::V6 => ENDPOINT6.to_string(),
        }
    }

    fn iptables(self) -> &'static str {
        match self {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        }
    }

    fn ip(self) -> &'static str {
        match self {
            Family::V4 => "-4",
            Family::V6 => "-6",
        }
    }
}

/// Puts a rule before all others of its chain, e.g. `DOCKER-USER -p tcp -j DROP` in the table `filter`.
pub fn iptables_rule(namespace: &Namespace, family: Family, table: &str, rule: &str) -> Result<Obstacle> {
    let mut obstacle = Obstacle::default();
    let (insert, delete) = (format!("-w -t {table} -I {rule}"), format!("-w -t {table} -D {rule}"));
    obstacle.with(namespace, family.iptables(), &insert, &delete)?;
    Ok(obstacle)
}

/// A rule about IMDS in a chain of the table `filter`: `OUTPUT` in a container's namespace, `FORWARD` in one that forwards.
pub fn iptables(
    namespace: &Namespace,
    chain: &str,
    family: Family,
    traffic: Traffic,
    verdict: Verdict,
) -> Result<Obstacle> {
    let endpoint = family.endpoint();
    let which = match traffic {
        Traffic::ToImds => format!("-d {endpoint} -p tcp --dport 80"),
        Traffic::FromImds => format!("-s {endpoint} -p tcp --sport 80"),
        Traffic::Answers => format!("-s {endpoint} -p tcp --sport 80 --tcp-flags PSH PSH"),
    };
    let unreachable = if family == Family::V4 { "icmp-port-unreachable" } else { "icmp6-port-unreachable" };
    let target = match verdict {
        Verdict::Drop => "DROP".to_owned(),
        Verdict::Reject => format!("REJECT --reject-with {unreachable}"),
        Verdict::Reset => "REJECT --reject-with tcp-reset".to_owned(),
    };
    iptables_rule(namespace, family, "filter", &format!("{chain} {which} -j {target}"))
}

/// A rule about IMDS in `DOCKER-USER` of the runner host, the chain that an engine leaves to its users. Without an engine,
/// in `FORWARD`.
pub fn docker_user(host: &RunnerHost, family: Family, traffic: Traffic, verdict: Verdict) -> Result<Obstacle> {
    let chain = if host.engine() == Engine::Docker { "DOCKER-USER" } else { "FORWARD" };
    iptables(host.runner(), chain, family, traffic, verdict)
}

/// A rule about IMDS in an nftables table of its own, at the hook `forward`, `input`, `output`, `prerouting` or
/// `postrouting`, with priority -10: before what iptables has there.
pub fn nft(namespace: &Namespace, hook: &str, family: Family, traffic: Traffic, verdict: Verdict) -> Result<Obstacle> {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let table = format!("lab_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let (ip, endpoint) = (if family == Family::V4 { "ip" } else { "ip6" }, family.endpoint());
    let which = match traffic {
        Traffic::ToImds => format!("{ip} daddr {endpoint} tcp dport 80"),
        Traffic::FromImds => format!("{ip} saddr {endpoint} tcp sport 80"),
        Traffic::Answers => format!("{ip} saddr {endpoint} tcp sport 80 tcp flags & psh == psh"),
    };
    let verdict = match verdict {
        Verdict::Drop => "drop",
        Verdict::Reject => "reject",
        Verdict::Reset => "reject with tcp reset",
    };
    let mut obstacle = Obstacle::default();
    obstacle.with(namespace, "nft", &format!("add table inet {table}"), &format!("delete table inet {table}"))?;
    let chain = format!("add chain inet {table} imds {{ type filter hook {hook} priority -10 ; }}");
    namespace.run("nft", &[&chain])?;
    namespace.run("nft", &[&format!("add rule inet {table} imds {which} {verdict}")])?;
    Ok(obstacle)
}

/// Takes the default route away.
pub fn no_route(namespace: &Namespace, family: Family) -> Result<Obstacle> {
    let ip = family.ip();
    let routes = namespace.ip(&format!("{ip} route show default"))?;
    let mut obstacle = Obstacle::default();
    for route in routes.lines() {
        obstacle.with(namespace, "ip", &format!("{ip} route del {route}"), &format!("{ip} route add {route}"))?;
    }
    Ok(obstacle)
}

/// Requests for IMDS that come in by this bridge are sent to `to` (an address, perhaps with a port).
pub fn redirect(namespace: &Namespace, bridge: &str, to: &str) -> Result<Obstacle> {
    let what = format!("-i {bridge} -d {} -p tcp --dport 80", Family::V4.endpoint());
    let mut obstacle =
        iptables_rule(namespace, Family::V4, "nat", &format!("PREROUTING {what} -j DNAT --to-destination {to}"))?;
    // Connection tracking sends what has the same ports the same way for two minutes: the next test's connections, too.
    obstacle.with_sysctl(namespace, "net/netfilter/nf_conntrack_tcp_timeout_syn_sent", "1")?;
    Ok(obstacle)
}

/// The namespace forwards nothing over IPv4.
pub fn not_forwarding(namespace: &Namespace) -> Result<Obstacle> {
    let mut obstacle = Obstacle::default();
    obstacle.with_sysctl(namespace, "net/ipv4/ip_forward", "0")?;
    Ok(obstacle)
}

/// A route to IMDS that says no: `prohibit` (EACCES; to others ICMP administratively prohibited), `unreachable`
/// (EHOSTUNREACH; ICMP host unreachable) or `blackhole` (EINVAL; to others nothing).
pub fn prohibited_route(namespace: &Namespace, family: Family, kind: &str) -> Result<Obstacle> {
    let (ip, endpoint) = (family.ip(), family.endpoint());
    let mut obstacle = Obstacle::default();
    let (add, delete) = (format!("{ip} route add {kind} {endpoint}"), format!("{ip} route del {kind} {endpoint}"));
    obstacle.with(namespace, "ip", &add, &delete)?;
    Ok(obstacle)
}

/// Answers from IMDS to containers on docker0 fail the runner's strict reverse path check (`IPReversePathFilter` rises), as
/// they do where policy routing goes by marks.
///
/// Requests are marked and routed as before, by ens5. The check asks for the way from the container to IMDS without a mark
/// (`src_valid_mark` is 0), and that leads over a cable to nowhere.
pub fn reverse_path(host: &RunnerHost) -> Result<Obstacle> {
    let runner = host.runner();
    let mut obstacle = Obstacle::default();
    obstacle.with(runner, "ip", "link add detour type veth peer name nowhere", "link del detour")?;
    runner.ip("link set detour up")?;
    runner.ip("link set nowhere up")?;
    let route = format!("{ENDPOINT} dev detour table 101");
    let mark = format!("PREROUTING -i docker0 -d {ENDPOINT} -p tcp --dport 80 -j MARK --set-mark 101");
    for (program, what, add, delete) in [
        ("ip", route, "route add", "route del"),
        ("iptables", mark, "-w -t mangle -I", "-w -t mangle -D"),
        ("ip", "fwmark 101 priority 100 lookup main".into(), "rule add", "rule del"),
        ("ip", format!("from 172.17.0.0/16 to {ENDPOINT} priority 101 lookup 101"), "rule add", "rule del"),
    ] {
        obstacle.with(runner, program, &format!("{add} {what}"), &format!("{delete} {what}"))?;
    }
    for interface in ["all", UPLINK] {
        obstacle.with_sysctl(runner, &format!("net/ipv4/conf/{interface}/rp_filter"), "1")?;
    }
    Ok(obstacle)
}

/// Answers from IMDS to containers on docker0 leave the runner by another link, as a VPN's table has them do that takes all.
pub fn answers_elsewhere(host: &RunnerHost) -> Result<Obstacle> {
    let runner = host.runner();
    let mut obstacle = Obstacle::default();
    obstacle.with(runner, "ip", "link add vpn0 arp off type veth peer name vpn1", "link del vpn0")?;
    runner.ip("link set vpn0 up")?;
    runner.ip("link set vpn1 up")?;
    obstacle.with(runner, "ip", "route add default dev vpn0 table 102", "route flush table 102")?;
    let rule = "iif ens5 to 172.17.0.0/16 priority 102 lookup 102";
    obstacle.with(runner, "ip", &format!("rule add {rule}"), &format!("rule del {rule}"))?;
    Ok(obstacle)
}

/// The runner sends what is for this client on docker0 to a MAC address that nobody has.
pub fn stale_neighbour(host: &RunnerHost, client: &Namespace) -> Result<Obstacle> {
    let shown = client.ip("-4 -o addr show dev eth0")?;
    let network = shown.split_whitespace().skip_while(|word| *word != "inet").nth(1).context("an address")?;
    let address = network.split('/').next().unwrap_or_default();
    let mut obstacle = Obstacle::default();
    let add = format!("neigh replace {address} lladdr 02:00:00:00:00:99 dev docker0 nud permanent");
    obstacle.with(host.runner(), "ip", &add, &format!("neigh del {address} dev docker0"))?;
    Ok(obstacle)
}

/// A route in a client's namespace that leads to link-local addresses by no router, as zeroconf adds it: nobody there has them.
pub fn past_the_router(client: &Namespace) -> Result<Obstacle> {
    let mut obstacle = Obstacle::default();
    let to = "route add 169.254.0.0/16 dev eth0 scope link";
    obstacle.with(client, "ip", to, "route del 169.254.0.0/16 dev eth0")?;
    Ok(obstacle)
}

/// Packets that failed the reverse path check in a namespace so far.
pub fn failed_reverse_path(namespace: &Namespace) -> Result<u64> {
    namespace.counter("TcpExt", "IPReversePathFilter")
}

/// A metadata proxy as kube2iam and its like are: a server on the runner host, to which requests for IMDS from one bridge
/// are redirected. They never reach ens5.
pub struct MetadataProxy {
    imds: FakeImds,
    _redirection: Obstacle,
}

impl MetadataProxy {
    /// Where it listens.
    pub const PORT: u16 = 8181;

    /// Starts it for containers on this bridge (`docker0`, or [`Network::bridge`](crate::Network::bridge)). It answers as
    /// a fake IMDS does whose packets have an ordinary TTL.
    pub fn start(host: &RunnerHost, bridge: &str) -> Result<MetadataProxy> {
        let address: SocketAddr = format!("{RUNNER}:{}", Self::PORT).parse().context("the proxy's address")?;
        let behaviour = Behaviour { hop_limit: ORDINARY_TTL, ..Behaviour::default() };
        let imds = FakeImds::start(host.runner(), &[address], behaviour)?;
        let rule = format!("PREROUTING -i {bridge} -d {ENDPOINT} -p tcp --dport 80 -j DNAT --to-destination {address}");
        let redirection = iptables_rule(host.runner(), Family::V4, "nat", &rule)?;
        Ok(MetadataProxy { imds, _redirection: redirection })
    }

    /// Its server: what it was asked, how it behaves, and the secrets that it handed out (besides those of the host's own).
    pub fn imds(&self) -> &FakeImds {
        &self.imds
    }
}
