//! What does imds-trace show, seen in five minutes on this machine?

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::{
    arch::Arch,
    release::{self, Together},
    setup, workspace,
};

/// Builds, then runs the lab's demo and passes its exit code on.
pub fn demo() -> Result<ExitCode> {
    if !workspace::is_root() {
        bail!("the demo sets up network namespaces and a Docker engine of its own: run it as root");
    }
    setup::compiler_half()?;
    setup::demo_half()?;
    let mut demo = prepare(Together::Lab)?;
    let status = demo.status().with_context(|| format!("run {}", workspace::shown(&demo)))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// Builds what the demo takes; the command is ready to run.
pub fn prepare(together: Together) -> Result<Command> {
    println!("building imds-trace and the lab …");
    let programs = release::build(together, Arch::own()?)?;
    println!("starting the lab …");
    let mut lab = Command::new(programs.join("lab"));
    lab.arg("demo").env("IMDS_TRACE_BIN", programs.join("imds-trace")).current_dir(workspace::root());
    Ok(lab)
}
