//! What does this kernel allow, and what do we lack? Asked once.

use std::fs;
use std::path::PathBuf;

use aya::programs::{SchedClassifier, TcAttachType};

/// Capabilities without which nothing can be traced, with their numbers (`include/uapi/linux/capability.h`).
const NEEDED: [(&str, u32); 3] = [("CAP_BPF", 39), ("CAP_PERFMON", 38), ("CAP_NET_ADMIN", 12)];
/// Stands in for the first two, as before Linux 5.8.
const CAP_SYS_ADMIN: u32 = 21;

/// The capabilities that this process lacks; empty if it has all.
pub fn missing_capabilities() -> Vec<&'static str> {
    let effective = fs::read_to_string("/proc/self/status").ok().and_then(|status| effective(&status)).unwrap_or(0);
    lacking(effective)
}

fn lacking(effective: u64) -> Vec<&'static str> {
    let has = |number: u32| effective & (1 << number) != 0;
    let stands_in = |name: &str| has(CAP_SYS_ADMIN) && name != "CAP_NET_ADMIN";
    NEEDED.iter().filter(|(name, number)| !has(*number) && !stands_in(name)).map(|(name, _)| *name).collect()
}

fn effective(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// Has this kernel tcx links? Asked by a query, which attaches nothing.
pub fn has_tcx(interface: &str) -> bool {
    SchedClassifier::query_tcx(interface, TcAttachType::Ingress).is_ok()
}

/// Do cgroup paths begin for this process where the kernel's own do? `PROC_CGROUP_INIT_INO` of `include/linux/proc_ns.h`.
pub fn in_first_cgroup_namespace() -> bool {
    fs::read_link("/proc/self/ns/cgroup").is_ok_and(|link| link.as_os_str() == "cgroup:[4026531835]")
}

/// Where the root of the version 2 cgroup hierarchy is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on a hybrid host.
pub fn cgroup2_root() -> Option<PathBuf> {
    fs::read_to_string("/proc/self/mountinfo").ok().and_then(|mounts| root_of_cgroup2(&mounts))
}

/// Fields of a line: id, parent, device, root, mount point, options, optional fields, `-`, type, source, options (proc(5)).
fn root_of_cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, behind) = line.split_once(" - ")?;
        let fields: Vec<&str> = before.split(' ').collect();
        (behind.starts_with("cgroup2 ") && fields.get(3) == Some(&"/")).then(|| PathBuf::from(fields[4]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_2_hierarchy_is_found_wherever_it_is_mounted() {
        let unified = "37 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
                       38 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(root_of_cgroup2(unified), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(root_of_cgroup2("38 31 0:38 /inner /mnt rw - cgroup2 cgroup2 rw\n"), None);
        assert_eq!(root_of_cgroup2(""), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(lacking(0), ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]);
        assert_eq!(lacking(1 << 39 | 1 << 38), ["CAP_NET_ADMIN"]);
        assert_eq!(lacking(1 << 21), ["CAP_NET_ADMIN"]);
        assert!(lacking(u64::MAX).is_empty());
        assert_eq!(effective("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
    }
}
