//! Did an answer come in to this host, and did the host send it elsewhere than to its client (a VPN's table, a policy rule)?
//!
//! Told apart from drops: nothing dropped it. Cannot know which route or rule it was.

use std::time::Duration;

use super::socket_error::is_refused;
use super::{Case, Confidence, Rule, Severity, Verdict};
use crate::coverage::Absent;
use crate::exchange::{Exchange, Travel};
use crate::journey::{Fate, Hop};
use crate::net::Direction;
use crate::printable::shell_word;

/// The rule.
pub const RULE: Rule = Rule {
    id: "misrouted-answer",
    severity: Severity::Error,
    explain: "An answer came in to this host and left it by another interface than its client is behind, was seen nowhere behind the one \
              that it came in by, or was never acknowledged by its client.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    went_elsewhere(case).or_else(|| taken(case))
}

/// The answer to its SYN came in, and its client, who waited, never acknowledged it: something took it behind the place that saw it.
fn taken(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.closed().filter(|exchange| exchange.is_unacknowledged() && exchange.refusal.is_none())?;
    let absent = case.absent().ok()?;
    let waited = exchange.left.or(exchange.closed)?.since(exchange.opened);
    let first = exchange.inward.as_ref()?.hops.first()?;
    if case.rests_on_capture() || waited < LEAST_WAIT || exchange.response_drop().is_some() || case.who.netns.is_none()
    {
        return None;
    }
    if !case.host.is_uplink(first, Direction::Ingress) || is_refused(case) {
        return None;
    }
    let (subject, by) = (case.subject(), &first.hook.interface.name);
    let mut verdict = Verdict::likely(
        format!("taken behind {by}"),
        format!(
            "The answer to the SYN of {subject} came in by {by}, and its client never acknowledged it in {:.1} s: behind that place \
             something takes it or sends it elsewhere (a filter of tc, a BPF program).",
            waited.as_secs_f64()
        ),
        absent,
    );
    verdict.path = case.path(None);
    let (name, enter) = (shell_word(by), case.who.netns.map(|netns| case.enter(netns)).unwrap_or_default());
    verdict.remedy = vec![
        format!("tc filter show dev {name} ingress"),
        format!("bpftool net show dev {name}"),
        format!("{enter}nft -a list ruleset"),
    ];
    Some(verdict)
}

fn went_elsewhere(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.closed().filter(|exchange| exchange.answered.is_none() && exchange.response_proof.is_none())?;
    let travel = exchange.inward.as_ref().filter(|travel| travel.fate == Fate::Unresolved)?;
    let (client, last) = (client_side(exchange)?, travel.hops.last()?);
    if case.rests_on_capture() || !case.host.is_uplink(travel.hops.first()?, Direction::Ingress) {
        return None;
    }
    let subject = case.subject();
    let came = format!("An answer to {subject} came in by {}", travel.hops.first()?.hook.interface.name);
    let back = &client.hook.interface.name;
    let mut verdict = match is_elsewhere(client, travel) {
        true => {
            let mut verdict = Verdict::certain(
                format!("by {}", last.hook.interface.name),
                format!(
                    "{came} and left by {}, not by {back}, where its client is, which never acknowledged it.",
                    last.hook.interface.name
                ),
            );
            if travel.copies < 2 {
                verdict.confidence = Confidence::Likely;
            }
            verdict
        }
        false => vanished(case, travel, &came, back, case.absent().ok()?)?,
    };
    verdict.path = case.path(None);
    verdict.weight = travel.copies.max(1);
    verdict.last = travel.last_lost;
    let (address, endpoint) = (case.who.address?, exchange.endpoint.address);
    let family = if endpoint.is_ipv4() { "" } else { "-6 " };
    let inward = shell_word(&travel.hops.first()?.hook.interface.name);
    verdict.remedy = vec![
        format!("ip {family}route get {address} from {endpoint} iif {inward}"),
        format!("ip {family}rule show"),
        format!("ip {family}route show table all {address}"),
    ];
    verdict.caution = Some(format!(
        "Mostly a catch-all route or policy rule of a VPN does this: a rule before it that looks up {address}'s network in table main \
         leaves the rest of its traffic where it is. The first command above shows the route that is used."
    ));
    Some(verdict)
}

/// A SYN that got no answer is sent again after a second, and so is the answer to it.
const LEAST_WAIT: Duration = Duration::from_secs(1);

/// Where its client's request came in first.
fn client_side(exchange: &Exchange) -> Option<&Hop> {
    let first = exchange.outward.as_ref()?.hops.first()?;
    (first.hook.direction == Direction::Ingress).then_some(first)
}

/// Did it leave this host, and not to where its client is?
fn is_elsewhere(client: &Hop, travel: &Travel) -> bool {
    let leaves = |hop: &&Hop| hop.hook.direction == Direction::Egress;
    let to_client = |hop: &Hop| hop.hook.interface == client.hook.interface;
    travel.hops.last().is_some_and(|last| leaves(&last)) && !travel.hops.iter().filter(leaves).any(to_client)
}

/// It was seen nowhere behind where it came in. With a TTL that is used up there is another reason.
fn vanished(case: &Case<'_>, travel: &Travel, came: &str, back: &str, absent: Absent) -> Option<Verdict> {
    let last = travel.hops.last().filter(|last| last.hook.direction == Direction::Ingress && last.ttl.0 > 1)?;
    // One that is not seen again may be a sighting less; all copies are not.
    if travel.copies < 2 || case.exchange.responded && case.exchange.asked.is_none() {
        return None;
    }
    Some(Verdict::likely(
        format!("behind {}", last.hook.interface.name),
        format!(
            "{came} {} times and was seen nowhere behind it, neither at {back}, where its client is, nor dropped: this host sends it \
             elsewhere.",
            travel.copies
        ),
        absent,
    ))
}
