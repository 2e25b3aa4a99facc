//! Does it tell a hop limit from a firewall, a server that is silent, and one that is slow?

use std::time::Duration;

use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::obstacle::{self, Family};
use serde_json::json;

use crate::Lab;
use crate::trace::{client, run_all, watched};

crate::tests![
    a_silent_server_is_unanswered_and_nothing_else,
    a_silent_server_is_unanswered_by_the_host_too,
    a_firewall_on_the_way_out_is_named,
    a_firewall_on_the_way_back_is_named,
    a_slow_answer_in_time_is_no_error,
];

type Outcome = anyhow::Result<()>;

fn a_silent_server_is_unanswered_and_nothing_else(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.silent = true);
    let (seen, containers) =
        watched(lab, &[], |_| run_all(lab, vec![client("ignored", "put-only --count 3 --timeout-ms 400")]))?;
    seen.expect_rules(&containers[0], &["unanswered"])?;
    let finding = seen.only(&containers[0], "unanswered")?;
    expect_equal("how often", &finding["count"], &json!(3))?;
    expect_equal("how bad", finding["severity"].as_str(), Some("error"))?;
    expect_equal("how sure", finding["confidence"].as_str(), Some("likely"))?;
    expect_equal("nothing was dropped here", seen.header_errors, 0)?;
    for exchange in seen.exchanges(&containers[0]) {
        expect_that("the request left the host", exchange["request"]["fate"] == "delivered", exchange)?;
    }
    Ok(())
}

fn a_silent_server_is_unanswered_by_the_host_too(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.silent = true);
    let (seen, containers) =
        watched(lab, &[], |_| run_all(lab, vec![client("ignored-host", "put-only --timeout-ms 400").network("host")]))?;
    seen.expect_rules(&containers[0], &["unanswered"])?;
    Ok(())
}

fn a_firewall_on_the_way_out_is_named(lab: &Lab) -> Outcome {
    let rule = "DOCKER-USER -d 169.254.169.254 -p tcp --dport 80 -j DROP";
    let _firewall = obstacle::iptables_rule(lab.host.runner(), Family::V4, "filter", rule)?;
    let (seen, containers) =
        watched(lab, &[], |_| run_all(lab, vec![client("fenced", "put-only --count 2 --timeout-ms 400")]))?;
    seen.expect_rules(&containers[0], &["firewall-drop"])?;
    let finding = seen.only(&containers[0], "firewall-drop")?;
    expect_equal("why", finding["drop"]["reason"].as_str(), seen.reason("NETFILTER_DROP")?)?;
    let summary = finding["summary"].as_str().unwrap_or_default();
    expect_that("at which hook", summary.contains("netfilter's FORWARD hook"), finding)?;
    expect_equal("in whose namespace", &finding["drop"]["netns"], &json!(seen.runner))?;
    expect_equal("each SYN that was dropped", &finding["count"], &json!(2))?;
    expect_equal("the server heard nothing", lab.host.imds().requests().len(), 0)?;
    Ok(())
}

fn a_firewall_on_the_way_back_is_named(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.give_up) = (2, Duration::from_millis(500)));
    // Answers with data only, so that the handshake passes: what is dropped is what a hop limit would have killed.
    let rule = "DOCKER-USER -s 169.254.169.254 -p tcp --sport 80 --tcp-flags PSH PSH -j DROP";
    let _firewall = obstacle::iptables_rule(lab.host.runner(), Family::V4, "filter", rule)?;
    let (seen, containers) =
        watched(lab, &[], |_| run_all(lab, vec![client("fenced-in", "put-only --timeout-ms 400")]))?;
    seen.expect_rules(&containers[0], &["firewall-drop"])?;
    let finding = seen.only(&containers[0], "firewall-drop")?;
    expect_equal("why", finding["drop"]["reason"].as_str(), seen.reason("NETFILTER_DROP")?)?;
    expect_equal("the limit was enough", &finding["hop_limit"], &json!({"observed": 2, "needed": 2}))?;
    expect_equal("the kernel blames no header", seen.header_errors, 0)?;
    Ok(())
}

fn a_slow_answer_in_time_is_no_error(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| {
        behaviour.hop_limit = 2;
        behaviour.delay_token = Duration::from_millis(700);
        behaviour.delay_get = Duration::from_millis(700);
    });
    let (seen, containers) = watched(lab, &[], |_| run_all(lab, vec![client("patient", "v2 --timeout-ms 3000")]))?;
    seen.expect_no_error()?;
    for exchange in seen.exchanges(&containers[0]) {
        expect_that("it says how long it took", exchange["duration_ms"].as_f64() >= Some(700.0), exchange)?;
    }
    Ok(())
}
