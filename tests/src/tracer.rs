//! How does a test run the tracer on the runner host and read what it says?

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::children;
use crate::docker::next;
use crate::expect::{expect_valid, wait_until};
use crate::host::RunnerHost;
use crate::image;

/// Loading BPF on an emulated machine takes seconds.
const READY: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(20);

/// The tracer's program: `$IMDS_TRACE_BIN`, else `imds-trace` beside the running one.
pub fn program() -> Result<PathBuf> {
    image::beside("imds-trace", "IMDS_TRACE_BIN")
}

/// A running `imds-trace`; dropping it kills it.
pub struct Tracer {
    child: Child,
    dir: PathBuf,
    heard: Arc<Heard>,
    readers: Option<(JoinHandle<String>, JoinHandle<String>)>,
    /// Is it our program, whose lines have a schema, and no stand-in?
    is_ours: bool,
}

#[derive(Default)]
struct Heard {
    events: Mutex<Vec<Value>>,
    news: Condvar,
}

/// What the tracer left when it ended.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// Each line of standard output that is JSON, in order.
    pub events: Vec<Value>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The recording (`--record`).
    pub recording: PathBuf,
    /// The folder with the recording and whatever else it was told to write there; it goes with the host.
    pub dir: PathBuf,
}

impl Tracer {
    /// Starts `imds-trace watch --output json --record … --ready-file … --docker-host …` and `args` on the runner host and
    /// waits until it says it is ready. In `args`, `{dir}` stands for its folder, e.g. `pcapng={dir}/it.pcapng`; a
    /// `--docker-host` or a `--record` among them replaces the one above.
    pub fn start(host: &RunnerHost, args: &[&str]) -> Result<Tracer> {
        Tracer::start_program(host, &program()?, args)
    }

    /// As [`start`](Self::start), with this program.
    pub fn start_program(host: &RunnerHost, program: &Path, args: &[&str]) -> Result<Tracer> {
        Tracer::spawn(host, program, "watch", args)?.ready()
    }

    /// As [`start`](Self::start), but `imds-trace run`; `args` end with the command.
    pub fn start_run(host: &RunnerHost, args: &[&str]) -> Result<Tracer> {
        Tracer::spawn(host, &program()?, "run", args)?.ready()
    }

    /// `imds-trace COMMAND` with the same options (without `--ready-file` for `probe`, which has none), to its end.
    pub fn run_to_end(host: &RunnerHost, command: &str, args: &[&str]) -> Result<Outcome> {
        Tracer::spawn(host, &program()?, command, args)?.finish(END)
    }

    fn spawn(host: &RunnerHost, program: &Path, word: &str, args: &[&str]) -> Result<Tracer> {
        let dir = host.dir().join(format!("tracer-{}", next()));
        std::fs::create_dir(&dir)?;
        let mut command = host.runner().command(program);
        command.args([word, "--output", "json"]);
        if !args.contains(&"--record") {
            command.arg("--record").arg(dir.join("recording.jsonl"));
        }
        if word != "probe" {
            command.arg("--ready-file").arg(dir.join("ready"));
        }
        if !args.contains(&"--docker-host") {
            command.arg("--docker-host").arg(host.docker_host_url());
        }
        command.args(args.iter().map(|arg| arg.replace("{dir}", &dir.display().to_string())));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = children::spawn(command).context("start imds-trace")?;
        let heard = Arc::new(Heard::default());
        let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let listening = Arc::clone(&heard);
        let out = std::thread::spawn(move || listening.listen(stdout));
        let err = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = BufReader::new(stderr).read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let is_ours = self::program().is_ok_and(|ours| ours == program);
        Ok(Tracer { child, dir, heard, readers: Some((out, err)), is_ours })
    }

    /// Waits until it says that it is ready.
    fn ready(mut self) -> Result<Tracer> {
        let ready = self.dir.join("ready");
        let up = wait_until("imds-trace to be ready", READY, || {
            let ended = matches!(self.child.try_wait(), Ok(Some(_)));
            let is_ready = ready.exists();
            (ended || is_ready).then_some(is_ready)
        });
        match up {
            Ok(true) => Ok(self),
            Ok(false) => {
                let outcome = self.outcome(Duration::ZERO)?;
                bail!("imds-trace ended before it was ready ({}): {}", outcome.status, outcome.stderr.trim())
            }
            Err(late) => {
                self.kill();
                let outcome = self.outcome(END)?;
                bail!("{late}; it said: {}", outcome.stderr.trim())
            }
        }
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The events so far.
    pub fn events(&self) -> Vec<Value> {
        self.heard.lock().clone()
    }

    /// Shows `look` all events so far, at each new one again, until it has found something.
    pub fn wait_for<T>(&self, what: &str, deadline: Duration, look: impl Fn(&[Value]) -> Option<T>) -> Result<T> {
        let end = Instant::now() + deadline;
        let mut events = self.heard.lock();
        loop {
            if let Some(found) = look(&events) {
                return Ok(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seen: Vec<_> = events.iter().map(|event| event.to_string()).collect();
                bail!("waited {:.1} s in vain for {what}; events:\n{}", deadline.as_secs_f64(), seen.join("\n"));
            }
            events = match self.heard.news.wait_timeout(events, left) {
                Ok((events, _)) => events,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Waits for a finding of `rule` about the container called `container`.
    pub fn wait_for_finding(&self, rule: &str, container: &str, deadline: Duration) -> Result<Value> {
        self.wait_for(&format!("finding {rule} about {container}"), deadline, |events| {
            events.iter().find(|event| is_finding(event, rule) && event["container"]["name"] == container).cloned()
        })
    }

    /// Ends it with SIGTERM, as an administrator would, and collects what it left.
    pub fn stop(self) -> Result<Outcome> {
        self.stop_by(Signal::SIGTERM)
    }

    /// Ends it with a signal, and collects what it left.
    pub fn stop_by(self, signal: Signal) -> Result<Outcome> {
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
        self.outcome(END)
    }

    /// Kills it outright (SIGKILL); [`Outcome`] can still be had from [`finish`](Self::finish).
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Kills it, as if the machine had lost power, and collects what it left.
    pub fn killed(mut self) -> Result<Outcome> {
        self.kill();
        self.outcome(END)
    }

    /// Waits for it to end by itself (`--for`) and collects what it left.
    pub fn finish(self, deadline: Duration) -> Result<Outcome> {
        self.outcome(deadline)
    }

    fn outcome(mut self, patience: Duration) -> Result<Outcome> {
        let status = children::wait(&mut self.child, patience);
        let _ = self.child.kill();
        let _ = self.child.wait();
        let (out, err) = self.readers.take().expect("an outcome is taken once");
        let stdout = out.join().unwrap_or_default();
        let stderr = err.join().unwrap_or_default();
        // Beside the recording, for whoever looks into a failure.
        let _ = std::fs::write(self.dir.join("stdout.jsonl"), &stdout);
        let _ = std::fs::write(self.dir.join("stderr.txt"), &stderr);
        let Some(status) = status else {
            bail!("imds-trace did not end within {:.0} s; it said: {}", patience.as_secs_f64(), stderr.trim());
        };
        let (events, dir) = (self.events(), self.dir.clone());
        // `run` tells what its command says as well.
        let mut told = events.iter().filter(|event| self.is_ours && event["type"].is_string());
        told.try_for_each(expect_valid)?;
        Ok(Outcome { status, events, stdout, stderr, recording: dir.join("recording.jsonl"), dir })
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Heard {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Value>> {
        self.events.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn listen(&self, stdout: impl Read) -> String {
        let mut text = String::new();
        let mut lines = BufReader::new(stdout);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let said = String::from_utf8_lossy(&line).into_owned();
            if let Ok(event) = serde_json::from_str(&said) {
                self.lock().push(event);
                self.news.notify_all();
            }
            text += &said;
            line.clear();
        }
        text
    }
}

fn is_finding(event: &Value, rule: &str) -> bool {
    event["type"] == "finding" && event["rule"] == rule
}

impl Outcome {
    /// All events of a type: `exchange`, `finding`, `loss`, ...
    pub fn of_type(&self, kind: &str) -> Vec<&Value> {
        self.events.iter().filter(|event| event["type"] == kind).collect()
    }

    /// The findings of a rule, in the order written; of several for the same container the last one stands.
    pub fn findings(&self, rule: &str) -> Vec<&Value> {
        self.events.iter().filter(|event| is_finding(event, rule)).collect()
    }

    /// The rules that fired about a container, each once.
    pub fn rules_about(&self, container: &str) -> Vec<String> {
        let mut rules: Vec<String> = Vec::new();
        for finding in self.of_type("finding") {
            let rule = finding["rule"].as_str().unwrap_or_default();
            if finding["container"]["name"] == container && !rules.iter().any(|known| known == rule) {
                rules.push(rule.to_owned());
            }
        }
        rules
    }

    /// The exchanges.
    pub fn exchanges(&self) -> Vec<&Value> {
        self.of_type("exchange")
    }

    /// The exchanges of the container called `container`.
    pub fn exchanges_of(&self, container: &str) -> Vec<&Value> {
        self.exchanges().into_iter().filter(|exchange| exchange["container"]["name"] == container).collect()
    }

    /// The report at the end.
    pub fn report(&self) -> Result<&Value> {
        self.of_type("report").pop().context("no report was written")
    }
}
