//! What does this kernel allow, and what does this process lack?

use std::fs;

use super::{Answer, Check, Status, Subject};
use crate::kernel::btf::Layout;
use crate::kernel::features::{Feature, Features};
use crate::kernel::plan::{Consequence, Weight, consequence};
use diagnosis::event::Has;

/// The check.
pub const CHECK: Check = Check {
    id: "kernel",
    explain: "what tracing needs of the kernel and of this process",
    examine: |_| {
        let features = Features::ask(Layout::of_this_kernel().as_ref());
        let answers = features.iter().map(|(feature, has)| answer(feature, has));
        std::iter::once(release()).chain(answers).collect()
    },
};

fn release() -> Answer {
    let about = Subject::Kernel("release".into());
    match fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(release) => Answer::new(about, Status::Ok, format!("This is Linux {}.", release.trim())),
        Err(error) => Answer::new(about, Status::Unknown, format!("The kernel's release cannot be read: {error}."))
            .look("uname -r"),
    }
}

fn answer(feature: Feature, has: &Has) -> Answer {
    let Consequence { weight, with, without } = consequence(feature);
    let (status, summary) = match (has, weight) {
        (Has::Yes, _) => (Status::Ok, with.to_owned()),
        (Has::No { needs }, Weight::Needed) => (Status::Broken, format!("{without} Tracing needs {needs}.")),
        (Has::No { needs }, Weight::Costs) => (Status::Warning, format!("{without} That needs {needs}.")),
        (Has::No { needs }, Weight::Replaced) => (Status::Ok, format!("{without} Links need {needs}.")),
        (Has::Unknown { why }, _) => (Status::Unknown, format!("It is not known whether this is there: {why}.")),
    };
    Answer::new(Subject::Kernel(feature.name().into()), status, summary).look(look(feature))
}

/// A command that shows it.
fn look(feature: Feature) -> &'static str {
    match feature {
        Feature::Btf | Feature::DropReasons | Feature::SocketCounters => "ls -l /sys/kernel/btf/vmlinux",
        Feature::Lockdown => "cat /sys/kernel/security/lockdown",
        Feature::Tcx | Feature::Clsact => "tc qdisc show",
        Feature::KfreeSkb => "ls /sys/kernel/tracing/events/skb/kfree_skb",
        Feature::SetState => "ls /sys/kernel/tracing/events/sock/inet_sock_set_state",
        Feature::FunctionNames => "grep ' ip_forward$' /proc/kallsyms; cat /proc/sys/kernel/kptr_restrict",
        Feature::Connect => "grep cgroup2 /proc/self/mountinfo",
        Feature::CgroupPaths => "readlink /proc/self/ns/cgroup",
        Feature::RingBuffer | Feature::PacketPrograms | Feature::RawTracepoints | Feature::Capabilities => {
            "grep CapEff /proc/self/status"
        }
    }
}
