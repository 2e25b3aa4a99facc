//! What of the files before does a new file need, to be read on its own? The facts that still hold, as they were written.
//!
//! Containers that are there, where the uplinks are, the last reading of each counter of the driver, and the processes and sockets of
//! the last minutes. Not the kernel's count of refused headers: it is read at the beginning and the end of a run, and half of such a
//! pair, or one of another file, would be a false sum. Bounded in bytes, the newest first: a snapshot must not fill the file.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use crate::identity::fact::{Fact, Said};
use crate::net::Timestamp;

/// Sockets and the departed matter so long: no journey and no first sequence number is believed longer (`journey::connections`).
const MATTERS: Duration = Duration::from_secs(130);
/// What became of an attempt to connect is known by then (`identity::sockets`); a later reader would take it for a new failure.
const PENDING: Duration = Duration::from_secs(1);
/// Among so many facts before the one about a process is the one about its connect (`identity::sockets`).
const NEAR: usize = 64;
/// Facts kept of one container: what the engine adds step by step, and the networks that it joins.
const MAX_OF_ONE: usize = 16;

#[derive(Debug)]
struct Recent {
    at: Timestamp,
    /// Until when it is worth repeating.
    until: Timestamp,
    pid: Option<u32>,
    text: String,
}

/// Texts by key, oldest out when there are too many bytes.
#[derive(Debug)]
struct Bounded<K> {
    texts: HashMap<K, (u64, Vec<String>)>,
    order: BTreeMap<u64, K>,
    next: u64,
    bytes: usize,
    most: usize,
}

impl<K: Clone + Eq + std::hash::Hash> Bounded<K> {
    fn new(most: usize) -> Self {
        Self { texts: HashMap::new(), order: BTreeMap::new(), next: 0, bytes: 0, most }
    }

    fn put(&mut self, key: &K, texts: Vec<String>) {
        self.take(key);
        self.bytes += size(&texts);
        self.texts.insert(key.clone(), (self.next, texts));
        self.order.insert(self.next, key.clone());
        self.next += 1;
        while self.bytes > self.most {
            let Some((_, oldest)) = self.order.first_key_value() else { break };
            let oldest = oldest.clone();
            self.take(&oldest);
        }
    }

    fn take(&mut self, key: &K) -> Vec<String> {
        let Some((number, texts)) = self.texts.remove(key) else { return Vec::new() };
        self.order.remove(&number);
        self.bytes -= size(&texts);
        texts
    }

    fn iter(&self) -> impl Iterator<Item = (&K, &String)> {
        let texts = |key| self.texts.get(key).into_iter().flat_map(|(_, texts)| texts);
        self.order.values().flat_map(move |key| texts(key).map(move |text| (key, text)))
    }
}

fn size(texts: &[String]) -> usize {
    texts.iter().map(String::len).sum()
}

/// The facts that still hold.
#[derive(Debug)]
pub struct Carry {
    /// Of each kind, or each interface, only the last.
    single: BTreeMap<String, String>,
    containers: Bounded<String>,
    /// By process id: the connect that /proc was asked for, and what it said.
    processes: Bounded<u32>,
    recent: VecDeque<Recent>,
    recent_bytes: usize,
    most: usize,
}

impl Carry {
    /// Keeps about so many bytes at most.
    pub fn new(most: usize) -> Self {
        Self {
            single: BTreeMap::new(),
            containers: Bounded::new(most / 2),
            processes: Bounded::new(most / 8),
            recent: VecDeque::new(),
            recent_bytes: 0,
            most: most / 4,
        }
    }

    /// Takes note of a fact that was written as `text`.
    pub fn note(&mut self, fact: &Fact, text: &str) {
        let text = text.to_owned();
        match &fact.said {
            Said::Uplinks { .. } => drop(self.single.insert("uplinks".into(), text)),
            Said::Forwarding(_) => drop(self.single.insert("forwarding".into(), text)),
            Said::LinkLocalExceeded { interface, .. } => {
                drop(self.single.insert(format!("exceeded {interface}"), text))
            }
            Said::InHdrErrors { .. } => {}
            Said::Container(detail) => {
                let mut texts = self.containers.take(&detail.id);
                // The first introduction stays: with it begins the time for which the container held its addresses.
                if texts.len() == MAX_OF_ONE {
                    texts.remove(1);
                }
                texts.push(text);
                self.containers.put(&detail.id, texts);
            }
            Said::ContainerGone { id, .. } => {
                for text in self.containers.take(id).into_iter().chain([text]) {
                    self.remember(fact.at, MATTERS, None, text);
                }
            }
            Said::Process(detail) => {
                let is_its = |recent: &&Recent| recent.pid == Some(detail.pid);
                let connect = self.recent.iter().rev().take(NEAR).find(is_its).map(|recent| recent.text.clone());
                if let Some(connect) = connect {
                    self.processes.put(&detail.pid, vec![connect, text.clone()]);
                }
                self.remember(fact.at, MATTERS, None, text);
            }
            Said::Attempting(_) => self.remember(fact.at, PENDING, None, text),
            Said::Connecting(task) => self.remember(fact.at, MATTERS, Some(task.pid), text),
            Said::Connected(_) | Said::Sending(_) | Said::Counted(_) => self.remember(fact.at, MATTERS, None, text),
        }
        self.shrink(fact.at);
    }

    /// What is to be repeated, in an order in which it can be taken in again.
    pub fn repeat(&mut self, now: Timestamp) -> Vec<&str> {
        self.shrink(now);
        let mut texts: Vec<&str> = self.single.values().map(String::as_str).collect();
        texts.extend(self.containers.iter().map(|(_, text)| text.as_str()));
        texts.extend(self.processes.iter().map(|(_, text)| text.as_str()));
        texts.extend(self.recent.iter().filter(|recent| recent.until >= now).map(|recent| recent.text.as_str()));
        texts
    }

    fn remember(&mut self, at: Timestamp, matters: Duration, pid: Option<u32>, text: String) {
        self.recent_bytes += text.len();
        self.recent.push_back(Recent { at, until: at.after(matters), pid, text });
    }

    fn shrink(&mut self, now: Timestamp) {
        while let Some(oldest) = self.recent.front() {
            if self.recent_bytes <= self.most && now.since(oldest.at) <= MATTERS {
                break;
            }
            self.recent_bytes -= oldest.text.len();
            self.recent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::identity::fact::{ContainerDetail, ProcessDetail};

    fn container(seconds: u64, name: &str) -> Fact {
        let detail =
            ContainerDetail { id: name.into(), name: Some(name.into()), labels: Arc::default(), ..Default::default() };
        Fact { at: Timestamp(seconds * 1_000_000_000), said: Said::Container(detail) }
    }

    fn gone(seconds: u64, name: &str) -> Fact {
        Fact { at: Timestamp(seconds * 1_000_000_000), said: Said::ContainerGone { id: name.into(), user: None } }
    }

    fn repeated(carry: &mut Carry, seconds: u64) -> Vec<String> {
        carry.repeat(Timestamp(seconds * 1_000_000_000)).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn a_container_is_repeated_while_it_lives_and_a_little_longer() {
        let mut carry = Carry::new(10_000);
        carry.note(&container(1, "a"), "a is there");
        carry.note(&container(2, "b"), "b is there");
        carry.note(&gone(3, "a"), "a is gone");
        assert_eq!(repeated(&mut carry, 4), ["b is there", "a is there", "a is gone"]);
        assert_eq!(repeated(&mut carry, 1000), ["b is there"]);
    }

    #[test]
    fn what_is_repeated_is_bounded_and_the_newest_stays() {
        let mut carry = Carry::new(400);
        for number in 0..100 {
            carry.note(&container(number, &number.to_string()), &format!("{number:020}"));
        }
        let repeated = repeated(&mut carry, 101);
        assert_eq!((repeated.len(), repeated.last().map(String::as_str)), (10, Some("00000000000000000099")));
    }

    #[test]
    fn a_process_without_its_connect_says_nothing() {
        let mut carry = Carry::new(10_000);
        let detail = ProcessDetail { found: true, ancestors: Vec::new(), ..ProcessDetail::gone(7) };
        carry.note(&Fact { at: Timestamp(1), said: Said::Process(detail) }, "who 7 is");
        assert_eq!(repeated(&mut carry, 1000), Vec::<String>::new());
    }
}
