//! What was typed? Turned into plain values at once ([`diagnosis::config`], `crate::config`); nothing else knows clap.

mod generate;
#[cfg(feature = "live")]
mod live;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use diagnosis::allow::AllowList;
use diagnosis::config::{self, Filter, OutputSpec, Replay, Telling};
use diagnosis::finding::RULES;
use diagnosis::output::{Kind, OUTPUTS};
#[cfg(feature = "live")]
use live::{DoctorArgs, ProbeArgs, RunArgs, WatchArgs};
use thiserror::Error;

/// Finds out why containers on EC2 cannot get credentials: follows every packet to and from the instance metadata service (IMDS)
/// through this host, with its TTL at every hop and every drop by the kernel, and says whose it was and what to do.
#[derive(Debug, Parser)]
#[command(name = "imds-trace", version, max_term_width = 120, after_long_help = rules_help())]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Trace live: a line per exchange and finding, the report at the end (Ctrl-C, SIGTERM or --for)
    ///
    /// Needs root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (and CAP_SYS_PTRACE for other users' processes).
    #[cfg(feature = "live")]
    Watch(WatchArgs),
    /// Trace while a command runs, then report; the command's exit status is passed on unless an --expect failed
    ///
    /// Needs what `watch` needs. SIGTERM is passed on to the command. Exits 128+N when signal N ended it, and 1 when it ended well
    /// but --exit-code found an error.
    #[cfg(feature = "live")]
    Run(RunArgs),
    /// Ask for a token from inside a container, trace that one request, report, forget the token
    ///
    /// The container needs no shell: imds-trace enters its network and asks by itself, a token first, then the instance's id with it.
    /// Needs what `watch` needs, and CAP_SYS_ADMIN.
    #[cfg(feature = "live")]
    Probe(ProbeArgs),
    /// Draw the same conclusions from recordings, answer questions about them; or what follows from a capture (.pcap, .pcapng)
    ///
    /// Several files are taken in the order of their time; those of one run are one. What of them is not as it was written is left
    /// out and told.
    ///
    /// A capture shows no drops, no processes and no containers: what is concluded from one says so. tcpdump -i any -w FILE 'host
    /// 169.254.169.254 or host fd00:ec2::254' sees most.
    Replay(ReplayArgs),
    /// Say what this kernel and this host allow, and what on the host would break IMDS now
    ///
    /// Changes nothing (but with --clean) and sends nothing to IMDS. Works without root, and knows more with it.
    #[cfg(feature = "live")]
    Doctor(DoctorArgs),
    /// Write to stdout: `allow`, an allow-list of whoever asked for a token or credentials in the recording on stdin; `schema`, of the lines of
    /// --output json, and `schema-doctor`; shells' completions and manual pages, for packages (`kinds` lists them)
    Generate(GenerateArgs),
}

/// What `replay` takes.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    telling: TellingArgs,
    /// Look for this address in a capture (repeatable) instead of 169.254.169.254 and fd00:ec2::254
    #[arg(long = "endpoint", value_name = "ADDR")]
    endpoints: Vec<String>,
    /// Show nothing before this time: 2026-11-20, "2026-11-20 08:00" (UTC), 2026-11-20T08:00:00+01:00, "2h ago" or -2h
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    since: Option<String>,
    /// Show nothing from this time on
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    until: Option<String>,
    /// More on stderr
    #[arg(short, action = ArgAction::Count)]
    verbose: u8,
    /// Recordings, or patterns of their names like 'host*.jsonl'; or captures (pcap, pcapng); - is stdin
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

/// What `generate` takes.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// allow, schema, schema-doctor, complete-bash, man, man-watch, …
    #[arg(value_name = "KIND")]
    kind: String,
    /// The date at the foot of a manual page
    #[arg(long, value_name = "YYYY-MM-DD", default_value = "")]
    date: String,
}

#[derive(Debug, Args)]
struct TellingArgs {
    #[command(flatten)]
    saying: SayingArgs,
    /// Show only this container, by name (POD/NAME in a pod) or id (repeatable)
    #[arg(long = "container", value_name = "NAME-OR-ID")]
    containers: Vec<String>,
    /// Show only this process (repeatable)
    #[arg(long = "pid", value_name = "N")]
    pids: Vec<u32>,
    /// Show only processes of this name (repeatable, * stands for any characters)
    #[arg(long = "comm", value_name = "NAME")]
    comms: Vec<String>,
    /// Show only processes of this user (repeatable)
    #[arg(long = "uid", value_name = "N")]
    uids: Vec<u32>,
    /// Show only pods of this name (repeatable, * stands for any characters)
    #[arg(long = "pod", value_name = "GLOB")]
    pods: Vec<String>,
    /// Show only pods of this Kubernetes namespace (repeatable, * stands for any characters)
    #[arg(long = "namespace", value_name = "GLOB")]
    namespaces: Vec<String>,
    /// Show only containers of this image (repeatable, * stands for any characters)
    #[arg(long = "image", value_name = "GLOB")]
    images: Vec<String>,
    /// Show only requests for this path (repeatable, * stands for any characters, / too)
    #[arg(long = "path", value_name = "GLOB")]
    paths: Vec<String>,
    /// Show only requests without a token (v1), with one (v2), or for one (token) (repeatable)
    #[arg(long = "imds", value_name = "v1|v2|token")]
    imds: Vec<String>,
    /// Also count exchanges and credentials taken by container, pod, namespace, workload (what made the pod), process, image, job (of CI), path or host
    #[arg(long, value_name = "WHAT")]
    group_by: Option<String>,
    /// Find whoever takes a token or credentials, or tries to, and is not on this list (TOML): unexpected-client
    #[arg(long, value_name = "FILE")]
    allow: Option<PathBuf>,
    /// Say who of those seen would break if the instance were set so (repeatable): tokens=required, hop-limit=N, or both with a comma
    /// between them
    #[arg(long = "what-if", value_name = "SETTINGS")]
    what_if: Vec<String>,
}

#[derive(Debug, Args)]
struct SayingArgs {
    #[arg(long = "output", value_name = "KIND[=PATH]", help = output_help())]
    outputs: Vec<String>,
    /// Exit 1 when a finding of severity `error` was made, shown or not: like `--expect no-errors`, but lost records alone do not fail it
    #[arg(long)]
    exit_code: bool,
    /// Exit 1, and say why, when this did not hold (repeatable): `reachable`, `blocked` (neither a token nor credentials arrive),
    /// `v2-only` (nobody asks without a token), `no-errors` or `works-at:SETTINGS` (what was seen would work so; see --what-if), of all
    /// clients or of one container, or of `host`
    #[arg(long = "expect", value_name = "CLAIM[:CONTAINER]")]
    expectations: Vec<String>,
}

fn output_help() -> String {
    let place = |needs_path| if needs_path { "=PATH" } else { "" };
    let kind = |kind: &Kind| format!("{}{}: {}", kind.name, place(kind.needs_path), kind.explain);
    let kinds: Vec<String> = OUTPUTS.iter().map(kind).collect();
    format!("How to tell it (repeatable), on stdout or in a file; {} [default: text]", kinds.join("; "))
}

fn rules_help() -> String {
    let rules: Vec<String> = RULES.iter().map(|rule| format!("  {:20} {}", rule.id, rule.explain)).collect();
    format!("Findings:\n{}", rules.join("\n"))
}

impl SayingArgs {
    fn mean(self, filter: Filter) -> Result<Telling, config::Error> {
        let kinds: Vec<(&str, bool)> = OUTPUTS.iter().map(|kind| (kind.name, kind.needs_path)).collect();
        Ok(Telling {
            outputs: config::outputs(&self.outputs, &kinds)?,
            filter,
            exit_code: self.exit_code,
            expectations: self.expectations.iter().map(|text| config::expectation(text)).collect::<Result<_, _>>()?,
            group_by: None,
            allow: None,
            what_if: Vec::new(),
        })
    }
}

impl TellingArgs {
    fn mean(self) -> Result<Telling, config::Error> {
        for (option, values) in [
            ("--container", &self.containers),
            ("--pod", &self.pods),
            ("--namespace", &self.namespaces),
            ("--image", &self.images),
            ("--comm", &self.comms),
            ("--path", &self.paths),
        ] {
            config::not_empty(option, values)?;
        }
        let filter = Filter {
            containers: self.containers,
            pods: self.pods,
            namespaces: self.namespaces,
            images: self.images,
            pids: self.pids,
            uids: self.uids,
            comms: self.comms,
            paths: self.paths,
            imds: self.imds.iter().map(|text| config::asked(text)).collect::<Result<_, _>>()?,
            since: None,
            until: None,
        };
        let group_by = self.group_by.as_deref().map(config::group_by).transpose()?;
        let what_if = self.what_if.iter().map(|text| config::settings("--what-if", text)).collect::<Result<_, _>>()?;
        let allow = self.allow.as_deref().map(AllowList::load).transpose()?;
        Ok(Telling { group_by, allow, what_if, ..self.saying.mean(filter)? })
    }
}

impl ReplayArgs {
    /// What it means.
    pub fn mean(self) -> Result<Replay, config::Error> {
        let endpoints = (!self.endpoints.is_empty()).then(|| config::endpoints(&self.endpoints));
        #[expect(clippy::disallowed_methods, reason = "`--since 1h` counts from when it was typed")]
        let now = jiff::Timestamp::now().as_nanosecond();
        let moment = |option, text: Option<String>| text.map(|text| config::moment(option, &text)).transpose();
        let mut telling = self.telling.mean()?;
        telling.filter.since = moment("--since", self.since)?.map(|since| since.instant(now));
        telling.filter.until = moment("--until", self.until)?.map(|until| until.instant(now));
        if let (Some(since), Some(until)) = (telling.filter.since, telling.filter.until)
            && since >= until
        {
            return Err(config::Error::Backwards);
        }
        Ok(Replay { endpoints: endpoints.transpose()?, telling, files: self.files, verbosity: self.verbose })
    }
}

/// Nothing that can be made of the command line.
#[derive(Debug, Error)]
#[error("generate {0}: there is none; `generate kinds` lists what there is")]
pub struct NoSuchKind(String);

impl GenerateArgs {
    /// What is to be replayed for it, if it is made of a recording.
    pub fn replay(&self) -> Option<Replay> {
        let output = OUTPUTS.iter().find(|output| output.name == self.kind && output.generated)?;
        let outputs = vec![OutputSpec { kind: output.name.to_owned(), path: None }];
        let telling = Telling { outputs, ..Telling::default() };
        Some(Replay { telling, files: vec![PathBuf::from("-")], ..Replay::default() })
    }

    /// The text that is asked for.
    pub fn text(self) -> Result<String, NoSuchKind> {
        generate::generate(&self.kind, &self.date).ok_or(NoSuchKind(self.kind))
    }
}
