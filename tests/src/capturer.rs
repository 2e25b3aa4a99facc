//! How does a test capture packets as anybody would, with Debian's tcpdump and Wireshark's own programs, and read what is in a file?

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::children;
use crate::netns::Namespace;

/// Packets to and from IMDS, errors about them included: what docs/use.md advises.
pub const FILTER: &str = "host 169.254.169.254 or host fd00:ec2::254 or icmp or icmp6";
const END: Duration = Duration::from_secs(10);
/// What every Wireshark program says to root, on stderr.
const TO_ROOT: &str = "Running as user \"root\"";

/// A running tcpdump or dumpcap; dropping it kills it.
pub struct Capturer {
    child: Child,
    path: PathBuf,
    rest: Option<std::thread::JoinHandle<()>>,
}

impl Capturer {
    /// `tcpdump -w PATH` with `args`, in a namespace; listens when this returns.
    pub fn tcpdump(namespace: &Namespace, path: &Path, args: &[&str]) -> Result<Capturer> {
        // As root it would become somebody else, who may not write here. In immediate mode nothing waits in a buffer at the end, but its
        // buffer has room for a few packets only, unless they are kept short.
        let mut all = vec!["-Z", "root", "-U", "--immediate-mode", "-B", "16384", "-s", "2048", "-w"];
        let shown = path.display().to_string();
        all.push(&shown);
        all.extend(args);
        Self::start(namespace, path, "tcpdump", &all, "listening on")
    }

    /// `dumpcap -w PATH` with `args`; writes pcapng.
    pub fn dumpcap(namespace: &Namespace, path: &Path, args: &[&str]) -> Result<Capturer> {
        let shown = path.display().to_string();
        Self::start(namespace, path, "dumpcap", &[&["-w", &shown], args].concat(), "File: ")
    }

    fn start(namespace: &Namespace, path: &Path, program: &str, args: &[&str], says: &str) -> Result<Capturer> {
        let mut command = namespace.command(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = children::spawn(command).with_context(|| format!("start {program}"))?;
        let mut stderr = BufReader::new(child.stderr.take().context("piped")?);
        let mut said = String::new();
        loop {
            let before = said.len();
            if stderr.read_line(&mut said)? == 0 {
                let _ = child.wait();
                bail!("{program} does not listen: {}", said.trim());
            }
            if said[before..].contains(says) {
                break;
            }
        }
        let rest = std::thread::spawn(move || {
            let _ = stderr.read_to_end(&mut Vec::new());
        });
        Ok(Capturer { child, path: path.to_owned(), rest: Some(rest) })
    }

    /// Ends it as Ctrl-C would; gives the file.
    pub fn stop(mut self) -> Result<PathBuf> {
        let status = children::stop(&mut self.child, Signal::SIGINT, END);
        if let Some(rest) = self.rest.take() {
            let _ = rest.join();
        }
        match status {
            // 1: the interface went away with its container before we asked.
            Some(status) if matches!(status.code(), Some(0 | 1)) => Ok(self.path.clone()),
            status => bail!("the capture ended with {status:?}"),
        }
    }
}

impl Drop for Capturer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What tshark says of a file: the values of these fields, a line a packet. It must have nothing to complain of.
pub fn tshark(file: &Path, fields: &[&str]) -> Result<Vec<Vec<String>>> {
    let mut command = children::command("tshark");
    command.arg("-r").arg(file).args(["-T", "fields"]);
    command.args(fields.iter().flat_map(|field| ["-e", field]));
    let text = quiet("tshark", command)?;
    Ok(text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect())
}

/// What capinfos says of a file.
pub fn capinfos(file: &Path) -> Result<String> {
    let mut command = children::command("capinfos");
    command.arg(file);
    quiet("capinfos", command)
}

fn quiet(program: &str, mut command: std::process::Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {program}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let complaints: Vec<&str> = stderr.lines().filter(|line| !line.starts_with(TO_ROOT) && !line.is_empty()).collect();
    if !output.status.success() || !complaints.is_empty() {
        bail!("{program} ended with {} and says: {}", output.status, complaints.join("; "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
