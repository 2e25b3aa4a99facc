//! What does /proc say of a process that connects? Bounded reads; a process may end between any two of them.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::runtime::Runtimes;
use diagnosis::identity::Container;
use diagnosis::identity::cgroup::{self, Cgroup};
use diagnosis::identity::fact::{self, Ancestor, CUT, Connecting, ContainerDetail, ProcessDetail, TICK, Told};
use diagnosis::identity::pod::Pod;
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
/// Containers named at most where several have a name.
const MAX_NAMES: usize = 5;
/// Processes remembered at most, to say only what is new.
const MAX_KNOWN: usize = 4096;
/// A process of which the kernel half says the same again is not looked at again so soon: only its cgroups of version 1 can have
/// changed since.
const SO_SOON: Duration = Duration::from_secs(1);

/// Several containers are called so; some of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Several(pub String);

/// A container that was asked for by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// As it is to be called.
    pub name: String,
    /// A process of it; `None` if it is not running.
    pub pid: Option<u32>,
    /// What is known of it.
    pub detail: ContainerDetail,
}

/// Reads /proc and remembers what it said.
#[derive(Debug)]
pub struct Procfs {
    root: PathBuf,
    known: HashMap<u32, (u32, ProcessDetail)>,
    /// What the kernel half said of a process when /proc was asked last, and when that was.
    asked: HashMap<u32, (Timestamp, Asked)>,
    /// Is the version 2 hierarchy the only one? Then the kernel half knows every cgroup, too.
    is_unified: bool,
}

/// All by which the kernel half tells one process, and one program in it, from another.
type Asked = (Option<Timestamp>, u64, String, Arc<Told>);

impl Default for Procfs {
    fn default() -> Self {
        let is_unified = fs::read_to_string("/proc/self/cgroup").is_ok_and(|text| is_unified(&text));
        Self { root: PathBuf::from("/proc"), known: HashMap::new(), asked: HashMap::new(), is_unified }
    }
}

impl Procfs {
    /// Can /proc say more of a process that connects at `at` than the kernel half did, or than /proc did a moment ago? If so, it
    /// is to be asked. Four files a connect are a quarter of what following one costs.
    pub fn is_needed(&mut self, at: Timestamp, task: &Connecting) -> bool {
        let was_asked = self.known.contains_key(&task.pid);
        if self.is_unified && !was_asked && task.started.is_some() && says_all(&task.told) {
            return false;
        }
        let asked = (task.started, task.cgroup, task.comm.clone(), Arc::clone(&task.told));
        if let Some((last, known)) = self.asked.get(&task.pid)
            && was_asked
            && *known == asked
            && at.since(*last) < SO_SOON
        {
            return false;
        }
        if self.asked.len() >= MAX_KNOWN {
            self.asked.clear();
        }
        self.asked.insert(task.pid, (at, asked));
        true
    }

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

    /// The container that is called so: by its name, with those of its pod and namespace before it, by that of its pod, or by its id or
    /// the beginning of that. An error if there are several. Of its processes the one with the lowest number: mostly the one that the
    /// container began with.
    pub fn of_container(&self, wanted: &str, runtimes: &Runtimes) -> Result<Option<Found>, Several> {
        let mut running: HashMap<(String, u32), (u32, Cgroup)> = HashMap::new();
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let Some(text) = read(&entry.path().join("cgroup"), MAX_FILE) else { continue };
            let Some(within) = cgroup::read(&text) else { continue };
            let id = within.inner.as_ref().map_or(&within.outer.id, |inner| &inner.id).clone();
            running
                .entry((id, within.user))
                .and_modify(|(lowest, _)| *lowest = pid.min(*lowest))
                .or_insert((pid, within));
        }
        // A user may call a cgroup of his own after a container of root's.
        let roots: HashSet<String> = running.keys().filter(|(_, user)| *user == 0).map(|(id, _)| id.clone()).collect();
        running.retain(|(id, user), _| *user == 0 || !roots.contains(id));
        let mut found: Vec<(bool, Found)> = Vec::new();
        for ((id, _), (pid, within)) in running {
            let said = runtimes.describe(&within).filter(|_| within.inner.is_none()).unwrap_or_default();
            let pod = within.pod.as_deref().map(|uid| Pod::of_uid(uid).with(said.pod.as_ref())).or(said.pod);
            let container = Container {
                id: id.clone(),
                name: said.name.clone(),
                pod: pod.clone().map(Arc::new),
                ..Container::default()
            };
            let is_pod = pod.as_ref().is_some_and(|pod| pod.is_called(wanted));
            // By a name, or by the whole id.
            let is_exact = is_pod || id == wanted || container.name.as_deref() == Some(wanted) || wanted.contains('/');
            if is_pod || container.is_called(wanted) {
                let name = container.handle();
                let detail = ContainerDetail { id, pod, ..said };
                found.push((is_exact, Found { name, pid: Some(pid), detail }));
            }
        }
        if found.iter().any(|(is_exact, _)| *is_exact) {
            found.retain(|(is_exact, _)| *is_exact);
        }
        let mut found: Vec<Found> = found.into_iter().map(|(_, found)| found).collect();
        // The sandbox, which has no name, last: any container of a pod stands for its network.
        found.sort_by_key(|found| (found.detail.name.is_none(), found.name.clone()));
        let of_pod = |found: &Found| {
            found.detail.pod.as_ref().filter(|pod| pod.is_called(wanted)).and_then(|pod| pod.uid.clone())
        };
        let first = found.first().and_then(of_pod);
        if found.len() > 1 && (first.is_none() || found.iter().any(|found| of_pod(found) != first)) {
            let names: Vec<String> = found.iter().take(MAX_NAMES).map(|found| found.name.clone()).collect();
            return Err(Several(names.join(", ")));
        }
        Ok(found.into_iter().next())
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
            found.push(Ancestor { pid, comm: fact::comm(comm.trim_end()) });
            pid = stat(&dir).map_or(0, |(parent, _)| parent);
        }
        found
    }
}

/// Is nothing missing, and nothing cut?
fn says_all(told: &Told) -> bool {
    let is_whole = |path: &Option<String>| path.as_ref().is_some_and(|path| !path.starts_with(CUT));
    let argv_is_whole = told.argv.as_ref().and_then(|argv| argv.last()).is_some_and(|last| last != CUT);
    is_whole(&told.exe) && is_whole(&told.cgroup) && argv_is_whole && !told.ancestors.is_empty()
}

/// Every hierarchy has a line; that of version 2 begins with a 0 and names no controller.
fn is_unified(cgroups: &str) -> bool {
    !cgroups.is_empty() && cgroups.lines().all(|line| line.starts_with("0::"))
}

/// The pid namespace of the host's processes: that of the first one, which is our own where we may not look.
pub fn host_pid_namespace() -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let of = |process: &str| fs::metadata(Path::new("/proc").join(process).join("ns/pid")).ok();
    of("1").or_else(|| of("self")).and_then(|namespace| u32::try_from(namespace.ino()).ok())
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
    use diagnosis::net::Endpoint;

    use super::*;

    #[test]
    fn of_several_cgroup_paths_the_one_that_names_a_container_is_kept() {
        let text = "4:memory:/a/path/that/is/longer/than/the/other/one/and/says/nothing\n\
                    2:cpu:/docker/buildkit/k3j4h5g6f7d8s9a0q1w2e3r4t\n0::/\n";
        assert_eq!(cgroup_path(text).as_deref(), Some("/docker/buildkit/k3j4h5g6f7d8s9a0q1w2e3r4t"));
        assert_eq!(cgroup_path("1:cpu:/\n0::/init.scope\n").as_deref(), Some("/init.scope"));
    }

    fn task() -> Connecting {
        let end = Endpoint { address: "169.254.169.254".parse().expect("an address"), port: 80 };
        let told = Told {
            exe: Some("/usr/bin/curl".into()),
            argv: Some(vec!["curl".into()]),
            cgroup: Some("/system.slice".into()),
            ancestors: vec![Ancestor { pid: 1, comm: "init".into() }],
        };
        Connecting {
            socket: 1,
            destination: end,
            netns: Netns(1),
            pid: std::process::id(),
            tid: 1,
            uid: 0,
            gid: 0,
            comm: "curl".into(),
            cgroup: 1,
            ttl: None,
            started: Some(Timestamp(1)),
            pid_namespace: None,
            inner_pid: None,
            told: Arc::new(told),
        }
    }

    #[test]
    fn what_the_kernel_half_told_whole_is_not_asked_for() {
        let mut procfs = Procfs { is_unified: true, ..Procfs::default() };
        assert!(!procfs.is_needed(Timestamp(0), &task()));
        let mut cut = task();
        Arc::make_mut(&mut cut.told).argv = Some(vec!["curl".into(), CUT.into()]);
        assert!(procfs.is_needed(Timestamp(0), &cut));
        let mut unknown = task();
        Arc::make_mut(&mut unknown.told).exe = None;
        assert!(procfs.is_needed(Timestamp(0), &unknown));
        let mut hybrid = Procfs { is_unified: false, ..Procfs::default() };
        assert!(hybrid.is_needed(Timestamp(0), &task()), "its cgroups of version 1 are not known");
    }

    #[test]
    fn the_same_process_is_not_asked_for_again_so_soon() {
        let mut procfs = Procfs { is_unified: false, ..Procfs::default() };
        let task = task();
        assert!(procfs.is_needed(Timestamp(0), &task));
        assert!(procfs.is_needed(Timestamp(1), &task), "it was not there, or not asked for");
        procfs.describe(task.pid);
        assert!(!procfs.is_needed(Timestamp(2), &task));
        let mut anew = task.clone();
        Arc::make_mut(&mut anew.told).argv = Some(vec!["wget".into()]);
        assert!(procfs.is_needed(Timestamp(3), &anew), "it runs another program");
        assert!(procfs.is_needed(Timestamp(2_000_000_000), &anew), "it may have been moved since");
    }

    #[test]
    fn one_hierarchy_is_told_from_several() {
        assert!(is_unified("0::/system.slice/docker.service\n"));
        assert!(!is_unified("1:cpu:/\n0::/\n"));
        assert!(!is_unified(""));
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
