//! On which interfaces do we listen, and why? Pure: interfaces, routes and what was asked for in, a list out.

use std::collections::{BTreeMap, BTreeSet};

use crate::interfaces::Link;
use crate::net::Ifindex;

/// Docker's first bridge.
const DEFAULT_BRIDGE: &str = "docker0";
/// User-defined bridges: `br-` and the beginning of the network's id.
const USER_BRIDGE: &str = "br-";

/// An interface to listen on, in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its index.
    pub index: Ifindex,
    /// Its name.
    pub name: String,
    /// Why.
    pub why: Why,
}

/// Why we listen on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// `--interface` names it.
    Asked,
    /// The route to an endpoint goes out by it.
    Route,
    /// Containers hang on it.
    Bridge,
}

/// What of the interfaces that are there is wanted. With `asked`, only what it names (`*` stands for any characters).
pub fn plan(links: &BTreeMap<Ifindex, Link>, routes: &BTreeSet<Ifindex>, asked: &[String]) -> Vec<Wanted> {
    let with_veth_ports: BTreeSet<Ifindex> =
        links.values().filter(|link| link.veth).filter_map(|link| link.master).collect();
    links
        .values()
        .filter_map(|link| {
            let why = if !asked.is_empty() {
                asked.iter().any(|pattern| wildmatch::WildMatch::new(pattern).matches(&link.name)).then_some(Why::Asked)
            } else if routes.contains(&link.index) {
                Some(Why::Route)
            } else {
                let is_container_bridge = link.name == DEFAULT_BRIDGE
                    || link.name.starts_with(USER_BRIDGE)
                    || with_veth_ports.contains(&link.index);
                (link.bridge && is_container_bridge).then_some(Why::Bridge)
            };
            why.map(|why| Wanted { index: link.index, name: link.name.clone(), why })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, bridge: bool, veth: bool, master: Option<u32>) -> (Ifindex, Link) {
        let index = Ifindex(index);
        (index, Link { index, name: name.into(), bridge, veth, master: master.map(Ifindex) })
    }

    fn host() -> BTreeMap<Ifindex, Link> {
        BTreeMap::from([
            link(1, "lo", false, false, None),
            link(2, "ens5", false, false, None),
            link(3, "ens6", false, false, None),
            link(4, "docker0", true, false, None),
            link(5, "br-0123456789ab", true, false, None),
            link(6, "gitlab", true, false, None),
            link(7, "veth1", false, true, Some(6)),
            link(8, "virbr0", true, false, None),
            link(9, "br-not-a-bridge", false, false, None),
        ])
    }

    fn names(asked: &[&str]) -> Vec<String> {
        let asked: Vec<String> = asked.iter().map(|name| (*name).to_owned()).collect();
        plan(&host(), &BTreeSet::from([Ifindex(2)]), &asked).into_iter().map(|wanted| wanted.name).collect()
    }

    #[test]
    fn by_default_the_route_and_every_container_bridge() {
        assert_eq!(names(&[]), ["ens5", "docker0", "br-0123456789ab", "gitlab"]);
    }

    #[test]
    fn what_is_asked_for_and_nothing_else() {
        assert_eq!(names(&["ens6"]), ["ens6"]);
        assert_eq!(names(&["br-*", "lo"]), ["lo", "br-0123456789ab", "br-not-a-bridge"]);
        assert!(names(&["nosuch"]).is_empty());
    }
}
