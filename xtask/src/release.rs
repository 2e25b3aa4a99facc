//! How is the program built that others get? Optimised, and as one file that needs nothing of the machine it is copied to.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{arch::Arch, cross::Cross, workspace};

/// The C library goes into the file.
const STATIC: &str = "-Ctarget-feature=+crt-static";

/// Stands between flags in `$CARGO_ENCODED_RUSTFLAGS`.
const BETWEEN: &str = "\x1f";

/// What is built together. Cargo chooses the features of what programs depend on by all that a command builds, and another choice is
/// another build of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Together {
    /// The program by itself, as packagers build it.
    Program,
    /// With the lab's programs, without what only tests take: what they depend on is built as for the program alone.
    Lab,
    /// With all that is tested: CI builds once for all of its parts.
    Tests,
}

/// Builds the programs; says where they are.
pub fn build(together: Together, arch: Arch) -> Result<PathBuf> {
    workspace::run(&mut together.add_to(cargo("build", arch)?, "--bins"))?;
    folder(arch)
}

/// Where programs of this processor are.
pub fn folder(arch: Arch) -> Result<PathBuf> {
    workspace::built(Path::new(&arch.target()).join("release"), "")
}

/// `cargo build`, `cargo test` or the like for this machine, not run yet.
pub fn own(command: &str) -> Result<Command> {
    cargo(command, Arch::own()?)
}

/// Builds the lab's test program, and says where it is.
pub fn lab(together: Together, arch: Arch) -> Result<PathBuf> {
    let test = "lab";
    let mut cargo = together.add_to(cargo("test", arch)?, &format!("--test={test}"));
    cargo.args(["--no-run", "--message-format=json-render-diagnostics"]);
    let mut found = None;
    let status = workspace::read(&mut cargo, |line| {
        let message: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        if message["target"]["name"] == test && message["profile"]["test"] == true {
            found = message["executable"].as_str().map(PathBuf::from);
        }
    })?;
    if !status.success() {
        bail!("{} failed ({status})", workspace::shown(&cargo));
    }
    found.with_context(|| format!("cargo did not say where the test program {test} is"))
}

/// Copies a program without what debuggers want.
pub fn strip(program: &Path, to: &Path, arch: Arch) -> Result<()> {
    workspace::run(Command::new(arch.tool("strip")).arg("--strip-all").arg("-o").arg(to).arg(program))
}

impl Together {
    /// What of it a command builds, e.g. `--bins`.
    fn add_to(self, mut cargo: Command, targets: &str) -> Command {
        match self {
            Self::Program => cargo.args(["--package=imds-trace", targets]),
            Self::Lab => cargo.args([
                "--package=imds-trace",
                "--package=imds-trace-tests",
                "--no-default-features",
                "--features=imds-trace/live",
                targets,
            ]),
            Self::Tests => return workspace::of_tested(cargo, &[targets]),
        };
        cargo
    }
}

fn cargo(command: &str, arch: Arch) -> Result<Command> {
    let mut flags = vec![STATIC.to_owned()];
    flags.extend(without_own_paths());
    let mut cargo = if arch == Arch::own()? {
        workspace::cargo([command])
    } else {
        let cross = Cross::find(arch)?;
        flags.extend(cross.flags());
        let mut cargo = cross.cargo();
        cargo.arg(command).arg("--target-dir").arg(workspace::built("", "")?).current_dir(workspace::root());
        cargo
    };
    cargo.args(["--release", "--target", &arch.target()]);
    // With a target named, flags are for that alone: what runs while building (proc macros) cannot be static.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join(BETWEEN));
    Ok(cargo)
}

/// Sentences of a panic name source files. Where cargo keeps them here is nobody's business, and would make files differ.
fn without_own_paths() -> Vec<String> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let registries = home.map(|home| home.join("registry/src")).and_then(|folder| fs::read_dir(folder).ok());
    let folders = registries.into_iter().flatten().flatten().map(|entry| entry.path());
    folders.map(|folder| format!("--remap-path-prefix={}=/crates", folder.display())).collect()
}
