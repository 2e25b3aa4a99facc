//! Does it know who asked although the process is long gone? The tracer is stopped while clients live and die: what it says of them
//! was read in the kernel.

use std::collections::BTreeMap;

use anyhow::Result;
use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::{Container, ContainerSpec, Tracer};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::Lab;
use crate::trace::{SOON, client, go, run_all, watched};

crate::tests![
    processes_that_are_long_gone_are_named_with_all_that_they_were,
    a_process_that_came_by_exec_is_known_by_its_number_inside,
    a_token_in_a_command_line_is_masked,
    a_token_that_is_cut_leaves_no_piece,
    a_connect_without_a_route_is_named_too,
    what_has_no_connect_is_counted,
];

type Outcome = anyhow::Result<()>;

/// A tracer that does not run; dropping this lets it go on.
struct Stopped(Pid);

impl Stopped {
    fn stop(tracer: &Tracer) -> Result<Stopped> {
        let pid = Pid::from_raw(i32::try_from(tracer.pid())?);
        kill(pid, Signal::SIGSTOP)?;
        Ok(Stopped(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// A container whose shell runs this when it is let go.
pub fn shell(name: &str, script: &str) -> ContainerSpec {
    let script = format!("until [ -e \"$1\" ]; do sleep 0.01; done; {script}");
    ContainerSpec::new(name, &["sh", "-c", &script]).wait_for_go()
}

/// Lets these clients live and die while the tracer is stopped. Their containers it knows.
fn unseen(lab: &Lab, tracer: &Tracer, specs: Vec<ContainerSpec>) -> Result<Vec<Container>> {
    let containers = specs.into_iter().map(|spec| lab.host.run(spec)).collect::<Result<Vec<_>>>()?;
    let stopped = Stopped::stop(tracer)?;
    let gone = go(&containers);
    drop(stopped);
    gone.map(|()| containers)
}

/// The exchange's time less the start of its process, in seconds.
fn age(exchange: &Value) -> Result<f64> {
    let at: jiff::Timestamp = exchange["at"].as_str().unwrap_or_default().parse()?;
    let started: jiff::Timestamp = exchange["process"]["started"].as_str().unwrap_or_default().parse()?;
    Ok(at.duration_since(started).as_secs_f64())
}

fn processes_that_are_long_gone_are_named_with_all_that_they_were(lab: &Lab) -> Outcome {
    const CLIENTS: usize = 50;
    let (seen, containers) = watched(lab, &[], |tracer| {
        let script = format!("i=0; while [ $i -lt {CLIENTS} ]; do imds-client v1 --user-agent $i; i=$((i+1)); done");
        unseen(lab, tracer, vec![shell("brief-lives", &script)])
    })?;
    let exchanges = seen.exchanges(&containers[0]);
    expect_equal("every exchange is the container's", exchanges.len(), CLIENTS)?;
    let said: BTreeMap<u64, u64> = containers[0]
        .attempts()?
        .iter()
        .filter_map(|attempt| Some((attempt["port"].as_u64()?, attempt["pid"].as_u64()?)))
        .collect();
    let mut ages = Vec::new();
    for exchange in exchanges {
        let process = &exchange["process"];
        expect_equal("its container", exchange["container"]["name"].as_str(), Some("brief-lives"))?;
        let cgroup = process["cgroup"].as_str().unwrap_or_default();
        expect_that("its cgroup", cgroup.contains(containers[0].id()), process)?;
        expect_equal("its executable", process["exe"].as_str(), Some("/bin/imds-client"))?;
        let argv = json!(["imds-client", "v1", "--user-agent", exchange["user_agent"]]);
        expect_equal("its command line", &process["argv"], &argv)?;
        let ancestors = process["ancestors"].as_array().map(Vec::as_slice).unwrap_or_default();
        expect_that("its ancestors", ancestors.len() >= 2 && ancestors[0]["comm"] == "sh", process)?;
        expect_equal("the first process above all", &ancestors[ancestors.len() - 1]["pid"], &json!(1))?;
        let port = exchange["client"]["port"].as_u64().unwrap_or_default();
        let inner = process["pid_in_container"].as_u64();
        expect_equal("the number it has itself", inner, said.get(&port).copied())?;
        expect_that("which is not the host's", process["pid"].as_u64() != inner, process)?;
        let runner = lab.host.runner().inum();
        expect_that("in namespaces of its own", process["netns"] != runner && process["pid_namespace"] != 0, process)?;
        let (user, group) = (&process["uid"], &process["gid"]);
        expect_that("its user and group", user == 0 && group == 0, process)?;
        expect_that("its thread", process["tid"].is_u64() && process["cgroup_id"].is_u64(), process)?;
        let age = age(exchange)?;
        expect_that("it had started just then", (0.0..1.0).contains(&age), process)?;
        ages.push(age * 1e3);
    }
    ages.sort_by(f64::total_cmp);
    eprintln!("{CLIENTS} clients, {:.1} ms old in the middle when they connected", ages[CLIENTS / 2]);
    Ok(())
}

fn a_process_that_came_by_exec_is_known_by_its_number_inside(lab: &Lab) -> Outcome {
    let (seen, (container, attempts)) = watched(lab, &[], |tracer| {
        let container = lab.host.run(ContainerSpec::new("visited", &["imds-client", "linger", "600"]))?;
        let stopped = Stopped::stop(tracer)?;
        let attempts = container.asks("v1 --comm visitor")?;
        drop(stopped);
        Ok((container, attempts))
    })?;
    let exchanges = seen.exchanges(&container);
    expect_equal("it has one exchange", exchanges.len(), 1)?;
    let process = &exchanges[0]["process"];
    expect_equal("its name", process["comm"].as_str(), Some("visitor"))?;
    expect_equal("its number inside", &process["pid_in_container"], &attempts[0]["pid"])?;
    expect_equal("its command line", &process["argv"], &json!(["imds-client", "v1", "--comm", "visitor"]))?;
    Ok(())
}

/// A token, as the fake IMDS hands it out to the host.
fn token(lab: &Lab) -> Result<String> {
    run_all(lab, vec![client("issued", "put-only").network("host")])?;
    Ok(lab.host.imds().secrets().pop().expect("a token was handed out"))
}

fn a_token_in_a_command_line_is_masked(lab: &Lab) -> Outcome {
    let (seen, containers) = watched(lab, &[], |tracer| {
        let token = token(lab)?;
        unseen(lab, tracer, vec![shell("careless", &format!("imds-client get-with-token {token}; true"))])
    })?;
    let exchanges = seen.exchanges(&containers[0]);
    expect_equal("it has one exchange", exchanges.len(), 1)?;
    let process = &exchanges[0]["process"];
    expect_equal("its command line", &process["argv"], &json!(["imds-client", "get-with-token", "***"]))?;
    let ancestors = process["ancestors"].as_array().map_or(0, Vec::len);
    expect_that("its ancestors", ancestors >= 2, process)?;
    Ok(())
}

fn a_token_that_is_cut_leaves_no_piece(lab: &Lab) -> Outcome {
    // `imds-client`, `v1`, `--user-agent`, the padding and `--path`, a NUL behind each; then `/x/` and the token.
    const BEFORE: usize = 12 + 3 + 13 + 1 + 7 + 3;
    let (seen, (containers, lengths)) = watched(lab, &[], |tracer| {
        let token = token(lab)?;
        // The 256th byte is the token's last but one, one of its middle, one near its beginning, and its first.
        let lengths: Vec<usize> = [1, token.len() / 2, token.len() - 4, token.len()]
            .iter()
            .map(|rest| 256 + rest - token.len() - BEFORE)
            .collect();
        let specs = lengths.iter().enumerate().map(|(number, length)| {
            let padding = "a".repeat(*length);
            shell(&format!("cut-{number}"), &format!("imds-client v1 --user-agent {padding} --path /x/{token}; true"))
        });
        Ok((unseen(lab, tracer, specs.collect())?, lengths))
    })?;
    for (container, length) in containers.iter().zip(lengths) {
        let exchanges = seen.exchanges(container);
        expect_equal("it has one exchange", exchanges.len(), 1)?;
        let argv = json!(["imds-client", "v1", "--user-agent", "a".repeat(length), "--path", "…"]);
        expect_equal("its command line is cut before the token", &exchanges[0]["process"]["argv"], &argv)?;
    }
    Ok(())
}

fn a_connect_without_a_route_is_named_too(lab: &Lab) -> Outcome {
    let (seen, containers) = watched(lab, &[], |tracer| {
        unseen(lab, tracer, vec![shell("cut-off", "imds-client v1; true").network("none")])
    })?;
    let exchanges = seen.exchanges(&containers[0]);
    expect_equal("it has one exchange", exchanges.len(), 1)?;
    let process = &exchanges[0]["process"];
    expect_equal("its command line", &process["argv"], &json!(["imds-client", "v1"]))?;
    expect_equal("its executable", process["exe"].as_str(), Some("/bin/imds-client"))?;
    expect_equal("its number inside", &process["pid_in_container"], &containers[0].attempts()?[0]["pid"])?;
    Ok(())
}

fn what_has_no_connect_is_counted(lab: &Lab) -> Outcome {
    let (seen, (container, address)) = watched(lab, &["--output", "text={dir}/report.txt"], |_| {
        let container = lab.host.run(shell("pings", "busybox ping -c 3 -i 0.1 169.254.169.254"))?;
        let address = container.address().map(|address| address.to_string());
        go(std::slice::from_ref(&container))?;
        expect_equal("it was answered", container.wait(SOON)?, 0)?;
        Ok((container, address.unwrap_or_default()))
    })?;
    expect_equal("there is no exchange", seen.exchanges(&container).len(), 0)?;
    let counted = json!([{"source": address, "destination": "169.254.169.254", "protocol": 1, "packets": 3}]);
    expect_equal("each counts once", &seen.outcome.report()?["other_packets"], &counted)?;
    let report = std::fs::read_to_string(seen.outcome.dir.join("report.txt"))?;
    let sentence = format!("3 ICMP packets from {address} to 169.254.169.254: no connect, not HTTP");
    expect_that("and is told", report.contains(&sentence), report)?;
    Ok(())
}
