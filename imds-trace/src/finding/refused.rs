//! Did somebody say no, and who?
//!
//! Told apart from `firewall-drop`, where nothing comes back, from `no-route`, where this host's want of a route is why, and from a
//! reset that only ends what was lost before.

use super::drops::{Cause, cause};
use super::firewall_drop::{commands, hook};
use super::{Case, Rule, Severity, Verdict};
use crate::exchange::Refused;
use crate::net::Heading;
use crate::observation::Icmp;

/// The rule.
pub const RULE: Rule = Rule {
    id: "refused",
    severity: Severity::Error,
    explain: "A TCP reset or an ICMP error came back in place of an answer, from this host or from beyond.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let exchange = case.closed()?;
    let refusal = exchange.refusal.filter(|_| exchange.answered.is_none() && !exchange.responded)?;
    // The client had left of its own accord: a reset is what it gets for that.
    if exchange.left.is_some_and(|left| left < refusal.at) {
        return None;
    }
    let dropped = exchange.request_drop();
    let by_firewall = dropped.filter(|dropped| cause(Heading::ToImds, dropped) == Cause::Netfilter);
    if (dropped.is_some() && by_firewall.is_none()) || exchange.response_drop().is_some() {
        return None;
    }
    let subject = case.subject();
    let what = match (&exchange.request, exchange.handshake) {
        (Some(request), _) => format!("The {} {} of {subject}", request.method, request.path),
        (None, true) => format!("The connection of {subject}"),
        (None, false) => format!("The connection attempt of {subject}"),
    };
    let (form, sender) = match refusal.how {
        Refused::Reset => ("a TCP reset".to_owned(), None),
        Refused::Icmp(icmp) => (format!("ICMP {}", meaning(&icmp)), Some(icmp.sender)),
    };
    let whence = match (refusal.from_outside, by_firewall.map(hook)) {
        (true, _) => "from beyond this host".to_owned(),
        (false, Some(Some(hook))) => format!("from this host: a firewall rule rejects it at netfilter's {hook} hook"),
        (false, Some(None)) => "from this host: a firewall rule rejects it".to_owned(),
        (false, None) => "from this host: it never came in from outside".to_owned(),
    };
    let by = sender.map(|sender| format!(" sent by {sender}")).unwrap_or_default();
    let mut verdict = Verdict::certain(
        format!("{form} {} {}", refusal.from_outside, by_firewall.is_some()),
        format!("{what} was refused with {form}{by}, {whence}."),
    );
    verdict.drop = by_firewall.cloned();
    verdict.path = case.path(None);
    match by_firewall {
        Some(dropped) => {
            verdict.remedy = commands(case, dropped);
            verdict.caution = "The rule may be there on purpose, to keep containers off the instance's role. Then leave it, and \
                               give the job a role of its own (OIDC, ECS task role, EKS Pod Identity)."
                .to_owned();
        }
        None => {
            verdict.remedy = vec![format!("ip route get {}", exchange.connection.endpoint.address)];
            verdict.caution = "EC2's IMDS does not refuse connections: with its endpoint disabled it answers 403. Something on the \
                               way does, a firewall, a network policy, or a proxy in the place of IMDS that does not run."
                .to_owned();
            if !refusal.from_outside {
                let iptables = if exchange.connection.endpoint.address.is_ipv4() { "iptables" } else { "ip6tables" };
                verdict.remedy.push(format!("{iptables} -t nat -vnL PREROUTING --line-numbers"));
                verdict.remedy.push("nft -a list ruleset".to_owned());
            }
        }
    }
    Some(verdict)
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
