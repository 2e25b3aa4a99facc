//! What does a program cost that runs beside the load?

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde_json::Value;

use crate::attached;
use crate::children;
use crate::docker::next;
use crate::expect::wait_until;
use crate::host::RunnerHost;
use crate::tracer::program;

use super::load::ENDPOINT;

/// A start, and an end with everything told.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running tracer that writes JSON Lines to a file, as a service does.
pub struct Watch {
    child: Child,
    dir: PathBuf,
    /// From exec to ready.
    pub start: Duration,
}

impl Watch {
    /// Starts it on the runner host and waits until it is ready.
    pub fn start(host: &RunnerHost, record: bool) -> Result<Watch> {
        Self::start_with(host, record, &[])
    }

    /// The same, with more options.
    pub fn start_with(host: &RunnerHost, record: bool, options: &[&str]) -> Result<Watch> {
        let began = Instant::now();
        let (mut child, dir) = Self::spawn(host, record, options)?;
        let ready = dir.join("ready");
        // Looks each half millisecond, because this is what is measured.
        while !ready.exists() {
            if child.try_wait()?.is_some() || began.elapsed() > PATIENCE {
                bail!("imds-trace was never ready: {}", fs::read_to_string(dir.join("stderr"))?.trim());
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(Watch { child, dir, start: began.elapsed() })
    }

    /// Starts it, and gives it with the folder that it writes to.
    pub fn spawn(host: &RunnerHost, record: bool, options: &[&str]) -> Result<(Child, PathBuf)> {
        let dir = host.dir().join(format!("bench-{}", next()));
        fs::create_dir(&dir)?;
        let mut command = host.runner().command(program()?);
        command.args(["watch", "--endpoint", &ENDPOINT.to_string(), "--docker-host", &host.docker_host_url()]);
        command.arg("--output").arg(format!("json={}", dir.join("json").display()));
        command.arg("--ready-file").arg(dir.join("ready"));
        if record {
            command.arg("--record").arg(dir.join("recording"));
        }
        command.args(options);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(dir.join("stderr"))?);
        Ok((children::spawn(command).context("start imds-trace")?, dir))
    }

    /// Processor time of all its threads so far.
    pub fn cpu(&self) -> Result<Duration> {
        cpu(self.child.id())
    }

    /// A line of its `status`, in MB: `VmRSS`, `VmHWM`.
    pub fn memory(&self, line: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kilobytes = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
        let kilobytes = kilobytes.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
        Ok(kilobytes.with_context(|| format!("{line} in status"))? / 1024.0)
    }

    /// How often its threads have slept so far.
    pub fn sleeps(&self) -> Result<u64> {
        let mut sleeps = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            let voluntary = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            sleeps += voluntary.and_then(|text| text.trim().parse::<u64>().ok()).context("voluntary_ctxt_switches")?;
        }
        Ok(sleeps)
    }

    /// How many files it has open, those of the kernel's objects included.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }

    /// How many objects of the kernel half it holds.
    pub fn objects(&self) -> Result<usize> {
        Ok(attached::held_by(self.child.id())?.len())
    }

    /// Waits until it has nothing to do: all that came is read, and what was quiet is told.
    pub fn settle(&self) -> Result<()> {
        let mut before = Duration::ZERO;
        let mut looked = Instant::now();
        wait_until("imds-trace to come to rest", PATIENCE, || {
            if looked.elapsed() < Duration::from_millis(700) {
                return None;
            }
            let now = self.cpu().ok()?;
            let spent = now.saturating_sub(before);
            let is_quiet = spent * 50 < looked.elapsed();
            (before, looked) = (now, Instant::now());
            is_quiet.then_some(())
        })
    }

    /// Ends it; what it told.
    pub fn stop(mut self) -> Result<Told> {
        let status = children::stop(&mut self.child, Signal::SIGTERM, PATIENCE).context("imds-trace did not end")?;
        if !status.success() {
            bail!("imds-trace ended with {status}: {}", fs::read_to_string(self.dir.join("stderr"))?.trim());
        }
        let (mut told, mut answered) = (Told::default(), std::collections::HashSet::new());
        for line in fs::read_to_string(self.dir.join("json"))?.lines() {
            let event: Value = serde_json::from_str(line)?;
            match event["type"].as_str() {
                Some("exchange") if event["status"] == 200 => drop(answered.insert(event["id"].as_u64())),
                Some("finding") => told.findings += 1,
                Some("report") => {
                    let number = |value: &Value| value.as_u64().context("a number in the report");
                    told.lost = number(&event["lost"])?;
                    told.spent = number(&event["spent"]["seen"])? + number(&event["spent"]["inferred"])?;
                    told.counted = number(&event["spent"]["counted_by_kernel"])?;
                }
                _ => {}
            }
        }
        told.answered = answered.len();
        told.recording = self.dir.join("recording");
        Ok(told)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        children::stop(&mut self.child, Signal::SIGKILL, PATIENCE);
    }
}

/// What a tracer told in its time.
#[derive(Default)]
pub struct Told {
    /// Records that it says were lost.
    pub lost: u64,
    /// Exchanges of which it says that they were answered.
    pub answered: usize,
    /// Findings.
    pub findings: usize,
    /// Packets of which it says that they were lost to their TTL, and how many the kernel counted.
    pub spent: u64,
    pub counted: u64,
    /// Its recording.
    pub recording: PathBuf,
}

/// Processor time of a process so far, that of threads that have ended included.
pub fn cpu(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?)).context("a process's clock")?;
    Ok(clock_gettime(clock)?.into())
}
