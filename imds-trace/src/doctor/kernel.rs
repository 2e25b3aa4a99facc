//! What does this kernel allow, and what does this process lack?

use std::fs;

use super::{Answer, Check, Status, Subject};
use crate::kernel::btf::Layout;
use crate::kernel::features::Features;
use crate::kernel::hooks::{About, Feature, Weight};
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
    let About { name, weight, with, without, look, .. } = feature.about();
    let (status, summary) = match (has, weight) {
        (Has::Yes, _) => (Status::Ok, (*with).to_owned()),
        (Has::No { needs }, Weight::Needed) => (Status::Broken, format!("{without} Tracing needs {needs}.")),
        (Has::No { needs }, Weight::Costs) => (Status::Warning, format!("{without} That needs {needs}.")),
        (Has::No { needs }, Weight::Replaced) => (Status::Ok, format!("{without} Links need {needs}.")),
        (Has::Unknown { why }, _) => (Status::Unknown, format!("It is not known whether this is there: {why}.")),
    };
    Answer::new(Subject::Kernel((*name).into()), status, summary).look(*look)
}
