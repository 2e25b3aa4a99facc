//! Did somebody say no, and who?
//!
//! Told apart from `firewall-drop`, where nothing comes back, from `no-route`, where this host's want of a route is why, and from a
//! reset that only ends what was lost before.

use super::drops::{Cause, cause};
use super::netfilter::{commands, hook};
use super::socket_error::error_of;
use super::{Case, Confidence, IMDS_PORT, Rule, Severity, Verdict};
use crate::exchange::{Icmp, Refusal, Refused};
use crate::journey::Redirect;
use crate::net::Heading;

/// The rule.
pub const RULE: Rule = Rule {
    id: "refused",
    severity: Severity::Error,
    explain: "A TCP reset or an ICMP error came back in place of an answer, from this host or from beyond.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.closed().filter(|exchange| exchange.answered.is_none() && !exchange.responded)?;
    if exchange.cut_off {
        return None;
    }
    // A client that had left of its own accord gets a reset for that.
    let has_left = |at| exchange.left.is_some_and(|left| left < at);
    let refusal = exchange.refusal.filter(|refusal| !has_left(refusal.at));
    let told =
        error_of(case).filter(|_| exchange.refusal.is_none() && (!exchange.is_attempt() || case.who.error.is_some()));
    if refusal.is_none() && told.is_none() {
        return None;
    }
    let dropped = exchange.request_drop();
    let by_firewall = dropped.filter(|dropped| cause(Heading::ToImds, dropped) == Cause::Netfilter);
    let is_elsewhere = exchange.redirected.is_some();
    if (dropped.is_some() && by_firewall.is_none() && !is_elsewhere) || exchange.response_drop().is_some() {
        return None;
    }
    let subject = case.subject();
    let what = match (&exchange.request, exchange.handshake) {
        (Some(request), _) => format!("The {} {} of {subject}", request.method, request.path),
        (None, true) => format!("The connection of {subject}"),
        (None, false) => case.connection_attempt(),
    };
    let form = match (refusal.map(|refusal| refusal.how), told) {
        (Some(Refused::Icmp(icmp)), _) => format!("ICMP {} sent by {}", meaning(&icmp), icmp.sender),
        (None, Some(words)) => {
            format!("`{words}` on the client's socket (the packet that caused it was not seen at any hook)")
        }
        (Some(Refused::Reset), _) | (None, None) => "a TCP reset".to_owned(),
    };
    let from_outside = refusal.is_some_and(|refusal| refusal.from_outside);
    let was_forwarded = refusal.is_some_and(|refusal| refusal.was_forwarded);
    // Of a client whose packets pass no place that is watched, who has perhaps an interface of its own.
    let is_unseen = refusal.is_none() && exchange.is_attempt() && case.who.netns != Some(case.host.netns);
    // In a capture at the client everything comes in from outside, in one at a bridge nothing does.
    let unknown = case.rests_on_capture() && !exchange.decrements.forwarded();
    let whence = match (from_outside, by_firewall) {
        _ if unknown => "from where this capture does not show".to_owned(),
        (true, _) => "from beyond this host".to_owned(),
        (false, None) if was_forwarded => "from where was not seen: its TTL shows that it was forwarded".to_owned(),
        (false, None) if is_unseen => "from where was not seen".to_owned(),
        (false, Some(dropped)) => {
            let at = hook(dropped).map(|hook| format!(" at netfilter's {hook} hook")).unwrap_or_default();
            let whose = case.whose(dropped.drop.netns);
            format!("from {whose}: a firewall rule rejects it{at}")
        }
        (false, None) => "from this host: it never came in from outside".to_owned(),
    };
    let redirected = match exchange.redirected {
        Some(Redirect { to, .. }) => {
            let then = match (by_firewall, exchange.handshake) {
                (Some(_), _) => "",
                (None, true) => ", and whoever listens there ended it",
                (None, false) => ", and nobody listens there",
            };
            format!(" Something on this host had redirected it (DNAT) to {to}{then}.")
        }
        None if from_outside && exchange.endpoint.port != IMDS_PORT => {
            format!(" IMDS listens at port {IMDS_PORT} alone.")
        }
        None => String::new(),
    };
    let kind = match refusal.map(|refusal| refusal.how) {
        Some(Refused::Icmp(icmp)) => format!("icmp {} {}", icmp.kind, icmp.code),
        Some(Refused::Reset) => "reset".to_owned(),
        None => "told".to_owned(),
    };
    let mut verdict = Verdict::certain(
        format!("{kind} {from_outside} {}", by_firewall.is_some()),
        format!("{what} was refused with {form}, {whence}.{redirected}"),
    );
    verdict.drop = by_firewall.cloned();
    verdict.path = case.path(None);
    if !from_outside && by_firewall.is_none() {
        // That it was not seen coming in, or not at all.
        verdict = verdict.resting_on(case.absent_outside());
    }
    if (was_forwarded || is_unseen) && by_firewall.is_none() && !from_outside {
        verdict.confidence = Confidence::Likely;
    }
    if refusal.is_none() && case.who.error.is_none() {
        verdict.confidence = Confidence::Likely;
        verdict.summary.push_str(" (Or the client gave it up itself, or was ended: its socket was told no error.)");
    }
    if is_of_routing(refusal) && !from_outside && dropped.is_none() {
        verdict.confidence = Confidence::Likely;
        verdict.summary.push_str(" (What it answers was not seen: the want of a route, or a firewall rule.)");
    }
    let Some(dropped) = by_firewall else {
        verdict.remedy = vec![format!("ip route get {}", exchange.endpoint.address)];
        verdict.caution = Some(
            "EC2's IMDS does not refuse connections: with its endpoint disabled it answers 403. Something on the way \
                           does: a firewall, a network policy, or a proxy in the place of IMDS that does not run."
                .to_owned(),
        );
        if !from_outside {
            verdict.remedy.extend(case.redirects());
            verdict.remedy.extend(exchange.redirected.map(|redirect| super::redirected_away::listeners(redirect.to)));
        }
        return Some(verdict);
    };
    verdict.remedy = commands(case, dropped);
    verdict.caution = Some("The rule may be there on purpose, to keep containers off the instance's role. Then leave it, and give the job \
                       a role of its own (OIDC, ECS task role, EKS Pod Identity)."
        .to_owned());
    Some(verdict)
}

/// Is it what a host says that has no route?
fn is_of_routing(refusal: Option<Refusal>) -> bool {
    let Some(Refusal { how: Refused::Icmp(Icmp { sender, kind, code }), .. }) = refusal else { return false };
    matches!((sender.is_ipv4(), kind, code), (true, 3, 0 | 1) | (false, 1, 0 | 3 | 6))
}

/// What an ICMP error says (RFC 792, RFC 1812, RFC 4443).
fn meaning(icmp: &Icmp) -> String {
    let words = match (icmp.sender.is_ipv4(), icmp.kind, icmp.code) {
        (true, 3, 0) | (false, 1, 0) => "network unreachable",
        (true, 3, 1) | (false, 1, 3) => "host unreachable",
        (true, 3, 2) => "protocol unreachable",
        (true, 3, 3) | (false, 1, 4) => "port unreachable",
        (true, 3, 4) => "fragmentation needed",
        (true, 3, 9 | 10 | 13) | (false, 1, 1) => "administratively prohibited",
        (false, 1, 6) => "reject route",
        (true, 11, _) | (false, 3, _) => "time exceeded",
        _ => return format!("type {} code {}", icmp.kind, icmp.code),
    };
    words.to_owned()
}
