//! Which kernels can be run, and where do they come from? Debian's cloud kernels, or one that somebody brings.

use std::{
    cmp::Reverse,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{cache, unpack};
use crate::workspace::{self, say};

/// Other suites of the mirror that this machine's packages come from. Debian 12 itself has 6.1 and 6.12.
const OTHER_SUITES: &[&str] = &["bullseye", "bullseye-security", "bookworm-backports", "trixie", "trixie-backports"];

/// A kernel and its modules.
#[derive(Debug)]
pub struct Kernel {
    /// What it is called here: `6.12`, or the file's name.
    pub name: String,
    /// The bootable image.
    pub image: PathBuf,
    /// `lib/modules/RELEASE`.
    pub modules: PathBuf,
}

impl Kernel {
    /// One that somebody brings.
    pub fn own(image: &Path, modules: &Path) -> Result<Self> {
        if !image.is_file() {
            bail!("--kernel {}: no such file", image.display());
        }
        if !modules.join("kernel").is_dir() {
            bail!("--modules {}: there is no folder kernel in it (name lib/modules/RELEASE)", modules.display());
        }
        let name = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, image: image.to_owned(), modules: modules.to_owned() })
    }

    /// `6.12.117+deb12-cloud-amd64`, as its modules are filed.
    pub fn release(&self) -> String {
        self.modules.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The newest of a series among Debian's cloud kernels, from this machine's package sources if they have it, else from another suite
/// of the same mirror.
pub fn debian(series: &str) -> Result<Kernel> {
    let is_series = series.split_once('.').is_some_and(|(major, minor)| {
        [major, minor].iter().all(|part| !part.is_empty() && part.chars().all(|digit| digit.is_ascii_digit()))
    });
    if !is_series {
        bail!("{series} is no series of kernels, e.g. 6.12");
    }
    let package = match newest(&Apt::Own, series)? {
        Some(package) => fetch(&Apt::Own, &package)?,
        None => {
            let apt = Apt::other()?;
            let package = newest(&apt, series)?.with_context(|| {
                format!("neither this machine's package sources nor their mirror's other suites have a cloud kernel {series}")
            })?;
            fetch(&apt, &package)?
        }
    };
    let modules = only_folder(&first_that_is(&[package.join("lib/modules"), package.join("usr/lib/modules")])?)?;
    let image = fs::read_dir(package.join("boot"))?.filter_map(|entry| Some(entry.ok()?.path()));
    let image =
        image.into_iter().find(|path| path.file_name().unwrap_or_default().to_string_lossy().starts_with("vmlinuz"));
    let image = image.with_context(|| format!("{} has no kernel", package.display()))?;
    Ok(Kernel { name: series.to_owned(), image, modules })
}

fn first_that_is(folders: &[PathBuf]) -> Result<PathBuf> {
    folders
        .iter()
        .find(|folder| folder.is_dir())
        .cloned()
        .with_context(|| format!("{} is not there", folders[0].display()))
}

fn only_folder(folder: &Path) -> Result<PathBuf> {
    let entry = fs::read_dir(folder)?.next().with_context(|| format!("{} is empty", folder.display()))?;
    Ok(entry?.path())
}

/// Which lists of packages apt looks at.
enum Apt {
    /// This machine's.
    Own,
    /// Lists of its own, in this folder.
    Other(PathBuf),
}

impl Apt {
    /// Lists of the mirror's other suites. Those of a suite that the mirror does not have are left out.
    fn other() -> Result<Self> {
        let folder = cache("suites")?;
        let listed = say(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(SITE) $(RELEASE)",
            "Created-By: Packages",
        ]))?;
        let mut sources = String::new();
        for suite in OTHER_SUITES {
            let is_security = |suite: &str| suite.ends_with("-security");
            let same =
                |line: &&str| line.split(' ').nth(1).is_some_and(|release| is_security(release) == is_security(suite));
            let Some(line) = listed.lines().find(same) else { continue };
            let site = line.split(' ').next().unwrap_or_default();
            // Signed by a key that apt trusts anyhow: Debian 12 comes with those of the releases before and after.
            sources.push_str(&format!("deb {site} {suite} main\n"));
        }
        fs::create_dir_all(folder.join("lists/partial"))?;
        fs::create_dir_all(folder.join("cache/archives/partial"))?;
        fs::write(folder.join("sources.list"), sources)?;
        let apt = Self::Other(folder);
        // A suite that is not there is a warning, and then nothing is found in it.
        let _ = apt.command("apt-get").args(["-qq", "update"]).status().context("run apt-get update")?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        if let Self::Other(folder) = self {
            for (option, value) in [
                ("Dir::Etc::sourcelist", folder.join("sources.list")),
                ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
                ("Dir::State::lists", folder.join("lists")),
                ("Dir::Cache", folder.join("cache")),
                ("Dir::State::status", PathBuf::from("/dev/null")),
            ] {
                command.arg("-o").arg(format!("{option}={}", value.display()));
            }
        }
        command
    }
}

/// The name of the series' newest package: a security update changes the name.
fn newest(apt: &Apt, series: &str) -> Result<Option<String>> {
    let machine = if env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let pattern = format!("^linux-image-{}\\.[0-9][^ ]*-cloud-{machine}$", series.replace('.', "\\."));
    let mut search = apt.command("apt-cache");
    let mut found = say(search.args(["search", "--names-only", &pattern]))?;
    if found.trim().is_empty() && matches!(apt, Apt::Own) {
        // A machine that has never listed what there is.
        let _ = apt.command("apt-get").args(["-qq", "update"]).status().context("run apt-get update")?;
        found = say(&mut search)?;
    }
    let names = found.lines().filter_map(|line| line.split(' ').next());
    // Some are rebuilt for an older release (`deb11`), with modules of another compression; the release's own come first.
    Ok(names.map(str::to_owned).max_by_key(|name| (Reverse(name.contains("-0.deb")), numbers(name))))
}

fn numbers(name: &str) -> Vec<u64> {
    name.split(|letter: char| !letter.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// Fetches a package and those of its parts that newer releases keep apart; gives the folder where it is unpacked.
fn fetch(apt: &Apt, package: &str) -> Result<PathBuf> {
    let policy = say(apt.command("apt-cache").args(["policy", package]).env("LC_ALL", "C"))?;
    let version =
        policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: ")).context("a version")?.to_owned();
    let folder = cache("kernels")?.join(format!("{package}_{version}"));
    if folder.is_dir() {
        return Ok(folder);
    }
    let depends = say(apt.command("apt-cache").args(["depends", "--no-recommends", package]))?;
    let release = package.strip_prefix("linux-image-").unwrap_or(package);
    let parts = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let parts = parts
        .filter(|part| ["linux-binary-", "linux-modules-"].iter().any(|kind| **part == format!("{kind}{release}")));
    let whole: Vec<&str> = std::iter::once(package).chain(parts).collect();
    println!("fetching {}", whole.join(" "));
    let fetched = tempfile::tempdir_in(cache("kernels")?)?;
    let absolute = |command: &mut Command| -> Result<()> {
        // apt-get download writes where it stands, as another user where it can: it says so, and that is all.
        workspace::run(
            command.args(["-qq", "-o", "APT::Sandbox::User=root", "download"]).args(&whole).current_dir(fetched.path()),
        )
    };
    absolute(&mut apt.command("apt-get"))?;
    let packages: Vec<PathBuf> = fs::read_dir(fetched.path())?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let unpacked = fetched.path().join("unpacked");
    unpack(&packages, &unpacked)?;
    fs::rename(&unpacked, &folder).with_context(|| format!("keep {}", folder.display()))?;
    Ok(folder)
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
        for wrong in ["", "6", "6.", "six.one", "6.1; true", "--help"] {
            assert!(debian(wrong).is_err_and(|error| error.to_string().contains("no series")), "{wrong}");
        }
    }
}
