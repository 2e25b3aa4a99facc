//! Did the kernel drop a packet for a reason that no other rule names, and did the exchange fail with it?

use super::drops::{Cause, Failed, failed, is_lowered, spent_at_program};
use super::programs::{Gate, Program};
use super::{Case, Confidence, Rule, Severity, Verdict};
use crate::net::Heading;
use crate::printable::shell_word;

/// The rule.
pub const RULE: Rule = Rule {
    id: "kernel-drop",
    severity: Severity::Error,
    explain: "The kernel dropped a packet of an exchange that got no answer, for a reason that no other rule names.",
    examine,
};

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let failed = failed(case)?;
    match failed.cause {
        Cause::Other => {}
        Cause::Program(program) => return by_program(case, &failed, program),
        Cause::Spent => return spent_here(case, &failed),
        Cause::Netfilter
        | Cause::ReversePath
        | Cause::NoRoute
        | Cause::NotForwarding
        | Cause::NoNeighbour
        | Cause::Malformed => return None,
    }
    let drop = &failed.dropped.drop;
    let reason = drop.reason.as_deref().unwrap_or("this kernel gives no reason");
    let mut verdict = Verdict::certain(
        format!("{:?} {} {reason} {}", failed.heading, drop.function(), drop.netns.0),
        format!(
            "{} was dropped by the kernel in {}{} ({reason}), {}.",
            failed.packet(&case.subject()),
            drop.function(),
            failed.on(),
            failed.so()
        ),
    );
    let enter = case.enter(drop.netns);
    // Taken for a copy everywhere but where the client is (see `journey::drops`).
    if drop.is_misaddressed() {
        verdict.confidence = Confidence::Likely;
        verdict.summary.push_str(
            " It bears another MAC address than the interface that it came to: perhaps who sent it there has a stale neighbour entry, or \
             a static one.",
        );
        verdict.remedy.extend(case.who.address.map(|address| format!("ip neigh show to {address}")));
    }
    if let Some(interface) = &drop.interface {
        verdict.remedy.push(format!("{enter}ip -s -s link show dev {}", shell_word(&interface.name)));
    }
    verdict.remedy.push(format!("{enter}nstat -az"));
    verdict.remedy.push("imds-trace doctor".to_owned());
    verdict.caution = Some("Drop reasons are documented in the kernel's include/net/dropreason-core.h; the function says where. The counters of interface and namespace show whether other traffic is hit too."
        .to_owned());
    Some(failed.concluded(verdict, case))
}

/// Its TTL was used up on this host, and it had come in with enough.
fn spent_here(case: &Case<'_>, failed: &Failed<'_>) -> Option<Verdict> {
    let exchange = case.exchange;
    if failed.heading == Heading::ToImds {
        return Some(spent_by_client(case, failed));
    }
    let travel = if failed.is_rest { exchange.rest.as_ref() } else { exchange.inward.as_ref() };
    if exchange.is_aside(failed.dropped, case.who.netns) {
        return None;
    }
    let hops = &travel?.hops;
    let first = hops.first().filter(|_| is_lowered(hops, failed.dropped, case.hop_limit.needed))?;
    let (drop, interface) = (&failed.dropped.drop, &first.hook.interface.name);
    let mut verdict = Verdict::certain(
        format!("spent {} {}", drop.function(), drop.netns.0),
        format!(
            "{} was dropped in {}{} with TTL {}, {}. It had come in by {interface} with TTL {}: its TTL \
             is lowered on this host, or it went in a circle. The hop limit of the instance is not why.",
            failed.packet(&case.subject()),
            drop.function(),
            failed.on(),
            failed.dropped.ttl.0,
            failed.so(),
            first.ttl.0,
        ),
    );
    let (enter, iptables) = (case.enter(drop.netns), case.iptables());
    verdict.remedy = vec![
        format!("{enter}{iptables} -t mangle -vnL --line-numbers"),
        format!("{enter}nft -a list ruleset"),
        format!("{enter}ip route get {}", case.who.address?),
    ];
    verdict.caution = Some("A rule with the target TTL or HL (of nftables, `ip ttl set`) lowers it; a route to the client that leads back to where \
                       the packet came from makes a circle. Either may be there on purpose: ask whoever set it up."
        .to_owned());
    Some(failed.concluded(verdict, case))
}

/// A request's own TTL was used up.
fn spent_by_client(case: &Case<'_>, failed: &Failed<'_>) -> Verdict {
    let drop = &failed.dropped.drop;
    let first = case.exchange.outward.as_ref().and_then(|travel| travel.hops.first());
    let came = first.map(|hop| format!(" It was first seen at {} with TTL {}.", hop.hook.interface.name, hop.ttl.0));
    let mut verdict = Verdict::certain(
        format!("spent request {} {}", drop.function(), drop.netns.0),
        format!(
            "{} was dropped in {}{} with TTL {}, {}.{} Its own TTL was used up: something where the client is, or on its way, sets it low \
             (Linux starts with 64), or it went in a circle. The hop limit of the instance is not why.",
            failed.packet(&case.subject()),
            drop.function(),
            failed.on(),
            failed.dropped.ttl.0,
            failed.so(),
            came.unwrap_or_default(),
        ),
    );
    let (enter, iptables) = (case.who.netns.map(|netns| case.enter(netns)).unwrap_or_default(), case.iptables());
    verdict.remedy = vec![
        match case.exchange.endpoint.address.is_ipv4() {
            true => format!("{enter}sysctl net.ipv4.ip_default_ttl"),
            false => format!("{enter}sysctl net.ipv6.conf.all.hop_limit"),
        },
        format!("{enter}ip route get {}", case.exchange.endpoint.address),
        format!("{enter}{iptables} -t mangle -vnL --line-numbers"),
        format!("{iptables} -t mangle -vnL --line-numbers"),
    ];
    verdict.remedy.dedup();
    verdict.caution = Some("ip_default_ttl (hop_limit for IPv6), a route's hoplimit or a rule with the target TTL or HL sets it. It may be there on purpose, to keep \
                       containers off the instance's role."
        .to_owned());
    failed.concluded(verdict, case)
}

/// A program did, and whose it is only the person at the host can know.
fn by_program(case: &Case<'_>, failed: &Failed<'_>, program: Program) -> Option<Verdict> {
    let hops = case.exchange.inward.as_ref().map(|travel| travel.hops.as_slice()).unwrap_or_default();
    if failed.heading == Heading::FromImds && spent_at_program(case, hops, failed.dropped).is_some() {
        return None;
    }
    let drop = &failed.dropped.drop;
    let interface = drop.interface.as_ref().map(|interface| &*interface.name);
    let reason = match program.named {
        true => drop.reason.as_deref().unwrap_or_default(),
        false => "this kernel gives no reason; it is known by the function",
    };
    let mut verdict = Verdict::certain(
        format!("{:?} {:?} {} {}", failed.heading, program.gate, interface.unwrap_or_default(), drop.netns.0),
        format!(
            "{} was dropped in {} by {} in {} ({reason}), {}.",
            failed.packet(&case.subject()),
            drop.function(),
            program.gate.told(interface.unwrap_or_default()),
            case.whose(drop.netns),
            failed.so()
        ),
    );
    verdict.remedy = program.gate.commands(&case.enter(drop.netns), interface.map(shell_word).as_deref());
    verdict.caution = Some("Which program it was the kernel does not say. A network policy (VPC CNI's policy agent, Cilium, Calico), a cloud \
                       agent or a hardening script may drop on purpose, to keep containers off the instance's role: then change the \
                       policy, or give the job a role of its own (OIDC, ECS task role, EKS Pod Identity)."
        .to_owned());
    if matches!(program.gate, Gate::Ingress | Gate::Egress | Gate::Xdp) {
        verdict.caution.get_or_insert_default().push_str(
            " bpftool shows BPF programs of every kind, tc the filters that are not on tcx; imds_ingress and imds_egress are this \
             tracer's own, while it runs.",
        );
    }
    let mut verdict = failed.concluded(verdict, case);
    if !program.named {
        verdict.confidence = Confidence::Likely;
    }
    Some(verdict)
}
