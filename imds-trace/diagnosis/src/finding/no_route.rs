//! Did a connect never leave, for want of a route?
//!
//! A connect that fails before its SYN is seen as an attempt and nothing after it. A route that this host lacks is seen as a drop.

use super::drops::{Cause, failed, is_unexplained};
use super::socket_error::is_refused;
use super::{Case, Confidence, Rule, Severity, Verdict, capitalised};
use crate::printable::shell_word;

/// The rule.
pub const RULE: Rule = Rule {
    id: "no-route",
    severity: Severity::Error,
    explain: "A connect never left the client's network namespace, or this host had no route to send it on by.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let mut verdict = if case.exchange.is_attempt() { never_left(case)? } else { not_sent_on(case)? };
    verdict.caution = Some("A missing, prohibited or unreachable route may be there on purpose, to keep containers off IMDS. On EC2 the \
                       default route is enough for 169.254.169.254; fd00:ec2::254 needs IPv6 on the instance and on the network."
        .to_owned());
    Some(verdict)
}

fn never_left(case: &Case<'_>) -> Option<Verdict> {
    // That nothing came of it is inferred from not seeing it: where records were lost, nothing follows from that.
    let exchange = case.closed()?;
    let absent = case.absent().ok()?;
    if case.who.has_no_port || case.who.error.is_some() && is_refused(case) {
        return None;
    }
    let endpoint = exchange.endpoint;
    let subject = case.subject();
    // A pod's, inside its namespace: nobody watches there.
    let own = match case.who.netns.is_some_and(|netns| netns != case.host.netns) {
        true => "; or it left by an interface that its namespace has to itself (an ENI)",
        false => "",
    };
    let (cause, what) = match case.who.failed_after {
        None => (
            "attempt",
            format!(
                "{subject} called connect() to {endpoint} and no SYN followed: the kernel found no route for it in the \
                 client's network namespace, or was told to refuse it, or a program in connect() sent it elsewhere."
            ),
        ),
        Some(after) => (
            "silent",
            format!(
                "{subject} called connect() to {endpoint} and gave up after {:.1} s, and no packet of it was seen: it came to none \
                 of the places that are watched. The client's gateway does not answer (ARP, neighbour discovery), its interface is \
                 down, or a redirect took it on its way in (DNAT on a bridge, with br_netfilter){own}.",
                after.as_secs_f64()
            ),
        ),
    };
    let mut verdict = Verdict::likely(cause, capitalised(what), absent);
    let enter = case.who.netns.map(|netns| case.enter(netns)).unwrap_or_default();
    let family = if endpoint.address.is_ipv4() { "" } else { "-6 " };
    verdict.remedy = vec![format!("{enter}ip route get {}", endpoint.address)];
    verdict.remedy.push(match case.who.failed_after {
        None => format!("{enter}ip {family}route show table all"),
        Some(_) => format!("{enter}ip {family}neigh show"),
    });
    if case.who.failed_after.is_some() {
        verdict.remedy.extend(case.redirects());
    }
    Some(verdict)
}

fn not_sent_on(case: &Case<'_>) -> Option<Verdict> {
    let failed = failed(case).filter(|failed| matches!(failed.cause, Cause::NoRoute | Cause::NoNeighbour))?;
    let drop = &failed.dropped.drop;
    let enter = case.enter(drop.netns);
    let whose = case.whose(drop.netns);
    let by_neighbour = failed.cause == Cause::NoNeighbour;
    let why = match by_neighbour {
        true => format!(
            "the next hop that {whose} has for it does not answer (ARP, neighbour discovery), as far as was heard: it is not there, or \
             what it was asked or answered was lost"
        ),
        false => format!("{whose} has no route for it, or one that refuses it"),
    };
    let mut verdict = Verdict::certain(
        format!("{:?} {} {}", failed.heading, drop.function(), drop.netns.0),
        format!("{} was dropped in {}{}: {why}.", failed.packet(&case.subject()), drop.function(), failed.on()),
    );
    // Forwarding that is off is dropped in the same function, and the kernel sends no ICMP error then.
    let is_told = drop.netns == case.host.netns && case.host.forwarding.v4.is_some();
    let may_be_off = drop.function().starts_with("ip_error") && is_unexplained(failed.dropped) && !is_told;
    if may_be_off && case.exchange.refusal.is_none() {
        verdict.confidence = Confidence::Likely;
        verdict
            .summary
            .push_str(" (Or it does not forward: `sysctl net.ipv4.ip_forward` says; this kernel gives no reason.)");
    }
    let address = match failed.heading {
        crate::net::Heading::ToImds => case.exchange.endpoint.address,
        crate::net::Heading::FromImds => case.who.address?,
    };
    verdict.remedy = vec![
        format!("{enter}ip route get {address}"),
        format!("{enter}ip {} show", if by_neighbour { "neigh" } else { "rule" }),
    ];
    if by_neighbour && let Some(interface) = &drop.interface {
        let name = shell_word(&interface.name);
        verdict.remedy.push(format!("{enter}ip -s -s link show dev {name}"));
        verdict.remedy.push(format!("{enter}tc -s qdisc show dev {name}"));
    }
    if may_be_off {
        verdict.remedy.push(format!("{enter}sysctl net.ipv4.ip_forward"));
    }
    Some(failed.concluded(verdict, case))
}
