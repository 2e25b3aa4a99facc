//! Do parsers of foreign bytes stand whatever finds new ways through them? Builds `fuzz/` and runs each target for so long.
//!
//! As `cargo fuzz` does without a sanitizer, which would need nightly Rust: this is safe Rust, and a broken property is a panic.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{arch::Arch, setup, workspace};

/// What tells libFuzzer which ways an input took, and has mistakes found that are none in a release.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Coverflow-checks",
    "--cfg=fuzzing",
];
/// Lines of what a target said that are shown if it failed.
const SHOWN: usize = 30;

/// What is to be tried, and for how long.
#[derive(Args)]
pub struct Asked {
    /// Names of files in fuzz/fuzz_targets; all of them if none is given
    targets: Vec<String>,
    /// How long each is tried
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

pub fn fuzz(asked: &Asked) -> Result<ExitCode> {
    println!("kernel half: {}", setup::compiler_half()?);
    let all = targets()?;
    if let Some(unknown) = asked.targets.iter().find(|name| !all.contains(name)) {
        bail!("{unknown}: no such target; there are {}", all.join(", "));
    }
    let programs = build()?;
    workspace::run(&mut Command::new(programs.join("seeds")))?;
    let mut failed = 0;
    for name in all.iter().filter(|name| asked.targets.is_empty() || asked.targets.contains(name)) {
        failed += usize::from(!stands(&programs.join(name), name, asked.seconds)?);
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// The targets by name.
fn targets() -> Result<Vec<String>> {
    let folder = workspace::root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in folder.read_dir().with_context(|| folder.display().to_string())? {
        names.extend(entry?.path().file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Builds them; gives the folder that they are in.
fn build() -> Result<PathBuf> {
    let target = Arch::own()?.target();
    let folder = workspace::root().join("fuzz");
    let mut cargo = workspace::cargo(["build", "--release", "--bins", "--target", &target]);
    cargo.current_dir(&folder).env("CARGO_TARGET_DIR", folder.join("target"));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")).env_remove("CARGO_MANIFEST_DIR");
    workspace::run(&mut cargo)?;
    Ok(folder.join("target").join(target).join("release"))
}

/// Runs one; says how many inputs it was tried with, or what it did not stand and where that is kept.
fn stands(program: &PathBuf, name: &str, seconds: u32) -> Result<bool> {
    let folder = workspace::root().join("fuzz");
    let kept = folder.join("artifacts").join(name);
    std::fs::create_dir_all(&kept).with_context(|| kept.display().to_string())?;
    let mut command = Command::new(program);
    command.arg(folder.join("corpus").join(name)).arg(format!("-artifact_prefix={}/", kept.display()));
    command.args([&format!("-max_total_time={seconds}"), "-print_final_stats=1", "-timeout=20"]);
    let said = command.stdin(Stdio::null()).output().with_context(|| format!("run {}", workspace::shown(&command)))?;
    let text = String::from_utf8_lossy(&said.stderr);
    if said.status.success() {
        let tried = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        println!("{name}: tried with {} inputs in {seconds} s, and stands", tried.map_or("some", str::trim));
        return Ok(true);
    }
    println!("{name}: FAILED ({}); what it does not stand is in {}", said.status, kept.display());
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN)..].iter().for_each(|line| println!("    {line}"));
    Ok(false)
}
