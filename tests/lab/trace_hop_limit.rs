//! Does it find each answer that a hop limit killed, and none that passed?

use std::time::Duration;

use anyhow::Context;
use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::{LimitScope, NetworkSpec};
use serde_json::json;

use crate::Lab;
use crate::trace::{SOON, client, run_all, watched};

crate::tests![
    hundreds_of_lost_token_responses_are_counted_as_the_kernel_counts_them,
    a_storm_of_lost_token_responses_is_counted_too,
    a_hop_limit_of_two_is_enough_and_leaves_nothing_over,
    a_hop_limit_of_three_leaves_one_over,
    host_networking_needs_a_hop_limit_of_one,
    a_bridge_made_later_loses_the_token_response_like_docker0,
    over_ipv6_a_lost_token_response_is_found_and_counted,
    over_ipv6_a_hop_limit_of_two_is_enough,
    a_limit_on_all_later_packets_is_counted_too,
    a_fin_with_its_ttl_restored_is_not_counted,
    a_reset_that_passes_is_no_answer,
    a_container_killed_while_it_waits_is_counted_and_nothing_else,
];

type Outcome = anyhow::Result<()>;

const IMDS6: &str = "--endpoint fd00:ec2::254";

fn hundreds_of_lost_token_responses_are_counted_as_the_kernel_counts_them(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(900));
    let (seen, containers) = watched(lab, &[], |_| {
        let words = "put-only --count 10 --parallel 7 --timeout-ms 300";
        run_all(lab, ["one", "two", "three"].map(|name| client(name, words)).into())
    })?;
    let mut sum = 0;
    for container in &containers {
        let count = seen.expect_too_low(container, "ip_forward", 2)?;
        expect_that("each request lost its answer at least once", count >= 70, count)?;
        sum += count;
        let exchanges = seen.exchanges(container);
        expect_equal("each request is an exchange", exchanges.len(), 70)?;
        let answered = exchanges.iter().filter(|exchange| exchange["answered"] == true).count();
        expect_equal("none of them was answered", answered, 0)?;
        seen.expect_rules(container, &["hop-limit-too-low"])?;
        expect_equal("the report counts them", &seen.tally(container)?["unanswered"], &json!(70))?;
    }
    expect_equal("each copy the kernel counted is counted once", sum, seen.header_errors)?;
    seen.expect_reconciled()?;
    Ok(())
}

fn a_storm_of_lost_token_responses_is_counted_too(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(900));
    let (seen, containers) = watched(lab, &[], |_| {
        let words = "put-only --count 2 --parallel 150 --timeout-ms 800";
        run_all(lab, ["storm-1", "storm-2", "storm-3"].map(|name| client(name, words)).into())
    })?;
    let mut sum = 0;
    for container in &containers {
        let finding = seen.only(container, "hop-limit-too-low")?;
        sum += finding["count"].as_u64().unwrap_or_default();
        expect_equal("what it says of the limit", &finding["hop_limit"], &json!({"observed": 1, "needed": 2}))?;
        expect_equal("each request is an exchange", seen.exchanges(container).len(), 300)?;
        seen.expect_rules(container, &["hop-limit-too-low"])?;
    }
    expect_equal("each copy the kernel counted is counted once", sum, seen.header_errors)?;
    seen.expect_reconciled()?;
    Ok(())
}

fn a_hop_limit_of_two_is_enough_and_leaves_nothing_over(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (seen, containers) = watched(lab, &[], |_| run_all(lab, vec![client("works", "v2 --count 20")]))?;
    let container = &containers[0];
    seen.expect_no_error()?;
    seen.expect_rules(container, &["hop-budget-spent"])?;
    let finding = seen.only(container, "hop-budget-spent")?;
    expect_equal("it is no more than a notice", finding["severity"].as_str(), Some("notice"))?;
    expect_equal("of what it says of the limit", &finding["hop_limit"], &json!({"observed": 2, "needed": 2}))?;
    expect_equal("it is about the token responses alone", &finding["count"], &json!(20))?;
    seen.expect_answered(container, 40, &["docker0 ingress", "ens5 egress"], &["ens5 ingress", "docker0 egress"])?;
    let tally = seen.tally(container)?;
    expect_equal("the report says so too", &tally["hop_limit"], &json!({"observed": 2, "needed": 2}))?;
    expect_equal("and that all were answered", &tally["unanswered"], &json!(0))?;
    seen.expect_reconciled()?;
    Ok(())
}

fn a_hop_limit_of_three_leaves_one_over(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 3);
    let (seen, containers) = watched(lab, &[], |_| run_all(lab, vec![client("roomy", "v2")]))?;
    seen.expect_rules(&containers[0], &[])?;
    let tally = seen.tally(&containers[0])?;
    expect_equal("what was observed and is needed", &tally["hop_limit"], &json!({"observed": 3, "needed": 2}))?;
    Ok(())
}

fn host_networking_needs_a_hop_limit_of_one(lab: &Lab) -> Outcome {
    let (seen, containers) =
        watched(lab, &[], |_| run_all(lab, vec![client("agent", "v2 --count 3 --linger-after 1").network("host")]))?;
    let container = &containers[0];
    seen.expect_no_error()?;
    seen.expect_answered(container, 6, &["ens5 egress"], &["ens5 ingress"])?;
    let tally = seen.tally(container)?;
    expect_equal("it is named", tally["container"]["name"].as_str(), Some("agent"))?;
    expect_equal("what was observed and is needed", &tally["hop_limit"], &json!({"observed": 1, "needed": 1}))?;
    expect_equal("nothing was lost", seen.header_errors, 0)?;
    seen.expect_reconciled()?;
    Ok(())
}

fn a_bridge_made_later_loses_the_token_response_like_docker0(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(500));
    let (seen, (containers, network)) = watched(lab, &[], |_| {
        let network = lab.host.network_create(NetworkSpec::new("made-later"))?;
        let one = client("on-later", "put-only --count 5 --timeout-ms 300").network("made-later");
        Ok((run_all(lab, vec![one])?, network))
    })?;
    let count = seen.expect_too_low(&containers[0], "ip_forward", 2)?;
    expect_equal("each copy is counted once", count, seen.header_errors)?;
    seen.expect_reconciled()?;
    for exchange in seen.exchanges(&containers[0]) {
        let ingress = format!("{} ingress", network.bridge());
        expect_that(
            "the request was seen on the new bridge",
            exchange["request"]["hops"][0]["hook"] == ingress,
            exchange,
        )?;
    }
    Ok(())
}

fn over_ipv6_a_lost_token_response_is_found_and_counted(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(500));
    let (seen, containers) = watched(lab, &[], |_| {
        run_all(lab, vec![client("six", &format!("put-only --count 5 --parallel 4 --timeout-ms 300 {IMDS6}"))])
    })?;
    let count = seen.expect_too_low(&containers[0], "ip6_forward", 2)?;
    expect_that("each request lost its answer at least once", count >= 20, count)?;
    expect_equal("each copy is counted once", count, seen.header_errors6)?;
    seen.expect_reconciled()?;
    Ok(())
}

fn over_ipv6_a_hop_limit_of_two_is_enough(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (seen, containers) =
        watched(lab, &[], |_| run_all(lab, vec![client("six-works", &format!("v2 --count 5 {IMDS6}"))]))?;
    let container = &containers[0];
    seen.expect_no_error()?;
    seen.expect_rules(container, &["hop-budget-spent"])?;
    seen.expect_answered(container, 10, &["docker0 ingress", "ens5 egress"], &["ens5 ingress", "docker0 egress"])?;
    let tally = seen.tally(container)?;
    expect_equal("what was observed and is needed", &tally["hop_limit"], &json!({"observed": 2, "needed": 2}))?;
    Ok(())
}

fn a_limit_on_all_later_packets_is_counted_too(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| {
        behaviour.limit_scope = LimitScope::AllLater;
        behaviour.give_up = Duration::from_millis(500);
    });
    let (seen, containers) = watched(lab, &[], |_| {
        run_all(lab, vec![client("all-later", "put-only --count 5 --parallel 4 --timeout-ms 300")])
    })?;
    let count = seen.expect_too_low(&containers[0], "ip_forward", 2)?;
    expect_equal("each copy, FIN and RST is counted once", count, seen.header_errors)?;
    seen.expect_reconciled()?;
    Ok(())
}

fn a_fin_with_its_ttl_restored_is_not_counted(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| {
        behaviour.fin_ttl_restored = true;
        behaviour.give_up = Duration::from_millis(500);
    });
    let (seen, containers) = watched(lab, &[], |_| {
        run_all(lab, vec![client("restored", "put-only --count 5 --parallel 4 --timeout-ms 300")])
    })?;
    let count = seen.expect_too_low(&containers[0], "ip_forward", 2)?;
    expect_equal("each copy is counted once", count, seen.header_errors)?;
    seen.expect_reconciled()?;
    Ok(())
}

fn a_reset_that_passes_is_no_answer(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(500));
    let (seen, containers) =
        watched(lab, &[], |_| run_all(lab, vec![client("was-reset", "put-only --timeout-ms 5000")]))?;
    let told = containers[0].attempts()?;
    expect_equal("the client was reset", told[0]["error"].as_str(), Some("read reset"))?;
    let count = seen.expect_too_low(&containers[0], "ip_forward", 2)?;
    expect_equal("each copy is counted once", count, seen.header_errors)?;
    let exchanges = seen.exchanges(&containers[0]);
    expect_that("the exchange has no answer", exchanges[0]["answered"] == false, &exchanges)?;
    Ok(())
}

fn a_container_killed_while_it_waits_is_counted_and_nothing_else(lab: &Lab) -> Outcome {
    const NAMES: [&str; 3] = ["killed-1", "killed-2", "killed-3"];
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(1500));
    let (seen, ids) = watched(lab, &[], |tracer| {
        let words = "put-only --parallel 10 --timeout-ms 20000";
        let run = |name: &str| lab.host.run(client(name, words));
        let containers = NAMES.into_iter().map(run).collect::<anyhow::Result<Vec<_>>>()?;
        for container in &containers {
            container.go()?;
        }
        for name in NAMES {
            tracer.wait_for_finding("hop-limit-too-low", name, SOON)?;
        }
        // Removed with all its connections open: their ends, and the server's last words, find nobody any more.
        Ok(containers.iter().map(|container| container.id().to_owned()).collect::<Vec<_>>())
    })?;
    let mut sum = 0;
    for id in ids {
        let about: Vec<_> = seen.findings().into_iter().filter(|finding| finding["container"]["id"] == *id).collect();
        let rules: Vec<_> = about.iter().filter_map(|finding| finding["rule"].as_str()).collect();
        expect_equal("nothing but the hop limit is blamed", rules, vec!["hop-limit-too-low"])
            .with_context(|| format!("findings: {about:#?}"))?;
        sum += about[0]["count"].as_u64().unwrap_or_default();
    }
    expect_equal("each copy is counted once", sum, seen.header_errors)?;
    seen.expect_reconciled()?;
    Ok(())
}
