//! Where do our programs go, and what is gone without those that cannot? Pure: what the kernel has in, lists out. On which interfaces
//! is decided in `diagnosis::way::listen`.

use super::Error;
use super::features::{Feature, Features};
use diagnosis::event::{Has, Missing, Via};

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

/// What follows from a feature, a sentence each.
#[derive(Clone, Copy, Debug)]
pub struct Consequence {
    /// How much hangs on it.
    pub weight: Weight,
    /// What is, where it is there.
    pub with: &'static str,
    /// What is, where it is not.
    pub without: &'static str,
}

/// What follows from a feature.
pub fn consequence(feature: Feature) -> Consequence {
    use Weight::{Costs, Needed, Replaced};
    let (weight, with, without) = match feature {
        Feature::Btf => (
            Needed,
            "The kernel describes its types (BTF), and has all that tracing reads.",
            "Where the kernel keeps what tracing reads is not known.",
        ),
        Feature::Lockdown => (
            Needed,
            "Lockdown does not keep programs from reading packets.",
            "The kernel is locked down to confidentiality: programs may not read packets.",
        ),
        Feature::RingBuffer => (
            Needed,
            "There are ring buffers, by which records reach this program.",
            "There are no ring buffers, by which records reach this program.",
        ),
        Feature::PacketPrograms => (
            Needed,
            "Programs that see packets on interfaces can be loaded.",
            "Programs that see packets on interfaces cannot be loaded.",
        ),
        Feature::Tcx => (
            Replaced,
            "Interfaces have tcx links, which go with the process that holds them, however it ends.",
            "Interfaces have no tcx links, so clsact filters are used: a run that is killed leaves them, until the next one \
             begins or `imds-trace doctor --clean` removes them.",
        ),
        Feature::Clsact => (
            Needed,
            "Interfaces take filters by clsact.",
            "Interfaces have neither tcx nor clsact to attach programs to.",
        ),
        Feature::RawTracepoints => (
            Costs,
            "Programs can be put on raw tracepoints.",
            "Programs cannot be put on raw tracepoints: neither drops nor connecting processes are seen.",
        ),
        Feature::KfreeSkb => {
            (Costs, "skb:kfree_skb tells of drops.", "No drop is seen: what is lost shows as not seen again.")
        }
        Feature::DropReasons => (
            Costs,
            "skb:kfree_skb gives a reason for each drop.",
            "Drops come without reasons: the function that dropped, and the TTL, must do.",
        ),
        Feature::FunctionNames => (
            Costs,
            "/proc/kallsyms names the functions that drop.",
            "Functions that drop are not named: a used-up TTL is `likely`, by the reason alone, and \
             without reasons it is not told from other drops.",
        ),
        Feature::SetState => (
            Costs,
            "sock:inet_sock_set_state tells which process connects.",
            "Which socket is whose is not seen: containers are named by address only.",
        ),
        Feature::SocketCounters => (
            Costs,
            "A client's own TCP tells how many bytes it received, and how many were acknowledged.",
            "What reached a client's own TCP is not told: that an answer was delivered rests on the packets that were seen.",
        ),
        Feature::Connect => (
            Costs,
            "Programs of the root cgroup see every connect(), attempts that never become a packet among them.",
            "A connect() that never sends a SYN is missed, processes are described a moment later, and since Linux 7.0, where a \
             task can be preempted in a tracepoint, some connections of a busy host have no process.",
        ),
        Feature::CgroupPaths => (
            Costs,
            "Cgroup paths are read in the kernel.",
            "Cgroup paths are read from /proc only: the container of a process that lives a moment may not be known.",
        ),
        Feature::Capabilities => (
            Costs,
            "This process has the capabilities that tracing needs.",
            "This process can inspect the host, but lacks the capabilities that tracing needs.",
        ),
    };
    Consequence { weight, with, without }
}

/// Where a program is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// On a tracepoint.
    Tracepoint(Tracepoint),
    /// On the root cgroup, in connect().
    Connect(Family),
    /// On the root cgroup, where a SYN is about to be sent.
    SockOps,
}

/// A tracepoint with a program for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracepoint {
    /// `skb:kfree_skb`.
    KfreeSkb,
    /// `sock:inet_sock_set_state`.
    SetState,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Hook {
    /// The feature by which it is there, which also says what it is for.
    pub fn feature(self) -> Feature {
        match self {
            Self::Tracepoint(Tracepoint::KfreeSkb) => Feature::KfreeSkb,
            Self::Tracepoint(Tracepoint::SetState) => Feature::SetState,
            Self::Connect(_) | Self::SockOps => Feature::Connect,
        }
    }
}

/// What is attached how, and what is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// How programs hang on interfaces.
    pub via: Via,
    /// The other places, in this order. Why: [`consequence`] of [`Hook::feature`].
    pub others: Vec<Hook>,
    /// Are cgroup paths read in the kernel?
    pub cgroup_paths: bool,
    /// What is not there, and what that costs.
    pub missing: Vec<Missing>,
}

const OTHERS: [Hook; 5] = [
    Hook::Tracepoint(Tracepoint::KfreeSkb),
    Hook::Tracepoint(Tracepoint::SetState),
    Hook::Connect(Family::V4),
    Hook::Connect(Family::V6),
    Hook::SockOps,
];

/// What can be attached with these features. What is not known is tried. An error if one is lacking that is needed.
pub fn hooks(features: &Features) -> Result<Hooks, Error> {
    let lacks = |feature| matches!(features.get(feature), Some(Has::No { .. }));
    let mut missing = Vec::new();
    for (feature, has) in features.iter() {
        let Has::No { needs } = has else { continue };
        let Consequence { weight, without, .. } = consequence(feature);
        let why = format!("not there (needs {needs}). {without}");
        match weight {
            Weight::Needed => return Err(Error::Lacking { what: feature.name(), why }),
            Weight::Costs => missing.push(Missing { hook: feature.name().to_owned(), why }),
            Weight::Replaced => {}
        }
    }
    let possible = |hook: &Hook| match hook {
        Hook::Tracepoint(_) => ![hook.feature(), Feature::RawTracepoints].into_iter().any(lacks),
        Hook::Connect(_) | Hook::SockOps => !lacks(hook.feature()),
    };
    Ok(Hooks {
        via: if features.has(Feature::Tcx) { Via::Tcx } else { Via::Clsact },
        others: OTHERS.into_iter().filter(possible).collect(),
        cgroup_paths: !lacks(Feature::CgroupPaths),
        missing,
    })
}

/// Why something that was tried failed: what the kernel said, and what is known of the features behind it.
pub fn explain(features: &Features, feature: Feature, said: &str) -> String {
    let about = |feature: Feature| match features.get(feature) {
        Some(Has::No { needs }) => format!("{}: not supported (needs {needs})", feature.name()),
        Some(Has::Unknown { why }) => format!("{said}; whether this kernel has {} is not known: {why}", feature.name()),
        Some(Has::Yes) | None => said.to_owned(),
    };
    match feature {
        // That it is used at all is for want of the other.
        Feature::Clsact => format!("{}; {}", about(feature), about(Feature::Tcx)),
        feature => about(feature),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Feature; 15] = [
        Feature::Btf,
        Feature::Lockdown,
        Feature::RingBuffer,
        Feature::PacketPrograms,
        Feature::Tcx,
        Feature::Clsact,
        Feature::RawTracepoints,
        Feature::KfreeSkb,
        Feature::DropReasons,
        Feature::FunctionNames,
        Feature::SetState,
        Feature::SocketCounters,
        Feature::Connect,
        Feature::CgroupPaths,
        Feature::Capabilities,
    ];

    fn without(lacking: &[Feature]) -> Features {
        let no = || Has::No { needs: "more".to_owned() };
        ALL.into_iter().map(|feature| (feature, if lacking.contains(&feature) { no() } else { Has::Yes })).collect()
    }

    fn missing(hooks: &Hooks) -> Vec<&str> {
        hooks.missing.iter().map(|missing| missing.hook.as_str()).collect()
    }

    #[test]
    fn a_kernel_that_has_all_gets_all() {
        let hooks = hooks(&without(&[])).unwrap();
        assert_eq!((hooks.via, hooks.others.len(), hooks.cgroup_paths), (Via::Tcx, 5, true));
        assert_eq!(hooks.missing, []);
    }

    #[test]
    fn linux_5_10_gets_filters_and_drops_without_reasons() {
        let hooks = hooks(&without(&[Feature::Tcx, Feature::DropReasons])).unwrap();
        assert_eq!((hooks.via, hooks.others.len()), (Via::Clsact, 5));
        assert_eq!(missing(&hooks), ["drop reasons"]);
        assert!(hooks.missing[0].why.starts_with("not there (needs more). Drops come without"), "{hooks:?}");
    }

    #[test]
    fn what_is_lacking_takes_its_hooks_with_it_and_says_so() {
        let others = |lacking: &[Feature]| hooks(&without(lacking)).unwrap().others;
        assert_eq!(others(&[Feature::KfreeSkb]), OTHERS[1..]);
        assert_eq!(others(&[Feature::SetState]), [OTHERS[0], OTHERS[2], OTHERS[3], OTHERS[4]]);
        assert_eq!(others(&[Feature::RawTracepoints]), OTHERS[2..]);
        assert_eq!(others(&[Feature::Connect]), OTHERS[..2]);
        assert_eq!(others(&[Feature::FunctionNames]), OTHERS);
        let away = [Feature::Connect, Feature::CgroupPaths, Feature::FunctionNames];
        let hooks = hooks(&without(&away)).unwrap();
        assert_eq!(missing(&hooks), ["function names", "cgroup connect", "cgroup paths"]);
        assert!(!hooks.cgroup_paths);
    }

    #[test]
    fn without_what_is_needed_nothing_is_attached() {
        let needed = |feature: &Feature| consequence(*feature).weight == Weight::Needed;
        for feature in ALL.into_iter().filter(needed) {
            let sentence = hooks(&without(&[feature])).unwrap_err().to_string();
            assert!(sentence.contains(feature.name()) && sentence.contains("needs more"), "{sentence}");
        }
    }

    #[test]
    fn what_is_not_known_is_tried() {
        let unknown = Has::Unknown { why: "no list of modules".to_owned() };
        let features: Features = ALL
            .into_iter()
            .map(|feature| (feature, unknown.clone()))
            .chain([(Feature::Tcx, Has::No { needs: "Linux 6.6".to_owned() })])
            .collect();
        let hooks = hooks(&features).unwrap();
        assert_eq!((hooks.via, hooks.others.len(), hooks.missing.len()), (Via::Clsact, 5, 0));
        assert_eq!(
            explain(&features, Feature::Clsact, "Invalid argument"),
            "Invalid argument; whether this kernel has clsact is not known: no list of modules; tcx: not supported (needs \
             Linux 6.6)"
        );
        assert_eq!(explain(&features, Feature::Tcx, "Invalid argument"), "tcx: not supported (needs Linux 6.6)");
        assert_eq!(explain(&without(&[]), Feature::KfreeSkb, "Operation not permitted"), "Operation not permitted");
    }

    #[test]
    fn every_consequence_is_two_sentences() {
        for feature in ALL {
            let Consequence { with, without, .. } = consequence(feature);
            assert!(with.ends_with('.') && without.ends_with('.') && with != without, "{feature:?}");
        }
    }
}
