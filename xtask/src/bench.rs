//! What does tracing cost on this machine, and is anything lost?

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::{demo, setup, workspace};

/// What is to be measured.
#[derive(clap::Args)]
pub struct Asked {
    /// Parts, e.g. `storm`, `start`; without any, all
    parts: Vec<String>,
    /// How often each part is run
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// Measures the optimised program in the lab; leaves a table and JSON in target/bench.
pub fn bench(asked: &Asked) -> Result<ExitCode> {
    if !workspace::is_root() {
        bail!("the bench sets up network namespaces: run it as root");
    }
    setup::compiler_half()?;
    setup::lab_half()?;
    eprintln!("building imds-trace and the lab …");
    workspace::run(workspace::cargo(["build", "--release"]).args(demo::PROGRAMS))?;
    let mut lab = Command::new(workspace::built("release", "lab")?);
    lab.arg("bench").arg(workspace::built("bench", "")?).arg(asked.rounds.to_string()).args(&asked.parts);
    lab.env("IMDS_TRACE_BIN", workspace::built("release", "imds-trace")?);
    workspace::run(lab.current_dir(workspace::root()))?;
    Ok(ExitCode::SUCCESS)
}
