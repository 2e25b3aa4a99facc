//! Does `--expect` hold where it should, and fail with a sentence where it should not?

use anyhow::{Context, Result};
use imds_trace_replay_tests::kept;
use serde_json::Value;

use crate::Outcome;
use crate::program::{Folder, Ran, recorded, replay, run};

crate::tests![
    what_got_through_is_reachable_and_not_blocked,
    what_was_lost_is_blocked_and_not_reachable,
    a_firewall_that_drops_is_named_by_what_it_blocked,
    asking_without_a_token_breaks_v2_only,
    an_error_about_one_breaks_no_errors_of_that_one,
    silence_about_one_container_shows_nothing,
    what_is_not_shown_counts_all_the_same,
    several_are_judged_each_for_itself,
    without_text_on_stdout_stderr_says_why,
    what_is_no_expectation_is_one_sentence,
];

/// Replays a recording with these expectations, as JSON.
fn judge(recording: &str, expectations: &[&str], options: &[&str]) -> Result<(Ran, Vec<Value>)> {
    let (_, file) = kept::recordings()?
        .into_iter()
        .find(|(name, _)| name == recording)
        .with_context(|| format!("no {recording}"))?;
    let mut words = vec!["--output", "json"];
    words.extend(expectations.iter().flat_map(|expectation| ["--expect", expectation]));
    words.extend(options);
    let ran = replay(&file, &words)?;
    let report = ran.json()?.pop().context("a report")?;
    let judged = report["expectations"].as_array().context("expectations")?.clone();
    Ok((ran, judged))
}

/// It holds or not, with the exit code that goes with it, and the reason has each of `parts`.
fn expect_judged(recording: &str, expectation: &str, held: bool, parts: &[&str]) -> Outcome {
    let (ran, judged) = judge(recording, &[expectation], &[])?;
    ran.expect_code(i32::from(!held))?;
    let [one] = &judged[..] else { return Err(format!("not one: {judged:?}").into()) };
    let why = one["why"].as_str().unwrap_or_default();
    if one["expect"] != expectation || one["held"] != held || parts.iter().any(|part| !why.contains(part)) {
        return Err(format!("{recording}: {one}").into());
    }
    Ok(())
}

fn what_got_through_is_reachable_and_not_blocked() -> Outcome {
    for of in ["", ":job-18"] {
        expect_judged("hop-limit-2", &format!("reachable{of}"), true, &["Container job-18"])?;
        let parts = ["was given a token", "PUT /latest/api/token was answered with 200"];
        expect_judged("hop-limit-2", &format!("blocked{of}"), false, &parts)?;
    }
    Ok(())
}

fn what_was_lost_is_blocked_and_not_reachable() -> Outcome {
    for recording in ["hop-limit-1-three-containers", "hop-limit-1-ipv6"] {
        let job = if recording.ends_with("ipv6") { "job-19" } else { "job-17" };
        let dropped = ["dropped in ip", "TTL 1 on ens5"];
        expect_judged(recording, &format!("blocked:{job}"), true, &dropped)?;
        expect_judged(recording, &format!("reachable:{job}"), false, &dropped)?;
    }
    expect_judged("hop-limit-1-three-containers", "reachable:agent", true, &["agent"])?;
    expect_judged("hop-limit-1-three-containers", "blocked", false, &["agent"])?;
    expect_judged("hop-limit-1-three-containers", "blocked:legacy-cron", true, &["401"])?;
    expect_judged("imds-is-silent", "blocked", true, &["nothing was seen coming back"])?;
    expect_judged("imds-is-silent", "reachable", false, &["nothing was seen coming back"])
}

fn a_firewall_that_drops_is_named_by_what_it_blocked() -> Outcome {
    let parts = ["dropped by a firewall rule", "netfilter's FORWARD hook on docker0"];
    expect_judged("docker-user-drops", "blocked", true, &parts)?;
    expect_judged("docker-user-drops", "blocked:job-21", true, &parts)?;
    expect_judged("docker-user-drops", "reachable", false, &parts)
}

fn asking_without_a_token_breaks_v2_only() -> Outcome {
    expect_judged("hop-limit-2", "v2-only", true, &["never asked without a token"])?;
    let parts = ["legacy-cron", "asked without a token (IMDSv1)", "401"];
    expect_judged("hop-limit-1-three-containers", "v2-only:legacy-cron", false, &parts)?;
    expect_judged("hop-limit-1-three-containers", "v2-only", false, &["job-17"])?;
    expect_judged("hop-limit-1-three-containers", "v2-only:agent", true, &["agent"])
}

fn an_error_about_one_breaks_no_errors_of_that_one() -> Outcome {
    let three = "hop-limit-1-three-containers";
    expect_judged("hop-limit-2", "no-errors", true, &["No error was found of container job-18"])?;
    expect_judged(three, "no-errors:agent", true, &["No error was found of container agent"])?;
    expect_judged(three, "no-errors:job-17", false, &["dropped in ip_forward with TTL 1"])?;
    expect_judged(three, "no-errors", false, &["job-17"])
}

fn silence_about_one_container_shows_nothing() -> Outcome {
    for claim in ["reachable", "blocked", "v2-only", "no-errors"] {
        expect_judged("hop-limit-2", &format!("{claim}:nobody"), false, &["No request of nobody was seen"])?;
    }
    Ok(())
}

fn what_is_not_shown_counts_all_the_same() -> Outcome {
    let (ran, judged) = judge("hop-limit-1-three-containers", &["blocked:agent"], &["--container", "job-17"])?;
    ran.expect_code(1)?;
    if judged[0]["held"] != false || ran.stdout.contains("\"name\":\"agent\"") {
        return Err(format!("{judged:?} {ran:?}").into());
    }
    Ok(())
}

fn several_are_judged_each_for_itself() -> Outcome {
    let asked = ["blocked:job-17", "reachable:agent", "v2-only:legacy-cron"];
    let (ran, judged) = judge("hop-limit-1-three-containers", &asked, &[])?;
    ran.expect_code(1)?;
    let held: Vec<_> = judged.iter().map(|one| one["held"].as_bool()).collect();
    if held != [Some(true), Some(true), Some(false)] {
        return Err(format!("{judged:?}").into());
    }
    let (ran, _) = judge("hop-limit-1-three-containers", &asked[..2], &[])?;
    ran.expect_code(0)?;
    // A broken expectation is a failure with or without --exit-code, and so is an error with it.
    judge("hop-limit-1-three-containers", &asked[..2], &["--exit-code"])?.0.expect_code(1)?;
    Ok(())
}

fn without_text_on_stdout_stderr_says_why() -> Outcome {
    let (ran, _) = judge("hop-limit-2", &["blocked", "reachable"], &[])?;
    let lines: Vec<&str> = ran.stderr.lines().collect();
    if lines.len() != 1 || !lines[0].starts_with("imds-trace: expected blocked: NOT HELD. Container job-18") {
        return Err(format!("{ran:?}").into());
    }
    let folder = Folder::new()?;
    let file = folder.file("it.jsonl", recorded("hop-limit-too-low")?)?;
    let ran = replay(&file, &["--expect", "reachable", "--expect", "blocked"])?;
    ran.expect_code(1)?;
    for line in ["Expected reachable: NOT HELD. ", "Expected blocked: held. "] {
        if !ran.stdout.contains(line) || !ran.stderr.is_empty() {
            return Err(format!("{line}: {ran:?}").into());
        }
    }
    Ok(())
}

fn what_is_no_expectation_is_one_sentence() -> Outcome {
    let folder = Folder::new()?;
    let file = folder.file("it.jsonl", recorded("hop-limit-too-low")?)?;
    for wrong in ["", "open", "blocked:", "BLOCKED", "v2", "a\u{1b}[31m"] {
        replay(&file, &["--expect", wrong])?
            .expect_sentence(&["--expect", "reachable, blocked, v2-only, no-errors or works-at:SETTINGS"])?;
    }
    run(["watch", "--expect", "open"])?.expect_sentence(&["--expect"])?;
    Ok(())
}
