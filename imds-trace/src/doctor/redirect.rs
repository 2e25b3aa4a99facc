//! Where does a rule that changes the destination send requests: to somebody who listens, to nobody, to where the kernel does not go?

use std::net::{IpAddr, Ipv4Addr};

use super::firewall::fate::{Client, stops_redirected};
use super::inside::View;
use super::keeper;
use super::listeners::Listener;
use super::sight::Sight;
use crate::interfaces::snapshot::Snapshot;
use diagnosis::printable::shell_word;
use diagnosis::way::network::{RouteKind, TableRoute, in_prefix};

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
    if address.is_loopback() || network.holder(address).is_some() {
        let end = listened(view, address, port, "this host");
        // INPUT is asked behind the change.
        let stopped = stops_redirected(&view.firewall.chains, client, (address, port), None);
        return if stopped && matches!(end, End::Taken(_)) { End::Unknown } else { end };
    }
    if let Some(inside) = sight
        .inside
        .iter()
        .find(|inside| is_host && inside.network().is_some_and(|network| network.holder(address).is_some()))
        && let Ok(view) = &inside.view
    {
        let end = listened(view, address, port, &inside.name());
        let reached = leading(network, address);
        let stopped = reached.is_none_or(|by| {
            // Within one network the answer passes the bridge, and is changed back only if the bridge asks the rules.
            Some(by) == client.by.as_deref() && !asks_rules(address)
                // Networks are kept apart in FORWARD.
                || stops_redirected(&sight.host.firewall.chains, client, (address, port), Some(by))
        });
        return if stopped && matches!(end, End::Taken(_)) { End::Unknown } else { end };
    }
    if is_no_hosts(address) {
        return End::Nobody(
            "which is no host's address: it is set aside for documentation or not used at all".into(),
            None,
        );
    }
    on_link(sight, network, is_host, address)
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

/// The narrowest route to an address.
fn narrowest(network: &Snapshot, address: IpAddr) -> Option<&TableRoute> {
    let routes = network.routing.routes.iter().filter(|route| route.covers(address));
    routes.reduce(|best, route| if route.to.1 > best.to.1 { route } else { best })
}

/// The interface by which an address is reached.
fn leading(network: &Snapshot, address: IpAddr) -> Option<&str> {
    narrowest(network, address)?.by.first().map(|index| network.name(*index))
}

/// What is left: other hosts.
fn on_link(sight: &Sight, network: &Snapshot, is_host: bool, address: IpAddr) -> End {
    match narrowest(network, address) {
        None if address.is_ipv4() && !network.routing.routes.is_empty() => {
            End::Nobody("to which there is no route".to_owned(), None)
        }
        Some(route) if route.kind == RouteKind::Nowhere => {
            End::Nobody("to which a route leads nowhere".to_owned(), None)
        }
        // On an engine's network all addresses are known.
        Some(route) if is_host && route.kind == RouteKind::Unicast && !route.routed_on => {
            let bridge = route.by.first().and_then(|index| sight.bridge(network.name(*index)));
            let listed = bridge.filter(|bridge| {
                bridge.network.is_some() && bridge.subnets.iter().any(|subnet| in_prefix(address, *subnet))
            });
            match listed {
                Some(bridge) if sight.inside.iter().all(|inside| inside.view.is_ok()) => {
                    End::Nobody(format!("an address on {}, which no container there has", bridge.name), None)
                }
                _ => End::Elsewhere("elsewhere".into()),
            }
        }
        Some(_) => End::Elsewhere("beyond this host".into()),
        None => End::Elsewhere("elsewhere".into()),
    }
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
