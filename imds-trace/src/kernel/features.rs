//! What of what tracing needs does this kernel have? Asked once, by trying or in its type information; never from its version.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use aya::maps::MapType;
use aya::programs::{ProgramType, SchedClassifier, TcAttachType};
use aya::sys::{is_map_supported, is_program_supported};

use super::Error;
use super::btf::Layout;
use super::hooks::Feature;
use super::symbols::{self, KALLSYMS};
use diagnosis::event::{Has, KernelFeature};

/// The answers.
#[derive(Clone, Debug, Default)]
pub struct Features(BTreeMap<Feature, Has>);

impl Features {
    /// Asks for everything. Attaches nothing; programs and maps that are loaded to try are gone again.
    pub fn ask(layout: Result<&Layout, &Error>) -> Self {
        let btf = layout.ok();
        let described = |name: &str| btf.map(|btf| btf.has_type(name));
        let mut found = Self::default();
        found.put(Feature::Btf, btf_present(layout));
        found.put(Feature::Lockdown, lockdown());
        let ring_buffer = is_map_supported(MapType::RingBuf).ok().or_else(|| described("bpf_ringbuf"));
        found.know(Feature::RingBuffer, ring_buffer, "needs CAP_BPF or BTF: run as root");
        let packets = tried(ProgramType::SchedClassifier);
        found.know(Feature::PacketPrograms, packets, "needs CAP_BPF to try: run as root");
        let tcx = if has_tcx() { Some(true) } else { described("tcx_entry") };
        found.know(Feature::Tcx, tcx, "needs CAP_NET_ADMIN or BTF: run as root");
        if tcx != Some(true) {
            let unlisted = "the kernel's list of modules is not there, so it is found by trying";
            found.know(Feature::Clsact, sch_ingress_exists(), unlisted);
        }
        let raw = tried(ProgramType::RawTracePoint).or_else(|| described("bpf_raw_tp_link").filter(|has| *has));
        found.know(Feature::RawTracepoints, raw, "needs CAP_BPF and CAP_PERFMON to try: run as root");
        found.know(Feature::KfreeSkb, described("btf_trace_kfree_skb"), "needs BTF");
        found.know(Feature::DropReasons, btf.map(Layout::kfree_skb_has_reason), "needs BTF");
        found.put(Feature::FunctionNames, function_names());
        found.know(Feature::SetState, described("btf_trace_inet_sock_set_state"), "needs BTF");
        found.know(Feature::SocketCounters, btf.map(Layout::counts_bytes), "needs BTF");
        if cgroup2_root().is_none() {
            found.put(Feature::Connect, Has::No { needs: "a mounted version 2 cgroup hierarchy".to_owned() });
        } else {
            let connect = tried(ProgramType::CgroupSockAddr);
            found.know(Feature::Connect, connect, "needs CAP_BPF and CAP_NET_ADMIN to try: run as root");
        }
        found.know(Feature::CgroupPaths, host_is_in_first_cgroup_namespace(), "needs /proc");
        let missing = missing_capabilities();
        let lacking = (!missing.is_empty()).then(|| Has::No { needs: missing.join(", ") });
        found.put(Feature::Capabilities, lacking.unwrap_or(Has::Yes));
        found
    }

    fn put(&mut self, feature: Feature, has: Has) {
        self.0.insert(feature, has);
    }

    /// Puts what an answer says; `unknown`: why there may be none.
    fn know(&mut self, feature: Feature, answer: Option<bool>, unknown: &str) {
        self.put(feature, known(answer, feature.about().needs, unknown));
    }

    /// The answers, in the order asked.
    pub fn iter(&self) -> impl Iterator<Item = (Feature, &Has)> {
        self.0.iter().map(|(feature, has)| (*feature, has))
    }

    /// Is it certain that it is there?
    pub fn has(&self, feature: Feature) -> bool {
        self.0.get(&feature) == Some(&Has::Yes)
    }

    /// The answer; `None` if it was not asked for.
    pub fn get(&self, feature: Feature) -> Option<&Has> {
        self.0.get(&feature)
    }

    /// As they are told.
    pub fn told(&self) -> Vec<KernelFeature> {
        self.iter().map(|(feature, has)| KernelFeature { name: feature.name().to_owned(), has: has.clone() }).collect()
    }
}

impl FromIterator<(Feature, Has)> for Features {
    fn from_iter<T: IntoIterator<Item = (Feature, Has)>>(answers: T) -> Self {
        Self(answers.into_iter().collect())
    }
}

fn known(answer: Option<bool>, needs: &str, unknown: &str) -> Has {
    match answer {
        Some(true) => Has::Yes,
        Some(false) => Has::No { needs: needs.to_owned() },
        None => Has::Unknown { why: unknown.to_owned() },
    }
}

fn btf_present(layout: Result<&Layout, &Error>) -> Has {
    match layout.map(Layout::offsets) {
        Ok(Ok(_)) => Has::Yes,
        Ok(Err(error)) => Has::No { needs: format!("another kernel: {error}") },
        Err(Error::NoBtf(_)) => Has::No { needs: Feature::Btf.about().needs.to_owned() },
        Err(error) => Has::No { needs: format!("another kernel: {error}") },
    }
}

/// Asks by loading the smallest program of a type, and letting it go; `None` if we may not try.
fn tried(kind: ProgramType) -> Option<bool> {
    is_program_supported(kind).ok()
}

/// Asked by a query.
fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// What adds clsact is built in, or a module that is loaded when it is first asked for.
fn sch_ingress_exists() -> Option<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let folder = Path::new("/lib/modules").join(release.trim());
    let lists: Vec<String> = ["modules.builtin", "modules.dep"]
        .iter()
        .filter_map(|list| fs::read_to_string(folder.join(list)).ok())
        .collect();
    let loaded = Path::new("/sys/module/sch_ingress").exists();
    match (loaded, lists.is_empty()) {
        (true, _) => Some(true),
        (false, true) => None,
        (false, false) => Some(lists.iter().any(|list| list.contains("/sch_ingress.ko"))),
    }
}

/// `confidentiality` forbids programs to read kernel memory, and ours read packets there.
fn lockdown() -> Has {
    match fs::read_to_string("/sys/kernel/security/lockdown") {
        Ok(text) if text.contains("[confidentiality]") => Has::No { needs: Feature::Lockdown.about().needs.to_owned() },
        Ok(_) => Has::Yes,
        Err(error) if error.kind() == ErrorKind::NotFound => Has::Yes,
        Err(_) => Has::Unknown { why: "needs root to read".to_owned() },
    }
}

fn function_names() -> Has {
    let file = match File::open(KALLSYMS) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Has::No { needs: "CONFIG_KALLSYMS".to_owned() },
        // A service manager may keep it from us.
        Err(_) => return Has::No { needs: format!("leave to read {KALLSYMS}, and CAP_SYSLOG") },
    };
    let mut lines = BufReader::new(file).lines().map_while(Result::ok);
    // The first symbols are no functions, and truly at 0.
    let shown = lines.find_map(|line| symbols::function(&line).map(|(at, _)| at != 0));
    // 2 hides them from everybody (`kallsyms_show_value`).
    let restrict = fs::read_to_string("/proc/sys/kernel/kptr_restrict").unwrap_or_default();
    let needs = if restrict.trim() == "2" { "kernel.kptr_restrict below 2, and CAP_SYSLOG" } else { "CAP_SYSLOG" };
    known(Some(shown == Some(true)), needs, "")
}

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

/// Do cgroup paths begin for the host's processes where the kernel's own do? `PROC_CGROUP_INIT_INO` of `include/linux/proc_ns.h`. In a
/// container with a namespace of its own, the host's first process is asked.
fn host_is_in_first_cgroup_namespace() -> Option<bool> {
    let is_first = |process: &str| {
        let link = fs::read_link(format!("/proc/{process}/ns/cgroup"));
        link.ok().map(|link| link.as_os_str() == "cgroup:[4026531835]")
    };
    is_first("self").map(|own| own || is_first("1") == Some(true))
}

/// Where the root of the version 2 cgroup hierarchy is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on a hybrid host; in a
/// container where the host's is mounted into it.
pub fn cgroup2_root() -> Option<PathBuf> {
    fs::read_to_string("/proc/self/mountinfo").ok().and_then(|mounts| root_of_cgroup2(&mounts))
}

/// Fields of a line: id, parent, device, root, mount point, options, optional fields, `-`, type, source, options (proc(5)). Roots are
/// told from this process's own cgroup namespace on: what is above its own is `/..`, and what is highest is the hierarchy's.
fn root_of_cgroup2(mounts: &str) -> Option<PathBuf> {
    let mut highest: Option<(usize, &str)> = None;
    for line in mounts.lines() {
        let Some((before, behind)) = line.split_once(" - ") else { continue };
        let fields: Vec<&str> = before.split(' ').collect();
        let (Some(root), Some(at)) = (fields.get(3), fields.get(4)) else { continue };
        let ups = root.split('/').filter(|part| !part.is_empty());
        if !behind.starts_with("cgroup2 ") || ups.clone().any(|part| part != "..") {
            continue;
        }
        let ups = ups.count();
        if highest.is_none_or(|(known, _)| ups > known) {
            highest = Some((ups, at));
        }
    }
    highest.map(|(_, at)| PathBuf::from(at))
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
        let contained = "40 31 0:38 / /sys/fs/cgroup ro - cgroup2 cgroup ro\n\
                         41 31 0:38 /../.. /host/sys/fs/cgroup ro - cgroup2 cgroup2 ro\n\
                         42 31 0:38 /../other /mnt ro - cgroup2 cgroup2 ro\n";
        assert_eq!(root_of_cgroup2(contained), Some(PathBuf::from("/host/sys/fs/cgroup")));
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

    #[test]
    fn a_kernel_without_type_information_is_asked_all_the_same() {
        let features = Features::ask(Err(&Error::NoBtf(ErrorKind::NotFound.into())));
        assert_eq!(features.get(Feature::Btf), Some(&Has::No { needs: "CONFIG_DEBUG_INFO_BTF".into() }));
        assert!(matches!(features.get(Feature::KfreeSkb), Some(Has::Unknown { .. })));
        let mut names: Vec<_> = features.told().into_iter().map(|told| told.name).collect();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
