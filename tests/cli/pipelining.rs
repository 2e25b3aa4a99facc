//! Do the Action and the component of `docs/ci` hand everything on, run nothing that is not theirs, and judge recordings?

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::pipelines::{
    GITHUB, GITLAB, Inputs, Job, action, component, expressions, job_of_component, page, run_action, run_component,
};
use imds_trace_tests::{children, junit, tracer};
use serde_json::{Value, json};

use crate::Outcome;
use crate::program::{Folder, json_lines, recorded};

crate::tests![
    each_input_is_declared_used_and_documented,
    no_input_stands_in_a_script,
    the_action_judges_recordings,
    the_component_judges_recordings,
    an_input_is_no_command,
    it_runs_or_replays,
    the_traced_command_is_handed_on_as_it_is,
    what_imds_trace_says_is_no_command_of_a_workflow,
    the_component_names_its_job_and_its_runners,
];

/// What an input may hold if somebody wants it to run.
const EVIL: &str =
    "reachable:$(touch pwned)`touch pwned`\"; touch pwned; '; touch pwned #\n&& touch pwned\nEND\ntouch pwned";

fn shell(name: &str) -> Command {
    children::command(name)
}

/// The program under test, as an input.
fn program() -> Result<String> {
    Ok(tracer::program()?.display().to_string())
}

/// How a job is run: with which inputs besides the program, in which folder.
type Way = fn(&Path, Inputs) -> Result<Job>;

/// The Action, and the component in both shells that GitLab's runner may have.
const WAYS: [(&str, Way); 3] = [
    ("GitHub", |project, inputs| run_action(shell, project, &project.join("own of the runner"), inputs)),
    ("GitLab, bash", |project, inputs| run_component(shell, "bash", project, inputs)),
    ("GitLab, sh", |project, inputs| run_component(shell, "sh", project, inputs)),
];

fn names(map: &Value) -> BTreeSet<String> {
    map.as_object().into_iter().flat_map(|map| map.keys().cloned()).collect()
}

/// The inputs that any text below a node uses.
fn used(node: &Value, marks: [&str; 2]) -> BTreeSet<String> {
    let text = match node {
        Value::String(text) => text,
        Value::Array(nodes) => return nodes.iter().flat_map(|node| used(node, marks)).collect(),
        Value::Object(map) => {
            let names = map.keys().flat_map(|name| used(&name.as_str().into(), marks));
            return names.chain(map.values().flat_map(|node| used(node, marks))).collect();
        }
        _ => return BTreeSet::new(),
    };
    let found = expressions(text, marks).into_iter().filter_map(|(_, expression)| expression);
    found.filter_map(|expression| expression.strip_prefix("inputs.").map(str::to_owned)).collect()
}

fn each_input_is_declared_used_and_documented() -> Outcome {
    let action = action()?;
    let (spec, jobs) = component()?;
    let page = page()?;
    let rows: Vec<Vec<&str>> = page.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
    for (forge, declared, used) in
        [("GitHub", &action["inputs"], used(&action["runs"], GITHUB)), ("GitLab", &spec["inputs"], used(&jobs, GITLAB))]
    {
        expect_equal(&format!("what {forge}'s file uses"), &used, &names(declared))?;
        let told = rows.iter().filter(|row| row.len() == 5 && [forge, "both"].contains(&row[2]));
        let told: BTreeSet<String> =
            told.flat_map(|row| row[1].split('`').skip(1).step_by(2)).map(str::to_owned).collect();
        expect_equal(&format!("what the page says of {forge}"), &told, &names(declared))?;
        for (name, input) in declared.as_object().into_iter().flatten() {
            let is_told = input["description"].as_str().is_some_and(|text| !text.is_empty());
            expect_that(
                &format!("{name} says what it is, and has a default"),
                is_told && !input["default"].is_null(),
                input,
            )?;
        }
    }
    Ok(())
}

fn no_input_stands_in_a_script() -> Outcome {
    for step in action()?["runs"]["steps"].as_array().into_iter().flatten() {
        expect_that("the step's script is text alone", !step["run"].to_string().contains("${{"), step)?;
    }
    let (_, jobs) = component()?;
    for (name, job) in jobs.as_object().into_iter().flatten() {
        for part in ["before_script", "script", "after_script"] {
            expect_that(&format!("{part} of {name} is text alone"), !job[part].to_string().contains("$[["), job)?;
        }
    }
    Ok(())
}

/// A folder with two recordings, one of which has an error.
fn project() -> Result<Folder> {
    let folder = Folder::new()?;
    folder.file("well done.jsonl", recorded("imdsv2-as-it-should-be")?)?;
    folder.file("lost.jsonl", recorded("hop-limit-too-low")?)?;
    Ok(folder)
}

/// What must be among that which is kept.
fn expect_kept(job: &Job, has_failure: bool) -> Result<PathBuf> {
    let kept = job.kept.clone().context("something is kept")?;
    let read = |name: &str| std::fs::read_to_string(kept.join(name)).with_context(|| format!("read {name}: {job:?}"));
    let cases = junit::read(&kept.join("junit.xml"))?;
    let failed = cases.iter().any(|case| case.class == "imds-trace.expect" && case.failure.is_some());
    expect_equal("JUnit says whether it held", failed, has_failure)?;
    let events = json_lines(&read("events.jsonl")?)?;
    expect_that("JSON has a report", events.iter().any(|event| event["type"] == "report"), &events)?;
    expect_that("the log has the text", job.stdout.contains(read("report.txt")?.trim()), job)?;
    expect_that("the summary is kept", read("summary.md")?.starts_with("## imds-trace: "), job)?;
    Ok(kept)
}

fn judges_recordings(ways: &[(&str, Way)]) -> Result<()> {
    for (name, way) in ways {
        for (recording, held) in [("well done.jsonl", true), ("lost.jsonl", false)] {
            let (folder, program) = (project()?, program()?);
            let inputs = [
                ("replay", recording),
                ("expect", "no-errors\nreachable:job-17"),
                ("program", &program),
                ("what-if", "hop-limit=2"),
            ];
            let mut job = way(folder.path(), &inputs)?;
            expect_equal(&format!("{name}: the code for {recording}"), job.code, Some(i32::from(!held)))
                .with_context(|| format!("{job:?}"))?;
            if *name == "GitHub" {
                expect_equal("nothing is kept unless asked for", &job.kept, &None)?;
                expect_equal("the output", job.outputs["held"].as_str(), if held { "true" } else { "false" })?;
                expect_that("the page has the summary", job.summary.starts_with("## imds-trace: "), &job)?;
                job.kept = Some(PathBuf::from(&job.outputs["folder"]));
            }
            let kept = expect_kept(&job, !held)?;
            expect_that("both claims are judged", job.stdout.matches("xpected ").count() >= 2, &job)?;
            expect_that("and the settings tried", job.stdout.contains("What if hop-limit=2"), &job)?;
            expect_that("nothing is recorded of a recording", !kept.join("recording.jsonl").exists(), &job)?;
        }
    }
    Ok(())
}

fn the_action_judges_recordings() -> Outcome {
    Ok(judges_recordings(&WAYS[..1])?)
}

fn the_component_judges_recordings() -> Outcome {
    Ok(judges_recordings(&WAYS[1..])?)
}

fn an_input_is_no_command() -> Outcome {
    let program = program()?;
    for (name, way) in WAYS {
        for input in ["expect", "what-if", "allow", "replay", "program"] {
            let folder = project()?;
            let mut inputs = vec![("replay", "well done.jsonl"), ("program", &program)];
            inputs.retain(|(given, _)| *given != input);
            inputs.push((input, EVIL));
            let job = way(folder.path(), &inputs)?;
            let code = if input == "program" { 127 } else { 2 };
            expect_equal(&format!("{name}: {input} is refused"), job.code, Some(code))
                .with_context(|| format!("{job:?}"))?;
            expect_that("and nothing of it was run", !folder.path().join("pwned").exists(), &job)?;
        }
    }
    Ok(())
}

fn it_runs_or_replays() -> Outcome {
    let program = program()?;
    for (name, way) in WAYS {
        let folder = project()?;
        for inputs in [vec![], vec![("run", "touch ran"), ("replay", "lost.jsonl")]] {
            let job = way(folder.path(), &[inputs, vec![("program", &program)]].concat())?;
            expect_equal(name, job.code, Some(2))?;
            expect_that("one sentence says why", job.stderr.contains("either `run` or `replay`"), &job)?;
            expect_that("and nothing was run", !folder.path().join("ran").exists(), &job)?;
        }
    }
    Ok(())
}

/// Stands for imds-trace where there is no root: says what a container may be called on stderr and in the report, runs the command, and
/// notes with which words it was started.
const STAND_IN: &str = r#"#!/bin/bash
for word; do
    case $word in text=*) report=${word#text=};; esac
done
echo '::error::said' >&2
echo '##[set-output name=folder;]/said' >&2
[ -z "$report" ] || echo '  ::warning::said' > "$report"
printf '%s\n' "$@" > words
while [ "$1" != -- ]; do shift; done
shift
"$@"
"#;

fn stand_in(folder: &Folder) -> Result<String> {
    let path = folder.file("a stand-in", STAND_IN)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(path.display().to_string())
}

fn the_traced_command_is_handed_on_as_it_is() -> Outcome {
    const SCRIPT: &str = "echo \"to stdout: $0 '$HOME'\"\necho to stderr >&2\nfalse\necho not reached";
    for (name, way) in WAYS {
        let folder = Folder::new()?;
        let program = stand_in(&folder)?;
        let job = way(folder.path(), &[("run", SCRIPT), ("expect", "blocked\n\nv2-only:a b"), ("program", &program)])?;
        expect_equal(&format!("{name}: its code"), job.code, Some(1)).with_context(|| format!("{job:?}"))?;
        let home = std::env::var("HOME").unwrap_or_default();
        expect_that("its output", job.stdout.contains(&format!("'{home}'\n")), &job)?;
        expect_that("its errors", job.stderr.lines().any(|line| line == "to stderr"), &job)?;
        expect_that("it ends where it fails", !job.stdout.contains("not reached"), &job)?;
        let words = std::fs::read_to_string(folder.path().join("words"))?;
        let expected: Vec<&str> = words.lines().skip_while(|word| *word != "--expect").take(4).collect();
        expect_equal("what is expected", expected, vec!["--expect", "blocked", "--expect", "v2-only:a b"])?;
        expect_that("it is recorded", words.contains("--record\n"), &words)?;
        expect_that("and there is a page", words.contains("\nhtml="), &words)?;
    }
    Ok(())
}

fn what_imds_trace_says_is_no_command_of_a_workflow() -> Outcome {
    let folder = Folder::new()?;
    let program = stand_in(&folder)?;
    let job = WAYS[0].1(folder.path(), &[("run", "echo ::notice::mine"), ("program", &program)])?;
    let mut stopped: Option<String> = None;
    let (mut heard, mut shown) = (Vec::new(), 0);
    // As a runner reads both streams: a line that begins with a command is one, until commands are stopped.
    for line in job.stdout.lines().chain(job.stderr.lines()).map(str::trim) {
        shown += usize::from(line.contains("said"));
        if let Some(word) = &stopped {
            if line == format!("::{word}::") {
                stopped = None;
            }
        } else if let Some(word) = line.strip_prefix("::stop-commands::") {
            expect_that("the word cannot be guessed", word.len() == 32, &job)?;
            stopped = Some(word.to_owned());
        } else if line.starts_with("::") || line.contains("##[") {
            heard.push(line);
        }
    }
    expect_equal("all that it said is shown", shown, 3)?;
    expect_equal("and the command's own words alone are heard", heard, vec!["::notice::mine"])?;
    expect_equal("in the end commands are heard again", &stopped, &None)?;
    Ok(())
}

fn the_component_names_its_job_and_its_runners() -> Outcome {
    let (name, job) = job_of_component(&[])?;
    expect_equal("the name", name.as_str(), "imds-trace")?;
    expect_equal("the runners are a list, not a text", &job["tags"], &json!(["ec2-shell"]))?;
    let (name, job) = job_of_component(&[("job", "a: b"), ("stage", "build"), ("folder", "it")])?;
    expect_equal("another name", name.as_str(), "a: b")?;
    expect_equal("another stage", &job["stage"], &json!("build"))?;
    expect_equal("what is shown", &job["artifacts"]["reports"]["junit"], &json!("it/junit.xml"))?;
    expect_equal("what is kept", &job["artifacts"]["paths"], &json!(["it/"]))?;
    Ok(())
}
