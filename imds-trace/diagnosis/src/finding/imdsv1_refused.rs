//! Was a client refused because it never asked for a token?
//!
//! Told apart from a fallback, where it did ask and the answer was lost.

use super::{Case, Confidence, Rule, Severity, Verdict, capitalised};
use crate::exchange::Imds;

/// The rule.
pub const RULE: Rule = Rule {
    id: "imdsv1-refused",
    severity: Severity::Error,
    explain: "401 to a request without a token from a client that did not ask for one: the instance requires IMDSv2.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.closed().filter(|exchange| exchange.imds() == Some(Imds::V1))?;
    if exchange.status() != Some(401) || case.history.forsaken(exchange, case.who).is_some() {
        return None;
    }
    let subject = case.subject();
    let asked_for_token = case.history.asked_for_token(exchange, case.who);
    let habit = match asked_for_token {
        true => "It did ask for a token before, and by what was seen got one: that its answer was lost was not seen.",
        false => "This client never asked for one.",
    };
    let mut verdict = Verdict::certain(
        if asked_for_token { "asked before" } else { "never asked" },
        capitalised(format!(
            "{subject} asked IMDS without a token (IMDSv1) and got 401: this instance requires tokens. {habit}"
        )),
    );
    if asked_for_token {
        verdict.confidence = Confidence::Likely;
    }
    let instance = case.instance();
    verdict.remedy = vec![case.describe_options()];
    verdict.caution = format!(
        "The cure is a client that speaks IMDSv2: every current AWS SDK does. As a stopgap, aws ec2 \
         modify-instance-metadata-options --instance-id {instance} --http-tokens optional lets it in, and with it every process \
         and container of the instance: the hop limit does not protect IMDSv1."
    );
    Some(verdict.resting_on_absence(case))
}
