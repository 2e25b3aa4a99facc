//! Which kernels can be run, and where do they come from? Debian's cloud kernels, or one that somebody brings.

use std::{
    cmp::Reverse,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{
    arch::Arch,
    debian::{self, Apt},
};

/// A kernel and its modules.
#[derive(Debug)]
pub struct Kernel {
    /// What it is called here: `6.12`, `6.12:arm64`, or the file's name.
    pub name: String,
    pub arch: Arch,
    /// The bootable image.
    pub image: PathBuf,
    /// `lib/modules/RELEASE`.
    pub modules: PathBuf,
}

impl Kernel {
    /// One that somebody brings, for this machine.
    pub fn own(image: &Path, modules: &Path) -> Result<Self> {
        if !image.is_file() {
            bail!("--kernel {}: no such file", image.display());
        }
        if !modules.join("kernel").is_dir() {
            bail!("--modules {}: there is no folder kernel in it (name lib/modules/RELEASE)", modules.display());
        }
        let name = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, arch: Arch::own()?, image: image.to_owned(), modules: modules.to_owned() })
    }

    /// `6.12.117+deb12-cloud-amd64`, as its modules are filed.
    pub fn release(&self) -> String {
        self.modules.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The newest of a series among Debian's cloud kernels (`6.12`, or `6.12:arm64` as Debian writes it), from this machine's package
/// sources if they have it, else from another suite of the same mirror.
pub fn debian(name: &str) -> Result<Kernel> {
    let (series, arch) = match name.split_once(':') {
        Some((series, arch)) => (series, arch.parse()?),
        None => (name, Arch::own()?),
    };
    let is_series = series.split_once('.').is_some_and(|(major, minor)| {
        [major, minor].iter().all(|part| !part.is_empty() && part.chars().all(|digit| digit.is_ascii_digit()))
    });
    if !is_series {
        bail!("{series} is no series of kernels, e.g. 6.12");
    }
    let folder = match found(&Apt::here(arch)?, series, arch)? {
        Some(folder) => folder,
        None => found(&Apt::elsewhere(arch)?, series, arch)?.with_context(|| {
            let arch = arch.debian();
            format!(
                "neither this machine's package sources nor their mirror's other suites have a cloud kernel {series} for {arch}"
            )
        })?,
    };
    let modules = ["lib/modules", "usr/lib/modules"].map(|below| folder.join(below));
    let modules = modules.iter().find(|folder| folder.is_dir());
    let modules = modules.with_context(|| format!("the mirror no longer has the modules of {}", folder.display()))?;
    let modules = fs::read_dir(modules)?.next().context("a folder of modules")??.path();
    // Since 7.3 it lies beside its modules.
    let boot = fs::read_dir(folder.join("boot")).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let is_kernel = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().starts_with("vmlinuz");
    let image = boot.chain([modules.join("vmlinuz")]).find(|path| is_kernel(path) && path.is_file());
    let image = image.with_context(|| format!("{} has no kernel", folder.display()))?;
    Ok(Kernel { name: name.to_owned(), arch, image, modules })
}

/// The folder of the newest kernel of a series, fetched if need be; none if there is none in these lists.
fn found(apt: &Apt, series: &str, arch: Arch) -> Result<Option<PathBuf>> {
    let pattern = format!("^linux-image-{}\\.[0-9][^ ]*-cloud-{}$", series.replace('.', "\\."), arch.debian());
    // Some are rebuilt for an older release (`deb11`), with modules of another compression; the release's own come first.
    let newest = |name: &String| (Reverse(name.contains("-0.deb")), numbers(name));
    let Some(package) = apt.names(&pattern)?.into_iter().max_by_key(newest) else { return Ok(None) };
    let folder = debian::cache("kernels")?.join(format!("{package}_{}", apt.version(&package)?));
    if !folder.is_dir() {
        // Newer releases keep its parts apart.
        let release = package.strip_prefix("linux-image-").unwrap_or(&package);
        let parts = ["linux-binary-", "linux-modules-"].map(|kind| format!("{kind}{release}"));
        let mut whole = vec![package.clone()];
        whole.extend(apt.needs(&package)?.into_iter().filter(|part| parts.contains(part)));
        apt.unpack(&whole.iter().map(String::as_str).collect::<Vec<_>>(), &folder)?;
    }
    Ok(Some(folder))
}

pub fn numbers(name: &str) -> Vec<u64> {
    name.split(|letter: char| !letter.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_build_has_greater_numbers() {
        let newest = ["linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64"]
            .into_iter()
            .max_by_key(|name| numbers(name));
        assert_eq!(newest, Some("linux-image-6.1.0-56-cloud-amd64"));
    }

    #[test]
    fn what_is_no_series_is_said() {
        for wrong in ["", "6", "6.", "six.one", "6.1; true", "--help", ":arm64"] {
            assert!(debian(wrong).is_err_and(|error| error.to_string().contains("no series")), "{wrong}");
        }
        assert!(debian("6.1:riscv").is_err_and(|error| error.to_string().contains("no processor")));
    }
}
