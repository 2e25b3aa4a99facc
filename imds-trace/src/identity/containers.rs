//! Which container was it at that moment? By id, namespace, cgroup and address, each with the time it held.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Duration;

use super::{Container, ContainerDetail};
use crate::net::{Netns, Timestamp};

/// Containers remembered at most, the departed included.
const MAX_CONTAINERS: usize = 8_192;
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

/// Everything known of containers.
#[derive(Debug, Default)]
pub struct Containers {
    known: HashMap<String, ContainerDetail>,
    order: VecDeque<String>,
    by_netns: HashMap<Netns, Vec<Tenure>>,
    by_address: HashMap<IpAddr, Vec<Tenure>>,
    by_cgroup: HashMap<u64, String>,
}

impl Containers {
    /// The engine speaks of a container: merges what is new. Gives how many old ones had to go.
    pub fn appeared(&mut self, at: Timestamp, detail: &ContainerDetail) -> u64 {
        let evicted = self.enter(&detail.id);
        if let Some(known) = self.known.get_mut(&detail.id) {
            known.name = detail.name.clone().or(known.name.take());
            known.image = detail.image.clone().or(known.image.take());
            if !detail.labels.is_empty() {
                known.labels = detail.labels.clone();
            }
        }
        if let Some(netns) = detail.netns {
            hold(&mut self.by_netns, netns, &detail.id, at);
        }
        for address in &detail.addresses {
            hold(&mut self.by_address, *address, &detail.id, at);
        }
        evicted
    }

    /// A process was met whose cgroup path names a container: its namespace and cgroup are that container's.
    pub fn met(&mut self, at: Timestamp, id: &str, netns: Option<Netns>, cgroup: u64) {
        self.enter(id);
        if let Some(netns) = netns {
            hold(&mut self.by_netns, netns, id, at);
        }
        if cgroup > ROOT_CGROUP {
            self.by_cgroup.insert(cgroup, id.to_owned());
        }
    }

    /// A container ended: its namespace and addresses are free for others.
    pub fn gone(&mut self, at: Timestamp, id: &str) {
        for tenures in self.by_netns.values_mut().chain(self.by_address.values_mut()) {
            for tenure in tenures.iter_mut().filter(|tenure| tenure.id == id && tenure.until.is_none()) {
                tenure.until = Some(at);
            }
        }
    }

    /// The container as reports name it; by its id alone if no engine introduced it.
    pub fn named(&self, id: &str) -> Container {
        match self.known.get(id) {
            Some(known) => Container {
                id: known.id.clone(),
                name: known.name.clone(),
                image: known.image.clone(),
                labels: known.labels.clone(),
            },
            None => Container { id: id.to_owned(), name: None, image: None, labels: Default::default() },
        }
    }

    /// Whose cgroup this is.
    pub fn in_cgroup(&self, cgroup: u64) -> Option<&str> {
        self.by_cgroup.get(&cgroup).map(String::as_str)
    }

    /// The one container in a namespace at a moment; `None` if there is none or several.
    pub fn in_netns(&self, netns: Netns, at: Timestamp) -> Option<Container> {
        sole(self.by_netns.get(&netns)?, at).map(|id| self.named(id))
    }

    /// The one container that had an address at a moment.
    pub fn at_address(&self, address: IpAddr, at: Timestamp) -> Option<Container> {
        sole(self.by_address.get(&address)?, at).map(|id| self.named(id))
    }

    fn enter(&mut self, id: &str) -> u64 {
        if !self.known.contains_key(id) {
            self.known.insert(id.to_owned(), ContainerDetail { id: id.to_owned(), ..ContainerDetail::default() });
            self.order.push_back(id.to_owned());
        }
        let mut evicted = 0;
        while self.order.len() > MAX_CONTAINERS {
            let Some(oldest) = self.order.pop_front() else { break };
            self.known.remove(&oldest);
            forget(&mut self.by_netns, &oldest);
            forget(&mut self.by_address, &oldest);
            self.by_cgroup.retain(|_, id| *id != oldest);
            evicted += 1;
        }
        evicted
    }
}

fn forget<K: Eq + Hash>(map: &mut HashMap<K, Vec<Tenure>>, id: &str) {
    map.retain(|_, tenures| {
        tenures.retain(|tenure| tenure.id != id);
        !tenures.is_empty()
    });
}

/// `id` holds `key` from `at` on, unless it does already.
fn hold<K: Eq + Hash>(map: &mut HashMap<K, Vec<Tenure>>, key: K, id: &str, at: Timestamp) {
    let tenures = map.entry(key).or_default();
    if !tenures.iter().any(|tenure| tenure.id == id && tenure.until.is_none()) {
        tenures.push(Tenure { id: id.to_owned(), from: at, until: None });
    }
}

/// The one holder at a moment. Where nobody held it yet, the one whom the engine introduced shortly after.
fn sole(tenures: &[Tenure], at: Timestamp) -> Option<&str> {
    let held = |tenure: &&Tenure| tenure.until.is_none_or(|until| at <= until);
    let mut holders = tenures.iter().filter(held).filter(|tenure| tenure.from <= at);
    if let Some(holder) = holders.next() {
        return holders.next().is_none().then_some(&holder.id);
    }
    let mut late = tenures.iter().filter(held).filter(|tenure| tenure.from.since(at) <= LATE);
    let holder = late.next()?;
    late.next().is_none().then_some(&holder.id)
}
