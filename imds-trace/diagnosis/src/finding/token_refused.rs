//! Was a token refused, and is it known why?

use super::{Case, Rule, Severity, TokenUse, Verdict, capitalised};
use crate::exchange::Imds;

/// The rule.
pub const RULE: Rule = Rule {
    id: "token-refused",
    severity: Severity::Error,
    explain: "401 to a request with a token: it had expired, or was not issued while tracing.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.closed().filter(|exchange| exchange.imds() == Some(Imds::V2))?;
    if exchange.status() != Some(401) {
        return None;
    }
    let subject = case.subject();
    let (cause, why) = match case.history.token_use(exchange) {
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
        None => (
            "unknown",
            "it was not issued while tracing: it is from before, from another instance, or no token at all".to_owned(),
        ),
    };
    let mut verdict = Verdict::certain(
        cause,
        capitalised(format!("{subject}{} asked {} with a token and got 401: {why}.", case.hint(), case.request_line())),
    );
    verdict.remedy = case.probe().into_iter().collect();
    verdict.caution = "The command asks for a new token from inside the container and uses it: with that IMDS answers. A client is to ask for a new token when it gets 401, and before the old one expires; a token holds for at most \
                       six hours (21600 s) and on its own instance only. One that was baked into an image, a file or a variable \
                       does not last."
        .to_owned();
    Some(verdict)
}
