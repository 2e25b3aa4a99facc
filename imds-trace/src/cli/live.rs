//! What was typed for the commands that need this machine? Turned into [`crate::config`] at once.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::{SayingArgs, TellingArgs};
use crate::config::{self, Doctor, Probe, Run, Tracing, Watch};
use crate::doctor::KINDS;
use diagnosis::config::{Filter, IMDS_V4, Telling, duration, outputs};

/// What `watch` takes.
#[derive(Debug, Args)]
pub struct WatchArgs {
    #[command(flatten)]
    tracing: TracingArgs,
    /// Stop after this time, e.g. 30s or 5m
    #[arg(long = "for", value_name = "DURATION")]
    duration: Option<String>,
}

/// What `run` takes.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    tracing: TracingArgs,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

/// What `probe` takes.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    #[command(flatten)]
    saying: SayingArgs,
    #[command(flatten)]
    listening: ListeningArgs,
    /// Ask this address
    #[arg(long, value_name = "ADDR", default_value = IMDS_V4)]
    endpoint: String,
    /// Wait so long for each of the two answers
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    timeout: String,
    /// Name or id of a container (in a pod: POD/NAME, NAMESPACE/POD/NAME, or the pod), pid:N, or the path of a network namespace
    #[arg(value_name = "CONTAINER")]
    target: String,
}

#[derive(Debug, Args)]
struct TracingArgs {
    #[command(flatten)]
    telling: TellingArgs,
    #[command(flatten)]
    listening: ListeningArgs,
    /// Watch this address (repeatable) instead of 169.254.169.254 and fd00:ec2::254
    #[arg(long = "endpoint", value_name = "ADDR")]
    endpoints: Vec<String>,
    /// Make this file once everything is attached
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ListeningArgs {
    /// Also write the recording: every packet's headers and every fact, without tokens and credentials; see `replay`
    ///
    /// `x.jsonl.zst` is compressed. An earlier recording at PATH is put away as x.TIME-NUMBER.jsonl, never overwritten.
    #[arg(long, value_name = "PATH")]
    record: Option<PathBuf>,
    /// Begin a new file of the recording when one has this size, e.g. 64MiB or 500MB, or this age, e.g. 24h; twice: one of each
    #[arg(long, value_name = "SIZE|AGE")]
    record_rotate: Vec<String>,
    /// Keep at most N rotated files beside the current one, and delete older ones [default: all]
    #[arg(long, value_name = "N")]
    record_keep: Option<String>,
    /// Listen on this interface (repeatable, * stands for any characters) instead of the default: every interface with a route to
    /// an endpoint, every container bridge, and the links of pods without a bridge
    #[arg(long = "interface", value_name = "NAME")]
    interfaces: Vec<String>,
    /// Engine (repeatable), Docker or podman [default: $DOCKER_HOST, else every socket of root's that is found]; no engine is
    /// a warning, not an error
    #[arg(long = "docker-host", value_name = "URL")]
    docker_hosts: Vec<String>,
    /// Where the root directory of the host is, for the files and sockets of its container runtimes; to run in a container
    #[arg(long, value_name = "PATH", default_value = "/")]
    host_root: PathBuf,
    /// More on stderr; twice: the probes' own log
    #[arg(short, action = ArgAction::Count)]
    verbose: u8,
}

/// What `doctor` takes.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// How to tell it (repeatable), on stdout or in a file; text: for people; json: JSON Lines, for programs [default: text]
    #[arg(long = "output", value_name = "KIND[=PATH]")]
    outputs: Vec<String>,
    /// Look for the ways to this address (repeatable) instead of 169.254.169.254 and fd00:ec2::254
    #[arg(long = "endpoint", value_name = "ADDR")]
    endpoints: Vec<String>,
    /// Exit 1 when something is broken
    #[arg(long)]
    exit_code: bool,
    /// Look at nothing, but remove what runs that were killed left on interfaces (kernels before 6.6; needs root), and say what
    #[arg(long, conflicts_with_all = ["outputs", "endpoints", "exit_code", "docker_hosts"])]
    clean: bool,
    /// Engine (repeatable), Docker or podman [default: $DOCKER_HOST, else every socket of root's that is found]; no engine is
    /// an answer, not an error
    #[arg(long = "docker-host", value_name = "URL")]
    docker_hosts: Vec<String>,
    /// Where the root directory of the host is, for the files and sockets of its container runtimes; to run in a container
    #[arg(long, value_name = "PATH", default_value = "/")]
    host_root: PathBuf,
    /// More on stderr
    #[arg(short, action = ArgAction::Count)]
    verbose: u8,
}

impl ListeningArgs {
    fn mean(self, telling: Telling, endpoints: &[String]) -> Result<Tracing, config::Error> {
        Ok(Tracing {
            record: config::record(self.record, &self.record_rotate, self.record_keep.as_deref(), &telling.outputs)?,
            telling,
            interfaces: self.interfaces.iter().map(|name| config::interface(name)).collect::<Result<_, _>>()?,
            endpoints: config::endpoints(endpoints)?,
            ready_file: None,
            docker_hosts: self.docker_hosts,
            host_root: self.host_root,
            verbosity: self.verbose,
        })
    }
}

impl TracingArgs {
    fn mean(self) -> Result<Tracing, config::Error> {
        let tracing = self.listening.mean(self.telling.mean()?, &self.endpoints)?;
        Ok(Tracing { ready_file: self.ready_file, ..tracing })
    }
}

impl WatchArgs {
    /// What it means.
    pub fn mean(self) -> Result<Watch, config::Error> {
        let duration = self.duration.as_deref().map(|text| duration("--for", text)).transpose()?;
        Ok(Watch { tracing: self.tracing.mean()?, duration })
    }
}

impl RunArgs {
    /// What it means.
    pub fn mean(self) -> Result<Run, config::Error> {
        Ok(Run { tracing: self.tracing.mean()?, command: self.command })
    }
}

impl ProbeArgs {
    /// What it means.
    pub fn mean(self) -> Result<Probe, config::Error> {
        let telling = self.saying.mean(Filter::default())?;
        Ok(Probe {
            tracing: self.listening.mean(telling, &[self.endpoint])?,
            target: config::target(&self.target)?,
            timeout: duration("--timeout", &self.timeout)?,
        })
    }
}

impl DoctorArgs {
    /// What it means.
    pub fn mean(self) -> Result<Doctor, config::Error> {
        Ok(Doctor {
            outputs: outputs(&self.outputs, KINDS)?,
            endpoints: config::endpoints(&self.endpoints)?,
            docker_hosts: self.docker_hosts,
            host_root: self.host_root,
            exit_code: self.exit_code,
            clean: self.clean,
            verbosity: self.verbose,
        })
    }
}
