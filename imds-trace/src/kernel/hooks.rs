//! Which hooks are there, by which feature of the kernel is each there, and what is gone without it? One entry each; what asks the
//! kernel (`features`), decides (`plan`), attaches (`attach`), knows our own (`programs`) and explains (doctor) reads them here.

use diagnosis::net::Direction;
use imds_trace_ebpf::record::name;

/// Bytes of a program's name that the kernel keeps (`BPF_OBJ_NAME_LEN`, with the NUL).
const NAME_LENGTH: usize = 15;

/// The programs on each interface that is listened on, by tcx or clsact.
pub const ON_INTERFACES: [(Direction, &str); 2] =
    [(Direction::Ingress, name::TC_INGRESS), (Direction::Egress, name::TC_EGRESS)];

/// A program that goes on no interface.
#[derive(Debug, PartialEq, Eq)]
pub struct Hook {
    /// Its name in the object.
    pub program: &'static str,
    /// What it hangs on.
    pub place: Place,
    /// The features without which it is not there; the first also says what it is for.
    pub features: &'static [Feature],
}

/// What a program hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A tracepoint, as a raw one: `skb:kfree_skb`.
    Tracepoint(&'static str),
    /// The root cgroup, in connect(): `connect4`.
    Connect(&'static str),
    /// The root cgroup, where a SYN is about to be sent.
    SockOps,
}

/// All of these, in the order in which they are attached.
pub const HOOKS: [Hook; 5] = [
    Hook {
        program: name::KFREE_SKB,
        place: Place::Tracepoint("skb:kfree_skb"),
        features: &[Feature::KfreeSkb, Feature::RawTracepoints],
    },
    Hook {
        program: name::SET_STATE,
        place: Place::Tracepoint("sock:inet_sock_set_state"),
        features: &[Feature::SetState, Feature::RawTracepoints],
    },
    Hook { program: name::CONNECT4, place: Place::Connect("connect4"), features: &[Feature::Connect] },
    Hook { program: name::CONNECT6, place: Place::Connect("connect6"), features: &[Feature::Connect] },
    Hook { program: name::SOCK_OPS, place: Place::SockOps, features: &[Feature::Connect] },
];

/// Is this the name of a program of ours, whole or as short as the kernel keeps it?
pub fn is_ours(program: &str) -> bool {
    let on_interfaces = ON_INTERFACES.iter().map(|(_, program)| *program);
    let mut ours = on_interfaces.chain(HOOKS.iter().map(|hook| hook.program));
    ours.any(|ours| program == ours || program == &ours[..ours.len().min(NAME_LENGTH)])
}

/// Something that tracing needs, or could use, of the kernel, the host or this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// The kernel describes its types.
    Btf,
    /// Programs may read its memory.
    Lockdown,
    /// Records reach user space by a ring buffer.
    RingBuffer,
    /// Programs that see packets.
    PacketPrograms,
    /// Links on interfaces.
    Tcx,
    /// Filters on interfaces; asked for only without [`Self::Tcx`].
    Clsact,
    /// Programs on tracepoints.
    RawTracepoints,
    /// The tracepoint that tells of drops.
    KfreeSkb,
    /// It gives a reason.
    DropReasons,
    /// /proc/kallsyms tells addresses.
    FunctionNames,
    /// The tracepoint that tells of connections.
    SetState,
    /// A TCP socket counts the bytes it received, and those acknowledged.
    SocketCounters,
    /// Programs in connect().
    Connect,
    /// Cgroup paths as the kernel knows them are those that we know.
    CgroupPaths,
    /// What this process may do.
    Capabilities,
}

/// How much hangs on a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Without it nothing is traced.
    Needed,
    /// Without it less is seen, or known.
    Costs,
    /// Something else does its work.
    Replaced,
}

/// What is known of a feature before anybody is asked.
#[derive(Debug)]
pub struct About {
    /// Which.
    pub feature: Feature,
    /// Its name outside.
    pub name: &'static str,
    /// How much hangs on it.
    pub weight: Weight,
    /// What has it; empty where the answer itself says what is needed.
    pub needs: &'static str,
    /// What is, where it is there: a sentence.
    pub with: &'static str,
    /// What is, where it is not: a sentence.
    pub without: &'static str,
    /// A command that shows it.
    pub look: &'static str,
}

impl Feature {
    /// Its entry.
    pub fn about(self) -> &'static About {
        // The entries stand in the order of the enumeration: a test says so.
        &FEATURES[self as usize]
    }

    /// Its name outside.
    pub fn name(self) -> &'static str {
        self.about().name
    }
}

const BTF: &str = "ls -l /sys/kernel/btf/vmlinux";
const OWN_CAPABILITIES: &str = "grep CapEff /proc/self/status";
const QDISCS: &str = "tc qdisc show";

/// All of them, in the order in which they are told.
pub const FEATURES: [About; 15] = [
    About {
        feature: Feature::Btf,
        name: "BTF",
        weight: Weight::Needed,
        needs: "CONFIG_DEBUG_INFO_BTF",
        with: "The kernel describes its types (BTF), and has all that tracing reads.",
        without: "Where the kernel keeps what tracing reads is not known.",
        look: BTF,
    },
    About {
        feature: Feature::Lockdown,
        name: "lockdown",
        weight: Weight::Needed,
        needs: "another lockdown mode",
        with: "Lockdown does not keep programs from reading packets.",
        without: "The kernel is locked down to confidentiality: programs may not read packets.",
        look: "cat /sys/kernel/security/lockdown",
    },
    About {
        feature: Feature::RingBuffer,
        name: "ring buffer",
        weight: Weight::Needed,
        needs: "Linux 5.8",
        with: "There are ring buffers, by which records reach this program.",
        without: "There are no ring buffers, by which records reach this program.",
        look: OWN_CAPABILITIES,
    },
    About {
        feature: Feature::PacketPrograms,
        name: "packet programs",
        weight: Weight::Needed,
        needs: "CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF",
        with: "Programs that see packets on interfaces can be loaded.",
        without: "Programs that see packets on interfaces cannot be loaded.",
        look: OWN_CAPABILITIES,
    },
    About {
        feature: Feature::Tcx,
        name: "tcx",
        weight: Weight::Replaced,
        needs: "Linux 6.6",
        with: "Interfaces have tcx links, which go with the process that holds them, however it ends.",
        without: "Interfaces have no tcx links, so clsact filters are used: a run that is killed leaves them, until the next one \
                  begins or `imds-trace doctor --clean` removes them.",
        look: QDISCS,
    },
    About {
        feature: Feature::Clsact,
        name: "clsact",
        weight: Weight::Needed,
        needs: "the module sch_ingress",
        with: "Interfaces take filters by clsact.",
        without: "Interfaces have neither tcx nor clsact to attach programs to.",
        look: QDISCS,
    },
    About {
        feature: Feature::RawTracepoints,
        name: "raw tracepoints",
        weight: Weight::Costs,
        needs: "CONFIG_BPF_EVENTS",
        with: "Programs can be put on raw tracepoints.",
        without: "Programs cannot be put on raw tracepoints: neither drops nor connecting processes are seen.",
        look: OWN_CAPABILITIES,
    },
    About {
        feature: Feature::KfreeSkb,
        name: "skb:kfree_skb",
        weight: Weight::Costs,
        needs: "a kernel with tracepoints",
        with: "skb:kfree_skb tells of drops.",
        without: "No drop is seen: what is lost shows as not seen again.",
        look: "ls /sys/kernel/tracing/events/skb/kfree_skb",
    },
    About {
        feature: Feature::DropReasons,
        name: "drop reasons",
        weight: Weight::Costs,
        needs: "Linux 5.17",
        with: "skb:kfree_skb gives a reason for each drop.",
        without: "Drops come without reasons: the function that dropped, and the TTL, must do.",
        look: BTF,
    },
    About {
        feature: Feature::FunctionNames,
        name: "function names",
        weight: Weight::Costs,
        needs: "",
        with: "/proc/kallsyms names the functions that drop.",
        without: "Functions that drop are not named: a used-up TTL is `likely`, by the reason alone, and without reasons it is \
                  not told from other drops.",
        look: "grep ' ip_forward$' /proc/kallsyms; cat /proc/sys/kernel/kptr_restrict",
    },
    About {
        feature: Feature::SetState,
        name: "sock:inet_sock_set_state",
        weight: Weight::Costs,
        needs: "a kernel with tracepoints",
        with: "sock:inet_sock_set_state tells which process connects.",
        without: "Which socket is whose is not seen: containers are named by address only.",
        look: "ls /sys/kernel/tracing/events/sock/inet_sock_set_state",
    },
    About {
        feature: Feature::SocketCounters,
        name: "socket counters",
        weight: Weight::Costs,
        needs: "tcp_sock.bytes_received and bytes_acked",
        with: "A client's own TCP tells how many bytes it received, and how many were acknowledged.",
        without: "What reached a client's own TCP is not told: that an answer was delivered rests on the packets that were seen.",
        look: BTF,
    },
    About {
        feature: Feature::Connect,
        name: "cgroup connect",
        weight: Weight::Costs,
        needs: "CONFIG_CGROUP_BPF",
        with: "Programs of the root cgroup see every connect(), attempts that never become a packet among them.",
        without: "A connect() that never sends a SYN is missed, processes are described a moment later, and since Linux 7.0, \
                  where a task can be preempted in a tracepoint, some connections of a busy host have no process.",
        look: "grep cgroup2 /proc/self/mountinfo",
    },
    About {
        feature: Feature::CgroupPaths,
        name: "cgroup paths",
        weight: Weight::Costs,
        needs: "the host's cgroup namespace",
        with: "Cgroup paths are read in the kernel.",
        without: "Cgroup paths are read from /proc only: the container of a process that lives a moment may not be known.",
        look: "readlink /proc/self/ns/cgroup",
    },
    About {
        feature: Feature::Capabilities,
        name: "capabilities",
        weight: Weight::Costs,
        needs: "",
        with: "This process has the capabilities that tracing needs.",
        without: "This process can inspect the host, but lacks the capabilities that tracing needs.",
        look: OWN_CAPABILITIES,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_has_one_entry_and_two_sentences() {
        // The last of the enumeration; the entries stand in its order, so none is missing and none is there twice.
        assert_eq!(FEATURES.len(), Feature::Capabilities as usize + 1);
        for (at, about) in FEATURES.iter().enumerate() {
            let About { feature, with, without, .. } = about;
            assert_eq!(*feature as usize, at, "{feature:?}");
            assert!(with.ends_with('.') && without.ends_with('.') && with != without, "{feature:?}");
        }
    }

    #[test]
    fn our_own_are_known_by_the_names_that_the_kernel_keeps() {
        assert!(is_ours("imds_egress") && is_ours("imds_kfree_skb") && is_ours("imds_set_state"));
        assert!(!is_ours("cil_from_contai") && !is_ours(""));
    }
}
