//! Does the image trace the host that it runs on, with the privileges that `docs/kubernetes` gives it?

use std::time::Duration;

use anyhow::{Context, Result};
use imds_trace_tests::expect::{expect_equal, expect_that, wait_until};
use imds_trace_tests::runtimes::{Cni, Node};
use imds_trace_tests::shipped::{self, Shipped};
use imds_trace_tests::{ContainerSpec, Engine};
use serde_json::{Value, json};

use crate::Lab;
use crate::trace::{SOON, client, go, ours_on};

crate::tests![
    by_the_command_for_docker_it_names_containers_beside_it_and_finds_a_hop_limit_too_low,
    by_the_daemonset_it_names_pods_beside_it_and_finds_a_hop_limit_too_low,
];

/// As the image starts, and for a program to read.
const WATCH: [&str; 5] = ["watch", "--host-root", "/host", "--output", "json"];

/// Waits until it is ready, and sees that it lacks nothing that the documented privileges are there for.
fn wait_until_ready(events: impl Fn() -> Result<Vec<Value>>) -> Result<()> {
    let ready =
        wait_until("it to be ready", SOON * 2, || events().ok()?.into_iter().find(|event| event["type"] == "ready"))?;
    for feature in ["function names", "cgroup connect", "cgroup paths", "capabilities"] {
        let features = ready["features"].as_array().into_iter().flatten();
        let has: Vec<&Value> = features.filter(|one| one["name"] == feature).map(|one| &one["has"]).collect();
        expect_equal(feature, has, vec![&json!("yes")]).with_context(|| format!("{ready:#}"))?;
    }
    Ok(())
}

fn wait_for_exchange(events: impl Fn() -> Result<Vec<Value>>, id: &str) -> Result<()> {
    wait_until("an exchange of it", SOON, || {
        let asked = |event: &Value| event["type"] == "exchange" && event["container"]["id"] == id;
        events().ok()?.iter().any(asked).then_some(())
    })
}

/// Whatever is said of a container bears its name, and it is found what it lacks.
fn expect_too_low(events: &[Value], id: &str, name: &str) -> Result<()> {
    let about: Vec<&Value> = events.iter().filter(|event| event["container"]["id"] == id).collect();
    let other = about.iter().find(|event| event["container"]["name"] != name);
    expect_equal(&format!("what calls {name} otherwise"), other, None)?;
    let found = about.iter().rfind(|event| event["rule"] == "hop-limit-too-low");
    let found = found.with_context(|| format!("what {name} lacks: {about:#?}"))?;
    expect_equal("how sure it is", &found["confidence"], &json!("certain"))?;
    expect_equal("what is needed", &found["hop_limit"], &json!({"observed": 1, "needed": 2}))
}

fn by_the_command_for_docker_it_names_containers_beside_it_and_finds_a_hop_limit_too_low(lab: &Lab) -> Result<()> {
    if lab.host.engine() != Engine::Docker {
        return Ok(());
    }
    shipped::load(&lab.host)?;
    lab.host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.give_up) = (1, Duration::from_millis(900)));
    let job = lab.host.run(client("job-17", "put-only --timeout-ms 700"))?;
    lab.host.settle(SOON)?;
    let tracer = Shipped::run(&lab.host, &WATCH)?;
    wait_until_ready(|| tracer.events())?;
    go(std::slice::from_ref(&job))?;
    // It is gone before anybody could ask its engine, which nobody here can.
    let brief = ContainerSpec::new("job-18", &["imds-client", "put-only", "--timeout-ms", "700"]).foreground();
    let brief = lab.host.run(brief)?;
    lab.host.settle(SOON)?;
    wait_for_exchange(|| tracer.events(), job.id())?;
    wait_for_exchange(|| tracer.events(), brief.id())?;
    let (code, events, stderr) = tracer.stop()?;
    expect_equal("it ends well", code.as_str(), "0").context(stderr)?;
    expect_too_low(&events, job.id(), "job-17")?;
    expect_too_low(&events, brief.id(), "job-18")?;
    expect_equal("nothing is left on interfaces", ours_on(lab.host.runner())?, Vec::new())?;
    Ok(())
}

fn by_the_daemonset_it_names_pods_beside_it_and_finds_a_hop_limit_too_low(lab: &Lab) -> Result<()> {
    let node = Node::start(&lab.host, Cni::Bridge)?;
    node.import(&shipped::archive()?)?;
    lab.host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.give_up) = (1, Duration::from_millis(900)));
    lab.host.settle(SOON)?;
    let agent = node.run_manifest("imds-trace-x7yz1", &shipped::pod(&lab.host)?, &WATCH)?;
    let events = || -> Result<Vec<Value>> {
        let said = node.logged("imds-trace-x7yz1", "stdout")?;
        Ok(said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    };
    wait_until_ready(events)
        .with_context(|| node.logged("imds-trace-x7yz1", "stderr").unwrap_or_else(|error| error.to_string()))?;
    let args = ["imds-client", "put-only", "--timeout-ms", "700"];
    let web = node.run("web-7d4b9", "shop", "app", false, &args)?;
    wait_for_exchange(events, &web.id)?;
    lab.host.settle(SOON)?;
    agent.stop()?;
    let events = events()?;
    expect_that("it reports at its end", events.iter().any(|event| event["type"] == "report"), &events)?;
    expect_too_low(&events, &web.id, "app")?;
    let told = events.iter().find(|event| event["container"]["id"] == web.id.as_str()).context("its pod")?;
    let expected = json!({"uid": web.uid, "name": "web-7d4b9", "namespace": "shop", "sandbox": web.sandbox});
    expect_equal("its pod", &told["container"]["pod"], &expected)?;
    expect_equal("nothing is left on interfaces", ours_on(lab.host.runner())?, Vec::new())?;
    Ok(())
}
