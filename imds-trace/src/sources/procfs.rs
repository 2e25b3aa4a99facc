//! What does /proc say of a process that connects? Bounded reads; a process may end between any two of them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use diagnosis::identity::cgroup;
use diagnosis::identity::fact::{self, Ancestor, ProcessDetail, TICK};
use diagnosis::net::{Netns, Timestamp, bounded};
use diagnosis::secret;

/// Ancestors read at most.
const MAX_ANCESTORS: usize = 8;
/// Bytes of a command line that are kept; the rest is cut.
const MAX_ARGV: u64 = 4096;
/// Bytes of a cgroup path that are kept; those of nested containers have some hundred.
const MAX_CGROUP: usize = 1024;
/// Bytes of an executable's path that are kept.
const MAX_EXE: usize = 1024;
/// Bytes read of any other file: cgroup paths of nested containers have some hundred bytes a line.
const MAX_FILE: u64 = 16 * 1024;
/// Processes remembered at most, to say only what is new.
const MAX_KNOWN: usize = 4096;

/// Reads /proc and remembers what it said.
#[derive(Debug)]
pub struct Procfs {
    root: PathBuf,
    known: HashMap<u32, (u32, ProcessDetail)>,
}

impl Default for Procfs {
    fn default() -> Self {
        Self { root: PathBuf::from("/proc"), known: HashMap::new() }
    }
}

impl Procfs {
    /// What is new about a process that has just connected; `None` if nothing is. A process that is gone already has nothing but
    /// its number: that too is new if something else was said of that number before.
    pub fn describe(&mut self, pid: u32) -> Option<ProcessDetail> {
        let dir = self.root.join(pid.to_string());
        // What matters most first. The executable goes with the process: if it is there now, the cgroup was the process's.
        let cgroups = read(&dir.join("cgroup"), MAX_FILE).unwrap_or_default();
        let exe = fs::read_link(dir.join("exe")).ok();
        let (parent, started) = stat(&dir).unzip();
        let argv = argv(&dir);
        let known = self.known.get(&pid);
        let Some(exe) = exe else {
            self.known.remove(&pid);
            return Some(ProcessDetail::gone(pid));
        };
        let ancestors = match (known, parent) {
            (Some((known_parent, detail)), Some(parent)) if *known_parent == parent => detail.ancestors.clone(),
            (_, Some(parent)) => self.ancestors(parent),
            (_, None) => Vec::new(),
        };
        let exe = Some(bounded(&secret::mask(&exe.to_string_lossy()), MAX_EXE).to_owned());
        let (cgroup, container) = (cgroup_path(&cgroups), cgroup::read(&cgroups).map(|named| named.outer.id));
        let detail = ProcessDetail { pid, found: true, started, exe, argv, cgroup, container, ancestors };
        if known.is_some_and(|(_, known)| *known == detail) {
            return None;
        }
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert(pid, (parent.unwrap_or(0), detail.clone()));
        Some(detail)
    }

    /// The network namespace that a process is in.
    pub fn netns(&self, pid: u32) -> Option<Netns> {
        netns(&self.root.join(pid.to_string()))
    }

    fn ancestors(&self, mut pid: u32) -> Vec<Ancestor> {
        let mut found = Vec::new();
        while pid != 0 && found.len() < MAX_ANCESTORS {
            let dir = self.root.join(pid.to_string());
            let Some(comm) = read(&dir.join("comm"), 64) else { break };
            found.push(Ancestor { pid, comm: comm.trim_end().to_owned() });
            pid = stat(&dir).map_or(0, |(parent, _)| parent);
        }
        found
    }
}

/// Our own network namespace; 0 if it cannot be read.
pub fn own_netns() -> Netns {
    netns(Path::new("/proc/self")).unwrap_or_default()
}

/// `IpInHdrErrors` and `Ip6InHdrErrors` of our own network namespace.
pub fn in_hdr_errors() -> (u64, u64) {
    let v4 = fs::read_to_string("/proc/self/net/snmp").ok().and_then(|text| v4_in_hdr_errors(&text));
    let v6 = fs::read_to_string("/proc/self/net/snmp6")
        .ok()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("Ip6InHdrErrors")?.trim().parse().ok()));
    (v4.unwrap_or(0), v6.unwrap_or(0))
}

/// A line of names and a line of numbers, each beginning with `Ip:`.
fn v4_in_hdr_errors(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
    let column = lines.next()?.split_whitespace().position(|name| name == "InHdrErrors")?;
    lines.next()?.split_whitespace().nth(column)?.parse().ok()
}

fn netns(dir: &Path) -> Option<Netns> {
    use std::os::unix::fs::MetadataExt;
    let inode = fs::metadata(dir.join("ns/net")).ok()?.ino();
    u32::try_from(inode).ok().map(Netns)
}

fn read(path: &Path, limit: u64) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(limit).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn argv(dir: &Path) -> Option<Vec<String>> {
    let text = read(&dir.join("cmdline"), MAX_ARGV)?;
    fact::command_line(&text, text.len() as u64 >= MAX_ARGV)
}

/// Parent and start: fields 4 and 22 of `stat`.
fn stat(dir: &Path) -> Option<(u32, Timestamp)> {
    parent_and_start(&read(&dir.join("stat"), MAX_FILE)?)
}

/// The second field, the name, may hold spaces and brackets: the last bracket ends it.
fn parent_and_start(stat: &str) -> Option<(u32, Timestamp)> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let ticks: u64 = fields.nth(17)?.parse().ok()?;
    Some((parent, Timestamp(ticks.saturating_mul(TICK))))
}

/// The path that says most: the one that names a container, or one in it; else the longest. On a version 1 or hybrid host every controller has its own, some of them `/`.
fn cgroup_path(cgroups: &str) -> Option<String> {
    let paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let told = |path: &str| cgroup::read_path(path).map_or(0, |named| 1 + u8::from(named.inner.is_some()));
    paths.max_by_key(|path| (told(path), path.len())).map(|path| bounded(path, MAX_CGROUP).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_cgroup_paths_the_one_that_names_a_container_is_kept() {
        let text = "4:memory:/a/path/that/is/longer/than/the/other/one/and/says/nothing\n\
                    2:cpu:/docker/buildkit/k3j4h5g6f7d8s9a0q1w2e3r4t\n0::/\n";
        assert_eq!(cgroup_path(text).as_deref(), Some("/docker/buildkit/k3j4h5g6f7d8s9a0q1w2e3r4t"));
        assert_eq!(cgroup_path("1:cpu:/\n0::/init.scope\n").as_deref(), Some("/init.scope"));
    }

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_hide_the_parent() {
        let mut procfs = Procfs::default();
        let detail = procfs.describe(std::process::id()).expect("this process is there");
        assert_eq!(detail.ancestors.first().map(|parent| parent.pid), Some(std::os::unix::process::parent_id()));
        assert_eq!(procfs.describe(std::process::id()), None, "nothing new");
    }

    #[test]
    fn the_start_is_the_twenty_second_field() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 1234 9 9";
        assert_eq!(parent_and_start(stat), Some((1, Timestamp(12_340_000_000))));
        assert_eq!(parent_and_start("7 (a) S 1"), None);
    }

    #[test]
    fn the_counter_is_read_by_its_name() {
        assert_eq!(
            v4_in_hdr_errors("Ip: Forwarding DefaultTTL InReceives InHdrErrors\nIp: 1 64 5 7\nIcmp: x\n"),
            Some(7)
        );
        assert_eq!(v4_in_hdr_errors("Ip: Forwarding\nIp: 1\n"), None);
    }
}
