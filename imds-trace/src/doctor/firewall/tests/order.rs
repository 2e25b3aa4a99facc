//! In which order are the rules of different tools asked that give a packet another address?

use super::*;

/// A table of nftables that changes addresses at a hook.
fn nft_nat(hook: &str, priority: i32, expressions: &str) -> Vec<Chain> {
    let json = format!(
        r#"{{"nftables": [{{"chain": {{"family": "ip", "table": "z", "name": "c", "type": "nat", "hook": "{hook}", "prio": {priority}, "policy": "accept"}}}},
        {{"rule": {{"family": "ip", "table": "z", "chain": "c", "handle": 2, "expr": [{expressions}]}}}}]}}"#
    );
    nft::read(&json, "").expect("JSON")
}

fn saved(chain: &str, rule: &str, tool: &'static str) -> Vec<Chain> {
    iptables::read(&format!("*nat\n:{chain} ACCEPT [0:0]\n-A {chain} {rule}\nCOMMIT\n"), tool)
}

/// Whether a container's requests get another source, and which where a rule says.
fn given(chains: &[Vec<Chain>]) -> (Option<bool>, Option<String>) {
    let chains = chains.concat();
    let fate = fate(&chains, &container("169.254.169.254"));
    (fate.masqueraded, fate.becomes.map(|(first, _)| first.to_string()))
}

#[test]
fn on_the_way_out_the_nat_of_iptables_is_asked_at_100() {
    let masquerade = || saved("POSTROUTING", "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", "iptables");
    let snat = |priority| nft_nat("postrouting", priority, r#"{"snat": {"addr": "10.77.0.99"}}"#);
    for priority in [-100, 0, 90, 99] {
        let other = (Some(true), Some("10.77.0.99".to_owned()));
        assert_eq!(given(&[masquerade(), snat(priority)]), other, "{priority}");
    }
    assert_eq!(given(&[masquerade(), snat(101)]), (Some(true), None));
    let first = nft_nat("postrouting", 0, r#"{"masquerade": null}"#);
    assert_eq!(given(&[saved("POSTROUTING", "-j SNAT --to-source 10.77.0.99", "iptables"), first]), (Some(true), None));
}

#[test]
fn which_of_two_at_the_same_priority_is_asked_first_is_not_known() {
    let by = |tool, rule: &str| saved("POSTROUTING", rule, tool);
    let (masquerade, other) = ("-o ens5 -j MASQUERADE", "-o ens5 -j SNAT --to-source 10.77.0.99");
    let contested = |one: &[Vec<Chain>]| given(one).0 == Some(false);
    assert!(contested(&[by("iptables", masquerade), by("iptables-legacy", other)]));
    assert!(contested(&[by("iptables-legacy", masquerade), by("iptables", other)]));
    assert!(contested(&[
        by("iptables", masquerade),
        nft_nat("postrouting", 100, r#"{"snat": {"addr": "10.77.0.99"}}"#)
    ]));
    // Where both do the same, or one nothing, it does not matter.
    assert_eq!(given(&[by("iptables", masquerade), by("iptables-legacy", masquerade)]), (Some(true), None));
    assert_eq!(
        given(&[by("iptables", masquerade), by("iptables-legacy", "-o eth9 -j MASQUERADE")]),
        (Some(true), None)
    );
    assert_eq!(given(&[by("iptables", masquerade), by("iptables-legacy", "-j ACCEPT")]), (Some(true), None));
    let own = by("iptables-legacy", "-o ens5 -j SNAT --to-source 10.77.0.10");
    assert_eq!(given(&[by("iptables", masquerade), own]).0, Some(true), "the address that it gets anyway");
}

#[test]
fn a_redirect_that_another_table_contests_is_not_certain() {
    let to = |rule: &str, tool| saved("PREROUTING", rule, tool);
    let chains = [
        to("-i docker0 -j DNAT --to-destination 10.0.0.5:80", "iptables"),
        to("-i docker0 -j DNAT --to-destination 10.0.0.6:80", "iptables-legacy"),
    ];
    let found = hits(&chains.concat(), &container("169.254.169.254"));
    assert!(found.len() == 2 && found.iter().all(|hit| hit.starts_with("maybe PREROUTING redirect")), "{found:?}");
    let early = nft_nat("prerouting", -101, r#"{"dnat": {"addr": "10.0.0.6"}}"#);
    let found = hits(&[chains[0].clone(), early].concat(), &container("169.254.169.254"));
    assert_eq!(found, ["c redirect(\"10.0.0.6\")"]);
}

#[test]
fn after_one_that_may_hold_another_address_is_not_certain() {
    let masquerade = saved("POSTROUTING", "-o ens5 -j MASQUERADE", "iptables");
    let perhaps = |expression: &str| {
        let limit = r#"{"limit": {"rate": 1, "burst": 5, "per": "second"}}"#;
        given(&[nft_nat("postrouting", 0, &format!("{limit}, {expression}")), masquerade.clone()]).0
    };
    assert_eq!(perhaps(r#"{"snat": {"addr": "10.77.0.99"}}"#), Some(false));
    assert_eq!(perhaps(r#"{"masquerade": null}"#), Some(true));
}
