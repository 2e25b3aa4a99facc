//! Is what rules do to a packet known behind them, and is what they do not show taken for nothing?

use super::super::fate::stops_redirected;
use super::super::shortened;
use super::*;

#[test]
fn what_is_redirected_may_be_stopped_behind_it() {
    let (job, proxy) = (container("169.254.169.254"), (IpAddr::from([10, 77, 0, 10]), 8181));
    let input = |rules: &str| stops_redirected(&with(rules), &job, proxy, None);
    assert!(input("-A INPUT -p tcp -m tcp --dport 8181 -j DROP"));
    assert!(input("-A INPUT -i docker0 -j REJECT"));
    assert!(input("-A INPUT -m recent --name x --rcheck -j DROP"), "perhaps");
    assert!(!input("-A INPUT -p tcp -m tcp --dport 22 -j DROP"));
    assert!(!input("-A INPUT -i docker0 -j ACCEPT\n-A INPUT -j DROP"));
    let forward = |by: &str| {
        let proxy = (IpAddr::from([172, 19, 0, 2]), 8181);
        stops_redirected(&iptables::read(DOCKER, "iptables"), &job, proxy, Some(by))
    };
    assert!(forward("br-a435e7b89de4"), "another network, kept apart");
    assert!(!forward("ens5"));
}

#[test]
fn behind_masquerading_a_packet_has_its_new_source() {
    let nat = |to: &str| {
        let text = format!("*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING {to}\nCOMMIT\n");
        iptables::read(&text, "iptables")
    };
    let late = |hook: &str, priority: i32, source: &str| {
        let device = if hook == "egress" { r#""dev": "ens5","# } else { "" };
        let family = if hook == "egress" { "netdev" } else { "ip" };
        let json = format!(
            r#"{{"nftables": [{{"chain": {{"family": "{family}", "table": "t", "name": "f", "type": "filter", "hook": "{hook}", {device}
            "prio": {priority}, "policy": "accept"}}}}, {{"rule": {{"family": "{family}", "table": "t", "chain": "f", "handle": 2, "expr": [
            {{"match": {{"op": "==", "left": {{"payload": {{"protocol": "ip", "field": "saddr"}}}}, "right": "{source}"}}}}, {{"drop": null}}]}}}}]}}"#
        );
        nft::read(&json, "").expect("JSON")
    };
    let of = |to: &str, late: Vec<Chain>| hits(&[nat(to), late].concat(), &container("169.254.169.254"));
    let none = Vec::<String>::new();
    for (hook, priority) in [("egress", 0), ("postrouting", 300)] {
        assert_eq!(of("-o ens5 -j MASQUERADE", late(hook, priority, "172.17.0.2")), none);
        assert_eq!(of("-o ens5 -j MASQUERADE", late(hook, priority, "10.77.0.10")), ["f drop"]);
        assert_eq!(of("-o ens5 -j SNAT --to-source 10.77.0.11", late(hook, priority, "10.77.0.11")), ["f drop"]);
        assert_eq!(of("-o ens5 -m u32 --u32 0x0 -j MASQUERADE", late(hook, priority, "172.17.0.2")), ["maybe f drop"]);
        assert_eq!(of("-o ens6 -j MASQUERADE", late(hook, priority, "172.17.0.2")), ["f drop"]);
    }
    assert_eq!(of("-o ens5 -j MASQUERADE", late("postrouting", 0, "172.17.0.2")), ["f drop"], "before");
}

#[test]
fn whose_source_was_translated_is_not_known_by_the_state() {
    let job = container("169.254.169.254");
    let of = |rule: &str| hits(&with(&format!("-A FORWARD -i ens5 -m conntrack {rule}")), &job);
    assert_eq!(of("! --ctstate SNAT -j DROP"), ["maybe FORWARD drop"]);
    assert_eq!(of("--ctstate SNAT -j ACCEPT\n-A FORWARD -i ens5 -j DROP"), ["maybe FORWARD drop"]);
    assert_eq!(of("--ctstate ESTABLISHED,SNAT -j ACCEPT\n-A FORWARD -i ens5 -j DROP"), Vec::<String>::new());
    assert_eq!(of("--ctstate DNAT -j DROP"), Vec::<String>::new());
}

#[test]
fn netmap_on_the_way_out_gives_a_source() {
    let text = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 172.17.0.2/32 -o ens5 -j NETMAP --to 10.77.0.10/32\nCOMMIT\n";
    let chains = iptables::read(text, "iptables");
    let fate = fate(&chains, &container("169.254.169.254"));
    assert!(fate.hits.is_empty() && fate.masqueraded == Some(true), "{fate:?}");
    let address: IpAddr = "10.77.0.10".parse().expect("an address");
    assert_eq!(fate.becomes, Some((address, address)));
}

#[test]
fn what_is_changed_may_not_arrive() {
    let of = |table: &str, chain: &str, rule: &str| {
        let nat = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 172.17.0.0/16 -o ens5 -j MASQUERADE\nCOMMIT\n";
        let text = format!("*{table}\n:{chain} ACCEPT [0:0]\n-A {chain} {rule}\nCOMMIT\n{nat}");
        hits(&iptables::read(&text, "iptables"), &container("169.254.169.254"))
    };
    let none = Vec::<String>::new();
    let ttl = "maybe PREROUTING changes(ttl)";
    assert_eq!(of("mangle", "PREROUTING", "-i ens5 -j TTL --ttl-set 1"), [ttl]);
    assert_eq!(of("mangle", "PREROUTING", "-i docker0 -j TTL --ttl-dec 1"), [ttl]);
    assert_eq!(of("mangle", "PREROUTING", "-i docker0 -j TTL --ttl-set 65"), none);
    assert_eq!(of("mangle", "PREROUTING", "-i ens5 -j TTL --ttl-inc 1"), none);
    assert_eq!(of("raw", "PREROUTING", "-i docker0 -j CT --zone 5"), ["maybe PREROUTING changes(zone)"]);
    assert_eq!(of("raw", "PREROUTING", "-i docker0 -j CT --zone-orig 5"), none);
    assert_eq!(of("raw", "PREROUTING", "-i ens5 -j CT --notrack"), ["maybe PREROUTING notrack"]);
    // Its own answers are not forwarded.
    let own_answers = "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -i ens5 -j TTL --ttl-set 1\nCOMMIT\n";
    assert_eq!(hits(&iptables::read(own_answers, "iptables"), &own()), none);
    let set = |protocol: &str, field: &str, value: u16| {
        let key = format!(r#"{{"payload": {{"protocol": "{protocol}", "field": "{field}"}}}}"#);
        by_nft(&format!(r#"[{{"mangle": {{"key": {key}, "value": {value}}}}}]"#), "")
    };
    assert_eq!(set("ip", "ttl", 1), ["maybe f changes(ttl)"; 2]);
    assert_eq!(set("ip", "ttl", 64), none);
    assert_eq!(set("ip", "dscp", 1), none);
    assert_eq!(set("tcp", "dport", 8080), ["maybe f changes(ends)"; 2]);
    let forwarded = by_nft(r#"[{"fwd": {"dev": "ens6"}}]"#, "");
    assert!(forwarded.iter().all(|hit| hit.starts_with("maybe f asks")) && !forwarded.is_empty(), "{forwarded:?}");
}

#[test]
fn a_rule_that_iptables_writes_without_its_set_is_nfts() {
    let of = |saved: &str, set: &str, verdict: &str| {
        let text = format!("*filter\n:FORWARD ACCEPT [0:0]\n{saved}\nCOMMIT\n");
        let mut chains = iptables::read(&text, "iptables");
        let rule = |expressions: String| {
            format!(
                r#"{{"rule": {{"family": "ip", "table": "filter", "chain": "FORWARD", "handle": 4, "expr": [{expressions}]}}}}"#
            )
        };
        let daddr = r#"{"payload": {"protocol": "ip", "field": "daddr"}}"#;
        let asks = format!(
            r#"{{"match": {{"op": "==", "left": {daddr}, "right": {{"set": [{set}]}}}}}}, {{"{verdict}": null}}"#
        );
        let drops =
            format!(r#"{{"match": {{"op": "==", "left": {daddr}, "right": "169.254.169.254"}}}}, {{"drop": null}}"#);
        let json = format!(
            r#"{{"nftables": [{{"chain": {{"family": "ip", "table": "filter", "name": "FORWARD", "type": "filter", "hook": "forward",
            "prio": 0, "policy": "accept"}}}}, {}, {}]}}"#,
            rule(asks),
            rule(drops)
        );
        shortened::complete(&mut chains, nft::listed(&json, "").expect("JSON"));
        let deleted = chains.iter().flat_map(|chain| &chain.rules).filter(|rule| rule.text.starts_with("-A ")).count();
        (hits(&chains, &container("169.254.169.254")), deleted)
    };
    let drop = "-A FORWARD -d 169.254.169.254/32 -j DROP";
    let drops = vec!["FORWARD drop".to_owned()];
    // An exception for others, written as one for all.
    assert_eq!(of(&format!("-A FORWARD -j ACCEPT\n{drop}"), r#""10.0.0.1", "10.0.0.2""#, "accept"), (drops.clone(), 1));
    assert_eq!(of(&format!("-A FORWARD -j ACCEPT\n{drop}"), r#""169.254.169.254", "10.0.0.2""#, "accept"), (vec![], 1));
    assert_eq!(
        of("-A FORWARD -j DROP\n-A FORWARD -d 10.0.0.1/32 -j DROP", r#""10.0.0.1", "10.0.0.2""#, "drop"),
        (vec![], 1)
    );
    assert_eq!(of("-A FORWARD -j ACCEPT", r#""10.0.0.1", "10.0.0.2""#, "accept"), (drops, 0), "not as many rules");
}

#[test]
fn a_set_that_packets_fill_may_be_full_or_ask_for_more() {
    let statement = |more: &str| {
        let elem = r#"{"payload": {"protocol": "ip", "field": "saddr"}}"#;
        format!(r#"[{{"set": {{"op": "update", "elem": {elem}, "set": "@flood"{more}}}}}, {{"drop": null}}]"#)
    };
    assert_eq!(by_nft(&statement(""), ""), ["maybe f drop"; 2], "requests and answers");
    let limit = r#", "stmt": [{"limit": {"rate": 100, "burst": 50, "per": "second", "inv": true}}]"#;
    assert_eq!(by_nft(&statement(limit), ""), ["maybe f drop"; 2]);
}
