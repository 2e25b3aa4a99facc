//! Which container was it at that moment? By id, namespace, cgroup and address, each with the time it held.
//!
//! An id is one user's: a container of root's is known by no cgroup that another user could name after it, and root's word on an id
//! takes the place of what another user said of it before. Among other users the first stands.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::cgroup::{self, Cgroup};
use super::job::{self, Compose, Job};
use super::pod::Pod;
use super::{Container, ContainerDetail};
use crate::net::{Netns, Timestamp};

/// Containers remembered at most, the departed included.
const MAX_CONTAINERS: usize = 8_192;
/// Holders of one namespace or address remembered at most, the last ones.
const MAX_TENURES: usize = 64;
/// Namespaces, addresses and cgroups remembered of one container at most.
const MAX_KEYS: usize = 64;
/// A container may act this long before the engine's word of it reaches us.
const LATE: Duration = Duration::from_secs(2);
/// The version 2 root cgroup, in which everything stands that has none of its own.
const ROOT_CGROUP: u64 = 1;

#[derive(Clone, Debug)]
struct Tenure {
    id: String,
    from: Timestamp,
    until: Option<Timestamp>,
}

/// A container, and under which keys it was entered.
#[derive(Debug, Default)]
struct Known {
    /// Whose it is; `None` where nobody said.
    user: Option<u32>,
    detail: ContainerDetail,
    networks: Arc<[String]>,
    pod: Option<Arc<Pod>>,
    task: Option<String>,
    compose: Option<Arc<Compose>>,
    job: Option<Arc<Job>>,
    netns: Vec<Netns>,
    addresses: Vec<IpAddr>,
    cgroups: Vec<u64>,
    pids: Vec<u32>,
}

impl Known {
    fn of(id: &str) -> Self {
        let detail = ContainerDetail { id: id.to_owned(), ..ContainerDetail::default() };
        Self { detail, ..Self::default() }
    }

    /// Its pod; labels add to it what they say beside the same uid.
    fn pod_with_labels(&self) -> Option<Arc<Pod>> {
        let pod = self.pod.as_ref()?;
        let said = Pod::of_labels(&self.detail.labels).filter(|said| said.uid == pod.uid);
        match said {
            Some(said) if pod.name.is_none() => Some(Arc::new(Pod::clone(pod).with(Some(&said)))),
            _ => Some(Arc::clone(pod)),
        }
    }
}

/// Everything known of containers.
#[derive(Debug, Default)]
pub struct Containers {
    known: HashMap<String, Known>,
    order: VecDeque<String>,
    by_netns: HashMap<Netns, Vec<Tenure>>,
    by_address: HashMap<IpAddr, Vec<Tenure>>,
    by_cgroup: HashMap<u64, String>,
    by_pid: HashMap<u32, Vec<Tenure>>,
}

impl Containers {
    /// The engine speaks of a container: merges what is new. Gives how many old ones had to go.
    pub fn appeared(&mut self, at: Timestamp, detail: &ContainerDetail) -> u64 {
        let evicted = self.enter(&detail.id);
        if detail.user.is_some_and(|user| !self.claim(&detail.id, user)) {
            return evicted;
        }
        let Some(known) = self.known.get_mut(&detail.id) else { return evicted };
        known.detail.name = detail.name.clone().or(known.detail.name.take());
        known.detail.image = detail.image.clone().or(known.detail.image.take());
        if !detail.labels.is_empty() {
            known.detail.labels = detail.labels.clone();
            known.compose = job::compose(&detail.labels).map(Arc::new);
        }
        if !detail.networks.is_empty() {
            known.networks = detail.networks.as_slice().into();
        }
        // podman's engine speaks like Docker's: the cgroup knows better.
        known.detail.runtime = known.detail.runtime.or(detail.runtime);
        if let Some(pod) = &detail.pod {
            let known_pod = known.pod.take();
            known.pod = Some(Arc::new(match known_pod {
                // The cgroup path came first, and its word on the uid stands.
                Some(before) => Pod::clone(&before).with(Some(pod)),
                None => pod.clone(),
            }));
        }
        let name = known.detail.name.as_deref();
        known.job = job::of(&known.detail.labels, name, &known.networks)
            .or_else(|| job::of_pod(known.pod.as_deref()?, name))
            .map(Arc::new);
        if let Some(netns) = detail.netns {
            hold(&mut self.by_netns, &mut known.netns, netns, &detail.id, at);
        }
        if let Some(pid) = detail.pid {
            hold(&mut self.by_pid, &mut known.pids, pid, &detail.id, at);
        }
        for address in &detail.addresses {
            hold(&mut self.by_address, &mut known.addresses, *address, &detail.id, at);
        }
        evicted
    }

    /// A process was met whose cgroup path names a container: its namespace and cgroup are that container's.
    pub fn met(&mut self, at: Timestamp, id: &str, netns: Option<Netns>, cgroup: u64, within: Option<&Cgroup>) {
        self.enter(id);
        if within.is_some_and(|within| !self.claim(id, within.user)) {
            return;
        }
        let Some(known) = self.known.get_mut(id) else { return };
        if let Some(within) = within {
            known.detail.runtime = within.outer.runtime.or(known.detail.runtime);
            // That of a container in it is not its own.
            if let Some(uid) = within.pod.as_deref().filter(|_| within.inner.is_none())
                && known.pod.as_ref().is_none_or(|pod| pod.uid.as_deref() != Some(uid))
            {
                known.pod = Some(Arc::new(Pod::of_uid(uid).with(known.pod.as_deref())));
            }
            known.task = known.task.take().or_else(|| within.task.clone());
        }
        if let Some(netns) = netns {
            hold(&mut self.by_netns, &mut known.netns, netns, id, at);
        }
        if cgroup > ROOT_CGROUP && self.by_cgroup.insert(cgroup, id.to_owned()).as_deref() != Some(id) {
            remember(&mut known.cgroups, cgroup);
        }
    }

    /// A container ended: its namespace and addresses are free for others.
    pub fn gone(&mut self, at: Timestamp, id: &str) {
        let Some(known) = self.known.get(id) else { return };
        let by_netns = known.netns.iter().filter_map(|netns| self.by_netns.get_mut(netns).map(end_of(id, at)));
        let by_address =
            known.addresses.iter().filter_map(|address| self.by_address.get_mut(address).map(end_of(id, at)));
        let by_pid = known.pids.iter().filter_map(|pid| self.by_pid.get_mut(pid).map(end_of(id, at)));
        by_netns.chain(by_address).chain(by_pid).for_each(drop);
    }

    /// The container as reports name it; by its id alone if no engine introduced it.
    pub fn named(&self, id: &str) -> Container {
        match self.known.get(id) {
            Some(known) => Container {
                id: known.detail.id.clone(),
                name: known.detail.name.clone(),
                image: known.detail.image.clone(),
                labels: known.detail.labels.clone(),
                runtime: known.detail.runtime,
                inner: None,
                pod: known.pod_with_labels(),
                task: known.task.clone(),
                compose: known.compose.clone(),
                networks: known.networks.clone(),
                job: known.job.clone(),
            },
            None => Container { id: id.to_owned(), ..Container::default() },
        }
    }

    /// The first process of a container that was in a namespace at a moment.
    pub fn pid_in(&self, netns: Netns, at: Timestamp) -> Option<u32> {
        let mut held = self.by_netns.get(&netns)?.iter().filter(|tenure| tenure.until.is_none_or(|until| at <= until));
        held.find_map(|tenure| self.known.get(&tenure.id)?.pids.first().copied())
    }

    /// An address of a container, of one family.
    pub fn address_of(&self, id: &str, v4: bool) -> Option<IpAddr> {
        self.known.get(id)?.addresses.iter().copied().find(|address| address.is_ipv4() == v4)
    }

    /// Whose cgroup this is.
    pub fn in_cgroup(&self, cgroup: u64) -> Option<&str> {
        self.by_cgroup.get(&cgroup).map(String::as_str)
    }

    /// The container whose first process this was at a moment.
    pub fn of_process(&self, pid: u32, at: Timestamp) -> Option<&str> {
        sole(self.by_pid.get(&pid)?, at, LATE)
    }

    /// The one container in a namespace at a moment; `None` if there is none or several.
    pub fn in_netns(&self, netns: Netns, at: Timestamp) -> Option<Container> {
        sole(self.by_netns.get(&netns)?, at, LATE).map(|id| self.named(id))
    }

    /// The one container that had an address at a moment. `begins`: a connection begins then; one that goes on is not a
    /// container's that was introduced afterwards.
    pub fn at_address(&self, address: IpAddr, at: Timestamp, begins: bool) -> Option<Container> {
        let late = if begins { LATE } else { Duration::ZERO };
        sole(self.by_address.get(&address)?, at, late).map(|id| self.named(id))
    }

    /// Is a container known to be in network namespaces, and not in this one?
    pub fn is_elsewhere(&self, id: &str, netns: Option<Netns>) -> bool {
        let Some((known, netns)) = self.known.get(id).zip(netns) else { return false };
        !known.netns.is_empty() && !known.netns.contains(&netns)
    }

    /// May a user's cgroup or engine name this container? Of one that nobody knows everybody may.
    pub fn is_of(&self, id: &str, user: u32) -> bool {
        self.known.get(id).and_then(|known| known.user).is_none_or(|known| known == user)
    }

    /// May a process be in this container, if that is its cgroup path? Not if the path is one that another user may make.
    pub fn may_name(&self, id: &str, path: Option<&str>) -> bool {
        let within = path.and_then(cgroup::read_path).filter(|within| within.outer.id == id);
        within.is_none_or(|within| self.is_of(id, within.user))
    }

    /// A user says that a container is his. What another user than root said of one of root's is forgotten.
    fn claim(&mut self, id: &str, user: u32) -> bool {
        if !self.is_of(id, user) {
            if user != 0 {
                return false;
            }
            self.remove(id);
            self.known.insert(id.to_owned(), Known::of(id));
        }
        if let Some(known) = self.known.get_mut(id) {
            known.user = Some(user);
        }
        true
    }

    fn enter(&mut self, id: &str) -> u64 {
        if !self.known.contains_key(id) {
            self.known.insert(id.to_owned(), Known::of(id));
            self.order.push_back(id.to_owned());
        }
        let mut evicted = 0;
        while self.order.len() > MAX_CONTAINERS {
            let Some(oldest) = self.order.pop_front() else { break };
            evicted += u64::from(self.remove(&oldest));
        }
        evicted
    }

    /// Forgets a container with all its keys.
    fn remove(&mut self, id: &str) -> bool {
        let Some(known) = self.known.remove(id) else { return false };
        known.netns.iter().for_each(|netns| forget(&mut self.by_netns, netns, id));
        known.addresses.iter().for_each(|address| forget(&mut self.by_address, address, id));
        known.pids.iter().for_each(|pid| forget(&mut self.by_pid, pid, id));
        for cgroup in &known.cgroups {
            if self.by_cgroup.get(cgroup).is_some_and(|of| of == id) {
                self.by_cgroup.remove(cgroup);
            }
        }
        true
    }
}

fn forget<K: Eq + Hash>(map: &mut HashMap<K, Vec<Tenure>>, key: &K, id: &str) {
    if let Some(tenures) = map.get_mut(key) {
        tenures.retain(|tenure| tenure.id != id);
        if tenures.is_empty() {
            map.remove(key);
        }
    }
}

fn end_of(id: &str, at: Timestamp) -> impl FnOnce(&mut Vec<Tenure>) {
    move |tenures| {
        for tenure in tenures.iter_mut().filter(|tenure| tenure.id == id && tenure.until.is_none()) {
            tenure.until = Some(at);
        }
    }
}

/// `id` holds `key` from `at` on, unless it does already.
fn hold<K: Eq + Hash + Copy>(map: &mut HashMap<K, Vec<Tenure>>, keys: &mut Vec<K>, key: K, id: &str, at: Timestamp) {
    let tenures = map.entry(key).or_default();
    if tenures.iter().any(|tenure| tenure.id == id && tenure.until.is_none()) {
        return;
    }
    if tenures.len() == MAX_TENURES {
        tenures.remove(0);
    }
    tenures.push(Tenure { id: id.to_owned(), from: at, until: None });
    remember(keys, key);
}

fn remember<K: PartialEq>(keys: &mut Vec<K>, key: K) {
    if !keys.contains(&key) && keys.len() < MAX_KEYS {
        keys.push(key);
    }
}

/// The one holder at a moment. Where nobody held it, the one who was introduced at most `late` after.
fn sole(tenures: &[Tenure], at: Timestamp, late: Duration) -> Option<&str> {
    let held = |tenure: &&Tenure| tenure.until.is_none_or(|until| at <= until);
    let mut holders = tenures.iter().filter(held).filter(|tenure| tenure.from <= at);
    if let Some(holder) = holders.next() {
        return holders.next().is_none().then_some(&holder.id);
    }
    let mut after = tenures.iter().filter(held).filter(|tenure| tenure.from.since(at) <= late);
    let holder = after.next()?;
    after.next().is_none().then_some(&holder.id)
}
