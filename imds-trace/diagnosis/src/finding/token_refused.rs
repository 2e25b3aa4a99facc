//! Was a token refused, and is it known why?

use super::history::{Had, lacks_token};
use super::{Case, Confidence, Rule, Severity, TokenUse, Verdict, capitalised};
use crate::exchange::Imds;

/// The rule.
pub const RULE: Rule = Rule {
    id: "token-refused",
    severity: Severity::Error,
    explain: "401 to a request with a token: it had expired, or was not issued while tracing.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.afterwards().filter(|exchange| exchange.imds() == Some(Imds::V2))?;
    // A client that takes a new token and is let in did as it should: some send a wrong one first, to learn whether tokens are required.
    if exchange.status() != Some(401) || case.history.is_let_in_later(exchange, case.who) {
        return None;
    }
    let voice = case.speaks_for_instance()?;
    let is_empty = lacks_token(exchange);
    if is_empty && matches!(case.history.had(exchange, case.who), Had::Nothing(_)) {
        return None;
    }
    let subject = case.subject();
    let (cause, why) = match case.history.tokens.used(exchange) {
        Some(TokenUse { age, lifetime: Some(lifetime) }) if age >= lifetime => (
            "expired",
            format!(
                "it had expired {:.0} s before (it was issued for {} s, {:.0} s before)",
                (age - lifetime).as_secs_f64(),
                lifetime.as_secs(),
                age.as_secs_f64()
            ),
        ),
        Some(TokenUse { age, .. }) => (
            "valid",
            format!(
                "it was issued {:.0} s before and should be good: another IMDS may have issued it",
                age.as_secs_f64()
            ),
        ),
        None if is_empty => ("empty", "the header had no value: the client had no token to send".to_owned()),
        None => (
            "unknown",
            "it was not issued while tracing: it is from before, from another instance, or no token at all".to_owned(),
        ),
    };
    let mut verdict = Verdict::certain(
        cause,
        capitalised(format!("{subject}{} asked {} with a token and got 401: {why}.", case.hint(), case.request_line())),
    );
    if cause == "unknown" && case.history.tokens.may_be_unread(exchange) {
        verdict.confidence = Confidence::Likely;
        verdict.summary.push_str(" (Or it is one of those that could not be read.)");
    } else if cause == "unknown" && case.history.unheard.is_possible(exchange, case.who, case.rests_on_capture()) {
        verdict.confidence = Confidence::Likely;
        verdict.summary.push_str(" (Or it was issued on a connection of which not all was seen.)");
    } else if cause == "unknown" && exchange.asked.is_none_or(|asked| case.history.unheard.may_have_issued(asked)) {
        verdict.confidence = Confidence::Likely;
        verdict.summary.push_str(" (Or it was issued to another client, on a connection that no hook saw.)");
    }
    verdict.remedy = case.probe().into_iter().collect();
    verdict.caution = Some("The command asks for a new token from inside the container and uses it: with that IMDS answers. Clients must request a \
                       new token on 401, and before the old one expires; a token holds for at most six hours (21600 s) and on \
                       its own instance only. One that was baked into an image, a file or a variable does not last."
        .to_owned());
    Some(voice.temper(case.unless_it_went_on(verdict)).resting_on(case.absent_before()))
}
