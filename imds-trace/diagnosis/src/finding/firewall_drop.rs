//! Did a firewall rule drop a packet without a word, and did the exchange fail with it?
//!
//! Told apart from `refused`, where the rule sends an answer. Cannot know which rule it was: the kernel does not say.

use super::drops::{Cause, failed};
use super::netfilter::{commands, hook};
use super::socket_error::is_refused;
use super::{Case, Confidence, Rule, Severity, Verdict};
use crate::net::Heading;

/// The rule.
pub const RULE: Rule = Rule {
    id: "firewall-drop",
    severity: Severity::Error,
    explain: "A firewall rule (iptables, nftables) dropped a packet of an exchange that got no answer.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let failed = failed(case).filter(|failed| failed.cause == Cause::Netfilter)?;
    let drop = &failed.dropped.drop;
    if failed.heading == Heading::ToImds && (case.exchange.refusal.is_some() || is_refused(case)) {
        return None;
    }
    let hook = hook(failed.dropped);
    let at = match hook {
        Some(hook) => format!("at netfilter's {hook} hook"),
        None => "at one of netfilter's hooks".to_owned(),
    };
    let mut verdict = Verdict::certain(
        format!("{:?} {at} {}", failed.heading, drop.netns.0),
        format!(
            "{} was dropped by a firewall rule of {} {at}{}, {}.",
            failed.packet(&case.subject()),
            case.whose(drop.netns),
            failed.on(),
            failed.so()
        ),
    );
    verdict.remedy = commands(case, failed.dropped);
    if hook != Some("FORWARD") {
        // Connections are tracked and translated at the others, which drops where nobody wrote a rule.
        verdict.confidence = Confidence::Likely;
        verdict.summary.push_str(
            " (The kernel does not tell a rule's drop there from one by the kernel itself: connection tracking with its table full, no port left to masquerade with, a route that a mark leads to.)",
        );
        verdict.remedy.push(format!("{}conntrack -S", case.enter(drop.netns)));
    }
    verdict.caution = Some("The rule may be there on purpose, to keep containers off the instance's role. Then leave it, and give the \
                       job a role of its own (OIDC, ECS task role, EKS Pod Identity), or set AWS_EC2_METADATA_DISABLED=true so \
                       that SDKs do not wait for IMDS."
        .to_owned());
    Some(failed.concluded(verdict, case))
}
