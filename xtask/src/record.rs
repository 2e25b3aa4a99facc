//! How are the recordings in tests/recordings made, and what is told of them?

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::{setup, workspace};

/// Makes the recordings anew in the lab, and what is told of them.
pub fn record() -> Result<ExitCode> {
    if !workspace::is_root() {
        bail!("recordings are made in the lab, which needs root");
    }
    setup::compiler_half()?;
    setup::lab_half()?;
    lab("record")
}

/// Writes what the program says now of the recordings beside them: look at the difference before you keep it.
pub fn bless() -> Result<ExitCode> {
    for kept in ["recordings::", "captures::"] {
        let mut bless = workspace::tested("test", &["--test=replay", "--", kept]);
        workspace::run(bless.env("IMDS_TRACE_BLESS", "1"))?;
    }
    workspace::run(&mut workspace::tested("build", &["--bin=imds-trace"]))?;
    let mut schemas = workspace::tested("test", &["--test=cli", "--", "the_kept_schemas_are_what_is_generated"]);
    schemas.env("IMDS_TRACE_BIN", workspace::built("debug", "imds-trace")?);
    workspace::run(schemas.env("IMDS_TRACE_BLESS", "1"))?;
    println!("see `git diff --stat tests/recordings tests/captures docs/schema`");
    Ok(ExitCode::SUCCESS)
}

fn lab(word: &str) -> Result<ExitCode> {
    workspace::run(&mut workspace::tested("build", &["--bins"]))?;
    let mut lab = Command::new(workspace::built("debug", "lab")?);
    lab.arg(word).env("IMDS_TRACE_BIN", workspace::built("debug", "imds-trace")?);
    workspace::run(&mut lab)?;
    println!("see `git diff --stat tests/recordings`");
    Ok(ExitCode::SUCCESS)
}
