//! How are Debian's packages had without installing them, those of other releases and processors included?

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    arch::Arch,
    toolchain,
    workspace::{self, say},
};

/// Suites that can have what those of this machine have not. Debian 12 itself has the kernels 6.1 and 6.12.
const OTHER_SUITES: &[&str] = &["bullseye", "bullseye-security", "bookworm-backports", "trixie", "trixie-backports"];

/// Where what was fetched is kept: outside the checkout.
pub fn cache(name: &str) -> Result<PathBuf> {
    let folder = toolchain::cache().context("find the home folder to keep what is fetched in")?.join(name);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// Which lists of packages apt looks at.
pub enum Apt {
    /// This machine's.
    Own,
    /// Lists of its own, in this folder.
    Other(PathBuf, Arch),
}

impl Apt {
    /// The suites of this machine, for a processor.
    pub fn here(arch: Arch) -> Result<Self> {
        if arch == Arch::own()? {
            return Ok(Self::Own);
        }
        Self::listed(&format!("here-{}", arch.debian()), arch, &sources()?)
    }

    /// The mirror's other suites. Those that the mirror does not have are left out.
    pub fn elsewhere(arch: Arch) -> Result<Self> {
        let here = sources()?;
        let is_security = |suite: &str| suite.ends_with("-security");
        let like = |suite: &str| here.iter().find(|(_, known)| is_security(known) == is_security(suite));
        let other = OTHER_SUITES.iter().filter_map(|suite| Some((like(suite)?.0.clone(), (*suite).to_owned())));
        Self::listed(&format!("elsewhere-{}", arch.debian()), arch, &other.collect::<Vec<_>>())
    }

    /// Fetches the lists of these suites, sites beside them.
    fn listed(name: &str, arch: Arch, suites: &[(String, String)]) -> Result<Self> {
        let folder = cache("suites")?.join(name);
        fs::create_dir_all(folder.join("lists/partial"))?;
        fs::create_dir_all(folder.join("cache/archives/partial"))?;
        // Signed by a key that apt trusts anyhow: Debian 12 comes with those of the releases before and after.
        let lines = suites.iter().map(|(site, suite)| format!("deb {site} {suite} main\n"));
        fs::write(folder.join("sources.list"), lines.collect::<String>())?;
        let apt = Self::Other(folder, arch);
        apt.update()?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // Another user, as which apt would rather fetch, may not write where we stand.
        command.env("LC_ALL", "C").args(["-o", "APT::Sandbox::User=root"]).stdin(Stdio::null());
        if let Self::Other(folder, arch) = self {
            for (option, value) in [
                ("Dir::Etc::sourcelist", folder.join("sources.list")),
                ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
                ("Dir::State::lists", folder.join("lists")),
                ("Dir::Cache", folder.join("cache")),
                ("Dir::State::status", PathBuf::from("/dev/null")),
                ("APT::Architecture", arch.debian().into()),
                ("APT::Architectures", arch.debian().into()),
            ] {
                command.arg("-o").arg(format!("{option}={}", value.display()));
            }
        }
        command
    }

    /// A suite that is not there is a warning, and then nothing is found in it.
    fn update(&self) -> Result<()> {
        let _ = self.command("apt-get").args(["-qq", "update"]).status().context("run apt-get update")?;
        Ok(())
    }

    /// The packages whose names match a regular expression.
    pub fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let search = || say(self.command("apt-cache").args(["search", "--names-only", pattern]));
        let mut found = search()?;
        if found.trim().is_empty() && matches!(self, Self::Own) {
            // A machine that has never listed what there is.
            self.update()?;
            found = search()?;
        }
        Ok(found.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect())
    }

    /// A package's newest version.
    pub fn version(&self, package: &str) -> Result<String> {
        let policy = say(self.command("apt-cache").args(["policy", package]))?;
        let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
        Ok(candidate.with_context(|| format!("there is no package {package}"))?.to_owned())
    }

    /// What a package says that it needs, those that there are.
    pub fn needs(&self, package: &str) -> Result<Vec<String>> {
        let depends = say(self.command("apt-cache").args(["depends", "--no-recommends", package]))?;
        Ok(depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned).collect())
    }

    /// Unpacks these packages, and nothing that they need, into a new folder. A name can have a version: `name=1.0-1`.
    pub fn unpack(&self, packages: &[&str], folder: &Path) -> Result<()> {
        anew(folder, packages, |fetched| {
            workspace::run(self.command("apt-get").args(["-qq", "download"]).args(packages).current_dir(fetched))
        })
    }

    /// Unpacks these packages, with all they need that is not installed here, into a new folder.
    pub fn unpack_whole(&self, packages: &[&str], folder: &Path) -> Result<()> {
        anew(folder, packages, |fetched| {
            fs::create_dir(fetched.join("partial"))?;
            let mut fetch = self.command("apt-get");
            fetch.args(["-qq", "--yes", "--no-install-recommends", "--download-only", "-o"]);
            fetch.arg(format!("Dir::Cache::archives={}", fetched.display())).arg("install").args(packages);
            workspace::run(&mut fetch)
        })
    }
}

/// Makes a folder of the packages that `fetch` puts where it is told. Either it is whole, or it is not there.
fn anew(folder: &Path, packages: &[&str], fetch: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    println!("fetching {}", packages.join(" "));
    let above = folder.parent().context("a folder to keep it in")?;
    let work = tempfile::tempdir_in(above).with_context(|| format!("make a folder in {}", above.display()))?;
    fetch(work.path())?;
    let unpacked = work.path().join("unpacked");
    for entry in fs::read_dir(work.path())? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "deb") {
            workspace::run(Command::new("dpkg-deb").arg("--extract").arg(path).arg(&unpacked))?;
        }
    }
    if !unpacked.is_dir() {
        bail!("apt-get fetched nothing for {}", packages.join(" "));
    }
    fs::rename(&unpacked, folder).with_context(|| format!("keep {}", folder.display()))
}

/// The sites and suites that this machine's packages come from.
fn sources() -> Result<Vec<(String, String)>> {
    let targets = ["indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"];
    let listed = say(Command::new("apt-get").args(targets))?;
    let pair = |line: &str| line.split_once(' ').map(|(site, suite)| (site.to_owned(), suite.to_owned()));
    Ok(listed.lines().filter_map(pair).collect())
}
