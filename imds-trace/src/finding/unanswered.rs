//! Did a request leave this host, and did nothing come back?
//!
//! Told apart from drops on this host: there something came in, or nothing went out.

use std::time::Duration;

use super::{Case, Confidence, Rule, Severity, Verdict};
use crate::journey::Fate;

/// The rule.
pub const RULE: Rule = Rule {
    id: "unanswered",
    severity: Severity::Error,
    explain: "A request left the host and nothing came back.",
    examine,
};

/// A client that waits less has not waited for an answer: IMDS takes some milliseconds, no SDK gives up before 250 ms.
const LEAST_WAIT: Duration = Duration::from_millis(100);

fn examine(case: &Case<'_>) -> Option<Verdict> {
    // That nothing came is inferred from not seeing it: where records were lost, nothing follows from that.
    let exchange = case.closed().filter(|_| case.complete)?;
    let outward = exchange.outward.as_ref().filter(|travel| travel.fate == Fate::Delivered)?;
    if exchange.answered.is_some() || exchange.responded {
        return None;
    }
    // Opened and closed without a question; or reset, which is an answer.
    if exchange.handshake && exchange.asked.is_none() || exchange.reset {
        return None;
    }
    let last = outward.hops.last()?;
    let asked = exchange.asked.unwrap_or(exchange.opened);
    let waited = exchange.closed?.since(asked);
    if waited < LEAST_WAIT {
        return None;
    }
    let seconds = waited.as_secs_f64();
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
