//! Does it tell clients apart by how they ask: with a token, without, or without after they lost one?

use std::time::Duration;

use imds_trace_tests::Tokens;
use imds_trace_tests::expect::{assert_no_secret, expect_equal, expect_that};
use serde_json::json;

use crate::Lab;
use crate::trace::{client, run_all, watched};

crate::tests![
    a_tokenless_client_is_refused_where_tokens_are_required,
    a_tokenless_client_is_noticed_where_tokens_are_optional,
    a_fallback_after_a_lost_token_is_told_from_a_tokenless_client,
    a_fallback_that_works_is_slow_and_said_to_be,
    no_token_is_written_anywhere_when_its_response_is_lost,
    no_token_is_written_anywhere_when_all_is_well,
];

type Outcome = anyhow::Result<()>;

fn a_tokenless_client_is_refused_where_tokens_are_required(lab: &Lab) -> Outcome {
    let (seen, containers) = watched(lab, &[], |_| run_all(lab, vec![client("old", "v1 --count 3")]))?;
    seen.expect_rules(&containers[0], &["imdsv1-refused"])?;
    let finding = seen.only(&containers[0], "imdsv1-refused")?;
    expect_equal("how often", &finding["count"], &json!(3))?;
    expect_equal("how bad", finding["severity"].as_str(), Some("error"))?;
    expect_equal(
        "the limit was not seen, the need was",
        &finding["hop_limit"],
        &json!({"observed": null, "needed": 2}),
    )?;
    for exchange in seen.exchanges(&containers[0]) {
        expect_that("it is a v1 request, refused", exchange["imds"] == "v1" && exchange["status"] == 401, exchange)?;
    }
    Ok(())
}

fn a_tokenless_client_is_noticed_where_tokens_are_optional(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.tokens = Tokens::Optional);
    let (seen, containers) = watched(lab, &[], |_| run_all(lab, vec![client("old-but-served", "v1 --count 3")]))?;
    seen.expect_no_error()?;
    seen.expect_rules(&containers[0], &["imdsv1-used"])?;
    expect_equal("how often", &seen.only(&containers[0], "imdsv1-used")?["count"], &json!(3))?;
    Ok(())
}

/// A client that lost its token and a tokenless one beside it.
fn fall_back(lab: &Lab, tokens: Tokens, status: u64, of_the_old_one: &str) -> anyhow::Result<()> {
    lab.host.imds().set(|behaviour| (behaviour.tokens, behaviour.give_up) = (tokens, Duration::from_millis(900)));
    let (seen, containers) = watched(lab, &[], |_| {
        run_all(lab, vec![client("falls-back", "fallback --timeout-ms 700"), client("never-asked", "v1")])
    })?;
    let [falls_back, never_asked] = &containers[..] else { unreachable!("two were run") };
    seen.expect_rules(falls_back, &["hop-limit-too-low", "imdsv1-fallback"])?;
    seen.expect_rules(never_asked, &[of_the_old_one])?;
    let finding = seen.only(falls_back, "imdsv1-fallback")?;
    let waited = finding["waited_ms"].as_f64().unwrap_or_default();
    expect_that("it says how long the client waited", (700.0..5000.0).contains(&waited), finding)?;
    expect_equal("how bad", finding["severity"].as_str(), Some("warning"))?;
    let asked: Vec<_> =
        seen.exchanges(falls_back).iter().map(|one| (one["imds"].clone(), one["status"].clone())).collect();
    expect_equal("what it asked", asked, vec![(json!("token"), json!(null)), (json!("v1"), json!(status))])
}

fn a_fallback_after_a_lost_token_is_told_from_a_tokenless_client(lab: &Lab) -> Outcome {
    fall_back(lab, Tokens::Required, 401, "imdsv1-refused")
}

fn a_fallback_that_works_is_slow_and_said_to_be(lab: &Lab) -> Outcome {
    fall_back(lab, Tokens::Optional, 200, "imdsv1-used")
}

/// Clients that put a token wherever they can, with all that the tracer can write.
fn keep_secrets(lab: &Lab, hop_limit: u8) -> anyhow::Result<()> {
    lab.host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.give_up) = (hop_limit, Duration::from_millis(500)));
    let args = ["-vv", "--output", "text={dir}/report.txt"];
    let (seen, _containers) = watched(lab, &args, |_| {
        // The host gets a token even at hop limit 1.
        let mut containers = run_all(lab, vec![client("issued", "put-only").network("host")])?;
        let token = lab.host.imds().secrets().pop().expect("a token was handed out");
        let role = "/latest/meta-data/iam/security-credentials/lab-runner-role";
        let everywhere = format!("--user-agent {token} --path /latest/meta-data/{token} --comm {token}");
        containers.extend(run_all(
            lab,
            vec![
                client("careless", &format!("get-with-token {token} {everywhere}")),
                client("tokenless", &format!("v1 {everywhere}")),
                client("loser", &format!("v2 --timeout-ms 400 --user-agent {token}")),
                client("in-a-header", &format!("fallback --timeout-ms 400 --header X-Token:{token}")),
                client("in-a-query", &format!("get-with-token {token} --path /latest/meta-data/?token={token}")),
                client("credentials", &format!("get-with-token {token} --path {role}")),
            ],
        )?);
        Ok(containers)
    })?;
    // `watched` has searched; here only that there was something to find, and something to search.
    expect_that("credentials were handed out too", lab.host.imds().secrets().len() > 4, lab.host.imds().counts())?;
    expect_that("the clients were seen", seen.outcome.exchanges().len() >= 7, seen.outcome.exchanges())?;
    for file in ["recording.jsonl", "report.txt", "stdout.jsonl", "stderr.txt"] {
        let size = std::fs::metadata(seen.outcome.dir.join(file)).map(|data| data.len()).unwrap_or(0);
        expect_that(&format!("{file} is not empty"), size > 0, size)?;
    }
    assert_no_secret(&[], &[&seen.outcome.dir], &lab.host.imds().secrets())
}

fn no_token_is_written_anywhere_when_its_response_is_lost(lab: &Lab) -> Outcome {
    keep_secrets(lab, 1)
}

fn no_token_is_written_anywhere_when_all_is_well(lab: &Lab) -> Outcome {
    keep_secrets(lab, 2)
}
