//! Which situations are kept as recordings, and how are they made in the lab?
//!
//! Each is one run of `imds-trace watch --record` on the runner host. What was written is searched for every secret that the fake
//! IMDS handed out before it is kept. The reports beside a recording are not made here but from it, by `bless`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use diagnosis::input::Input;
use diagnosis::recording::{Chain, Reader, Writer};
use imds_trace_replay_tests::kept;

use crate::expect::{assert_no_secret, wait_until};
use crate::imds::{Behaviour, Tokens};
use crate::obstacle::{self, Family, MetadataProxy, Traffic, Verdict};
use crate::topology::Nested;
use crate::tracer::{Tracer, program};
use crate::{Container, ContainerSpec, HostOptions, NetworkSpec, RunnerHost, children, house};

/// A larger one tells nobody more.
const MAX_SIZE: usize = 100_000;
const SOON: Duration = Duration::from_secs(20);

/// A name, and what happens while it is recorded.
type Situation = (&'static str, fn(&RunnerHost) -> Result<()>);

const SITUATIONS: &[Situation] = &[
    ("hop-limit-1-three-containers", hop_limit_1_three_containers),
    ("hop-limit-2", hop_limit_2),
    ("hop-limit-1-ipv6", hop_limit_1_ipv6),
    ("imds-is-silent", imds_is_silent),
    ("docker-user-drops", docker_user_drops),
    ("firewall-rejects", firewall_rejects),
    ("nested-bridge", nested_bridge),
    ("no-route", no_route),
    ("reverse-path", reverse_path),
    ("not-masqueraded", not_masqueraded),
    ("metadata-proxy", metadata_proxy),
    ("slow-answer", slow_answer),
    ("tokens-refused", tokens_refused),
    ("imds-disabled", imds_disabled),
    ("no-role", no_role),
    ("throttled", throttled),
    ("boto3-falls-back", boto3_falls_back),
    ("pieces-and-pipelines", pieces_and_pipelines),
];

/// Records all situations anew into `dir`.
pub fn record(dir: &Path) -> Result<()> {
    let (options, why_plain) = HostOptions::best();
    if let Some(why) = why_plain {
        bail!("recordings are made with a real engine: {why}");
    }
    if let Some(other) = house::other() {
        bail!(
            "process {other} has a lab: the hooks see the whole machine, so recordings are made when no other lab runs"
        );
    }
    for (name, happen) in SITUATIONS {
        // One host each: what a server of the last situation still sends again is not part of this one.
        let host = RunnerHost::start(HostOptions { ipv6: true, behaviour: Behaviour::default(), ..options.clone() })?;
        let tracer = Tracer::start(&host, &[])?;
        happen(&host).with_context(|| (*name).to_owned())?;
        let outcome = tracer.stop()?;
        if outcome.status.code() != Some(0) {
            bail!("{name}: imds-trace ended with {}: {}", outcome.status, outcome.stderr.trim());
        }
        let bytes = without_this_machine(&std::fs::read_to_string(&outcome.recording).context("read the recording")?)?;
        if bytes.len() > MAX_SIZE {
            bail!("{name}: {} bytes, more than {MAX_SIZE}", bytes.len());
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(1).unwrap_or(Path::new("/"));
        if bytes.contains(&*root.to_string_lossy()) {
            bail!("{name}: a process of this checkout asked IMDS meanwhile; record again when nothing else does");
        }
        let secrets = host.imds().secrets();
        if !secrets.is_empty() {
            assert_no_secret(&[("recording", bytes.as_bytes()), ("stdout", outcome.stdout.as_bytes())], &[], &secrets)?;
        }
        std::fs::write(dir.join(format!("{name}.jsonl")), &bytes)?;
        eprintln!("{name}: {} bytes, {} findings", bytes.len(), outcome.of_type("finding").len());
    }
    Ok(())
}

/// The recording without what says more of this machine than of the situation: what its init is called, who built its kernel, when
/// it was booted. Sealed anew, for what is changed is not as it was written.
fn without_this_machine(recording: &str) -> Result<String> {
    let name = std::fs::read_to_string("/proc/1/comm").context("read the name of this machine's init")?;
    let init = |name: &str| format!("{{\"pid\":1,\"comm\":\"{name}\"}}");
    let reader = Reader::new(recording.as_bytes())?;
    let mut header = reader.header.clone();
    header.chain = Chain::default();
    let upstream = |release: &String| release.split('-').next().unwrap_or_default().to_owned();
    header.ready.kernel = header.ready.kernel.as_ref().map(upstream);
    let mut writer = Writer::new(Vec::new(), &header)?;
    let mut last = header.at;
    for input in reader {
        let text = serde_json::to_string(&input?)?.replace(&init(name.trim()), &init("init"));
        let input: Input = serde_json::from_str(&text)?;
        last = last.max(input.at());
        writer.write(&input)?;
        writer.seal_if_due(input.at())?;
    }
    Ok(String::from_utf8(writer.close(last, false)?)?)
}

/// Writes what the program says now of every recording and every capture beside it.
pub fn bless() -> Result<()> {
    for (name, path) in [kept::recordings()?, kept::captures()?].concat() {
        let mut replay = Command::new(program()?);
        replay.arg("replay").arg(&path).stdin(Stdio::null());
        for (kind, ending) in kept::TOLD {
            replay.arg("--output").arg(format!("{kind}={}", path.with_file_name(format!("{name}.{ending}")).display()));
        }
        children::output(replay).with_context(|| name.clone())?;
        eprintln!("{name}");
    }
    Ok(())
}

/// Lets containers that wait go, and waits until each has made so many attempts.
fn attempts(containers: &[(Container, usize)]) -> Result<()> {
    for (container, _) in containers {
        container.go()?;
    }
    for (container, expected) in containers {
        wait_until(container.name(), SOON, || {
            container.attempts().ok().filter(|attempts| attempts.len() >= *expected).map(drop)
        })?;
    }
    Ok(())
}

fn client(host: &RunnerHost, name: &str, words: &str, network: Option<&str>) -> Result<Container> {
    let args: Vec<&str> = ["imds-client"].into_iter().chain(words.split(' ')).chain(["--linger-after", "30"]).collect();
    let mut spec = ContainerSpec::new(name, &args).wait_for_go();
    spec.network = network.map(str::to_owned);
    host.run(spec)
}

fn hop_limit_1_three_containers(host: &RunnerHost) -> Result<()> {
    host.imds().set(|behaviour| behaviour.tokens = Tokens::Required);
    attempts(&[
        (client(host, "job-17", "fallback --comm python3 --user-agent Boto3/1.40.21", None)?, 2),
        (client(host, "legacy-cron", "v1 --comm curl --user-agent curl/7.88.1", None)?, 1),
        (client(host, "agent", "v2 --comm agent --user-agent aws-sdk-go-v2/1.38.1", Some("host"))?, 2),
    ])
}

fn hop_limit_2(host: &RunnerHost) -> Result<()> {
    host.imds().set(|behaviour| behaviour.hop_limit = 2);
    attempts(&[(client(host, "job-18", "v2", None)?, 2), (client(host, "agent-2", "v2", Some("host"))?, 2)])
}

fn hop_limit_1_ipv6(host: &RunnerHost) -> Result<()> {
    attempts(&[(client(host, "job-19", "fallback --endpoint fd00:ec2::254", None)?, 2)])
}

fn imds_is_silent(host: &RunnerHost) -> Result<()> {
    host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.silent) = (2, true));
    attempts(&[(client(host, "job-20", "put-only", None)?, 1)])
}

fn docker_user_drops(host: &RunnerHost) -> Result<()> {
    host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let _firewall = obstacle::docker_user(host, Family::V4, Traffic::ToImds, Verdict::Drop)?;
    attempts(&[(client(host, "job-21", "put-only --timeout-ms 2500", None)?, 1)])
}

fn firewall_rejects(host: &RunnerHost) -> Result<()> {
    let _firewall = obstacle::docker_user(host, Family::V4, Traffic::ToImds, Verdict::Reject)?;
    attempts(&[(client(host, "job-22", "put-only --count 2", None)?, 2)])
}

fn nested_bridge(host: &RunnerHost) -> Result<()> {
    host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let nested = Nested::start(host, "dind")?;
    nested.asks("fallback").map(drop)
}

fn no_route(host: &RunnerHost) -> Result<()> {
    let job = client(host, "job-23", "fallback", None)?;
    let _route = obstacle::prohibited_route(&job.namespace()?, Family::V4, "prohibit")?;
    attempts(&[(job, 2)])
}

fn reverse_path(host: &RunnerHost) -> Result<()> {
    let _routes = obstacle::reverse_path(host)?;
    attempts(&[(client(host, "job-24", "put-only --timeout-ms 1500", None)?, 1)])
}

fn not_masqueraded(host: &RunnerHost) -> Result<()> {
    let network = host.network_create(NetworkSpec::new("bare").unmasqueraded())?;
    attempts(&[(client(host, "job-25", "put-only --timeout-ms 1500", Some(network.name()))?, 1)])
}

fn metadata_proxy(host: &RunnerHost) -> Result<()> {
    let proxy = MetadataProxy::start(host, "docker0")?;
    attempts(&[(client(host, "job-26", "v2", None)?, 2)])?;
    drop(proxy);
    Ok(())
}

fn slow_answer(host: &RunnerHost) -> Result<()> {
    host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.delay_token) = (2, Duration::from_millis(900)));
    // It lives until the answer has come: what comes for a container that is gone is lost, not late.
    let job = [(client(host, "job-27", "put-only --timeout-ms 200 --user-agent Boto3/1.40.21", None)?, 1)];
    attempts(&job)?;
    wait_until("the late answer", SOON, || {
        host.imds().requests().iter().any(|request| request.status == Some(200)).then_some(())
    })?;
    host.settle(SOON)
}

fn tokens_refused(host: &RunnerHost) -> Result<()> {
    host.imds().set(|behaviour| behaviour.hop_limit = 3);
    attempts(&[
        (client(host, "stale", "v2 --token-ttl 1 --wait-ms 2500", None)?, 2),
        (client(host, "forger", "garbage-token", None)?, 1),
        (client(host, "no-lifetime", "put-only --token-ttl none", None)?, 1),
        (client(host, "proxied", "put-only --forwarded-for 10.1.2.3", None)?, 1),
    ])
}

fn imds_disabled(host: &RunnerHost) -> Result<()> {
    host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.endpoint_enabled) = (3, false));
    attempts(&[(client(host, "job-28", "fallback", None)?, 2)])
}

fn no_role(host: &RunnerHost) -> Result<()> {
    host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.role) = (3, None));
    let path = "/latest/meta-data/iam/security-credentials/";
    attempts(&[(client(host, "job-29", &format!("v2 --path {path}"), None)?, 2)])
}

fn throttled(host: &RunnerHost) -> Result<()> {
    host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.forced_status) = (3, Some(503)));
    attempts(&[(client(host, "job-30", "fallback", None)?, 2)])
}

fn boto3_falls_back(host: &RunnerHost) -> Result<()> {
    host.imds().set(|behaviour| behaviour.tokens = Tokens::Optional);
    let job = host.run(ContainerSpec::boto3("job-31").wait_for_go())?;
    job.go()?;
    job.wait(SOON).map(drop)
}

fn pieces_and_pipelines(host: &RunnerHost) -> Result<()> {
    host.imds().set(|behaviour| {
        (behaviour.hop_limit, behaviour.keep_alive, behaviour.split) = (3, true, Some(100));
    });
    attempts(&[
        (client(host, "in-pieces", "v2 --split-request 40", None)?, 2),
        (client(host, "all-at-once", "v2 --pipeline 3", None)?, 4),
    ])
}
