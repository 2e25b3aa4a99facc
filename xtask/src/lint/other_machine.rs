//! Is the kernel half the same for the other processor that EC2 has, Graviton? The programs may not depend on where they are built.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{arch::Arch, toolchain, workspace};

/// Builds it for both, and compares what the kernel gets to see, section by section. Registers of the host (`pt_regs`), whose layout
/// differs, are only described: in type information, which is left out.
pub fn same_programs() -> Result<Vec<String>> {
    let mut sections = Vec::new();
    for (mut build, built) in builds()? {
        workspace::run(&mut build)?;
        sections.push(read(&built)?);
    }
    let [here, there] = sections.as_slice() else { bail!("two machines") };
    if !here.contains_key("classifier") {
        bail!("there is no section of programs: {:?}", here.keys());
    }
    let names = here.keys().chain(there.keys().filter(|name| !here.contains_key(*name)));
    let differ = names.filter(|name| here.get(*name) != there.get(*name));
    Ok(differ.map(|name| format!("section {name} differs between processors")).collect())
}

/// What builds it for each, not run yet, and what that makes.
pub fn builds() -> Result<Vec<(Command, PathBuf)>> {
    let toolchain = toolchain::find().map_err(anyhow::Error::msg)?;
    let target = workspace::built("imds-trace-ebpf", "")?;
    let build = |arch: Arch| {
        // As build.rs keeps them.
        let folder = if arch == Arch::own()? { target.clone() } else { target.join(arch.rust()) };
        let build = toolchain.build(&workspace::root(), &folder, arch.rust());
        Ok((build, folder.join(toolchain::TARGET).join("release/imds-trace")))
    };
    Arch::ALL.into_iter().map(build).collect()
}

/// Sections by name, as hexadecimal dumps.
fn read(object: &Path) -> Result<BTreeMap<String, String>> {
    let listed = readelf(&["--section-headers", "--wide"], object)?;
    let names = listed.lines().filter_map(|line| line.split_once(']')?.1.split_whitespace().next());
    let counts = |name: &&str| !name.starts_with(".BTF") && !name.starts_with(".debug") && !name.starts_with(".rel");
    let names = names.filter(|name| *name != "Name" && !matches!(*name, "NULL" | ".strtab" | ".symtab")).filter(counts);
    names.map(|name| Ok((name.to_owned(), readelf(&["--hex-dump", name], object)?))).collect()
}

fn readelf(arguments: &[&str], object: &Path) -> Result<String> {
    workspace::say(Command::new("readelf").args(arguments).arg(object)).context("readelf is in the package binutils")
}
