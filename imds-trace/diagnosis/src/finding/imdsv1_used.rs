//! Did a client read without a token, and get what it asked for?

use super::history::Had;
use super::{Case, Rule, Severity, Verdict, capitalised};
use crate::exchange::Imds;
use crate::exchange::imds::is_success;

/// The rule.
pub const RULE: Rule = Rule {
    id: "imdsv1-used",
    severity: Severity::Warning,
    explain: "Success for a request without a token: IMDSv1 is allowed and in use.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.closed().filter(|exchange| exchange.imds() == Some(Imds::V1))?;
    let status = exchange.status().filter(|status| is_success(*status))?;
    let voice = case.speaks_for_instance()?;
    if let Had::Nothing(_) = case.history.had(exchange, case.who) {
        return None;
    }
    let subject = case.subject();
    let mut verdict = Verdict::certain(
        status.to_string(),
        capitalised(format!(
            "{subject} read from IMDS without a token (IMDSv1): it will fail once tokens are required."
        )),
    );
    let instance = case.instance();
    verdict.remedy = vec![format!(
        "aws ec2 modify-instance-metadata-options --instance-id {instance} --http-tokens required --http-endpoint enabled"
    )];
    verdict.caution =
        Some("Only after this client speaks IMDSv2: requiring tokens cuts off every client that does not.".to_owned());
    Some(voice.temper(verdict))
}
