//! What does tracing cost, and is anything lost? Measured in the lab beside tcpdump, never asserted: other machines are other machines.
//!
//! Each part is run several times, without and with the tracer in turns where it says so. A figure is the median of what it was each
//! time, with the least and the most beside it. Be alone on the machine: some hooks see all namespaces, and so do other tracers.

mod interfaces;
mod load;
mod peers;
mod process;
mod soak;
mod strangers;

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;

use crate::host::{Engine, HostOptions, RunnerHost};
use crate::netns::Namespace;
use crate::spec::ContainerSpec;
use crate::tracer::program;
use load::Server;
use process::Watch;
pub use soak::soak;

/// Exchanges of a storm, and of a calm time; and how many a second are calm.
const STORM: u32 = 20_000;
const CALM: u32 = 6_000;
const CALM_A_SECOND: u32 = 1_500;
/// Exchanges of a long run, how many a second, and how long after them its memory is looked at again.
const LONG: u32 = 1_000_000;
const LONG_A_SECOND: u32 = 5_000;
const LONG_AFTERWARDS: Duration = Duration::from_secs(90);
/// How long after a storm its memory is looked at again.
const AFTERWARDS: Duration = Duration::from_secs(15);
/// How long an idle tracer is looked at.
const IDLE: Duration = Duration::from_secs(10);

/// A part of the bench.
struct Part {
    name: &'static str,
    measure: fn(&Lab, &mut Sheet) -> Result<()>,
}

const PARTS: &[Part] = &[
    Part { name: "start", measure: start },
    Part { name: "storm", measure: |lab, sheet| storm(lab, sheet, false) },
    Part { name: "storm-recorded", measure: |lab, sheet| storm(lab, sheet, true) },
    Part { name: "calm", measure: |lab, sheet| calm(lab, sheet, false) },
    Part { name: "calm-recorded", measure: |lab, sheet| calm(lab, sheet, true) },
    Part { name: "spent", measure: spent },
    Part { name: "strangers", measure: strangers::strangers },
    Part { name: "throughput", measure: strangers::throughput },
    Part { name: "interfaces", measure: interfaces::interfaces },
    Part { name: "idle", measure: idle },
    Part { name: "long", measure: long },
];

/// What is measured, in the order in which it was first.
#[derive(Default)]
struct Sheet(Vec<Figure>);

struct Figure {
    name: String,
    unit: &'static str,
    values: Vec<f64>,
}

impl Sheet {
    fn note(&mut self, name: &str, unit: &'static str, value: f64) {
        match self.0.iter_mut().find(|figure| figure.name == name) {
            Some(figure) => figure.values.push(value),
            None => self.0.push(Figure { name: name.to_owned(), unit, values: vec![value] }),
        }
    }
}

impl Figure {
    /// Least, median, most.
    fn spread(&self) -> (f64, f64, f64) {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        let (middle, last) = (values.len() / 2, values.len() - 1);
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        (values[0], median, values[last])
    }
}

/// A host with one container on a bridge, and a server behind it.
struct Lab {
    // Dropped in this order.
    server: Server,
    client: Namespace,
    _container: crate::Container,
    host: RunnerHost,
}

/// Runs the parts with these names, all if there are none, so many times, and gives a table and JSON.
pub fn run(wanted: &[String], rounds: u32) -> Result<(String, String)> {
    if let Some(unknown) = wanted.iter().find(|name| !PARTS.iter().any(|part| part.name == **name)) {
        bail!(
            "bench: no part {unknown}; there are: {}",
            PARTS.iter().map(|part| part.name).collect::<Vec<_>>().join(", ")
        );
    }
    let host = RunnerHost::start(HostOptions { engine: Engine::Plain, ..HostOptions::default() })?;
    let container = host.run(ContainerSpec::new("bench", &["imds-client", "linger", "36000"]))?;
    let client = container.namespace()?;
    let server = Server::start(host.imds_ns())?;
    let lab = Lab { server, client, _container: container, host };
    let mut sheet = Sheet::default();
    for round in 1..=rounds {
        for part in PARTS.iter().filter(|part| wanted.is_empty() || wanted.iter().any(|name| name == part.name)) {
            eprintln!("round {round} of {rounds}: {}", part.name);
            (part.measure)(&lab, &mut sheet).with_context(|| format!("bench {}", part.name))?;
        }
    }
    let values = |figure: &Figure| {
        let (least, median, most) = figure.spread();
        json!({"figure": figure.name, "unit": figure.unit, "median": median, "least": least, "most": most, "values": figure.values})
    };
    let json =
        json!({"machine": machine(), "rounds": rounds, "figures": sheet.0.iter().map(values).collect::<Vec<_>>()});
    Ok((table(&sheet, rounds), format!("{json:#}\n")))
}

fn table(sheet: &Sheet, rounds: u32) -> String {
    let mut table = format!("{}; median of {rounds} (least to most)\n\n| Figure | |\n|---|---|\n", machine());
    for figure in &sheet.0 {
        let (least, median, most) = figure.spread();
        let digits = if median.abs() < 10.0 { 2 } else { usize::from(median.abs() < 100.0) };
        let unit = figure.unit;
        let _ = writeln!(table, "| {} | {median:.digits$} {unit} ({least:.digits$} to {most:.digits$}) |", figure.name);
    }
    table
}

fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!("Linux {}, {processors} processors", kernel.trim())
}

fn start(lab: &Lab, sheet: &mut Sheet) -> Result<()> {
    let watch = Watch::start(&lab.host, false)?;
    sheet.note("exec to ready", "ms", milliseconds(watch.start));
    sheet.note("processor time until ready", "ms", milliseconds(watch.cpu()?));
    sheet.note("resident at most while starting", "MB", watch.memory("VmHWM")?);
    watch.settle()?;
    sheet.note("resident at rest", "MB", watch.memory("VmRSS")?);
    let began = Instant::now();
    watch.stop()?;
    sheet.note("SIGTERM to end", "ms", milliseconds(began.elapsed()));
    Ok(())
}

/// As fast as the clients can: alone, beside the tracer, beside tcpdump.
fn storm(lab: &Lab, sheet: &mut Sheet, record: bool) -> Result<()> {
    let with = if record { " with --record" } else { "" };
    let alone = load::ask(&lab.client, STORM, None)?;
    let watch = Watch::start(&lab.host, record)?;
    let before = watch.cpu()?;
    let beside = load::ask(&lab.client, STORM, None)?;
    watch.settle()?;
    let (spent, most) = (watch.cpu()? - before, watch.memory("VmHWM")?);
    // What it needed is given back within ten seconds.
    std::thread::sleep(AFTERWARDS);
    let after = watch.memory("VmRSS")?;
    let told = watch.stop()?;
    sheet.note(&format!("storm{with}: exchanges a second, alone"), "", rate(&alone));
    sheet.note(&format!("storm{with}: speed kept"), "", rate(&beside) / rate(&alone));
    sheet.note(&format!("storm{with}: records lost"), "", told.lost as f64);
    sheet.note(
        &format!("storm{with}: answered, and not told so"),
        "",
        f64::from(beside.answered) - told.answered as f64,
    );
    sheet.note(&format!("storm{with}: findings, of which none is true"), "", told.findings as f64);
    sheet.note(&format!("storm{with}: processor time an exchange"), "us", microseconds(spent) / f64::from(STORM));
    sheet.note(&format!("storm{with}: resident at most"), "MB", most);
    sheet.note(&format!("storm{with}: resident afterwards"), "MB", after);
    if record {
        replay(&told.recording, sheet)?;
    } else if let Some(peer) = peers::Tcpdump::start(&lab.host)? {
        let before = peer.cpu()?;
        let beside = load::ask(&lab.client, STORM, None)?;
        sheet.note("storm: speed kept beside tcpdump -w", "", rate(&beside) / rate(&alone));
        sheet.note(
            "storm: processor time an exchange of tcpdump -w",
            "us",
            microseconds(peer.cpu()? - before) / f64::from(STORM),
        );
    }
    Ok(())
}

/// At a pace that leaves both processors time.
fn calm(lab: &Lab, sheet: &mut Sheet, record: bool) -> Result<()> {
    let with = if record { " with --record" } else { "" };
    let watch = Watch::start(&lab.host, record)?;
    let before = watch.cpu()?;
    let asked = load::ask(&lab.client, CALM, Some(CALM_A_SECOND))?;
    watch.settle()?;
    let spent = watch.cpu()? - before;
    let told = watch.stop()?;
    let name = format!("{CALM_A_SECOND} exchanges a second{with}");
    sheet.note(&format!("{name}: processor time an exchange"), "us", microseconds(spent) / f64::from(CALM));
    sheet.note(&format!("{name}: records lost"), "", told.lost as f64);
    sheet.note(&format!("{name}: answered, and not told so"), "", f64::from(asked.answered) - told.answered as f64);
    Ok(())
}

/// Reads a storm's recording.
fn replay(recording: &std::path::Path, sheet: &mut Sheet) -> Result<()> {
    let observations = BufReader::new(fs::File::open(recording)?).split(b'\n').map_while(Result::ok);
    let observations = observations.filter(|line| line.starts_with(br#"{"observation""#)).count();
    let mut command = crate::children::command(program()?);
    command.arg("replay").arg(recording).args(["--output", "json=/dev/null"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let usage = || -> Result<_> { Ok(getrusage(UsageWho::RUSAGE_CHILDREN)?) };
    let before = usage()?;
    let status = command.status()?;
    let after = usage()?;
    if !status.success() || observations == 0 {
        bail!("replay of {observations} observations: {status}");
    }
    let seconds = |usage: &nix::sys::resource::Usage| {
        let time = usage.user_time();
        time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6
    };
    let took = seconds(&after) - seconds(&before);
    sheet.note("replay: observations a second of processor time", "", observations as f64 / took);
    Ok(())
}

/// A million exchanges, and the memory that they leave.
fn long(lab: &Lab, sheet: &mut Sheet) -> Result<()> {
    let watch = Watch::start(&lab.host, false)?;
    let asked = load::ask(&lab.client, LONG, Some(LONG_A_SECOND))?;
    let name = format!("{LONG} exchanges");
    sheet.note(&format!("{name}: a second"), "", rate(&asked));
    sheet.note(&format!("{name}: resident at most"), "MB", watch.memory("VmHWM")?);
    std::thread::sleep(LONG_AFTERWARDS);
    sheet.note(&format!("{name}: resident 90 s later"), "MB", watch.memory("VmRSS")?);
    let told = watch.stop()?;
    sheet.note(&format!("{name}: records lost"), "", told.lost as f64);
    sheet.note(&format!("{name}: answered, and not told so"), "", f64::from(asked.answered) - told.answered as f64);
    sheet.note(&format!("{name}: findings, of which none is true"), "", told.findings as f64);
    Ok(())
}

/// Answers whose TTL is used up on this host, as fast as they come.
fn spent(lab: &Lab, sheet: &mut Sheet) -> Result<()> {
    let watch = Watch::start(&lab.host, false)?;
    let near = lab.server.near();
    let asked = load::ask_in_vain(&lab.client, STORM)?;
    drop(near);
    if asked.answered > 0 {
        bail!("{} were answered at a hop limit of 1", asked.answered);
    }
    watch.settle()?;
    let told = watch.stop()?;
    sheet.note("hop limit of 1: packets that the kernel refused", "", told.counted as f64);
    sheet.note("... of which it says nothing", "", told.counted as f64 - told.spent as f64);
    sheet.note("... records lost", "", told.lost as f64);
    Ok(())
}

fn idle(lab: &Lab, sheet: &mut Sheet) -> Result<()> {
    let watch = Watch::start(&lab.host, false)?;
    watch.settle()?;
    let (cpu, sleeps, began) = (watch.cpu()?, watch.sleeps()?, Instant::now());
    std::thread::sleep(IDLE);
    let seconds = began.elapsed().as_secs_f64();
    sheet.note("idle: processor seconds an hour", "s", (watch.cpu()? - cpu).as_secs_f64() / seconds * 3600.0);
    sheet.note("idle: wake-ups a second", "", (watch.sleeps()? - sleeps) as f64 / seconds);
    watch.stop()?;
    Ok(())
}

fn rate(asked: &load::Asked) -> f64 {
    f64::from(asked.answered) / asked.took.as_secs_f64()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}
