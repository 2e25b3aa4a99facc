//! Does it work as a service, without root, and with everything closed that it does not need?

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use imds_trace_tests::expect::{expect_equal, expect_that, wait_until};
use imds_trace_tests::service::{Services, UNIT};
use imds_trace_tests::{Container, Tracer, children, tracer};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::Lab;
use crate::trace::{SOON, client, ours_on, run_all};

crate::tests![
    three_capabilities_are_enough_to_find_a_hop_limit_that_is_too_low,
    the_unit_leaves_evidence_of_a_hop_limit_that_is_too_low,
    a_service_that_hangs_is_started_anew,
];

type Outcome = anyhow::Result<()>;

/// CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, by their numbers (`include/uapi/linux/capability.h`).
const THREE: u64 = 1 << 39 | 1 << 38 | 1 << 12;

/// The claim, of whoever has the container's address: without the engine nobody tells its name.
fn expect_too_low(events: &[Value], container: &Container) -> Result<()> {
    let address = container.address().context("it has an address")?.to_string();
    let about_it = |event: &&Value| event["type"] == "finding" && event["address"] == address.as_str();
    let findings: Vec<_> = events.iter().filter(about_it).collect();
    let found = findings.iter().any(|finding| {
        finding["rule"] == "hop-limit-too-low"
            && finding["hop_limit"]["observed"] == 1
            && finding["hop_limit"]["needed"] == 2
    });
    expect_that("it is found what the client lacks", found, findings)
}

/// Whoever this process is, it is not root, has no capability beyond the three, and no way to get one.
fn expect_few_privileges(pid: u32) -> Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = |name: &str| status.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()));
    let uids: Vec<_> = line("Uid").unwrap_or("0").split_whitespace().collect();
    expect_that("it is not root", !uids.contains(&"0"), &uids)?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let has = u64::from_str_radix(line(set).unwrap_or_default(), 16).with_context(|| format!("read {set}"))?;
        expect_that(&format!("{set} is of the three"), has & !THREE == 0, format!("{has:x}"))?;
    }
    expect_equal("it gets no new privileges", line("NoNewPrivs"), Some("1"))
}

fn three_capabilities_are_enough_to_find_a_hop_limit_that_is_too_low(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(900));
    lab.host.settle(SOON)?;
    // In the lab's folder, where others may go; the folder that it writes into is its own.
    let dir = lab.host.dir().join("tracer-nobody");
    std::fs::create_dir(&dir)?;
    let copy = dir.join("imds-trace");
    std::fs::copy(tracer::program()?, &copy)?;
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755))?;
    let wrapper = dir.join("as-nobody");
    let three = "+bpf,+perfmon,+net_admin";
    let script = format!(
        "#!/bin/sh\nfor word; do case $word in */ready) chown 65534:65534 \"${{word%/ready}}\";; esac; done\n\
         exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --bounding-set=-all,{three} \
         --inh-caps=-all,{three} --ambient-caps=-all,{three} -- {} \"$@\"\n",
        copy.display()
    );
    std::fs::write(&wrapper, script)?;
    std::fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755))?;

    let tracer = Tracer::start_program(&lab.host, &wrapper, &[])?;
    expect_few_privileges(tracer.pid())?;
    let containers = run_all(lab, vec![client("unprivileged", "put-only --timeout-ms 700")])?;
    lab.host.settle(SOON)?;
    let outcome = tracer.stop()?;
    expect_that("it ends well", outcome.status.success(), &outcome)?;
    expect_too_low(&outcome.events, &containers[0])?;
    expect_equal("nothing of it is left", ours_on(lab.host.runner())?, Vec::new())?;
    Ok(())
}

fn the_unit_leaves_evidence_of_a_hop_limit_that_is_too_low(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(900));
    lab.host.settle(SOON)?;
    let services = Services::start(&lab.host, &tracer::program()?, "")?;
    services.systemctl(&["start", UNIT]).with_context(|| services.said())?;

    let watched = services.property("StatusText")?;
    let names_them = ["docker0", "ens5", "skb:kfree_skb"].iter().all(|name| watched.contains(name));
    expect_that("systemd is told what is watched", names_them, &watched)?;
    let pid = services.tracer()?;
    expect_few_privileges(pid)?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    expect_that("and few system calls", status.contains("\nSeccomp:\t2\n"), &status)?;

    let containers = run_all(lab, vec![client("served", "put-only --timeout-ms 700")])?;
    lab.host.settle(SOON)?;
    services.systemctl(&["stop", UNIT])?;
    expect_equal("it ended well", services.property("Result")?.as_str(), "success")?;
    expect_equal("nothing of it is left", ours_on(lab.host.runner())?, Vec::new())?;

    let evidence = services.file("var/lib/private/imds-trace/host.jsonl.zst");
    let mode = std::fs::metadata(&evidence).with_context(|| services.said())?.permissions().mode() & 0o777;
    expect_equal("only its owner reads the evidence", format!("{mode:o}"), "600".into())?;
    let mut replay: Command = children::command(tracer::program()?);
    replay.args(["replay", "--output", "json"]).arg(&evidence);
    let told = children::output(replay)?;
    let events: Vec<Value> = told.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    expect_too_low(&events, &containers[0])?;
    Ok(())
}

fn a_service_that_hangs_is_started_anew(lab: &Lab) -> Outcome {
    let services = Services::start(&lab.host, &tracer::program()?, "WatchdogSec=1s\nRestartSec=100ms")?;
    services.systemctl(&["start", UNIT]).with_context(|| services.said())?;
    let first = services.tracer()?;
    kill(Pid::from_raw(first as i32), Signal::SIGSTOP)?;
    let second = wait_until("systemd to start another", SOON, || {
        let state = services.property("ActiveState").ok()?;
        services.tracer().ok().filter(|pid| *pid != first && state == "active")
    })?;
    expect_that("it is another process", second != first, (first, second))?;
    expect_equal("it was started once more", services.property("NRestarts")?.as_str(), "1")?;
    // Longer than its patience: one that works is left alone.
    let told = services.property("WatchdogTimestampMonotonic")?;
    wait_until("it to say that it is alive", SOON, || {
        (services.property("WatchdogTimestampMonotonic").ok()? != told).then_some(())
    })?;
    services.systemctl(&["stop", UNIT])?;
    expect_equal("it ended well", services.property("Result")?.as_str(), "success")?;
    Ok(())
}
