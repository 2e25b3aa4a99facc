//! Did a client ask without a token because its token request brought nothing?

use super::{Case, Rule, Severity, Verdict, capitalised};
use crate::exchange::Imds;

/// The rule.
pub const RULE: Rule = Rule {
    id: "imdsv1-fallback",
    severity: Severity::Warning,
    explain: "A token request got no answer, then the same process asked without a token: masked and slow where IMDSv1 is \
              allowed, disguised as a 401 where it is not.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.closed().filter(|exchange| exchange.imds() == Some(Imds::V1))?;
    let status = exchange.status()?;
    let forsaken = case.history.forsaken(exchange, case.who)?;
    let seconds = forsaken.waited.as_secs_f64();
    let subject = case.subject();
    let summary = match status {
        401 => format!(
            "{subject} waited {seconds:.1} s for a token that never came, then asked without one and got 401: that 401 is not \
             the cause, the lost token response is."
        ),
        _ => format!(
            "{subject} waited {seconds:.1} s for a token that never came, then fell back to IMDSv1 and got {status}: it works, \
             slowly, until tokens are required."
        ),
    };
    let mut verdict = Verdict::certain(status.to_string(), capitalised(summary));
    verdict.waited = Some(forsaken.waited);
    verdict.remedy = case.probe().into_iter().collect();
    verdict.caution =
        "Mend the token request (see the finding about it); AWS_EC2_METADATA_V1_DISABLED=true makes SDKs fail \
                       openly instead of falling back."
            .to_owned();
    Some(verdict)
}
