//! Does the pipeline ever say something else than what was true?
//!
//! Small random hosts: containers and host processes that ask IMDS, and what becomes of each request, is chosen; so the truth is known. What
//! the hooks would have seen is given to the pipeline, in any order that processors may tell it in, and with records lost. It may say less
//! than the truth. `IMDS_TRACE_MODEL_RUNS` and `IMDS_TRACE_MODEL_SEED` choose how many hosts, and which.

mod world;

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use diagnosis::config::{Claim, Expectation, Telling};
use diagnosis::finding::Confidence;
use diagnosis::input::Input;
use diagnosis::pipeline::Host;
use imds_trace_replay_tests::scenario::harm::{is_of_kernel, shuffled, without};
use imds_trace_replay_tests::scenario::{HOST_NETNS, INSTANCE, conclude_telling, show};
use libtest_mimic::{Failed, Trial};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use world::{Truth, What, World, address, world};

/// Hosts that are tried where nobody says how many.
const RUNS: u32 = 1_000;

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    vec![Trial::test("no_host_makes_the_pipeline_say_what_is_not_true", nothing_false_is_said)]
}

/// What is false of what is said of a world.
fn falsehoods(world: &World) -> Result<Vec<String>> {
    let (scenario, truths) = world.told()?;
    let mut inputs = shuffled(&scenario.inputs()?, world.order);
    let (mut lossless, mut silent) = (true, 0);
    for &(which, told) in &world.lost {
        let of_kernel: Vec<usize> = (0..inputs.len()).filter(|index| is_of_kernel(&inputs[*index])).collect();
        let Some(index) = of_kernel.get(usize::from(which) * of_kernel.len() / 1_000) else { break };
        inputs = without(&inputs, *index, told);
        (lossless, silent) = (false, silent + usize::from(!told));
    }
    said(&inputs, &truths, world.v6, lossless, silent)
}

fn said(inputs: &[Input], truths: &[Truth], v6: bool, lossless: bool, silent: usize) -> Result<Vec<String>> {
    let claims = [("blocked", Claim::Blocked), ("v2-only", Claim::V2Only), ("no-errors", Claim::NoErrors)];
    let asked = claims.map(|(text, claim)| Expectation { text: text.to_owned(), claim, who: None });
    let host = Host { netns: HOST_NETNS, pid_namespace: None, instance: Some(INSTANCE.to_owned()) };
    let told = conclude_telling(host, inputs, true, &Telling { expectations: asked.to_vec(), ..Telling::default() })?;
    let mut wrong = Vec::new();
    for event in &told.exchanges {
        let exchange = &event.exchange;
        // Of an attempt no packet was seen, so no port.
        let Some(port) = exchange.client().map(|client| client.port) else { continue };
        let its: Vec<&Truth> = truths.iter().filter(|truth| truth.port == port).collect();
        if its.is_empty() {
            wrong.push(format!("an exchange from port {port}, where nobody was"));
            continue;
        }
        // Of a connection with two requests: in either of them.
        let is_false = its.iter().all(|truth| match exchange.status() {
            Some(status) if exchange.is_late() => truth.late != Some(status) && truth.status != Some(status),
            Some(status) => truth.status != Some(status),
            None => exchange.answered.is_some() && exchange.response_proof.is_some() && truth.status.is_none(),
        });
        let got: Vec<Option<u16>> = its.iter().map(|truth| truth.status).collect();
        if is_false {
            wrong.push(format!("port {port} got {:?}, not {got:?}", exchange.status()));
        }
        if lossless && got.iter().all(Option::is_some) && exchange.status().is_none() {
            wrong.push(format!("port {port} got {got:?}, and that is not told"));
        }
    }
    for finding in &told.report.findings {
        let whose = show(&finding.who);
        let is_theirs = |truth: &&Truth| match truth.client {
            // Whose no packet was seen, and no container is known.
            _ if whose == "0.0.0.0" || whose == "::" => true,
            0 => whose == "host" || whose == address(v6, 0),
            client => [format!("job-{client}"), address(v6, client), address(v6, 0)].contains(&whose),
        };
        let theirs: Vec<&Truth> = truths.iter().filter(is_theirs).collect();
        let mut allowed: BTreeSet<&str> = theirs.iter().flat_map(|truth| truth.rules.iter().copied()).collect();
        // Who got no token and asks without one has fallen back.
        let got_none = |truth: &&&Truth| truth.what == What::Token && truth.status != Some(200);
        let asks_v1 = |truth: &&Truth| truth.what == What::V1 && truth.status.is_some();
        if theirs.iter().any(|truth| got_none(&truth)) && theirs.iter().any(asks_v1) {
            allowed.insert("imdsv1-fallback");
        }
        if !allowed.contains(finding.rule) && (silent == 0 || finding.says.confidence == Confidence::Certain) {
            wrong
                .push(format!("{} of {whose} ({:?}): {}", finding.rule, finding.says.confidence, finding.says.summary));
        }
    }
    let secret = |truth: &Truth| truth.status == Some(200) && matches!(truth.what, What::Token | What::Role);
    // A 200 beside it speaks against a disabled endpoint, whoever answered.
    let proxied = truths.iter().any(|truth| truth.rules.contains(&"answered-locally"));
    let bad = |truth: &Truth| truth.status.is_none_or(|status| status == 403 && !proxied);
    for (claim, is_broken) in [
        ("blocked", truths.iter().any(secret)),
        ("v2-only", truths.iter().any(|truth| truth.what == What::V1 && truth.asked)),
        ("no-errors", truths.iter().any(bad)),
    ] {
        // What a process of the host does is seen at one place: without that sighting nothing speaks against the claim.
        // Nor where every sighting of a request was lost, and nobody knows that any was.
        let is_unseen = silent > 1 || silent == 1 && truths.iter().any(|truth| truth.client == 0);
        let held = !is_unseen && told.report.expectations.iter().any(|asked| asked.expect == claim && asked.held);
        if held && is_broken && !told.exchanges.is_empty() {
            wrong.push(format!("{claim} holds"));
        }
    }
    Ok(wrong)
}

fn number(name: &str) -> Result<Option<u32>> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{name}={text}"))?)),
        Err(_) => Ok(None),
    }
}

fn nothing_false_is_said() -> Result<(), Failed> {
    let cases = number("IMDS_TRACE_MODEL_RUNS")?.unwrap_or(RUNS);
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&number("IMDS_TRACE_MODEL_SEED")?.unwrap_or(0).to_le_bytes());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let outcome = runner.run(&world(), |world| {
        let wrong = falsehoods(&world).map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
        prop_assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    });
    outcome.map_err(|error| Failed::from(error.to_string()))
}
