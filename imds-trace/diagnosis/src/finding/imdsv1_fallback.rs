//! Did a client ask without a token because its token request brought nothing?

use super::answerer::Answerer;
use super::history::{Forsaken, Had, lacks_token};
use super::{Case, Confidence, Rule, Severity, Verdict, capitalised};
use crate::exchange::imds::is_success;
use crate::exchange::{Exchange, Imds};

/// The rule.
pub const RULE: Rule = Rule {
    id: "imdsv1-fallback",
    severity: Severity::Warning,
    explain: "A token request brought no token, then the same client asked without one: masked and slow where IMDSv1 is allowed, \
              disguised as a 401 where it is not.",
    examine,
};

/// A client that waited less was not kept waiting.
const SLOW: f64 = 0.1;

/// The case's exchange, if it asks without a token: with none, or with a header that has no value.
fn without_token<'a>(case: &Case<'a>) -> Option<&'a Exchange> {
    case.closed().filter(|exchange| match exchange.imds() {
        Some(Imds::V1) => true,
        Some(Imds::V2) => lacks_token(exchange),
        Some(Imds::Token | Imds::Other) | None => false,
    })
}

fn examine(case: &Case<'_>) -> Option<Verdict> {
    // One that was gone when its answer came got none.
    let exchange = without_token(case).filter(|exchange| !exchange.is_late())?;
    let status = exchange.status()?;
    // Refused whoever asks and however: no token would have helped.
    if matches!(status, 403 | 429 | 500..) {
        return None;
    }
    let Had::Nothing(forsaken) = case.history.had(exchange, case.who) else { return None };
    let Forsaken { tries, waited, refused, came, sure, .. } = forsaken;
    let seconds = waited.as_secs_f64();
    let subject = case.subject();
    let kept = match tries {
        1 => format!("{seconds:.1} s"),
        _ => format!("{seconds:.1} s in {tries} tries"),
    };
    let before = match refused {
        None => format!("waited {kept} for a token and got none"),
        Some(refused) if seconds < SLOW => format!("was refused a token with {refused}"),
        Some(refused) => format!("spent {kept} on token requests, the last of which was refused with {refused}"),
    };
    let then = if lacks_token(exchange) { "sent an empty one" } else { "asked without one" };
    let cause = match (refused, came) {
        (Some(_), _) => "the refused token request is",
        (None, true) => "the lost token response is",
        (None, false) => "the token request without an answer is",
    };
    let slowly = if seconds < SLOW { "" } else { "slowly, " };
    let summary = match status {
        401 => format!("{subject} {before}, then {then} and got 401: that 401 is not the cause, {cause}."),
        _ if is_success(status) && case.answerer() == Answerer::StandIn => {
            format!("{subject} {before}, then fell back to IMDSv1 and got {status}.")
        }
        _ if is_success(status) => format!(
            "{subject} {before}, then fell back to IMDSv1 and got {status}: it works, {slowly}until tokens are required."
        ),
        _ => format!("{subject} {before}, then {then} and got {status}."),
    };
    let mut verdict = Verdict::certain(status.to_string(), capitalised(summary));
    if !sure {
        verdict.confidence = Confidence::Likely;
        verdict.summary.push_str(" (That one client made both requests is inferred from their order.)");
    }
    verdict.waited = Some(forsaken.uncounted);
    verdict.remedy = case.probe().into_iter().collect();
    let software = exchange.software();
    let is_sdk = software.as_ref().is_none_or(|software| software.is_sdk());
    verdict.caution = Some(
        match is_sdk {
            true => {
                "Fix the token request first. With AWS_EC2_METADATA_V1_DISABLED=true an AWS SDK returns an error \
             instead of falling back."
            }
            false => {
                "Fix the token request first. A script can stop where it gets no token (curl --fail, and a look \
             at the exit status) instead of asking without one."
            }
        }
        .to_owned(),
    );
    Some(verdict)
}
