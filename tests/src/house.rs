//! Who puts the house in order when a lab did not end well?
//!
//! Three do, so that nothing stays behind: dropping a [`RunnerHost`](crate::RunnerHost); on SIGINT and SIGTERM a thread of
//! ours; and, when this process is killed outright, its keeper: a second process of the same program that only waits for
//! us to be gone. What even the keeper missed is swept by the next lab at its start.
//!
//! What belongs to whom is known by names: namespaces and folders are called `imdslab-<pid>…`, processes carry
//! `IMDSLAB=<pid>` in their environment or descend from one that does.

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::children::MARK;
use crate::netns::{self, NETNS_DIR};

/// Every name we give on this machine begins so.
pub(crate) const PREFIX: &str = "imdslab-";
const KEEPER: &str = "IMDSLAB_KEEPER";
const SWEEPER: &str = "IMDSLAB_SWEEPER";

/// Call this first in `main`, before any thread: from then on the lab is cleaned up however this process ends.
///
/// In the keeper process it does not return.
pub fn keep() {
    if let Some((pid, code)) = std::env::var(SWEEPER).ok().as_deref().and_then(|order| order.split_once(' ')) {
        pid.parse().into_iter().for_each(sweep);
        std::process::exit(code.parse().unwrap_or(1));
    }
    if let Ok(pid) = std::env::var(KEEPER) {
        // Nobody writes to this pipe: it ends when the process we keep house for does.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        if let Ok(pid) = pid.parse() {
            sweep(pid);
        }
        std::process::exit(0);
    }
    let mut ending = SigSet::empty();
    ending.add(Signal::SIGINT);
    ending.add(Signal::SIGTERM);
    ending.add(Signal::SIGHUP);
    let _ = ending.thread_block();
    let keeper = Command::new("/proc/self/exe")
        .env(KEEPER, std::process::id().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn();
    match keeper {
        // The pipe closes when we end, however we end.
        Ok(mut child) => std::mem::forget(child.stdin.take()),
        Err(error) => eprintln!("no keeper: {error}; a killed run will be swept by the next one"),
    }
    std::thread::spawn(move || {
        if let Ok(signal) = ending.wait() {
            eprintln!("{signal}: cleaning up");
            let (pid, code) = (std::process::id(), 128 + signal as i32);
            // Becoming the sweeper by exec ends all other threads at once: none goes on working on what is swept.
            let error = Command::new("/proc/self/exe").env(SWEEPER, format!("{pid} {code}")).exec();
            eprintln!("cannot become the sweeper: {error}");
            sweep(pid);
            std::process::exit(code);
        }
    });
}

/// Sweeps what labs of processes that no longer run have left behind; returns their pids.
pub fn sweep_stale() -> Vec<u32> {
    let mut owners = BTreeSet::new();
    for dir in [Path::new(NETNS_DIR), &std::env::temp_dir()] {
        owners.extend(ours_in(dir).into_iter().map(|(owner, _)| owner));
    }
    owners.retain(|owner| !alive(*owner));
    owners.iter().for_each(|owner| sweep(*owner));
    owners.into_iter().collect()
}

/// A living process besides this one that has a lab.
pub fn other() -> Option<u32> {
    let owners = ours_in(Path::new(NETNS_DIR)).into_iter().map(|(owner, _)| owner);
    owners.into_iter().find(|owner| *owner != std::process::id() && alive(*owner))
}

/// Removes everything that the labs of process `owner` made: processes, namespaces, mounts, cgroups, folders.
pub fn sweep(owner: u32) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = processes_of(owner);
        if left.is_empty() || Instant::now() > deadline {
            break;
        }
        for pid in left {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    for (_, path) in ours_in(Path::new(NETNS_DIR)).into_iter().filter(|(whose, _)| *whose == owner) {
        netns::delete(&path);
    }
    for (_, path) in ours_in(&std::env::temp_dir()).into_iter().filter(|(whose, _)| *whose == owner) {
        remove_dir(&path);
    }
}

/// Makes a lab's folder, with a note of who it belongs to.
pub(crate) fn make_dir(name: &str) -> std::io::Result<PathBuf> {
    let dir = std::env::temp_dir().join(name);
    std::fs::create_dir(&dir)?;
    std::fs::write(dir.join("owner"), started_at(std::process::id()).unwrap_or_default())?;
    Ok(dir)
}

/// Removes a lab's folder with the mounts below it and the cgroups of its containers.
pub(crate) fn remove_dir(dir: &Path) {
    let containers = std::fs::read_dir(dir.join("data/containers")).into_iter().flatten().flatten();
    let ids: Vec<_> = containers.map(|entry| entry.file_name()).collect();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(point).starts_with(dir) {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
        for id in &ids {
            let _ = std::fs::remove_dir(hierarchy.join("docker").join(id));
        }
    }
    for id in &ids {
        // The only file of a shim that lies outside: its socket, in a folder all containerds share.
        let note = dir.join("containerd-run/io.containerd.runtime.v2.task/moby").join(id).join("address");
        let address = std::fs::read_to_string(note).unwrap_or_default();
        if let Some(socket) = address.trim().strip_prefix("unix://")
            && socket.starts_with("/run/containerd/s/")
        {
            let _ = std::fs::remove_file(socket);
        }
    }
    let _ = std::fs::remove_dir_all(dir);
}

/// What in `dir` bears a name of ours, with the pid in that name.
fn ours_in(dir: &Path) -> Vec<(u32, PathBuf)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let rest = name.strip_prefix(PREFIX)?;
            // In /tmp anybody may make a folder by any name; only root's are ours.
            if entry.metadata().ok()?.uid() != 0 {
                return None;
            }
            let digits = rest.split(|letter: char| !letter.is_ascii_digit()).next()?;
            Some((digits.parse().ok()?, entry.path()))
        })
        .collect()
}

/// Whether the process that made `imdslab-<pid>` still runs, and is not another one with the same number.
fn alive(pid: u32) -> bool {
    let Some(now) = started_at(pid) else { return false };
    let note = std::env::temp_dir().join(format!("{PREFIX}{pid}")).join("owner");
    std::fs::read_to_string(note).map_or(true, |then| then.is_empty() || then == now)
}

/// When a process started, in clock ticks since boot (field 22 of /proc/PID/stat, see proc(5)).
fn started_at(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name, in parentheses, may hold spaces.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19).map(str::to_owned)
}

/// Processes marked with `owner`, and their descendants; zombies are not counted.
fn processes_of(owner: u32) -> Vec<u32> {
    let mark = format!("{MARK}={owner}").into_bytes();
    let mut parents = HashMap::new();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, fields)) = stat.rsplit_once(") ") else { continue };
        let mut fields = fields.split(' ');
        let (state, parent) = (fields.next(), fields.next().and_then(|field| field.parse::<u32>().ok()));
        if state == Some("Z") {
            continue;
        }
        parents.insert(pid, parent.unwrap_or(0));
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark) {
            found.push(pid);
        }
    }
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        let children = parents.iter().filter(|(_, its)| **its == parent).map(|(pid, _)| *pid);
        let new: Vec<_> = children.filter(|pid| !found.contains(pid)).collect();
        found.extend(new);
        at += 1;
    }
    found.retain(|pid| *pid != std::process::id() && *pid != owner);
    found
}
