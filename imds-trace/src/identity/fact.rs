//! What did a source tell us about who is who, and when?

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cgroup::Runtime;
use crate::net::{Endpoint, Ifindex, Netns, Timestamp, Ttl};

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
    Connected(Connected),
    /// /proc: more about a process that connects.
    Process(ProcessDetail),
    /// The engine: a container is there.
    Container(ContainerDetail),
    /// The engine: a container has ended.
    ContainerGone {
        /// Its id.
        id: String,
    },
    /// Netlink: the routes to the endpoints go out by these interfaces of the host's namespace.
    Uplinks {
        /// Their indices.
        interfaces: Vec<Ifindex>,
        /// The addresses that this host has, on whatever interface; empty if nobody said.
        #[serde(default)]
        addresses: Vec<IpAddr>,
        /// Are the hooks on every one of the interfaces? If not, what passes there is not seen.
        #[serde(default)]
        watched: bool,
    },
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

/// A task, as the kernel knew it the moment it connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connecting {
    /// The socket's address in the kernel: a name for it while it lives. Written to recordings as a number that means nothing
    /// outside the run. 0 in an attempt.
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
}

/// A connecting socket got its port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// As in [`Connecting::socket`].
    pub socket: u64,
    /// Its own address and port.
    pub source: Endpoint,
    /// Where to.
    pub destination: Endpoint,
    /// Initial sequence number.
    pub isn: u32,
    /// Namespace of the socket.
    pub netns: Netns,
    /// Was the connection established, or given up?
    pub established: bool,
    /// The error that the socket was told, a number of `errno.h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<u16>,
}

/// An ancestor of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
}

/// What /proc says of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessDetail {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Could it be read? If not, it was gone already, and nothing else here is known.
    pub found: bool,
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

/// What the engine says of a container. A field that is not known yet is `None`; a later fact adds it.
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
}
