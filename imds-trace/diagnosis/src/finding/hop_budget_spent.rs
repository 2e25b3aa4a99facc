//! Did a response arrive with nothing of its TTL left?

use super::{Case, Rule, Severity, Verdict};
use crate::journey::Fate;

/// The rule.
pub const RULE: Rule = Rule {
    id: "hop-budget-spent",
    severity: Severity::Notice,
    explain: "A response reached its client with TTL 1: one more hop would have lost it.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.closed()?;
    let inward = exchange.inward.as_ref().filter(|travel| travel.fate == Fate::Delivered)?;
    // It may have been lost behind the last place that saw it.
    exchange.response_proof?;
    let last = inward.hops.last().filter(|hop| hop.ttl.0 == 1)?;
    let subject = case.subject();
    let mut verdict = Verdict::certain(
        last.hook.interface.name.to_string(),
        format!(
            "The response to {subject} arrived at {} with TTL 1: it works, and one more hop (a nested bridge, docker-in-docker) \
             would lose it.",
            last.hook.interface.name
        ),
    );
    verdict.path = case.path(None);
    Some(verdict)
}
