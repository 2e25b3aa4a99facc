//! Does `run` trace what a command does, pass on how it ended, and fail when what was expected did not hold?

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use imds_trace_tests::cgroup::OwnCgroup;
use imds_trace_tests::expect::{assert_no_secret, expect_equal, expect_that, wait_until};
use imds_trace_tests::foreign::ForeignProgram;
use imds_trace_tests::{Container, ContainerSpec, Engine, Outcome, Tracer, junit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::Lab;
use crate::trace::{SOON, client, go, ours_on};

crate::tests![
    how_the_command_ended_is_passed_on,
    a_command_that_is_not_there_is_one_sentence,
    what_was_expected_and_did_not_hold_is_told,
    what_was_expected_and_held_leaves_the_commands_own_status,
    nothing_is_blocked_for_sure_where_a_program_sends_connects_elsewhere,
    an_error_found_fails_a_command_that_ended_well,
    a_loss_after_the_command_ended_is_seen,
    sigterm_ends_the_command_and_then_the_trace,
    sigint_is_the_commands_own_affair,
    nobody_to_read_is_no_reason_to_stop,
];

type Told = anyhow::Result<()>;

/// A container that does nothing, for commands of the host to work in its network.
fn idle(lab: &Lab, name: &str) -> Result<Container> {
    lab.host.run(ContainerSpec::new(name, &["imds-client", "linger", "600"]))
}

/// The words of a command of the host that runs `imds-client` in a container's network.
fn inside(container: &Container, words: &str) -> Result<Vec<String>> {
    let client = imds_trace_tests::tracer::program()?.with_file_name("imds-client");
    let netns = format!("--net=/proc/{}/ns/net", container.pid()?);
    let own = ["nsenter".to_owned(), netns, client.display().to_string()];
    Ok(own.into_iter().chain(words.split_whitespace().map(str::to_owned)).collect())
}

/// An expectation about a container; of everybody, where nobody knows its name.
fn claimed(lab: &Lab, claim: &str, container: &Container) -> String {
    match lab.host.engine() {
        Engine::Docker => format!("{claim}:{}", container.name()),
        Engine::Plain => claim.to_owned(),
    }
}

/// `imds-trace run` to its end; it must leave nothing behind and tell no secret.
fn run(lab: &Lab, options: &[&str], command: &[impl AsRef<str>]) -> Result<Outcome> {
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(500));
    lab.host.settle(SOON)?;
    let words: Vec<&str> =
        options.iter().copied().chain(["--"]).chain(command.iter().map(|word| word.as_ref())).collect();
    let outcome = Tracer::run_to_end(&lab.host, "run", &words)?;
    left_nothing(lab, &outcome)?;
    Ok(outcome)
}

fn left_nothing(lab: &Lab, outcome: &Outcome) -> Result<()> {
    expect_equal("nothing of the tracer is left", ours_on(lab.host.runner())?, Vec::new())?;
    let secrets = lab.host.imds().secrets();
    if !secrets.is_empty() {
        let outputs = [("stdout", outcome.stdout.as_bytes()), ("stderr", outcome.stderr.as_bytes())];
        assert_no_secret(&outputs, &[&outcome.dir], &secrets)?;
    }
    Ok(())
}

fn how_the_command_ended_is_passed_on(lab: &Lab) -> Told {
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143)] {
        let outcome = run(lab, &[], &["sh", "-c", script])?;
        expect_equal(script, outcome.status.code(), Some(code))?;
        expect_equal("there is a report all the same", &outcome.report()?["lost"], &json!(0))?;
    }
    let outcome = run(lab, &[], &["sh", "-c", "echo to stdout; echo to stderr >&2"])?;
    expect_that("the command has our stdout", outcome.stdout.contains("to stdout\n"), &outcome)?;
    expect_that("and our stderr", outcome.stderr.contains("to stderr\n"), &outcome)?;
    Ok(())
}

fn a_command_that_is_not_there_is_one_sentence(lab: &Lab) -> Told {
    let outcome = run(lab, &[], &["no-such-command", "--really"])?;
    expect_equal("it could not run", outcome.status.code(), Some(2))?;
    let said: Vec<_> = outcome.stderr.lines().filter(|line| line.contains("no-such-command")).collect();
    expect_equal("and says so", said, vec!["imds-trace: run no-such-command: No such file or directory (os error 2)"])?;
    Ok(())
}

fn what_was_expected_and_did_not_hold_is_told(lab: &Lab) -> Told {
    let container = idle(lab, "expected")?;
    let command = inside(&container, "put-only --timeout-ms 300")?;
    let [reachable, blocked] = ["reachable", "blocked"].map(|claim| claimed(lab, claim, &container));
    let options = ["--expect", &reachable, "--expect", &blocked, "--output", "junit={dir}/it.xml"];
    let outcome = run(lab, &options, &command)?;
    expect_equal("its code is not the command's, but that of the failure", outcome.status.code(), Some(1))?;
    let judged = &outcome.report()?["expectations"];
    expect_that("it was not reachable", judged[0]["held"] == false, judged)?;
    expect_that(
        "and says what was seen",
        judged[0]["why"].as_str().unwrap_or_default().contains("ip_forward"),
        judged,
    )?;
    expect_that("but blocked", judged[1]["held"] == true, judged)?;
    let said =
        outcome.stderr.lines().any(|line| line.starts_with(&format!("imds-trace: expected {reachable}: NOT HELD. ")));
    expect_that("stderr says so, for stdout has JSON", said, &outcome.stderr)?;
    let cases = junit::read(&outcome.dir.join("it.xml"))?;
    let failure = |name: &str| {
        let case = cases.iter().find(|case| case.name.contains(name)).with_context(|| format!("{cases:?}"))?;
        anyhow::Ok(case.failure.as_ref().map(|(kind, _)| kind.as_str()))
    };
    expect_equal("JUnit has what failed", failure(&reachable)?, Some("expectation"))?;
    expect_equal("and what held", failure(&blocked)?, None)?;
    let address = container.address().context("an address")?;
    expect_equal("and nobody is blamed for being kept out as asked", failure(&format!("({address})"))?, None)?;
    Ok(())
}

fn nothing_is_blocked_for_sure_where_a_program_sends_connects_elsewhere(lab: &Lab) -> Told {
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(500));
    let container = lab.host.run(client("sent-elsewhere", "put-only --timeout-ms 300").wait_for_go())?;
    let own = OwnCgroup::of(container.pid()?)?;
    let [imds, nobody] = [Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(192, 0, 2, 1)];
    let program = ForeignProgram::in_connect(&own.folder, "lab_connect4", imds, nobody)?;
    lab.host.settle(SOON)?;
    let tracer = Tracer::start(&lab.host, &["--expect", "blocked"])?;
    go(std::slice::from_ref(&container))?;
    container.wait(SOON)?;
    expect_that("the program ran", program.runs()? > 0, program.runs()?)?;
    let outcome = tracer.stop()?;
    left_nothing(lab, &outcome)?;
    expect_equal("nobody knows what the client got", outcome.status.code(), Some(1))?;
    let judged = &outcome.report()?["expectations"][0];
    let why = judged["why"].as_str().unwrap_or_default();
    expect_that("it says so", judged["held"] == false && why.contains("connect() as it was called"), judged)?;
    expect_that("and whose doing that is", outcome.stderr.contains("(lab_connect4)"), &outcome.stderr)?;
    Ok(())
}

fn what_was_expected_and_held_leaves_the_commands_own_status(lab: &Lab) -> Told {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let container = idle(lab, "expected-well")?;
    let client = inside(&container, "v2")?.join(" ");
    let script = format!("{client} && exit 3");
    let [reachable, v2_only] = ["reachable", "v2-only"].map(|claim| claimed(lab, claim, &container));
    let outcome = run(lab, &["--expect", &reachable, "--expect", &v2_only], &["sh", "-c", &script])?;
    expect_equal("the command's own code", outcome.status.code(), Some(3))?;
    let judged = &outcome.report()?["expectations"];
    expect_that("both held", judged[0]["held"] == true && judged[1]["held"] == true, judged)?;
    Ok(())
}

fn an_error_found_fails_a_command_that_ended_well(lab: &Lab) -> Told {
    let container = idle(lab, "erring")?;
    let client = inside(&container, "put-only --timeout-ms 300")?.join(" ");
    for (script, options, code) in [
        (format!("{client}; exit 0"), &["--exit-code"][..], 1),
        (format!("{client}; exit 0"), &[], 0),
        (format!("{client}; exit 9"), &["--exit-code"], 9),
    ] {
        let outcome = run(lab, options, &["sh", "-c", &script])?;
        expect_that("there was an error", !outcome.findings("hop-limit-too-low").is_empty(), &outcome)?;
        expect_equal(&format!("the code with {options:?}"), outcome.status.code(), Some(code))?;
    }
    Ok(())
}

fn a_loss_after_the_command_ended_is_seen(lab: &Lab) -> Told {
    let container = idle(lab, "brief")?;
    // It gives up before the first copy of the answer can have been joined to anything.
    let outcome = run(lab, &[], &inside(&container, "put-only --timeout-ms 60")?)?;
    expect_equal("the client's own code", outcome.status.code(), Some(1))?;
    let address = json!(container.address());
    let mut exchanges = outcome.exchanges();
    exchanges.retain(|exchange| exchange["client"]["address"] == address && !exchange["method"].is_null());
    expect_equal("its exchange is told", exchanges.len(), 1)?;
    expect_equal("with its end", &exchanges[0]["response"]["drop"]["location"], &json!("ip_forward"))?;
    expect_that("and what killed it", !outcome.findings("hop-limit-too-low").is_empty(), &outcome)?;
    Ok(())
}

/// Starts `run` with a command that says when it is up and then waits for a file, in its folder, called `end`.
fn waiting(lab: &Lab, trap: &str) -> Result<Tracer> {
    let script =
        format!("trap '{trap}' TERM INT; : > {{dir}}/up; until [ -e {{dir}}/end ]; do sleep 0.02; done; exit 4");
    let tracer = Tracer::start_run(&lab.host, &["--", "sh", "-c", &script])?;
    let up = tracer.dir().join("up");
    wait_until("the command to be up", SOON, || up.exists().then_some(()))?;
    Ok(tracer)
}

fn sigterm_ends_the_command_and_then_the_trace(lab: &Lab) -> Told {
    let tracer = waiting(lab, "echo the command heard it; exit 5")?;
    let outcome = tracer.stop()?;
    expect_that("the command heard it", outcome.stdout.contains("the command heard it"), &outcome)?;
    expect_equal("its own code", outcome.status.code(), Some(5))?;
    outcome.report()?;
    left_nothing(lab, &outcome)?;
    Ok(())
}

fn sigint_is_the_commands_own_affair(lab: &Lab) -> Told {
    let tracer = waiting(lab, "")?;
    let end = tracer.dir().join("end");
    kill(Pid::from_raw(i32::try_from(tracer.pid()).context("a pid")?), Signal::SIGINT).context("send SIGINT")?;
    // Had it ended by that, this would find nobody who waits.
    let container = idle(lab, "meanwhile")?;
    let request = inside(&container, "v1 --timeout-ms 300")?;
    let mut client = lab.host.runner().command(&request[0]);
    let refused = client.args(&request[1..]).stdout(Stdio::null()).status().context("run the client")?;
    expect_equal("a request without a token is refused", refused.code(), Some(1))?;
    tracer.wait_for("the exchange after it", SOON, |events| {
        events.iter().any(|event| event["type"] == "exchange").then_some(())
    })?;
    std::fs::write(&end, b"").context("let the command end")?;
    let outcome = tracer.finish(SOON)?;
    expect_equal("the command's own code", outcome.status.code(), Some(4))?;
    left_nothing(lab, &outcome)?;
    Ok(())
}

fn nobody_to_read_is_no_reason_to_stop(lab: &Lab) -> Told {
    let container = idle(lab, "unread")?;
    let client = inside(&container, "put-only --timeout-ms 300")?.join(" ");
    let mut run = lab.host.runner().command(imds_trace_tests::tracer::program()?);
    run.args(["run", "--output", "json", "--docker-host", &lab.host.docker_host_url()]);
    run.args(["--expect", &claimed(lab, "reachable", &container), "--", "sh", "-c"]);
    run.arg(format!("{client} > /dev/null; exit 6"));
    run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = run.spawn().context("start imds-trace")?;
    drop(child.stdout.take());
    let ended = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    expect_equal("what was expected is judged all the same", ended.status.code(), Some(1)).context(said.clone())?;
    expect_that("from what was seen", said.contains("NOT HELD") && said.contains("ip_forward"), &said)?;
    Ok(())
}
