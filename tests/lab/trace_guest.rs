//! Is it a good guest: does it leave others their packets, leave nothing behind, and say the same when asked again?

use std::time::Duration;

use imds_trace_tests::attached::{self, held_by};
use imds_trace_tests::expect::{expect_equal, expect_that, wait_until};
use imds_trace_tests::foreign::{ForeignProgram, Rank, Side, Verdict};
use imds_trace_tests::tracer::program;
use imds_trace_tests::{Tracer, children};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::Lab;
use crate::trace::{SOON, Seen, client, ours_on, run_all, watched};
use crate::trace_leftovers::clean;

crate::tests![
    programs_before_and_after_ours_see_every_packet,
    a_verdict_of_a_program_before_ours_stands,
    two_tracers_at_once_say_the_same,
    nothing_is_left_after_sigterm,
    a_terminal_that_goes_away_ends_it_with_the_report,
    nothing_is_left_after_sigkill,
    a_replay_says_what_was_said_of_lost_answers,
    a_replay_says_what_was_said_when_all_was_well,
    a_replay_says_what_was_said_of_many_kinds_of_clients,
];

type Outcome = anyhow::Result<()>;

const PLACES: [(&str, Side, &str); 4] = [
    ("ens5", Side::Ingress, "ei"),
    ("ens5", Side::Egress, "ee"),
    ("docker0", Side::Ingress, "di"),
    ("docker0", Side::Egress, "de"),
];

fn attach_everywhere(lab: &Lab, rank: Rank, prefix: &str) -> anyhow::Result<Vec<ForeignProgram>> {
    let attach = |(interface, side, short): (&str, Side, &str)| {
        ForeignProgram::attach(lab.host.runner(), interface, side, rank, Verdict::Next, &format!("{prefix}_{short}"))
    };
    PLACES.into_iter().map(attach).collect()
}

fn runs(programs: &[Vec<ForeignProgram>]) -> anyhow::Result<Vec<Vec<u64>>> {
    programs.iter().map(|rank| rank.iter().map(ForeignProgram::runs).collect()).collect()
}

/// The counts, once they stand still: no packet came while they were read.
fn runs_at_rest(programs: &[Vec<ForeignProgram>]) -> anyhow::Result<Vec<Vec<u64>>> {
    wait_until("a moment without packets", SOON, || {
        let counts = runs(programs).ok()?;
        (runs(programs).ok()? == counts).then_some(counts)
    })
}

fn programs_before_and_after_ours_see_every_packet(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let mut programs =
        vec![attach_everywhere(lab, Rank::First, "old_first")?, attach_everywhere(lab, Rank::Last, "old_last")?];
    let (seen, deltas) = watched(lab, &[], |_| {
        programs.push(attach_everywhere(lab, Rank::First, "new_first")?);
        programs.push(attach_everywhere(lab, Rank::Last, "new_last")?);
        let hanging = attached::attached(lab.host.runner())?;
        for (interface, side, _) in PLACES {
            let side = format!("{side:?}").to_lowercase();
            let here = hanging.iter().filter(|one| one.interface == interface && one.place.ends_with(&side));
            let names: Vec<_> = here.map(|one| one.program.as_str()).collect();
            let ours = names.iter().position(|name| name.starts_with("imds_"));
            expect_that(
                "ours hangs between the others",
                ours.is_some_and(|at| at > 0 && at + 1 < names.len()),
                &names,
            )?;
        }
        let before = runs_at_rest(&programs)?;
        let containers = run_all(lab, vec![client("busy", "v2 --count 20 --parallel 2")])?;
        expect_equal("all was well", containers[0].wait(SOON)?, 0)?;
        drop(containers);
        lab.host.settle(SOON)?;
        let after = runs_at_rest(&programs)?;
        let delta = |(after, before): (&Vec<u64>, &Vec<u64>)| -> Vec<u64> {
            after.iter().zip(before).map(|(after, before)| after - before).collect()
        };
        Ok(after.iter().zip(&before).map(delta).collect::<Vec<_>>())
    })?;
    for delta in &deltas {
        expect_equal("each saw as many as the first", delta, &deltas[0])?;
    }
    // A connection has a handshake, a request, a response and its end: three packets a direction at the least.
    expect_that("and all packets were seen", deltas[0].iter().all(|count| *count >= 80 * 3), &deltas)?;
    expect_equal("by the tracer too", seen.outcome.exchanges().len(), 80)?;
    Ok(())
}

fn a_verdict_of_a_program_before_ours_stands(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    // TCX_PASS ends the chain: ours, attached later and behind it, sees nothing; and what it cannot see it must not invent.
    let pass =
        ForeignProgram::attach(lab.host.runner(), "ens5", Side::Ingress, Rank::First, Verdict::Pass, "lab_pass")?;
    let (seen, containers) = watched(lab, &[], |_| run_all(lab, vec![client("unseen", "v2")]))?;
    expect_equal("the client is served", containers[0].wait(SOON)?, 0)?;
    expect_that("the other program had its packets", pass.runs()? > 0, pass.runs()?)?;
    seen.expect_no_error()?;
    Ok(())
}

fn two_tracers_at_once_say_the_same(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(500));
    let (seen, (containers, other)) = watched(lab, &[], |_| {
        let other = Tracer::start(&lab.host, &[])?;
        let words = "put-only --count 5 --parallel 4 --timeout-ms 300";
        let containers = run_all(lab, vec![client("seen-twice", words)])?;
        lab.host.settle(SOON)?;
        // It goes first, and must leave the first one's programs where they are.
        Ok((containers, other.stop()?))
    })?;
    let count = seen.expect_too_low(&containers[0], "ip_forward", 2)?;
    expect_equal("the first counts each copy once", count, seen.header_errors)?;
    let theirs = other.findings("hop-limit-too-low").last().and_then(|finding| finding["count"].as_u64());
    expect_equal("the second does too", theirs, Some(count))?;
    expect_equal("both saw the same exchanges", other.exchanges().len(), seen.outcome.exchanges().len())?;
    Ok(())
}

fn nothing_is_left_after_sigterm(lab: &Lab) -> Outcome {
    let tracer = Tracer::start(&lab.host, &[])?;
    let held = held_by(tracer.pid())?;
    let hanging = ours_on(lab.host.runner())?;
    expect_that("it hangs on both sides of two interfaces", hanging.len() == 4, &hanging)?;
    expect_that("and holds its programs", held.len() >= 4, &held)?;
    expect_that("it ends well", tracer.stop()?.status.success(), ())?;
    expect_equal("then nothing hangs there", ours_on(lab.host.runner())?, Vec::new())?;
    expect_unloaded(&held)?;
    Ok(())
}

fn a_terminal_that_goes_away_ends_it_with_the_report(lab: &Lab) -> Outcome {
    let outcome = Tracer::start(&lab.host, &[])?.stop_by(Signal::SIGHUP)?;
    expect_that("it ends well", outcome.status.success(), &outcome)?;
    expect_equal("and tells the report", &outcome.report()?["lost"], &json!(0))?;
    expect_equal("nothing hangs there", ours_on(lab.host.runner())?, Vec::new())?;
    Ok(())
}

fn nothing_is_left_after_sigkill(lab: &Lab) -> Outcome {
    let mut tracer = Tracer::start(&lab.host, &[])?;
    let held = held_by(tracer.pid())?;
    expect_that("it holds its programs", held.len() >= 4, &held)?;
    tracer.kill();
    if !attached::has_tcx() {
        // Filters stay, until somebody comes: trace_leftovers has the rest.
        clean(lab)?;
    }
    wait_until("its programs to be taken off", SOON, || ours_on(lab.host.runner()).ok()?.is_empty().then_some(()))?;
    expect_unloaded(&held)?;
    Ok(())
}

/// The kernel frees programs a moment after the last who held them is gone.
fn expect_unloaded(programs: &std::collections::BTreeSet<u32>) -> anyhow::Result<()> {
    wait_until("the kernel to free its programs", SOON, || {
        let loaded = attached::loaded().ok()?;
        loaded.iter().all(|program| !programs.contains(&program.id)).then_some(())
    })
}

/// `imds-trace replay` of the recording writes what `watch` wrote, byte for byte.
fn expect_the_same_again(seen: &Seen) -> anyhow::Result<()> {
    let mut command = children::command(program()?);
    command.arg("replay").arg(&seen.outcome.recording).args(["--output", "json"]);
    let replayed = children::output(command)?;
    let (mut said, mut again) = (seen.outcome.stdout.lines(), replayed.lines());
    for number in 1.. {
        match (said.next(), again.next()) {
            (None, None) => break,
            (said, again) => expect_equal(&format!("line {number} of the replay"), again, said)?,
        }
    }
    expect_equal("the replay to the last byte", replayed, seen.outcome.stdout.clone())
}

fn a_replay_says_what_was_said_of_lost_answers(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(500));
    let (seen, containers) = watched(lab, &[], |_| {
        let words = "put-only --count 5 --parallel 4 --timeout-ms 300";
        run_all(lab, ["again-1", "again-2"].map(|name| client(name, words)).into())
    })?;
    for container in &containers {
        seen.expect_rules(container, &["hop-limit-too-low"])?;
    }
    expect_the_same_again(&seen)?;
    Ok(())
}

fn a_replay_says_what_was_said_when_all_was_well(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (seen, containers) = watched(lab, &[], |_| {
        let words = "v2 --count 10 --parallel 2";
        run_all(lab, ["well-1", "well-2"].map(|name| client(name, words)).into())
    })?;
    for container in &containers {
        seen.expect_rules(container, &["hop-budget-spent"])?;
    }
    expect_the_same_again(&seen)?;
    Ok(())
}

fn a_replay_says_what_was_said_of_many_kinds_of_clients(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(900));
    let (seen, _containers) = watched(lab, &[], |_| {
        let clients = [
            client("kind-fallback", "fallback --timeout-ms 700"),
            client("kind-v1", "v1 --count 3"),
            client("kind-host", "v2 --count 3").network("host"),
            client("kind-six", "fallback --timeout-ms 700 --endpoint fd00:ec2::254"),
        ];
        let containers = run_all(lab, clients.into())?;
        lab.host.imds().set(|behaviour| behaviour.silent = true);
        run_all(lab, vec![client("kind-silent", "put-only --timeout-ms 300")])?;
        Ok(containers)
    })?;
    let rules: std::collections::BTreeSet<_> =
        seen.findings().iter().filter_map(|finding| finding["rule"].as_str()).collect();
    expect_that("many rules had something to say", rules.len() >= 5, &rules)?;
    expect_the_same_again(&seen)?;
    Ok(())
}
