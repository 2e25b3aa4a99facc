//! What does it look like when a hop limit of one meets containers, on a machine that is not on EC2?
//!
//! `lab demo` shows it with the tracer; `lab shell` leaves the runner host up to try things by hand;
//! `lab record` makes the recordings in tests/recordings and the captures in tests/captures anew, `lab capture` the captures alone,
//! `lab bless` what is told of them; `lab bench` says what tracing costs, `lab soak` whether it stays so.

use std::io::Read;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use imds_trace_replay_tests::kept;
use imds_trace_tests::children::{self, show};
use imds_trace_tests::expect::wait_until;
use imds_trace_tests::{ContainerSpec, HostOptions, RunnerHost, Tokens, bench, captured, house, record};
use nix::sys::signal::Signal;

/// Makes the captures anew, and what is told of everything.
fn capture() -> Result<()> {
    captured::record(&kept::captures_folder())?;
    record::bless()
}

fn main() -> ExitCode {
    house::keep();
    let word = std::env::args().nth(1);
    let result = match word.as_deref() {
        Some("demo") => demo(),
        Some("shell") => shell(),
        Some("record") => record::record(&kept::recordings_folder()).and_then(|()| capture()),
        Some("capture") => capture(),
        Some("bless") => record::bless(),
        Some("bench") => bench(),
        Some("soak") => soak(),
        _ => Err(anyhow::anyhow!(
            "usage: lab demo | lab shell | lab record | lab capture | lab bless | lab bench | lab soak"
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// `lab bench FOLDER ROUNDS [PART…]`: prints the table, and leaves it in the folder, beside the same as JSON.
fn bench() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(2).collect();
    let [folder, rounds, parts @ ..] = words.as_slice() else { bail!("usage: lab bench FOLDER ROUNDS [PART…]") };
    let rounds = rounds.parse::<u32>().ok().filter(|rounds| *rounds > 0).context("ROUNDS is a number above 0")?;
    let (table, json) = bench::run(parts, rounds)?;
    let folder = Path::new(folder);
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    for (name, text) in [("bench.md", &table), ("bench.json", &json)] {
        std::fs::write(folder.join(name), text).with_context(|| format!("write {}", folder.join(name).display()))?;
    }
    print!("{table}\n{json}");
    Ok(())
}

/// `lab soak SECONDS`
fn soak() -> Result<()> {
    let seconds = std::env::args().nth(2).and_then(|seconds| seconds.parse().ok());
    println!("{}", bench::soak(Duration::from_secs(seconds.context("usage: lab soak SECONDS")?))?);
    Ok(())
}

fn start() -> Result<RunnerHost> {
    let (options, why_plain) = HostOptions::best();
    if let Some(why) = why_plain {
        eprintln!("no Docker engine: {why}; containers are namespaces made by hand");
    }
    let began = Instant::now();
    let host = RunnerHost::start(options)?;
    eprintln!(
        "runner host up after {:.1} s, hop limit {}",
        began.elapsed().as_secs_f64(),
        host.imds().behaviour().hop_limit
    );
    Ok(host)
}

fn demo() -> Result<()> {
    let host = start()?;
    host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.tokens) = (1, Tokens::Required));
    let ready = host.dir().join("ready");
    let mut command = host.runner().command(imds_trace_tests::tracer::program()?);
    command.args(["watch", "--output", "text", "--ready-file"]).arg(&ready);
    command.args(["--docker-host", &host.docker_host_url()]);
    eprintln!("$ {}", show(&command));
    // Its words go where ours go: this is what a person would see.
    command.stdin(Stdio::null());
    let mut tracer = children::spawn(command).context("start imds-trace")?;
    let ended = wait_until("imds-trace to be ready", Duration::from_secs(20), || {
        let ended = tracer.try_wait().ok().flatten();
        (ended.is_some() || ready.exists()).then_some(ended)
    })?;
    if let Some(status) = ended {
        bail!("imds-trace ended before it was ready ({status})");
    }

    let python = ["--comm", "python3", "--user-agent", "Boto3/1.40.21 md/Botocore#1.40.21 lang/python#3.12.3"];
    let agent = ["--comm", "agent", "--user-agent", "aws-sdk-go-v2/1.38.1 lang/go#1.24"];
    let cron = ["--comm", "curl", "--user-agent", "curl/7.88.1"];
    let client = |what: &'static str, options: [&'static str; 4]| -> Vec<&'static str> {
        ["imds-client", what].into_iter().chain(options).chain(["--linger-after", "30"]).collect()
    };
    let specs = [
        ContainerSpec::new("job-17", &client("fallback", python)).label("com.gitlab.gitlab-runner.job.id", "17"),
        ContainerSpec::new("legacy-cron", &client("v1", cron)),
        ContainerSpec::new("agent", &client("v2", agent)).network("host"),
    ];
    let expected_attempts = [2, 1, 2];
    let mut containers = Vec::new();
    for spec in specs {
        eprintln!("container {}: {} on {}", spec.name, spec.args[1], spec.network.as_deref().unwrap_or("docker0"));
        containers.push(host.run(spec.wait_for_go())?);
    }
    for container in &containers {
        container.go()?;
    }
    for (container, expected) in containers.iter().zip(expected_attempts) {
        let attempts = wait_until(container.name(), Duration::from_secs(20), || {
            container.attempts().ok().filter(|attempts| attempts.len() >= expected)
        })?;
        let told: Vec<_> = attempts
            .iter()
            .map(|attempt| {
                let answer = attempt["status"]
                    .as_u64()
                    .map_or_else(|| attempt["error"].to_string(), |status| status.to_string());
                format!("{} -> {answer}", attempt["step"].as_str().unwrap_or_default())
            })
            .collect();
        eprintln!("container {} saw: {}", container.name(), told.join(", "));
    }
    let status =
        children::stop(&mut tracer, Signal::SIGTERM, Duration::from_secs(20)).context("imds-trace did not end")?;
    if status.code() != Some(0) {
        bail!("imds-trace ended with {status}");
    }
    Ok(())
}

fn shell() -> Result<()> {
    let host = start()?;
    println!("on the runner host:  nsenter --net={} bash", host.runner().path().display());
    println!("behind it, IMDS:     nsenter --net={} tcpdump -ni eth0", host.imds_ns().path().display());
    println!("its engine:          export DOCKER_HOST={}", host.docker_host_url());
    println!("a victim:            docker run --rm imdslab imds-client fallback");
    println!("Ctrl-C, or the end of standard input, takes it all down.");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
