//! What was listened to, and what could not be told, in sentences?

use super::{MAX_NAME, subject, time};
use crate::coverage::Span;
use crate::event::{Attached, Report, Unwatched};
use crate::net::BootTime;
use crate::printable::printable;

/// Names that one sentence gives at most.
const MAX_NAMED: usize = 8;

/// Behind the report.
pub(super) fn sentences(report: &Report, boot_time: BootTime) -> Vec<String> {
    let covered = &report.coverage;
    let mut all = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for hook in covered.listened.iter().flat_map(|listened| &listened.ready.hooks) {
        let name = match hook {
            Attached::Tc { interface, .. } | Attached::Capture { interface: Some(interface), .. } => interface.clone(),
            Attached::Capture { interface: None, .. } => "an interface that the capture does not name".to_owned(),
            Attached::Tracepoint { .. } | Attached::Cgroup { .. } => continue,
        };
        let name = printable(&name, MAX_NAME);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if !covered.listened.is_empty() {
        let missing = covered.listened.iter().flat_map(|listened| &listened.ready.missing);
        let missing = listed(missing.map(|missing| printable(&missing.hook, MAX_NAME)).collect());
        let missing = if missing.is_empty() { String::new() } else { format!("; not on {missing}") };
        let on = if names.is_empty() { "no interface".to_owned() } else { listed(names) };
        all.push(format!("Listened on {on}{missing}."));
    }
    for Unwatched { who, connections, received, endpoint } in &covered.unseen {
        let received = match received {
            Some(bytes) => format!("{bytes} bytes came"),
            None => "how much came is not known".to_owned(),
        };
        let times = if *connections == 1 { "a connection".to_owned() } else { format!("{connections} connections") };
        all.push(format!(
            "Cannot be told: what {} asked by {times} to {endpoint} that passed no interface that is watched ({received}).",
            subject(who)
        ));
    }
    if report.lost.sum() > 0 && !covered.losses.is_empty() {
        let windows = covered
            .losses
            .iter()
            .map(|Span { from, to }| format!("{} to {}", time(*from, boot_time), time(*to, boot_time)));
        all.push(format!("Cannot be told: what was not seen in the time of losses ({}).", listed(windows.collect())));
    }
    all
}

fn listed(mut names: Vec<String>) -> String {
    let further = names.len().saturating_sub(MAX_NAMED);
    names.truncate(MAX_NAMED);
    if further > 0 {
        names.push(format!("and {further} more"));
    }
    names.join(", ")
}
