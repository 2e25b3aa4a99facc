//! Where does a rule that changes the destination send requests: to somebody who listens, to nobody, to where the kernel does not go?

use std::net::{IpAddr, Ipv4Addr};

use super::firewall::fate::{Client, fate, stops_redirected};
use super::inside::{Inside, View};
use super::keeper;
use super::listeners::Listener;
use super::setting::{by_filter, is_strict};
use super::sight::{Sight, refuses};
use crate::interfaces::snapshot::{self, Asked, Snapshot, Way};
use diagnosis::net::Ifindex;
use diagnosis::printable::shell_word;
use diagnosis::way::network::in_prefix;

/// IMDS's port, where a rule names none.
const PORT: u16 = 80;

/// What becomes of requests there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Somebody takes them, in place of IMDS: who.
    Taken(String),
    /// Somebody listens who may take none of them: who.
    Kept(String),
    /// Nobody does: why. And a command that mends it.
    Nobody(String, Option<String>),
    /// It is IMDS's own address.
    Imds,
    /// They leave for an address elsewhere.
    Elsewhere(String),
    /// That cannot be told.
    Unknown,
}

/// A rule's target: `10.0.0.5:8181`, `10.0.0.5`, `this host, port 8181`, `this host`.
fn target(text: &str) -> Option<(Option<IpAddr>, u16)> {
    if let Some(rest) = text.strip_prefix("this host") {
        let port = rest.strip_prefix(", port ").map_or(Some(PORT), |port| port.parse().ok())?;
        return Some((None, port));
    }
    if let Ok(address) = text.parse() {
        return Some((Some(address), PORT));
    }
    let (address, port) = text.rsplit_once(':')?;
    Some((Some(address.trim_matches(['[', ']']).parse().ok()?), port.parse().ok()?))
}

/// Where a client's requests end that a rule of a namespace sends to `to`. `read` gives a number of `/proc/sys/net/ipv4/conf`.
pub fn end(
    sight: &Sight,
    view: &View,
    is_host: bool,
    client: &Client,
    to: &str,
    read: &dyn Fn(&str) -> Option<String>,
) -> End {
    let Some((address, port)) = target(to) else { return End::Unknown };
    let Ok(network) = &view.network else { return End::Unknown };
    if address.is_some() && address == client.endpoint {
        return End::Imds;
    }
    // REDIRECT goes to the interface by which it came in, or to loopback for what is sent here.
    let address = address.or_else(|| match &client.by {
        None => Some(IpAddr::from([127, 0, 0, 1])),
        Some(by) => {
            let v6 = client.endpoint.is_some_and(|endpoint| endpoint.is_ipv6());
            let own =
                network.addresses.iter().filter(|(index, held, _)| network.name(*index) == by && held.is_ipv6() == v6);
            own.map(|(_, held, _)| *held).next()
        }
    });
    let Some(address) = address else { return End::Unknown };
    if address.is_loopback()
        && let (Some(by), IpAddr::V4(_)) = (&client.by, address)
    {
        // Either is enough (IN_DEV_NET_ROUTE_LOCALNET).
        let values = ["all", by].map(|name| read(&format!("{name}/route_localnet")));
        match values {
            [Some(all), Some(own)] if all == "0" && own == "0" => {
                let taken = matches!(listened(view, address, port, "this host"), End::Taken(_))
                    && !stops_redirected(&view.firewall.chains, client, (address, port), None);
                return kept_off_loopback(by, taken);
            }
            [Some(_), Some(_)] => {}
            _ => return End::Unknown,
        }
    }
    let here = || {
        let end = listened(view, address, port, "this host");
        // INPUT is asked behind the change.
        let stopped = stops_redirected(&view.firewall.chains, client, (address, port), None);
        if stopped && matches!(end, End::Taken(_)) { End::Unknown } else { end }
    };
    if address.is_loopback() {
        return here();
    }
    let way = onward(view, network, client, (address, port));
    let is_held = network.holder(address).is_some();
    let client_there = match &way {
        Some(Way::Out { interface, .. }) if is_host && !is_held => {
            holder(sight, network, address, *interface).map(|inside| (inside, *interface))
        }
        _ => None,
    };
    if let Some((inside, by)) = client_there {
        return at(sight, network, inside, client, (address, port), by);
    }
    match way {
        Some(Way::Local) => here(),
        // Without the kernel's word: addresses of its own are what it looks for first.
        Some(Way::Unknown(_)) | None if is_held => here(),
        _ if is_held => End::Unknown,
        _ if is_no_hosts(address) => {
            End::Nobody("which is no host's address: it is set aside for documentation or not used at all".into(), None)
        }
        Some(Way::Out { interface, gateway, .. }) if is_host => on_link(sight, network, address, (interface, gateway)),
        Some(Way::Out { gateway, .. }) => elsewhere(gateway),
        Some(Way::Nowhere { why, .. }) => nowhere(network, address, why),
        Some(Way::Unknown(_)) | None => End::Unknown,
    }
}

/// Where the kernel sends a client's request once its destination is this one; `None` if that cannot be asked.
fn onward(view: &View, network: &Snapshot, client: &Client, (to, port): (IpAddr, u16)) -> Option<Way> {
    let mark = match network.routing.rules.iter().any(|rule| rule.mark.is_some()) {
        true => Some(fate(&view.firewall.chains, client).marks[0]).filter(|mark| mark.is_known())?.known_part(),
        false => 0,
    };
    let (inward, own) = match (&client.by, client.address) {
        (Some(by), address) => {
            let index = network.links.values().find(|link| link.name == *by)?.index;
            (Some((address?, index)), None)
        }
        // The kernel looks again, under the address that it gave the request before.
        (None, Some(IpAddr::V4(own))) => (None, Some(own)),
        (None, _) => (None, None),
    };
    let asked = Asked { inward, own, mark, port, ..Asked::own(to) };
    let way = view.listeners.within(|| snapshot::ask(&[asked]).ok())?.pop()?;
    let strict = client.by.as_ref().is_some_and(|by| to.is_ipv4() && is_strict(by) && !refuses(&network.routing, to));
    Some(by_filter(way, strict))
}

/// What the kernel means where it has no way for them.
fn nowhere(network: &Snapshot, address: IpAddr, why: &str) -> End {
    match why {
        "no route" => End::Nobody("to which there is no route".to_owned(), None),
        // It says the same of a source that it takes from nobody by that interface.
        "reverse path" => End::Unknown,
        "blackhole" if address.is_ipv4() && !refuses(&network.routing, address) => End::Unknown,
        kind => End::Nobody(format!("to which a route or a rule of type {kind} leads nowhere"), None),
    }
}

/// Whose address it is, behind this interface of the host.
fn holder<'a>(sight: &'a Sight, network: &Snapshot, address: IpAddr, by: Ifindex) -> Option<&'a Inside> {
    let is_behind = |view: &View| {
        let ends = view.outward.values().filter_map(|end| network.links.get(end));
        ends.flat_map(|end| [Some(end.index), end.master]).flatten().any(|index| index == by)
    };
    let holds = |inside: &&Inside| {
        inside.network().is_some_and(|network| network.holder(address).is_some())
            && inside.view.as_ref().is_ok_and(is_behind)
    };
    sight.inside.iter().find(holds)
}

/// What becomes of them in a client's namespace.
fn at(
    sight: &Sight,
    network: &Snapshot,
    inside: &Inside,
    client: &Client,
    to: (IpAddr, u16),
    interface: Ifindex,
) -> End {
    let Ok(view) = &inside.view else { return End::Unknown };
    let end = listened(view, to.0, to.1, &inside.name());
    let by = network.name(interface);
    // Within one network the answer passes the bridge, and is changed back only if the bridge asks the rules.
    let stopped = Some(by) == client.by.as_deref() && !asks_rules(to.0)
        // Networks are kept apart in FORWARD.
        || stops_redirected(&sight.host.firewall.chains, client, to, Some(by));
    if stopped && matches!(end, End::Taken(_)) { End::Unknown } else { end }
}

/// What becomes of what comes in by an interface for loopback where its kernel drops that. `taken`: somebody would take it.
fn kept_off_loopback(by: &str, taken: bool) -> End {
    let why = format!("which is loopback: the kernel drops what comes in by {by} for it, because route_localnet is 0");
    if !taken {
        return End::Nobody(format!("{why}, and it is not known that anybody would take it there"), None);
    }
    let key = format!("net/ipv4/conf/{by}/route_localnet");
    let mend = format!(
        "sysctl -w {}=1  # lowers safety: what listens on 127.0.0.1 of this host can then be reached by {by}",
        shell_word(&key)
    );
    End::Nobody(why, Some(mend))
}

/// Do bridges ask the rules of iptables (`br_netfilter`)?
fn asks_rules(address: IpAddr) -> bool {
    let tool = if address.is_ipv6() { "ip6tables" } else { "iptables" };
    let said = std::fs::read_to_string(format!("/proc/sys/net/bridge/bridge-nf-call-{tool}"));
    said.is_ok_and(|said| said.trim() == "1")
}

fn listened(view: &View, address: IpAddr, port: u16, whose: &str) -> End {
    match view.listeners.all() {
        None => End::Unknown,
        Some(all) => taken(all, address, port, whose, &keeper::of),
    }
}

/// Who takes connections there of all that listen. `keeper`: the engine's process that only keeps a socket's port.
fn taken(
    all: &[Listener],
    address: IpAddr,
    port: u16,
    whose: &str,
    keeper: &dyn Fn(u64) -> Option<&'static str>,
) -> End {
    let there: Vec<&Listener> = all.iter().filter(|one| one.is_at(address, port)).collect();
    let keepers: Option<Vec<_>> = there.iter().map(|one| keeper(one.inode)).collect();
    match keepers.as_deref() {
        Some([]) => End::Nobody(
            format!("an address of {whose}, where nobody listens on port {port}: connections are refused"),
            None,
        ),
        Some([keeper, ..]) => End::Kept(format!(
            "{whose}, where {keeper} keeps port {port} for a container and may take no connection itself"
        )),
        None => End::Taken(format!("{whose}, where a process listens")),
    }
}

/// What is left: other hosts, behind this interface and router.
fn on_link(sight: &Sight, network: &Snapshot, address: IpAddr, (by, router): (Ifindex, Option<IpAddr>)) -> End {
    // On an engine's network all addresses are known.
    let bridge = sight.bridge(network.name(by)).filter(|bridge| {
        router.is_none() && bridge.network.is_some() && bridge.subnets.iter().any(|subnet| in_prefix(address, *subnet))
    });
    let is_somebodys = |inside: &Inside| inside.network().is_none_or(|network| network.holder(address).is_some());
    match bridge {
        Some(bridge) if !sight.inside.iter().any(is_somebodys) => {
            End::Nobody(format!("an address on {}, which no container there has", bridge.name), None)
        }
        _ => elsewhere(router),
    }
}

fn elsewhere(router: Option<IpAddr>) -> End {
    End::Elsewhere(if router.is_some() { "beyond this host" } else { "elsewhere" }.into())
}

/// Addresses that no host has: RFC 1122, RFC 5737, RFC 6890.
fn is_no_hosts(address: IpAddr) -> bool {
    let prefix = |a: u8, b: u8, c: u8, length| in_prefix(address, (IpAddr::from([a, b, c, 0]), length));
    match address {
        IpAddr::V4(v4) => {
            v4.is_documentation()
                || v4 == Ipv4Addr::BROADCAST
                || prefix(0, 0, 0, 8)
                || prefix(192, 0, 2, 24)
                || prefix(240, 0, 0, 4)
        }
        IpAddr::V6(v6) => v6.is_unspecified() || v6.segments()[..2] == [0x2001, 0x0db8],
    }
}

#[cfg(test)]
mod tests {
    use diagnosis::way::network::{PolicyRule, RouteKind, Routing, TableRoute};

    use super::*;

    #[test]
    fn targets_are_read_as_tools_write_them() {
        assert_eq!(target("10.0.0.5:8181"), Some((Some(IpAddr::from([10, 0, 0, 5])), 8181)));
        assert_eq!(target("10.0.0.5"), Some((Some(IpAddr::from([10, 0, 0, 5])), 80)));
        assert_eq!(target("[fd00::1]:8181").map(|(_, port)| port), Some(8181));
        assert_eq!(target("this host, port 9998"), Some((None, 9998)));
        assert_eq!(target("elsewhere"), None);
        assert_eq!(target("10.0.0.5-10.0.0.9:80"), None);
        for several in
            ["10.0.0.5:8181-8182", "10.0.0.5:of several", "[fd00::1]:of several", "this host, port of several"]
        {
            assert_eq!(target(several), None, "{several}");
        }
    }

    #[test]
    fn what_the_kernel_has_no_way_for_gets_nothing_where_a_route_or_rule_says_so() {
        let to = IpAddr::from([10, 99, 0, 1]);
        let network = |kind| {
            let route = TableRoute { table: 52, to: (to, 32), kind, by: Vec::new(), routed_on: false };
            Snapshot { routing: Routing { routes: vec![route], rules: Vec::new() }, ..Snapshot::default() }
        };
        let of = |kind, why| nowhere(&network(kind), to, why);
        assert!(matches!(of(RouteKind::Throw, "no route"), End::Nobody(why, None) if why.contains("no route")));
        assert!(matches!(of(RouteKind::Nowhere, "blackhole"), End::Nobody(why, None) if why.contains("blackhole")));
        assert!(matches!(of(RouteKind::Throw, "unreachable"), End::Nobody(..)));
        assert_eq!(
            of(RouteKind::Throw, "blackhole"),
            End::Unknown,
            "it says the same of a source that it takes from nobody"
        );
        assert_eq!(of(RouteKind::Nowhere, "reverse path"), End::Unknown);
        let mut refused = network(RouteKind::Throw);
        refused.routing.rules.push(PolicyRule { to: Some((to, 24)), ..PolicyRule::default() });
        assert!(matches!(nowhere(&refused, to, "blackhole"), End::Nobody(..)));
    }

    #[test]
    fn a_port_that_an_engine_keeps_may_be_served_by_nobody() {
        let address = IpAddr::from([10, 77, 0, 10]);
        let listener = |inode| Listener { address: IpAddr::from([0; 4]), port: 8181, inode };
        let of = |all: &[Listener]| taken(all, address, 8181, "this host", &|inode| (inode == 7).then_some("dockerd"));
        assert!(matches!(of(&[listener(7)]), End::Kept(who) if who.contains("dockerd keeps port 8181")));
        assert!(matches!(of(&[listener(7), listener(8)]), End::Taken(_)));
        assert!(matches!(of(&[]), End::Nobody(..)));
    }

    #[test]
    fn what_is_set_aside_is_nobodys() {
        let nobody = |text: &str| is_no_hosts(text.parse().expect("an address"));
        assert!(nobody("192.0.2.1") && nobody("203.0.113.9") && nobody("0.1.2.3") && nobody("2001:db8::1"));
        assert!(!nobody("192.0.3.1") && !nobody("10.0.0.1") && !nobody("fd00::1"));
    }

    #[test]
    fn loopback_is_opened_for_nobody_where_nobody_would_take_it() {
        let mend = |taken| match kept_off_loopback("docker0", taken) {
            End::Nobody(_, mend) => mend,
            other => panic!("{other:?}"),
        };
        assert_eq!(mend(false), None);
        assert!(mend(true).is_some_and(|mend| mend.starts_with("sysctl -w net/ipv4/conf/docker0/route_localnet=1 ")));
    }
}
