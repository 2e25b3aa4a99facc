//! Did a request leave this host, and did nothing come back?
//!
//! Told apart from drops on this host: there something came in, or nothing went out.

use std::time::Duration;

use super::refused::is_refused;
use super::{Case, Confidence, Rule, Severity, Verdict};
use crate::exchange::Exchange;
use crate::journey::{Fate, Hop};
use crate::printable::shell_word;

/// The rule.
pub const RULE: Rule = Rule {
    id: "unanswered",
    severity: Severity::Error,
    explain: "A request left the host and nothing came back.",
    examine,
};

/// A client that waits less has not waited for an answer: IMDS takes some milliseconds, no SDK gives up before 250 ms.
const LEAST_WAIT: Duration = Duration::from_millis(100);

/// A request that left and to which nothing came back.
pub(super) struct Unanswered<'a> {
    pub exchange: &'a Exchange,
    /// Where it was last seen.
    pub last: &'a Hop,
    /// How long the client waited.
    pub waited: Duration,
    /// `The GET /latest/ of …`.
    pub what: String,
}

/// The case's exchange, if it is one.
pub(super) fn unanswered<'a>(case: &Case<'a>) -> Option<Unanswered<'a>> {
    // That nothing came is inferred from not seeing it: where records were lost, nothing follows from that.
    let exchange = case.settled().filter(|_| case.complete)?;
    let outward = exchange.outward.as_ref().filter(|travel| travel.fate == Fate::Delivered)?;
    if exchange.answered.is_some() || exchange.responded {
        return None;
    }
    // Opened and closed without a question; or refused, which is an answer.
    let has_left = exchange.refusal.is_some_and(|refusal| exchange.left.is_some_and(|left| left < refusal.at));
    if exchange.handshake && exchange.asked.is_none() || exchange.refusal.is_some() && !has_left || is_refused(case) {
        return None;
    }
    // A capture may be the client's own, where the answer may be lost on the way to it; or hold one direction only: then requests
    // follow handshakes that it does not show.
    let one_way = exchange.asked.is_some() && !exchange.handshake;
    if case.host.capture && (one_way || !exchange.decrements.forwarded()) {
        return None;
    }
    let last = outward.hops.last()?;
    let asked = exchange.asked.unwrap_or(exchange.opened);
    let waited = exchange.left.or(exchange.closed)?.since(asked);
    let subject = case.subject();
    let what = match (exchange.handshake, &exchange.request) {
        (true, Some(request)) => format!("The {} {} of {subject}", request.method, request.path),
        _ => format!("The connection attempt of {subject}"),
    };
    (waited >= LEAST_WAIT).then_some(Unanswered { exchange, last, waited, what })
}

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let Unanswered { exchange, last, waited, what } = unanswered(case)?;
    if super::not_masqueraded::foreign_source(case, last).is_some() {
        return None;
    }
    let seconds = waited.as_secs_f64();
    let interface = &last.hook.interface.name;
    let exceeded = case.host.rise_of_exceeded(interface);
    let why = match exceeded {
        Some(0) => {
            "The ENA driver counted no packet over the link-local allowance meanwhile: it was not for too many of them."
                .into()
        }
        Some(packets) => format!(
            "Meanwhile the ENA driver counted {packets} packets over the allowance for link-local services \
             (linklocal_allowance_exceeded): more than 1024 a second to IMDS, DNS and NTP together, and EC2 drops the rest."
        ),
        None => "The answer was lost before it reached this host, or never sent.".into(),
    };
    let mut verdict = Verdict::certain(
        if exchange.handshake { "request" } else { "connect" },
        format!("{what} was seen leaving by {interface} and nothing was seen coming back in {seconds:.1} s. {why}"),
    );
    // That nothing came is inferred from not seeing it.
    verdict.confidence = Confidence::Likely;
    verdict.path = case.path(None);
    // A capture may not know its interfaces' names.
    let named = if case.host.capture { "<interface>".to_owned() } else { shell_word(interface) };
    verdict.remedy = vec![format!("ethtool -S {named} | grep linklocal_allowance_exceeded"), case.describe_options()];
    if exceeded.is_some_and(|packets| packets > 0) {
        verdict.caution =
            "Ask less often: cache credentials and tokens (a token is good for up to six hours), and use a local DNS \
                           cache. The allowance is per network interface and cannot be raised."
                .to_owned();
    }
    Some(verdict)
}
