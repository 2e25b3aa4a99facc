//! Whose was this connection? Containers and processes by socket, cgroup, namespace and address, each for the time it held.
//!
//! Order of keys, and why: the socket that sent the packet names the task, and the task's cgroup the container: only root on the
//! host can forge that. A network namespace may be shared by several containers (`--network container:X`), so it decides only
//! where one container is in it. An address can be reused within a second and forged with a raw socket: last, and labelled so.
//!
//! What the kernel read of the task inside its connect() stands; /proc, which is read a little later, only adds what is unknown
//! then, and nothing at all if the process there started at another time: the number was given to another one.
//!
//! Refuses to guess: what no source said is `None`, and `by` says what the answer rests on.
//!
//! Cannot know: who uses a connection after it was opened. A socket may be inherited or handed over (fork, `SCM_RIGHTS`), and a
//! proxy asks for others: named is the process that connected. Packets without a connect (a raw socket) have no process.

use std::sync::Arc;

use super::cgroup;
use super::containers::Containers;
use super::fact::{self, Fact, Said};
use super::pod::Pod;
use super::sockets::{Failed, Socket, Sockets};
use super::{Asked, Attribution, Container, Key, Query};
use crate::net::{Endpoint, Netns, Timestamp};

/// Everything the sources said, by time.
#[derive(Debug)]
pub struct Directory {
    host_netns: Netns,
    /// The pid namespace of the host's own processes, if known.
    host_pids: Option<u32>,
    pub(super) sockets: Sockets,
    pub(super) containers: Containers,
}

impl Directory {
    /// An empty directory of a host whose own processes live in `host_netns`.
    pub fn new(host_netns: Netns) -> Self {
        Self { host_netns, host_pids: None, sockets: Sockets::default(), containers: Containers::default() }
    }

    /// The same where the host's own processes are known to live in this pid namespace.
    pub fn with_pid_namespace(self, host_pids: Option<u32>) -> Self {
        Self { host_pids, ..self }
    }

    /// Takes in a fact. Gives how many old entries had to go for it.
    pub fn learn(&mut self, fact: &Fact) -> u64 {
        match &fact.said {
            Said::Attempting(attempt) => {
                self.met(fact.at, attempt);
                self.sockets.attempting(fact.at, attempt)
            }
            Said::Connecting(connecting) => {
                self.met(fact.at, connecting);
                self.sockets.connecting(fact.at, connecting)
            }
            Said::Sending(socket) => {
                self.sockets.sending(socket);
                0
            }
            Said::Connected(connected) => {
                self.sockets.connected(fact.at, connected);
                0
            }
            Said::Process(detail) => {
                if let (Some(id), Some((netns, cgroup))) = (&detail.container, self.sockets.place_of(detail)) {
                    let netns = (netns != self.host_netns).then_some(netns);
                    let path = detail.cgroup.as_deref().and_then(cgroup::read_path);
                    let within = path.filter(|within| within.outer.id == *id);
                    self.containers.met(fact.at, id, netns, cgroup, within.as_ref());
                }
                self.sockets.process(detail);
                0
            }
            Said::Container(detail) => {
                let mut detail = detail.clone();
                // A container in the host's namespace does not own it.
                detail.netns = detail.netns.filter(|netns| *netns != self.host_netns);
                self.containers.appeared(fact.at, &detail)
            }
            Said::ContainerGone { id, user } => {
                if user.is_none_or(|user| self.containers.is_of(id, user)) {
                    self.containers.gone(fact.at, id);
                }
                0
            }
            Said::Counted(_)
            | Said::Uplinks { .. }
            | Said::Forwarding(_)
            | Said::InHdrErrors { .. }
            | Said::LinkLocalExceeded { .. } => 0,
        }
    }

    /// The kernel told of a task whose cgroup path may name a container: its namespace and cgroup are that container's.
    fn met(&mut self, at: Timestamp, task: &fact::Connecting) {
        let path = task.told.cgroup.as_deref().filter(|path| !path.starts_with(fact::CUT));
        let Some(within) = path.and_then(cgroup::read_path) else { return };
        let netns = (task.netns != self.host_netns).then_some(task.netns);
        let id = within.outer.id.clone();
        self.containers.met(at, &id, netns, task.cgroup, Some(&within));
    }

    /// A process by which a network namespace can be entered: the first one of a container in it.
    pub fn pid_in(&self, netns: Netns, at: Timestamp) -> Option<u32> {
        self.containers.pid_in(netns, at)
    }

    /// A socket gave up connecting, and no packet of it was seen.
    pub fn unseen(&mut self, at: Timestamp, socket: &fact::Socket) {
        self.sockets.unseen(at, socket);
    }

    /// The connection with this first sequence number is over, and all of it was told.
    pub fn over(&mut self, isn: u32, endpoint: Endpoint) {
        self.sockets.over(isn, endpoint);
    }

    /// A socket closed, and no packet of it was seen.
    pub fn closed_unseen(&mut self, at: Timestamp, isn: u32, endpoint: Endpoint) {
        self.sockets.closed_unseen(at, isn, endpoint);
    }

    /// When [`Self::failed`] may have something to tell.
    pub fn due(&self) -> Option<Timestamp> {
        self.sockets.due()
    }

    /// The next connect that has failed by `now` without a packet.
    pub fn failed(&mut self, now: Timestamp) -> Option<Failed> {
        self.sockets.failed(now)
    }

    /// To whom a connection belonged at a moment.
    pub fn who(&self, query: Query, at: Timestamp) -> Attribution {
        let mut attribution = self.attribute(query, at);
        if let Asked::Attempt(_) = query.asked {
            // No packet of it was seen: its socket's address, if it got so far, or the container's own, if it has one.
            let by_socket = self.sockets.find(query).and_then(Socket::source);
            let is_v4 = query.endpoint.address.is_ipv4();
            let by_container = |container: &Container| self.containers.address_of(&container.id, is_v4);
            let address = by_socket.or_else(|| attribution.container.as_ref().and_then(by_container));
            attribution.address = address;
        }
        attribution
    }

    /// A container, and where in it the process stands whose cgroup path this is.
    fn container_of(&self, id: &str, path: Option<&str>) -> Container {
        let mut container = self.containers.named(id);
        if let Some(within) = path.and_then(cgroup::read_path).filter(|within| within.outer.id == id) {
            container.runtime = container.runtime.or(within.outer.runtime);
            // The path names the innermost pod: of a container in a container no source here knows more.
            if let Some(uid) = within.pod {
                let known = container.pod.take().filter(|_| within.inner.is_none());
                container.pod = Some(Arc::new(Pod::of_uid(&uid).with(known.as_deref())));
            }
            container.task = container.task.or(within.task);
            container.inner = within.inner.map(|inner| inner.id);
        }
        container
    }

    fn attribute(&self, query: Query, at: Timestamp) -> Attribution {
        let address = match query.asked {
            Asked::Connection { client, .. } => Some(client.address),
            Asked::Attempt(_) => None,
        };
        let mut attribution = Attribution::of_nobody(address);
        let socket = self.sockets.find(query);
        if let Some(socket) = socket {
            attribution.process = Some(socket.process());
            attribution.socket_address = socket.source();
            attribution.initial_ttl = socket.ttl();
            attribution.netns = Some(socket.netns());
            attribution.error = socket.error();
            attribution.failed_after = socket.failed_after();
            attribution.has_no_port = socket.has_no_port();
            let own = socket.container();
            let path = attribution.process.as_ref().and_then(|process| process.cgroup.as_deref());
            let id = own
                .as_deref()
                .filter(|id| self.containers.may_name(id, path))
                .or_else(|| self.containers.in_cgroup(socket.cgroup()))
                .or_else(|| self.containers.of_process(socket.pid(), at).filter(|_| !socket.was_read()));
            if let Some(id) = id {
                attribution.container = Some(self.container_of(id, path));
                attribution.by = Key::Cgroup;
                return attribution;
            }
            if socket.netns() != self.host_netns {
                if let Some(container) = self.containers.in_netns(socket.netns(), at) {
                    attribution.container = Some(container);
                    attribution.by = Key::Netns;
                    return attribution;
                }
            } else if socket.was_read() && socket.is_of_host(self.host_pids) {
                attribution.by = Key::Cgroup;
                return attribution;
            }
        }
        let Asked::Connection { client, isn } = query.asked else { return attribution };
        // A container that is known to be in other namespaces has only the same address.
        let elsewhere = attribution.netns.filter(|netns| *netns != self.host_netns);
        let at_address = self.containers.at_address(client.address, at, isn.is_some());
        if let Some(container) = at_address.filter(|container| !self.containers.is_elsewhere(&container.id, elsewhere))
        {
            attribution.container = Some(container);
            attribution.by = Key::Address;
        }
        attribution
    }
}
