//! Do the questions about many hosts give in ClickHouse itself what their lines say? Asked of what was recorded in the lab, each recording a
//! host of its own, and of one that is traced now.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use imds_trace_replay_tests::kept;
use imds_trace_tests::children;
use imds_trace_tests::expect::{expect_equal, expect_that, expect_valid};
use imds_trace_tests::tracer::program;
use serde_json::Value;

use crate::Lab;
use crate::trace::{client, run_all, watched};

crate::tests![questions_about_many_hosts_have_the_answers_of_their_lines];

type Outcome = anyhow::Result<()>;

/// The host that is traced now.
const NOW: &str = "traced-now";

/// The lines of each host, the last word on each exchange only.
type Hosts = BTreeMap<String, Vec<Value>>;

fn lines(text: &str) -> Result<Vec<Value>> {
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    lines.iter().try_for_each(expect_valid)?;
    Ok(lines)
}

/// The exchanges of a host, the last word on each.
fn exchanges(lines: &[Value]) -> Vec<&Value> {
    let all = lines.iter().filter(|line| line["type"] == "exchange");
    all.map(|line| (line["id"].as_u64(), line)).collect::<BTreeMap<_, _>>().into_values().collect()
}

struct Engine {
    python: PathBuf,
    folder: PathBuf,
    lines: PathBuf,
}

impl Engine {
    /// The engine that `cargo xtask setup --lab` installs, with the lines of these hosts.
    fn with(hosts: &Hosts, dir: &Path) -> Result<Self> {
        // In the target folder, which is two folders above the program, or three where its processor is named.
        let program = program()?;
        let mut python = program.ancestors().skip(2).take(2).map(|folder| folder.join("chdb/bin/python"));
        let python = python.find(|path| path.exists()).context("chDB: `cargo xtask setup --lab` installs it")?;
        let mut text = String::new();
        for (host, lines) in hosts {
            for line in lines {
                writeln!(text, "{host}\t{line}")?;
            }
        }
        let lines = dir.join("lines.tsv");
        std::fs::write(&lines, text)?;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fleet/clickhouse");
        Ok(Self { python, folder, lines })
    }

    fn ask(&self, question: &str, given: &[&str]) -> Result<Vec<Value>> {
        let mut command = children::command(&self.python);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/questions.py"));
        command.args([&self.folder, &self.lines]).arg(question).args(given);
        let said = children::output(command).context("ask ClickHouse (`cargo xtask setup --lab` installs chDB)")?;
        said.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }
}

fn questions_about_many_hosts_have_the_answers_of_their_lines(lab: &Lab) -> Outcome {
    let mut hosts = Hosts::new();
    for (name, file) in kept::recordings()? {
        let mut replay = children::command(program()?);
        replay.args(["replay", "--output", "json"]).arg(file);
        hosts.insert(name, lines(&children::output(replay)?)?);
    }
    let (seen, _containers) = watched(lab, &[], |_| run_all(lab, vec![client("old-one", "v1 --count 3")]))?;
    let dir = seen.outcome.dir.clone();
    hosts.insert(NOW.to_owned(), seen.outcome.events);
    let engine = Engine::with(&hosts, &dir)?;

    let by_v1 = engine.ask("who-still-uses-v1", &[])?;
    let old = by_v1.iter().find(|row| row["container"] == "old-one").context("the one that is traced now")?;
    expect_equal("how often it asked", old["times"].as_u64(), Some(3))?;
    let asked: u64 = by_v1.iter().filter_map(|row| row["times"].as_u64()).sum();
    let all = hosts.values().flat_map(|lines| exchanges(lines));
    expect_equal("requests without a token", asked, all.filter(|line| line["imds"] == "v1").count() as u64)?;

    let needs = engine.ask("hosts-that-need-a-hop-limit", &[])?;
    let needed: BTreeMap<&str, u64> =
        needs.iter().filter_map(|row| Some((row["host"].as_str()?, row["needed"].as_u64()?))).collect();
    let of = |lines: &Vec<Value>| exchanges(lines).iter().filter_map(|line| line["hop_limit"]["needed"].as_u64()).max();
    let expected: BTreeMap<&str, u64> = hosts
        .iter()
        .filter_map(|(host, lines)| Some((host.as_str(), of(lines)?)))
        .filter(|(_, needed)| *needed > 1)
        .collect();
    expect_equal("hosts that need a hop limit above 1", &needed, &expected)?;
    expect_that("there are several", needed.len() > 5 && needed.get("nested-bridge") == Some(&3), &needed)?;

    let lost = engine.ask("jobs-that-lost-time", &[])?;
    let waited = |row: &Value| row["lost_ms"].as_f64().is_some_and(|waited| (900.0..1500.0).contains(&waited));
    let job = lost.iter().find(|row| row["host"] == "boto3-falls-back" && row["who"] == "job-31");
    expect_that("the job that waited a second", job.is_some_and(waited), &lost)?;
    expect_that(
        "nobody waited on a host where all is well",
        !lost.iter().any(|row| row["host"] == "hop-limit-2"),
        &lost,
    )?;

    let took = engine.ask("who-took-a-role", &["role=lab-runner-role", "day=2026-11-22"])?;
    expect_equal("who took the role that day", took.len(), 1)?;
    let [one] = &took[..] else { return Ok(()) };
    let who = (one["host"].as_str(), one["container"].as_str(), one["times"].as_u64(), one["without_token"].as_u64());
    expect_equal("and how", who, (Some("boto3-falls-back"), Some("job-31"), Some(1), Some(1)))?;
    let before = engine.ask("who-took-a-role", &["role=lab-runner-role", "day=2026-11-21"])?;
    expect_equal("nobody the day before", before.len(), 0)
}
