//! Was it a program that dropped a packet, BPF or a filter of tc, and where does it hang?
//!
//! Cannot know which program it was: the kernel does not say. Nor of XDP in a driver, which drops what is no packet of the kernel's yet.

/// Where a program hangs that dropped a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// tc or tcx, on what comes in by an interface.
    Ingress,
    /// tc or tcx, on what goes out by an interface.
    Egress,
    /// XDP, before anything else sees what comes in.
    Xdp,
    /// A cgroup, on what its sockets send.
    Cgroup,
    /// The receiving socket, or its cgroup.
    Socket,
}

/// The kernel's reasons that say so.
const REASONS: [(&str, Gate); 5] = [
    ("TC_INGRESS", Gate::Ingress),
    ("TC_EGRESS", Gate::Egress),
    ("XDP", Gate::Xdp),
    ("BPF_CGROUP_EGRESS", Gate::Cgroup),
    ("SOCKET_FILTER", Gate::Socket),
];
/// Functions that drop for hardly anything else, for kernels that give no reason: none before Linux 5.17, not this one before 5.18.
const FUNCTIONS: [(&str, Gate); 7] = [
    ("__netif_receive_skb_core", Gate::Ingress),
    ("sch_handle_ingress", Gate::Ingress),
    ("__dev_queue_xmit", Gate::Egress),
    ("sch_handle_egress", Gate::Egress),
    ("do_xdp_generic", Gate::Xdp),
    ("netif_receive_generic_xdp", Gate::Xdp),
    ("bpf_prog_run_generic_xdp", Gate::Xdp),
];

/// A drop by a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub gate: Gate,
    /// Did the kernel give it as the reason? If not, the function says so, which drops in few other cases (an interface that is down, a
    /// queue that is full).
    pub named: bool,
}

/// The program that dropped in this function (its plain name) for this reason, which is empty if the kernel gave none.
pub(super) fn program(function: &str, reason: &str) -> Option<Program> {
    let by_reason = REASONS.iter().find(|(known, _)| *known == reason).map(|(_, gate)| (*gate, true));
    let no_reason = matches!(reason, "" | "NOT_SPECIFIED");
    let by_function =
        || FUNCTIONS.iter().find(|(known, _)| no_reason && *known == function).map(|(_, gate)| (*gate, false));
    by_reason.or_else(by_function).map(|(gate, named)| Program { gate, named })
}

impl Gate {
    /// What it was and where, behind `by`; `interface` is empty if it is not known.
    pub(super) fn told(self, interface: &str) -> String {
        let of = |what: &str| match interface {
            "" => format!("{what} of an interface"),
            name => format!("{what} of {name}"),
        };
        match self {
            Self::Ingress => of("a BPF program or a filter of tc on the ingress"),
            Self::Egress => of("a BPF program or a filter of tc on the egress"),
            Self::Xdp => of("an XDP program on the ingress"),
            Self::Cgroup => "a BPF program of the sender's cgroup".to_owned(),
            Self::Socket => "a filter of the receiving socket, or a BPF program of its cgroup".to_owned(),
        }
    }

    /// The commands that show what hangs there; `interface` as a word of a shell, `enter` stands before what runs in its namespace.
    pub(super) fn commands(self, enter: &str, interface: Option<&str>) -> Vec<String> {
        let on = interface.map(|name| format!(" show dev {name}")).unwrap_or_default();
        let net = format!("{enter}bpftool net{on}");
        let filters = |way| interface.map(|name| format!("{enter}tc -s filter show dev {name} {way}"));
        match self {
            Self::Ingress => std::iter::once(net).chain(filters("ingress")).collect(),
            Self::Egress => std::iter::once(net).chain(filters("egress")).collect(),
            Self::Xdp => vec![net],
            Self::Cgroup | Self::Socket => vec!["bpftool cgroup tree".to_owned()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_names_the_gate_and_a_function_alone_hints_at_it() {
        let gate = |function, reason| program(function, reason).map(|program| (program.gate, program.named));
        assert_eq!(gate("__netif_receive_skb_core", "TC_INGRESS"), Some((Gate::Ingress, true)));
        assert_eq!(gate("__netif_receive_skb_core", ""), Some((Gate::Ingress, false)));
        assert_eq!(gate("__netif_receive_skb_core", "UNHANDLED_PROTO"), None);
        assert_eq!(gate("__dev_queue_xmit", "NOT_SPECIFIED"), Some((Gate::Egress, false)));
        assert_eq!(gate("__dev_queue_xmit", "QDISC_DROP"), None);
        assert_eq!(gate("tcp_v4_rcv", "SOCKET_FILTER"), Some((Gate::Socket, true)));
        assert_eq!(gate("ip_forward", ""), None);
    }
}
