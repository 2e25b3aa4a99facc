//! Does it follow packets through what lies between: other ports, other addresses, bridges that come and go?

use std::collections::BTreeSet;
use std::time::Duration;

use imds_trace_tests::expect::{expect_equal, expect_that, wait_until};
use imds_trace_tests::obstacle::{self, Family};
use imds_trace_tests::topology::Nested;
use imds_trace_tests::{Container, NetworkSpec};
use serde_json::json;

use crate::Lab;
use crate::trace::{SOON, client, go, hops, ours_on, run_all, watched};

crate::tests![
    a_source_port_changed_by_masquerading_is_followed,
    a_source_port_from_a_masquerading_rule_is_followed,
    a_lost_answer_behind_a_changed_port_is_the_right_containers,
    a_bridge_that_comes_back_is_followed_again,
    a_packet_with_ip_options_is_read,
    a_nested_bridge_needs_one_hop_more,
];

type Outcome = anyhow::Result<()>;

/// Two containers with the same few source ports, of which the kernel takes the even ones first: masquerading must give one
/// of them another. The second begins when `begun` says so of the first, for two that begin in the same microsecond on two
/// processors may be given the same port, and then the kernel drops the packet of one.
fn rivals(
    lab: &Lab,
    words: [&str; 2],
    connections: usize,
    begun: impl FnOnce(&Container) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Container>> {
    let run = |name: &str, words: &str| -> anyhow::Result<Container> {
        let spec = client(name, &format!("{words} --user-agent {name}"));
        let container = lab.host.run(spec)?;
        container
            .namespace()?
            .sysctl("net/ipv4/ip_local_port_range", &format!("40000 {}", 40000 + 2 * connections - 1))?;
        Ok(container)
    };
    let containers = vec![run("rival-1", words[0])?, run("rival-2", words[1])?];
    containers[0].go()?;
    begun(&containers[0])?;
    go(&containers[1..])?;
    containers[0].wait(SOON)?;
    let ports = containers.iter().map(|container| -> anyhow::Result<_> {
        let attempts = container.attempts()?;
        Ok(attempts.iter().filter_map(|attempt| attempt["port"].as_u64()).collect::<BTreeSet<_>>())
    });
    let ports = ports.collect::<anyhow::Result<Vec<_>>>()?;
    expect_that("both used one port, so one of them left by another", !ports[0].is_disjoint(&ports[1]), &ports)?;
    Ok(containers)
}

fn a_source_port_changed_by_masquerading_is_followed(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (seen, containers) = watched(lab, &[], |_| {
        let words = "v2 --count 8";
        rivals(lab, [words, words], 16, |first| first.wait(SOON).map(drop))
    })?;
    seen.expect_no_error()?;
    for container in &containers {
        seen.expect_answered(container, 16, &["docker0 ingress", "ens5 egress"], &["ens5 ingress", "docker0 egress"])?;
        for exchange in seen.exchanges(container) {
            expect_that("it is attributed right", exchange["user_agent"] == container.name(), exchange)?;
            expect_that(
                "the client's own address is told",
                exchange["client"]["address"] == json!(container.address()),
                exchange,
            )?;
            expect_that(
                "with its own port",
                exchange["client"]["port"].as_u64().is_some_and(|port| (40000..40032).contains(&port)),
                exchange,
            )?;
            for travel in ["request", "response"] {
                expect_equal("it says how it was joined", exchange[travel]["join"].as_str(), Some("rewritten"))?;
            }
        }
    }
    expect_equal("nobody else asked", seen.outcome.exchanges().len(), 32)?;
    Ok(())
}

fn a_source_port_from_a_masquerading_rule_is_followed(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let rule = "POSTROUTING -o ens5 -s 172.16.0.0/12 -p tcp --dport 80 -j MASQUERADE --to-ports 20000-20999";
    let _masquerade = obstacle::iptables_rule(lab.host.runner(), Family::V4, "nat", rule)?;
    let (seen, containers) = watched(lab, &[], |_| {
        let clients = ["ported-1", "ported-2"].map(|name| client(name, &format!("v2 --count 8 --user-agent {name}")));
        run_all(lab, clients.into())
    })?;
    let requests = lab.host.imds().requests();
    let changed = requests.iter().all(|request| (20000..21000).contains(&request.peer_port));
    expect_that("all came from ports of the rule", changed && requests.len() == 32, &requests)?;
    seen.expect_no_error()?;
    for container in &containers {
        seen.expect_answered(container, 16, &["docker0 ingress", "ens5 egress"], &["ens5 ingress", "docker0 egress"])?;
        let attempts = container.attempts()?;
        let used: BTreeSet<_> = attempts.iter().filter_map(|attempt| attempt["port"].as_u64()).collect();
        for exchange in seen.exchanges(container) {
            expect_that("it is attributed right", exchange["user_agent"] == container.name(), exchange)?;
            let port = exchange["client"]["port"].as_u64();
            expect_that("the client's own port is told", port.is_some_and(|port| used.contains(&port)), exchange)?;
        }
    }
    Ok(())
}

fn a_lost_answer_behind_a_changed_port_is_the_right_containers(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(500));
    let (seen, containers) = watched(lab, &[], |_| {
        // Both have requests under way at the same time, and never begin one at the same time.
        let words = ["put-only --count 3 --timeout-ms 300", "put-only --count 3 --timeout-ms 350"];
        rivals(lab, words, 3, |_| {
            let asked = || (!lab.host.imds().requests().is_empty()).then_some(());
            wait_until("the first one's first request", SOON, asked)
        })
    })?;
    let mut sum = 0;
    for container in &containers {
        sum += seen.expect_too_low(container, "ip_forward", 2)?;
        for exchange in seen.exchanges(container) {
            expect_that("it is attributed right", exchange["user_agent"] == container.name(), exchange)?;
        }
    }
    expect_equal("each copy is counted once", sum, seen.header_errors)?;
    seen.expect_reconciled()?;
    expect_equal("nobody else asked", seen.outcome.exchanges().len(), 6)?;
    Ok(())
}

fn a_bridge_that_comes_back_is_followed_again(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let hangs_there = || ours_on(lab.host.runner()).ok().map(|all| all.iter().any(|one| one.interface == "br-again"));
    let (seen, (first, second)) = watched(lab, &[], |_| {
        let name = "com.docker.network.bridge.name=br-again".to_owned();
        let spec = NetworkSpec { extra: vec!["--opt".into(), name], ..NetworkSpec::new("again") };
        let ask = |name: &str| run_all(lab, vec![client(name, "v2").network("again")]);
        let network = lab.host.network_create(spec.clone())?;
        let first = ask("before")?.remove(0).id().to_owned();
        drop(network);
        let network = lab.host.network_create(spec)?;
        wait_until("the tracer to listen on the new bridge", SOON, || hangs_there().filter(|hangs| *hangs))?;
        let second = ask("after")?.remove(0).id().to_owned();
        drop(network);
        Ok((first, second))
    })?;
    seen.expect_no_error()?;
    for id in [first, second] {
        let exchanges: Vec<_> =
            seen.outcome.exchanges().into_iter().filter(|one| one["container"]["id"] == *id).collect();
        expect_equal("both were seen", exchanges.len(), 2)?;
        for exchange in exchanges {
            expect_equal("on the way out", hops(&exchange["request"]), vec!["br-again ingress", "ens5 egress"])?;
            expect_equal("and back", hops(&exchange["response"]), vec!["ens5 ingress", "br-again egress"])?;
        }
    }
    Ok(())
}

fn a_packet_with_ip_options_is_read(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (seen, containers) =
        watched(lab, &[], |_| run_all(lab, vec![client("optional", "v2 --ip-options 8 --user-agent with-options")]))?;
    let container = &containers[0];
    seen.expect_no_error()?;
    seen.expect_answered(container, 2, &["docker0 ingress", "ens5 egress"], &["ens5 ingress", "docker0 egress"])?;
    for exchange in seen.exchanges(container) {
        expect_equal("what follows the options is read", exchange["user_agent"].as_str(), Some("with-options"))?;
    }
    Ok(())
}

fn a_nested_bridge_needs_one_hop_more(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.give_up) = (2, Duration::from_millis(500)));
    let (seen, nested) = watched(lab, &[], |_| {
        let nested = Nested::start(&lab.host, "outer")?;
        nested.asks("put-only --count 2 --timeout-ms 300")?;
        Ok(nested)
    })?;
    let outer = nested.outer();
    let finding = seen.only(outer, "hop-limit-too-low")?;
    expect_equal("what it says of the limit", &finding["hop_limit"], &json!({"observed": 2, "needed": 3}))?;
    let drop = &finding["drop"];
    expect_equal("it died in the container's namespace", &drop["netns"], &json!(outer.netns_inum()?))?;
    expect_equal("where that forwards", drop["location"].as_str(), Some("ip_forward"))?;
    expect_equal("on the container's interface", drop["interface"].as_str(), Some("eth0"))?;
    expect_equal("nothing died on the host", seen.header_errors, 0)?;
    seen.expect_rules(outer, &["hop-limit-too-low"])?;
    Ok(())
}
