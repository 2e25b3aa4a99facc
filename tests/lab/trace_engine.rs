//! Is an engine followed that goes away and comes back, and do the containers depart that ended with it?

use anyhow::Result;
use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::{ContainerSpec, Engine};
use serde_json::{Value, json};

use crate::Lab;
use crate::trace::{SOON, client, watched};

crate::tests![an_engine_that_restarts_is_told_in_two_lines_and_what_ended_with_it_has_departed,];

fn an_engine_that_restarts_is_told_in_two_lines_and_what_ended_with_it_has_departed(lab: &Lab) -> Result<()> {
    if lab.host.engine() != Engine::Docker {
        return Ok(());
    }
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    // Without files, so that only the engine names anybody.
    let nothing = lab.host.dir().join("nothing");
    std::fs::create_dir_all(&nothing)?;
    let is_named = |event: &Value, name: &str| event["type"] == "exchange" && event["container"]["name"] == name;
    let (seen, (before, after)) = watched(lab, &["--host-root", &nothing.display().to_string()], |tracer| {
        let before = lab.host.run(client("job-1", "v2 --linger-after 1000"))?;
        before.go()?;
        tracer.wait_for("an exchange of it", SOON, |events| {
            events.iter().any(|event| is_named(event, "job-1")).then_some(())
        })?;
        lab.host.restart_engine()?;
        // It asks until the engine has named it.
        let script = "while [ ! -e /enough ]; do imds-client v2; sleep 0.2; done";
        let after = lab.host.run(ContainerSpec::new("job-2", &["sh", "-c", script]))?;
        expect_equal("the address is given again", after.address(), before.address())?;
        tracer.wait_for("an exchange of the other", SOON, |events| {
            events.iter().any(|event| is_named(event, "job-2")).then_some(())
        })?;
        std::fs::write(format!("/proc/{}/root/enough", after.pid()?), "")?;
        after.wait(SOON)?;
        Ok((before, after))
    })?;
    let of_engine: Vec<&str> = seen.outcome.stderr.lines().filter(|line| line.contains("Docker engine at")).collect();
    let (away, back) = ("is asked again until it answers", "answers again");
    let as_told = matches!(of_engine[..], [one, other] if one.contains(away) && other.contains(back));
    expect_that("it goes in one line and comes back in one", as_told, &seen.outcome.stderr)?;
    let others = seen.outcome.exchanges().into_iter().filter(|event| event["container"]["id"] == after.id());
    let wrong: Vec<&Value> = others.filter(|event| event["container"]["name"] == "job-1").collect();
    expect_equal("what bears the name of one that has ended", wrong, Vec::new())?;
    let recording = std::fs::read_to_string(&seen.outcome.recording)?;
    let facts = recording.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let gone = facts.filter(|line| line["fact"]["container_gone"]["id"] == json!(before.id())).count();
    expect_that("it has departed", gone > 0, gone)?;
    Ok(())
}
