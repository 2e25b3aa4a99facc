//! Who asked for what, counted together: how is that told to a person?

use std::fmt::Write as _;

use super::{BOLD, MAX_NAME, MAX_PATH, RED, counted, paragraph, subject};
use crate::config::GroupBy;
use crate::event::{Credentials, Group, Groups};
use crate::net::{BootTime, Timestamp};
use crate::printable::printable;
use crate::words::rfc3339;

/// Bytes of a command line that are shown.
const MAX_ARGV: usize = 400;

/// Tells of all groups.
pub fn tell(out: &mut String, groups: &Groups, boot_time: BootTime) {
    let count = groups.groups.len() as u64;
    let _ = writeln!(out, "\n{BOLD}By {}{BOLD:#} ({})", groups.by.name(), counted(count, "group"));
    for (title, details) in rows(groups, boot_time) {
        let _ = writeln!(out, "  {title}");
        for line in details {
            let _ = writeln!(out, "{}", paragraph("    ", "      ", &line));
        }
    }
    if let Some(over) = over(groups) {
        let _ = writeln!(out, "  {over}");
    }
}

/// What each group is called, and what is said of it.
pub(in crate::output) fn rows(
    groups: &Groups,
    boot_time: BootTime,
) -> impl ExactSizeIterator<Item = (String, Vec<String>)> {
    groups.groups.iter().map(move |group| (title(groups, group), details(groups.by, group, boot_time)))
}

/// What found no room in a group.
pub(in crate::output) fn over(groups: &Groups) -> Option<String> {
    (groups.over > 0).then(|| format!("{} more in groups that did not fit", counted(groups.over, "exchange")))
}

fn title(groups: &Groups, group: &Group) -> String {
    let container = group.who.container.as_ref();
    let pod = container.and_then(|container| container.pod.as_deref());
    let in_namespace = || match pod.and_then(|pod| pod.namespace.as_deref()) {
        Some(namespace) => format!(" (namespace {})", printable(namespace, MAX_NAME)),
        None => String::new(),
    };
    let named = |text: Option<&str>, none: &str| match text {
        Some(text) => format!("{BOLD}{}{BOLD:#}", printable(text, MAX_PATH)),
        None => none.to_owned(),
    };
    match groups.by {
        GroupBy::Container => subject(&group.who),
        GroupBy::Pod => match pod.filter(|pod| pod.is_known()) {
            Some(pod) if pod.name.is_some() => named(pod.name.as_deref(), "") + &in_namespace(),
            Some(_) => subject(&group.who),
            None => "no pod known".to_owned(),
        },
        GroupBy::Namespace => named(pod.and_then(|pod| pod.namespace.as_deref()), "no namespace known"),
        GroupBy::Workload => named(pod.and_then(|pod| pod.workload()), "no pod known") + &in_namespace(),
        GroupBy::Process => match &group.who.process {
            Some(process) => {
                let comm = printable(&process.comm, MAX_NAME);
                format!("{BOLD}{comm}[{}]{BOLD:#} of {}", process.pid, subject(&group.who))
            }
            None => format!("a process that is not known, of {}", subject(&group.who)),
        },
        GroupBy::Image => named(container.and_then(|container| container.image.as_deref()), "no image known"),
        GroupBy::Job => named(container.and_then(|container| container.job_id()), "no CI job known"),
        GroupBy::Path => named(group.path.as_deref(), "no request seen"),
        GroupBy::Host => named(groups.host.as_deref(), &format!("{BOLD}this host{BOLD:#}")),
    }
}

fn details(by: GroupBy, group: &Group, boot_time: BootTime) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(container) =
        group.who.container.as_ref().filter(|_| matches!(by, GroupBy::Container | GroupBy::Process))
    {
        let image = container.image.as_deref().map(|image| format!("image {}", printable(image, MAX_PATH)));
        let job = container.job_id().map(|job| format!("CI job {}", printable(job, MAX_NAME)));
        let known: Vec<String> = [image, job].into_iter().flatten().collect();
        if !known.is_empty() {
            lines.push(known.join(", "));
        }
    }
    if let Some(process) = group.who.process.as_ref().filter(|_| by == GroupBy::Process) {
        let exe =
            process.exe.as_deref().map_or("its executable is not known".to_owned(), |exe| printable(exe, MAX_PATH));
        let argv = process.argv.as_ref().map(|argv| format!(": {}", printable(&argv.join(" "), MAX_ARGV)));
        lines.push(format!("uid {}, {exe}{}", process.uid, argv.unwrap_or_default()));
        let parents: Vec<String> = process
            .ancestors
            .iter()
            .map(|parent| format!("{}[{}]", printable(&parent.comm, MAX_NAME), parent.pid))
            .collect();
        if !parents.is_empty() {
            lines.push(format!("started by {}", parents.join(", by ")));
        }
    }
    let asked: Vec<String> = ["for a token", "v2", "v1", "other"]
        .iter()
        .zip(group.asked)
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| format!("{count} {what}"))
        .collect();
    let asked = if asked.is_empty() { String::new() } else { format!(" ({})", asked.join(", ")) };
    lines.push(format!(
        "{}{asked}, {} answered; {}",
        counted(group.exchanges, "exchange"),
        group.answered,
        span(Some(group.first), Some(group.last), boot_time)
    ));
    lines.extend(credentials(&group.credentials, boot_time));
    lines
}

fn credentials(credentials: &Credentials, boot_time: BootTime) -> Option<String> {
    let Credentials { asked, taken, over_v1, roles, first, last } = credentials;
    if *taken == 0 {
        let asked = (*asked > 0).then_some(counted(*asked, "time"))?;
        return Some(format!("asked for role credentials {asked}, and got none"));
    }
    let over = match over_v1 {
        0 => "over IMDSv2".to_owned(),
        all if all == taken => "over IMDSv1".to_owned(),
        some => format!("{some} of them over IMDSv1"),
    };
    let roles: Vec<String> = roles.iter().map(|role| printable(role, MAX_PATH)).collect();
    Some(format!(
        "{RED}took credentials{RED:#} of role {} {} ({asked} asked for), {over}; {}",
        roles.join(", "),
        counted(*taken, "time"),
        span(*first, *last, boot_time)
    ))
}

/// From when to when, to the second.
fn span(first: Option<Timestamp>, last: Option<Timestamp>, boot_time: BootTime) -> String {
    // 2026-01-31T12:34:56.123456789Z
    let second = |at: Option<Timestamp>| {
        at.map(|at| rfc3339(at, boot_time).get(..19).unwrap_or_default().replace('T', " ")).unwrap_or_default()
    };
    let (first, last) = (second(first), second(last));
    if first == last { format!("at {first} UTC") } else { format!("{first} to {last} UTC") }
}
