//! Does `replay` say the same of a recording as was concluded, and what is wrong with what is none?

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use anyhow::Context;
use imds_trace_replay_tests::kept;
use imds_trace_replay_tests::scenario::{self, Scenario};
use imds_trace_tests::junit;

use crate::Outcome;
use crate::program::{Folder, Ran, command, findings, json_lines, recorded, recording, replay, run, unsealed};

crate::tests![
    what_is_not_there_is_named,
    what_cannot_be_read_is_named,
    what_is_no_recording_is_named,
    a_newer_recording_asks_for_a_newer_program,
    a_damaged_line_is_named_by_its_number,
    a_recording_cut_short_is_told_up_to_its_last_whole_line,
    a_recording_comes_from_stdin_too,
    every_output_survives_every_scenario_and_recording,
    two_outputs_are_told_at_once,
    junit_has_a_case_for_each_client_and_each_expectation,
    junit_blames_nobody_who_was_to_be_kept_out,
    a_container_can_be_picked,
    a_process_can_be_picked,
    an_error_found_is_an_exit_code_if_asked_for,
    a_replay_told_twice_is_the_same,
    inputs_of_a_later_program_are_read_as_far_as_known,
];

fn what_is_not_there_is_named() -> Outcome {
    run(["replay", "/no/such/recording.jsonl"])?.expect_sentence(&["/no/such/recording.jsonl", "No such file"])?;
    Ok(())
}

fn what_cannot_be_read_is_named() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.path().display().to_string();
    run(["replay", &path])?.expect_sentence(&[&path, "directory"])?;
    if !nix::unistd::geteuid().is_root() {
        let file = folder.file("secret.jsonl", recorded("hop-limit-too-low")?)?;
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o000))?;
        replay(&file, &[])?.expect_sentence(&["secret.jsonl", "denied"])?;
    }
    Ok(())
}

fn what_is_no_recording_is_named() -> Outcome {
    let folder = Folder::new()?;
    let program = std::fs::read(imds_trace_tests::tracer::program()?)?;
    let zeros = vec![0; 3 << 20];
    let long = [b"{\"recording\":1,\"x\":\"".to_vec(), vec![b'x'; 3 << 20], b"\"}\n".to_vec()].concat();
    for (name, content) in [
        ("newline", &b"\n"[..]),
        ("words", b"hello\nworld\n"),
        ("binary", &program[..1 << 20]),
        ("zeros", &zeros),
        ("another-json", b"{\"type\":\"report\"}\n"),
        ("a-list", b"[1]\n"),
        ("a-version-that-is-none", b"{\"recording\":\"one\"}\n"),
        ("version-zero", b"{\"recording\":0}\n"),
        ("a-version-alone", b"{\"recording\":1}\n"),
        ("a-long-line", &long),
        ("not-utf8", b"{\"recording\":1,\"\xff\xfe\":1}\n"),
    ] {
        let file = folder.file(name, content)?;
        let ran = replay(&file, &[])?;
        ran.expect_sentence(&[name, "line 1"]).with_context(|| name.to_owned())?;
    }
    replay(&folder.file("nothing", b"")?, &[])?.expect_sentence(&["nothing", "it is empty"])?;
    Ok(())
}

fn a_newer_recording_asks_for_a_newer_program() -> Outcome {
    let folder = Folder::new()?;
    let file = folder.file("it.jsonl", "{\"recording\":99,\"all\":\"is different\"}\n{\"whatever\":1}\n")?;
    replay(&file, &[])?.expect_sentence(&["it.jsonl", "version 99", "newer"])?;
    Ok(())
}

fn a_damaged_line_is_named_by_its_number() -> Outcome {
    let folder = Folder::new()?;
    let good = unsealed(&recorded("hop-limit-too-low")?)?;
    for (name, damage) in
        [("garbage", "\u{0}\u{1}garbage"), ("empty", ""), ("unknown", "{\"smell\":{}}"), ("null", "null")]
    {
        let mut lines: Vec<&str> = good.lines().collect();
        lines[4] = damage;
        let file = folder.file(name, lines.join("\n") + "\n")?;
        let ran = replay(&file, &[])?;
        ran.expect_code(2).with_context(|| name.to_owned())?;
        if ran.stderr.lines().count() != 1 || !ran.stderr.contains("line 5") || !ran.stderr.contains(name) {
            return Err(format!("{name}: {ran:?}").into());
        }
    }
    Ok(())
}

fn a_recording_cut_short_is_told_up_to_its_last_whole_line() -> Outcome {
    let folder = Folder::new()?;
    let whole = recorded("hop-limit-too-low")?;
    let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').context("several lines")? + 1;
    for cut in [last + 1, last + 20, whole.len() - 2, whole.len() - 1] {
        let file = folder.file("cut.jsonl", &whole[..cut])?;
        let ran = replay(&file, &[])?;
        ran.expect_code(0)?;
        if ran.stderr.lines().count() != 1 || !ran.stderr.contains("cut short") {
            return Err(format!("cut at {cut}, no warning: {ran:?}").into());
        }
        if !ran.stdout.contains("hop-limit-too-low") || !ran.stdout.contains("Incomplete") {
            return Err(format!("cut at {cut}: {ran:?}").into());
        }
    }
    // A cut between two lines is seen too, but not in the first version of the format.
    let file = folder.file("cut.jsonl", &whole[..last])?;
    let ran = replay(&file, &[])?;
    ran.expect_code(0)?;
    if !ran.stderr.contains("not closed") || !ran.stdout.contains("hop-limit-too-low") {
        return Err(format!("{ran:?}").into());
    }
    replay(&folder.file("cut.jsonl", unsealed(&whole[..last])?)?, &[])?.expect_quiet()?;
    Ok(())
}

fn a_recording_comes_from_stdin_too() -> Outcome {
    let whole = recorded("hop-limit-too-low")?;
    let mut command = command(["replay", "-", "--output", "json"])?;
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    child.stdin.take().context("piped")?.write_all(&whole)?;
    let ran = Ran::from(child.wait_with_output()?);
    ran.expect_quiet()?;
    let folder = Folder::new()?;
    let file = folder.file("it.jsonl", &whole)?;
    let same = replay(&file, &["--output", "json"])?;
    if same.stdout != ran.stdout || ran.stdout.is_empty() {
        return Err(format!("{ran:?} is not {same:?}").into());
    }
    run(["replay", "-"])?.expect_sentence(&["-", "it is empty"])?;
    Ok(())
}

fn every_output_survives_every_scenario_and_recording() -> Outcome {
    let folder = Folder::new()?;
    let mut files = kept::recordings()?;
    for (name, path) in scenario::all()? {
        let file = folder.file(&name, recording(&Scenario::read(&path)?.inputs()?)?)?;
        files.push((name, file));
    }
    for (name, file) in files {
        for kind in diagnosis::output::OUTPUTS {
            let ending = if kind.name == "metrics" { "prom" } else { kind.name };
            let path = folder.path().join(format!("{name}.{ending}"));
            let output = match kind.needs_path {
                true => format!("{}={}", kind.name, path.display()),
                false => kind.name.to_owned(),
            };
            let ran = replay(&file, &["--output", &output])?;
            ran.expect_quiet().with_context(|| format!("{} of {name}", kind.name))?;
            if kind.name == "json" {
                let events = ran.json().with_context(|| name.clone())?;
                if events.first().is_none_or(|event| event["type"] != "ready")
                    || events.last().is_none_or(|event| event["type"] != "report")
                {
                    return Err(format!("{name}: not from ready to report: {ran:?}").into());
                }
            }
            if kind.name == "junit" {
                junit::read(&path).with_context(|| name.clone())?;
            }
            // What programs read may hold any letter, as long as it is valid.
            let raw = ran.stdout.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
            if let Some(raw) = raw.filter(|_| kind.name != "json") {
                return Err(format!("{name}: {raw:?} in {}: {}", kind.name, ran.stdout).into());
            }
        }
    }
    Ok(())
}

fn two_outputs_are_told_at_once() -> Outcome {
    let folder = Folder::new()?;
    let file = folder.file("it.jsonl", recorded("hop-limit-too-low")?)?;
    let [json, text] = ["events.jsonl", "report.txt"].map(|name| folder.path().join(name));
    let (to_json, to_text) = (format!("json={}", json.display()), format!("text={}", text.display()));
    let ran = replay(&file, &["--output", &to_json, "--output", &to_text])?;
    ran.expect_quiet()?;
    if !ran.stdout.is_empty() {
        return Err(format!("nothing was asked for on stdout: {ran:?}").into());
    }
    json_lines(&std::fs::read_to_string(json)?)?;
    if !std::fs::read_to_string(text)?.contains("hop-limit-too-low") {
        return Err("the text lacks the finding".into());
    }
    Ok(())
}

fn junit_has_a_case_for_each_client_and_each_expectation() -> Outcome {
    let folder = Folder::new()?;
    let (_, file) = kept::recordings()?
        .into_iter()
        .find(|(name, _)| name == "hop-limit-1-three-containers")
        .context("the recording of three containers")?;
    let path = folder.path().join("it.xml");
    let output = format!("junit={}", path.display());
    let ran = replay(&file, &["--output", &output, "--expect", "reachable:agent", "--expect", "blocked:agent"])?;
    ran.expect_code(1)?;
    let cases = junit::read(&path)?;
    let told: Vec<_> = cases
        .iter()
        .map(|case| (case.class.as_str(), case.name.as_str(), case.failure.as_ref().map(|(rule, _)| rule.as_str())))
        .collect();
    let expected = [
        ("imds-trace.expect", "reachable:agent", None),
        ("imds-trace.expect", "blocked:agent", Some("expectation")),
        ("imds-trace.client", "job-17 (172.17.0.2)", Some("hop-limit-too-low")),
        ("imds-trace.client", "legacy-cron (172.17.0.3)", Some("imdsv1-refused")),
        ("imds-trace.client", "agent (10.77.0.10)", None),
    ];
    if told != expected {
        return Err(format!("{told:?}").into());
    }
    let summary = &cases[2].failure.as_ref().context("a failure")?.1;
    if !summary.starts_with("The token response to container job-17 was dropped in ip_forward with TTL 1") {
        return Err(summary.as_str().into());
    }
    Ok(())
}

fn junit_blames_nobody_who_was_to_be_kept_out() -> Outcome {
    let folder = Folder::new()?;
    let recordings = kept::recordings()?;
    let (_, file) =
        recordings.iter().find(|(name, _)| name == "docker-user-drops").context("the recording of a drop")?;
    let path = folder.path().join("it.xml");
    let output = format!("junit={}", path.display());
    for (expect, code, failures) in
        [("blocked", 0, 0), ("blocked:job-21", 0, 0), ("blocked:other", 1, 2), ("v2-only", 0, 1)]
    {
        replay(file, &["--output", &output, "--expect", expect])?.expect_code(code)?;
        let failed = junit::read(&path)?.iter().filter(|case| case.failure.is_some()).count();
        if failed != failures {
            return Err(format!("--expect {expect}: {failed} failures, not {failures}").into());
        }
    }
    Ok(())
}

/// Replays two jobs with options and expects these findings.
fn expect_found(options: &[&str], expected: &[&str]) -> Outcome {
    let folder = Folder::new()?;
    let file = folder.file("two.jsonl", recorded("one-port-for-two-clients")?)?;
    let ran = replay(&file, &[&["--output", "json"], options].concat())?;
    ran.expect_filtered(!expected.is_empty())?;
    let events = ran.json()?;
    if findings(&events) != expected {
        return Err(format!("{options:?}: expected {expected:?}, saw {:?}", findings(&events)).into());
    }
    let exchanges = events.iter().filter(|event| event["type"] == "exchange").count();
    let report = events.last().context("a report")?;
    let tallies = report["containers"].as_array().map_or(0, Vec::len);
    if exchanges != expected.len() || tallies != expected.len() {
        return Err(format!("{options:?}: {exchanges} exchanges, {tallies} in the report: {ran:?}").into());
    }
    Ok(())
}

const ONE: &str = "hop-limit-too-low job-1";
const TWO: &str = "hop-limit-too-low job-2";

fn a_container_can_be_picked() -> Outcome {
    let id = scenario::id_of("job-2");
    expect_found(&[], &[ONE, TWO])?;
    expect_found(&["--container", "job-1"], &[ONE])?;
    expect_found(&["--container", &id], &[TWO])?;
    expect_found(&["--container", &id[..12]], &[TWO])?;
    expect_found(&["--container", "job-1", "--container", &id], &[ONE, TWO])?;
    expect_found(&["--container", "job"], &[])
}

fn a_process_can_be_picked() -> Outcome {
    expect_found(&["--pid", "4711"], &[ONE])?;
    expect_found(&["--pid", "4711", "--pid", "4811"], &[ONE, TWO])?;
    expect_found(&["--pid", "4711", "--container", "job-1"], &[ONE])?;
    expect_found(&["--pid", "4711", "--container", "job-2"], &[])?;
    expect_found(&["--pid", "1"], &[])
}

fn an_error_found_is_an_exit_code_if_asked_for() -> Outcome {
    let folder = Folder::new()?;
    for (name, code) in
        [("hop-limit-too-low", 1), ("imdsv1-used", 0), ("the-last-hop-is-used", 0), ("imdsv2-as-it-should-be", 0)]
    {
        let file = folder.file(name, recorded(name)?)?;
        replay(&file, &[])?.expect_quiet()?;
        replay(&file, &["--exit-code"])?.expect_code(code)?;
    }
    let file = folder.file("two", recorded("one-port-for-two-clients")?)?;
    // What is not shown happened all the same.
    replay(&file, &["--exit-code", "--container", "nobody"])?.expect_code(1)?;
    Ok(())
}

fn a_replay_told_twice_is_the_same() -> Outcome {
    let folder = Folder::new()?;
    for name in ["one-port-for-two-clients", "a-fallback-is-refused", "an-address-reused"] {
        let file = folder.file(name, recorded(name)?)?;
        let [first, second] = [replay(&file, &["--output", "json"])?, replay(&file, &["--output", "json"])?];
        if first.stdout != second.stdout {
            return Err(format!("{name}: {first:?} is not {second:?}").into());
        }
    }
    Ok(())
}

fn inputs_of_a_later_program_are_read_as_far_as_known() -> Outcome {
    let folder = Folder::new()?;
    let known = unsealed(&recorded("hop-limit-too-low")?)?;
    let later = known.replace("\"ip_id\":", "\"smell\":{\"of\":[\"roses\"]},\"ip_id\":").replacen(
        "{\"recording\":1",
        "{\"recording\":1,\"moon\":null",
        1,
    );
    let ran = replay(&folder.file("later.jsonl", &later)?, &[])?;
    ran.expect_quiet()?;
    if !ran.stdout.contains("hop-limit-too-low") {
        return Err(format!("{ran:?}").into());
    }
    Ok(())
}
