//! Did a request leave this host, and did nothing come back?
//!
//! Told apart from drops on this host: there something came in, or nothing went out.

use super::{Case, Confidence, Rule, Severity, Verdict};
use crate::journey::Fate;

/// The rule.
pub const RULE: Rule = Rule {
    id: "unanswered",
    severity: Severity::Error,
    explain: "A request left the host and nothing came back.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.closed()?;
    let outward = exchange.outward.as_ref().filter(|travel| travel.fate == Fate::Delivered)?;
    if exchange.answered.is_some() || exchange.responded {
        return None;
    }
    // Opened and closed without a question; or refused, which is an answer.
    if exchange.handshake && exchange.asked.is_none() || exchange.reset && !exchange.handshake {
        return None;
    }
    let last = outward.hops.last()?;
    let asked = exchange.asked.unwrap_or(exchange.opened);
    let seconds = exchange.closed?.since(asked).as_secs_f64();
    let subject = case.subject();
    let interface = &last.hook.interface.name;
    let what = match (exchange.handshake, &exchange.request) {
        (true, Some(request)) => format!("The {} {} of {subject}", request.method, request.path),
        _ => format!("The connection attempt of {subject}"),
    };
    let mut verdict = Verdict::certain(
        if exchange.handshake { "request" } else { "connect" },
        format!(
            "{what} was seen leaving by {interface} and nothing was seen coming back in {seconds:.1} s: the answer was lost \
             before it reached this host, or never sent."
        ),
    );
    // That nothing came is inferred from not seeing it.
    verdict.confidence = Confidence::Likely;
    verdict.path = case.path(None);
    verdict.remedy = vec![
        format!("ethtool -S {interface} | grep linklocal_allowance_exceeded"),
        format!(
            "aws ec2 describe-instances --instance-ids {} --query 'Reservations[].Instances[].MetadataOptions'",
            case.instance()
        ),
    ];
    Some(verdict)
}
