//! How is the program run, and what is asked of what it says?

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use diagnosis::input::Input;
use diagnosis::recording::Writer;
use imds_trace_replay_tests::scenario::{END, Scenario, folder, header};
use imds_trace_replay_tests::schema::expect_valid;
use imds_trace_tests::{children, tracer};
use serde_json::Value;

/// No run here takes longer than a moment.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A folder that goes with the test.
pub struct Folder(PathBuf);

impl Folder {
    /// A new one, which everybody may enter.
    pub fn new() -> Result<Folder> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("imds-trace-cli-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Folder(path))
    }

    /// Itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it with this content.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.0.join(name);
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a run left.
#[derive(Debug)]
pub struct Ran {
    /// `None` after a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The program with these words, in an environment that says nothing of colours, engines or backtraces.
pub fn command<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(words: I) -> Result<Command> {
    let mut command = children::command(tracer::program()?);
    for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TERM", "DOCKER_HOST", "RUST_LOG"] {
        command.env_remove(variable);
    }
    command.env("RUST_BACKTRACE", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.args(words);
    Ok(command)
}

/// Runs it to its end.
pub fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(words: I) -> Result<Ran> {
    finish(command(words)?)
}

/// `replay` of a file, with options.
pub fn replaying(file: &Path, options: &[&str]) -> Result<Command> {
    let mut command = command(["replay"])?;
    command.arg(file).args(options);
    Ok(command)
}

/// Replays a file to its end.
pub fn replay(file: &Path, options: &[&str]) -> Result<Ran> {
    finish(replaying(file, options)?)
}

/// Runs a command to its end, which must come.
pub fn finish(mut command: Command) -> Result<Ran> {
    let shown = children::show(&command);
    let mut child = command.spawn().with_context(|| format!("start {shown}"))?;
    // Both pipes are read while it runs: it must not wait for us.
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                let _ = pipe.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = read(stdout.map(|pipe| Box::new(pipe) as Box<dyn std::io::Read + Send>));
    let stderr = read(stderr.map(|pipe| Box::new(pipe) as Box<dyn std::io::Read + Send>));
    let Some(status) = children::wait(&mut child, PATIENCE) else {
        let _ = child.kill();
        let _ = child.wait();
        bail!("{shown} did not end within {} s", PATIENCE.as_secs());
    };
    Ok(Ran {
        code: status.code(),
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

impl Ran {
    /// It could not run: code 2, nothing on stdout, and one line on stderr that has each of `parts`.
    pub fn expect_sentence(&self, parts: &[&str]) -> Result<()> {
        self.expect_code(2)?;
        if !self.stdout.is_empty() {
            bail!("stdout is for results, and there is none: {self:?}");
        }
        let lines: Vec<&str> = self.stderr.lines().collect();
        let [line] = lines.as_slice() else { bail!("not one line on stderr: {self:?}") };
        if !line.starts_with("imds-trace: ") && !line.starts_with("error: ") {
            bail!("the sentence does not say who speaks: {self:?}");
        }
        if let Some(part) = parts.iter().find(|part| !line.contains(*part)) {
            bail!("the sentence does not name {part:?}: {self:?}");
        }
        self.expect_no_panic()
    }

    /// It ended with this code.
    pub fn expect_code(&self, code: i32) -> Result<()> {
        if self.code != Some(code) {
            bail!("expected code {code}: {self:?}");
        }
        self.expect_no_panic()
    }

    /// It ended well and said nothing on stderr.
    pub fn expect_quiet(&self) -> Result<()> {
        self.expect_code(0)?;
        if !self.stderr.is_empty() {
            bail!("it is not quiet: {self:?}");
        }
        Ok(())
    }

    /// It ended well, and where a filter let nothing through it said so on stderr, for programs read stdout; else nothing.
    pub fn expect_filtered(&self, is_anything_shown: bool) -> Result<()> {
        if is_anything_shown {
            return self.expect_quiet();
        }
        self.expect_code(0)?;
        let lines: Vec<&str> = self.stderr.lines().collect();
        if !matches!(lines.as_slice(), [line] if line.contains("nothing that was seen fits the filter")) {
            bail!("it does not say that the filter fits nothing: {self:?}");
        }
        Ok(())
    }

    fn expect_no_panic(&self) -> Result<()> {
        if self.stderr.contains("panicked") || self.stderr.contains("stack backtrace") || self.stderr.contains("RUST_")
        {
            bail!("it panicked: {self:?}");
        }
        Ok(())
    }

    /// Each line of stdout as JSON, and as the schema says.
    pub fn json(&self) -> Result<Vec<Value>> {
        json_lines(&self.stdout)
    }
}

/// Each line as JSON, and as the schema says.
pub fn json_lines(text: &str) -> Result<Vec<Value>> {
    let read = |line| {
        let value = serde_json::from_str(line).with_context(|| format!("not JSON: {line:?}"))?;
        expect_valid(&value)?;
        Ok(value)
    };
    text.lines().map(read).collect()
}

/// The inputs of the scenario called `name`.
pub fn inputs(name: &str) -> Result<Vec<Input>> {
    Scenario::read(&folder().join(format!("{name}.toml")))?.inputs()
}

/// Inputs as a recording.
pub fn recording(inputs: &[Input]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &header())?;
    for input in inputs {
        writer.write(input)?;
    }
    writer.close(END, false)?;
    Ok(bytes)
}

/// A recording as the first version of the format had it: without seals.
pub fn unsealed(bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes).context("a recording is text")?;
    let is_seal = |line: &&str| line.starts_with("{\"seal\"") || line.starts_with("{\"end\"");
    let lines: String = text.split_inclusive('\n').filter(|line| !is_seal(line)).collect();
    Ok(lines.replacen("{\"recording\":3,", "{\"recording\":1,", 1))
}

/// The scenario called `name` as a recording.
pub fn recorded(name: &str) -> Result<Vec<u8>> {
    recording(&inputs(name)?)
}

/// The findings among events: the last of each about the same container, as `RULE CONTAINER`, in order.
pub fn findings(events: &[Value]) -> Vec<String> {
    let found = events.iter().filter(|event| event["type"] == "finding");
    let mut names: Vec<String> = found
        .map(|event| {
            let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
            format!("{} {}", text(&event["rule"]), text(&event["container"]["name"]))
        })
        .collect();
    names.sort();
    names.dedup();
    names
}
