//! Who of those seen would break if the instance were set otherwise? [`Needs`] collects what each client was seen to need, from the last
//! words on exchanges; [`Needs::judge`] holds settings against it.
//!
//! Refuses to take silence for health: what was lost, not covered or not read makes it "cannot be told", never "works".
//!
//! Cannot know: what a client does that was not seen doing it, and what it does once it is refused.

mod client;
mod judge;
mod way;

use std::collections::{HashMap, HashSet};

use crate::event::{Attached, Event, Needed, Ready};
use crate::identity::{Attribution, Subject};
use crate::net::Timestamp;
use client::Client;

/// Clients told apart at most; of the rest nothing is concluded.
const MAX_CLIENTS: usize = 8_192;
/// What may be missing without anybody being missed: it tells why a packet was dropped, or more of who asked.
const SPARED: [&str; 9] = [
    "lockdown",
    "tcx",
    "skb:kfree_skb",
    "drop reasons",
    "function names",
    "socket counters",
    "cgroup connect",
    "cgroup paths",
    "capabilities",
];
/// Findings by which somebody on this host answers in the place of IMDS: how the instance is set does not matter to such a client.
const STOOD_IN: [&str; 2] = ["answered-locally", "redirected-away"];

/// Which exchanges are one client's: those of one program in one place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Id {
    subject: Subject,
    /// The container inside it.
    inner: Option<String>,
    /// Its executable, or its name where that is not known.
    program: Option<String>,
}

impl Id {
    fn of(who: &Attribution) -> Self {
        let process = who.process.as_ref();
        Self {
            subject: who.subject(),
            inner: who.container.as_ref().and_then(|container| container.inner.clone()),
            program: process.map(|process| process.exe.clone().unwrap_or_else(|| process.comm.clone())),
        }
    }
}

/// What each client was seen to need.
#[derive(Debug, Default)]
pub struct Needs {
    clients: Vec<Client>,
    index: HashMap<Id, usize>,
    /// Exchanges of those that found no room.
    over: u64,
    stood_in: HashSet<Subject>,
    /// The hop limit as it was read off the wire last, and when.
    observed: Option<(Timestamp, u8)>,
    unseen: u64,
    listened: Listened,
}

/// Where packets were listened for, and since when.
#[derive(Clone, Debug, Default)]
struct Listened {
    from: Option<Timestamp>,
    nowhere: bool,
    in_capture: bool,
    /// What is missing of what shows who asks at all.
    missing: Option<String>,
}

/// What is missing of what shows who asks at all, in a sentence.
pub fn unwatched(ready: &Ready) -> Option<String> {
    if ready.hooks.iter().any(|hook| matches!(hook, Attached::Capture { .. })) {
        return Some("a capture shows neither sockets nor drops".to_owned());
    }
    let told = ready.missing.iter().find(|missing| !SPARED.contains(&missing.hook.as_str()))?;
    Some(format!("{} is not watched", told.hook))
}

impl Needs {
    /// Takes in the last word on an exchange or a finding, and every other event.
    pub fn count(&mut self, event: &Event) {
        match event {
            Event::Exchange(event) => {
                if let Some(limit) = event.hop_limit.observed {
                    self.observed = self.observed.max(Some((event.exchange.opened, limit.0)));
                }
                if let Some(client) = self.of(&event.who, event.exchange.opened) {
                    client.note(event);
                }
            }
            Event::Finding(_, finding) if finding.count > 0 && STOOD_IN.contains(&finding.rule) => {
                if self.stood_in.len() < MAX_CLIENTS {
                    self.stood_in.insert(finding.who.subject());
                } else {
                    self.over += 1;
                }
            }
            Event::Unseen(_, unseen) => {
                // By which it asked for nothing, nothing was needed.
                if unseen.counted.is_some_and(|(_, acked)| acked == 0) {
                    return;
                }
                self.unseen += 1;
                if let Some(client) = self.of(&unseen.who, unseen.established) {
                    client.note_unseen(unseen.established);
                }
            }
            Event::Ready(at, ready) => {
                let hooks = || ready.hooks.iter();
                let captured = hooks().any(|hook| matches!(hook, Attached::Capture { .. }));
                let listened = &mut self.listened;
                listened.from = Some(listened.from.map_or(*at, |from| from.min(*at)));
                listened.in_capture |= captured;
                listened.missing = listened.missing.take().or_else(|| unwatched(ready));
                listened.nowhere |= !captured && !hooks().any(|hook| matches!(hook, Attached::Tc { .. }));
            }
            // What was lost is given to `judge`, whole.
            Event::Settled(_)
            | Event::Packet(_)
            | Event::Finding(..)
            | Event::Loss(..)
            | Event::Probed(..)
            | Event::End(..) => {}
        }
    }

    fn of(&mut self, who: &Attribution, at: Timestamp) -> Option<&mut Client> {
        let id = Id::of(who);
        let number = match self.index.get(&id) {
            Some(number) => *number,
            None if self.clients.len() >= MAX_CLIENTS => {
                self.over += 1;
                return None;
            }
            None => {
                self.index.insert(id, self.clients.len());
                self.clients.push(Client::new(who, at));
                self.clients.len() - 1
            }
        };
        let client = self.clients.get_mut(number)?;
        client.meet(who, at);
        Some(client)
    }
}

#[cfg(test)]
mod tests;
