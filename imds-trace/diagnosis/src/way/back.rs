//! By which interface would the kernel send back what came from an address? The question of reverse-path filtering. Pure.
//!
//! `__fib_validate_source` (`net/ipv4/fib_frontend.c`) looks up a route to the packet's source, from its destination: as if it came in by
//! the interface that the packet leaves by (`flowi4_iif = oif`), or as if this host sent it (`lo`) where the packet is for this host
//! itself; with the mark 0 unless `src_valid_mark` is set.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::network::{DEFAULT_TABLES, PolicyRule, RouteKind, Routing, in_prefix};
use crate::net::Ifindex;

/// Where the way back leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Back {
    /// Out by one of these.
    By(BTreeSet<Ifindex>),
    /// Nowhere, or to this host itself.
    Nowhere,
    /// A rule or route decides of which not enough is known.
    Unknown,
}

/// The way back to `to` from `from`, for a packet without a mark that goes on by `oif`; `lo` if it is for this host.
pub fn back(routing: &Routing, to: IpAddr, from: IpAddr, oif: &str) -> Back {
    let default = DEFAULT_TABLES.map(|table| PolicyRule { table: Some(table), ..PolicyRule::default() });
    let mut rules: Vec<&PolicyRule> = routing.rules.iter().collect();
    if rules.is_empty() {
        rules.extend(&default);
    }
    // Rules of the same priority are asked in the order in which they are told.
    rules.sort_by_key(|rule| rule.priority);
    for rule in rules {
        match holds(rule, to, from, oif) {
            Some(false) => continue,
            Some(true) => {}
            None => return Back::Unknown,
        }
        let Some(table) = rule.table else {
            // VRFs are asked only for what came in by one.
            if rule.vrf {
                continue;
            }
            return Back::Nowhere;
        };
        let routes = routing.routes.iter().filter(|route| route.table == table && route.covers(to));
        // The first of those that are equally narrow has the lowest metric.
        let narrowest = routes.reduce(|best, route| if route.to.1 > best.to.1 { route } else { best });
        let Some(best) = narrowest else { continue };
        if rule.suppressed.is_some_and(|length| u32::from(best.to.1) <= length) {
            continue;
        }
        return match best.kind {
            RouteKind::Unicast if !best.by.is_empty() => Back::By(best.by.iter().copied().collect()),
            RouteKind::Unicast => Back::Unknown,
            RouteKind::Local | RouteKind::Nowhere => Back::Nowhere,
            RouteKind::Throw => continue,
        };
    }
    Back::Nowhere
}

fn holds(rule: &PolicyRule, to: IpAddr, from: IpAddr, oif: &str) -> Option<bool> {
    let prefix = |prefix: Option<(IpAddr, u8)>, address| prefix.is_none_or(|prefix| in_prefix(address, prefix));
    let mark = rule.mark.is_none_or(|(value, mask)| value & mask == 0);
    let all =
        prefix(rule.from, from) && prefix(rule.to, to) && mark && rule.iif.as_ref().is_none_or(|name| name == oif);
    match (all, rule.other) {
        (true, true) => None,
        // What else it asks makes no difference to a rule that does not hold.
        (false, true) if rule.inverted => None,
        (all, _) => Some(all != rule.inverted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::way::network::TableRoute;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn route(table: u32, to: &str, length: u8, by: u32) -> TableRoute {
        let to = (address(to), length);
        TableRoute { table, to, kind: RouteKind::Unicast, by: vec![Ifindex(by)], routed_on: false }
    }

    fn rule(priority: u32, table: u32) -> PolicyRule {
        PolicyRule { priority, table: Some(table), ..PolicyRule::default() }
    }

    fn leads(rules: &[PolicyRule], from: &str) -> Option<u32> {
        let routes = vec![route(254, "0.0.0.0", 0, 2), route(254, "0.0.0.0", 0, 9), route(7, "0.0.0.0", 0, 3)];
        let mut rules = rules.to_vec();
        rules.extend([rule(32767, 253), rule(0, 255), rule(32766, 254)]);
        match back(&Routing { routes, rules }, address("169.254.169.254"), address(from), "br-two") {
            Back::By(by) => by.first().map(|index| index.0),
            Back::Nowhere => Some(0),
            Back::Unknown => None,
        }
    }

    #[test]
    fn rules_for_the_source_and_for_the_clients_interface_make_the_way_back() {
        let from = PolicyRule { from: Some((address("172.30.0.0"), 24)), ..rule(100, 7) };
        assert_eq!(leads(std::slice::from_ref(&from), "172.30.0.2"), Some(3));
        assert_eq!(leads(&[from], "172.17.0.2"), Some(2), "the first of two routes has the lower metric");
        let by = |name: &str| PolicyRule { iif: Some(name.into()), ..rule(100, 7) };
        assert_eq!(leads(&[by("br-two")], "172.30.0.2"), Some(3), "the answer goes on by it");
        assert_eq!(leads(&[by("br-one")], "172.30.0.2"), Some(2));
        assert_eq!(leads(&[PolicyRule { mark: Some((1, 0xff)), ..rule(100, 7) }], "172.30.0.2"), Some(2));
    }

    #[test]
    fn a_vpn_that_takes_all_that_is_not_its_own_takes_the_way_back_too() {
        let own = PolicyRule { mark: Some((51820, u32::MAX)), inverted: true, ..rule(32764, 7) };
        let near = PolicyRule { suppressed: Some(0), ..rule(32763, 254) };
        assert_eq!(leads(&[own, near], "10.77.0.10"), Some(3));
    }

    #[test]
    fn a_table_that_throws_leaves_it_to_the_next_rule() {
        let (to, from) = (address("169.254.169.254"), address("172.17.0.2"));
        let narrow = |kind| TableRoute { kind, ..route(52, "169.254.0.0", 16, 0) };
        let by = |kind| {
            let routing = Routing {
                routes: vec![route(254, "0.0.0.0", 0, 2), narrow(kind)],
                rules: vec![rule(32766, 254), rule(5270, 52)],
            };
            back(&routing, to, from, "docker0")
        };
        assert_eq!(by(RouteKind::Throw), Back::By([Ifindex(2)].into()));
        assert_eq!(by(RouteKind::Nowhere), Back::Nowhere);
    }

    #[test]
    fn what_hangs_on_something_else_is_not_known() {
        assert_eq!(leads(&[PolicyRule { other: true, ..rule(100, 7) }], "10.77.0.10"), None);
        let others = PolicyRule { other: true, from: Some((address("10.0.0.9"), 32)), ..rule(100, 7) };
        assert_eq!(leads(&[others], "10.77.0.10"), Some(2));
        assert_eq!(leads(&[PolicyRule::default()], "10.77.0.10"), Some(0), "prohibit");
    }
}
