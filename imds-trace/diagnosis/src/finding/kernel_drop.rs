//! Did the kernel drop a packet for a reason that no other rule names, and did the exchange fail with it?

use super::drops::{Cause, Failed, failed, spent_at_program};
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
        Cause::Spent
        | Cause::Netfilter
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
            "{} was dropped by the kernel in {}{} ({reason}), and no answer reached the client.",
            failed.packet(&case.subject()),
            drop.function(),
            failed.on()
        ),
    );
    let enter = case.enter(drop.netns);
    if let Some(interface) = &drop.interface {
        verdict.remedy.push(format!("{enter}ip -s -s link show dev {}", shell_word(&interface.name)));
    }
    verdict.remedy.push(format!("{enter}nstat -az"));
    verdict.remedy.push("imds-trace doctor".to_owned());
    verdict.caution = Some("Drop reasons are documented in the kernel's include/net/dropreason-core.h; the function says where. The counters of interface and namespace show whether other traffic is hit too."
        .to_owned());
    Some(failed.concluded(verdict, case))
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
            "{} was dropped in {} by {} in {} ({reason}), and no answer reached the client.",
            failed.packet(&case.subject()),
            drop.function(),
            program.gate.told(interface.unwrap_or_default()),
            case.whose(drop.netns),
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
