//! Did the kernel drop a packet for a reason that no other rule names, and did the exchange fail with it?

use super::drops::{Cause, failed};
use super::{Case, Rule, Severity, Verdict};

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
    verdict.path = case.path(None);
    verdict.drop = Some(failed.dropped.clone());
    verdict.weight = failed.weight;
    verdict.last = failed.last;
    Some(verdict.resting_on_absence(case))
}
