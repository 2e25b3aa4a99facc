//! Is a recording kept as evidence: in files of a bounded size, that say what one would, and say when they are not whole?

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use diagnosis::input::Input;
use diagnosis::net::{BootTime, Timestamp};
use diagnosis::recording::{Chain, Files, Header, Limits, Notice, check};
use imds_trace_replay_tests::load;
use imds_trace_replay_tests::scenario::header;
use imds_trace_tests::expect::wait_until;
use serde_json::Value;

use crate::Outcome;
use crate::program::{Folder, PATIENCE, Ran, command, finish, replay, run};

crate::tests![
    files_of_one_run_say_what_one_file_says,
    compressed_files_say_the_same,
    each_file_says_who_was_who_on_its_own,
    files_stay_within_their_size_and_number_and_are_their_owners_only,
    a_file_that_is_old_is_put_away,
    a_file_that_is_missing_in_the_middle_is_noticed,
    a_file_that_was_changed_is_named_with_its_lines,
    what_cannot_be_used_at_all_is_an_error,
    a_recording_that_was_not_closed_is_kept_and_told,
    a_recording_that_was_closed_is_kept_too,
    what_is_no_recording_is_not_overwritten,
    a_recording_is_not_overwritten_by_an_output,
    a_recording_that_is_being_written_is_not_put_away,
    a_compressed_recording_that_was_cut_short_is_told_up_to_there,
    a_place_where_no_recording_can_be_is_refused_before_anything_is_done,
    an_old_recording_cannot_be_verified_and_says_so_if_asked,
    several_runs_are_told_in_the_order_of_their_time,
];

const SIZE: u64 = 64 << 10;

/// The inputs of a run with so many exchanges.
pub fn inputs(exchanges: u64) -> Vec<Input> {
    let told = (0..exchanges).flat_map(load::exchange);
    load::introduction().into_iter().chain(told).chain(load::conclusion(exchanges)).collect()
}

pub fn first_line(boot: &str) -> Header {
    Header { at: Timestamp(998_000_000_000), chain: Chain { boot: Some(boot.into()), ..Chain::default() }, ..header() }
}

/// Records as the live shell does, at `path`.
pub fn record(path: &Path, inputs: &[Input], limits: Limits) -> Result<Option<Notice>> {
    record_with(path, first_line("boot-1"), inputs, limits, true)
}

pub fn record_with(
    path: &Path,
    header: Header,
    inputs: &[Input],
    limits: Limits,
    close: bool,
) -> Result<Option<Notice>> {
    // A program that another test starts just then has the files of this process until its exec, and with them the lock.
    let begun = wait_until("the lock of the run before to be gone", PATIENCE, || {
        match Files::begin(path, header.clone(), limits) {
            Err(error) if error.to_string().contains("another run is writing it") => None,
            begun => Some(begun),
        }
    })?;
    let (mut files, notice) = begun?;
    for input in inputs {
        files.write(input)?;
        files.flush(input.at())?;
    }
    if close {
        files.close(inputs.last().context("inputs")?.at())?;
    }
    Ok(notice)
}

fn sized(size: u64) -> Limits {
    Limits { size: Some(size), ..Limits::default() }
}

/// The files in a folder, by name.
fn files(folder: &Folder) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(folder.path())?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    found.sort();
    Ok(found)
}

pub fn replay_all(folder: &Folder, options: &[&str]) -> Result<Ran> {
    let pattern = folder.path().join("host*");
    let mut command = command(["replay"])?;
    command.arg(pattern).args(options);
    finish(command)
}

/// Replays all files of a folder and one file with the same inputs: both say the same to the last byte.
fn expect_the_same(folder: &Folder, inputs: &[Input]) -> Result<()> {
    let other = Folder::new()?;
    let whole = other.path().join("whole.jsonl");
    record(&whole, inputs, Limits::default())?;
    for options in [&["--output", "json", "--group-by", "process"][..], &[]] {
        let (one, many) = (replay(&whole, options)?, replay_all(folder, options)?);
        one.expect_quiet()?;
        many.expect_quiet()?;
        if one.stdout != many.stdout || one.stdout.is_empty() {
            let mut lines = one.stdout.lines().zip(many.stdout.lines());
            bail!("not the same: {:?}", lines.find(|(one, many)| one != many));
        }
    }
    Ok(())
}

fn a_place_where_no_recording_can_be_is_refused_before_anything_is_done() -> Outcome {
    Ok(places()?)
}

fn places() -> Result<()> {
    let folder = Folder::new()?;
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("file"), "")?;
    let long = |length: usize| format!("{}.jsonl", "h".repeat(length - ".jsonl".len()));
    // 255 bytes are what file systems have for a name, 24 of them are for when it is put away.
    for (path, why) in [
        (at("missing/host.jsonl"), "No such file or directory"),
        (at("file/host.jsonl"), "Not a directory"),
        (folder.path().to_owned(), "it is a folder"),
        (at(&long(232)), "24 more characters"),
        (at(&long(300)), "24 more characters"),
    ] {
        match check(&path, sized(SIZE)) {
            Ok(()) => bail!("{}: not refused", path.display()),
            Err(error) if error.to_string().contains(why) => {}
            Err(error) => bail!("{}: {error}", path.display()),
        }
    }
    for path in [at("host.jsonl"), at("host.jsonl.zst"), at("file"), at(&long(231))] {
        check(&path, sized(SIZE))?;
    }
    check(Path::new("/dev/null"), Limits::default())?;
    ensure!(files(&folder)? == [at("file")], "something is left");
    // And what is not refused is put away when it is full.
    record(&at(&long(231)), &inputs(300), sized(SIZE))?;
    ensure_many(&files(&folder)?)
}

fn files_of_one_run_say_what_one_file_says() -> Outcome {
    let folder = Folder::new()?;
    let inputs = inputs(300);
    record(&folder.path().join("host.jsonl"), &inputs, sized(SIZE))?;
    ensure_many(&files(&folder)?)?;
    Ok(expect_the_same(&folder, &inputs)?)
}

fn ensure_many(files: &[PathBuf]) -> Result<()> {
    ensure!(files.len() > 5, "too few files: {files:?}");
    Ok(())
}

fn compressed_files_say_the_same() -> Outcome {
    let folder = Folder::new()?;
    let inputs = inputs(1_500);
    record(&folder.path().join("host.jsonl.zst"), &inputs, sized(SIZE))?;
    let found = files(&folder)?;
    if found.len() < 3 || !found.iter().all(|file| file.to_string_lossy().ends_with(".jsonl.zst")) {
        return Err(format!("{found:?}").into());
    }
    for file in &found {
        let size = std::fs::metadata(file)?.len();
        if size > SIZE {
            return Err(format!("{} has {size} bytes", file.display()).into());
        }
    }
    Ok(expect_the_same(&folder, &inputs)?)
}

fn each_file_says_who_was_who_on_its_own() -> Outcome {
    let folder = Folder::new()?;
    record(&folder.path().join("host.jsonl"), &inputs(300), sized(SIZE))?;
    let found = files(&folder)?;
    ensure_many(&found)?;
    for file in &found {
        let ran = replay(file, &["--output", "json"])?;
        ran.expect_quiet()?;
        let events = ran.json()?;
        for exchange in events.iter().filter(|event| event["type"] == "exchange") {
            let process = &exchange["process"];
            let known = exchange["container"]["image"].is_string() && process["argv"].is_array();
            if !known || process["ancestors"][0]["comm"] != "sh" {
                return Err(format!("{}: nobody knows who {exchange} is", file.display()).into());
            }
        }
    }
    Ok(())
}

fn files_stay_within_their_size_and_number_and_are_their_owners_only() -> Outcome {
    let folder = Folder::new()?;
    let limits = Limits { keep: Some(3), ..sized(SIZE) };
    record(&folder.path().join("host.jsonl"), &inputs(600), limits)?;
    let found = files(&folder)?;
    let names: Vec<_> = found.iter().filter_map(|file| file.file_name()?.to_str()).collect();
    if names.len() != 4 || names[3] != "host.jsonl" || !names[0].starts_with("host.20260101T00") {
        return Err(format!("{names:?}").into());
    }
    for file in &found {
        let metadata = std::fs::metadata(file)?;
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.len() > SIZE || mode != 0o600 {
            return Err(format!("{}: {} bytes, mode {mode:o}", file.display(), metadata.len()).into());
        }
    }
    // That the oldest are gone is nothing wrong, and what is left is one chain.
    let ran = replay_all(&folder, &["-v"])?;
    ran.expect_code(0)?;
    if ran.stderr.contains("missing") || ran.stderr.matches("goes on from").count() != 4 {
        return Err(format!("{ran:?}").into());
    }
    Ok(())
}

fn a_file_that_is_old_is_put_away() -> Outcome {
    let folder = Folder::new()?;
    let inputs = inputs(500);
    let limits = Limits { age: Some(Duration::from_secs(2)), ..Limits::default() };
    record(&folder.path().join("host.jsonl"), &inputs, limits)?;
    let found = files(&folder)?;
    if found.len() != 5 {
        return Err(format!("{found:?}").into());
    }
    Ok(expect_the_same(&folder, &inputs)?)
}

/// It ran, and one sentence on stderr and one in the report name what is wrong.
fn expect_broken(ran: &Ran, parts: &[&str]) -> Result<()> {
    ran.expect_code(0)?;
    let events = ran.json()?;
    let told = &events.last().context("a report")?["recording"];
    let why = told["why"].as_str().unwrap_or_default();
    ensure!(told["intact"] == Value::Bool(false), "{ran:?}");
    for part in parts {
        ensure!(ran.stderr.contains(part) && why.contains(part), "nothing names {part}: {}, {told}", ran.stderr);
    }
    ensure!(ran.stderr.lines().count() == 1, "not one sentence: {}", ran.stderr);
    Ok(())
}

fn a_file_that_is_missing_in_the_middle_is_noticed() -> Outcome {
    let folder = Folder::new()?;
    record(&folder.path().join("host.jsonl"), &inputs(300), sized(SIZE))?;
    let found = files(&folder)?;
    ensure_many(&found)?;
    let name = found[2].file_name().and_then(|name| name.to_str()).context("a name")?.to_owned();
    std::fs::remove_file(&found[2])?;
    let ran = replay_all(&folder, &["--output", "json"])?;
    expect_broken(&ran, &[&name, "missing"])?;
    // All that is left is told.
    if ran.json()?.iter().filter(|event| event["type"] == "exchange").count() < 200 {
        return Err(format!("{ran:?}").into());
    }
    // Whatever the files are called by now.
    let called = |number: usize| folder.path().join(format!("host-of-web1.{number:02}.jsonl"));
    let rest: Vec<&PathBuf> = found.iter().filter(|path| path.exists()).collect();
    for (number, path) in rest.iter().enumerate() {
        std::fs::rename(path, called(number))?;
    }
    let ran = replay_all(&folder, &["--output", "json"])?;
    expect_broken(&ran, &["host-of-web1.02.jsonl", &name, "missing"])?;
    for (number, path) in rest.iter().enumerate() {
        std::fs::rename(called(number), path)?;
    }
    // A file that somebody put in the place of another is told once.
    std::fs::copy(&found[3], &found[2])?;
    expect_said(&replay_all(&folder, &["--output", "json"])?, &["is a copy of", "is missing"])?;
    // Of two that differ nobody knows which is right.
    let text = std::fs::read_to_string(&found[3])?;
    std::fs::write(&found[3], text.replacen("job-1", "job-9", 1))?;
    replay_all(&folder, &[])?.expect_sentence(&["of one run, and differ"])?;
    std::fs::remove_file(&found[2])?;
    let parts = ["is not as it was when it was rotated", "lines 3 to ", "is missing"];
    Ok(expect_said(&replay_all(&folder, &["--output", "json"])?, &parts)?)
}

/// It ran, and each of these stands on stderr.
fn expect_said(ran: &Ran, parts: &[&str]) -> Result<()> {
    ran.expect_code(0)?;
    for part in parts {
        ensure!(ran.stderr.contains(part), "nothing says {part:?}: {}", ran.stderr);
    }
    Ok(())
}

fn a_file_that_was_changed_is_named_with_its_lines() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.path().join("host.jsonl");
    record(&path, &inputs(100), Limits::default())?;
    let good = std::fs::read_to_string(&path)?;
    let at = good.match_indices("\"pid\":4704").last().context("a pid")?.0;
    let line = good[..at].lines().count();
    let changed = format!("{}{}", &good[..at], good[at..].replacen("4704", "1", 1));
    std::fs::write(&path, changed)?;
    let ran = replay(&path, &["--output", "json"])?;
    expect_broken(&ran, &["host.jsonl: lines ", "left out"])?;
    if ran.stdout.contains("\"pid\":1,\"uid\"") {
        return Err(format!("what was changed (line {line}) is told").into());
    }
    let text = replay(&path, &[])?;
    if !text.stdout.contains("Recording not intact: ") || !text.stdout.contains("Incomplete") {
        return Err(format!("{text:?}").into());
    }
    Ok(())
}

fn what_cannot_be_used_at_all_is_an_error() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.path().join("host.jsonl");
    record(&path, &inputs(1), Limits::default())?;
    let good = std::fs::read_to_string(&path)?;
    // A letter in each line but the first two.
    let header: String = good.split_inclusive('\n').take(2).collect();
    std::fs::write(&path, format!("{header}{}", good[header.len()..].replace("\"at\":", "\"at\":1")))?;
    replay(&path, &[])?.expect_sentence(&["host.jsonl", "lines 3 to ", "nothing of it can be used"])?;
    std::fs::write(&path, good.replacen("\"boot_time\":17", "\"boot_time\":16", 1))?;
    replay(&path, &[])?.expect_sentence(&["host.jsonl", "line 1", "header"])?;
    Ok(())
}

fn a_recording_that_was_not_closed_is_kept_and_told() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.path().join("host.jsonl");
    let inputs = inputs(50);
    record_with(&path, first_line("boot-1"), &inputs, Limits::default(), false)?;
    let left = std::fs::read(&path)?;
    let next = Header { at: Timestamp(2_000_000_000_000), ..first_line("boot-1") };
    let later: Vec<Input> = inputs.iter().map(|input| input.clone().later(1_000_000_000_000)).collect();
    let notice = record_with(&path, next, &later, Limits::default(), true)?.context("a notice")?;
    let (from, until) = notice.reaches.context("times")?;
    if std::fs::read(&notice.kept)? != left || !from.starts_with("2026-01-01T00:16:38") || from >= until {
        return Err(format!("{from} to {until}").into());
    }
    let ran = replay_all(&folder, &["--output", "json"])?;
    expect_broken(&ran, &["-000001.jsonl", "not closed"])?;
    let exchanges = ran.json()?.iter().filter(|event| event["type"] == "exchange").count();
    if exchanges != 100 {
        return Err(format!("{exchanges} exchanges: {ran:?}").into());
    }
    Ok(())
}

fn a_recording_that_was_closed_is_kept_too() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.path().join("host.jsonl");
    for _ in 0..3 {
        if let Some(notice) = record(&path, &inputs(5), Limits::default())? {
            return Err(format!("{notice:?}").into());
        }
    }
    let found = files(&folder)?;
    let names: Vec<_> = found.iter().filter_map(|file| file.file_name()?.to_str()).collect();
    if names.len() != 3 || !names[0].ends_with("-000001.jsonl") || !names[1].ends_with("-000002.jsonl") {
        return Err(format!("{names:?}").into());
    }
    Ok(())
}

fn what_is_no_recording_is_not_overwritten() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.file("letter.txt", "Dear all,\n")?;
    let Err(error) = record(&path, &inputs(1), Limits::default()) else { return Err("it was overwritten".into()) };
    if !error.to_string().contains("no recording") || std::fs::read(&path)? != b"Dear all,\n" {
        return Err(error.to_string().into());
    }
    let empty = folder.file("empty.jsonl", "")?;
    record(&empty, &inputs(1), Limits::default())?;
    replay(&empty, &[])?.expect_quiet()?;
    Ok(())
}

fn a_compressed_recording_that_was_cut_short_is_told_up_to_there() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.path().join("host.jsonl.zst");
    record(&path, &inputs(500), Limits::default())?;
    let whole = std::fs::read(&path)?;
    for cut in [whole.len() / 2, whole.len() - 200] {
        std::fs::write(&path, &whole[..cut])?;
        let ran = replay(&path, &["--output", "json"])?;
        ran.expect_code(0)?;
        let exchanges = ran.json()?.iter().filter(|event| event["type"] == "exchange").count();
        if exchanges < 100 || ran.stderr.lines().count() != 1 || !ran.stderr.contains("missing") {
            return Err(format!("cut at {cut}: {exchanges} exchanges, {}", ran.stderr).into());
        }
    }
    // Damaged where it cannot be decompressed any more.
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 8].fill(0xff);
    std::fs::write(&path, damaged)?;
    let ran = replay(&path, &["--output", "json"])?;
    ran.expect_code(0)?;
    if ran.stderr.is_empty() {
        return Err("a damage was not noticed".into());
    }
    Ok(())
}

fn an_old_recording_cannot_be_verified_and_says_so_if_asked() -> Outcome {
    let folder = Folder::new()?;
    let (_, sealed) = imds_trace_replay_tests::kept::recordings()?.into_iter().next().context("a recording")?;
    // As the first format had it: the same lines, and no seals.
    let text = std::fs::read_to_string(sealed)?.replacen("\"recording\":2", "\"recording\":1", 1);
    let is_seal = |line: &&str| line.starts_with("{\"seal\"") || line.starts_with("{\"end\"");
    let old: String = text.lines().filter(|line| !is_seal(line)).map(|line| format!("{line}\n")).collect();
    let path = folder.file("old.jsonl", old)?;
    replay(&path, &[])?.expect_quiet()?;
    let ran = replay(&path, &["-v"])?;
    ran.expect_code(0)?;
    if !ran.stderr.contains("not chained: it cannot be verified") {
        return Err(format!("{ran:?}").into());
    }
    Ok(())
}

/// Another boot of the same host, a day later.
fn next_day() -> Header {
    let BootTime(boot) = header().boot_time;
    Header { boot_time: BootTime(boot + 86_400_000_000_000), ..first_line("boot-2") }
}

fn several_runs_are_told_in_the_order_of_their_time() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.path().join("host.jsonl");
    record(&path, &inputs(50), sized(SIZE))?;
    record_with(&path, next_day(), &inputs(60), sized(SIZE), true)?;
    let ran = replay_all(&folder, &["--output", "json"])?;
    ran.expect_quiet()?;
    let events = ran.json()?;
    let of_type = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    let ids: std::collections::BTreeSet<_> = of_type("exchange").iter().filter_map(|it| it["id"].as_u64()).collect();
    if ids.len() != 110 || of_type("ready").len() != 2 || of_type("report").len() != 1 {
        return Err(format!("{} exchanges: {ran:?}", ids.len()).into());
    }
    let days = |day: &str| {
        of_type("exchange").iter().filter(|it| it["at"].as_str().is_some_and(|at| at.starts_with(day))).count()
    };
    if (days("2026-01-01"), days("2026-01-02")) != (50, 60) {
        return Err(format!("{ran:?}").into());
    }
    let tuesday = replay_all(&folder, &["--output", "json", "--since", "2026-01-02", "--until", "2026-01-03"])?;
    tuesday.expect_quiet()?;
    let exchanges = tuesday.json()?.iter().filter(|event| event["type"] == "exchange").count();
    if exchanges != 60 {
        return Err(format!("{exchanges} exchanges on the second day").into());
    }
    Ok(())
}

fn a_recording_is_not_overwritten_by_an_output() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.path().join("host.jsonl");
    record(&path, &inputs(5), Limits::default())?;
    let before = std::fs::read(&path)?;
    let name = path.display().to_string();
    for output in ["json", "text", "pcapng"] {
        let ran = run(["replay", &name, "--output", &format!("{output}={name}")])?;
        ran.expect_sentence(&["host.jsonl", "not overwritten"])?;
    }
    if std::fs::read(&path)? != before {
        return Err("it was changed".into());
    }
    // A capture is nothing that we know by its first bytes alone: it is known by being what is read.
    let capture = folder.path().join("any.pcap");
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("captures/any-hop-limit-1.pcap"), &capture)?;
    let name = capture.display().to_string();
    run(["replay", &name, "--output", &format!("json={name}")])?.expect_sentence(&["any.pcap", "same file"])?;
    Ok(())
}

fn a_recording_that_is_being_written_is_not_put_away() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.path().join("host.jsonl");
    let (mut first, _) = Files::begin(&path, first_line("boot-1"), Limits::default())?;
    match Files::begin(&path, first_line("boot-1"), Limits::default()) {
        Err(error) if error.to_string().contains("another run") => {}
        second => return Err(format!("a second run: {:?}", second.map(|_| ())).into()),
    }
    let inputs = inputs(5);
    for input in &inputs {
        first.write(input)?;
    }
    first.close(inputs.last().context("inputs")?.at())?;
    let (second, notice) = Files::begin(&path, first_line("boot-1"), Limits::default())?;
    drop(second);
    if notice.is_some() {
        return Err("it was closed".into());
    }
    Ok(())
}
