//! Does everything work? Runs the tests part by part, adds them up, and says what did not run and why.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{
    arch::Arch,
    demo, dist, lint,
    reasons::Reasons,
    release::{self, Together},
    setup,
    tally::Tally,
    vm, workspace,
};

/// How long `ci` may take altogether before what runs is taken for hanging. It takes less than forty minutes on two quiet cores.
const CI_LIMIT: Duration = Duration::from_secs(70 * 60);

/// How long any one part of `ci` may take, so that one that hangs leaves time for the rest.
const PART_LIMIT: Duration = Duration::from_secs(35 * 60);

/// Exchanges that `ci` has time for: memory has found its size after a third of them.
const ENDLESS: &str = "300000";

/// Seconds of a soak that is a test among others.
const SOAK: u64 = 45;

/// How many of the lab's tests `ci` runs once more when they fail: real packets on a machine that others load, too. One that then
/// passes is told as flaky, with why it failed. Where more fail than this, it is no chance, and the rest counts as failed.
const AGAIN: u32 = 4;

/// What can be run by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Formatting, clippy, the house rules
    Lint,
    /// Tests beside the code
    Unit,
    /// Scenarios and recordings through the pipeline
    Replay,
    /// The program as it is typed
    Cli,
    /// A million exchanges through pipeline and recording, optimised
    Endless,
    /// What `cargo xtask dist` makes, optimised: installed, read and verified with the distributions' tools (root)
    Dist,
    /// A real kernel, network namespaces, a Docker engine (root)
    Lab,
    /// Containers, networks and the engine come and go for 45 s: what tracing takes stays as it is (root)
    Soak,
    /// Some of the lab's tests on other kernels, in virtual machines (root)
    Vm,
    /// What `cargo xtask demo` runs, as one test (root)
    #[value(skip)]
    Demo,
}

/// The lab waits for its packets most of the time. What comes after it is built meanwhile.
const TESTS: &[Part] =
    &[Part::Unit, Part::Replay, Part::Cli, Part::Lab, Part::Lint, Part::Endless, Part::Soak, Part::Dist, Part::Vm];

/// As what the tests and what they test are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Built {
    /// Soon, and soon again after a change; what must be optimised is built beside it, without the tests.
    Soon,
    /// As it ships, once for all parts.
    Once,
}

/// What came of a part.
struct Outcome {
    part: Part,
    /// How many tests ran: fewer than the tally has where the part itself counts as the failure.
    ran: usize,
    tally: Tally,
    took: Duration,
    /// Why it failed or did not run, where the counts alone do not say it.
    why: Option<String>,
}

pub fn test(parts: &[Part], filter: &[String]) -> Result<ExitCode> {
    let parts = if parts.is_empty() { TESTS } else { parts };
    run(parts, filter, None)
}

/// A soak by itself.
pub fn soak_alone(minutes: u32) -> Result<ExitCode> {
    setup::compiler_half()?;
    if let Some(why) = no_lab()? {
        bail!("{why}");
    }
    let why = soak(Together::Lab, u64::from(minutes) * 60, None, &mut Tally::default())?;
    Ok(ExitCode::from(u8::from(why.is_some())))
}

pub fn ci() -> Result<ExitCode> {
    let parts = [TESTS, &[Part::Demo]].concat();
    run(&parts, &[], Some(Instant::now() + CI_LIMIT))
}

fn run(parts: &[Part], filter: &[String], deadline: Option<Instant>) -> Result<ExitCode> {
    println!("kernel half: {}", setup::compiler_half()?);
    let mut outcomes = Vec::new();
    let mut reasons = Reasons::default();
    let mut ahead = None;
    // Fetching waits for others' machines, and the first parts for this one's processors.
    let mut fetching = deadline.filter(|_| workspace::is_root()).map(|_| thread::spawn(setup::lab_half));
    for &part in parts {
        println!("\n== {} ==", part.name());
        match part {
            Part::Lab if deadline.is_some() => {
                // What failed is tried again by the lab itself, which says why.
                drop(fetching.take().map(JoinHandle::join));
                ahead = Some(workspace::background(lint::builds()?));
            }
            // It goes on with what is built by then.
            _ => drop(ahead.take()),
        }
        let deadline = deadline.map(|all| all.min(Instant::now() + PART_LIMIT));
        let (mut tally, begun) = (Tally::default(), Instant::now());
        let run = part.run(filter, deadline, &mut tally, &mut reasons);
        let mut why = run.unwrap_or_else(|error| Some(format!("{error:#}")));
        if tally.ran() == 0 && why.is_none() {
            why = Some("ran no test".to_owned());
        }
        let ran = tally.ran();
        // A part that broke before it could count anything has failed all the same.
        if why.is_some() && tally.failed == 0 {
            tally.failed = 1;
        }
        if let Some(why) = &why {
            println!("{}: {why}", part.name());
        }
        outcomes.push(Outcome { part, ran, tally, took: begun.elapsed(), why });
    }
    let sum = show(&outcomes, &reasons);
    Ok(ExitCode::from(u8::from(sum.failed > 0)))
}

/// Why tests failed, the table and, last, the sum.
fn show(outcomes: &[Outcome], reasons: &Reasons) -> Tally {
    let mut sum = Tally::default();
    if !reasons.lines().is_empty() {
        println!("\n== what failed, and why ==");
        reasons.lines().iter().for_each(|line| println!("{line}"));
    }
    println!("\n{:<8}{:>7}{:>8}{:>8}{:>9}{:>9}", "part", "ran", "passed", "failed", "not run", "seconds");
    for Outcome { part, ran, tally, took, why } in outcomes {
        sum += *tally;
        let why = why.as_deref().map(|why| format!("  {why}")).unwrap_or_default();
        let (Tally { passed, failed, ignored }, seconds) = (tally, took.as_secs());
        println!("{:<8}{ran:>7}{passed:>8}{failed:>8}{ignored:>9}{seconds:>9}{why}", part.name());
    }
    if reasons.flaky() > 0 {
        println!("flaky: {} of those that passed failed at first", reasons.flaky());
    }
    println!("{} passed, {} failed", sum.passed, sum.failed);
    sum
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Lint => "lint",
            Self::Unit => "unit",
            Self::Replay => "replay",
            Self::Cli => "cli",
            Self::Endless => "endless",
            Self::Dist => "dist",
            Self::Lab => "lab",
            Self::Soak => "soak",
            Self::Vm => "vm",
            Self::Demo => "demo",
        }
    }

    /// Counts into the tally; says what went wrong beyond the tests that failed.
    fn run(
        self,
        filter: &[String],
        deadline: Option<Instant>,
        tally: &mut Tally,
        reasons: &mut Reasons,
    ) -> Result<Option<String>> {
        let built = if deadline.is_some() { Built::Once } else { Built::Soon };
        let mut libtest = |tests: Command| libtest(tests, built, filter, deadline, tally, reasons);
        match self {
            Self::Lint => {
                *tally = lint::run(filter);
                Ok(None)
            }
            Self::Unit => {
                let user = libtest(built.tested("test", &["--lib", "--bin=xtask"])?)?;
                let kernel = libtest(workspace::cargo(["test", "--package=imds-trace-ebpf", "--lib"]))?;
                Ok(user.or(kernel))
            }
            // Needs neither the kernel half nor the program: stable Rust runs it anywhere.
            Self::Replay => libtest(built.tested("test", &["--test=replay"])?),
            Self::Cli => {
                built.program()?;
                libtest(built.tested("test", &["--test=cli"])?)
            }
            Self::Endless => endless(built.together(), deadline, tally),
            Self::Dist => dist::check(built.together(), filter, tally),
            Self::Lab => {
                if let Some(why) = no_lab()? {
                    return Ok(Some(why));
                }
                workspace::run(&mut workspace::cargo(["build", "--package=sdk-client"]))?;
                built.program()?;
                libtest(built.tested("test", &["--test=lab"])?)
            }
            Self::Soak => match no_lab()? {
                Some(why) => Ok(Some(why)),
                None => soak(built.together(), SOAK, deadline, tally),
            },
            Self::Vm => match no_lab()? {
                Some(why) => Ok(Some(why)),
                None => vm::part(built.together(), deadline, tally).map(|()| None),
            },
            Self::Demo => {
                if let Some(why) = no_lab()? {
                    return Ok(Some(why));
                }
                demonstrate(built.together(), deadline, tally)
            }
        }
    }
}

impl Built {
    /// `cargo build` or `cargo test` with these targets of what is tested.
    fn tested(self, command: &str, targets: &[&str]) -> Result<Command> {
        match self {
            Self::Soon => Ok(workspace::tested(command, targets)),
            Self::Once => Ok(workspace::of_tested(release::own(command)?, targets)),
        }
    }

    /// Builds the `imds-trace` that is tested.
    fn program(self) -> Result<()> {
        workspace::run(&mut self.tested("build", &["--bin=imds-trace"])?)
    }

    /// Where that is.
    fn folder(self) -> Result<PathBuf> {
        match self {
            Self::Soon => workspace::built("debug", ""),
            Self::Once => release::folder(Arch::own()?),
        }
    }

    /// With what the parts build that need it as it ships.
    fn together(self) -> Together {
        match self {
            Self::Soon => Together::Lab,
            Self::Once => Together::Tests,
        }
    }
}

/// Why the lab cannot be set up here.
fn no_lab() -> Result<Option<String>> {
    if !workspace::is_root() {
        return Ok(Some("needs root: it makes network namespaces and starts a Docker engine of its own".to_owned()));
    }
    setup::lab_half().context("the lab")?;
    Ok(None)
}

/// `cargo test`, against the `imds-trace` that was built with it.
fn libtest(
    mut command: Command,
    built: Built,
    filter: &[String],
    deadline: Option<Instant>,
    tally: &mut Tally,
    reasons: &mut Reasons,
) -> Result<Option<String>> {
    command.arg("--no-fail-fast").arg("--").args(filter);
    command.env("IMDS_TRACE_BIN", built.folder()?.join("imds-trace"));
    // The SDK's client is no part of what ships: nobody waits for it to be fast.
    command.env("IMDS_LAB_SDK_CLIENT", workspace::built("debug", "sdk-client")?);
    // Whoever runs a part by hand sees a failure at once.
    let again = if deadline.is_some() { AGAIN } else { 0 };
    command.env("IMDS_LAB_AGAIN", again.to_string());
    let mut own = Tally::default();
    let status = workspace::stream(&mut command, deadline, |line| {
        reasons.take(line);
        if let Some(counts) = Tally::from_line(line) {
            own += counts;
        }
    })?;
    *tally += own;
    Ok(match status {
        None => Some("did not end in time and was ended".to_owned()),
        Some(status) if !status.success() && own.failed == 0 => {
            Some(format!("did not build, or a test program died ({status}, see above)"))
        }
        Some(_) => None,
    })
}

/// One test: memory stays flat and files stay few. It says its figures itself.
fn endless(together: Together, deadline: Option<Instant>, tally: &mut Tally) -> Result<Option<String>> {
    let mut program = Command::new(release::build(together, Arch::own()?)?.join("endless"));
    program.args(deadline.map(|_| ENDLESS));
    one(&mut program, deadline, tally)
}

/// One test: a tracer stays as it is, whatever comes and goes. It says its figures itself.
fn soak(together: Together, seconds: u64, deadline: Option<Instant>, tally: &mut Tally) -> Result<Option<String>> {
    let programs = release::build(together, Arch::own()?)?;
    let mut lab = Command::new(programs.join("lab"));
    lab.arg("soak").arg(seconds.to_string()).env("IMDS_TRACE_BIN", programs.join("imds-trace"));
    one(&mut lab, deadline, tally)
}

/// A program that is one test.
fn one(program: &mut Command, deadline: Option<Instant>, tally: &mut Tally) -> Result<Option<String>> {
    let status = workspace::stream(program, deadline, |_| {})?;
    let why = match status {
        None => Some("did not end in time and was ended".to_owned()),
        Some(status) if !status.success() => Some(format!("{} failed ({status})", workspace::shown(program))),
        Some(_) => None,
    };
    *tally += Tally { passed: usize::from(why.is_none()), failed: usize::from(why.is_some()), ignored: 0 };
    Ok(why)
}

/// The demo counts as one test: it ends well, and it finds what it was set up to show.
fn demonstrate(together: Together, deadline: Option<Instant>, tally: &mut Tally) -> Result<Option<String>> {
    let mut lab = demo::prepare(together)?;
    let mut found = false;
    let status = workspace::stream(&mut lab, deadline, |line| {
        found |= line.contains("hop-limit-too-low") || line.contains("hop limit");
    })?;
    let why = match status {
        None => Some("did not end in time and was ended".to_owned()),
        Some(status) if !status.success() => Some(format!("{} failed ({status})", workspace::shown(&lab))),
        Some(_) if !found => Some("ended well, but found no hop limit that is too low".to_owned()),
        Some(_) => None,
    };
    *tally += Tally { passed: usize::from(why.is_none()), failed: usize::from(why.is_some()), ignored: 0 };
    Ok(why)
}
