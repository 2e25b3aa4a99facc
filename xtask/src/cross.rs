//! What does building for another processor take? A compiler, its standard library for that processor, and a linker.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    arch::Arch,
    debian::{self, Apt},
    setup,
    toolchain::{self, Compiler},
    workspace::say,
};

/// Debian's packages of the compiler, and of its standard library for each processor.
const COMPILER: &str = "rustc-web";
const LIBRARY: &str = "libstd-rust-web-dev";

/// What builds for another processor: found, or installed.
pub struct Cross {
    arch: Arch,
    compiler: Compiler,
    /// Where the standard library is, if not beside the compiler.
    sysroot: Option<PathBuf>,
}

impl Cross {
    pub fn find(arch: Arch) -> Result<Self> {
        setup::cross_half(arch)?;
        // The one that builds the kernel half: where it comes from Debian, so does the library for the other processor.
        let compiler = toolchain::find().map_err(anyhow::Error::msg)?.compiler;
        let beside = compiler.sysroot.join("lib/rustlib").join(arch.target()).join("lib").is_dir();
        let sysroot = if beside { None } else { Some(library(&compiler, arch)?) };
        Ok(Self { arch, compiler, sysroot })
    }

    /// The compiler's cargo, told which tools to use.
    pub fn cargo(&self) -> Command {
        let mut cargo = self.compiler.cargo();
        let target = self.arch.target();
        cargo.env(format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_")), self.arch.tool("gcc"));
        cargo.env(format!("CC_{}", target.replace('-', "_")), self.arch.tool("gcc"));
        cargo
    }

    /// What the compiler is told of its library.
    pub fn flags(&self) -> Vec<String> {
        self.sysroot.iter().map(|folder| format!("--sysroot={}", folder.display())).collect()
    }
}

/// Debian's, of the compiler's own version: no other fits.
fn library(compiler: &Compiler, arch: Arch) -> Result<PathBuf> {
    let installed = say(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", COMPILER]));
    let version = installed.unwrap_or_default();
    if !version.starts_with(&compiler.release) {
        bail!(
            "rustc {} ({}) has no standard library for {target}; type: rustup target add {target}",
            compiler.release,
            compiler.bin.display(),
            target = arch.target()
        );
    }
    let folder = debian::cache("std")?.join(format!("{version}-{}", arch.debian()));
    if !folder.is_dir() {
        Apt::here(arch)?.unpack(&[&format!("{LIBRARY}={version}")], &folder)?;
    }
    // A system root has rustlib below lib, as Debian's has it below usr/lib.
    let sysroot = folder.join("usr");
    let libraries = sysroot.join("lib/rustlib").join(arch.target());
    if !libraries.is_dir() {
        bail!("{LIBRARY} {version} has no library for {}", arch.target());
    }
    sysroot.canonicalize().context("find what was unpacked")
}
