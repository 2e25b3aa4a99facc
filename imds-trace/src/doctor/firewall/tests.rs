//! Are real rules, as their tools show them, understood?

mod hidden;
mod order;
mod uncertain;

use std::net::IpAddr;

use super::fate::{Client, fate};
use super::rules::{Chain, Verdict};
use super::{ipset, iptables, nft, owner};

/// Written by iptables-save 1.8.9 (nf_tables): the rules of an engine with two networks, and the policy it sets where it turns
/// forwarding on itself.
const DOCKER: &str = include_str!("samples/docker.iptables-save");
/// Written by iptables-save 1.8.9 (nf_tables).
const SAVED: &str = include_str!("samples/odd.iptables-save");
/// Written by `nft -j list ruleset` 1.0.6, and the same by `nft -a list ruleset`.
const NFT: &str = include_str!("samples/odd.nft.json");
const NFT_TEXT: &str = include_str!("samples/odd.nft");

fn container(endpoint: &str) -> Client {
    let address: IpAddr =
        if endpoint.contains(':') { "fd00:d0c::2" } else { "172.17.0.2" }.parse().expect("an address");
    Client {
        name: "job-17".into(),
        address: Some(address),
        by: Some("docker0".into()),
        uplink: Some("ens5".into()),
        masked: "10.77.0.10".parse().ok(),
        endpoint: endpoint.parse().ok(),
        ..Client::default()
    }
}

fn own() -> Client {
    Client { address: "10.0.0.10".parse().ok(), by: None, ..container("169.254.169.254") }
}

/// What happens to a client's packets besides being let through: `sure`, the chain, the verdict.
fn hits(chains: &[Chain], client: &Client) -> Vec<String> {
    let mut found = Vec::new();
    for (_, hit) in fate(chains, client).hits {
        let sure = if hit.sure { "" } else { "maybe " };
        let verdict = hit.rule.map(|rule| &rule.verdict);
        let what = verdict.map_or("policy".to_owned(), |verdict| format!("{verdict:?}").to_lowercase());
        found.push(format!("{sure}{} {what}", hit.chain.name));
    }
    found
}

fn with(rules: &str) -> Vec<Chain> {
    iptables::read(
        &format!(
            "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:SUB - [0:0]\n{rules}\nCOMMIT\n"
        ),
        "iptables",
    )
}

#[test]
fn dockers_own_rules_with_a_policy_of_drop_let_everything_through() {
    let chains = iptables::read(DOCKER, "iptables");
    assert!(chains.iter().any(|chain| chain.name == "FORWARD" && chain.drops_the_rest));
    assert_eq!(hits(&chains, &container("169.254.169.254")), Vec::<String>::new());
    assert_eq!(hits(&chains, &own()), Vec::<String>::new());
    // A bridge that no rule knows is not let through.
    let unknown = Client { by: Some("br-other".into()), ..container("169.254.169.254") };
    assert_eq!(hits(&chains, &unknown), ["FORWARD policy"]);
}

#[test]
fn docker_masquerades_what_leaves_its_bridge() {
    let chains = iptables::read(DOCKER, "iptables");
    assert_eq!(fate(&chains, &container("169.254.169.254")).masqueraded, Some(true));
    let elsewhere = Client { address: "172.19.0.2".parse().ok(), ..container("169.254.169.254") };
    assert_eq!(fate(&chains, &elsewhere).masqueraded, None);
}

#[test]
fn each_way_to_say_it_drops_what_is_ours() {
    for rule in [
        "-A FORWARD -d 169.254.169.254/32 -j DROP",
        "-A FORWARD -d 169.254.169.254 -p tcp -m tcp --dport 80 -j DROP",
        "[12:720] -A FORWARD -d 169.254.0.0/16 -i docker0 -o ens5 -j DROP",
        "-A FORWARD -d 169.254.0.0/255.255.0.0 -j DROP",
        "-A FORWARD ! -d 10.0.0.0/8 -i docker+ -m comment --comment \"no \\\"IMDS\\\" ! -d x\" -j DROP",
        "-A FORWARD -p tcp -m multiport --dports 22,80,8000:8080 -m conntrack --ctstate NEW -j DROP",
        "-A FORWARD -m iprange --dst-range 169.254.0.1-169.254.255.254 -j DROP",
        "-A FORWARD -d 169.254.169.254/32 -j SUB\n-A SUB -p udp -j RETURN\n-A SUB -j DROP",
        "-A FORWARD -g SUB\n-A FORWARD -j ACCEPT\n-A SUB -s 172.17.0.2/32 ! -i br0 -j DROP",
        "-A FORWARD -p udp -j ACCEPT\n-A FORWARD -m mark --mark 0x1 -j RETURN\n-A FORWARD -d 169.254.169.254 -m state --state NEW,ESTABLISHED -j LOG\n-A FORWARD -s 169.254.169.254 -p tcp -m tcp --sport 80 -j DROP",
    ] {
        let found = hits(&with(rule), &container("169.254.169.254"));
        assert!(found.iter().any(|hit| hit.ends_with(" drop")), "{rule}: {found:?}");
        assert!(found.iter().all(|hit| !hit.starts_with("maybe")) || rule.contains("mark"), "{rule}: {found:?}");
        assert_eq!(hits(&with(rule), &own()), Vec::<String>::new(), "{rule} is not about the host's own");
    }
}

#[test]
fn what_drops_only_what_is_not_ours_is_not_told() {
    for rule in [
        "-A FORWARD -d 169.254.169.253/32 -j DROP",
        "-A INPUT ! -s 169.254.169.254/32 -j DROP",
        "-A FORWARD -p udp -j DROP",
        "-A FORWARD -p tcp -m tcp --dport 443 -j DROP",
        "-A FORWARD -i eth7 -j DROP",
        "-A FORWARD ! -i docker0 -o docker0 -m conntrack --ctstate NEW -j DROP",
        "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A FORWARD -s 172.17.0.9/32 -j DROP",
        "-A SUB -j DROP",
        "-A FORWARD -d 169.254.169.254/32 -j ACCEPT\n-A FORWARD -d 169.254.169.254/32 -j DROP",
        "-A INPUT -p tcp -m multiport --dports 22,80 -j DROP",
        "-A FORWARD -m addrtype --dst-type LOCAL -m conntrack --ctstate NEW -j DROP",
    ] {
        for client in [container("169.254.169.254"), own()] {
            assert_eq!(hits(&with(rule), &client), Vec::<String>::new(), "{rule}");
        }
    }
}

#[test]
fn what_cannot_be_decided_may_be() {
    for rule in [
        "-A OUTPUT -d 169.254.169.254/32 -m owner --uid-owner 1000 -j DROP",
        "-A OUTPUT -m limit --limit 5/sec -j ACCEPT\n-A OUTPUT -d 169.254.169.254/32 -j DROP",
        "-A OUTPUT -m set --match-set blocked dst -j SUB\n-A SUB -j DROP",
        "-A OUTPUT -j SUB\n-A OUTPUT -d 169.254.169.254 -j DROP\n-A SUB -m recent --name x --rcheck -j ACCEPT",
    ] {
        let found = hits(&with(rule), &own());
        assert!(!found.is_empty() && found.iter().all(|hit| hit.starts_with("maybe")), "{rule}: {found:?}");
    }
}

#[test]
fn a_saved_file_with_everything_in_it_is_read() {
    let chains = iptables::read(SAVED, "iptables");
    assert_eq!(hits(&chains, &container("169.254.169.254")), ["PREROUTING redirect(\"10.0.0.5:8181\")"]);
    assert_eq!(hits(&chains, &own()), ["OUTPUT redirect(\"this host, port 8181\")"]);
    let rejects = chains.iter().flat_map(|chain| &chain.rules).find(|rule| rule.verdict == Verdict::Reject);
    assert!(rejects.is_some_and(|rule| rule.text.starts_with("-A DOCKER-USER -d 169.254.169.254/32 ")), "{rejects:?}");
}

#[test]
fn nothing_that_is_no_rule_makes_it_stumble() {
    for text in [
        "",
        "*",
        ":",
        "*filter\n:FORWARD",
        "-A",
        "-A FORWARD",
        "*filter\n:FORWARD DROP\n-A FORWARD -j\n-A FORWARD ! -d\n-A FORWARD \"",
        "-A FORWARD -m comment --comment",
    ] {
        let _ = iptables::read(text, "iptables");
    }
    let circle = with("-A FORWARD -j SUB\n-A SUB -j SUB");
    assert_eq!(hits(&circle, &container("169.254.169.254")), Vec::<String>::new());
    assert!(nft::read("{}", "").is_ok_and(|chains| chains.is_empty()));
    assert!(nft::read("", "").is_err());
}

#[test]
fn chains_that_fork_at_each_step_come_to_an_end() {
    let mut text = String::from("*filter\n:FORWARD ACCEPT [0:0]\n");
    for number in 0..30 {
        text += &format!(":C{number} - [0:0]\n");
    }
    text += "-A FORWARD -j C0\n";
    for number in 0..29 {
        let jump = format!("-A C{number} -m recent --name x --rcheck -j C{}\n", number + 1);
        text += &jump.repeat(2);
    }
    let found = hits(&iptables::read(&text, "iptables"), &container("169.254.169.254"));
    assert!(!found.is_empty() && found.iter().all(|hit| hit.starts_with("maybe ")), "silence is not health: {found:?}");
}

#[test]
fn tables_that_only_nft_can_show_are_known() {
    let said = "# Table `filter' contains incompatible base-chains, use 'nft' tool to list them.\n# Table `nat' is incompatible, use 'nft' tool.\n*mangle\n";
    assert_eq!(iptables::incompatible(said).into_iter().collect::<Vec<_>>(), ["filter", "nat"]);
}

fn nft_rules() -> Vec<Chain> {
    nft::read(NFT, NFT_TEXT).expect("nft writes JSON")
}

#[test]
fn nfts_rules_are_read_with_their_wording() {
    let chains = nft_rules();
    let rules: Vec<_> = chains.iter().filter(|chain| chain.name == "block").flat_map(|chain| &chain.rules).collect();
    assert_eq!(rules[0].text, "ip daddr @bad tcp dport 80 counter packets 0 bytes 0 drop comment \"x\"");
    assert!(rules.iter().all(|rule| !rule.text.starts_with("rule with handle")), "{rules:#?}");
}

/// Each rule of the sample alone, by its handle.
fn only(handle: &str) -> Vec<Chain> {
    let wording =
        NFT_TEXT.lines().find(|line| line.ends_with(&format!(" # handle {handle}"))).expect("a rule with this handle");
    let wording = wording.trim().split(" # handle").next().unwrap_or_default();
    let mut chains = nft_rules();
    for chain in &mut chains {
        chain.rules.retain(|rule| rule.text == wording);
    }
    assert!(chains.iter().any(|chain| !chain.rules.is_empty()), "{wording}");
    chains
}

#[test]
fn each_of_nfts_rules_is_decided() {
    let (job, none) = (container("169.254.169.254"), Vec::<String>::new());
    assert_eq!(hits(&only("3"), &job), ["block drop"], "a named set");
    assert_eq!(hits(&only("5"), &job), none, "a verdict map by state");
    assert_eq!(hits(&only("7"), &job), none, "another bridge");
    let bridged = Client { by: Some("br-4711".into()), ..job.clone() };
    assert_eq!(hits(&only("7"), &bridged), ["block reject"], "interfaces, a prefix, ranges of ports");
    assert_eq!(hits(&only("9"), &job), ["block drop"], "the answer's address is none of them");
    assert_eq!(hits(&only("10"), &job), none, "IPv6");
    assert_eq!(hits(&only("10"), &container("fd00:ec2::254")), ["block drop"]);
    assert_eq!(hits(&only("11"), &job), ["maybe block drop"], "a limit");
    assert_eq!(hits(&only("12"), &job), none, "by loopback");
    assert_eq!(hits(&only("13"), &job), ["block drop"], "neither established nor related");
    assert_eq!(hits(&only("15"), &job), none, "to this host");
    assert_eq!(hits(&only("16"), &job), ["maybe block drop", "maybe block drop"], "flags and users");
    assert_eq!(hits(&only("18"), &job), ["block drop"], "a concatenation");
    assert_eq!(hits(&only("20"), &job), ["nat redirect(\"this host, port 9998\")"]);
    assert_eq!(hits(&only("25"), &job), none, "a chain without rules");
}

#[test]
fn what_hangs_on_another_card_is_not_met() {
    let found = hits(&nft_rules(), &own());
    assert!(!found.iter().any(|hit| hit.contains(" ing ")), "{found:?}");
}

/// kube-router 2's rules for one pod with a policy, by `iptables-save`: what the policy allows is marked, and the rest rejected.
const KUBE_ROUTER: &str = r#"*filter
:FORWARD ACCEPT [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
:KUBE-POD-FW-A - [0:0]
:KUBE-NWPLCY-A - [0:0]
-A FORWARD -m comment --comment "kube-router netpol - TEMCG2JMHZYE7H7T" -j KUBE-ROUTER-FORWARD
-A KUBE-ROUTER-FORWARD -s 172.17.0.2/32 -m comment --comment "rule to jump traffic from POD name:app namespace: default to chain KUBE-POD-FW-A" -j KUBE-POD-FW-A
-A KUBE-ROUTER-FORWARD -m comment --comment "rule to explicitly ACCEPT traffic that comply to network policies" -m mark --mark 0x20000/0x20000 -j ACCEPT
-A KUBE-POD-FW-A -m comment --comment "rule for stateful firewall for pod" -m conntrack --ctstate INVALID -j DROP
-A KUBE-POD-FW-A -m comment --comment "rule for stateful firewall for pod" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-POD-FW-A -d 172.17.0.2/32 -m comment --comment "rule to permit the traffic to pods when source is the pod's local node" -m addrtype --src-type LOCAL -j ACCEPT
-A KUBE-POD-FW-A -m comment --comment "run through nw policy app" -j KUBE-NWPLCY-A
-A KUBE-POD-FW-A -m comment --comment "rule to log dropped traffic POD name:app namespace: default" -m mark ! --mark 0x10000/0x10000 -m limit --limit 10/min --limit-burst 10 -j NFLOG --nflog-group 100
-A KUBE-POD-FW-A -m comment --comment "rule to REJECT traffic destined for POD name:app namespace: default" -m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with icmp-port-unreachable
-A KUBE-POD-FW-A -j MARK --set-xmark 0x0/0x10000
-A KUBE-POD-FW-A -m comment --comment "set mark to ACCEPT traffic that comply to network policies" -j MARK --set-xmark 0x20000/0x20000
-A KUBE-NWPLCY-A -m set --match-set KUBE-SRC-A src -m set --match-set KUBE-DST-A dst -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x10000/0x10000
-A KUBE-NWPLCY-A -m set --match-set KUBE-SRC-A src -m mark --mark 0x10000/0x10000 -j RETURN
COMMIT
"#;

#[test]
fn a_policy_for_one_pod_is_decided_by_its_sets_and_marks() {
    let policy = |allowed: &str| {
        let mut chains = iptables::read(KUBE_ROUTER, "iptables");
        assert!(ipset::wanted(&chains));
        let sets = format!(
            "create KUBE-SRC-A hash:ip\nadd KUBE-SRC-A 172.17.0.2\ncreate KUBE-DST-A hash:net\nadd KUBE-DST-A {allowed}\n"
        );
        ipset::resolve(&mut chains, &ipset::read(&sets));
        chains
    };
    let (pod, other) = (container("169.254.169.254"), container("169.254.169.254"));
    let other = Client { address: "172.17.0.3".parse().ok(), ..other };
    assert_eq!(hits(&policy("10.0.0.0/8"), &pod), ["KUBE-POD-FW-A reject"]);
    assert_eq!(hits(&policy("10.0.0.0/8"), &other), Vec::<String>::new());
    assert_eq!(hits(&policy("169.254.0.0/16"), &pod), Vec::<String>::new());
    let unread = iptables::read(KUBE_ROUTER, "iptables");
    assert_eq!(hits(&unread, &pod), ["maybe KUBE-POD-FW-A reject"], "sets that nobody could read");
}

#[test]
fn who_set_a_rule_up_is_known_by_its_chain_table_or_words() {
    let name = |text: &str| {
        let chains = iptables::read(text, "iptables");
        let chain = chains.iter().find(|chain| !chain.rules.is_empty()).expect("a chain with a rule");
        owner::of(chain, chain.rules.first()).map(|owner| owner.name)
    };
    let saved = |table: &str, rule: &str| {
        let chain = rule.split_whitespace().nth(1).unwrap_or_default();
        name(&format!("*{table}\n:{chain} - [0:0]\n{rule}\nCOMMIT\n"))
    };
    assert_eq!(saved("filter", "-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP"), Some("Docker"));
    assert_eq!(saved("filter", "-A DOCKER-USER -d 169.254.169.254/32 -j DROP"), None);
    assert_eq!(saved("raw", "-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP"), Some("Docker"));
    assert_eq!(saved("filter", "-A KUBE-POD-FW-A -j REJECT"), Some("kube-router"));
    assert!(saved("filter", "-A KUBE-FIREWALL -j DROP").is_some_and(|name| name.starts_with("Kubernetes")));
    assert_eq!(saved("filter", "-A ufw-user-forward -d 169.254.169.254/32 -j DROP"), Some("ufw"));
    assert_eq!(saved("filter", "-A FWDO_public_deny -j REJECT"), Some("firewalld"));
    assert!(
        saved("filter", "-A FORWARD -d 169.254.169.254/32 -i eni+ -j DROP").is_some_and(|name| name.contains("eksctl"))
    );
    assert_eq!(saved("filter", "-A FORWARD -d 169.254.169.254/32 -i eni1 -j DROP"), None);
    let to_agent = "-A PREROUTING -d 169.254.169.254/32 -i eni+ -p tcp -j DNAT --to-destination 10.0.0.5:8181";
    assert_eq!(saved("nat", to_agent), None, "an agent's");
    assert_eq!(saved("raw", "-A PREROUTING -d 169.254.169.254/32 ! -i ens5 -j DROP"), None);
    for own in ["DOCKER-BLOCKLIST", "IN_HOUSE", "FLANNELS", "ufwx"] {
        assert_eq!(saved("filter", &format!("-A {own} -d 169.254.169.254/32 -j DROP")), None, "{own}");
    }
    assert_eq!(saved("filter", "-A DOCKER -o docker0 -j DROP"), Some("Docker"));
    assert_eq!(saved("filter", "-A IN_public -j IN_public_deny"), Some("firewalld"));
    assert_eq!(saved("filter", "-A IN_public_deny -j DROP"), Some("firewalld"));
    for (table, name) in [("laws", None), ("docker-bridges", Some("Docker")), ("crowdsec6", Some("CrowdSec"))] {
        let chain = Chain { table: table.into(), ..nft_rules().first().cloned().expect("a chain") };
        assert_eq!(owner::of(&chain, None).map(|owner| owner.name), name, "{table}");
    }
    assert_eq!(saved("filter", "-A FORWARD -m comment --comment \"cali:abc\" -j DROP"), Some("Calico"));
}

#[test]
fn protection_of_published_ports_hits_no_answer_that_is_translated_back() {
    let guard = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP\nCOMMIT\n";
    let masquerade =
        "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\nCOMMIT\n";
    let job = container("169.254.169.254");
    let both = iptables::read(&format!("{guard}{masquerade}"), "iptables");
    assert_eq!(hits(&both, &job), Vec::<String>::new());
    // Who leaves under his own address gets the answer to it.
    assert_eq!(hits(&iptables::read(guard, "iptables"), &job), ["PREROUTING drop"]);
}

#[test]
fn what_cannot_be_read_is_not_taken_for_health() {
    for rule in [
        "-A FORWARD -m bpf --bytecode \"4,48 0 0 9,21 0 1 6,6 0 0 1,6 0 0 0\" -j DROP",
        "-A FORWARD -d 169.254.169.254/32 -m quota2 -j DROP",
        "-A FORWARD -i docker0 -j NFQUEUE --queue-num 0",
    ] {
        let found = hits(&with(rule), &container("169.254.169.254"));
        assert!(!found.is_empty() && found.iter().all(|hit| hit.starts_with("maybe ")), "{rule}: {found:?}");
    }
    assert_eq!(
        hits(&with("-A FORWARD -m connmark --mark 0x1 -j DROP"), &container("169.254.169.254")),
        Vec::<String>::new()
    );
}

/// What happens to a container's packets by rules of nftables in one chain at the hook `forward`, given as JSON.
fn by_nft(expressions: &str, sets: &str) -> Vec<String> {
    let json = format!(
        r#"{{"nftables": [{sets}
        {{"chain": {{"family": "inet", "table": "t", "name": "f", "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}}}},
        {{"rule": {{"family": "inet", "table": "t", "chain": "f", "handle": 4, "expr": {expressions}}}}}]}}"#
    );
    hits(&nft::read(&json, "").expect("JSON"), &container("169.254.169.254"))
}

const ADDRESS_AND_PORT: &str = r#"{"concat": [{"payload": {"protocol": "ip", "field": "daddr"}},
    {"payload": {"protocol": "tcp", "field": "dport"}}]}"#;

fn set(elements: &[(&str, u16)]) -> String {
    let elements: Vec<String> =
        elements.iter().map(|(address, port)| format!(r#"{{"concat": ["{address}", {port}]}}"#)).collect();
    let elements = elements.join(", ");
    format!(r#"{{"set": {{"family": "inet", "table": "t", "name": "s", "elem": [{elements}]}}}},"#)
}

#[test]
fn sets_of_several_things_are_decided_entry_by_entry() {
    let to_imds = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "169.254.169.254"}}"#;
    let rule = |op: &str| {
        format!(
            r#"[{to_imds}, {{"match": {{"op": "{op}", "left": {ADDRESS_AND_PORT}, "right": "@s"}}}}, {{"drop": null}}]"#
        )
    };
    let named = set(&[("10.0.0.1", 443), ("169.254.169.254", 80)]);
    // Each half is there, and not both in one entry.
    let crossed = set(&[("10.0.0.1", 80), ("169.254.169.254", 443)]);
    assert_eq!(by_nft(&rule("=="), &named), ["f drop"]);
    assert_eq!(by_nft(&rule("=="), &crossed), Vec::<String>::new());
    assert_eq!(by_nft(&rule("!="), &named), Vec::<String>::new());
    assert_eq!(by_nft(&rule("!="), &crossed), ["f drop"]);
    assert_eq!(by_nft(&rule("=="), ""), ["maybe f drop"], "a set that is not known");
}

#[test]
fn maps_are_decided_entry_by_entry_and_marks_by_what_they_become() {
    let daddr = r#"{"payload": {"protocol": "ip", "field": "daddr"}}"#;
    let dnat = |address: &str| {
        format!(
            r#"[{{"dnat": {{"addr": {{"map": {{"key": {daddr}, "data": {{"set": [["10.9.9.9", "10.1.1.1"], ["{address}", "192.0.2.1"]]}}}}}}}}}}]"#
        )
    };
    assert_eq!(by_nft(&dnat("169.254.169.254"), ""), [r#"f redirect("192.0.2.1")"#]);
    assert_eq!(by_nft(&dnat("169.254.169.250"), ""), Vec::<String>::new());
    let marked = |change: &str, wanted: u32| {
        format!(
            r#"[{{"mangle": {{"key": {{"meta": {{"key": "mark"}}}}, "value": {change}}}}},
            {{"match": {{"op": "==", "left": {{"meta": {{"key": "mark"}}}}, "right": {wanted}}}}}, {{"drop": null}}]"#
        )
    };
    let mark = r#"{"meta": {"key": "mark"}}"#;
    let changed = format!(r#"{{"^": [{{"|": [{mark}, 12]}}, 8]}}"#);
    assert_eq!(by_nft(&marked(&changed, 4), ""), ["f drop"]);
    assert_eq!(by_nft(&marked(&changed, 12), ""), Vec::<String>::new());
    let by_interface = |name: &str| {
        let key = r#"{"meta": {"key": "iifname"}}"#;
        format!(r#"{{"map": {{"key": {key}, "data": {{"set": [["{name}", 1], ["br-app", 2]]}}}}}}"#)
    };
    assert_eq!(by_nft(&marked(&by_interface("docker0"), 1), ""), ["f drop"]);
    assert_eq!(by_nft(&marked(&by_interface("docker9"), 1), ""), Vec::<String>::new());
    assert_eq!(
        by_nft(&marked(r#"{"numgen": {"mode": "random", "mod": 2}}"#, 1), "").first().map(String::as_str),
        Some("maybe f drop")
    );
}

#[test]
fn a_cards_own_chain_sees_only_what_passes_the_card() {
    let json = r#"{"nftables": [{"chain": {"family": "netdev", "table": "t", "name": "f", "type": "filter", "hook": "ingress",
        "prio": 0, "policy": "accept"}}, {"rule": {"family": "netdev", "table": "t", "chain": "f", "handle": 2, "expr": [
        {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "169.254.169.254"}}, {"drop": null}]}}]}"#;
    // nft 1.0 says only there which card it is.
    let on = |cards: &str| {
        let text = format!(
            "table netdev t {{ # handle 1\n\tchain f {{ # handle 1\n\t\ttype filter hook ingress {cards} priority filter; policy accept;\n"
        );
        hits(&nft::read(json, &text).expect("JSON"), &container("169.254.169.254"))
    };
    assert_eq!(on("device \"ens5\""), ["f drop"]);
    assert_eq!(on("devices = { \"ens7\", ens5 }"), ["f drop"]);
    assert_eq!(on("device \"ens6\""), Vec::<String>::new());
    assert_eq!(hits(&nft::read(json, "").expect("JSON"), &container("169.254.169.254")), ["maybe f drop"]);
}

#[test]
fn what_is_not_tracked_is_not_masqueraded() {
    let masquerade = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE\nCOMMIT\n";
    let of = |raw: &str| {
        let text = format!("*raw\n:PREROUTING ACCEPT [0:0]\n{raw}\nCOMMIT\n{masquerade}");
        let chains = iptables::read(&text, "iptables");
        let fate = fate(&chains, &container("169.254.169.254"));
        (fate.untracked, fate.masqueraded)
    };
    assert_eq!(of(""), (None, Some(true)));
    assert_eq!(of("-A PREROUTING -d 169.254.169.254/32 -j CT --notrack"), (Some(true), None));
    assert_eq!(of("-A PREROUTING -m u32 --u32 0x0 -j CT --notrack"), (Some(false), Some(false)));
    assert_eq!(of("-A PREROUTING -d 10.0.0.1/32 -j CT --notrack"), (None, Some(true)));
}

#[test]
fn what_a_source_becomes_is_read() {
    let becomes = |to: &str| {
        let text =
            format!("*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o ens5 -j SNAT --to-source {to}\nCOMMIT\n");
        let chains = iptables::read(&text, "iptables");
        fate(&chains, &container("169.254.169.254")).becomes.map(|(first, last)| format!("{first} {last}"))
    };
    assert_eq!(becomes("10.0.0.5").as_deref(), Some("10.0.0.5 10.0.0.5"));
    assert_eq!(becomes("10.0.0.5-10.0.0.9").as_deref(), Some("10.0.0.5 10.0.0.9"));
    assert_eq!(becomes("10.0.0.5:1024-2047").as_deref(), Some("10.0.0.5 10.0.0.5"));
}

#[test]
fn a_rule_for_all_but_pods_is_not_eksctls() {
    let chains = |rule: &str| with(&format!("-A FORWARD {rule} -d 169.254.169.254/32 -j DROP"));
    let owner_of = |chains: &[Chain]| {
        let chain = chains.iter().find(|chain| chain.name == "FORWARD").expect("a chain");
        owner::of(chain, chain.rules.first()).map(|owner| owner.name)
    };
    assert!(owner_of(&chains("-i eni+")).is_some_and(|name| name.contains("eksctl")));
    assert_eq!(owner_of(&chains("! -i eni+")), None);
}
