//! Is what IMDS answers named for what it is, when it is late, an error, or in pieces?

use std::time::Duration;

use anyhow::Context;
use imds_trace_tests::expect::{expect_equal, expect_that, wait_until};
use imds_trace_tests::{ForcedOn, Obstacle, Tokens};
use serde_json::json;

use crate::Lab;
use crate::trace::{SOON, client, run_all, watched};
use crate::trace_causes::{asked, expect_says, only_error};
crate::tests![
    an_answer_that_comes_too_late_is_slow_and_not_lost,
    an_expired_token_is_told_by_its_age,
    a_token_that_nobody_issued_is_told_so,
    a_token_request_is_refused_for_what_is_wrong_with_it,
    a_disabled_endpoint_is_told_from_a_bad_request,
    an_instance_without_a_role_is_told_so,
    a_server_that_asks_to_wait_is_throttling,
    pieces_and_pipelines_are_read,
];

type Outcome = anyhow::Result<()>;

fn an_answer_that_comes_too_late_is_slow_and_not_lost(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| {
        (behaviour.hop_limit, behaviour.delay_token) = (2, Duration::from_millis(900));
    });
    let (seen, containers) = watched(lab, &[], |_| {
        let run = run_all(lab, vec![client("hasty", "put-only --timeout-ms 200 --linger-after 3")]);
        wait_until("the late answer", SOON, || {
            lab.host.imds().requests().iter().any(|request| request.status == Some(200)).then_some(())
        })?;
        run
    })?;
    let finding = only_error(&seen, &containers[0], "slow-answer")?;
    expect_equal("how bad", finding["severity"].as_str(), Some("warning"))?;
    let waited = finding["waited_ms"].as_f64().unwrap_or_default();
    expect_that("how long the client waited", (200.0..850.0).contains(&waited), finding)?;
    Ok(())
}

fn an_expired_token_is_told_by_its_age(lab: &Lab) -> Outcome {
    let words = "v2 --token-ttl 1 --wait-ms 2500";
    let (seen, container) = asked(lab, client("stale", words).network("host"), |_| Ok(Obstacle::default()))?;
    // On the host's network one hop is enough.
    seen.expect_rules(&container, &["hop-budget-spent", "token-refused"])?;
    let finding = seen.only(&container, "token-refused")?;
    expect_says(finding, "s before (it was issued for 1 s, ")?;
    let exchanges = seen.exchanges(&container);
    let used = exchanges.iter().find(|exchange| exchange["imds"] == "v2").context("the token was used")?;
    expect_that("its age is told", used["token"]["age_ms"].as_f64() >= Some(2500.0), used)?;
    expect_equal("and that it had expired", &used["token"]["expired"], &json!(true))?;
    Ok(())
}

fn a_token_that_nobody_issued_is_told_so(lab: &Lab) -> Outcome {
    let (seen, container) = asked(lab, client("forger", "garbage-token"), |_| Ok(Obstacle::default()))?;
    seen.expect_rules(&container, &["token-refused"])?;
    expect_says(seen.only(&container, "token-refused")?, "not issued while tracing")?;
    Ok(())
}

fn a_token_request_is_refused_for_what_is_wrong_with_it(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let wrong = [
        ("no-lifetime", "put-only --token-ttl none", "no X-aws-ec2-metadata-token-ttl-seconds header"),
        ("too-long", "put-only --token-ttl 21601", "asked for 21601 s"),
        ("through-a-proxy", "put-only --forwarded-for 10.1.2.3", "X-Forwarded-For"),
        ("dated", "put-only --token-path /2021-03-23/api/token", "tokens are issued at /latest/api/token only"),
        ("wrong-method", "v1 --path /latest/api/token", "with PUT, not with GET"),
    ];
    let (seen, containers) = watched(lab, &[], |_| {
        // Somebody whose request is right: the endpoint is not disabled.
        run_all(lab, vec![client("right", "v2").network("host")])?;
        run_all(lab, wrong.map(|(name, words, _)| client(name, words)).into())
    })?;
    for (container, (_, _, says)) in containers.iter().zip(wrong) {
        expect_says(seen.only(container, "token-request-refused")?, says)?;
    }
    let errors: Vec<_> = seen.findings().into_iter().filter(|finding| finding["severity"] == "error").collect();
    expect_equal("no other error", errors.len(), wrong.len())?;
    Ok(())
}

fn a_disabled_endpoint_is_told_from_a_bad_request(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.endpoint_enabled) = (3, false));
    let (seen, container) = asked(lab, client("shut-out", "fallback"), |_| Ok(Obstacle::default()))?;
    let finding = only_error(&seen, &container, "imds-disabled")?;
    expect_equal("the PUT and the GET", &finding["count"], &json!(2))?;
    Ok(())
}

fn an_instance_without_a_role_is_told_so(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.role) = (3, None));
    let words = "v2 --path /latest/meta-data/iam/security-credentials/ --user-agent Boto3/1.26.27";
    let (seen, container) = asked(lab, client("roleless", words), |_| Ok(Obstacle::default()))?;
    let finding = only_error(&seen, &container, "no-role")?;
    expect_says(finding, "(it calls itself boto3 1.26.27) reached IMDS")?;
    Ok(())
}

fn a_server_that_asks_to_wait_is_throttling(lab: &Lab) -> Outcome {
    for status in [503, 429] {
        lab.host.imds().set(|behaviour| {
            (behaviour.hop_limit, behaviour.tokens) = (3, Tokens::Required);
            (behaviour.forced_status, behaviour.forced_on) = (Some(status), ForcedOn::Token);
        });
        let (seen, container) =
            asked(lab, client(&format!("hurried-{status}"), "put-only"), |_| Ok(Obstacle::default()))?;
        expect_says(only_error(&seen, &container, "throttled")?, &format!("got {status}"))?;
    }
    Ok(())
}

fn pieces_and_pipelines_are_read(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.keep_alive, behaviour.split) = (3, true, Some(40)));
    let path = "/latest/meta-data/placement/region";
    let (seen, containers) = watched(lab, &[], |_| {
        run_all(
            lab,
            vec![
                client("in-pieces", &format!("v2 --split-request 9 --path {path}")),
                client("all-at-once", &format!("v2 --pipeline 4 --path {path}")),
                client("kept-alive", &format!("v2 --keep-alive --count 3 --path {path}")),
            ],
        )
    })?;
    seen.expect_no_error()?;
    for (container, reads) in containers.iter().zip([1, 4, 3]) {
        let exchanges = seen.exchanges(container);
        let told = |kind: &str| exchanges.iter().filter(|one| one["imds"] == kind && one["status"] == 200).count();
        expect_that("a token was granted", told("token") >= 1, &exchanges)?;
        expect_that(&format!("{reads} reads"), told("v2") == reads, &exchanges)?;
        for exchange in exchanges.iter().filter(|exchange| exchange["imds"] == "v2") {
            expect_equal("its path", exchange["path"].as_str(), Some(path))?;
            expect_that("its token is known", exchange["token"]["expired"] == false, exchange)?;
        }
    }
    lab.host.imds().set(|behaviour| (behaviour.keep_alive, behaviour.split, behaviour.http10) = (false, None, true));
    let (seen, containers) = watched(lab, &[], |_| run_all(lab, vec![client("old-school", "v2 --http10")]))?;
    seen.expect_no_error()?;
    seen.expect_answered(&containers[0], 2, &["docker0 ingress", "ens5 egress"], &["ens5 ingress", "docker0 egress"])?;
    Ok(())
}
