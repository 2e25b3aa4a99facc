//! Did the answer come when its client had given up?

use super::answerer::Answerer;
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
    let (waited, took) = (left.since(asked), came.since(asked));
    let subject = case.subject();
    let mut verdict = Verdict::certain(
        "late",
        format!(
            "The answer to the {} of {subject}{} came after {:.2} s, and its client was gone: it had ended its side after {:.2} s.",
            case.request_line(),
            case.hint(),
            took.as_secs_f64(),
            waited.as_secs_f64()
        ),
    );
    verdict.waited = Some(waited);
    verdict.path = case.path(None);
    // A second more than it took this time.
    let enough = took.as_secs() + 2;
    if exchange.software().is_some_and(|software| software.reads_timeout()) {
        verdict.remedy.push(format!("export AWS_METADATA_SERVICE_TIMEOUT={enough}"));
    }
    verdict.caution =
        Some(format!("The client has to wait {enough} s for such an answer; most SDKs have the time set in code."));
    if case.answerer() != Answerer::StandIn {
        verdict.remedy.push(format!("ethtool -S {} | grep linklocal_allowance_exceeded", uplink(case)));
        verdict.caution.get_or_insert_default().push_str(" A slow IMDS is mostly one that is asked too often.");
    }
    Some(verdict)
}

/// The interface by which the request left, as far as it was seen.
fn uplink(case: &Case<'_>) -> String {
    let last = case.exchange.outward.as_ref().and_then(|travel| travel.hops.last());
    // A capture may not know its interfaces' names.
    let last = last.filter(|_| !case.rests_on_capture());
    last.map_or("<interface>".to_owned(), |hop| shell_word(&hop.hook.interface.name))
}
