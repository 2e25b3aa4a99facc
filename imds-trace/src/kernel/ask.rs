//! What of what tracing needs does this kernel have? Found by trying, or in its type information; never from its version.

use std::fs;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};

use super::btf::Layout;
use super::features;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Has {
    /// It has it.
    Yes,
    /// It does not; what that needs.
    No(String),
    /// It cannot be known; why, and what would be needed to know.
    Unknown(String),
}

/// Something that tracing needs, or could use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// Does this kernel have it?
    pub has: Has,
    /// What it means.
    pub sentence: String,
    /// Without it, nothing can be traced.
    pub needed: bool,
    /// A command that shows it.
    pub look: &'static str,
}

const LOOK_AT_BTF: &str = "ls -l /sys/kernel/btf/vmlinux";
const LOOK_AT_CAPABILITIES: &str = "grep CapEff /proc/self/status";

/// Asks for everything.
pub fn all() -> Vec<Feature> {
    let layout = Layout::of_this_kernel();
    let btf = layout.as_ref().ok();
    let mut found = vec![release(), btf_present(&layout)];
    found.push(classifier());
    found.push(tc_hook(btf));
    found.push(raw_tracepoints(btf));
    found.push(kfree_skb(btf));
    found.push(set_state(btf));
    found.push(ring_buffer(btf));
    found.push(lockdown());
    found.push(capabilities());
    found
}

fn release() -> Feature {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let (has, sentence) = match release {
        "" => (Has::Unknown("/proc is not there".into()), "The kernel's release cannot be read.".to_owned()),
        release => (Has::Yes, format!("This is Linux {release}.")),
    };
    Feature { name: "release", has, sentence, needed: false, look: "uname -r" }
}

fn btf_present(layout: &Result<Layout, super::Error>) -> Feature {
    let (has, sentence) = match layout
        .as_ref()
        .map_err(ToString::to_string)
        .and_then(|layout| layout.offsets().map_err(|error| error.to_string()))
    {
        Ok(_) => (Has::Yes, "The kernel describes its types (BTF), and has all that tracing reads.".to_owned()),
        Err(why) => (
            Has::No("CONFIG_DEBUG_INFO_BTF".into()),
            format!("Tracing reads the kernel's types, and could not: {why}."),
        ),
    };
    Feature { name: "BTF", has, sentence, needed: true, look: LOOK_AT_BTF }
}

/// Asks by loading the smallest program of a type, and letting it go; `None` if we may not try.
fn tried(kind: ProgramType) -> Option<bool> {
    is_program_supported(kind).ok()
}

fn classifier() -> Feature {
    let (has, sentence) = match tried(ProgramType::SchedClassifier) {
        Some(true) => (Has::Yes, "Programs that see packets on interfaces can be loaded."),
        Some(false) => (
            Has::No("CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF".into()),
            "Programs that see packets on interfaces cannot be loaded.",
        ),
        None => (
            Has::Unknown("needs CAP_BPF to try: run as root".into()),
            "Whether packet programs can be loaded was not tried.",
        ),
    };
    Feature { name: "packet programs", has, sentence: sentence.into(), needed: true, look: LOOK_AT_CAPABILITIES }
}

fn tc_hook(btf: Option<&Layout>) -> Feature {
    let by_type = btf.map(|btf| btf.has_type("tcx_entry"));
    let (has, sentence) = if features::has_tcx("lo") || by_type == Some(true) {
        (Has::Yes, "Interfaces have tcx hooks: programs come and go without a qdisc.".to_owned())
    } else if by_type == Some(false) {
        // What adds clsact is built in, or a module that is loaded when it is first asked for.
        let sentence = "Interfaces have no tcx hooks (Linux 6.6): clsact is used, and its empty qdisc stays behind.";
        match sch_ingress_exists() {
            Some(false) => (
                Has::No("tcx, or the module sch_ingress for clsact".into()),
                "Neither tcx nor clsact is there.".to_owned(),
            ),
            Some(true) => (Has::Yes, sentence.to_owned()),
            None => (
                Has::Unknown("the kernel's list of modules is not there, so clsact was not found".into()),
                sentence.to_owned(),
            ),
        }
    } else {
        (
            Has::Unknown("needs CAP_NET_ADMIN or BTF: run as root".into()),
            "Whether interfaces have tcx hooks is not known.".to_owned(),
        )
    };
    Feature { name: "tc hook", has, sentence, needed: true, look: "tc qdisc show" }
}

fn sch_ingress_exists() -> Option<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let folder = std::path::Path::new("/lib/modules").join(release.trim());
    let lists: Vec<String> = ["modules.builtin", "modules.dep"]
        .iter()
        .filter_map(|list| fs::read_to_string(folder.join(list)).ok())
        .collect();
    let loaded = std::path::Path::new("/sys/module/sch_ingress").exists();
    match (loaded, lists.is_empty()) {
        (true, _) => Some(true),
        (false, true) => None,
        (false, false) => Some(lists.iter().any(|list| list.contains("/sch_ingress.ko"))),
    }
}

fn raw_tracepoints(btf: Option<&Layout>) -> Feature {
    let (has, sentence) = match (tried(ProgramType::RawTracePoint), btf) {
        (Some(true), _) => (Has::Yes, "Programs can be put on raw tracepoints."),
        (Some(false), _) => {
            (Has::No("CONFIG_BPF_EVENTS".into()), "Programs cannot be put on raw tracepoints: no drop would be seen.")
        }
        (None, Some(btf)) if btf.has_type("bpf_raw_tp_link") => {
            (Has::Yes, "The kernel has raw tracepoints for programs.")
        }
        (None, _) => (
            Has::Unknown("needs CAP_BPF and CAP_PERFMON to try: run as root".into()),
            "Whether programs can be put on raw tracepoints was not tried.",
        ),
    };
    Feature { name: "raw tracepoints", has, sentence: sentence.into(), needed: true, look: LOOK_AT_CAPABILITIES }
}

fn without_btf() -> Has {
    Has::Unknown("needs BTF".into())
}

fn kfree_skb(btf: Option<&Layout>) -> Feature {
    let (has, sentence) = match btf {
        None => (without_btf(), "Whether drops can be seen is not known.".to_owned()),
        Some(btf) if !btf.has_type("btf_trace_kfree_skb") => (
            Has::No("a kernel with tracepoints".into()),
            "There is no skb:kfree_skb: no drop would be seen.".to_owned(),
        ),
        Some(btf) => {
            match (btf.offsets().is_ok_and(|offsets| offsets.kfree_skb_has_reason != 0), btf.drop_reasons().len()) {
                (true, reasons) => (Has::Yes, format!("skb:kfree_skb tells of drops, with {reasons} reasons by name.")),
                // Linux 5.17 is the first with reasons.
                (false, _) => {
                    (Has::Yes, "skb:kfree_skb tells of drops, without reasons: place and TTL must do.".to_owned())
                }
            }
        }
    };
    Feature { name: "skb:kfree_skb", has, sentence, needed: true, look: "ls /sys/kernel/tracing/events/skb/kfree_skb" }
}

fn set_state(btf: Option<&Layout>) -> Feature {
    let (has, sentence) = match btf {
        None => (without_btf(), "Whether connecting processes can be seen is not known."),
        Some(btf) if btf.has_type("btf_trace_inet_sock_set_state") => {
            (Has::Yes, "sock:inet_sock_set_state tells which process connects.")
        }
        Some(_) => (
            Has::No("Linux 4.16 or later with tracepoints".into()),
            "There is no sock:inet_sock_set_state: containers are named by address only.",
        ),
    };
    let look = "ls /sys/kernel/tracing/events/sock/inet_sock_set_state";
    Feature { name: "sock:inet_sock_set_state", has, sentence: sentence.into(), needed: false, look }
}

fn ring_buffer(btf: Option<&Layout>) -> Feature {
    let tried = is_map_supported(MapType::RingBuf).ok();
    let described = btf.map(|btf| btf.has_type("bpf_ringbuf"));
    let (has, sentence) = match tried.or(described) {
        Some(true) => (Has::Yes, "There are ring buffers, by which records reach this program."),
        Some(false) => {
            (Has::No("Linux 5.8 or later".into()), "There are no ring buffers, by which records reach this program.")
        }
        None => {
            (Has::Unknown("needs CAP_BPF or BTF: run as root".into()), "Whether there are ring buffers is not known.")
        }
    };
    Feature { name: "ring buffer", has, sentence: sentence.into(), needed: true, look: LOOK_AT_CAPABILITIES }
}

/// `confidentiality` forbids programs to read kernel memory, and ours read packets there.
fn lockdown() -> Feature {
    const FILE: &str = "/sys/kernel/security/lockdown";
    let (has, sentence) = match fs::read_to_string(FILE) {
        Ok(text) if text.contains("[confidentiality]") => (
            Has::No("another lockdown mode".into()),
            "The kernel is locked down to confidentiality: programs may not read packets.",
        ),
        Ok(_) => (Has::Yes, "Lockdown does not keep programs from reading packets."),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => (Has::Yes, "There is no lockdown."),
        Err(_) => (Has::Unknown("needs root to read".into()), "Whether the kernel is locked down is not known."),
    };
    Feature {
        name: "lockdown",
        has,
        sentence: sentence.into(),
        needed: true,
        look: "cat /sys/kernel/security/lockdown",
    }
}

fn capabilities() -> Feature {
    let missing = features::missing_capabilities();
    let (has, sentence) = if missing.is_empty() {
        (Has::Yes, "This process has the capabilities that tracing needs.".to_owned())
    } else {
        let sentence = format!("This process lacks {}, without which watch cannot run.", missing.join(", "));
        (Has::No("root".into()), sentence)
    };
    Feature { name: "capabilities", has, sentence, needed: false, look: LOOK_AT_CAPABILITIES }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_is_asked_for_once_and_says_a_sentence() {
        let found = all();
        for feature in &found {
            assert_eq!(found.iter().filter(|other| other.name == feature.name).count(), 1, "{feature:?}");
            assert!(feature.sentence.ends_with('.') && feature.sentence.len() > 10, "{feature:?}");
        }
    }
}
