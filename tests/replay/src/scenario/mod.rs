//! What can be written down by hand as a situation, and what must be concluded from it?
//!
//! A scenario is a TOML file below `tests/scenarios`, one idea each: packets and facts as they reach the pipeline, and every
//! finding that must come of them, and no other. Sequence numbers, addresses after translation and the like follow from the few
//! words of a packet; what does not follow can be said. A key that is not known is an error.

pub mod harm;
mod inputs;
mod judge;
pub mod near;
mod place;
mod tcp;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use diagnosis::allow::AllowList;
use diagnosis::config::{Expectation, Telling};
use diagnosis::identity::fact::{Forwarding, TcpState};
use serde::Deserialize;

pub use inputs::{END, INSTANCE, header, id_of};
pub use judge::{conclude, conclude_telling, judge, show, show_exchange, show_path};
pub use place::{HOST_NETNS, Place};

/// A situation and what must be concluded from it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The one idea, in a sentence.
    pub about: String,
    /// Rules that could be taken to fire here and must not.
    #[serde(default)]
    pub silent: Vec<String>,
    /// Who connects. Packets belong to the first unless they say otherwise.
    #[serde(default)]
    pub clients: Vec<Client>,
    /// What the engine says.
    #[serde(default)]
    pub containers: Vec<Container>,
    /// Which containers end.
    #[serde(default)]
    pub gone: Vec<Gone>,
    /// What the kernel says of connecting tasks.
    #[serde(default)]
    pub connects: Vec<Connect>,
    /// What the TCP of clients says that it counted. A client of which there is such a word has said at its connect that it would.
    #[serde(default)]
    pub counted: Vec<Counted>,
    /// What the kernel says of tasks whose connect() finds no route.
    #[serde(default)]
    pub attempts: Vec<Attempt>,
    /// What /proc says of processes.
    #[serde(default)]
    pub processes: Vec<Process>,
    /// What netlink says of the ways to IMDS.
    pub uplinks: Option<Uplinks>,
    /// What /proc/sys says of forwarding.
    pub forwarding: Option<Forwarding>,
    /// What the ENA driver counts.
    #[serde(default)]
    pub exceeded: Vec<Exceeded>,
    /// What the namespace's own counters say.
    #[serde(default)]
    pub counters: Vec<Counter>,
    /// What could not be kept.
    #[serde(default)]
    pub lost: Vec<Lost>,
    /// Assertions that one record alone speaks against: lost silently, they hold, and nothing could show it. Say why. `nothing-wrong` is the
    /// report's sentence.
    #[serde(default)]
    pub sole_witness: Vec<String>,
    /// Who may take a token or credentials: what would stand in the file. Absent: nobody said.
    pub allow: Option<String>,
    /// What is seen.
    #[serde(default)]
    pub packets: Vec<Packet>,
    /// All that must be found.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// All exchanges, in order: `WHO KIND STATUS`, e.g. `job-17 token 200`; `-` for what is not known. Absent: they are not judged, which a
    /// file of `tests/scenarios` may not leave so.
    pub exchanges: Option<Vec<String>>,
    /// What is asserted, as behind `--expect`, and must not hold.
    #[serde(default)]
    pub not_held: Vec<String>,
    /// A part of the sentence in which the report tells that the kernel's counters say something else. Absent: there is none.
    pub difference: Option<String>,
}

/// One end of a connection, or of several one after the other.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// What packets and connects call it.
    #[serde(default)]
    pub name: String,
    /// Its own address and port.
    pub inside: String,
    /// Address and port that are seen at `ens5`; absent: no translation.
    pub outside: Option<String>,
    /// The other end; absent: IMDS on port 80, IPv4 or IPv6 as `inside` is.
    pub imds: Option<String>,
    /// First sequence number; absent: one of its own.
    pub isn: Option<u32>,
}

/// The engine introduces a container.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// When; absent: a second before the first packet.
    pub ms: Option<i64>,
    /// Its name.
    pub name: String,
    /// Whose engine says so, 0 for root; absent: nobody told.
    pub user: Option<u32>,
    /// Its network namespace.
    pub netns: Option<u32>,
    /// Its addresses.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// A container ends.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gone {
    /// When.
    pub ms: i64,
    /// Its name.
    pub name: String,
}

/// A task calls connect().
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    /// When.
    pub ms: i64,
    /// For which client; absent: the first.
    pub client: Option<String>,
    /// The task's process.
    pub pid: u32,
    /// The task's name.
    pub comm: String,
    /// The socket's namespace; absent: the host's.
    pub netns: Option<u32>,
    /// The task's cgroup; absent: the root.
    pub cgroup: Option<u64>,
    /// The TTL that the socket sends with; absent: 64.
    pub ttl: Option<u8>,
    /// When the process started; absent: nobody told.
    pub started_ms: Option<i64>,
    /// When the task was seen before the kernel looked for a route; absent: it was not.
    pub attempt_ms: Option<i64>,
    /// When its port and first sequence number were told before its SYN was sent; absent: they were not.
    pub sending_ms: Option<i64>,
    /// The error with which it fails, a number of `errno.h`; 0: it ends and is told none.
    pub error: Option<u16>,
    /// It fails for want of a local port.
    #[serde(default)]
    pub no_port: bool,
    /// When the port is told; absent: a millisecond later. The kernel tells it when the connection is made or given up.
    pub known_ms: Option<i64>,
}

/// A client's socket enters a state and says what its TCP counted.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counted {
    /// When.
    pub ms: i64,
    /// Whose; absent: the first client's.
    pub client: Option<String>,
    /// The state that it enters.
    pub state: TcpState,
    /// Payload bytes that it received: of a response 300.
    #[serde(default)]
    pub received: u64,
    /// Payload bytes that the other side acknowledged: of a request 150.
    #[serde(default)]
    pub acked: u64,
    /// The error that it was told, a number of `errno.h`.
    pub error: Option<u16>,
}

/// A task calls connect(), and nothing comes of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    /// When.
    pub ms: i64,
    /// The task's process.
    pub pid: u32,
    /// The task's name.
    pub comm: String,
    /// The task's namespace; absent: the host's.
    pub netns: Option<u32>,
    /// Where to; absent: IMDS on IPv4, port 80.
    pub to: Option<String>,
}

/// The ways from this host to IMDS.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uplinks {
    /// Interfaces.
    pub interfaces: Vec<String>,
    /// Interfaces that containers are behind.
    #[serde(default)]
    pub inward: Vec<String>,
    /// Addresses of this host.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Networks of those addresses, e.g. `docker0 172.17.0.1/16`; absent: nobody told.
    #[serde(default)]
    pub networks: Vec<String>,
    /// Are there hooks on all of them? Absent: yes.
    pub watched: Option<bool>,
}

/// `linklocal_allowance_exceeded` at a moment.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exceeded {
    /// When.
    pub ms: i64,
    /// Of which interface.
    pub interface: String,
    /// How many packets.
    pub packets: u64,
}

/// What /proc says of a process.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// When; absent: with the first packet.
    #[serde(default)]
    pub ms: i64,
    /// Which.
    pub pid: u32,
    /// The container of its cgroup path, by name.
    pub container: Option<String>,
    /// That path, with `{NAME}` for the container's id; absent: nobody told.
    pub cgroup: Option<String>,
    /// Its executable.
    pub exe: Option<String>,
    /// Its command line.
    pub argv: Option<Vec<String>>,
    /// What is above it, its parent first, e.g. `4700 bash`; absent: nobody told.
    #[serde(default)]
    pub ancestors: Vec<String>,
    /// Was it gone before it could be read?
    #[serde(default)]
    pub gone: bool,
}

/// `InHdrErrors` of the host's namespace at a moment.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counter {
    /// When.
    pub ms: i64,
    /// IPv4 and IPv6 together.
    pub in_hdr_errors: u64,
}

/// Records that could not be kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lost {
    /// When.
    pub ms: i64,
    /// How many.
    pub ring_buffer: u64,
}

/// One packet and everywhere it was seen.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packet {
    /// When it was first seen; each further place is 20 µs later.
    pub ms: i64,
    /// Whose; absent: the first client's.
    pub client: Option<String>,
    /// Towards IMDS: `syn`, `ack`, `data`, `fin`, `rst`, or a request, e.g. `PUT /latest/api/token`; several with ` & ` between.
    pub to: Option<String>,
    /// From IMDS: `syn-ack`, `ack`, `data`, `fin`, `rst`, or a response's status, e.g. `200`; several with ` & ` between. Or
    /// `icmp TYPE CODE SENDER`, an error about the last packet to IMDS.
    pub from: Option<String>,
    /// Where it was seen and with what TTL: see [`Place`].
    pub at: Vec<Place>,
    /// Sent again: the same numbers as the last packet of these words.
    #[serde(default)]
    pub again: bool,
    /// Did it not arrive? Then the other side does not acknowledge it. Absent: if the last place is a drop.
    pub lost: Option<bool>,
    /// The request carries a token.
    #[serde(default)]
    pub token: bool,
    /// The token's header has no value.
    #[serde(default)]
    pub empty_token: bool,
    /// Which token that is, or which one the response issues: any number, of which nothing counts but whether it is the same.
    pub mark: Option<u64>,
    /// The lifetime that a token request asks for, seconds, or -1 for none; absent: six hours.
    pub lifetime: Option<i64>,
    /// The request came through a proxy.
    #[serde(default)]
    pub forwarded_for: bool,
    /// It has a `Via`.
    #[serde(default)]
    pub via: bool,
    /// Its `Host` names something else than IMDS.
    #[serde(default)]
    pub foreign_host: bool,
    /// It is for an absolute URL.
    #[serde(default)]
    pub absolute: bool,
    /// The request waits for a `100 Continue`.
    #[serde(default)]
    pub expects_continue: bool,
    /// The request has a header that only another cloud asks for.
    #[serde(default)]
    pub other_cloud: bool,
    /// What the server calls itself; absent: `EC2ws`.
    pub server: Option<String>,
    /// The request's User-Agent.
    pub user_agent: Option<String>,
    /// Sequence number, where it does not follow.
    pub seq: Option<u32>,
    /// Acknowledgement number, where it does not follow.
    pub ack: Option<u32>,
    /// Payload bytes, where they do not follow.
    pub len: Option<u32>,
    /// TCP flags, where they do not follow.
    pub flags: Option<u8>,
    /// IPv4 identification, where it does not follow.
    pub ip_id: Option<u16>,
}

/// What must be found. A field that is absent may have any value.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// The rule.
    pub rule: String,
    /// About whom: a container's name, `unnamed NAME` for one that no engine introduced, `host`, or an address.
    pub who: String,
    /// How often.
    pub count: u64,
    /// `certain` (if absent) or `likely`.
    pub confidence: Option<String>,
    /// The process's name.
    pub process: Option<String>,
    /// The hop limit as read off the wire.
    pub observed: Option<u8>,
    /// The hop limit that would do.
    pub needed: Option<u8>,
    /// The drop as `at` would have it, without the word `drop`; or `none`.
    pub drop: Option<String>,
    /// Milliseconds lost waiting.
    pub waited_ms: Option<u64>,
    /// A part of the sentence.
    pub says: Option<String>,
    /// A part of one of the commands. Absent: they are not judged, which a file of `tests/scenarios` may leave so where there are none.
    pub remedy: Option<String>,
    /// A part of what the commands cost in safety.
    pub caution: Option<String>,
    /// The way that shows it, request and response: `docker0 ingress 64, ens5 egress 63: delivered; ens5 ingress 1: dropped`, or `none`.
    pub path: Option<String>,
}

impl Scenario {
    /// What is asked of the pipeline and the reporter, with these assertions.
    pub fn telling(&self, expectations: Vec<Expectation>) -> Result<Telling> {
        let allow = self.allow.as_deref().map(AllowList::parse).transpose().map_err(anyhow::Error::msg)?;
        Ok(Telling { allow, expectations, ..Telling::default() })
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Scenario> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Scenario::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads a text.
    pub fn parse(text: &str) -> Result<Scenario> {
        let scenario: Scenario = toml::from_str(text)?;
        if scenario.packets.is_empty() && scenario.attempts.is_empty() && scenario.connects.is_empty() {
            bail!("a scenario without packets, connects or attempts shows nothing");
        }
        Ok(scenario)
    }

    fn client(&self, name: Option<&str>) -> Result<(usize, &Client)> {
        let found = match name {
            None => self.clients.first().map(|client| (0, client)),
            Some(name) => self.clients.iter().enumerate().find(|(_, client)| client.name == name),
        };
        found.with_context(|| format!("no client is called {}", name.unwrap_or("anything")))
    }
}

/// The folder with the scenarios.
pub fn folder() -> PathBuf {
    crate::kept::tests().join("scenarios")
}

/// Every file in the folder, by name.
pub fn all() -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder()).context("list tests/scenarios")? {
        let path = entry?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("toml") => found.push((path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), path)),
            _ => bail!("{} is not a scenario: nobody would read it", path.display()),
        }
    }
    found.sort();
    Ok(found)
}
