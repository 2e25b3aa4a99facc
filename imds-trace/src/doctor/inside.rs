//! Which network namespaces of this host have clients in them, whose are they, and what do they look like from within?
//!
//! Containers of any engine are known by the cgroups of their processes, Docker's by the engine too, and namespaces that nobody is in
//! by their names. Each is entered by a thread of its own, which ends there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

use super::firewall::{self, Firewall};
use super::listeners::Listeners;
use crate::interfaces::nsid;
use crate::interfaces::snapshot::{self, Snapshot, Way};
use crate::kernel::programs::{self, Program};
use crate::sources::listing::Running;
use crate::sources::runtime::Runtimes;
use diagnosis::identity::cgroup;
use diagnosis::net::{Ifindex, bounded};
use diagnosis::way::network::Kind;

/// Bytes of a container's name that are kept: engines allow no longer ones in practice.
const MAX_NAME: usize = 128;
/// Digits of an id that are told.
const SHORT_ID: usize = 12;
/// Namespaces that are entered at most, and processes that are looked at.
const MAX_NAMESPACES: usize = 1024;
const MAX_PROCESSES: usize = 65_536;
/// Cgroups of one namespace that are looked at.
const MAX_CGROUPS: usize = 64;
/// Where namespaces have names: those of `ip netns` and of CNI plugins. In a container with the host's processes, the second has the
/// host's.
const NAMED: [&str; 2] = ["/run/netns", "/proc/1/root/run/netns"];

/// What a namespace looks like from within.
#[derive(Clone, Debug)]
pub struct View {
    /// Its network; the error is a sentence.
    pub network: Result<Snapshot, String>,
    /// Its rules.
    pub firewall: Firewall,
    /// Who listens in it.
    pub listeners: Listeners,
    /// Its links whose other end, or what they are stacked on, is in the host's namespace: theirs, the host's.
    pub outward: BTreeMap<Ifindex, Ifindex>,
    /// What hangs on its links that could decide about packets; the error is what would be needed to know.
    pub programs: Result<BTreeMap<Ifindex, Vec<Program>>, String>,
}

/// A network namespace that is not the host's, and who is in it.
#[derive(Clone, Debug)]
pub struct Inside {
    /// Names of its containers.
    pub containers: Vec<String>,
    /// A process in it.
    pub pid: Option<u32>,
    /// Its file, where it has a name.
    pub path: Option<PathBuf>,
    /// Paths of its processes' cgroups, of version 2.
    pub cgroups: BTreeSet<String>,
    /// What it looks like; the error says why nobody could look, and what would be needed.
    pub view: Result<View, String>,
}

impl Inside {
    /// `container job-17`, or the first of several that share it.
    pub fn name(&self) -> String {
        super::some_of(&self.containers)
    }

    /// A command that runs in this namespace.
    pub fn command(&self, command: &str) -> String {
        match (self.pid, &self.path) {
            (Some(pid), _) => format!("nsenter -t {pid} -n {command}"),
            (None, Some(path)) => {
                let path = diagnosis::printable::shell_word(&path.to_string_lossy());
                format!("nsenter --net={path} {command}")
            }
            (None, None) => command.to_owned(),
        }
    }

    /// Its network, if that could be seen.
    pub fn network(&self) -> Option<&Snapshot> {
        self.view.as_ref().ok()?.network.as_ref().ok()
    }

    /// The host's end of the link by which it reaches an endpoint.
    pub fn host_end(&self, endpoint: IpAddr) -> Option<Ifindex> {
        let view = self.view.as_ref().ok()?;
        view.outward.get(&view.network.as_ref().ok()?.leaves_by(endpoint)?).copied()
    }
}

/// What is there before anybody has looked inside.
#[derive(Debug)]
struct Found {
    file: Result<File, String>,
    inode: Option<u64>,
    containers: Vec<String>,
    /// Is it a container by its cgroup, or by the engine?
    named: bool,
    /// Does the engine know it?
    listed: bool,
    pid: Option<u32>,
    path: Option<PathBuf>,
    cgroups: BTreeSet<String>,
}

impl Found {
    fn listeners(&self) -> Result<Listeners, String> {
        let path = self.pid.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net"))).or_else(|| self.path.clone());
        let (path, inode) = path.zip(self.inode).ok_or("its network namespace has no file")?;
        Ok(Listeners::of(path, inode))
    }
}

/// Looks into each namespace that is not the host's and has clients of this host, once. `host` is the host's network.
pub fn look(containers: &[Running], runtimes: &Runtimes, endpoints: &[IpAddr], host: Option<&Snapshot>) -> Vec<Inside> {
    let own = File::open("/proc/thread-self/ns/net").ok();
    let inode = |file: &File| file.metadata().map(|data| data.ino()).ok();
    let own_inode = own.as_ref().and_then(inode);
    let found = std::thread::scope(|scope| {
        let finding = scope.spawn(|| {
            see_all_cgroups();
            find(containers, runtimes, own_inode)
        });
        finding.join().unwrap_or_default()
    });
    // All containers of this machine are this host's, if its namespace is the machine's.
    let is_machine = std::fs::metadata("/proc/1/ns/net").map(|data| data.ino()).ok() == own_inode;
    let uplinks: BTreeSet<Ifindex> =
        endpoints.iter().filter_map(|endpoint| host.and_then(|host| host.leaves_by(*endpoint))).collect();
    let looked = in_parallel(&found, &|one: &Found| {
        one.file.as_ref().map_err(Clone::clone).and_then(|file| enter(file, own.as_ref(), endpoints, one.listeners()?))
    });
    let mut insides = Vec::new();
    for (one, view) in found.into_iter().zip(looked) {
        let Found { containers, named, listed, pid, path, cgroups, .. } = one;
        let inside = Inside { containers, pid, path, cgroups, view };
        if listed || is_client(&inside, named, is_machine, endpoints, &uplinks) {
            insides.push(inside);
        }
    }
    insides
}

/// Do its requests go by this host, as far as can be seen?
fn is_client(
    inside: &Inside,
    named: bool,
    is_machine: bool,
    endpoints: &[IpAddr],
    uplinks: &BTreeSet<Ifindex>,
) -> bool {
    let Ok(view) = &inside.view else { return named && is_machine };
    let by = |endpoint: &IpAddr| match view.network.as_ref().ok()?.way(*endpoint)? {
        // Who sends his requests to this host is a client of it, wherever the host sends its own.
        Way::Out { interface, .. } => Some(view.outward.contains_key(interface)),
        Way::Nowhere { .. } => Some(view.outward.values().any(|end| !uplinks.contains(end))),
        // What IMDS itself would say, or a stand-in for it.
        Way::Local | Way::Unknown(_) => Some(false),
    };
    let ways: Vec<bool> = endpoints.iter().filter(|endpoint| endpoint.is_ipv4()).filter_map(by).collect();
    match ways.contains(&true) {
        true => true,
        // In a namespace that is not the machine's, others may have theirs beside it.
        false => named && (is_machine || !view.outward.is_empty()),
    }
}

fn in_parallel(found: &[Found], look: &(dyn Fn(&Found) -> Result<View, String> + Sync)) -> Vec<Result<View, String>> {
    const AT_ONCE: usize = 4;
    let each = found.len().div_ceil(AT_ONCE).max(1);
    std::thread::scope(|scope| {
        let parts: Vec<_> = found
            .chunks(each)
            .map(|part| (part.len(), scope.spawn(move || part.iter().map(look).collect::<Vec<_>>())))
            .collect();
        let failed = || Err("looking into its network namespace failed".to_owned());
        parts
            .into_iter()
            .flat_map(|(many, part)| part.join().unwrap_or_else(|_| (0..many).map(|_| failed()).collect()))
            .collect()
    })
}

/// In a container with the host's processes, paths of cgroups are told from its own on, unless asked from the first process's.
fn see_all_cgroups() {
    if let Ok(first) = File::open("/proc/1/ns/cgroup")
        && let Err(error) = setns(first, CloneFlags::CLONE_NEWCGROUP)
    {
        log::debug!("the first process's cgroup namespace cannot be entered: {error}");
    }
}

/// Namespaces of the engine's containers, of processes, and those with names.
fn find(containers: &[Running], runtimes: &Runtimes, own: Option<u64>) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for container in containers.iter().filter(|container| container.mode != "host") {
        let name = bounded(&container.name, MAX_NAME).to_owned();
        let file = open(container);
        let inode = file.as_ref().ok().and_then(|file| file.metadata().ok()).map(|data| data.ino());
        if inode.is_some() && inode == own {
            continue;
        }
        if let Some(known) = found.iter_mut().find(|known| known.inode.is_some() && known.inode == inode) {
            known.containers.push(name);
            continue;
        }
        let (containers, pid) = (vec![name], container.pid);
        let cgroups = BTreeSet::new();
        found.push(Found { file, inode, containers, named: true, listed: true, pid, path: None, cgroups });
    }
    let mut known: BTreeMap<u64, usize> =
        found.iter().enumerate().filter_map(|(index, one)| Some((one.inode?, index))).collect();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids.take(MAX_PROCESSES) {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let Ok(data) = std::fs::metadata(&path) else { continue };
        if Some(data.ino()) == own {
            continue;
        }
        let one = match known.get(&data.ino()) {
            Some(index) => &mut found[*index],
            None if found.len() < MAX_NAMESPACES => {
                let Ok(file) = File::open(&path) else { continue };
                let inode = file.metadata().ok().map(|data| data.ino());
                known.insert(data.ino(), found.len());
                found.push(Found {
                    file: Ok(file),
                    inode,
                    containers: Vec::new(),
                    named: false,
                    listed: false,
                    pid: Some(pid),
                    path: None,
                    cgroups: BTreeSet::new(),
                });
                let Some(last) = found.last_mut() else { continue };
                last
            }
            None => continue,
        };
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        if let Some(path) = cgroups.lines().find_map(|line| line.strip_prefix("0::"))
            && one.cgroups.len() < MAX_CGROUPS
        {
            one.cgroups.insert(path.to_owned());
        }
        if one.listed {
            continue;
        }
        if let Some(named) = cgroup::read(&cgroups) {
            let is_listed = containers.iter().any(|container| container.id == named.outer.id);
            // A user may call a cgroup of his own after somebody else's container.
            if is_listed && named.user != 0 {
                continue;
            }
            let told = runtimes.network_of(&cgroups).filter(|_| !is_listed);
            let name =
                told.map(|name| bounded(&name, MAX_NAME).to_owned()).unwrap_or_else(|| name_of(&named, containers));
            one.named = true;
            if !one.containers.contains(&name) {
                one.containers.push(name);
            }
        }
    }
    for entry in NAMED.into_iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten() {
        let path = entry.path();
        // A file that is no namespace cannot be entered.
        let Ok(data) = std::fs::metadata(&path) else { continue };
        if Some(data.ino()) == own {
            continue;
        }
        match known.get(&data.ino()) {
            Some(index) => {
                found[*index].path.get_or_insert(path);
            }
            None if found.len() < MAX_NAMESPACES => {
                let file = File::open(&path).map_err(|error| error.to_string());
                known.insert(data.ino(), found.len());
                let (inode, containers) = (Some(data.ino()), Vec::new());
                found.push(Found {
                    file,
                    inode,
                    containers,
                    named: false,
                    listed: false,
                    pid: None,
                    path: Some(path),
                    cgroups: BTreeSet::new(),
                });
            }
            None => {}
        }
    }
    for one in found.iter_mut().filter(|one| one.containers.is_empty()) {
        let name = one.path.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        let name = name.map(|name| format!("namespace {}", bounded(&name, MAX_NAME)));
        one.containers.push(name.unwrap_or_else(|| format!("pid {}", one.pid.unwrap_or_default())));
    }
    found
}

/// What a container is called whose engine did not list this namespace as its own.
fn name_of(named: &cgroup::Cgroup, listed: &[Running]) -> String {
    if let Some(outer) = listed.iter().find(|container| container.id == named.outer.id) {
        return format!("{} (another network namespace in it)", bounded(&outer.name, MAX_NAME));
    }
    let id = bounded(&named.outer.id, MAX_NAME);
    let is_id = id.len() >= 2 * SHORT_ID && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let short = if is_id { bounded(id, SHORT_ID) } else { id };
    named.outer.runtime.map_or_else(|| short.to_owned(), |runtime| format!("{} {short}", runtime.noun()))
}

/// The namespace of a container's first process, if that is a process here: an engine elsewhere has other numbers.
fn open(container: &Running) -> Result<File, String> {
    let pid = container.pid.ok_or("the engine names no process of it")?;
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
    let cgroups = cgroups.map_err(|_| format!("its process {pid} is not visible here"))?;
    if cgroup::read(&cgroups).is_none_or(|found| found.outer.id != container.id) {
        return Err(format!("process {pid} of this host is not the container's: does the engine run elsewhere?"));
    }
    File::open(format!("/proc/{pid}/ns/net")).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => "needs root to look into its network namespace".to_owned(),
        _ => format!("its network namespace cannot be opened: {error}"),
    })
}

/// What hangs on the links of the calling thread's namespace.
pub fn on_links(network: &Result<Snapshot, String>) -> Result<BTreeMap<Ifindex, Vec<Program>>, String> {
    network.as_ref().map_err(Clone::clone).and_then(|network| programs::on_links(network.links.values()))
}

fn enter(namespace: &File, host: Option<&File>, endpoints: &[IpAddr], listeners: Listeners) -> Result<View, String> {
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|error| match error {
                nix::Error::EPERM => "needs root to look into its network namespace".to_owned(),
                error => format!("its network namespace cannot be entered: {error}"),
            })?;
            let network = snapshot::look(endpoints).map_err(|error| error.to_string());
            // The kernel gives the number when links are listed.
            let number = host.and_then(|host| nsid::number(host).ok().flatten());
            let outward = network.iter().flat_map(|network| network.links.values()).filter_map(|link| {
                let leads_there = matches!(link.kind, Kind::Pair | Kind::Macvlan | Kind::Ipvlan | Kind::Vlan);
                Some((
                    link.index,
                    link.other.filter(|_| leads_there && number.is_some() && link.other_netns == number)?,
                ))
            });
            let outward = outward.collect();
            let programs = on_links(&network);
            Ok(View { network, firewall: firewall::read(), listeners, outward, programs })
        });
        looking.join().unwrap_or_else(|_| Err("looking into its network namespace failed".into()))
    })
}
