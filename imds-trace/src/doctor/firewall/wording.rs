//! What does `nft -a list` say that its JSON does not: rules' wording, chains' cards, tables that sleep? Pure.

use std::collections::{HashMap, HashSet};

/// Family, table, and name of a set or handle of a rule.
pub type Key = (String, String, String);

/// Each line with the family and the name of the table that it stands in.
fn lines(text: &str) -> impl Iterator<Item = ((&str, &str), &str)> {
    let mut table = ("", "");
    text.lines().map(move |line| {
        if let Some(names) = line.strip_prefix("table ") {
            let mut words = names.split_whitespace();
            table = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        }
        (table, line)
    })
}

/// Each rule as it is written, by family, table and handle.
pub fn worded(text: &str) -> HashMap<Key, String> {
    let rule = |((family, table), line): ((&str, &str), &str)| {
        let (rule, handle) = line.rsplit_once(" # handle ").filter(|(rule, _)| !rule.ends_with('{'))?;
        Some(((family.to_owned(), table.to_owned(), handle.trim().to_owned()), rule.trim().to_owned()))
    };
    lines(text).filter_map(rule).collect()
}

/// The cards of cards' own chains: `type filter hook ingress device "ens5" priority filter; policy accept;`, or `devices = { ens5, ens6 }`.
pub fn on_devices(text: &str) -> HashMap<Key, Vec<String>> {
    let mut found = HashMap::new();
    let mut chain = "";
    for ((family, table), line) in lines(text) {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("chain") => chain = words.next().unwrap_or_default(),
            Some("type") if line.contains(" hook ") => {
                let Some((_, names)) = line.split_once(" device") else { continue };
                let names = names.trim_start_matches('s').split(" priority ").next().unwrap_or_default();
                let bare = |name: &str| name.trim_matches(|c: char| " ={}\"".contains(c)).to_owned();
                let names: Vec<String> = names.split(',').map(bare).filter(|name| !name.is_empty()).collect();
                found.insert((family.to_owned(), table.to_owned(), chain.to_owned()), names);
            }
            _ => {}
        }
    }
    found
}

/// Families and names of the tables whose chains are not asked: `flags dormant`, alone or among others. nft 1.0 does
/// not say so in JSON.
pub fn dormant(text: &str) -> HashSet<(String, String)> {
    let sleeps = |((family, table), line): ((&str, &str), &str)| {
        // Those of a set stand deeper.
        let flags = line.strip_prefix("\tflags ")?;
        let sleeps = flags.split([' ', ',', ';']).any(|word| word == "dormant");
        sleeps.then(|| (family.to_owned(), table.to_owned()))
    };
    lines(text).filter_map(sleeps).collect()
}
