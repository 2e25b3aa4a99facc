//! Does it say whose exchange it was, however short, alike or unknown the containers are?

use std::time::Duration;

use anyhow::Context;
use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::{Container, ContainerSpec};
use serde_json::{Value, json};

use crate::Lab;
use crate::trace::{SOON, client, go, run_all, watched};

crate::tests![
    a_container_that_lives_a_moment_is_named,
    a_container_older_than_the_tracer_is_named,
    containers_with_the_same_process_names_are_never_mixed_up,
    a_process_that_came_later_is_found_in_its_container,
    containers_on_host_networking_are_told_apart,
    a_container_in_anothers_network_is_told_from_it,
    a_container_on_host_networking_that_lives_a_moment_is_named,
    the_hosts_own_processes_have_no_container,
    without_an_engine_the_container_is_known_by_its_cgroup,
];

type Outcome = anyhow::Result<()>;

/// When the engine says the container began and ended.
fn lifetime(lab: &Lab, id: &str) -> anyhow::Result<Duration> {
    let mut command = lab.host.docker()?;
    let filter = format!("container={id}");
    let now = jiff::Timestamp::now();
    // `--until 0s` means the beginning of this second.
    let now = format!("{}.{:09}", now.as_second(), now.subsec_nanosecond());
    command.args(["events", "--since", "5m", "--until", &now, "--format", "{{.Action}} {{.TimeNano}}"]);
    command.args(["--filter", &filter]);
    let text = String::from_utf8_lossy(&command.output()?.stdout).into_owned();
    let at =
        |action: &str| -> Option<u64> { text.lines().find_map(|line| line.strip_prefix(action)?.trim().parse().ok()) };
    match (at("start "), at("die ")) {
        (Some(start), Some(die)) => Ok(Duration::from_nanos(die.saturating_sub(start))),
        _ => anyhow::bail!("the engine does not tell when {id} lived: {text}"),
    }
}

fn a_container_that_lives_a_moment_is_named(lab: &Lab) -> Outcome {
    const NAMES: [&str; 5] = ["brief-1", "brief-2", "brief-3", "brief-4", "brief-5"];
    let (seen, containers) = watched(lab, &[], |_| {
        let one = |name: &&str| {
            let spec = ContainerSpec::new(name, &["imds-client", "v1", "--user-agent", name]);
            lab.host.run(ContainerSpec { foreground: true, remove: true, ..spec })
        };
        NAMES.iter().map(one).collect::<anyhow::Result<Vec<Container>>>()
    })?;
    for container in &containers {
        let lived = lifetime(lab, container.id())?;
        // A tenth of a second here, where starting a program takes no time; more than one on an emulated machine.
        expect_that("it lived a moment", lived < Duration::from_secs(4), lived)?;
        let exchanges = seen.exchanges(container);
        expect_equal("it has one exchange", exchanges.len(), 1)?;
        expect_that("its own", exchanges[0]["user_agent"] == container.name(), exchanges[0])?;
        let identity = &exchanges[0]["container"];
        expect_that("by its name", identity["name"] == container.name(), identity)?;
        expect_that("and image", identity["image"].as_str().is_some_and(|it| it.starts_with("imdslab")), identity)?;
        let process = &exchanges[0]["process"];
        expect_that("with its process", process["comm"] == "imds-client", process)?;
        seen.expect_rules(container, &["imdsv1-refused"])?;
    }
    Ok(())
}

fn a_container_older_than_the_tracer_is_named(lab: &Lab) -> Outcome {
    let container = lab.host.run(client("older", "v1").label("com.example.job", "17"))?;
    let (seen, containers) = watched(lab, &[], |_| {
        let containers = vec![container];
        go(&containers)?;
        Ok(containers)
    })?;
    let exchanges = seen.exchanges(&containers[0]);
    expect_equal("it has one exchange", exchanges.len(), 1)?;
    expect_equal("by its name", exchanges[0]["container"]["name"].as_str(), Some("older"))?;
    expect_equal("with its labels", &exchanges[0]["container"]["labels"]["com.example.job"], &json!("17"))?;
    Ok(())
}

/// Each exchange that says who it is from by its user agent is attributed to the container of that name and to its process.
fn expect_own(exchanges: &[&Value], containers: &[Container], pids: &[u32]) -> anyhow::Result<()> {
    for exchange in exchanges {
        let owner = containers.iter().position(|container| exchange["user_agent"] == container.name());
        let Some(owner) = owner else { anyhow::bail!("an exchange of nobody: {exchange}") };
        let container = &exchange["container"];
        expect_that("it is the right container", container["id"] == containers[owner].id(), exchange)?;
        expect_that("by the right name", container["name"] == containers[owner].name(), exchange)?;
        expect_that("and the right process", exchange["process"]["pid"] == pids[owner], exchange)?;
    }
    Ok(())
}

fn twins(lab: &Lab, names: &[&str], network: Option<&str>) -> anyhow::Result<()> {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (seen, (containers, pids)) = watched(lab, &[], |_| {
        let run = |name: &&str| {
            let spec =
                client(name, &format!("v2 --comm python3 --user-agent {name} --count 5 --parallel 3 --linger-after 1"));
            lab.host.run(ContainerSpec { network: network.map(str::to_owned), ..spec })
        };
        let containers = names.iter().map(run).collect::<anyhow::Result<Vec<_>>>()?;
        let pids = containers.iter().map(Container::pid).collect::<anyhow::Result<Vec<_>>>()?;
        go(&containers)?;
        Ok((containers, pids))
    })?;
    let exchanges = seen.outcome.exchanges();
    expect_equal("all exchanges were seen", exchanges.len(), names.len() * 5 * 3 * 2)?;
    expect_own(&exchanges, &containers, &pids)?;
    for exchange in exchanges {
        let process = &exchange["process"];
        expect_that("all look alike", process["comm"] == "python3" || process["comm"] == "imds-client", process)?;
        expect_that("and were answered", exchange["answered"] == true, exchange)?;
    }
    seen.expect_no_error()
}

fn containers_with_the_same_process_names_are_never_mixed_up(lab: &Lab) -> Outcome {
    twins(lab, &["twin-1", "twin-2", "twin-3", "twin-4", "twin-5", "twin-6"], None)
}

fn containers_on_host_networking_are_told_apart(lab: &Lab) -> Outcome {
    twins(lab, &["host-1", "host-2", "host-3"], Some("host"))
}

fn a_process_that_came_later_is_found_in_its_container(lab: &Lab) -> Outcome {
    let (seen, container) = watched(lab, &[], |_| {
        let container = lab.host.run(ContainerSpec::new("roomy", &["imds-client", "linger", "600"]))?;
        let ran = container.exec(&["sh", "-c", "imds-client v1 --comm later --linger-after 1; exit 0"])?;
        expect_that("it asked", ran.stdout.contains("401"), &ran)?;
        Ok(container)
    })?;
    let exchanges = seen.exchanges(&container);
    expect_equal("it has one exchange", exchanges.len(), 1)?;
    let process = &exchanges[0]["process"];
    expect_that("its first process is another", process["pid"] != container.pid()?, process)?;
    expect_equal("the process is named", process["comm"].as_str(), Some("later"))?;
    let parent = process["ancestors"][0]["comm"].as_str();
    expect_equal("and where it came from", parent, Some("sh"))?;
    Ok(())
}

fn a_container_in_anothers_network_is_told_from_it(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (seen, (containers, pids)) = watched(lab, &[], |_| {
        let words = |name: &str| format!("v2 --user-agent {name} --count 5 --linger-after 1");
        let owner = lab.host.run(client("owner", &words("owner")))?;
        let guest = lab.host.run(client("lodger", &words("lodger")).network("container:owner"))?;
        expect_equal("they share a namespace", guest.netns_inum()?, owner.netns_inum()?)?;
        let pids = [owner.pid()?, guest.pid()?];
        let containers = vec![owner, guest];
        go(&containers)?;
        Ok((containers, pids))
    })?;
    let exchanges = seen.outcome.exchanges();
    expect_equal("all exchanges were seen", exchanges.len(), 20)?;
    expect_own(&exchanges, &containers, &pids)?;
    seen.expect_no_error()?;
    Ok(())
}

fn a_container_on_host_networking_that_lives_a_moment_is_named(lab: &Lab) -> Outcome {
    const NAMES: [&str; 8] = ["guest-1", "guest-2", "guest-3", "guest-4", "guest-5", "guest-6", "guest-7", "guest-8"];
    let (seen, _containers) = watched(lab, &[], |_| {
        let clients = NAMES.map(|name| client(name, &format!("v2 --count 2 --user-agent {name}")).network("host"));
        run_all(lab, clients.into())
    })?;
    let exchanges = seen.outcome.exchanges();
    expect_equal("all exchanges were seen", exchanges.len(), NAMES.len() * 4)?;
    for exchange in exchanges {
        let (named, asked) = (&exchange["container"]["name"], &exchange["user_agent"]);
        expect_that("it is named", named == asked && !named.is_null(), exchange)?;
    }
    Ok(())
}

fn the_hosts_own_processes_have_no_container(lab: &Lab) -> Outcome {
    let program = std::env::current_exe()?;
    let client =
        program.ancestors().skip(1).take(2).map(|folder| folder.join("imds-client")).find(|path| path.is_file());
    let client = client.context("imds-client is beside the tests")?;
    let (seen, ()) = watched(lab, &[], |_| {
        let mut command = lab.host.in_runner(&client.display().to_string());
        expect_equal("it is served", command.args(["v2", "--comm", "on-the-host"]).output()?.status.code(), Some(0))
    })?;
    let exchanges = seen.outcome.exchanges();
    expect_equal("it has two exchanges", exchanges.len(), 2)?;
    for exchange in exchanges {
        expect_equal("of no container", &exchange["container"], &Value::Null)?;
        expect_equal("but a process", exchange["process"]["comm"].as_str(), Some("on-the-host"))?;
        expect_equal("that needs no forward", &exchange["hop_limit"]["needed"], &json!(1))?;
    }
    seen.expect_no_error()?;
    Ok(())
}

fn without_an_engine_the_container_is_known_by_its_cgroup(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(500));
    let (seen, containers) = watched(lab, &["--docker-host", "unix:///nonexistent/docker.sock"], |_| {
        run_all(lab, vec![client("nameless", "put-only --count 3 --timeout-ms 300")])
    })?;
    expect_equal("the container ends", containers[0].wait(SOON)?, 1)?;
    let count = seen.expect_too_low(&containers[0], "ip_forward", 2)?;
    expect_equal("each copy is counted once", count, seen.header_errors)?;
    let finding = seen.only(&containers[0], "hop-limit-too-low")?;
    expect_equal("its name is not known", &finding["container"]["name"], &Value::Null)?;
    expect_equal("nor its image", &finding["container"]["image"], &Value::Null)?;
    expect_that(
        "one is told so",
        seen.outcome.stderr.contains("engine") || seen.outcome.stderr.contains("docker"),
        &seen.outcome.stderr,
    )?;
    Ok(())
}
