//! Where are cgroups of version 2, and how does a process get one of its own?

use std::path::PathBuf;

use anyhow::{Context, Result};

/// Where cgroups of version 2 are.
pub(crate) fn hierarchy() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let words = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found =
        words.filter(|words| words.get(2) == Some(&"cgroup2")).find_map(|words| Some(words.get(1)?.to_string()));
    found.map(PathBuf::from).context("no cgroups of version 2 are mounted: systemd needs them")
}

/// A cgroup that one process is in, below the one that it was in. It goes back there when this is dropped.
#[derive(Debug)]
pub struct OwnCgroup {
    /// Its folder.
    pub folder: PathBuf,
    above: PathBuf,
    pid: u32,
}

impl OwnCgroup {
    /// Makes one for a process.
    pub fn of(pid: u32) -> Result<Self> {
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let path = cgroups.lines().find_map(|line| line.strip_prefix("0::")).context("a cgroup of version 2")?;
        let above = hierarchy()?.join(path.trim_start_matches('/'));
        let folder = above.join(format!("imdslab-{}", std::process::id()));
        std::fs::create_dir(&folder)?;
        let own = Self { folder, above, pid };
        std::fs::write(own.folder.join("cgroup.procs"), pid.to_string())?;
        Ok(own)
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let _ = std::fs::write(self.above.join("cgroup.procs"), self.pid.to_string());
        let _ = std::fs::remove_dir(&self.folder);
    }
}
