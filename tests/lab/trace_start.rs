//! When it starts: what does it say of what the kernel and this process have, and what does it keep of its privileges?

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use imds_trace_tests::expect::{expect_equal, expect_that, wait_until};
use imds_trace_tests::tracer::program;
use imds_trace_tests::{Tracer, children};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Lab;
use crate::doctor::Undo;
use crate::trace::{SOON, client, ours_on, run_all};

crate::tests![
    ready_recording_and_doctor_say_the_same_of_the_kernel,
    without_type_information_it_is_one_sentence,
    without_names_of_functions_a_spent_ttl_is_likely,
    what_is_kept_is_enough_for_interfaces_that_come_and_for_who_asks,
    a_command_that_is_run_has_all_its_capabilities,
    a_folder_of_somebody_else_can_still_be_written_to,
    its_memory_is_nobodys_affair,
];

type Outcome = anyhow::Result<()>;

/// Numbers of capabilities (linux/capability.h).
const DAC_OVERRIDE: u64 = 1 << 1;
const KILL: u64 = 1 << 5;
const NET_ADMIN: u64 = 1 << 12;
const SYS_PTRACE: u64 = 1 << 19;
const BPF: u64 = 1 << 39;
const USUAL: u64 = NET_ADMIN | SYS_PTRACE | BPF;
/// A user that is not root.
const NOBODY: u32 = 65534;

/// A folder for everybody; it goes when it is dropped.
fn folder(name: &str) -> Result<(PathBuf, Undo<impl FnMut()>)> {
    let path = std::env::temp_dir().join(format!("imds-trace-{name}-{}", std::process::id()));
    fs::create_dir(&path)?;
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
    let gone = path.clone();
    Ok((path, Undo(move || drop(fs::remove_dir_all(&gone)))))
}

/// A program that runs the tracer by way of these words.
fn by_way_of(folder: &Path, words: &str) -> Result<PathBuf> {
    let script = folder.join("imds-trace");
    fs::write(&script, format!("#!/bin/sh\nexec {words} {} \"$@\"\n", program()?.display()))?;
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
    Ok(script)
}

/// A field of a status file of /proc that is a number in hex.
fn mask(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// What its threads may do, once all have given up what they do not need; the main thread's effective capabilities.
fn kept(pid: u32) -> Result<u64> {
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    let main = wait_until("its privileges to be given up", SOON, || {
        let status = read(format!("/proc/{pid}/status").into());
        (mask(&status, "NoNewPrivs") == Some(1)).then_some(status)
    })?;
    let kept = mask(&main, "CapEff").context("CapEff")?;
    wait_until("all its threads to have done so", SOON, || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
        let statuses: Vec<_> =
            tasks.map(|task| read(task.path().join("status"))).filter(|text| !text.is_empty()).collect();
        let has_only = |status: &String| {
            let within = |field: &str| mask(status, field).is_some_and(|mask| mask & !kept == 0);
            let none = |field: &str| mask(status, field) == Some(0);
            ["CapEff", "CapPrm"].into_iter().all(within) && ["CapInh", "CapAmb", "CapBnd"].into_iter().all(none)
        };
        statuses.iter().all(has_only).then_some(())
    })?;
    Ok(kept)
}

fn features(ready: &Value) -> Vec<(String, String)> {
    let word = |feature: &Value, field: &str| feature[field].as_str().unwrap_or_default().to_owned();
    ready["features"].as_array().into_iter().flatten().map(|one| (word(one, "name"), word(one, "has"))).collect()
}

fn ready(events: &[Value]) -> Result<&Value> {
    events.iter().find(|event| event["type"] == "ready").context("a ready event")
}

fn ready_recording_and_doctor_say_the_same_of_the_kernel(lab: &Lab) -> Outcome {
    let outcome = Tracer::start(&lab.host, &[])?.stop()?;
    let said = features(ready(&outcome.events)?);
    let names: Vec<_> = said.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["BTF", "tcx", "ring buffer", "skb:kfree_skb", "drop reasons", "function names", "capabilities"] {
        expect_that(&format!("it says of {name}"), names.contains(&name), &names)?;
    }
    let recording = fs::read_to_string(&outcome.recording)?;
    let header: Value = serde_json::from_str(recording.lines().next().unwrap_or_default())?;
    expect_equal("the recording says the same", features(&header["ready"]), said.clone())?;
    let mut command = lab.host.runner().command(program()?);
    command.args(["doctor", "--output", "json"]);
    let answers = children::output(command)?;
    let answers = answers.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    for (name, has) in said {
        let about = |answer: &&Value| answer["check"] == "kernel" && answer["subject"] == name.as_str();
        let status = answers.iter().find(about).and_then(|answer| answer["status"].as_str());
        let expected: &[&str] = match has.as_str() {
            "yes" => &["ok"],
            // What something else replaces is well, too.
            "no" => &["ok", "warning", "broken"],
            _ => &["unknown"],
        };
        expect_that(
            &format!("doctor on {name}"),
            status.is_some_and(|status| expected.contains(&status)),
            (has, status),
        )?;
    }
    Ok(())
}

fn without_type_information_it_is_one_sentence(lab: &Lab) -> Outcome {
    let mut command = lab.host.runner().command("unshare");
    command.args(["--mount", "sh", "-c", "mount -t tmpfs none /sys && exec \"$0\" watch --for 1s"]).arg(program()?);
    let ran = command.output()?;
    let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
    expect_equal("its exit code", ran.status.code(), Some(2)).with_context(|| stderr.clone())?;
    expect_that("one line", stderr.lines().count() == 1 && stderr.contains("CONFIG_DEBUG_INFO_BTF"), &stderr)?;
    expect_equal("nothing is left", ours_on(lab.host.runner())?, Vec::new())?;
    Ok(())
}

fn without_names_of_functions_a_spent_ttl_is_likely(lab: &Lab) -> Outcome {
    let (folder, _gone) = folder("nameless")?;
    let program = by_way_of(&folder, "setpriv --bounding-set=-syslog --inh-caps=-syslog")?;
    let tracer = Tracer::start_program(&lab.host, &program, &[])?;
    lab.host.imds().set(|behaviour| behaviour.give_up = std::time::Duration::from_millis(500));
    let containers = run_all(lab, vec![client("nameless", "put-only --timeout-ms 300")])?;
    lab.host.settle(SOON)?;
    drop(containers);
    let outcome = tracer.stop()?;
    let ready = ready(&outcome.events)?;
    let names = ready["features"].as_array().into_iter().flatten().find(|one| one["name"] == "function names");
    let Some(names) = names else { anyhow::bail!("it says nothing of functions' names") };
    if names["has"] == "yes" {
        // Nothing hides them on this machine.
        return Ok(());
    }
    expect_that("it says what would help", names["needs"].as_str().is_some_and(|it| it.contains("CAP_SYSLOG")), names)?;
    expect_that("on stderr, too", outcome.stderr.contains("without function names"), &outcome.stderr)?;
    let reasons = ready["features"].as_array().into_iter().flatten().find(|one| one["name"] == "drop reasons");
    let (rule, confidence) = match reasons.and_then(|one| one["has"].as_str()) {
        Some("yes") => ("hop-limit-too-low", "likely"),
        // Then neither function nor reason tells.
        _ => ("kernel-drop", "certain"),
    };
    let findings = outcome.findings(rule);
    let finding = findings.last().with_context(|| format!("{rule}: {:#?}", outcome.of_type("finding")))?;
    expect_equal("how sure it is", finding["confidence"].as_str(), Some(confidence))?;
    expect_that("no address of the kernel's is told", finding["drop"]["location"].is_null(), finding)?;
    expect_that("nor kept", !fs::read_to_string(&outcome.recording)?.contains("0xffff"), &outcome.recording)?;
    Ok(())
}

fn what_is_kept_is_enough_for_interfaces_that_come_and_for_who_asks(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let runner = lab.host.runner();
    let tracer = Tracer::start(&lab.host, &[])?;
    let kept = kept(tracer.pid())?;
    expect_that("no more than it needs", kept & !USUAL == 0 && kept & NET_ADMIN != 0, format!("{kept:#x}"))?;
    let before = ours_on(runner)?.len();
    runner.ip("link add br-late type bridge")?;
    let _gone = Undo(|| drop(runner.ip("link del br-late")));
    wait_until("the new bridge to be listened on", SOON, || (ours_on(runner).ok()?.len() == before + 2).then_some(()))?;
    let containers = run_all(lab, vec![client("who-is-it", "v2")])?;
    expect_equal("the client is served", containers[0].wait(SOON)?, 0)?;
    lab.host.settle(SOON)?;
    let outcome = tracer.stop()?;
    let exchanges = outcome.exchanges();
    let known = |exchange: &&&Value| exchange["process"]["exe"].as_str().is_some_and(|exe| !exe.is_empty());
    expect_that("it knows who asked", !exchanges.is_empty() && exchanges.iter().all(|it| known(&it)), &exchanges)?;
    runner.ip("link show br-late")?;
    expect_equal("it has come off", ours_on(runner)?, Vec::new())?;
    Ok(())
}

fn a_command_that_is_run_has_all_its_capabilities(lab: &Lab) -> Outcome {
    let (folder, _gone) = folder("run")?;
    let (status, go) = (folder.join("status"), folder.join("go"));
    let script = format!(
        "cat /proc/self/status > {0}.new; mv {0}.new {0}; until [ -e {1} ]; do sleep 0.05; done",
        status.display(),
        go.display()
    );
    let tracer = Tracer::start_run(&lab.host, &["--", "sh", "-c", &script])?;
    wait_until("the command to begin", SOON, || status.exists().then_some(()))?;
    let kept = kept(tracer.pid())?;
    expect_that("it can pass signals on", kept & !(USUAL | KILL) == 0 && kept & KILL != 0, format!("{kept:#x}"))?;
    fs::write(&go, "")?;
    let outcome = tracer.finish(SOON)?;
    expect_that("it ends as the command does", outcome.status.success(), &outcome.stderr)?;
    let (theirs, ours) = (fs::read_to_string(&status)?, fs::read_to_string("/proc/self/status")?);
    for field in ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb", "NoNewPrivs"] {
        expect_equal(&format!("{field} of the command"), mask(&theirs, field), mask(&ours, field))?;
    }
    Ok(())
}

fn a_folder_of_somebody_else_can_still_be_written_to(lab: &Lab) -> Outcome {
    let (folder, _gone) = folder("theirs")?;
    chown(&folder, Some(NOBODY), Some(NOBODY))?;
    let recording = folder.join("recording.jsonl").display().to_string();
    let tracer = Tracer::start(&lab.host, &["--record", &recording, "--record-rotate", "64KiB"])?;
    let kept = kept(tracer.pid())?;
    expect_equal("it may write there", kept & !USUAL, DAC_OVERRIDE)?;
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let containers = run_all(lab, vec![client("much", "v2 --count 40 --parallel 2")])?;
    expect_equal("all was well", containers[0].wait(SOON)?, 0)?;
    wait_until("a second file", SOON, || (fs::read_dir(&folder).ok()?.count() > 1).then_some(()))?;
    let outcome = tracer.stop()?;
    expect_that("it ends well", outcome.status.success(), &outcome.stderr)?;
    // Its own folder needs no such thing; neither does one file that is open.
    let own = Tracer::start(&lab.host, &["--record-rotate", "64KiB"])?;
    expect_equal("with a folder of its own", self::kept(own.pid())? & DAC_OVERRIDE, 0)?;
    own.stop()?;
    Ok(())
}

fn its_memory_is_nobodys_affair(lab: &Lab) -> Outcome {
    let (folder, _gone) = folder("memory")?;
    let copy = folder.join("imds-trace");
    fs::copy(program()?, &copy)?;
    fs::set_permissions(&copy, PermissionsExt::from_mode(0o755))?;
    let mut command = lab.host.runner().command("setpriv");
    let three = "-all,+bpf,+perfmon,+net_admin";
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.args([format!("--inh-caps={three}"), format!("--ambient-caps={three}")]);
    command.arg(&copy).args(["watch", "--output", "json"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = children::spawn(command)?;
    let mut first = String::new();
    BufReader::new(child.stdout.take().context("piped")?).read_line(&mut first)?;
    expect_that("it is ready", first.contains("\"type\":\"ready\""), &first)?;
    let kept = wait_until("its privileges to be given up", SOON, || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
        (mask(&status, "NoNewPrivs") == Some(1)).then(|| mask(&status, "CapEff"))?
    })?;
    expect_equal("of its three capabilities two are kept", kept, BPF | NET_ADMIN)?;
    // Files in /proc of a process that may not be dumped are root's, whoever it runs as (proc(5)).
    let owner = |file: &str| fs::metadata(format!("/proc/{}/{file}", child.id())).map(|data| data.uid());
    let mut theirs = children::command("setpriv");
    theirs.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sleep", "1000"]);
    let mut another = children::spawn(theirs)?;
    wait_until("another process of that user", SOON, || {
        (fs::metadata(format!("/proc/{}/mem", another.id())).ok()?.uid() == NOBODY).then_some(())
    })?;
    let owners = (owner("mem")?, owner("environ")?);
    children::stop(&mut another, Signal::SIGKILL, SOON);
    let status = children::stop(&mut child, Signal::SIGTERM, SOON);
    expect_equal("who may look into it", owners, (0, 0))?;
    expect_that("it ends well", status.is_some_and(|status| status.success()), status)?;
    Ok(())
}
