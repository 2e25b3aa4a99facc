//! What would tcpdump cost in the same place?

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::load::ENDPOINT;
use super::process;
use crate::children;
use crate::host::RunnerHost;

const PATIENCE: Duration = Duration::from_secs(20);

/// tcpdump on all interfaces of the runner host, writing what it captures to nowhere.
pub struct Tcpdump(Child);

impl Tcpdump {
    /// Starts it and waits until it listens; nothing if it is not installed.
    pub fn start(host: &RunnerHost) -> Result<Option<Tcpdump>> {
        let mut command = host.runner().command("tcpdump");
        command.args(["-i", "any", "-n", "-w", "/dev/null", "host", &ENDPOINT.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = match children::spawn(command) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            child => child.context("start tcpdump")?,
        };
        let mut lines = BufReader::new(child.stderr.take().context("piped")?).lines();
        if !lines.any(|line| line.is_ok_and(|line| line.contains("listening on"))) {
            bail!("tcpdump does not listen");
        }
        // What it says at its end is for nobody, but must have somewhere to go.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Some(Tcpdump(child)))
    }

    /// Processor time so far.
    pub fn cpu(&self) -> Result<Duration> {
        process::cpu(self.0.id())
    }
}

impl Drop for Tcpdump {
    fn drop(&mut self) {
        children::stop(&mut self.0, Signal::SIGTERM, PATIENCE);
    }
}
