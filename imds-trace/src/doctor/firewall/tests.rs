//! Are real rules, as their tools show them, understood?

use std::net::IpAddr;

use super::rules::{Chain, Hook, Verdict, walk};
use super::{Client, Heading, iptables, nft};

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
        bridge: Some("docker0".into()),
        uplink: Some("ens5".into()),
        endpoint: endpoint.parse().expect("an address"),
    }
}

fn own() -> Client {
    Client { address: "10.0.0.10".parse().ok(), bridge: None, ..container("169.254.169.254") }
}

/// What happens to a client's packets besides being let through: `sure`, the chain, the verdict.
fn hits(chains: &[Chain], client: &Client) -> Vec<String> {
    let mut found = Vec::new();
    for (_, hook, packet) in client.packets() {
        for hit in walk(chains, hook, &packet) {
            let verdict = hit.rule.map(|rule| &rule.verdict);
            if verdict == Some(&Verdict::Accept) || verdict == Some(&Verdict::Masquerade) {
                continue;
            }
            let sure = if hit.sure { "" } else { "maybe " };
            let what = verdict.map_or("policy".to_owned(), |verdict| format!("{verdict:?}").to_lowercase());
            found.push(format!("{sure}{} {what}", hit.chain.name));
        }
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
    let unknown = Client { bridge: Some("br-other".into()), ..container("169.254.169.254") };
    assert_eq!(hits(&chains, &unknown), ["FORWARD policy", "FORWARD policy"]);
}

#[test]
fn docker_masquerades_what_leaves_its_bridge() {
    let chains = iptables::read(DOCKER, "iptables");
    let masquerades = |client: &Client| {
        let packets = client.packets();
        let outward =
            packets.iter().filter(|(heading, hook, _)| (*heading, *hook) == (Heading::Request, Hook::Postrouting));
        let hits = outward.flat_map(|(_, hook, packet)| walk(&chains, *hook, packet));
        hits.filter(|hit| hit.rule.is_some_and(|rule| rule.verdict == Verdict::Masquerade))
            .map(|hit| hit.sure)
            .collect::<Vec<_>>()
    };
    assert_eq!(masquerades(&container("169.254.169.254")), [true]);
    let elsewhere = Client { address: "172.19.0.2".parse().ok(), ..container("169.254.169.254") };
    assert_eq!(masquerades(&elsewhere), Vec::<bool>::new());
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
        "-A OUTPUT -j SUB\n-A OUTPUT -d 169.254.169.254 -j DROP\n-A SUB -m mark --mark 0x1 -j ACCEPT",
    ] {
        let found = hits(&with(rule), &own());
        assert!(!found.is_empty() && found.iter().all(|hit| hit.starts_with("maybe")), "{rule}: {found:?}");
    }
}

#[test]
fn a_saved_file_with_everything_in_it_is_read() {
    let chains = iptables::read(SAVED, "iptables");
    assert_eq!(
        hits(&chains, &container("169.254.169.254")),
        ["PREROUTING redirect(\"10.0.0.5:8181\")", "DOCKER-USER reject", "FORWARD policy"]
    );
    assert_eq!(hits(&chains, &own()), ["maybe OUTPUT drop", "OUTPUT redirect(\"this host, port 8181\")"]);
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
        let jump = format!("-A C{number} -m mark --mark 0x1 -j C{}\n", number + 1);
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
    let bridged = Client { bridge: Some("br-4711".into()), ..job.clone() };
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
fn what_hangs_on_a_card_or_in_a_bridge_may_be() {
    assert!(hits(&nft_rules(), &own()).contains(&"maybe ing drop".to_owned()));
}
