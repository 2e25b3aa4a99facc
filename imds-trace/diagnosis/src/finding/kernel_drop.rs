//! Did the kernel drop a packet for a reason that no other rule names, and did the exchange fail with it?

use super::drops::{Cause, failed};
use super::{Case, Rule, Severity, Verdict};
use crate::printable::shell_word;

/// The rule.
pub const RULE: Rule = Rule {
    id: "kernel-drop",
    severity: Severity::Error,
    explain: "The kernel dropped a packet of an exchange that got no answer, for a reason that no other rule names.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let failed = failed(case).filter(|failed| failed.cause == Cause::Other)?;
    let drop = &failed.dropped.drop;
    let reason = drop.reason.as_deref().unwrap_or("this kernel gives no reason");
    let mut verdict = Verdict::certain(
        format!("{:?} {} {reason} {}", failed.heading, drop.location, drop.netns.0),
        format!(
            "{} was dropped by the kernel in {}{} ({reason}), and no answer reached the client.",
            failed.packet(&case.subject()),
            drop.location,
            failed.on()
        ),
    );
    let enter = case.enter(drop.netns);
    if let Some(interface) = &drop.interface {
        verdict.remedy.push(format!("{enter}ip -s -s link show dev {}", shell_word(&interface.name)));
    }
    verdict.remedy.push(format!("{enter}nstat -az"));
    verdict.remedy.push("imds-trace doctor".to_owned());
    verdict.caution = "The kernel's own word for the reason stands in its include/net/dropreason-core.h, with a line on each; the \
                       function says where. The counters of interface and namespace show whether other traffic is hit too."
        .to_owned();
    Some(failed.concluded(verdict, case))
}
