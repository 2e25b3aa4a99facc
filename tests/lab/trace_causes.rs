//! Is every cause named by its own rule, and by no other error, when the kernel and IMDS really make it happen?

use std::time::Duration;

use anyhow::Context;
use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::obstacle::{self, Family, MetadataProxy, Traffic, Verdict};
use imds_trace_tests::topology::{Nested, Relayed};
use imds_trace_tests::{Container, ContainerSpec, Namespace, NetworkSpec, Obstacle};
use serde_json::{Value, json};

use crate::Lab;
use crate::trace::{SOON, Seen, client, run_all, watched};

crate::tests![
    a_firewall_that_drops_is_named_with_its_hook,
    a_firewall_that_rejects_is_a_refusal_by_this_host,
    a_firewall_in_the_containers_own_namespace_is_named,
    a_firewall_that_rejects_in_the_containers_own_namespace_is_named,
    a_server_that_does_not_listen_refuses_from_beyond,
    a_server_that_resets_refuses_the_request,
    a_container_without_a_route_never_leaves,
    a_route_that_says_no_is_no_route,
    a_gateway_that_does_not_answer_is_named,
    a_host_without_a_route_is_named,
    a_stale_neighbour_is_named,
    an_answer_that_fails_the_reverse_path_is_named,
    a_request_that_leaves_unmasqueraded_is_named,
    a_proxy_that_answers_is_no_imds,
    a_redirect_to_nobody_is_a_refusal_by_this_host,
    a_redirect_to_loopback_is_named,
    a_host_that_does_not_forward_is_named,
    an_answer_that_this_host_sends_elsewhere_is_named,
    a_hop_lost_behind_a_second_bridge_needs_three,
    a_hop_lost_behind_a_relay_needs_three,
    a_firewall_behind_a_second_bridge_is_named,
];

type Outcome = anyhow::Result<()>;

/// What is put in a container's way, given its namespace.
type PutUp<'a> = Box<dyn FnOnce(&Namespace) -> anyhow::Result<Obstacle> + 'a>;

/// One trace of containers that ask one after the other, each with something of its own in the way until all of it is over.
fn asked_in_turn(lab: &Lab, turns: Vec<(ContainerSpec, PutUp)>) -> anyhow::Result<(Seen, Vec<Container>)> {
    watched(lab, &[], |_| {
        let turns = turns.into_iter().map(|(spec, put_up)| {
            let container = lab.host.run(spec)?;
            let _obstacle = put_up(&container.namespace()?)?;
            container.go()?;
            container.wait(SOON)?;
            lab.host.settle(SOON)?;
            Ok(container)
        });
        turns.collect()
    })
}

/// A container that asks while something is in the way.
pub fn asked<'a>(
    lab: &Lab,
    spec: ContainerSpec,
    put_up: impl FnOnce(&Namespace) -> anyhow::Result<Obstacle> + 'a,
) -> anyhow::Result<(Seen, Container)> {
    let (seen, mut containers) = asked_in_turn(lab, vec![(spec, Box::new(put_up))])?;
    Ok((seen, containers.remove(0)))
}

/// The one rule that found something about the container; its finding.
pub fn only_error<'a>(seen: &'a Seen, container: &Container, rule: &str) -> anyhow::Result<&'a Value> {
    Ok(only_errors(seen, std::slice::from_ref(container), rule)?[0])
}

/// The one rule that found something about each of these containers, and nothing about anybody else; its findings.
fn only_errors<'a>(seen: &'a Seen, containers: &[Container], rule: &str) -> anyhow::Result<Vec<&'a Value>> {
    let is_theirs = |finding: &&Value| containers.iter().any(|container| seen.is_about(finding, container));
    let others: Vec<_> = seen.findings().into_iter().filter(|finding| !is_theirs(finding)).collect();
    expect_that("nothing is found about anybody else", others.is_empty(), &others)?;
    let only = |container: &Container| {
        seen.expect_rules(container, &[rule])?;
        let finding = seen.only(container, rule)?;
        expect_that("it says what to do", finding["remedy"].as_array().is_some_and(|it| !it.is_empty()), finding)?;
        Ok(finding)
    };
    containers.iter().map(only).collect()
}

pub fn expect_says(finding: &Value, part: &str) -> anyhow::Result<()> {
    let summary = finding["summary"].as_str().unwrap_or_default();
    expect_that(&format!("it says {part:?}"), summary.contains(part), summary)
}

fn endpoint(family: Family) -> String {
    format!("put-only --timeout-ms 400 --endpoint {}", family.endpoint())
}

fn a_firewall_that_drops_is_named_with_its_hook(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let runner = lab.host.runner();
    let mut turns: Vec<(ContainerSpec, PutUp)> = Vec::new();
    let mut says = Vec::new();
    for (name, family) in [("fenced-v4", Family::V4), ("fenced-v6", Family::V6)] {
        let put_up = move |_: &Namespace| {
            obstacle::docker_user(&lab.host, family, Traffic::ToImds, Verdict::Drop)
                .or_else(|_| obstacle::iptables(runner, "FORWARD", family, Traffic::ToImds, Verdict::Drop))
        };
        turns.push((client(name, &endpoint(family)), Box::new(put_up)));
        says.push("of this host at netfilter's FORWARD hook");
    }
    for (name, hook, shown) in [
        ("nft-forward", "forward", "netfilter's FORWARD hook"),
        ("nft-prerouting", "prerouting", "netfilter's PREROUTING hook"),
        ("nft-postrouting", "postrouting", "netfilter's POSTROUTING hook"),
    ] {
        let put_up = move |_: &Namespace| obstacle::nft(runner, hook, Family::V4, Traffic::ToImds, Verdict::Drop);
        turns.push((client(name, &endpoint(Family::V4)), Box::new(put_up)));
        says.push(shown);
    }
    let put_up = |_: &Namespace| obstacle::nft(runner, "forward", Family::V6, Traffic::Answers, Verdict::Drop);
    turns.push((client("nft-back", &endpoint(Family::V6)), Box::new(put_up)));
    says.push("A response packet");
    let (seen, containers) = asked_in_turn(lab, turns)?;
    let findings = only_errors(&seen, &containers, "firewall-drop")?;
    for (finding, part) in findings.iter().zip(says) {
        expect_says(finding, part)?;
    }
    for finding in &findings[..2] {
        expect_equal("how sure", finding["confidence"].as_str(), Some("certain"))?;
    }
    Ok(())
}

fn a_firewall_that_rejects_is_a_refusal_by_this_host(lab: &Lab) -> Outcome {
    let nft = |family, verdict| obstacle::nft(lab.host.runner(), "forward", family, Traffic::ToImds, verdict);
    let docker_user = |verdict| obstacle::docker_user(&lab.host, Family::V4, Traffic::ToImds, verdict);
    let v4 = |name| client(name, &endpoint(Family::V4));
    let v6 = client("rejected-v6", &endpoint(Family::V6));
    let (seen, containers) = asked_in_turn(
        lab,
        vec![
            (v4("rejected-iptables"), Box::new(|_| docker_user(Verdict::Reject))),
            (v4("rejected-nft"), Box::new(|_| nft(Family::V4, Verdict::Reject))),
            (v4("reset-iptables"), Box::new(|_| docker_user(Verdict::Reset))),
            (v4("reset-nft"), Box::new(|_| nft(Family::V4, Verdict::Reset))),
            (v6, Box::new(|_| nft(Family::V6, Verdict::Reject))),
        ],
    )?;
    let findings = only_errors(&seen, &containers, "refused")?;
    // With br_netfilter the kernel sends its reset out by the bridge's port, past the hook on the bridge.
    let (icmp, reset) = ("ICMP port unreachable", "was refused with ");
    for (finding, form) in findings.iter().zip([icmp, icmp, reset, reset]) {
        expect_says(finding, form)?;
        expect_says(finding, "from this host: a firewall rule rejects it at netfilter's FORWARD hook")?;
    }
    expect_says(findings[4], "ICMP port unreachable sent by fd")?;
    Ok(())
}

fn a_firewall_in_the_containers_own_namespace_is_named(lab: &Lab) -> Outcome {
    let turn = |name: &str, family: Family| -> (ContainerSpec, PutUp) {
        let put_up = move |own: &Namespace| obstacle::iptables(own, "OUTPUT", family, Traffic::ToImds, Verdict::Drop);
        (client(name, &endpoint(family)), Box::new(put_up))
    };
    let (seen, containers) = asked_in_turn(lab, vec![turn("own-v4", Family::V4), turn("own-v6", Family::V6)])?;
    for finding in only_errors(&seen, &containers, "firewall-drop")? {
        expect_says(finding, "of the client's own network namespace at netfilter's OUTPUT hook")?;
        let remedy = finding["remedy"][0].as_str().unwrap_or_default();
        expect_that("the command enters that namespace", remedy.starts_with("nsenter -t "), remedy)?;
    }
    Ok(())
}

fn a_firewall_that_rejects_in_the_containers_own_namespace_is_named(lab: &Lab) -> Outcome {
    // The first error comes while connect() holds the socket and is not heard; that of the next SYN, a second later, is.
    let (seen, container) = asked(lab, client("own-reject", "put-only --timeout-ms 2500"), |own| {
        obstacle::nft(own, "output", Family::V4, Traffic::ToImds, Verdict::Reject)
    })?;
    let finding = only_error(&seen, &container, "refused")?;
    expect_says(
        finding,
        "from the client's own network namespace: a firewall rule rejects it at netfilter's OUTPUT hook",
    )?;
    Ok(())
}

fn a_server_that_does_not_listen_refuses_from_beyond(lab: &Lab) -> Outcome {
    let closed = lab.host.imds().stop_listening();
    let (seen, container) = asked(lab, client("refused", &endpoint(Family::V4)), |_| Ok(Obstacle::default()))?;
    drop(closed);
    let finding = only_error(&seen, &container, "refused")?;
    expect_says(
        finding,
        "The connection attempt of container refused was refused with a TCP reset, from beyond this host",
    )?;
    Ok(())
}

fn a_server_that_resets_refuses_the_request(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.reset_after_request = true);
    let (seen, container) = asked(lab, client("cut", &endpoint(Family::V4)), |_| Ok(Obstacle::default()))?;
    expect_says(only_error(&seen, &container, "refused")?, "The PUT /latest/api/token of container cut was refused")?;
    Ok(())
}

fn a_container_without_a_route_never_leaves(lab: &Lab) -> Outcome {
    let turn = |name: &str, family: Family| -> (ContainerSpec, PutUp) {
        let words = format!("put-only --count 3 --endpoint {}", family.endpoint());
        (client(name, &words), Box::new(move |own| obstacle::no_route(own, family)))
    };
    let (seen, containers) = asked_in_turn(lab, vec![turn("astray-v4", Family::V4), turn("astray-v6", Family::V6)])?;
    for finding in only_errors(&seen, &containers, "no-route")? {
        expect_equal("each connect", &finding["count"], &json!(3))?;
        expect_equal("how sure", finding["confidence"].as_str(), Some("likely"))?;
        expect_says(finding, "no SYN followed")?;
    }
    for exchange in containers.iter().flat_map(|container| seen.exchanges(container)) {
        expect_that("no address is made up", exchange["client"].is_null(), exchange)?;
        expect_that("the process is known", exchange["process"]["comm"] == "imds-client", exchange)?;
    }
    Ok(())
}

fn a_route_that_says_no_is_no_route(lab: &Lab) -> Outcome {
    let turn = |kind: &'static str| -> (ContainerSpec, PutUp) {
        (client(kind, "put-only"), Box::new(move |own| obstacle::prohibited_route(own, Family::V4, kind)))
    };
    let (seen, containers) = asked_in_turn(lab, ["prohibit", "unreachable", "blackhole"].map(turn).into())?;
    only_errors(&seen, &containers, "no-route")?;
    Ok(())
}

fn a_gateway_that_does_not_answer_is_named(lab: &Lab) -> Outcome {
    let turn = |name: &str, words: &str| -> (ContainerSpec, PutUp) {
        let nowhere = |own: &Namespace| own.ip("route replace default via 172.17.0.99").map(|_| Obstacle::default());
        (client(name, words), Box::new(nowhere))
    };
    // The first gives up before ARP does, the second after it.
    let turns = vec![turn("lonely", "put-only --timeout-ms 800"), turn("lonelier", "put-only --timeout-ms 6000")];
    let (seen, containers) = asked_in_turn(lab, turns)?;
    let findings = only_errors(&seen, &containers, "no-route")?;
    expect_says(findings[0], "no packet of it was seen")?;
    let remedy = findings[0]["remedy"][0].as_str().unwrap_or_default();
    expect_that("the command enters the namespace by a process that lives", remedy.starts_with("nsenter -t "), remedy)?;
    expect_says(findings[1], "does not answer")?;
    Ok(())
}

fn a_host_without_a_route_is_named(lab: &Lab) -> Outcome {
    let runner = lab.host.runner();
    let v4 = |name| client(name, &endpoint(Family::V4));
    let (seen, containers) = asked_in_turn(
        lab,
        vec![
            (v4("stranded"), Box::new(|_| obstacle::no_route(runner, Family::V4))),
            (v4("host-prohibit"), Box::new(|_| obstacle::prohibited_route(runner, Family::V4, "prohibit"))),
            (v4("host-blackhole"), Box::new(|_| obstacle::prohibited_route(runner, Family::V4, "blackhole"))),
        ],
    )?;
    expect_says(only_errors(&seen, &containers, "no-route")?[0], "this host has no route for it")?;
    Ok(())
}

fn a_stale_neighbour_is_named(lab: &Lab) -> Outcome {
    let spec = client("moved", &endpoint(Family::V4));
    let (seen, container) = asked(lab, spec, |own| obstacle::stale_neighbour(&lab.host, own))?;
    // Without reasons it cannot be told from a copy that a bridge flooded.
    if seen.reason("OTHERHOST")?.is_none() {
        return seen.expect_no_error();
    }
    let finding = only_error(&seen, &container, "kernel-drop")?;
    expect_says(finding, "stale neighbour entry")?;
    expect_equal("it is not sure", &finding["confidence"], &json!("likely"))?;
    Ok(())
}

fn an_answer_that_fails_the_reverse_path_is_named(lab: &Lab) -> Outcome {
    let (seen, container) =
        asked(lab, client("misled", "put-only --timeout-ms 1500"), |_| obstacle::reverse_path(&lab.host))?;
    let finding = only_error(&seen, &container, "reverse-path")?;
    expect_equal("why", finding["drop"]["reason"].as_str(), seen.reason("IP_RPFILTER")?)?;
    expect_says(finding, "reverse-path filtering on ens5")?;
    Ok(())
}

fn a_request_that_leaves_unmasqueraded_is_named(lab: &Lab) -> Outcome {
    let network = lab.host.network_create(NetworkSpec::new("bare").unmasqueraded())?;
    let words = "put-only --timeout-ms 1500";
    let (seen, container) = asked(lab, client("bare-one", words).network(network.name()), |_| Ok(Obstacle::default()))?;
    let finding = only_error(&seen, &container, "not-masqueraded")?;
    let address = container.address().map(|it| it.to_string()).unwrap_or_default();
    expect_says(finding, &format!("the source address {address}"))?;
    Ok(())
}

fn a_proxy_that_answers_is_no_imds(lab: &Lab) -> Outcome {
    let proxy = MetadataProxy::start(&lab.host, "docker0")?;
    let (seen, containers) = watched(lab, &[], |_| {
        run_all(lab, vec![client("proxied", "v2"), client("direct", "put-only").network("host")])
    })?;
    seen.expect_rules(&containers[0], &["answered-locally"])?;
    let finding = seen.only(&containers[0], "answered-locally")?;
    expect_equal("how bad", finding["severity"].as_str(), Some("warning"))?;
    expect_equal("both answers", &finding["count"], &json!(2))?;
    seen.expect_no_error()?;
    expect_that("who asks EC2 itself is not meant", !seen.rules(&containers[1]).contains(&"answered-locally"), ())?;
    expect_equal("the proxy was asked", proxy.imds().requests().len(), 2)?;
    Ok(())
}

fn a_redirect_to_nobody_is_a_refusal_by_this_host(lab: &Lab) -> Outcome {
    let (seen, container) = asked(lab, client("stale-proxy", &endpoint(Family::V4)), |_| {
        obstacle::redirect(lab.host.runner(), "docker0", "10.77.0.10:8181")
    })?;
    let finding = only_error(&seen, &container, "refused")?;
    expect_says(finding, "redirected it (DNAT) to 10.77.0.10:8181, and nobody listens there")
}

fn a_redirect_to_loopback_is_named(lab: &Lab) -> Outcome {
    let (seen, container) = asked(lab, client("to-loopback", &endpoint(Family::V4)), |_| {
        obstacle::redirect(lab.host.runner(), "docker0", "127.0.0.1:8181")
    })?;
    let finding = only_error(&seen, &container, "redirected-away")?;
    expect_equal("how sure", finding["confidence"].as_str(), Some("certain"))?;
    expect_says(finding, "was redirected to 127.0.0.1:8181 on this host, and dropped in ")
}

fn a_host_that_does_not_forward_is_named(lab: &Lab) -> Outcome {
    let runner = lab.host.runner();
    let (seen, container) = asked(lab, client("kept-in", &endpoint(Family::V4)), |_| obstacle::not_forwarding(runner))?;
    let finding = only_error(&seen, &container, "not-forwarding")?;
    expect_says(finding, "this host does not forward")?;
    let _off = obstacle::not_forwarding(runner)?;
    for command in finding["remedy"].as_array().context("what to do")? {
        runner.run("sh", &["-c", command.as_str().context("a command")?])?;
    }
    expect_equal("what was done", runner.sysctl_value("net/ipv4/ip_forward")?.trim(), "1")
}

fn an_answer_that_this_host_sends_elsewhere_is_named(lab: &Lab) -> Outcome {
    let (seen, container) =
        asked(lab, client("behind-a-vpn", "put-only --timeout-ms 2500"), |_| obstacle::answers_elsewhere(&lab.host))?;
    let finding = only_error(&seen, &container, "misrouted-answer")?;
    expect_says(finding, "came in by ens5")
}

/// What a tracer sees while a client behind two forwards asks.
fn behind_two<T>(
    lab: &Lab,
    start: impl FnOnce() -> anyhow::Result<T>,
    put_up: impl FnOnce(&T) -> anyhow::Result<Obstacle>,
    ask: impl FnOnce(&T) -> anyhow::Result<()>,
) -> anyhow::Result<(Seen, T)> {
    lab.host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.give_up) = (2, Duration::from_millis(900)));
    let topology = start()?;
    let (seen, _obstacle) = watched(lab, &["--output", "text={dir}/report.txt"], |_| {
        let obstacle = put_up(&topology)?;
        ask(&topology)?;
        Ok(obstacle)
    })?;
    Ok((seen, topology))
}

fn a_hop_lost_behind_a_second_bridge_needs_three(lab: &Lab) -> Outcome {
    let ask = |nested: &Nested| nested.asks("put-only --timeout-ms 700").map(drop);
    let (seen, nested) = behind_two(lab, || Nested::start(&lab.host, "dind-3"), |_| Ok(Obstacle::default()), ask)?;
    seen.expect_rules(nested.outer(), &["hop-limit-too-low"])?;
    let finding = seen.only(nested.outer(), "hop-limit-too-low")?;
    expect_equal("three are needed", &finding["hop_limit"], &json!({"observed": 2, "needed": 3}))?;
    expect_equal("where", &finding["drop"]["netns"], &json!(nested.outer().netns_inum()?))?;
    let report = std::fs::read_to_string(seen.outcome.dir.join("report.txt"))?;
    for part in [
        "its socket       ttl 64  forwarded once before docker0",
        "docker0 ingress  ttl 63",
        "ens5 egress      ttl 62",
        "ens5 ingress     ttl 2",
        "docker0 egress   ttl 1",
        &format!("in network namespace {}", nested.outer().netns_inum()?),
        "--http-put-response-hop-limit 3",
    ] {
        expect_that(&format!("the ladder has {part:?}"), report.contains(part), &report)?;
    }
    Ok(())
}

fn a_hop_lost_behind_a_relay_needs_three(lab: &Lab) -> Outcome {
    let ask = |relayed: &Relayed| {
        let ran = relayed.client().exec(&["imds-client", "put-only", "--timeout-ms", "700"])?;
        expect_that("the client failed", ran.code != Some(0), ran)
    };
    let (seen, relayed) = behind_two(lab, || Relayed::start(&lab.host, "far"), |_| Ok(Obstacle::default()), ask)?;
    seen.expect_rules(relayed.client(), &["hop-limit-too-low"])?;
    let finding = seen.only(relayed.client(), "hop-limit-too-low")?;
    expect_equal("three are needed", &finding["hop_limit"], &json!({"observed": 2, "needed": 3}))?;
    Ok(())
}

fn a_firewall_behind_a_second_bridge_is_named(lab: &Lab) -> Outcome {
    let put_up = |nested: &Nested| {
        obstacle::iptables(&nested.outer().namespace()?, "FORWARD", Family::V4, Traffic::ToImds, Verdict::Drop)
    };
    let ask = |nested: &Nested| nested.asks("put-only --timeout-ms 400").map(drop);
    let (seen, nested) = behind_two(lab, || Nested::start(&lab.host, "dind-fw"), put_up, ask)?;
    seen.expect_rules(nested.outer(), &["firewall-drop"])?;
    let finding = seen.only(nested.outer(), "firewall-drop")?;
    expect_equal("where", &finding["drop"]["netns"], &json!(nested.outer().netns_inum()?))?;
    expect_says(finding, "netfilter's FORWARD hook")?;
    Ok(())
}
