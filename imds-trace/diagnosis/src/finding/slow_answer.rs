//! Did the answer come when its client had given up?

use super::{Case, Rule, Severity, Verdict};
use crate::printable::shell_word;

/// The rule.
pub const RULE: Rule = Rule {
    id: "slow-answer",
    severity: Severity::Warning,
    explain: "The answer came after the client had given up.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.settled().filter(|exchange| exchange.is_late())?;
    let asked = exchange.asked.unwrap_or(exchange.opened);
    let (left, came) = (exchange.left?, exchange.came?);
    let subject = case.subject();
    let mut verdict = Verdict::certain(
        "late",
        format!(
            "The answer to the {} of {subject}{} came after {:.2} s; the client had given up after {:.2} s.",
            case.request_line(),
            case.hint(),
            came.since(asked).as_secs_f64(),
            left.since(asked).as_secs_f64()
        ),
    );
    verdict.waited = Some(left.since(asked));
    verdict.path = case.path(None);
    verdict.remedy = vec![
        "export AWS_METADATA_SERVICE_TIMEOUT=5 AWS_METADATA_SERVICE_NUM_ATTEMPTS=3".to_owned(),
        format!("ethtool -S {} | grep linklocal_allowance_exceeded", shell_word(uplink(case))),
    ];
    verdict.caution =
        "The two variables are botocore's and the AWS CLI's (Java v2 has the first); other SDKs set the time in code. \
                       A slow IMDS is mostly one that is asked too often."
            .to_owned();
    Some(verdict)
}

/// The interface by which the request left, as far as it was seen.
fn uplink<'a>(case: &Case<'a>) -> &'a str {
    let last = case.exchange.outward.as_ref().and_then(|travel| travel.hops.last());
    last.map_or("<interface>", |hop| hop.hook.interface.name.as_str())
}
