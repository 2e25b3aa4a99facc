//! What is the program's exit code? 0: ran; 1: what was asserted failed; 2: could not run.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use diagnosis::printable::printable;
use diagnosis::replay;
use imds_trace::cli::{Cli, Command};
#[cfg(feature = "live")]
use imds_trace::{doctor, live};

/// The verifier's last lines can be long.
const MAX_SENTENCE: usize = 4096;

fn main() -> ExitCode {
    // Prints help and exits 0, or says what is wrong with the arguments and exits 2.
    let result = match Cli::parse().command {
        #[cfg(feature = "live")]
        Command::Watch(args) => args.mean().map_err(anyhow::Error::from).and_then(live::watch),
        #[cfg(feature = "live")]
        Command::Run(args) => args.mean().map_err(anyhow::Error::from).and_then(live::run),
        #[cfg(feature = "live")]
        Command::Probe(args) => args.mean().map_err(anyhow::Error::from).and_then(live::probe),
        #[cfg(feature = "live")]
        Command::Doctor(args) => args.mean().map_err(anyhow::Error::from).and_then(doctor::doctor),
        Command::Generate(args) => match args.replay() {
            Some(replay) => replay::replay(replay),
            None => args.text().map_err(anyhow::Error::from).and_then(|text| print(&text)),
        },
        Command::Replay(args) => {
            imds_trace::progress::show();
            args.mean().map_err(anyhow::Error::from).and_then(replay::replay)
        }
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // A file name, an argument or a damaged line may hold anything.
            diagnosis::say!("imds-trace: {}", printable(&format!("{error:#}"), MAX_SENTENCE));
            ExitCode::from(2)
        }
    }
}

fn print(text: &str) -> anyhow::Result<u8> {
    std::io::stdout().write_all(text.as_bytes()).context("write to stdout")?;
    Ok(0)
}
