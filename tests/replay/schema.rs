//! Is every line of JSON that the tests can have as the kept schema says?

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use diagnosis::config::{GroupBy, OutputSpec, Replay, Settings, Telling};
use diagnosis::recording::Writer;
use diagnosis::replay::replay;
use imds_trace_replay_tests::kept;
use imds_trace_replay_tests::scenario::{self, END, Scenario, header};
use imds_trace_replay_tests::schema::{expect_valid, types};
use libtest_mimic::Trial;
use serde_json::Value;

/// A probe says the first; the second needs a socket that tells and no hook that sees it: the lab has both. The others are said of several
/// hosts, which the tests of the command line have.
const ELSEWHERE: [&str; 4] = ["probe", "unseen", "host", "sum"];

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("schema::every_line_is_as_the_schema_says", || Ok(every_line_is_valid()?)),
        Trial::test("schema::what_no_schema_names_is_refused", || Ok(others_are_refused()?)),
    ]
}

/// What to ask so that every type of line comes: everything that can be counted and judged.
fn telling(path: PathBuf, group_by: GroupBy) -> Telling {
    let strict = Settings { tokens_required: true, hop_limit: Some(1) };
    Telling {
        outputs: vec![OutputSpec { kind: "json".into(), path: Some(path) }],
        group_by: Some(group_by),
        what_if: vec![strict, Settings { hop_limit: Some(2), ..Settings::default() }],
        expectations: vec![diagnosis::config::expectation("reachable").expect("a claim")],
        ..Telling::default()
    }
}

fn every_line_is_valid() -> Result<()> {
    let path = std::env::temp_dir().join(format!("imds-trace-schema-{}.jsonl", std::process::id()));
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    let mut judge = |name: &str| -> Result<()> {
        for line in std::fs::read_to_string(&path)?.lines() {
            let line: Value = serde_json::from_str(line).with_context(|| format!("{name}: {line}"))?;
            seen.insert(line["type"].as_str().unwrap_or_default().to_owned());
            wrong.extend(expect_valid(&line).err().map(|error| format!("{name}: {error:#}")));
        }
        Ok(())
    };
    let mut ways = GroupBy::ALL.iter().cycle();
    let mut next = || telling(path.clone(), ways.next().expect("a circle has no end").1);
    let recording = path.with_extension("recording.jsonl");
    for (name, file) in scenario::all()? {
        let mut writer = Writer::new(File::create(&recording)?, &header())?;
        Scenario::read(&file)?.inputs()?.iter().try_for_each(|input| writer.write(input))?;
        writer.close(END, false)?;
        replay(Replay { telling: next(), files: vec![recording.clone()], ..Replay::default() })?;
        judge(&name)?;
    }
    std::fs::remove_file(&recording)?;
    for (name, file) in kept::recordings()?.into_iter().chain(kept::captures()?) {
        replay(Replay { telling: next(), files: vec![file], ..Replay::default() })?;
        judge(&name)?;
    }
    std::fs::remove_file(&path)?;
    if !wrong.is_empty() {
        bail!("{} lines are wrong; the first:\n{}", wrong.len(), wrong[0]);
    }
    let unseen: Vec<String> =
        types()?.into_iter().filter(|kind| !ELSEWHERE.contains(&kind.as_str()) && !seen.contains(kind)).collect();
    ensure!(unseen.is_empty(), "no line of these types was seen: {unseen:?}");
    Ok(())
}

/// A schema that lets everything pass would make the other tests worth nothing.
fn others_are_refused() -> Result<()> {
    let recording = kept::recordings_folder().join("hop-limit-2.events.jsonl");
    let text = std::fs::read_to_string(recording)?;
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let exchange = lines.iter().find(|line| line["type"] == "exchange").context("an exchange")?;
    expect_valid(exchange)?;
    for pointer in ["", "/container", "/process", "/request", "/request/hops/0", "/hop_limit"] {
        let mut more = exchange.clone();
        let place = more.pointer_mut(pointer).and_then(Value::as_object_mut).context(pointer)?;
        place.insert("new".into(), Value::Null);
        ensure!(expect_valid(&more).is_err(), "{pointer:?} may have a field that no schema names");
        let mut less = exchange.clone();
        let place = less.pointer_mut(pointer).and_then(Value::as_object_mut).context(pointer)?;
        let field = place.keys().find(|key| *key != "type").context("a field")?.clone();
        place.remove(&field);
        ensure!(expect_valid(&less).is_err(), "{pointer:?} may lack {field}");
    }
    for (pointer, wrong) in [("/at", "today"), ("/imds", "v3"), ("/type", "transaction"), ("/request/fate", "lost")] {
        let mut other = exchange.clone();
        *other.pointer_mut(pointer).context(pointer)? = wrong.into();
        ensure!(expect_valid(&other).is_err(), "{pointer} may be {wrong:?}");
    }
    Ok(())
}
