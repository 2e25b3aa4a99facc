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

/// Builds these targets, e.g. `--package=imds-trace --bins`; says where the programs are.
pub fn build(targets: &[&str], arch: Arch) -> Result<PathBuf> {
    workspace::run(cargo("build", arch)?.args(targets))?;
    workspace::built(Path::new(&arch.target()).join("release"), "")
}

/// The build of these targets for this machine, not run yet.
pub fn command(targets: &[&str]) -> Result<Command> {
    let mut build = cargo("build", Arch::own()?)?;
    build.args(targets);
    Ok(build)
}

/// Builds a test program of a package, and says where it is.
pub fn test_program(package: &str, test: &str, arch: Arch) -> Result<PathBuf> {
    let mut cargo = cargo("test", arch)?;
    cargo.args(["--no-run", "--message-format=json-render-diagnostics", "--package", package]);
    cargo.args(["--no-default-features", "--test", test]);
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
