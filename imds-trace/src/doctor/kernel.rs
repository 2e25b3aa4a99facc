//! What does this kernel allow, and what does this process lack?

use super::{Answer, Check, Status, Subject};
use crate::kernel::ask::{self, Feature, Has};

/// The check.
pub const CHECK: Check = Check {
    id: "kernel",
    explain: "what tracing needs of the kernel and of this process",
    examine: |_| ask::all().into_iter().map(answer).collect(),
};

fn answer(feature: Feature) -> Answer {
    let (status, why) = match feature.has {
        Has::Yes => (Status::Ok, String::new()),
        Has::No(needs) if feature.needed => (Status::Broken, format!(" Tracing needs {needs}.")),
        Has::No(needs) => (Status::Warning, format!(" That needs {needs}.")),
        Has::Unknown(why) => (Status::Unknown, format!(" To know: {why}.")),
    };
    let summary = format!("{}{why}", feature.sentence);
    Answer::new(Subject::Kernel(feature.name.into()), status, summary).look(feature.look)
}
