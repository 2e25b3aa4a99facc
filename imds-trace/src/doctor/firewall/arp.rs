//! Which rules may keep a namespace and its neighbours from finding each other? Those of the family `arp`, arptables' among them, and
//! of IPv6 those for ICMPv6. Pure.

use std::net::IpAddr;

use super::fate::{Client, Heading};
use super::mark::Bits;
use super::rules::{Chain, Hook, Packet, Side, Verdict};
use super::walk::{Hit, walk};

/// What may happen on a client's way to ARP, or to neighbour discovery: on its side, and on the uplink's, where `router` is asked for.
/// Nothing of it is certain: what a kernel knows of a neighbour it asks seldom, or never where somebody made the entry.
pub fn hits<'a>(chains: &'a [Chain], client: &Client, router: Option<IpAddr>) -> Vec<(Heading, Hit<'a>)> {
    let Some(endpoint) = client.endpoint else { return Vec::new() };
    let v6 = endpoint.is_ipv6();
    if !v6 && !chains.iter().any(|chain| chain.family == "arp") {
        return Vec::new();
    }
    // Neighbour discovery comes from link-local addresses and goes to groups, too.
    let [router, address] = [router, client.address].map(|address| address.filter(|_| !v6));
    let packet = || Packet { v6, ..packet() };
    let mut found: Vec<(Heading, Hit<'a>)> = Vec::new();
    let outside = client.uplink.iter().map(|uplink| (uplink, router, Heading::Answer, Heading::Request));
    let inside = client.by.iter().map(|by| (by, address, Heading::Request, Heading::Answer));
    for (interface, neighbour, inward, outward) in inside.chain(outside) {
        let side = || Side::Is(interface.clone());
        let come = Packet { source: neighbour, from: side(), ..packet() };
        let go = Packet { destination: neighbour, to: side(), ..packet() };
        for (heading, hook, mut packet) in [(inward, Hook::Input, come), (outward, Hook::Output, go)] {
            for hit in walk(chains, hook, &mut packet) {
                let asks = hit.rule.is_some_and(|rule| matches!(rule.verdict, Verdict::Asks(_)));
                let same = |(_, known): &(Heading, Hit)| {
                    std::ptr::eq(known.chain, hit.chain)
                        && known.rule.map(std::ptr::from_ref) == hit.rule.map(std::ptr::from_ref)
                };
                // Types of ICMPv6 are not decided: a rule may be about others, and one before may let these through.
                let counts = if v6 { hit.ends() && hit.sure } else { hit.ends() || asks };
                if counts && !found.iter().any(same) {
                    found.push((heading, Hit { sure: false, named: false, ..hit }));
                }
            }
        }
    }
    found
}

fn packet() -> Packet {
    Packet {
        v6: false,
        finds: true,
        source: None,
        destination: None,
        source_ports: (0, u16::MAX),
        destination_ports: (0, u16::MAX),
        from: Side::Nothing,
        to: Side::Nothing,
        state: "untracked",
        maybe_untracked: false,
        before_tracking: false,
        ttl_changed: false,
        beside: Vec::new(),
        port: Side::Nothing,
        local: None,
        translated: None,
        leaves_as: None,
        masks: None,
        mark: Bits::default(),
        connmark: Bits::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{iptables, nft};
    use super::*;

    /// How many rules or policies may keep ARP from a container on `cni0`, given one chain at the hook `input`.
    fn found(policy: &str, expressions: &[&str]) -> usize {
        let rules: Vec<String> = expressions
            .iter()
            .map(|expressions| {
                format!(
                    r#"{{"rule": {{"family": "arp", "table": "my", "chain": "i", "handle": 2, "expr": [{expressions}]}}}}"#
                )
            })
            .collect();
        let chain = format!(
            r#"{{"chain": {{"family": "arp", "table": "my", "name": "i", "type": "filter", "hook": "input", "prio": 0, "policy": "{policy}"}}}}"#
        );
        let objects: Vec<String> = std::iter::once(chain).chain(rules).collect();
        let json = format!(r#"{{"nftables": [{}]}}"#, objects.join(", "));
        let chains = nft::read(&json, "").expect("JSON");
        let client = Client {
            address: Some(IpAddr::from([10, 42, 0, 10])),
            by: Some("cni0".into()),
            uplink: Some("ens5".into()),
            endpoint: Some(IpAddr::from([169, 254, 169, 254])),
            ..Client::default()
        };
        let hits = hits(&chains, &client, Some(IpAddr::from([10, 77, 0, 1])));
        assert!(hits.iter().all(|(_, hit)| !hit.sure), "{hits:?}");
        assert!(super::super::fate::fate(&chains, &client).hits.is_empty(), "requests themselves are not asked about");
        hits.len()
    }

    #[test]
    fn what_may_drop_arp_is_told_and_what_is_for_others_is_not() {
        let drop = r#"{"drop": null}"#;
        let by = |name: &str| {
            format!(r#"{{"match": {{"op": "==", "left": {{"meta": {{"key": "iifname"}}}}, "right": "{name}"}}}}"#)
        };
        let from = |prefix: &str, length: u8| {
            format!(
                r#"{{"match": {{"op": "==", "left": {{"payload": {{"protocol": "arp", "field": "saddr ip"}}}}, "right": {{"prefix": {{"addr": "{prefix}", "len": {length}}}}}}}}}"#
            )
        };
        let (cni0, own) = (by("cni0"), from("10.42.0.0", 24));
        assert_eq!(found("accept", &[&format!("{cni0}, {own}, {drop}")]), 1);
        assert_eq!(found("accept", &[&format!("{}, {drop}", by("ens5"))]), 1);
        assert_eq!(found("drop", &[]), 1);
        assert_eq!(found("drop", &[r#"{"accept": null}"#]), 0);
        assert_eq!(
            found("accept", &[&format!("{}, {drop}", by("ens9")), &format!("{}, {drop}", from("10.99.0.0", 16))]),
            0
        );
        assert_eq!(found("accept", &[]), 0);
    }

    #[test]
    fn a_policy_that_lets_no_neighbour_discovery_in_is_told() {
        let found = |policy: &str, rules: &str| {
            let text = format!("*filter\n:INPUT {policy} [0:0]\n{rules}\nCOMMIT\n");
            let chains = iptables::read(&text, "ip6tables");
            let client = Client {
                address: "fd00:d0c::2".parse().ok(),
                by: Some("cni0".into()),
                uplink: Some("ens5".into()),
                endpoint: "fd00:ec2::254".parse().ok(),
                ..Client::default()
            };
            hits(&chains, &client, None).len()
        };
        let own = "-A INPUT -i lo -j ACCEPT\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT";
        assert_eq!(found("DROP", own), 1);
        assert_eq!(found("ACCEPT", "-A INPUT -p ipv6-icmp -j DROP"), 1);
        assert_eq!(found("DROP", &format!("{own}\n-A INPUT -p ipv6-icmp -j ACCEPT")), 0);
        let some = "-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 135 -m hl --hl-eq 255 -j ACCEPT";
        assert_eq!(found("DROP", &format!("{own}\n{some}")), 0);
        assert_eq!(found("ACCEPT", "-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j DROP"), 0, "of pings");
        assert_eq!(found("ACCEPT", own), 0);
    }
}
