//! Does every command that `doctor` offers mend what it is offered for, as it stands, and nothing else?

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use imds_trace_tests::expect::expect_that;
use imds_trace_tests::obstacle::{self, Family, Traffic, Verdict};
use imds_trace_tests::{Container, Engine, NetworkSpec};

use crate::Lab;
use crate::doctor::{Undo, changed, doctor, sysctl, waiting};

crate::tests![
    forwarding_that_is_off_is_mended,
    one_interface_that_does_not_forward_is_mended,
    a_strict_interface_is_mended,
    a_network_that_is_not_masqueraded_is_mended,
    a_rule_in_a_containers_own_namespace_is_mended,
    what_others_set_up_is_never_offered_to_be_deleted,
];

type Outcome = anyhow::Result<()>;

/// All that a command on this host could change, a line each: rules, routes, addresses and the sysctls of the network.
fn state(lab: &Lab, container: Option<&Container>) -> Result<BTreeSet<String>> {
    let runner = lab.host.runner();
    let mut lines = BTreeSet::new();
    let mut add = |whose: &str, text: String| {
        lines.extend(
            // A bridge loses its carrier a moment after its last container has gone: of another test.
            text.lines()
                .map(|line| format!("{whose} {}", line.trim().trim_end_matches(" linkdown")))
                .filter(|line| !line.contains("# Completed")),
        );
    };
    for (what, words) in [
        ("rules", &["nft", "-s", "list", "ruleset"][..]),
        ("routes", &["ip", "-4", "route", "show", "table", "all"]),
        ("policy", &["ip", "rule"]),
        ("addresses", &["ip", "-4", "-o", "addr"]),
        ("links", &["ip", "-br", "link"]),
    ] {
        add(what, runner.run(words[0], &words[1..])?);
    }
    let sysctls =
        "for file in /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/*; do echo \"$file $(cat $file)\"; done";
    add("sysctl", runner.run("sh", &["-c", sysctls])?);
    if let Some(container) = container {
        add("inside", container.namespace()?.run("nft", &["-s", "list", "ruleset"])?);
    }
    Ok(lines)
}

/// Types what is offered by the one answer of a check that has a mend. Then nothing of the check is broken or warned of, and only lines
/// changed that have one of these parts.
fn mended(lab: &Lab, container: Option<&Container>, check: &str, lowers_safety: bool, parts: &[&str]) -> Outcome {
    let bad = |answer: &&serde_json::Value| {
        answer["check"] == check && answer["mend"].is_string() && answer["status"] != "ok"
    };
    let answers = doctor(lab, &[])?;
    let offered: BTreeSet<&str> = answers.iter().filter(bad).filter_map(|answer| answer["mend"].as_str()).collect();
    let mend = *offered.first().with_context(|| format!("{check} offers a command: {answers:#?}"))?;
    expect_that("one command is offered", offered.len() == 1, &offered)?;
    expect_that("it says if it lowers safety", mend.contains("# lowers safety") == lowers_safety, mend)?;
    let before = state(lab, container)?;
    lab.host.runner().run("sh", &["-c", mend])?;
    let after = state(lab, container)?;
    let other = |line: &&String| !parts.iter().any(|part| line.contains(part));
    let others: Vec<&String> = before.symmetric_difference(&after).filter(other).collect();
    expect_that(&format!("{mend} changes nothing else"), others.is_empty(), &others)?;
    expect_that("it changes something", before != after, mend)?;
    let answers = doctor(lab, &[])?;
    let left: Vec<_> = answers
        .iter()
        .filter(|answer| answer["check"] != "kernel" && (answer["status"] == "broken" || answer["status"] == "warning"))
        .collect();
    expect_that(&format!("{mend} mends it"), left.is_empty(), &left)
}

fn forwarding_that_is_off_is_mended(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let _off = sysctl(lab.host.runner(), "net/ipv4/ip_forward", "0", "1")?;
    mended(lab, None, "ip-forward", true, &["/ip_forward ", "/forwarding ", "/accept_redirects "])
}

fn one_interface_that_does_not_forward_is_mended(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let _off = sysctl(lab.host.runner(), "net/ipv4/conf/ens5/forwarding", "0", "1")?;
    mended(lab, None, "ip-forward", true, &["/ens5/forwarding "])
}

fn a_strict_interface_is_mended(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let runner = lab.host.runner();
    let _other = changed(runner, "ip", "link add ens6 type veth peer name beyond", "link del ens6")?;
    for words in ["addr add 10.88.0.10/24 dev ens6", "link set ens6 up", "link set beyond up"] {
        runner.ip(words)?;
    }
    runner.ip("route add 169.254.169.254 dev ens6 table 100")?;
    let mark = "PREROUTING -i docker0 -d 169.254.169.254 -j MARK --set-mark 7";
    let _mark = obstacle::iptables_rule(runner, Family::V4, "mangle", mark)?;
    let _rule = changed(runner, "ip", "rule add fwmark 7 lookup 100", "rule del fwmark 7 lookup 100")?;
    runner.sysctl("net/ipv4/conf/ens6/rp_filter", "1")?;
    mended(lab, None, "rp-filter", true, &["/ens6/rp_filter "])
}

fn a_network_that_is_not_masqueraded_is_mended(lab: &Lab) -> Outcome {
    let network = lab.host.network_create(NetworkSpec::new("bare").unmasqueraded())?;
    let _job =
        lab.host.run(imds_trace_tests::ContainerSpec::new("job-17", &["sleep", "1000"]).network(network.name()))?;
    let runner = lab.host.runner();
    let rules = || runner.run("iptables-save", &["-t", "nat"]);
    let before = rules()?;
    let _back = Undo(|| {
        // The engine does not take away what is not its own.
        for line in rules().unwrap_or_default().lines().filter(|line| !before.contains(*line)) {
            if let Some(rule) = line.strip_prefix("-A ") {
                let words = format!("-w -t nat -D {rule}");
                let _ = runner.run("iptables", &words.split_whitespace().collect::<Vec<_>>());
            }
        }
    });
    mended(lab, None, "masquerade", true, &["169.254.169.254"])
}

fn a_rule_in_a_containers_own_namespace_is_mended(lab: &Lab) -> Outcome {
    let job = waiting(lab, "job-17")?;
    let inside = job.namespace()?;
    // Taken away by the command that is offered, so that taking it away again fails, which nobody hears.
    let _rule = obstacle::iptables(&inside, "OUTPUT", Family::V4, Traffic::ToImds, Verdict::Drop)?;
    mended(lab, Some(&job), "firewall", true, &["inside ip daddr 169.254.169.254"])
}

fn what_others_set_up_is_never_offered_to_be_deleted(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let runner = lab.host.runner();
    let chains = [
        "KUBE-POD-FW-AAAA",
        "cali-fw-eth0",
        "CILIUM_FORWARD",
        "ufw-user-forward",
        "FWDI_public",
        "f2b-imds",
        "ts-forward",
    ];
    for chain in chains {
        let _jump = chained(lab, chain)?;
        let answers = doctor(lab, &[])?;
        let named = answers.iter().filter(|answer| {
            answer["check"] == "firewall" && answer["summary"].as_str().is_some_and(|said| said.contains(chain))
        });
        let named: Vec<_> = named.collect();
        expect_that(&format!("{chain} is named"), !named.is_empty(), &answers)?;
        expect_that("and left alone", named.iter().all(|answer| answer["mend"].is_null()), &named)?;
        expect_that(
            "with whose it is",
            named.iter().all(|answer| answer["summary"].to_string().contains("set it up")),
            &named,
        )?;
    }
    if lab.host.engine() == Engine::Docker {
        // The isolation of networks, as where a route leads into another of them.
        let other = lab.host.network_create(NetworkSpec::new("other"))?;
        let (to, back) = (
            format!("addr add 169.254.77.5/16 dev {}", other.bridge()),
            format!("addr del 169.254.77.5/16 dev {}", other.bridge()),
        );
        let _address = changed(runner, "ip", &to, &back)?;
        let answers = doctor(lab, &[])?;
        let deletes = answers.iter().filter(|answer| answer["mend"].as_str().is_some_and(|mend| mend.contains(" -D ")));
        expect_that("no rule of the engine is offered to be deleted", deletes.count() == 0, &answers)?;
    }
    Ok(())
}

/// A chain that drops IMDS traffic, and a jump to it from `FORWARD`; gone when the result is.
fn chained<'a>(lab: &'a Lab, chain: &'a str) -> Result<Undo<impl FnMut() + 'a>> {
    let runner = lab.host.runner();
    let iptables = move |words: &str| runner.run("iptables", &words.split_whitespace().collect::<Vec<_>>());
    iptables(&format!("-w -N {chain}"))?;
    let undo = Undo(move || {
        for words in [format!("-w -D FORWARD -j {chain}"), format!("-w -F {chain}"), format!("-w -X {chain}")] {
            let _ = iptables(&words);
        }
    });
    iptables(&format!("-w -A {chain} -d 169.254.169.254/32 -p tcp -j DROP"))?;
    iptables(&format!("-w -I FORWARD -j {chain}"))?;
    Ok(undo)
}
