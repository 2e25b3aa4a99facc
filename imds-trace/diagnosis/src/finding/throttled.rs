//! Did IMDS ask the client to come back later?

use super::{Case, Rule, Severity, Verdict, capitalised};

/// The rule.
pub const RULE: Rule = Rule {
    id: "throttled",
    severity: Severity::Warning,
    explain: "IMDS answered 429 or 503: too many requests, or try again.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.closed()?;
    let status = exchange.status().filter(|status| matches!(status, 429 | 503))?;
    let voice = case.speaks_for_instance()?;
    let subject = case.subject();
    let mut verdict = Verdict::certain(
        status.to_string(),
        capitalised(format!(
            "{subject}{} asked {} and got {status}: IMDS asks to wait and try again.",
            case.hint(),
            case.request_line()
        )),
    );
    verdict.remedy = vec!["imds-trace watch --for 1m".to_owned()];
    verdict.caution = Some("See `Who asked` in the report for the requests of each client. Cache credentials until shortly before they expire \
                       and tokens for their lifetime, and try again with growing pauses: every current AWS SDK does."
        .to_owned());
    Some(voice.temper(verdict))
}
