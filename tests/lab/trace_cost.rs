//! Does tracing stay cheap, as far as that can be counted, and is nothing lost while somebody else is slow?

use std::fs;
use std::io::Read;
use std::process::Stdio;

use anyhow::{Context, Result};
use imds_trace_tests::attached;
use imds_trace_tests::children;
use imds_trace_tests::expect::{expect_equal, expect_that, wait_until};
use imds_trace_tests::{ContainerSpec, tracer};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::Lab;
use crate::trace::{SOON, client, run_all, watched};

crate::tests![
    who_is_not_read_from_for_a_while_loses_nothing,
    an_exchange_takes_so_many_records_and_no_more,
    the_verifier_has_little_to_do,
];

type Outcome = Result<()>;

/// What 4 MiB of ring buffer hold is some 700 exchanges.
const EACH: usize = 1_000;
const THREADS: usize = 4;
/// Eight packets, and acknowledgements that may or may not be apart, at two interfaces; and what TCPs discard at the end.
const OBSERVATIONS: usize = 26;
/// The attempt, connecting, sending, connected, and one for each state that ends it; once what /proc says.
const FACTS: usize = 9;
/// Instructions that the verifier follows of one program.
const VERIFIED: u32 = 40_000;

fn who_is_not_read_from_for_a_while_loses_nothing(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let container = lab.host.run(ContainerSpec::new("hasty", &["imds-client", "linger", "600"]))?;
    let ready = lab.host.dir().join("unread.ready");
    let _ = fs::remove_file(&ready);
    let mut command = lab.host.runner().command(tracer::program()?);
    command.args(["watch", "--output", "json", "--docker-host", &lab.host.docker_host_url(), "--ready-file"]);
    command.arg(&ready).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut tracer = children::spawn(command).context("start imds-trace")?;
    wait_until("imds-trace to be ready", SOON, || ready.exists().then_some(()))?;
    let asked = container.asks(&format!("put-only --count {EACH} --parallel {THREADS}"))?;
    let answered = asked.iter().filter(|attempt| attempt["status"] == 200).count();
    expect_equal("how many were answered", answered, EACH * THREADS)?;
    // A pipe holds some forty lines of them: it has not read a signal either.
    kill(Pid::from_raw(i32::try_from(tracer.id())?), Signal::SIGTERM)?;
    let mut text = String::new();
    tracer.stdout.take().context("piped")?.read_to_string(&mut text)?;
    let status = children::wait(&mut tracer, SOON).context("imds-trace did not end")?;
    expect_equal("its end", status.code(), Some(0))?;
    let events: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let report = events.iter().find(|event| event["type"] == "report").context("a report")?;
    expect_equal("what it lost", report["lost"].as_u64(), Some(0))?;
    let told = |event: &&Value| event["type"] == "exchange" && event["status"] == 200;
    let mut told: Vec<_> = events.iter().filter(told).filter_map(|event| event["id"].as_u64()).collect();
    told.sort_unstable();
    told.dedup();
    expect_equal("how many it told as answered", told.len(), EACH * THREADS)
}

fn an_exchange_takes_so_many_records_and_no_more(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (seen, _containers) = watched(lab, &[], |_| run_all(lab, vec![client("counted", "put-only")]))?;
    let recording = fs::read_to_string(&seen.outcome.recording)?;
    let count = |begins: &str, holds: &[&str]| {
        let lines = recording.lines().filter(|line| line.starts_with(begins));
        lines.filter(|line| holds.is_empty() || holds.iter().any(|held| line.contains(held))).count()
    };
    let observations = count(r#"{"observation""#, &[]);
    expect_that("it takes few observations", (10..=OBSERVATIONS).contains(&observations), observations)?;
    let kinds = ["attempting", "connecting", "sending", "connected", "counted", "process"];
    let facts = count(r#"{"fact""#, &kinds.map(|kind| format!(r#","{kind}":{{"#)).each_ref().map(String::as_str));
    expect_that("and few facts", (4..=FACTS).contains(&facts), facts)
}

fn the_verifier_has_little_to_do(lab: &Lab) -> Outcome {
    let tracer = imds_trace_tests::Tracer::start(&lab.host, &[])?;
    let held = attached::held_by(tracer.pid())?;
    let programs: Vec<_> = attached::loaded()?.into_iter().filter(|program| held.contains(&program.id)).collect();
    expect_that("it holds its programs", programs.len() >= 4, &programs)?;
    for program in &programs {
        // Before Linux 5.16 the kernel does not tell.
        let verified = program.verified.unwrap_or(0);
        expect_that("it was soon verified", verified <= VERIFIED, (&program.name, verified))?;
    }
    tracer.stop()?;
    Ok(())
}
