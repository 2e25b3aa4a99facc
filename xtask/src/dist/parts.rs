//! What is linked into the program? Crates of both halves as cargo resolves them for their targets, and what is not a crate.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    arch::Arch,
    toolchain,
    workspace::{self, say},
};

/// The kernel half's target.
const BPF: &str = "bpfel-unknown-none";

/// What a part is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    pub name: String,
    pub version: String,
    pub is_crate: bool,
}

/// A part of the program.
#[derive(Debug, Default)]
pub struct Part {
    /// An SPDX expression, if it says one.
    pub license: Option<String>,
    pub description: Option<String>,
    /// Where its source lies here.
    pub folder: Option<PathBuf>,
    pub needs: BTreeSet<Id>,
}

/// Every part, the program itself among them.
pub type Parts = BTreeMap<Id, Part>;

pub fn linked(arch: Arch) -> Result<Parts> {
    let mut parts = Parts::new();
    tree("imds-trace", &arch.target(), &mut parts)?;
    tree("imds-trace-ebpf", BPF, &mut parts)?;
    describe(&mut parts)?;
    let program = parts.keys().find(|id| id.name == "imds-trace").context("cargo tree shows no imds-trace")?.clone();
    for (id, part) in beyond_crates(arch)? {
        parts.entry(program.clone()).or_default().needs.insert(id.clone());
        parts.insert(id, part);
    }
    Ok(parts)
}

/// Adds what cargo would link for this target. What only runs while building is not shown.
fn tree(package: &str, target: &str, parts: &mut Parts) -> Result<()> {
    let mut command = workspace::cargo(["tree", "--locked", "--edges=normal,no-proc-macro", "--prefix=depth"]);
    command.args(["--format={p}", "--package", package, "--target", target]);
    read_tree(&say(&mut command)?, parts)
}

/// Lines are `2aya-obj v0.3.0`, the number being the depth; ` (*)` means that what it needs was shown before.
fn read_tree(text: &str, parts: &mut Parts) -> Result<()> {
    let mut above: Vec<Id> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let name_at = line.find(|character: char| !character.is_ascii_digit()).unwrap_or(0);
        let (depth, rest) = line.split_at(name_at);
        let mut words = rest.split_whitespace();
        let (Ok(depth), Some(name), Some(version)) = (depth.parse::<usize>(), words.next(), words.next()) else {
            bail!("cargo tree said {line:?}");
        };
        let id = Id { name: name.to_owned(), version: version.trim_start_matches('v').to_owned(), is_crate: true };
        above.truncate(depth);
        if let Some(parent) = above.last() {
            parts.entry(parent.clone()).or_default().needs.insert(id.clone());
        }
        parts.entry(id.clone()).or_default();
        above.push(id);
    }
    Ok(())
}

/// Adds what the packages say of themselves.
fn describe(parts: &mut Parts) -> Result<()> {
    let text = say(&mut workspace::cargo(["metadata", "--locked", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&text).context("read cargo metadata")?;
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let word = |key: &str| package[key].as_str().map(str::to_owned);
        let (Some(name), Some(version)) = (word("name"), word("version")) else { continue };
        if let Some(part) = parts.get_mut(&Id { name, version, is_crate: true }) {
            // The old way to write `or`, which is no SPDX.
            part.license = word("license").map(|license| license.replace('/', " OR "));
            part.description = word("description").map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
            part.folder = word("manifest_path").and_then(|path| Some(PathBuf::from(path).parent()?.to_owned()));
        }
    }
    Ok(())
}

/// The standard libraries, and what a static program has of C.
fn beyond_crates(arch: Arch) -> Result<Vec<(Id, Part)>> {
    let kernel_half = toolchain::find().map_err(anyhow::Error::msg)?.compiler.release;
    let (user_half, glibc) = if arch == Arch::own()? {
        let rustc = say(Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("--version"))?;
        let glibc = say(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
        let glibc = glibc.trim().trim_start_matches("glibc ").to_owned();
        (rustc.split_whitespace().nth(1).unwrap_or_default().to_owned(), glibc)
    } else {
        // Debian's packages of it; the compiler is that of the kernel half.
        let package = format!("libc6-dev-{}-cross", arch.debian());
        let version = say(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", &package]))?;
        (kernel_half.clone(), version.split('-').next().unwrap_or_default().to_owned())
    };
    let gcc = if arch == Arch::own()? { "cc".to_owned() } else { arch.tool("gcc") };
    let gcc = say(Command::new(gcc).arg("-dumpfullversion"))?.trim().to_owned();
    let rows = [
        ("rust-std", user_half, "MIT OR Apache-2.0", "Rust's standard library"),
        ("rust-core", kernel_half, "MIT OR Apache-2.0", "Rust's core library, in the kernel half"),
        ("glibc", glibc, "LGPL-2.1-or-later", "The GNU C library"),
        ("libgcc", gcc, "GPL-3.0-or-later WITH GCC-exception-3.1", "GCC's run-time library"),
    ];
    let part = |(name, version, license, description): (&str, String, &str, &str)| {
        let id = Id { name: name.to_owned(), version, is_crate: false };
        let text = |text: &str| Some(text.to_owned());
        (id, Part { license: text(license), description: text(description), ..Part::default() })
    };
    Ok(rows.into_iter().map(part).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_read_with_who_needs_whom() {
        let mut parts = Parts::new();
        read_tree("0a v1.0.0 (/here)\n1b v2.0.0\n2c v3.0.0\n1c v3.0.0\n1d v4.0.0+x (*)\n", &mut parts).unwrap();
        let id = |name: &str, version: &str| Id { name: name.into(), version: version.into(), is_crate: true };
        assert_eq!(parts.len(), 4);
        let needs = |id: &Id| Vec::from_iter(parts[id].needs.iter().map(|id| id.name.as_str()));
        assert_eq!(needs(&id("a", "1.0.0")), ["b", "c", "d"]);
        assert_eq!(needs(&id("b", "2.0.0")), ["c"]);
        assert!(read_tree("nonsense", &mut parts).is_err());
    }
}
