//! Do the samples in docs/ do what they say? Their lines are run as they stand, on the runner host.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use imds_trace_tests::expect::{assert_no_secret, expect_equal, expect_that};
use imds_trace_tests::pipelines::{self, Inputs, Job};
use imds_trace_tests::{children, junit, tracer};

use crate::Lab;
use crate::trace::{SOON, ours_on};

crate::tests![
    the_gitlab_jobs_pass_and_fail_as_they_should,
    the_github_steps_pass_and_fail_as_they_should,
    the_action_traces_and_judges,
    the_component_traces_and_judges,
];

type Told = anyhow::Result<()>;

/// What `make` does in the project of the samples: its containers ask IMDS as an SDK does.
const MAKE: &str = r#"#!/bin/sh
case $1 in
integration-test) exec docker run --rm --name app imdslab imds-client v2 --timeout-ms 500;;
build) docker run --rm --name build imdslab imds-client v2 --timeout-ms 500; echo built;;
*) echo "no rule to make $1" >&2; exit 2;;
esac
"#;

/// The commands of a sample that call imds-trace: on one line, or folded (`>-`) over those that are indented more.
fn commands(sample: &str) -> Vec<String> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut lines = sample.lines().peekable();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        let text = line.trim_start().trim_start_matches("- ").trim_start_matches("run: ");
        let mut command = text.to_owned();
        if text == ">-" {
            command.clear();
            while let Some(more) = lines.next_if(|more| indent(more) > indent(line)) {
                command = format!("{command} {}", more.trim()).trim_start().to_owned();
            }
        }
        if command.starts_with("imds-trace ") {
            found.push(command);
        }
    }
    found
}

/// A folder in which the samples' project is checked out, and one to put before PATH.
fn checkout(lab: &Lab, name: &str) -> Result<(PathBuf, PathBuf)> {
    let project = lab.host.dir().join(name);
    let bin = project.join("bin");
    std::fs::create_dir_all(&bin)?;
    symlink(tracer::program()?, bin.join("imds-trace"))?;
    std::fs::write(bin.join("make"), MAKE)?;
    std::fs::set_permissions(bin.join("make"), PermissionsExt::from_mode(0o755))?;
    Ok((project, bin))
}

/// Runs a line as the CI server would: with a shell, in the project's folder.
fn execute(lab: &Lab, line: &str, project: &Path, bin: &Path) -> Result<Output> {
    lab.host.settle(SOON)?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = lab.host.in_runner("sh");
    shell.args(["-c", line]).current_dir(project).env("PATH", format!("{}:{path}", bin.display()));
    shell.stdin(Stdio::null()).output().context("start a shell")
}

/// Runs each line where the hop limit lets the containers through, and where it does not.
fn expect_judged(lab: &Lab, sample: &str, name: &str) -> Result<()> {
    let (project, bin) = checkout(lab, name)?;
    let lines = commands(sample);
    expect_equal("the lines that call imds-trace", lines.len(), 2)?;
    for line in lines {
        let wants_through = line.contains("reachable");
        for hop_limit in [1, 2] {
            lab.host.imds().set(|behaviour| {
                (behaviour.hop_limit, behaviour.give_up) = (hop_limit, Duration::from_millis(500));
            });
            let ran = execute(lab, &line, &project, &bin)?;
            let told = String::from_utf8_lossy(&ran.stdout).into_owned();
            let as_wanted = (hop_limit == 2) == wants_through;
            let code = if as_wanted { 0 } else { 1 };
            expect_equal(&format!("the code of {line:?} at {hop_limit}"), ran.status.code(), Some(code))
                .with_context(|| format!("{told}\n{}", String::from_utf8_lossy(&ran.stderr)))?;
            expect_equal("it says when it did not hold", told.contains("NOT HELD"), !as_wanted)?;
            let report = line.split(' ').find_map(|word| word.strip_prefix("junit=")).context("a JUnit file")?;
            let cases = junit::read(&project.join(report))?;
            let failed = cases.iter().any(|case| case.class == "imds-trace.expect" && case.failure.is_some());
            expect_equal("JUnit says the same", failed, !as_wanted)?;
        }
    }
    expect_equal("nothing of the tracer is left", ours_on(lab.host.runner())?, Vec::new())?;
    assert_no_secret(&[], &[&project], &lab.host.imds().secrets())
}

fn read(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

fn the_gitlab_jobs_pass_and_fail_as_they_should(lab: &Lab) -> Told {
    let sample = read("gitlab-ci.yml")?;
    expect_judged(lab, &sample, "gitlab")?;
    // GitLab shows what this names beside the other tests.
    let shown = sample.matches("    reports:\n      junit: imds-trace.xml\n").count();
    expect_that("each job hands over its JUnit file", shown == commands(&sample).len(), &sample)?;
    Ok(())
}

fn the_github_steps_pass_and_fail_as_they_should(lab: &Lab) -> Told {
    expect_judged(lab, &read("github-actions.yml")?, "github")?;
    Ok(())
}

/// Has a job trace the samples' project, where the hop limit lets its containers through and where it does not.
fn expect_traced(
    lab: &Lab,
    name: &str,
    job: impl Fn(&dyn Fn(&str) -> Command, &Path, Inputs) -> Result<Job>,
) -> Result<()> {
    let (project, bin) = checkout(lab, name)?;
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let shell = |name: &str| {
        let mut shell = lab.host.in_runner(name);
        shell.env("PATH", &path);
        shell
    };
    let inputs = [
        ("run", "echo begun >&2\nmake integration-test > told"),
        ("expect", "reachable:app\nv2-only:app"),
        ("what-if", "tokens=required,hop-limit=1"),
        ("artifact", name),
    ];
    // A component has no such input, and keeps everything.
    let inputs = if name == "github-action" { &inputs[..] } else { &inputs[..3] };
    for hop_limit in [1, 2] {
        lab.host.imds().set(|behaviour| {
            (behaviour.hop_limit, behaviour.give_up) = (hop_limit, Duration::from_millis(500));
        });
        lab.host.settle(SOON)?;
        let done = job(&shell, &project, inputs)?;
        let held = hop_limit == 2;
        expect_equal(&format!("the code at {hop_limit}"), done.code == Some(0), held)
            .with_context(|| format!("{done:?}"))?;
        expect_that("the command was heard", done.stderr.contains("begun"), &done)?;
        expect_equal("the log says what did not hold", done.stdout.contains("NOT HELD"), !held)?;
        if name == "github-action" {
            expect_equal("the page has the cause", done.summary.contains("hop-limit-too-low"), !held)?;
            expect_equal("and the output", done.outputs["held"] == "true", held)?;
        }
        let kept = done.kept.clone().context("something is kept")?;
        let recording = kept.join("recording.jsonl");
        let replay = |claim: &str| {
            let mut replay = children::command(tracer::program()?);
            let replay = replay.arg("replay").arg(&recording).args(["--expect", claim]);
            anyhow::Ok(replay.output().context("start a replay")?.status.code())
        };
        expect_equal("the recording says it all again", replay("reachable:app")?, Some(i32::from(!held)))?;
        expect_equal("of everybody", replay("v2-only:app")?, Some(0))?;
        let page = std::fs::read_to_string(kept.join("report.html")).context("a page")?;
        expect_equal("the page has the loss", page.contains("hop-limit-too-low"), !held)?;
        let cases = junit::read(&kept.join("junit.xml"))?;
        let failed = cases.iter().any(|case| case.class == "imds-trace.expect" && case.failure.is_some());
        expect_equal("JUnit says the same", failed, !held)?;
        assert_no_secret(&[("the log", done.stdout.as_bytes())], &[&kept], &lab.host.imds().secrets())?;
    }
    expect_equal("nothing of the tracer is left", ours_on(lab.host.runner())?, Vec::new())
}

fn the_action_traces_and_judges(lab: &Lab) -> Told {
    let own = |project: &Path| project.join("own of the runner");
    expect_traced(lab, "github-action", |shell, project, inputs| {
        pipelines::run_action(shell, project, &own(project), inputs)
    })
}

fn the_component_traces_and_judges(lab: &Lab) -> Told {
    expect_traced(lab, "gitlab-component", |shell, project, inputs| {
        pipelines::run_component(shell, "bash", project, inputs)
    })
}
