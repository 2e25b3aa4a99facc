//! What does imds-trace show, seen in five minutes on this machine?

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::{arch::Arch, release, setup, workspace};

/// The program, and those of the lab without what only tests take: so what they depend on is built as for the program alone, once.
pub const PROGRAMS: &[&str] = &[
    "--package=imds-trace",
    "--package=imds-trace-tests",
    "--no-default-features",
    "--features=imds-trace/live",
    "--bins",
];

/// Builds, then runs the lab's demo and passes its exit code on.
pub fn demo() -> Result<ExitCode> {
    if !workspace::is_root() {
        bail!("the demo sets up network namespaces and a Docker engine of its own: run it as root");
    }
    setup::compiler_half()?;
    setup::lab_half()?;
    let mut demo = prepare()?;
    let status = demo.status().with_context(|| format!("run {}", workspace::shown(&demo)))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// Builds what the demo takes; the command is ready to run.
pub fn prepare() -> Result<Command> {
    println!("building imds-trace and the lab …");
    let programs = release::build(PROGRAMS, Arch::own()?)?;
    println!("starting the lab …");
    let mut lab = Command::new(programs.join("lab"));
    lab.arg("demo").env("IMDS_TRACE_BIN", programs.join("imds-trace")).current_dir(workspace::root());
    Ok(lab)
}
