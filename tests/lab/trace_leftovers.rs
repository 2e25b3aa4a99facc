//! What is left of a run that was killed, who takes it away, and what of others stays? With links (tcx) and with filters (clsact).

use std::collections::BTreeSet;

use anyhow::Result;
use imds_trace_tests::attached::{self, clsact, has_tcx};
use imds_trace_tests::expect::{expect_equal, expect_that, wait_until};
use imds_trace_tests::foreign::{ForeignProgram, Rank, Side, Verdict};
use imds_trace_tests::netns::Namespace;
use imds_trace_tests::tracer::program;
use imds_trace_tests::{Tracer, children};

use crate::Lab;
use crate::doctor::Undo;
use crate::trace::{SOON, client, ours_on, run_all};

crate::tests![
    the_next_run_removes_what_a_killed_one_left,
    doctor_removes_what_a_killed_run_left_and_says_so,
    filters_and_qdiscs_of_others_stay,
    a_run_outlives_another_that_ends,
    a_run_outlives_another_that_is_killed,
    an_interface_that_goes_takes_all_with_it,
    an_ingress_qdisc_of_somebody_else_stays_and_is_said_to_be_in_the_way,
];

type Outcome = anyhow::Result<()>;

/// A run hangs on both sides of `docker0` and `ens5`.
const HOOKS: usize = 4;

/// Runs `doctor --clean` and gives what it said.
pub fn clean(lab: &Lab) -> Result<String> {
    let mut command = lab.host.runner().command(program()?);
    command.args(["doctor", "--clean"]);
    children::output(command)
}

/// What hangs there, and the qdiscs.
fn state(runner: &Namespace) -> Result<(Vec<attached::Attached>, BTreeSet<String>)> {
    Ok((attached::attached(runner)?, clsact(runner)?))
}

/// All of it is as it was before: a link goes a moment after its process.
fn expect_as_before(lab: &Lab, before: &(Vec<attached::Attached>, BTreeSet<String>)) -> Result<()> {
    let as_before = || state(lab.host.runner()).is_ok_and(|now| now == *before).then_some(());
    wait_until("nothing to be left", SOON, as_before)
        .map_err(|late| late.context(format!("{:?}", state(lab.host.runner()))))
}

/// A client's exchanges are seen, both ways, at every place.
fn expect_it_sees(lab: &Lab, tracer: &Tracer, name: &str) -> Result<()> {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let containers = run_all(lab, vec![client(name, "v2")])?;
    expect_equal("the client is served", containers[0].wait(SOON)?, 0)?;
    let exchange = tracer.wait_for("its exchanges", SOON, |events| {
        let whose = |event: &&serde_json::Value| {
            event["type"] == "exchange" && event["container"]["name"] == name && event["response"]["hops"].is_array()
        };
        events.iter().find(whose).cloned()
    })?;
    expect_equal("the way out", crate::trace::hops(&exchange["request"]), vec!["docker0 ingress", "ens5 egress"])?;
    expect_equal("the way back", crate::trace::hops(&exchange["response"]), vec!["ens5 ingress", "docker0 egress"])
}

fn the_next_run_removes_what_a_killed_one_left(lab: &Lab) -> Outcome {
    let before = state(lab.host.runner())?;
    Tracer::start(&lab.host, &[])?.killed()?;
    let next = Tracer::start(&lab.host, &[])?;
    wait_until("only the new run's to hang there", SOON, || {
        (ours_on(lab.host.runner()).ok()?.len() == HOOKS).then_some(())
    })?;
    expect_that("it ends well", next.stop()?.status.success(), ())?;
    expect_as_before(lab, &before)?;
    Ok(())
}

fn doctor_removes_what_a_killed_run_left_and_says_so(lab: &Lab) -> Outcome {
    let before = state(lab.host.runner())?;
    Tracer::start(&lab.host, &[])?.killed()?;
    let said = clean(lab)?;
    if !has_tcx() {
        for part in ["ingress filter of docker0", "egress filter of ens5", "clsact qdisc of ens5"] {
            expect_that(&format!("it says {part:?}"), said.contains(part), &said)?;
        }
    }
    expect_as_before(lab, &before)?;
    let again = clean(lab)?;
    expect_that("then there is nothing", again.starts_with("Nothing to clean up"), &again)?;
    Ok(())
}

fn filters_and_qdiscs_of_others_stay(lab: &Lab) -> Outcome {
    let runner = lab.host.runner();
    // On one interface only a qdisc, on the other filters, too.
    let qdisc = |word: &str, interface: &str| runner.run("tc", &["qdisc", word, "dev", interface, "clsact"]);
    let undo = || {
        let _ = ["docker0", "ens5"].map(|interface| qdisc("del", interface));
    };
    let made = Undo(undo);
    for interface in ["docker0", "ens5"] {
        qdisc("add", interface)?;
    }
    let theirs = ForeignProgram::attach(runner, "ens5", Side::Egress, Rank::First, Verdict::Next, "lab_theirs")?;
    let before = state(runner)?;
    Tracer::start(&lab.host, &[])?.killed()?;
    let said = clean(lab)?;
    expect_that("no qdisc is removed", !said.contains("qdisc of"), &said)?;
    expect_as_before(lab, &before)?;
    Tracer::start(&lab.host, &[])?.killed()?;
    let tracer = Tracer::start(&lab.host, &[])?;
    expect_it_sees(lab, &tracer, "beside-others")?;
    expect_that("their program saw the packets, too", theirs.runs()? > 0, theirs.runs()?)?;
    tracer.stop()?;
    expect_as_before(lab, &before)?;
    // Hung on ours when it was there: then the qdisc is in use, and stays.
    drop((theirs, made));
    let tracer = Tracer::start(&lab.host, &[])?;
    let late = ForeignProgram::attach(runner, "ens5", Side::Ingress, Rank::Last, Verdict::Next, "lab_late")?;
    tracer.stop()?;
    let hanging: Vec<_> = attached::attached(runner)?.into_iter().map(|one| one.program).collect();
    expect_equal("theirs still hangs there", hanging, vec!["lab_late".to_owned()])?;
    drop(late);
    expect_equal("and then nothing is left", state(runner)?, (Vec::new(), BTreeSet::new()))?;
    Ok(())
}

fn a_run_outlives_another_that_ends(lab: &Lab) -> Outcome {
    let before = state(lab.host.runner())?;
    let first = Tracer::start(&lab.host, &[])?;
    let second = Tracer::start(&lab.host, &[])?;
    expect_equal("both hang there", ours_on(lab.host.runner())?.len(), 2 * HOOKS)?;
    first.stop()?;
    expect_equal("the second's stay", ours_on(lab.host.runner())?.len(), HOOKS)?;
    expect_it_sees(lab, &second, "after-the-first")?;
    second.stop()?;
    expect_as_before(lab, &before)?;
    Ok(())
}

fn a_run_outlives_another_that_is_killed(lab: &Lab) -> Outcome {
    let before = state(lab.host.runner())?;
    let first = Tracer::start(&lab.host, &[])?;
    let second = Tracer::start(&lab.host, &[])?;
    first.killed()?;
    clean(lab)?;
    wait_until("only the second's to hang there", SOON, || {
        (ours_on(lab.host.runner()).ok()?.len() == HOOKS).then_some(())
    })?;
    expect_it_sees(lab, &second, "after-the-killed")?;
    // What is left of this one goes with the one that ends last.
    Tracer::start(&lab.host, &[])?.killed()?;
    second.stop()?;
    expect_as_before(lab, &before)?;
    Ok(())
}

fn an_interface_that_goes_takes_all_with_it(lab: &Lab) -> Outcome {
    let runner = lab.host.runner();
    let before = state(runner)?;
    runner.ip("link add br-gone type bridge")?;
    let tracer = Tracer::start(&lab.host, &[])?;
    expect_equal("it hangs there, too", ours_on(runner)?.len(), HOOKS + 2)?;
    runner.ip("link del br-gone")?;
    let outcome = tracer.stop()?;
    expect_that("it ends well, and has nothing to say of it", outcome.status.success(), &outcome.stderr)?;
    expect_that("it warns of nothing", !outcome.stderr.contains("clean up"), &outcome.stderr)?;
    expect_as_before(lab, &before)?;
    Ok(())
}

fn an_ingress_qdisc_of_somebody_else_stays_and_is_said_to_be_in_the_way(lab: &Lab) -> Outcome {
    let runner = lab.host.runner();
    let before = state(runner)?;
    runner.ip("link add br-shaped type bridge")?;
    let _gone = Undo(|| drop(runner.ip("link del br-shaped")));
    runner.run("tc", &["qdisc", "add", "dev", "br-shaped", "ingress"])?;
    let tracer = Tracer::start(&lab.host, &[])?;
    let on_bridge = ours_on(runner)?.into_iter().filter(|one| one.interface == "br-shaped").count();
    expect_equal("it hangs there if links can", on_bridge, if has_tcx() { 2 } else { 0 })?;
    let outcome = tracer.stop()?;
    if !has_tcx() {
        let said = &outcome.stderr;
        expect_that("it says what is in the way", said.contains("br-shaped") && said.contains("ingress qdisc"), said)?;
    }
    let qdiscs = runner.run("tc", &["qdisc", "show", "dev", "br-shaped"])?;
    expect_that("the qdisc stays", qdiscs.contains("qdisc ingress"), &qdiscs)?;
    expect_as_before(lab, &before)?;
    Ok(())
}
