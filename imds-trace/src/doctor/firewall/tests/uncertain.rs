//! Is what a rule may do to a packet taken neither for what it does, nor for nothing?

use super::*;

/// The same with a policy of DROP at FORWARD.
fn closed(rules: &str) -> Vec<Chain> {
    let text = format!("*filter\n:FORWARD DROP [0:0]\n:SUB - [0:0]\n{rules}\nCOMMIT\n");
    iptables::read(&text, "iptables")
}

fn job() -> Client {
    container("169.254.169.254")
}

#[test]
fn behind_what_may_let_it_through_a_policy_may_drop() {
    let answers = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
    for rules in [
        "-A FORWARD -m physdev --physdev-is-bridged -j ACCEPT",
        "-A FORWARD -m mac --mac-source 02:00:00:00:00:77 -j ACCEPT",
        "-A FORWARD -j SUB\n-A SUB -m recent --name x --rcheck -j ACCEPT",
        "-A FORWARD -m recent --name x --rcheck -j UNKNOWN",
    ] {
        assert_eq!(hits(&closed(&format!("{answers}{rules}")), &job()), ["maybe FORWARD policy"], "{rules}");
    }
    let asked = hits(&closed(&format!("{answers}-A FORWARD -j NFQUEUE --queue-num 0")), &job());
    assert!(asked.iter().all(|hit| hit.contains("asks")) && asked.len() == 1, "{asked:?}");
    assert_eq!(
        hits(&closed(&format!("{answers}-A FORWARD -m limit --limit 5/sec -j LOG")), &job()),
        ["FORWARD policy"]
    );
}

#[test]
fn what_may_go_back_is_not_taken_for_accepted_by_what_follows() {
    let perhaps = "-m recent --name x --rcheck";
    let sub = |rules: &str| format!("-A FORWARD -j SUB\n-A FORWARD -d 169.254.169.254/32 -j DROP\n{rules}");
    for back in [format!("-A SUB {perhaps} -j RETURN"), format!("-A SUB {perhaps} -g OTHER\n-A OTHER -p udp -j DROP")] {
        let rules = format!(":OTHER - [0:0]\n{}", sub(&format!("{back}\n-A SUB -j ACCEPT")));
        assert_eq!(hits(&with(&rules), &job()), ["maybe FORWARD drop"], "{rules}");
    }
    assert_eq!(
        hits(&closed(&format!("-A FORWARD {perhaps} -j RETURN\n-A FORWARD -j ACCEPT")), &job()),
        ["maybe FORWARD policy"; 2]
    );
    // Nobody lets it through, whichever way it goes.
    assert_eq!(
        hits(&closed(&format!("-A FORWARD {perhaps} -j RETURN\n-A FORWARD -j DROP")), &job()),
        ["maybe FORWARD drop", "FORWARD policy"]
    );
    // What may be accepted in a chain that may be asked may have been accepted.
    let rules = format!("-A FORWARD {perhaps} -j SUB\n-A FORWARD -j DROP\n-A SUB {perhaps} -j ACCEPT\n-A SUB -j DROP");
    assert!(hits(&with(&rules), &job()).iter().all(|hit| hit.starts_with("maybe")), "{rules}");
}

#[test]
fn what_may_go_back_may_yet_be_masqueraded() {
    let nat = |sub: &str| {
        let text = format!(
            "*nat\n:POSTROUTING ACCEPT [0:0]\n:SUB - [0:0]\n-A POSTROUTING -j SUB\n-A POSTROUTING -o ens5 -j MASQUERADE\n{sub}\nCOMMIT\n"
        );
        fate(&iptables::read(&text, "iptables"), &job()).masqueraded
    };
    assert_eq!(nat("-A SUB -m recent --name x --rcheck -j RETURN\n-A SUB -j ACCEPT"), Some(false));
    assert_eq!(nat("-A SUB -j ACCEPT"), None);
    assert_eq!(nat("-A SUB -j RETURN"), Some(true));
}

#[test]
fn what_follows_the_first_packet_is_asked_about_too() {
    let states = |new: &str, later: &str| {
        let rules = format!(
            "-A FORWARD -i docker0 -m conntrack --ctstate {new} -j ACCEPT\n-A FORWARD -i ens5 -j ACCEPT{later}"
        );
        hits(&closed(&rules), &job())
    };
    assert_eq!(states("NEW", ""), ["FORWARD policy"]);
    assert_eq!(states("NEW,ESTABLISHED", ""), Vec::<String>::new());
    assert_eq!(states("NEW", "\n-A FORWARD -d 169.254.169.254/32 -j DROP"), ["FORWARD drop"]);
    assert_eq!(
        hits(&with("-A FORWARD -i docker0 -m conntrack --ctstate ESTABLISHED -j DROP"), &job()),
        ["FORWARD drop"]
    );
    // Once, what befalls both.
    assert_eq!(hits(&with("-A OUTPUT -m owner --uid-owner 7 -j DROP"), &own()), ["maybe OUTPUT drop"]);
}

#[test]
fn what_follows_the_first_packet_leaves_under_the_same_source() {
    let of = |late: &str| {
        let text = format!(
            "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o ens5 -j MASQUERADE\nCOMMIT\n*mangle\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s {late} -j DROP\nCOMMIT\n"
        );
        let mut chains = iptables::read(&text, "iptables");
        for chain in chains.iter_mut().filter(|chain| chain.table == "mangle") {
            chain.priority = 300;
        }
        hits(&chains, &job())
    };
    assert_eq!(of("172.17.0.2/32"), Vec::<String>::new());
    assert_eq!(of("10.77.0.10/32"), ["POSTROUTING drop"]);
}

#[test]
fn what_stands_for_all_others_matches_them_and_no_more() {
    let map = |key: &str, entries: &str| {
        by_nft(&format!(r#"[{{"vmap": {{"key": {key}, "data": {{"set": [{entries}]}}}}}}]"#), "")
    };
    let daddr = r#"{"payload": {"protocol": "ip", "field": "daddr"}}"#;
    let by = r#"{"meta": {"key": "iifname"}}"#;
    let (none, rest) = (Vec::<String>::new(), r#"["*", {"drop": null}]"#);
    assert_eq!(map(daddr, &format!(r#"["10.0.0.1", {{"accept": null}}], {rest}"#)), ["f drop"]);
    assert_eq!(map(daddr, rest), ["f drop"]);
    let ours = r#"["169.254.169.254", {"accept": null}], ["172.17.0.2", {"accept": null}]"#;
    assert_eq!(map(daddr, &format!("{rest}, {ours}")), none, "wherever it stands");
    assert_eq!(map(by, &format!(r#"["docker0", {{"continue": null}}], ["ens5", {{"accept": null}}], {rest}"#)), none);
    assert_eq!(
        map(by, &format!(r#"["docker0", {{"jump": {{"target": "g"}}}}], ["ens5", {{"accept": null}}], {rest}"#)),
        none,
        "one entry of a map, and not two"
    );
    let other = r#"{"ct": {"key": "zone"}}"#;
    assert_eq!(map(other, &format!(r#"[7, {{"accept": null}}], {rest}"#)), ["maybe f drop"; 2]);
    let set = |op: &str| {
        by_nft(
            &format!(
                r#"[{{"match": {{"op": "{op}", "left": {daddr}, "right": {{"set": ["10.0.0.1", "*"]}}}}}}, {{"drop": null}}]"#
            ),
            "",
        )
    };
    assert_eq!((set("=="), set("!=")), (vec!["f drop".to_owned()], none));
}

#[test]
fn a_map_that_could_not_be_read_is_not_taken_for_nothing() {
    let found = by_nft(r#"[{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": "@gone"}}]"#, "");
    assert!(!found.is_empty() && found.iter().all(|hit| hit.starts_with("maybe f asks")), "{found:?}");
}

#[test]
fn before_connections_are_tracked_nothing_has_a_state() {
    let of = |table: &str, state: &str| {
        let rule = format!("-A PREROUTING -i docker0 -m conntrack --ctstate {state} -j DROP");
        let text = format!("*{table}\n:PREROUTING ACCEPT [0:0]\n{rule}\nCOMMIT\n");
        hits(&iptables::read(&text, "iptables"), &job())
    };
    assert_eq!(of("raw", "INVALID"), ["maybe PREROUTING drop"]);
    assert_eq!(of("raw", "NEW"), ["maybe PREROUTING drop"]);
    assert_eq!(of("mangle", "INVALID"), Vec::<String>::new());
    assert_eq!(of("mangle", "NEW"), ["PREROUTING drop"]);
}

#[test]
fn answers_to_what_was_not_tracked_have_no_known_state() {
    let of = |raw: &str, filter: &str| {
        let text = format!(
            "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -d 169.254.169.254/32 -j NOTRACK\n{raw}\nCOMMIT\n*filter\n:INPUT DROP [0:0]\n-A INPUT -m conntrack --ctstate {filter}\nCOMMIT\n"
        );
        hits(&iptables::read(&text, "iptables"), &own())
    };
    let open = "INVALID -j DROP\n-A INPUT -j ACCEPT";
    assert_eq!(of("", open), ["maybe INPUT drop"]);
    assert_eq!(of("", "ESTABLISHED,UNTRACKED -j ACCEPT"), ["maybe INPUT policy"]);
    let both = "-A PREROUTING -s 169.254.169.254/32 -j NOTRACK";
    assert_eq!(of(both, open), Vec::<String>::new());
    assert_eq!(of(both, "ESTABLISHED,UNTRACKED -j ACCEPT"), Vec::<String>::new());
}

#[test]
fn a_dormant_table_is_not_asked() {
    let of = |flags: &str, text: &str| {
        let json = format!(
            r#"{{"nftables": [{{"table": {{"family": "inet", "name": "t", "handle": 1{flags}}}}},
            {{"chain": {{"family": "inet", "table": "t", "name": "f", "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}}}}]}}"#
        );
        hits(
            &nft::read(&json, &format!("table inet t {{ # handle 1\n{text}\tchain f {{ # handle 1\n")).expect("JSON"),
            &job(),
        )
    };
    let none = Vec::<String>::new();
    assert_eq!(of("", ""), ["f policy"]);
    assert_eq!(of("", "\tflags dormant\n"), none);
    assert_eq!(of("", "\tflags owner,dormant;\n"), none);
    assert_eq!(of(r#", "flags": ["dormant"]"#, ""), none);
    assert_eq!(of("", "\tset s {\n\t\tflags dormant\n\t}\n"), ["f policy"], "a set's own");
}

#[test]
fn whose_ttl_is_changed_is_known() {
    let of = |rule: &str| {
        let chain = rule.split(' ').next().unwrap_or_default();
        let text = format!("*mangle\n:{chain} ACCEPT [0:0]\n-A {rule}\nCOMMIT\n");
        fate(&iptables::read(&text, "iptables"), &job()).ttl_changed
    };
    assert!(of("PREROUTING -i ens5 -s 169.254.169.254/32 -j TTL --ttl-inc 1"));
    assert!(of("POSTROUTING -o docker0 -j TTL --ttl-dec 1"));
    assert!(of("FORWARD -i ens5 -j TTL --ttl-set 64"));
    assert!(!of("POSTROUTING -o ens5 -j TTL --ttl-set 65"), "requests alone");
    assert!(!of("PREROUTING -i ens5 -s 10.0.0.1/32 -j TTL --ttl-inc 1"));
}

#[test]
fn one_of_several_ports_or_addresses_is_not_taken_for_a_certain_one() {
    let map = r#"{"map": {"key": {"numgen": {"mode": "inc", "mod": 2, "offset": 0}}, "data": {"set": [[0, 8181], [1, 8182]]}}}"#;
    let range = r#"{"range": [8181, 8182]}"#;
    let rule = |kind: &str, body: &str| by_nft(&format!(r#"[{{"{kind}": {{{body}}}}}]"#), "");
    let redirected = |to: &str| [format!("f redirect({to:?})")];
    assert_eq!(rule("redirect", r#""port": 8181"#), redirected("this host, port 8181"));
    assert_eq!(rule("redirect", &format!(r#""port": {range}"#)), redirected("this host, port 8181-8182"));
    assert_eq!(rule("redirect", &format!(r#""port": {map}"#)), redirected("this host, port of several"));
    let to = r#""addr": "10.0.0.5", "port""#;
    assert_eq!(rule("dnat", &format!("{to}: 8181")), redirected("10.0.0.5:8181"));
    assert_eq!(rule("dnat", &format!("{to}: {range}")), redirected("10.0.0.5:8181-8182"));
    assert_eq!(rule("dnat", &format!("{to}: {map}")), redirected("10.0.0.5:of several"));
    let addresses = r#""addr": {"range": ["10.0.0.5", "10.0.0.9"]}"#;
    assert_eq!(rule("dnat", addresses), redirected("elsewhere"));
}
