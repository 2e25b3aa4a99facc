//! Does each obstacle between a container and IMDS stop what it should, as a client sees it, and does it go away again?
//! No tracer is involved here.

use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::obstacle::{self, Family, MetadataProxy, Traffic, Verdict};
use imds_trace_tests::topology::{Nested, Relayed};
use imds_trace_tests::{Container, ContainerSpec, NetworkSpec, Obstacle, Tokens};
use serde_json::Value;

use crate::Lab;
use crate::kit::{Outcome, expect_told, told};

crate::tests![
    a_rule_in_docker_user_drops_or_refuses,
    a_table_of_nft_drops_or_refuses,
    a_rule_against_answers_looks_like_a_lost_token,
    a_rule_in_the_containers_own_namespace_works_there,
    a_rule_for_ipv6_leaves_ipv4_alone,
    a_container_without_a_route_fails_at_once,
    a_prohibited_route_in_a_container_fails_at_once,
    a_host_without_a_route_says_so_to_containers,
    a_prohibited_route_on_the_host_is_told_to_containers,
    answers_that_fail_the_reverse_path_check_vanish,
    a_network_without_masquerading_gets_no_answer,
    a_metadata_proxy_answers_in_place_of_imds,
    a_nested_namespace_needs_three,
    a_nested_engine_can_drop_what_it_forwards,
    a_container_behind_a_container_needs_three,
];

/// A container in which more can be run.
fn idle(lab: &Lab, name: &str) -> anyhow::Result<Container> {
    lab.host.run(ContainerSpec::new(name, &["sleep", "600"]))
}

/// With the obstacle a PUT fails like this; without it, it does not.
fn expect_in_the_way(
    container: &Container,
    family: Family,
    obstacle: anyhow::Result<Obstacle>,
    failure: &str,
) -> anyhow::Result<()> {
    let ask = |timeout: u32| -> anyhow::Result<Vec<Value>> {
        container.asks(&format!("put-only --timeout-ms {timeout} --endpoint {}", family.endpoint()))
    };
    let obstacle = obstacle?;
    // Those that fail by a timeout need not be waited for long; the others must have time to fail.
    let timeout = if failure.ends_with("timeout") { 150 } else { 5000 };
    expect_told("while it is there", &ask(timeout)?, &[&format!("put {failure}")])?;
    drop(obstacle);
    expect_told("when it has gone", &ask(5000)?, &["put 200"])
}

const FATES: [(Verdict, &str); 3] =
    [(Verdict::Drop, "connect timeout"), (Verdict::Reject, "connect refused"), (Verdict::Reset, "connect refused")];

fn a_rule_in_docker_user_drops_or_refuses(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let container = idle(lab, "fenced")?;
    for (verdict, failure) in FATES {
        let rule = obstacle::docker_user(&lab.host, Family::V4, Traffic::ToImds, verdict);
        expect_in_the_way(&container, Family::V4, rule, failure)?;
    }
    let rule = obstacle::docker_user(&lab.host, Family::V4, Traffic::FromImds, Verdict::Drop);
    expect_in_the_way(&container, Family::V4, rule, "connect timeout")?;
    Ok(())
}

fn a_table_of_nft_drops_or_refuses(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let container = idle(lab, "fenced")?;
    for family in [Family::V4, Family::V6] {
        for (verdict, failure) in FATES {
            let table = obstacle::nft(lab.host.runner(), "forward", family, Traffic::ToImds, verdict);
            expect_in_the_way(&container, family, table, failure)?;
        }
    }
    Ok(())
}

fn a_rule_against_answers_looks_like_a_lost_token(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let container = idle(lab, "fenced")?;
    let rule = obstacle::docker_user(&lab.host, Family::V4, Traffic::Answers, Verdict::Drop);
    expect_in_the_way(&container, Family::V4, rule, "read timeout")?;
    let table = obstacle::nft(lab.host.runner(), "forward", Family::V6, Traffic::Answers, Verdict::Drop);
    expect_in_the_way(&container, Family::V6, table, "read timeout")?;
    Ok(())
}

fn a_rule_in_the_containers_own_namespace_works_there(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let container = idle(lab, "fenced")?;
    let namespace = container.namespace()?;
    for family in [Family::V4, Family::V6] {
        for (verdict, failure) in FATES {
            let rule = obstacle::iptables(&namespace, "OUTPUT", family, Traffic::ToImds, verdict);
            expect_in_the_way(&container, family, rule, failure)?;
        }
        let rule = obstacle::iptables(&namespace, "INPUT", family, Traffic::Answers, Verdict::Drop);
        expect_in_the_way(&container, family, rule, "read timeout")?;
    }
    let table = obstacle::nft(&namespace, "output", Family::V4, Traffic::ToImds, Verdict::Drop);
    expect_in_the_way(&container, Family::V4, table, "connect timeout")?;
    Ok(())
}

fn a_rule_for_ipv6_leaves_ipv4_alone(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let container = idle(lab, "fenced")?;
    for (verdict, failure) in FATES {
        let rule = obstacle::iptables(lab.host.runner(), "FORWARD", Family::V6, Traffic::ToImds, verdict)?;
        expect_told("IPv4 passes", &container.asks("put-only")?, &["put 200"])?;
        expect_in_the_way(&container, Family::V6, Ok(rule), failure)?;
    }
    Ok(())
}

fn a_container_without_a_route_fails_at_once(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let container = idle(lab, "lost")?;
    for family in [Family::V4, Family::V6] {
        let obstacle = obstacle::no_route(&container.namespace()?, family);
        expect_in_the_way(&container, family, obstacle, "connect network unreachable")?;
    }
    Ok(())
}

fn a_prohibited_route_in_a_container_fails_at_once(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let container = idle(lab, "lost")?;
    for family in [Family::V4, Family::V6] {
        for (kind, failure) in [
            ("prohibit", "connect permission denied"),
            ("unreachable", "connect host unreachable"),
            ("blackhole", "connect invalid input parameter"),
        ] {
            let obstacle = obstacle::prohibited_route(&container.namespace()?, family, kind);
            expect_in_the_way(&container, family, obstacle, failure)?;
        }
    }
    Ok(())
}

fn a_host_without_a_route_says_so_to_containers(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let container = idle(lab, "lost")?;
    for family in [Family::V4, Family::V6] {
        let obstacle = obstacle::no_route(lab.host.runner(), family);
        expect_in_the_way(&container, family, obstacle, "connect network unreachable")?;
    }
    Ok(())
}

fn a_prohibited_route_on_the_host_is_told_to_containers(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let container = idle(lab, "lost")?;
    for (family, kind, failure) in [
        (Family::V4, "prohibit", "connect host unreachable"),
        (Family::V4, "unreachable", "connect host unreachable"),
        (Family::V4, "blackhole", "connect timeout"),
        (Family::V6, "prohibit", "connect permission denied"),
    ] {
        let obstacle = obstacle::prohibited_route(lab.host.runner(), family, kind);
        expect_in_the_way(&container, family, obstacle, failure)?;
    }
    Ok(())
}

fn answers_that_fail_the_reverse_path_check_vanish(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let container = idle(lab, "asymmetric")?;
    let before = obstacle::failed_reverse_path(lab.host.runner())?;
    let obstacle = obstacle::reverse_path(&lab.host);
    expect_in_the_way(&container, Family::V4, obstacle, "connect timeout")?;
    let after = obstacle::failed_reverse_path(lab.host.runner())?;
    expect_that("the runner's kernel counted them", after > before, (before, after))?;
    let obstacle = obstacle::reverse_path(&lab.host)?;
    let host = lab.host.run(ContainerSpec::new("on-host", &["sleep", "600"]).network("host"))?;
    expect_told("the host itself is not concerned", &host.asks("put-only")?, &["put 200"])?;
    drop(obstacle);
    expect_equal("nothing of it is left", lab.host.runner().ip("rule list")?.contains("101"), false)?;
    Ok(())
}

fn a_network_without_masquerading_gets_no_answer(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let _network = lab.host.network_create(NetworkSpec::new("bare").unmasqueraded())?;
    let container = lab.host.run(ContainerSpec::new("unmasked", &["sleep", "600"]).network("bare"))?;
    let before = lab.host.imds_ns().counter("Ip", "InReceives")?;
    expect_told("nobody knows the way back", &container.asks("put-only --timeout-ms 300")?, &["put connect timeout"])?;
    let after = lab.host.imds_ns().counter("Ip", "InReceives")?;
    expect_that("though the request reached IMDS's host", after > before, (before, after))?;
    Ok(())
}

fn a_metadata_proxy_answers_in_place_of_imds(lab: &Lab) -> Outcome {
    let container = idle(lab, "proxied")?;
    let proxy = MetadataProxy::start(&lab.host, "docker0")?;
    expect_told("it answers, at hop limit 1", &container.asks("v2")?, &["put 200", "get 200"])?;
    expect_equal("IMDS heard nothing", lab.host.imds().requests().len(), 0)?;
    expect_equal("the proxy did", proxy.imds().requests().len(), 2)?;
    proxy.imds().set(|behaviour| behaviour.tokens = Tokens::Optional);
    expect_told("it has ways of its own", &container.asks("v1")?, &["get 200"])?;
    drop(proxy);
    expect_told("then IMDS answers again", &container.asks("v1")?, &["get 401"])?;
    Ok(())
}

fn a_nested_namespace_needs_three(lab: &Lab) -> Outcome {
    let nested = Nested::start(&lab.host, "nested")?;
    for (limit, expected) in [(1, "put read timeout"), (2, "put read timeout"), (3, "put 200")] {
        lab.host.imds().set(|behaviour| behaviour.hop_limit = limit);
        expect_told(&format!("at {limit}"), &nested.asks("put-only --timeout-ms 400")?, &[expected])?;
    }
    expect_that("its namespace is its own", nested.inside().inum() != nested.outer().netns_inum()?, ())?;
    Ok(())
}

fn a_nested_engine_can_drop_what_it_forwards(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 3);
    let nested = Nested::start(&lab.host, "nested")?;
    let namespace = nested.outer().namespace()?;
    for (traffic, verdict, failure) in [
        (Traffic::ToImds, Verdict::Drop, "put connect timeout"),
        (Traffic::ToImds, Verdict::Reject, "put connect refused"),
        (Traffic::Answers, Verdict::Drop, "put read timeout"),
    ] {
        let rule = obstacle::iptables(&namespace, "FORWARD", Family::V4, traffic, verdict)?;
        let attempts = nested.asks("put-only --timeout-ms 300")?;
        expect_equal(&format!("{traffic:?} {verdict:?}"), told(&attempts), vec![failure.to_owned()])?;
        drop(rule);
    }
    expect_told("and let it pass again", &nested.asks("put-only")?, &["put 200"])?;
    expect_told("the container itself is nearer", &nested.outer().asks("put-only")?, &["put 200"])?;
    Ok(())
}

fn a_container_behind_a_container_needs_three(lab: &Lab) -> Outcome {
    let relayed = Relayed::start(&lab.host, "behind")?;
    for (limit, expected) in [(2, "put read timeout"), (3, "put 200")] {
        lab.host.imds().set(|behaviour| behaviour.hop_limit = limit);
        expect_told(&format!("at {limit}"), &relayed.client().asks("put-only --timeout-ms 400")?, &[expected])?;
    }
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    expect_told("the relay itself needs two", &relayed.relay().asks("put-only")?, &["put 200"])?;
    Ok(())
}
