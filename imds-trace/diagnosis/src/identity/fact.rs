//! What did a source tell us about who is who, and when?

mod socket;

use std::net::IpAddr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cgroup::Runtime;
use super::pod::Pod;
use crate::net::{Endpoint, Ifindex, Netns, Timestamp, Ttl};
use crate::secret;
pub use socket::{Connected, Counted, Outcome, Socket, TcpState};

/// One thing that a source said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// When it was said; what it says may have held a little earlier.
    pub at: Timestamp,
    /// What was said.
    #[serde(flatten)]
    pub said: Said,
}

/// What a source can say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// The kernel: a task called connect() towards a watched endpoint; the kernel has not looked for a route yet.
    Attempting(Connecting),
    /// The kernel: it found one, and the SYN is about to be sent.
    Connecting(Connecting),
    /// The kernel: that socket has a port and a first sequence number now.
    Sending(Socket),
    /// The kernel: the same, and it was established or gave up.
    Connected(Connected),
    /// What a socket's own TCP had counted when its state changed.
    Counted(Counted),
    /// /proc: more about a process that connects.
    Process(ProcessDetail),
    /// The engine, or a runtime's files: a container is there.
    Container(ContainerDetail),
    /// The engine: a container has ended.
    ContainerGone {
        /// Its id.
        id: String,
        /// The user whose engine said so, or whose cgroup it was; 0 for root. `None` as with [`ContainerDetail::user`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<u32>,
    },
    /// Netlink: traffic to the endpoints leaves the host's namespace by these interfaces, from whatever source.
    Uplinks {
        /// Their indices.
        interfaces: Vec<Ifindex>,
        /// Interfaces that containers, pods or guests are behind; one may be among the uplinks, too. Empty in older recordings.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        inward: Vec<Ifindex>,
        /// The addresses that this host has, on whatever interface; empty if nobody said.
        #[serde(default)]
        addresses: Vec<IpAddr>,
        /// The same with their interfaces and the lengths of their prefixes. Empty in older recordings.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        networks: Vec<Network>,
        /// Are the hooks on every one of the interfaces? If not, what passes there is not seen.
        #[serde(default)]
        watched: bool,
    },
    /// /proc/sys: does the host's namespace forward?
    Forwarding(Forwarding),
    /// The ENA driver: packets to link-local services that the instance dropped or shaped because there were too many of them.
    LinkLocalExceeded {
        /// The interface.
        interface: String,
        /// `linklocal_allowance_exceeded` of its statistics.
        packets: u64,
    },
    /// /proc: a namespace's count of packets whose IP header was refused, spent TTLs among them.
    InHdrErrors {
        /// The namespace.
        netns: Netns,
        /// `IpInHdrErrors` of `/proc/net/snmp`.
        v4: u64,
        /// `Ip6InHdrErrors` of `/proc/net/snmp6`.
        v6: u64,
    },
}

/// A network that this host has an address in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Network {
    /// On this interface.
    pub interface: Ifindex,
    /// This host's address.
    pub address: IpAddr,
    /// How many of its first bits all addresses of the network share.
    pub bits: u8,
}

impl Network {
    /// Is this address in it?
    pub fn holds(&self, address: IpAddr) -> bool {
        let shared = |a: u128, b: u128, width: u32| {
            let bits = u32::from(self.bits).min(width);
            bits == 0 || (a ^ b) >> (width - bits) == 0
        };
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => shared(u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => shared(a.into(), b.into(), 128),
            _ => false,
        }
    }
}

/// What a network namespace's settings say of forwarding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarding {
    /// `net.ipv4.ip_forward`.
    pub v4: Option<bool>,
    /// `net.ipv6.conf.all.forwarding`.
    pub v6: Option<bool>,
    /// Those of the interfaces towards IMDS and towards containers whose own `net.ipv4.conf.NAME.forwarding` is 0: what comes in by them
    /// is not forwarded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub off: Vec<String>,
}

/// A task, as the kernel knew it the moment it connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connecting {
    /// The socket's address in the kernel: a name for it while it lives. Written to recordings as a number that means nothing
    /// outside the run. 0 in attempts of older recordings.
    pub socket: u64,
    /// Where to.
    pub destination: Endpoint,
    /// Namespace of the socket.
    pub netns: Netns,
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// User id in the initial user namespace.
    pub uid: u32,
    /// Group id in the initial user namespace.
    pub gid: u32,
    /// The task's name; the process chooses it.
    pub comm: String,
    /// Version 2 cgroup id.
    pub cgroup: u64,
    /// TTL its packets start with.
    pub ttl: Option<Ttl>,
    /// When the process started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// Its pid namespace: the inode number in `/proc/PID/ns/pid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_namespace: Option<u32>,
    /// Process id in that namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner_pid: Option<u32>,
    /// What it runs and where it comes from.
    #[serde(flatten)]
    pub told: Arc<Told>,
}

/// What the kernel told of a task at its connect(). Empty in the connect that follows an attempt: what was said then holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Path of its executable, in its own mount namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// Its command line, secrets masked; ends in [`CUT`] where it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// Its cgroup path, from the root of the hierarchy.
    #[serde(default, rename = "cgroup_path", skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Its parent first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<Ancestor>,
}

/// Stands where a command line or a path was cut.
pub const CUT: &str = "…";

/// The arguments in `text`, a NUL behind each, secrets masked; `None` if there are none. `cut`: the command line goes on.
pub fn command_line(text: &str, cut: bool) -> Option<Vec<String>> {
    let mut arguments: Vec<&str> = if cut { text } else { text.trim_end_matches('\0') }.split('\0').collect();
    if cut {
        // Half of an argument may be half of a secret, which no longer looks like one.
        arguments.pop();
    }
    let masked = if cut {
        let mut masked = secret::mask_cut_argv(&arguments);
        masked.push(CUT.to_owned());
        masked
    } else {
        secret::mask_argv(&arguments)
    };
    (!text.is_empty()).then_some(masked)
}

/// The path of these names, the last one first, a NUL behind each; secrets masked. `cut`: it goes on towards the root.
pub fn path(names: &str, cut: bool) -> String {
    let names: Vec<&str> = names.trim_end_matches('\0').rsplit('\0').collect();
    let begin = if cut { CUT } else { "" };
    secret::mask(&format!("{begin}/{}", names.join("/")))
}

/// The name of a task, which is often the beginning of its program's; secrets masked.
pub fn comm(name: &str) -> String {
    secret::mask(name)
}

/// An ancestor of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ancestor {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
}

/// Nanoseconds to which /proc knows the start of a process: `USER_HZ` is 100 on every architecture that Linux has BPF for.
pub const TICK: u64 = 10_000_000;

/// What /proc says of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessDetail {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Could it be read? If not, it was gone already, and nothing else here is known.
    pub found: bool,
    /// When it started, to a tick of [`TICK`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// Path of its executable, in its own mount namespace.
    pub exe: Option<String>,
    /// Its command line, secrets masked.
    pub argv: Option<Vec<String>>,
    /// Its cgroup path.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// Container id from its cgroup path: the outermost, which the host's engine knows.
    pub container: Option<String>,
    /// Its parent first.
    pub ancestors: Vec<Ancestor>,
}

impl ProcessDetail {
    /// Of a process that was gone.
    pub fn gone(pid: u32) -> Self {
        Self {
            pid,
            found: false,
            started: None,
            exe: None,
            argv: None,
            cgroup: None,
            container: None,
            ancestors: Vec::new(),
        }
    }
}

/// What an engine or a runtime's files say of a container. A field that is not known yet is `None`; a later fact adds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerDetail {
    /// Full id, 64 hexadecimal digits with Docker.
    pub id: String,
    /// Name without the engine's leading slash.
    pub name: Option<String>,
    /// Image as named when the container was made.
    pub image: Option<String>,
    /// Labels, in the engine's order of names.
    pub labels: Arc<std::collections::BTreeMap<String, String>>,
    /// Its network namespace.
    pub netns: Option<Netns>,
    /// Its first process, in the initial pid namespace.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Its addresses on all its networks.
    pub addresses: Vec<IpAddr>,
    /// The names of its networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// What the engine is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// The pod that it is in. Absent in recordings before version 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// The user whose engine or files said so; 0 for root. `None` where that is not known, and in recordings before that was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = r#"{"at":1,"connecting":{"socket":2,"destination":{"address":"169.254.169.254","port":80},"netns":3,"pid":4,
        "tid":5,"uid":0,"gid":0,"comm":"curl","cgroup":6,"ttl":64}}"#;

    #[test]
    fn a_connect_is_read_as_it_was_written_before_the_kernel_told_more_and_since() {
        let mut fact: Fact = serde_json::from_str(OLD).expect("a fact of an older recording");
        let Said::Connecting(task) = &mut fact.said else { panic!("another fact") };
        assert_eq!((task.started, task.inner_pid, &*task.told), (None, None, &Told::default()));
        task.started = Some(Timestamp(7));
        task.told = Arc::new(Told {
            exe: Some("/usr/bin/curl".into()),
            argv: Some(vec!["curl".into()]),
            cgroup: Some("/".into()),
            ancestors: vec![Ancestor { pid: 1, comm: "init".into() }],
        });
        let written = serde_json::to_string(&fact).expect("it can be written");
        assert_eq!(serde_json::from_str::<Fact>(&written).expect("and read"), fact);
    }

    #[test]
    fn a_command_line_that_was_cut_says_so_even_behind_the_name_of_a_secret() {
        let argv = command_line("curl\0--token\0AQAE", true).expect("there is one");
        assert_eq!(argv, ["curl", "--token", "…"]);
    }
}
