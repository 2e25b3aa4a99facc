//! Who is the task that connects? Read while it stands in connect(): it may be gone before anybody could ask /proc.
//!
//! Whatever cannot be read is left empty: a kernel without the field, a page that is not in memory, a kernel thread.

use core::ptr::addr_of_mut;

use aya_ebpf::{
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_current_task, bpf_ktime_get_boot_ns, bpf_probe_read_kernel_str,
            bpf_probe_read_user,
        },
    },
    macros::map,
    maps::LruHashMap,
};
use imds_trace_ebpf::record::{ANCESTORS, ARGV, Ancestor, CONTROLLERS, Connect, NAME, PATH, Path, Task, path};

use crate::{drop::follow, global::offset};

/// `MAX_PID_NS_LEVEL` of `include/linux/pid_namespace.h`.
const MAX_LEVEL: u32 = 32;
/// Names of a path, and mounts between them, that are followed at most.
const MAX_STEPS: u32 = 24;
/// Between a connect() and its SYN the kernel looks for a route and a port, in the same system call.
const SAME_CALL: u64 = 250_000_000;
/// Tasks between connect() and SYN at the same moment; the oldest go first.
const MAX_TOLD: u32 = 4096;

/// Threads of which all was told when they called connect(), and when that was, ns since boot.
#[map]
static TOLD: LruHashMap<u64, u64> = LruHashMap::with_max_entries(MAX_TOLD, 0);

/// A connect, and all that is known of its task.
#[repr(C)]
pub struct ConnectWithTask {
    pub connect: Connect,
    pub task: Task,
}

/// Notes that all was told of the current task.
#[inline(always)]
pub fn told() {
    // SAFETY: the helper takes nothing and only reads the clock.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // Without a note all is told twice.
    let _ = TOLD.insert(bpf_get_current_pid_tgid(), now, 0);
}

/// Was all told of the current task in this very call? Asked once.
#[inline(always)]
pub fn take_told() -> bool {
    let id = bpf_get_current_pid_tgid();
    // SAFETY: nobody else writes the entry of the current thread.
    let Some(at) = (unsafe { TOLD.get(id) }).copied() else {
        return false;
    };
    let _ = TOLD.remove(id);
    // SAFETY: as above.
    unsafe { bpf_ktime_get_boot_ns() }.wrapping_sub(at) < SAME_CALL
}

/// Writes what is short: numbers and names.
///
/// # Safety
/// `to` must have room for one `Connect`.
#[inline(always)]
pub unsafe fn name(to: *mut Connect) {
    let ids = bpf_get_current_pid_tgid();
    let owner = bpf_get_current_uid_gid();
    let leader = leader();
    let (inner_pid, pid_namespace) = leader.and_then(inner).unwrap_or((0, 0));
    // SAFETY: the caller's promise; the helper takes nothing.
    unsafe {
        addr_of_mut!((*to).cgroup).write(bpf_get_current_cgroup_id());
        addr_of_mut!((*to).tgid).write((ids >> 32) as u32);
        addr_of_mut!((*to).tid).write(ids as u32);
        addr_of_mut!((*to).uid).write(owner as u32);
        addr_of_mut!((*to).gid).write((owner >> 32) as u32);
        addr_of_mut!((*to).started).write(leader.and_then(started).unwrap_or(0));
        addr_of_mut!((*to).pid_namespace).write(pid_namespace);
        addr_of_mut!((*to).inner_pid).write(inner_pid);
        addr_of_mut!((*to).comm).write(bpf_get_current_comm().unwrap_or([0; 16]));
    }
}

/// Writes what is long: where the task comes from and what it runs.
///
/// # Safety
/// `to` must have room for one `Task`.
#[inline(always)]
pub unsafe fn describe(to: *mut Task) {
    // SAFETY: the caller's promise.
    unsafe {
        addr_of_mut!((*to).argv_len).write(0);
        addr_of_mut!((*to).argv_cut).write(0);
        addr_of_mut!((*to).reserved).write(0);
        begin(addr_of_mut!((*to).exe));
        begin(addr_of_mut!((*to).cgroup));
        ancestors(to);
        let _ = argv(to);
        let _ = exe(addr_of_mut!((*to).exe));
        let _ = cgroup(addr_of_mut!((*to).cgroup));
    }
}

#[inline(always)]
fn current() -> *const u8 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_get_current_task() as *const u8 }
}

/// The task that stands for the process.
#[inline(always)]
fn leader() -> Option<*const u8> {
    Some(follow(current(), offset!(task_group_leader)?))
}

#[inline(always)]
fn started(leader: *const u8) -> Option<u64> {
    Some(follow(leader, offset!(task_started)?))
}

/// Its number in its own pid namespace, and that namespace.
#[inline(always)]
fn inner(leader: *const u8) -> Option<(u32, u32)> {
    let pid: *const u8 = follow(leader, offset!(task_thread_pid)?);
    let level: u32 = follow(pid, offset!(pid_level)?);
    if level > MAX_LEVEL {
        return None;
    }
    let numbers = pid.wrapping_add(offset!(pid_numbers)?);
    let own = numbers.wrapping_add(level as usize * offset!(upid_size)?);
    let number: u32 = follow(own, offset!(upid_nr)?);
    let namespace: *const u8 = follow(own, offset!(upid_ns)?);
    Some((number, follow(namespace, offset!(pid_namespace_inum)?)))
}

#[inline(always)]
unsafe fn ancestors(to: *mut Task) {
    let mut next = leader().and_then(parent);
    // Behind the first that there is not, all are zeros, or the idle task, which is 0 as well and its own parent.
    for number in 0..ANCESTORS {
        let found = next.and_then(ancestor).unwrap_or(Ancestor { pid: 0, comm: [0; 16] });
        next = next.and_then(parent);
        // SAFETY: the caller's promise.
        unsafe { addr_of_mut!((*to).ancestors[number]).write(found) };
    }
}

/// The process that a process comes from.
#[inline(always)]
fn parent(leader: *const u8) -> Option<*const u8> {
    let thread: *const u8 = follow(leader, offset!(task_real_parent)?);
    Some(follow(thread, offset!(task_group_leader)?))
}

#[inline(always)]
fn ancestor(leader: *const u8) -> Option<Ancestor> {
    Some(Ancestor { pid: follow(leader, offset!(task_tgid)?), comm: follow(leader, offset!(task_comm)?) })
}

#[inline(always)]
unsafe fn argv(to: *mut Task) -> Option<()> {
    let mm: *const u8 = follow(current(), offset!(task_mm)?);
    let start: usize = follow(mm, offset!(mm_arg_start)?);
    let end: usize = follow(mm, offset!(mm_arg_end)?);
    let whole = end.saturating_sub(start);
    // As in `hook::snap`: the verifier must see the comparison of the very register that goes to the helper.
    let len = core::hint::black_box(whole.min(ARGV) as u32);
    if len == 0 || len > ARGV as u32 {
        return None;
    }
    // SAFETY: the caller's promise; the area has room for `len` bytes, which the verifier proves. The task is the current one.
    unsafe {
        if bpf_probe_read_user(addr_of_mut!((*to).argv).cast(), len, start as *const _) != 0 {
            return None;
        }
        addr_of_mut!((*to).argv_len).write(len as u16);
        addr_of_mut!((*to).argv_cut).write(u8::from(whole > ARGV));
    }
    Some(())
}

/// Appends a name to a path; `None` if there is no name, or no room.
///
/// The length is kept in the record, from which the verifier learns nothing: in a register it would be another range after each name,
/// and so every way through the loops below another one to follow.
///
/// # Safety
/// `to` must have room for one `Path`.
#[inline(always)]
unsafe fn append(to: *mut Path, text: *const u8) -> Option<()> {
    // SAFETY: the caller's promise.
    let len = unsafe { addr_of_mut!((*to).len).read_volatile() };
    if usize::from(len) >= PATH {
        return None;
    }
    // SAFETY: the caller's promise; behind the first PATH bytes, where `len` is, there is room for one more name.
    let read = unsafe {
        let place = addr_of_mut!((*to).names).cast::<u8>().add(usize::from(len));
        bpf_probe_read_kernel_str(place.cast(), NAME as u32, text.cast())
    };
    if read <= 0 || read > NAME as i64 {
        return None;
    }
    // SAFETY: the caller's promise.
    unsafe { addr_of_mut!((*to).len).write_volatile(len + read as u16) };
    Some(())
}

/// An empty path, of which nothing is known.
///
/// # Safety
/// `to` must have room for one `Path`.
#[inline(always)]
unsafe fn begin(to: *mut Path) {
    // SAFETY: the caller's promise.
    unsafe {
        addr_of_mut!((*to).len).write(0);
        addr_of_mut!((*to).state).write(path::UNKNOWN);
    }
}

/// A mount, and the directory at its root.
#[inline(always)]
fn root_of(mount: *const u8) -> Option<*const u8> {
    Some(follow(mount, offset!(mount_mnt)? + offset!(vfsmount_root)?))
}

/// Name by name from the file up to the root of its mount namespace, as `prepend_path` of `fs/d_path.c` does.
#[inline(always)]
unsafe fn exe(to: *mut Path) -> Option<()> {
    let mm: *const u8 = follow(current(), offset!(task_mm)?);
    let file: *const u8 = follow(mm, offset!(mm_exe_file)?);
    if file.is_null() {
        return None;
    }
    let vfsmount: *const u8 = follow(file, offset!(file_mnt)?);
    let mut dentry: *const u8 = follow(file, offset!(file_dentry)?);
    let mut mount = vfsmount.wrapping_sub(offset!(mount_mnt)?);
    let mut root = root_of(mount)?;
    let mut state = path::CUT;
    for _ in 0..MAX_STEPS {
        if dentry == root {
            let above: *const u8 = follow(mount, offset!(mount_parent)?);
            if above == mount {
                state = path::WHOLE;
                break;
            }
            dentry = follow(mount, offset!(mount_mountpoint)?);
            mount = above;
            root = root_of(mount)?;
            continue;
        }
        let above: *const u8 = follow(dentry, offset!(dentry_parent)?);
        // SAFETY: the caller's promise.
        if unsafe { append(to, follow(dentry, offset!(dentry_name)?)) }.is_none() {
            break;
        }
        // In no tree: a file that has a name only (memfd).
        if above == dentry {
            state = path::WHOLE;
            break;
        }
        dentry = above;
    }
    // SAFETY: the caller's promise.
    unsafe { addr_of_mut!((*to).state).write(state) };
    Some(())
}

/// Name by name from the task's cgroup up to the root of its hierarchy.
#[inline(always)]
unsafe fn cgroup(to: *mut Path) -> Option<()> {
    let mut node = cgroup_node()?;
    if node.is_null() {
        return None;
    }
    let mut state = path::CUT;
    for _ in 0..MAX_STEPS {
        let above: *const u8 = follow(node, offset!(node_parent)?);
        if above.is_null() {
            state = path::WHOLE;
            break;
        }
        // SAFETY: the caller's promise.
        if unsafe { append(to, follow(node, offset!(node_name)?)) }.is_none() {
            break;
        }
        node = above;
    }
    // SAFETY: the caller's promise.
    unsafe { addr_of_mut!((*to).state).write(state) };
    Some(())
}

/// Where the task stands: in the version 2 hierarchy, if not in its root. Container engines may use version 1 alone.
#[inline(always)]
fn cgroup_node() -> Option<*const u8> {
    let set: *const u8 = follow(current(), offset!(task_cgroups)?);
    let own: *const u8 = follow(set, offset!(css_set_cgroup)?);
    let node: *const u8 = follow(own, offset!(cgroup_node)?);
    if is_below(node)? {
        return Some(node);
    }
    for controller in 0..CONTROLLERS {
        let Some(at) = offset!(css_set_controllers[controller]) else { continue };
        let state: *const u8 = follow(set, at);
        let own: *const u8 = follow(state, offset!(css_cgroup)?);
        let node: *const u8 = follow(own, offset!(cgroup_node)?);
        if is_below(node)? {
            return Some(node);
        }
    }
    Some(node)
}

/// Is it below the root?
#[inline(always)]
fn is_below(node: *const u8) -> Option<bool> {
    let above: *const u8 = follow(node, offset!(node_parent)?);
    Some(!above.is_null())
}
