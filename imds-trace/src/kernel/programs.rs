//! Which BPF programs and traffic control filters hang on interfaces and cgroups, where they could decide about packets?
//!
//! Only asked for, never read: what a program does with a packet is not known from here. Our own are not told.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use aya::programs::{ProgramInfo, loaded_programs};
use nix::libc;

use super::features::cgroup2_root;
use super::hooks::is_ours;
use super::netlink::Netlink;
use diagnosis::event::Missing;
use diagnosis::net::{Direction, Ifindex};
use diagnosis::printable::printable;
use diagnosis::way::network::{Kind, Link};
use diagnosis::words::counted;

/// `BPF_PROG_QUERY` of `include/uapi/linux/bpf.h`.
const PROG_QUERY: libc::c_long = 16;
/// `BPF_F_QUERY_EFFECTIVE`: those of the parents too, as they are run.
const EFFECTIVE: u32 = 1;
/// Programs that one place can have: `BPF_MPROG_MAX` and `BPF_CGROUP_MAX_PROGS` are 64, the latter for each cgroup on the way.
const MAX_PROGRAMS: usize = 256;

/// Kinds of attachment to an interface (`enum bpf_attach_type`), by their names, and those that a pair of netkit devices has besides.
const ON_LINK: [(u32, &str); 2] = [(46, "tcx ingress"), (47, "tcx egress")];
const ON_NETKIT: [(u32, &str); 2] = [(54, "netkit primary"), (55, "netkit peer")];
/// Kinds of attachment to a cgroup that can refuse a connection or a packet.
const ON_CGROUP: [(u32, &str); 5] = [
    (0, "cgroup ingress"),
    (1, "cgroup egress"),
    (2, "cgroup sock_create"),
    (10, "cgroup connect4"),
    (11, "cgroup connect6"),
];

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR` of `include/uapi/linux/bpf.h`.
const CGROUP_SOCK_ADDR: u32 = 18;
/// How those of them begin that are run in connect().
const IN_CONNECT: &str = "cgroup connect";
/// What is missing where somebody may have changed it before it was seen.
const CALLED: &str = "connect() as it was called";
/// Cgroups that are looked at for programs; a host has some thousands at most.
const MAX_CGROUPS: usize = 16_384;
/// Bytes of a program's name that are shown.
const MAX_NAME: usize = 32;

/// Something that may decide.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Program {
    /// The kernel's number for it; `None` for a filter that is no BPF program.
    pub id: Option<u32>,
    /// What the filter is called, or its kind; a program's own name is asked for by its number.
    pub filter: Option<String>,
    /// How it is attached: `tcx ingress`.
    pub how: &'static str,
}

/// What hangs on each of these interfaces of the calling thread's network namespace; the error says what would be needed.
pub fn on_links<'a>(links: impl Iterator<Item = &'a Link>) -> Result<BTreeMap<Ifindex, Vec<Program>>, String> {
    let netlink = Netlink::open().map_err(|error| error.to_string())?;
    let classified: BTreeSet<Ifindex> = netlink.classified().map_err(|error| error.to_string())?.into_iter().collect();
    let mut found: BTreeMap<Ifindex, Vec<Program>> = BTreeMap::new();
    for link in links {
        let mut here = Vec::new();
        if let Some(id) = link.xdp {
            here.push(Program { id: Some(id), filter: None, how: "XDP" });
        }
        let netkit: &[_] = if link.kind == Kind::Pair { &ON_NETKIT } else { &[] };
        for (kind, how) in ON_LINK.iter().chain(netkit) {
            let ids = query(link.index.0, *kind, 0).map_err(denied)?;
            here.extend(ids.into_iter().map(|id| Program { id: Some(id), filter: None, how }));
        }
        for (direction, how) in [(Direction::Ingress, "tc filter ingress"), (Direction::Egress, "tc filter egress")] {
            if !classified.contains(&link.index) {
                continue;
            }
            let filters = netlink.filters(link.index, direction).map_err(|error| error.to_string())?;
            here.extend(filters.into_iter().map(|filter| Program {
                id: filter.id,
                filter: Some(filter.program.unwrap_or(filter.kind)),
                how,
            }));
        }
        if !here.is_empty() {
            found.insert(link.index, here);
        }
    }
    Ok(found)
}

/// What processes of a cgroup meet, its parents' programs included, and the cgroup that each hangs on, if that can be seen.
pub fn of_cgroup(root: &Path, path: &str) -> Result<Vec<(Program, Option<String>)>, String> {
    let relative = path.trim_start_matches('/');
    let open = |path: &Path| File::open(path).map_err(|error| format!("its cgroup cannot be opened: {error}"));
    let cgroup = open(&root.join(relative))?;
    let mut found = Vec::new();
    for (kind, how) in ON_CGROUP {
        for id in query(cgroup.as_raw_fd().cast_unsigned(), kind, EFFECTIVE).map_err(denied)? {
            let hangs_here = |path: &&Path| {
                let there = File::open(root.join(path));
                there.is_ok_and(|cgroup| {
                    query(cgroup.as_raw_fd().cast_unsigned(), kind, 0).is_ok_and(|ids| ids.contains(&id))
                })
            };
            let at = Path::new(relative).ancestors().find(hangs_here);
            let at = at.map(|path| format!("/{}", path.display()));
            found.push((Program { id: Some(id), filter: None, how }, at));
        }
    }
    Ok(found)
}

/// Is there a program of others in connect(), on whatever cgroup? It may send a connection elsewhere before the root cgroup's programs,
/// ours among them, see where to: those of the cgroups below run first. Gives what is not seen then. To be asked before ours are there:
/// without CAP_SYS_ADMIN nobody can tell whose they are.
pub fn others_in_connect() -> Option<Missing> {
    let is_in_cgroups = |program: ProgramInfo| program.program_type() as u32 == CGROUP_SOCK_ADDR;
    let mut loaded = loaded_programs().peekable();
    // Without CAP_SYS_ADMIN not even the first can be had, and the cgroups themselves must do. With it most hosts have none.
    if matches!(loaded.peek(), Some(Ok(_))) && !loaded.flatten().any(is_in_cgroups) {
        return None;
    }
    let hanging = in_connect(&cgroup_root()?);
    let names = names(&hanging);
    let mut those = hanging.iter().filter(|id| names.get(id).is_none_or(|name| !is_ours(name)));
    let first = those.next()?;
    let name = names.get(first).filter(|name| !name.is_empty());
    let name = name.map(|name| format!(" ({})", printable(name, MAX_NAME))).unwrap_or_default();
    let further = match those.count() {
        0 => String::new(),
        further => format!(" and {}", counted(further as u64, "other")),
    };
    Some(Missing {
        hook: CALLED.to_owned(),
        why: format!(
            "BPF program {first}{name}{further} of a cgroup may send a connect() elsewhere before it is seen: of a client that is \
             served so nothing is known. `bpftool cgroup tree` shows where it hangs."
        ),
    })
}

/// Programs in connect() on the cgroups from this one down.
fn in_connect(root: &Path) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        seen += 1;
        if let Ok(cgroup) = File::open(&folder) {
            for (kind, _) in ON_CGROUP.iter().filter(|(_, how)| how.starts_with(IN_CONNECT)) {
                found.extend(query(cgroup.as_raw_fd().cast_unsigned(), *kind, 0).unwrap_or_default());
            }
        }
        if seen + folders.len() < MAX_CGROUPS {
            let below = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            folders.extend(below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|it| it.path()));
        }
    }
    found
}

/// The root of the machine's version 2 cgroup hierarchy, as far as this process can see it.
pub fn cgroup_root() -> Option<PathBuf> {
    let own = || cgroup2_root().filter(|root| !root.join("cgroup.type").exists());
    // In a container with the host's processes, the first of these has the host's files.
    let of_first = ["/proc/1/root/sys/fs/cgroup", "/proc/1/root/sys/fs/cgroup/unified"].map(PathBuf::from);
    // Every cgroup but the root of all has a type.
    let is_root = |path: &PathBuf| path.join("cgroup.controllers").exists() && !path.join("cgroup.type").exists();
    own().or_else(|| of_first.into_iter().find(is_root))
}

/// The names of programs by their numbers; the error says what would be needed.
pub fn names(ids: &BTreeSet<u32>) -> BTreeMap<u32, String> {
    let mut names = BTreeMap::new();
    if ids.is_empty() {
        return names;
    }
    for program in loaded_programs() {
        // Without CAP_SYS_ADMIN not even the first can be had, and one may go while the others are listed.
        let Ok(program) = program else { break };
        if ids.contains(&program.id()) {
            names.insert(program.id(), String::from_utf8_lossy(program.name()).into_owned());
        }
    }
    names
}

fn denied(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "needs CAP_NET_ADMIN and CAP_BPF: run it as root".to_owned(),
        _ => error.to_string(),
    }
}

/// The fields of `union bpf_attr` for BPF_PROG_QUERY, as of Linux 6.6.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
    attach_flags_of_programs: u64,
    links: u64,
    attach_flags_of_links: u64,
    revision: u64,
}

/// Numbers of the programs at a target. None where the kernel knows no such place.
fn query(target: u32, attach_type: u32, query_flags: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MAX_PROGRAMS];
    let mut asked = Query { target, attach_type, query_flags, count: MAX_PROGRAMS as u32, ..Query::default() };
    asked.ids = ids.as_mut_ptr() as u64;
    // SAFETY: the kernel reads and writes at most `size` bytes of `asked`, and `count` numbers at `ids`; both live until it returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, &raw mut asked, size_of::<Query>()) };
    if result >= 0 {
        return Ok(ids.into_iter().take(asked.count as usize).collect());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // No such kind of attachment before Linux 6.6 or 6.7, no such device, one that is no netkit, or its other end's to ask.
        Some(libc::EINVAL | libc::ENODEV | libc::ENXIO | libc::ENOENT | libc::EACCES | libc::EOPNOTSUPP) => {
            Ok(Vec::new())
        }
        _ => Err(error),
    }
}
