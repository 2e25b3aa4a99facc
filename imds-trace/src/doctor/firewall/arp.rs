//! Which rules may keep a namespace and its neighbours from finding each other? Those of the family `arp`, arptables' among them. Pure.

use std::net::IpAddr;

use super::fate::{Client, Heading};
use super::mark::Bits;
use super::rules::{Chain, Hook, Packet, Side, Verdict};
use super::walk::{Hit, walk};

/// What may happen to ARP on a client's way: on its side, and on the uplink's, where `router` is asked for. Nothing of it is certain: what a
/// kernel knows of a neighbour it asks seldom, or never where somebody made the entry.
pub fn hits<'a>(chains: &'a [Chain], client: &Client, router: Option<IpAddr>) -> Vec<(Heading, Hit<'a>)> {
    let is_v4 = client.endpoint.is_some_and(|endpoint| endpoint.is_ipv4());
    if !is_v4 || !chains.iter().any(|chain| chain.family == "arp") {
        return Vec::new();
    }
    let mut found: Vec<(Heading, Hit<'a>)> = Vec::new();
    let outside = client.uplink.iter().map(|uplink| (uplink, router, Heading::Answer, Heading::Request));
    let inside = client.by.iter().map(|by| (by, client.address, Heading::Request, Heading::Answer));
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
                if (hit.ends() || asks) && !found.iter().any(same) {
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
        arp: true,
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
    use super::super::nft;
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
}
