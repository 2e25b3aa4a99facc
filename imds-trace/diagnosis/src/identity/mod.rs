//! Who is a client? Containers and processes as reports name them, and what an attribution rests on.

pub mod cgroup;
pub mod fact;
pub mod job;
pub mod pod;

mod containers;
mod directory;
mod sockets;

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use crate::net::{Endpoint, Netns, Timestamp, Ttl, bounded};
use cgroup::Runtime;
pub use directory::Directory;
pub use fact::{Ancestor, ContainerDetail, Fact, Said};
use job::{Compose, Job};
use pod::Pod;
pub use sockets::Failed;

/// A container, as reports name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Container {
    /// Full id; empty, and written as `null`, of what no source can name.
    #[serde(serialize_with = "null_if_empty")]
    #[schemars(with = "Option<String>")]
    pub id: String,
    /// Name, in a pod that within it; `None` if no source told.
    pub name: Option<String>,
    /// Image; `None` if no source told.
    pub image: Option<String>,
    /// Labels; empty if it has none or no engine introduced it.
    pub labels: Arc<std::collections::BTreeMap<String, String>>,
    /// What made it; `None` if no source told.
    pub runtime: Option<Runtime>,
    /// The id of the innermost container, if the process is in one inside this one.
    pub inner: Option<String>,
    /// The pod it is in.
    pub pod: Option<Arc<Pod>>,
    /// The id of its ECS task.
    pub task: Option<String>,
    /// The Compose service it belongs to.
    pub compose: Option<Arc<Compose>>,
    /// Names of its networks; empty if no engine introduced it.
    pub networks: Arc<[String]>,
    /// The CI job it belongs to.
    pub job: Option<Arc<Job>>,
}

/// Stands for whoever is no process of the host, and whom no source can name.
static NOBODY: LazyLock<Container> = LazyLock::new(Container::default);

fn null_if_empty<S: Serializer>(id: &str, serializer: S) -> Result<S::Ok, S::Error> {
    if id.is_empty() { serializer.serialize_none() } else { serializer.serialize_some(id) }
}

/// Bytes of each name in a pod's title.
const MAX_POD: usize = 63;
/// Digits of a long id that are shown, as Docker does.
const SHORT_ID: usize = 12;

/// An id as people are shown it: a hash cut, a name whole.
fn short(id: &str) -> &str {
    let is_hash = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hash { bounded(id, SHORT_ID) } else { id }
}

impl Container {
    /// The CI job that it is of.
    pub fn job_id(&self) -> Option<&str> {
        self.job.as_ref()?.id.as_deref()
    }

    /// Its id as people are shown it.
    pub fn short_id(&self) -> &str {
        short(&self.id)
    }

    /// Its name; where no source told, what made it and its id.
    pub fn title(&self) -> String {
        match (self.pod_title(), &self.name, self.runtime) {
            (Some(pod), ..) => pod,
            (None, Some(name), _) => name.clone(),
            (None, None, Some(runtime)) => format!("{} {}", runtime.noun(), self.short_id()),
            (None, None, None) => format!("container {}", self.short_id()),
        }
    }

    /// The same in the middle of a sentence: `container job-17`, `pod web-7d4b9/app (namespace shop)`. Names cut to `most` bytes.
    pub fn phrase(&self, most: usize) -> String {
        match (self.pod_title(), &self.name, self.runtime) {
            (Some(pod), ..) => pod,
            (None, Some(name), _) => format!("container {}", bounded(name, most)),
            (None, None, Some(Runtime::Buildkit)) => format!("the BuildKit step {}", self.short_id()),
            (None, None, Some(runtime)) => format!("container {} ({})", self.short_id(), runtime.noun()),
            (None, None, None) => format!("container {}", self.short_id()),
        }
    }

    /// `pod web-7d4b9/app (namespace shop)`, if the pod's name is known.
    fn pod_title(&self) -> Option<String> {
        let pod = self.pod.as_ref()?;
        let name = bounded(pod.name.as_deref()?, MAX_POD);
        let own = bounded(self.name.as_deref().unwrap_or_else(|| self.short_id()), MAX_POD);
        let namespace =
            pod.namespace.as_deref().map(|namespace| format!(" (namespace {})", bounded(namespace, MAX_POD)));
        Some(format!("pod {name}/{own}{}", namespace.unwrap_or_default()))
    }

    /// What `probe` finds it by: its name, with that of its pod and namespace before it; else the beginning of its id.
    pub fn handle(&self) -> String {
        let own = self.name.as_deref().unwrap_or_else(|| self.short_id());
        let pod = self.pod.as_ref().and_then(|pod| Some((pod.name.as_deref()?, pod.namespace.as_deref())));
        match pod {
            Some((pod, Some(namespace))) => format!("{namespace}/{pod}/{own}"),
            Some((pod, None)) => format!("{pod}/{own}"),
            None => own.to_owned(),
        }
    }

    /// The id of the container inside it as people are shown it.
    pub fn short_inner(&self) -> Option<&str> {
        self.inner.as_deref().map(short)
    }
}

/// A shorter beginning of a container id is taken for a name.
const MIN_ID: usize = 4;

impl Container {
    /// Is this its name, with or without those of its pod and namespace before it, its id or the beginning of its id?
    pub fn is_called(&self, wanted: &str) -> bool {
        let is_id = |id: &String| is_id_of(id, wanted);
        let in_pod = || {
            let (pod, own) = (self.pod.as_ref()?, wanted.rsplit_once('/')?);
            let of_pod = own.0.strip_suffix(pod.name.as_deref()?)?;
            let of_namespace = of_pod.strip_suffix('/').map(Some).or_else(|| of_pod.is_empty().then_some(None))?;
            let is_it = self.name.as_deref() == Some(own.1) || is_id_of(&self.id, own.1);
            Some(is_it && (of_namespace.is_none() || of_namespace == pod.namespace.as_deref()))
        };
        self.name.as_deref() == Some(wanted)
            || is_id(&self.id)
            || self.inner.as_ref().is_some_and(is_id)
            || in_pod().unwrap_or(false)
    }
}

fn is_id_of(id: &str, wanted: &str) -> bool {
    id == wanted || (wanted.len() >= MIN_ID && id.starts_with(wanted))
}

/// A process, as reports name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// User id in the initial user namespace.
    pub uid: u32,
    /// Group id in the initial user namespace.
    pub gid: u32,
    /// The connecting task's name.
    pub comm: String,
    /// Path of the executable in its mount namespace; `None` if it could not be read.
    pub exe: Option<String>,
    /// Command line, secrets masked; `None` like `exe`.
    pub argv: Option<Vec<String>>,
    /// When it started; `None` where the kernel could not tell.
    pub started: Option<Timestamp>,
    /// Process id in its own pid namespace; `None` like `started`.
    pub pid_in_container: Option<u32>,
    /// That namespace, an inode number; `None` like `started`.
    pub pid_namespace: Option<u32>,
    /// The socket's network namespace.
    pub netns: Netns,
    /// Version 2 cgroup id.
    pub cgroup_id: u64,
    /// Cgroup path; `None` if it could not be read.
    pub cgroup: Option<String>,
    /// Parent first, up to the first process; empty like `exe`.
    pub ancestors: Vec<Ancestor>,
}

/// What an attribution rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// The socket's task: by its cgroup, or as the process that the engine started the container with.
    Cgroup,
    /// The socket's network namespace, with one container in it.
    Netns,
    /// The packet's address.
    Address,
    /// Nothing: no source knew it.
    Unknown,
}

/// To whom an exchange belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribution {
    /// The container; `None` for the host's own processes and where nothing is known (then `by` is [`Key::Unknown`]).
    pub container: Option<Container>,
    /// The process; `None` if its connect was not seen.
    pub process: Option<Rc<Process>>,
    /// What `container` rests on.
    pub by: Key,
    /// The client's address as it stood in its packets nearest to it; `None` where there was no packet and nobody told it.
    pub address: Option<IpAddr>,
    /// The address of its socket, if that was told. Where its packets have another one they were translated on the way.
    pub socket_address: Option<IpAddr>,
    /// The TTL its packets started with, from its socket.
    pub initial_ttl: Option<Ttl>,
    /// The network namespace of its socket.
    pub netns: Option<Netns>,
    /// The error with which its connect failed, a number of `errno.h`.
    pub error: Option<u16>,
    /// How long its connect took to fail, if it did.
    pub failed_after: Option<std::time::Duration>,
    /// Its connect failed before its socket had a local port.
    pub has_no_port: bool,
}

/// For whom things are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// A container, by id.
    Container(String),
    /// The host's own processes.
    Host,
    /// Somebody of whom only the address is known.
    Address(IpAddr),
    /// Somebody of whom not even that is known.
    Unknown,
}

impl Attribution {
    /// Somebody of whom nothing is known but an address, if that.
    pub(crate) fn of_nobody(address: Option<IpAddr>) -> Self {
        Self {
            container: None,
            process: None,
            by: Key::Unknown,
            address,
            socket_address: None,
            initial_ttl: None,
            netns: None,
            error: None,
            failed_after: None,
            has_no_port: false,
        }
    }

    /// For whom this is counted.
    pub fn subject(&self) -> Subject {
        match (&self.container, self.by) {
            (Some(container), _) => Subject::Container(container.id.clone()),
            (None, Key::Cgroup) => Subject::Host,
            (None, _) => self.address.map_or(Subject::Unknown, Subject::Address),
        }
    }

    /// Whoever cannot be named, in a sentence.
    pub fn unnamed(&self) -> String {
        match self.address {
            Some(address) => format!("the client at {address}"),
            None => "a client whose address was not seen".to_owned(),
        }
    }

    /// The container for programs: `None` for the host's own processes only; one without an id where nobody can be named.
    pub fn told(&self) -> Option<&Container> {
        match (&self.container, self.by) {
            (Some(container), _) => Some(container),
            (None, Key::Cgroup) => None,
            (None, _) => Some(&NOBODY),
        }
    }

    /// Where whoever cannot be named is: `a process in network namespace 4026532201, cgroup /garden/x`. `None` if that was not seen.
    pub fn place(&self) -> Option<String> {
        let netns = self.netns?;
        let cgroup = self.process.as_ref().and_then(|process| process.cgroup.as_deref());
        let cgroup = cgroup.map(|path| format!(", cgroup {}", bounded(path, MAX_CGROUP)));
        Some(format!("a process in network namespace {}{}", netns.0, cgroup.unwrap_or_default()))
    }
}

/// Bytes of a cgroup path in a sentence.
const MAX_CGROUP: usize = 160;

/// What is asked of the directory.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// Whose what is sought.
    pub asked: Asked,
    /// The IMDS end.
    pub endpoint: Endpoint,
    /// When it was first seen.
    pub since: Timestamp,
}

/// That whose owner is sought.
#[derive(Clone, Copy, Debug)]
pub enum Asked {
    /// A connection.
    Connection {
        /// The client's end, before any translation that was seen.
        client: Endpoint,
        /// The first sequence number, if the SYN was seen.
        isn: Option<u32>,
    },
    /// The number of a connect that failed before a packet was made.
    Attempt(u64),
}

#[cfg(test)]
mod tests;
