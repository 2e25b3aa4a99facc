//! What is said of a process?

use schemars::JsonSchema;
use serde::Serialize;

use super::when::When;
use crate::identity::{Ancestor, Process};
use crate::net::{BootTime, Netns};

/// The process that connected, as the kernel knew it then; `exe`, `argv` and `ancestors` are of `/proc`, secrets masked.
#[derive(Serialize, JsonSchema)]
pub struct ProcessLine<'a> {
    /// Process id in the host's pid namespace.
    pid: u32,
    /// Thread id there.
    tid: u32,
    /// User id.
    uid: u32,
    /// Group id.
    gid: u32,
    /// Name of the thread.
    comm: &'a str,
    /// The program's file.
    exe: Option<&'a str>,
    /// Its arguments, secrets masked.
    argv: Option<&'a [String]>,
    /// When it was started.
    started: Option<When>,
    /// Process id in its own pid namespace.
    pid_in_container: Option<u32>,
    /// Inode number of that.
    pid_namespace: Option<u32>,
    /// Inode number of its network namespace.
    netns: Option<Netns>,
    /// Id of its version 2 cgroup.
    cgroup_id: u64,
    /// Path of its cgroup.
    cgroup: Option<&'a str>,
    /// Parent first.
    ancestors: &'a [Ancestor],
}

pub fn line(process: Option<&Process>, boot_time: BootTime) -> Option<ProcessLine<'_>> {
    // Taken apart whole: what a process gains must be told here.
    let Process {
        pid,
        tid,
        uid,
        gid,
        comm,
        exe,
        argv,
        started,
        pid_in_container,
        pid_namespace,
        netns,
        cgroup_id,
        cgroup,
        ancestors,
    } = process.as_ref()?;
    Some(ProcessLine {
        pid: *pid,
        tid: *tid,
        uid: *uid,
        gid: *gid,
        comm,
        exe: exe.as_deref(),
        argv: argv.as_deref(),
        started: started.map(|started| When::of(started, boot_time)),
        pid_in_container: *pid_in_container,
        pid_namespace: *pid_namespace,
        netns: (*netns != Netns::default()).then_some(*netns),
        cgroup_id: *cgroup_id,
        cgroup: cgroup.as_deref(),
        ancestors,
    })
}
