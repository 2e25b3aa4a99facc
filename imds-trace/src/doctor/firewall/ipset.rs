//! Is a packet in a set of `ipset`? The sets as `ipset save` shows them. Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::rules::{Alternatives, Chain, End, What, range};

/// Entries that are kept of a set; of one with more nothing is decided.
const MAX_ENTRIES: usize = 65_536;

/// A part of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Addresses(IpAddr, IpAddr),
    Ports(u16, u16),
    /// Another protocol's port.
    Never,
}

/// A set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    entries: Vec<Vec<Part>>,
    /// Something of it was not understood, or there is too much of it.
    partial: bool,
}

impl Set {
    /// Its entries, asked about these ends.
    fn conditions(&self, ends: &[End]) -> Vec<Vec<What>> {
        let mut entries: Vec<Vec<What>> = Vec::new();
        for parts in &self.entries {
            let all = parts.iter().zip(ends).map(|(part, end)| part.condition(*end));
            entries.push(if parts.len() == ends.len() { all.collect() } else { vec![What::Undecided] });
        }
        if self.partial {
            entries.push(vec![What::Undecided]);
        }
        entries
    }
}

impl Part {
    fn condition(&self, end: End) -> What {
        match (self, end) {
            (Self::Addresses(first, last), End::Source) => What::Source(vec![(*first, *last)]),
            (Self::Addresses(first, last), End::Destination) => What::Destination(vec![(*first, *last)]),
            (Self::Ports(first, last), End::Source) => What::SourcePort(vec![(*first, *last)]),
            (Self::Ports(first, last), End::Destination) => What::DestinationPort(vec![(*first, *last)]),
            (Self::Never, _) => What::Protocol(Vec::new()),
        }
    }
}

/// The sets of `ipset save`.
pub fn read(text: &str) -> HashMap<String, Set> {
    let mut sets: HashMap<String, (bool, Set)> = HashMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("create"), Some(name), Some(kind)) => {
                // What else there is (lists of sets, MACs, marks, interfaces) is not looked into.
                let parts = kind.split_once(':').map_or("", |(_, parts)| parts);
                let known = parts.split(',').all(|part| matches!(part, "ip" | "net" | "port"));
                sets.insert(name.to_owned(), (known, Set { entries: Vec::new(), partial: !known }));
            }
            (Some("add"), Some(name), Some(entry)) => {
                let Some((true, set)) = sets.get_mut(name) else { continue };
                if words.any(|word| word == "nomatch") {
                    // The narrowest entry counts, and that is not looked for here.
                    set.partial = true;
                    set.entries.clear();
                    continue;
                }
                let parts = entry.split(',').map(part).collect::<Option<Vec<_>>>();
                match parts.filter(|_| set.entries.len() < MAX_ENTRIES) {
                    Some(parts) => set.entries.push(parts),
                    None => set.partial = true,
                }
            }
            _ => {}
        }
    }
    sets.into_iter().map(|(name, (_, set))| (name, set)).collect()
}

/// `10.0.0.1`, `10.0.0.0/8`, `10.0.0.1-10.0.0.9`, `tcp:80`, `80`, `80-90`.
fn part(text: &str) -> Option<Part> {
    let ports = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(Part::Ports(first.parse().ok()?, last.parse().ok()?))
    };
    if let Some((first, last)) = range(text) {
        return Some(Part::Addresses(first, last));
    }
    match text.split_once(':') {
        Some(("tcp", text)) => ports(text),
        Some(("udp" | "sctp" | "udplite" | "icmp" | "icmpv6", _)) => Some(Part::Never),
        Some(_) => None,
        None => match text.split_once('-') {
            Some((first, last)) if first.contains('.') => {
                Some(Part::Addresses(first.parse().ok()?, last.parse().ok()?))
            }
            _ => ports(text),
        },
    }
}

/// Does a rule ask for a set?
pub fn wanted(chains: &[Chain]) -> bool {
    conditions(chains).any(|what| matches!(what, What::InSet(..)))
}

/// Gives the rules their sets.
pub fn resolve(chains: &mut [Chain], sets: &HashMap<String, Set>) {
    // Many rules ask for the same.
    let mut made: BTreeMap<(String, Vec<End>), Alternatives> = BTreeMap::new();
    for rule in chains.iter_mut().flat_map(|chain| &mut chain.rules) {
        for condition in &mut rule.conditions {
            if let What::InSet(name, ends) = &condition.what
                && let Some(set) = sets.get(name)
            {
                let entries =
                    made.entry((name.clone(), ends.clone())).or_insert_with(|| Arc::new(set.conditions(ends)));
                condition.what = What::AnyOf(Arc::clone(entries));
            }
        }
    }
}

fn conditions(chains: &[Chain]) -> impl Iterator<Item = &What> {
    let rules = chains.iter().flat_map(|chain| &chain.rules);
    rules.flat_map(|rule| rule.conditions.iter().map(|condition| &condition.what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_asked_by_their_parts() {
        let sets = read(
            "create KUBE-DST hash:net family inet\nadd KUBE-DST 169.254.0.0/16\nadd KUBE-DST 10.0.0.1\n\
             create P hash:ip,port family inet\nadd P 169.254.169.254,tcp:80\nadd P 169.254.169.254,udp:80\n\
             create L list:set size 8\nadd L KUBE-DST\ncreate N hash:net\nadd N 10.0.0.0/8 nomatch\n",
        );
        let entries = |name: &str, ends: &[End]| sets[name].conditions(ends);
        let range = |text: &str| range(text).expect("a range");
        assert_eq!(
            entries("KUBE-DST", &[End::Destination]),
            [vec![What::Destination(vec![range("169.254.0.0/16")])], vec![What::Destination(vec![range("10.0.0.1")])]]
        );
        let port = vec![What::Destination(vec![range("169.254.169.254")]), What::DestinationPort(vec![(80, 80)])];
        assert_eq!(entries("P", &[End::Destination, End::Destination])[0], port);
        assert_eq!(entries("P", &[End::Destination, End::Destination])[1][1], What::Protocol(Vec::new()));
        assert_eq!(entries("L", &[End::Source]), [vec![What::Undecided]], "a list of sets");
        assert_eq!(entries("N", &[End::Source]), [vec![What::Undecided]], "an exception");
    }
}
