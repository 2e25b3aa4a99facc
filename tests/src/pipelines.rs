//! What do the Action and the component of `docs/ci` do? Their files are read and their scripts run as the servers do both.
//!
//! Only what these two files use is imitated; what they use besides is an error. Whatever a real runner does beyond that was not tried.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

/// Inputs as they are given.
pub type Inputs<'a> = &'a [(&'a str, &'a str)];

/// What a job left.
#[derive(Debug)]
pub struct Job {
    /// `None` after a signal.
    pub code: Option<i32>,
    /// What it wrote there.
    pub stdout: String,
    /// And there.
    pub stderr: String,
    /// What the job's page shows; empty where there is none.
    pub summary: String,
    /// Outputs of the step.
    pub outputs: BTreeMap<String, String>,
    /// What is kept as an artifact, if it is.
    pub kept: Option<PathBuf>,
}

fn document(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ci").join(name);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// The page about both.
pub fn page() -> Result<String> {
    document("README.md")
}

/// The Action.
pub fn action() -> Result<Value> {
    serde_yaml_ng::from_str(&document("github/action.yml")?).context("read action.yml")
}

/// The component: what it takes, and its job.
pub fn component() -> Result<(Value, Value)> {
    let text = document("gitlab/templates/imds-trace.yml")?;
    let parts = serde_yaml_ng::Deserializer::from_str(&text);
    let mut parts = parts.map(Value::deserialize).collect::<Result<Vec<_>, _>>().context("read the component")?;
    ensure!(parts.len() == 2, "a component is two documents");
    let jobs = parts.remove(1);
    Ok((parts.remove(0)["spec"].take(), jobs))
}

/// Each input with what is given, or its default.
fn values(declared: &Value, given: Inputs) -> Result<BTreeMap<String, Value>> {
    let declared = declared.as_object().context("inputs are a map")?;
    if let Some((name, _)) = given.iter().find(|(name, _)| !declared.contains_key(*name)) {
        bail!("there is no input {name}");
    }
    let value = |(name, about): (&String, &Value)| {
        let given = given.iter().find(|(given, _)| given == name).map(|(_, value)| Value::from(*value));
        (name.clone(), given.unwrap_or_else(|| about["default"].clone()))
    };
    Ok(declared.iter().map(value).collect())
}

/// The expressions of a text, and the text between them.
pub fn expressions<'a>(text: &'a str, [open, close]: [&str; 2]) -> Vec<(&'a str, Option<&'a str>)> {
    let mut parts = Vec::new();
    for part in text.split(close) {
        let (before, expression) = part.split_once(open).map_or((part, None), |(a, b)| (a, Some(b.trim())));
        parts.push((before, expression));
    }
    parts
}

/// How an expression of GitHub stands in a text.
pub const GITHUB: [&str; 2] = ["${{", "}}"];
/// How one of GitLab does.
pub const GITLAB: [&str; 2] = ["$[[", "]]"];

/// A text with its expressions replaced: a text by GitHub, anything by GitLab if there is nothing else in it.
fn replaced(text: &str, marks: [&str; 2], known: &BTreeMap<String, Value>) -> Result<Value> {
    let mut whole = String::new();
    let parts = expressions(text, marks);
    for (before, expression) in &parts {
        whole.push_str(before);
        let Some(expression) = expression else { continue };
        let value = known.get(*expression).with_context(|| format!("nobody knows {expression}"))?;
        match value {
            Value::String(value) => whole.push_str(value),
            value if parts.len() == 2 && before.is_empty() && parts[1] == ("", None) => return Ok(value.clone()),
            value => whole.push_str(&value.to_string()),
        }
    }
    Ok(whole.into())
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("not a text: {value}"))
}

/// A shell with a script, in a folder that belongs to the job alone.
fn run(mut shell: Command, project: &Path) -> Result<Job> {
    let output = shell.current_dir(project).stdin(Stdio::null()).output().context("start a shell")?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (said(&output.stdout), said(&output.stderr));
    Ok(Job { code: output.status.code(), stdout, stderr, summary: String::new(), outputs: BTreeMap::new(), kept: None })
}

/// Does what a runner does with the Action. `shell` makes the command that is started; `project` is where the sources are, and `own` is
/// for the runner's own files.
pub fn run_action(shell: impl Fn(&str) -> Command, project: &Path, own: &Path, inputs: Inputs) -> Result<Job> {
    let action = action()?;
    let inputs = values(&action["inputs"], inputs)?;
    let mut known: BTreeMap<String, Value> =
        inputs.into_iter().map(|(name, value)| (format!("inputs.{name}"), value)).collect();
    let steps = action["runs"]["steps"].as_array().context("steps")?;
    let [trace, upload] = steps.as_slice() else { bail!("two steps are known here: {steps:?}") };
    ensure!(trace["shell"] == "bash", "this shell is known here");
    fs::create_dir_all(own)?;
    let [script, output, summary] = ["script.sh", "output", "summary"].map(|name| own.join(name));
    fs::write(&script, text(&trace["run"])?)?;
    fs::write(&output, "")?;
    fs::write(&summary, "")?;
    let mut command = shell("bash");
    // What `shell: bash` stands for.
    command.args(["--noprofile", "--norc", "-eo", "pipefail"]).arg(&script);
    for (name, value) in trace["env"].as_object().context("variables")? {
        command.env(name, text(&replaced(text(value)?, GITHUB, &known)?)?);
    }
    command.env("GITHUB_OUTPUT", &output).env("GITHUB_STEP_SUMMARY", &summary).env("RUNNER_TEMP", own);
    let mut job = run(command, project)?;
    job.summary = fs::read_to_string(&summary)?;
    for line in fs::read_to_string(&output)?.lines() {
        let (name, value) = line.split_once('=').with_context(|| format!("not an output: {line:?}"))?;
        job.outputs.insert(name.to_owned(), value.to_owned());
        known.insert(format!("steps.{}.outputs.{name}", text(&trace["id"])?), value.into());
    }
    ensure!(upload["if"] == "always() && inputs.artifact != ''", "this condition is known here");
    if known["inputs.artifact"] != "" {
        let path = text(&upload["with"]["path"])?;
        job.kept = replaced(path, GITHUB, &known).ok().and_then(|path| Some(PathBuf::from(path.as_str()?)));
    }
    Ok(job)
}

/// The component's only job, with its name, as GitLab puts the inputs in: node by node, after the YAML is read.
pub fn job_of_component(inputs: Inputs) -> Result<(String, Value)> {
    let (spec, jobs) = component()?;
    let inputs = values(&spec["inputs"], inputs)?;
    let known = inputs.into_iter().map(|(name, value)| (format!("inputs.{name}"), value)).collect();
    let filled = filled(&jobs, &known)?;
    let mut jobs = filled.as_object().context("jobs")?.clone().into_iter();
    let (Some(job), None) = (jobs.next(), jobs.next()) else { bail!("one job: {filled}") };
    Ok(job)
}

fn filled(node: &Value, known: &BTreeMap<String, Value>) -> Result<Value> {
    Ok(match node {
        Value::String(text) => replaced(text, GITLAB, known)?,
        Value::Array(nodes) => nodes.iter().map(|node| filled(node, known)).collect::<Result<Value>>()?,
        Value::Object(map) => {
            let mut all = serde_json::Map::new();
            for (name, node) in map {
                let name = replaced(name, GITLAB, known)?;
                all.insert(text(&name)?.to_owned(), filled(node, known)?);
            }
            Value::Object(all)
        }
        other => other.clone(),
    })
}

/// Does what a runner does with the component's job, in a shell of this name (`bash` or `sh`).
pub fn run_component(shell: impl Fn(&str) -> Command, name: &str, project: &Path, inputs: Inputs) -> Result<Job> {
    let (_, job) = job_of_component(inputs)?;
    let lines = job["script"].as_array().context("a script")?.iter().map(text).collect::<Result<Vec<_>>>()?;
    let mut command = shell(name);
    // As the shell executor does; a `sh` that is no bash need not know `pipefail`.
    command.args([if name == "bash" { "-eo" } else { "-e" }]).args((name == "bash").then_some("pipefail"));
    command.args(["-c", &lines.join("\n")]);
    for (name, variable) in job["variables"].as_object().context("variables")? {
        ensure!(variable["expand"] == false, "{name} would be expanded: {variable}");
        command.env(name, text(&variable["value"])?);
    }
    let mut done = run(command, project)?;
    let artifacts = &job["artifacts"];
    ensure!(artifacts["when"] == "always", "{artifacts}");
    done.kept = artifacts["paths"][0].as_str().map(|path| project.join(path));
    Ok(done)
}
