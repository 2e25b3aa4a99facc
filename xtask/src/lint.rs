//! Does the code keep the rules of the house? Formatting, clippy, and what neither knows.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::{setup, tally::Tally, workspace};

mod circles;
mod files;
mod other_machine;
mod rooms;
mod source;

/// A rule's name and what looks at it: nothing is wrong, or these things are. An error is a check that could not run.
type Check = (&'static str, fn() -> Result<Vec<String>>);

const CHECKS: &[Check] = &[
    ("formatting", formatting),
    ("imports", imports),
    ("circles", circles),
    ("first-lines", first_lines),
    ("file-names", file_names),
    ("sleeping-tests", sleeping_tests),
    ("plain-words", plain_words),
    ("no-kernel-crates-in-user-half", no_kernel_crates),
    ("kernel-half-for-arm64", other_machine::same_programs),
    ("clippy", clippy),
    ("clippy-record-layouts", clippy_record_layouts),
];

/// What the rules about files apply to.
const OURS: &[&str] = &[
    "imds-trace/build.rs",
    "imds-trace/build",
    "imds-trace/src",
    "imds-trace/diagnosis/src",
    "imds-trace-ebpf/src",
    "tests",
    "xtask/src",
];

/// Where crates begin. What is below one of these and not below a longer one is of that crate.
const CRATES: &[&str] = &[
    "imds-trace/src",
    "imds-trace/diagnosis/src",
    "imds-trace-ebpf/src",
    "xtask/src",
    "tests/src",
    "tests/cli",
    "tests/lab",
    "tests/replay",
    "tests/replay/src",
];

pub fn lint() -> Result<ExitCode> {
    setup::compiler_half()?;
    let Tally { passed, failed, .. } = run(&[]);
    println!("{passed} passed, {failed} failed");
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// Runs the checks whose name has one of the filters in it, and shows them as libtest would.
pub fn run(filters: &[String]) -> Tally {
    let mut tally = Tally::default();
    for (name, check) in CHECKS {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        let wrong = check().unwrap_or_else(|error| vec![format!("{error:#}")]);
        if wrong.is_empty() {
            println!("test lint::{name} ... ok");
            tally.passed += 1;
        } else {
            println!("test lint::{name} ... FAILED");
            wrong.iter().for_each(|sentence| println!("    {sentence}"));
            tally.failed += 1;
        }
    }
    for warning in read_ours().unwrap_or_default().iter().filter_map(files::length) {
        println!("warning: {warning}");
    }
    tally
}

fn read_ours() -> Result<Vec<files::File>> {
    files::read(&workspace::root(), OURS)
}

fn imports() -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for folder in ["imds-trace/src", "imds-trace/diagnosis/src"] {
        wrong.extend(modules(folder)?.iter().flat_map(rooms::check));
    }
    Ok(wrong)
}

fn circles() -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for folder in CRATES {
        wrong.extend(circles::check(&modules(folder)?));
    }
    Ok(wrong)
}

/// The files of a crate, and what they name.
fn modules(folder: &str) -> Result<Vec<circles::Module>> {
    let mut modules = Vec::new();
    for file in files::read(&workspace::root(), &[folder])? {
        let is_of = |other: &&&str| file.path.starts_with(&format!("{other}/"));
        if CRATES.iter().filter(is_of).max_by_key(|other| other.len()) != Some(&folder) {
            continue;
        }
        let Some(path) = circles::module(file.path[folder.len()..].trim_start_matches('/')) else { continue };
        let names = source::read(&file.text).with_context(|| format!("read {}", file.path))?.paths;
        modules.push(circles::Module { file: file.path, path, names });
    }
    if modules.is_empty() {
        bail!("{folder} holds no file");
    }
    Ok(modules)
}

fn first_lines() -> Result<Vec<String>> {
    Ok(read_ours()?.iter().filter_map(files::first_line).collect())
}

fn file_names() -> Result<Vec<String>> {
    Ok(read_ours()?.iter().filter_map(files::name).collect())
}

fn sleeping_tests() -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for file in files::read(&workspace::root(), &["tests"])? {
        wrong.extend(files::sleeps(&file)?);
    }
    Ok(wrong)
}

/// Of what users read: tests and xtask talk to us.
fn plain_words() -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for file in files::read(&workspace::root(), &["imds-trace/src", "imds-trace/diagnosis/src"])? {
        wrong.extend(files::dialect(&file)?);
    }
    Ok(wrong)
}

/// aya-ebpf exports memcpy and memset unmangled on every target: in the user binary they would replace libc's.
fn no_kernel_crates() -> Result<Vec<String>> {
    let target = concat!("--target=", "x86_64-unknown-linux-gnu");
    let mut tree =
        workspace::cargo(["tree", "--package=imds-trace", "--edges=normal", "--prefix=none", "--format={p}", target]);
    let output = tree.output().with_context(|| format!("run {}", workspace::shown(&tree)))?;
    if !output.status.success() {
        bail!("{}: {}", workspace::shown(&tree), String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let kernels = |line: &&str| line.starts_with("aya-ebpf ") || line.starts_with("aya-log-ebpf ");
    Ok(text
        .lines()
        .filter(kernels)
        .map(|line| {
            format!("the user half depends on {line}, which brings its own memcpy: keep it under the BPF target")
        })
        .collect())
}

fn formatting() -> Result<Vec<String>> {
    cargo(["fmt", "--all", "--check"], "`cargo fmt --all` puts it right")
}

/// Not of the SDK's client: checking what that depends on takes a minute, and it is one page.
const CLIPPY: [&str; 8] = [
    "clippy",
    "--workspace",
    "--exclude=imds-trace-ebpf",
    "--exclude=sdk-client",
    "--all-targets",
    "--",
    "-D",
    "warnings",
];

/// What takes the longest of it, not run yet.
pub fn builds() -> Result<Vec<Command>> {
    let mut builds = vec![workspace::cargo(CLIPPY)];
    builds.extend(other_machine::builds()?.into_iter().map(|(build, _)| build));
    Ok(builds)
}

fn clippy() -> Result<Vec<String>> {
    cargo(CLIPPY, "see above")
}

/// The programs themselves only compile for the BPF target, where build.rs builds them.
fn clippy_record_layouts() -> Result<Vec<String>> {
    cargo(["clippy", "--package=imds-trace-ebpf", "--lib", "--", "-D", "warnings"], "see above")
}

/// One of cargo's own checks, which shows what is wrong itself.
fn cargo<const N: usize>(arguments: [&str; N], remedy: &str) -> Result<Vec<String>> {
    let mut command: Command = workspace::cargo(arguments);
    let status = command.status().with_context(|| format!("run {}", workspace::shown(&command)))?;
    Ok(if status.success() { Vec::new() } else { vec![format!("{}: {remedy}", workspace::shown(&command))] })
}
