//! How is the program built that others get? Optimised, and as one file that needs nothing of the machine it is copied to.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::workspace;

/// The C library goes into the file. Only glibc's target has a standard library everywhere, and it allows that.
const STATIC: &str = "-Ctarget-feature=+crt-static";

/// This machine's target, whose standard library every toolchain has.
pub fn target() -> String {
    format!("{}-unknown-linux-gnu", env::consts::ARCH)
}

/// Builds these targets, e.g. `--package=imds-trace --bins`; says where the programs are.
pub fn build(targets: &[&str]) -> Result<PathBuf> {
    let target = target();
    let mut cargo = workspace::cargo(["build", "--release", "--target", &target]);
    // With a target named, flags are for that alone: what runs while building (proc macros) cannot be static.
    cargo.args(targets).env("CARGO_ENCODED_RUSTFLAGS", STATIC);
    workspace::run(&mut cargo)?;
    workspace::built(Path::new(&target).join("release"), "")
}
