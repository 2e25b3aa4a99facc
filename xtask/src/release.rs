//! How is the program built that others get? Optimised, and as one file that needs nothing of the machine it is copied to.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::workspace;

/// The C library goes into the file. Only glibc's target has a standard library everywhere, and it allows that.
const STATIC: &str = "-Ctarget-feature=+crt-static";

/// Stands between flags in `$CARGO_ENCODED_RUSTFLAGS`.
const BETWEEN: &str = "\x1f";

/// This machine's target, whose standard library every toolchain has.
pub fn target() -> String {
    format!("{}-unknown-linux-gnu", env::consts::ARCH)
}

/// Builds these targets, e.g. `--package=imds-trace --bins`; says where the programs are.
pub fn build(targets: &[&str]) -> Result<PathBuf> {
    let target = target();
    let mut cargo = workspace::cargo(["build", "--release", "--target", &target]);
    // With a target named, flags are for that alone: what runs while building (proc macros) cannot be static.
    let flags = [STATIC.to_owned()].into_iter().chain(without_own_paths()).collect::<Vec<_>>();
    cargo.args(targets).env("CARGO_ENCODED_RUSTFLAGS", flags.join(BETWEEN));
    workspace::run(&mut cargo)?;
    workspace::built(Path::new(&target).join("release"), "")
}

/// Sentences of a panic name source files. Where cargo keeps them here is nobody's business, and would make files differ.
fn without_own_paths() -> Vec<String> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let registries = home.map(|home| home.join("registry/src")).and_then(|folder| fs::read_dir(folder).ok());
    let folders = registries.into_iter().flatten().flatten().map(|entry| entry.path());
    folders.map(|folder| format!("--remap-path-prefix={}=/crates", folder.display())).collect()
}
