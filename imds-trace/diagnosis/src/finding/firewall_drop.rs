//! Did a firewall rule drop a packet without a word, and did the exchange fail with it?
//!
//! Told apart from `refused`, where the rule sends an answer. Cannot know which rule it was: the kernel does not say.

use super::drops::{Cause, failed, plain};
use super::refused::is_refused;
use super::{Case, Rule, Severity, Verdict};
use crate::journey::Dropped;
use crate::net::Heading;

/// The rule.
pub const RULE: Rule = Rule {
    id: "firewall-drop",
    severity: Severity::Error,
    explain: "A firewall rule (iptables, nftables) dropped a packet of an exchange that got no answer.",
    examine,
};

/// Functions that call netfilter's hooks, and the hook's name as iptables and nftables have it. By prefix.
const HOOKS: [(&str, &str); 19] = [
    ("br_nf_pre_routing", "PREROUTING"),
    ("br_nf_forward", "FORWARD"),
    ("br_nf_post_routing", "POSTROUTING"),
    ("ip_rcv", "PREROUTING"),
    ("ip_sublist_rcv", "PREROUTING"),
    ("ip_list_rcv", "PREROUTING"),
    ("ipv6_rcv", "PREROUTING"),
    ("ip6_sublist_rcv", "PREROUTING"),
    ("ipv6_list_rcv", "PREROUTING"),
    ("ip_local_deliver", "INPUT"),
    ("ip6_input", "INPUT"),
    ("ip_forward", "FORWARD"),
    ("ip6_forward", "FORWARD"),
    ("__ip_local_out", "OUTPUT"),
    ("__ip6_local_out", "OUTPUT"),
    ("ip6_xmit", "OUTPUT"),
    ("ip_output", "POSTROUTING"),
    ("ip6_output", "POSTROUTING"),
    ("br_", "a bridge"),
];

/// The netfilter hook at which a packet was dropped, from the functions that led there; `None` if they do not say.
pub(super) fn hook(dropped: &Dropped) -> Option<&'static str> {
    dropped.drop.callers.iter().find_map(|caller| {
        let caller = plain(caller);
        HOOKS.iter().find(|(function, _)| caller.starts_with(function)).map(|(_, hook)| *hook)
    })
}

/// The commands that show the rules of a hook.
pub(super) fn commands(case: &Case<'_>, dropped: &Dropped) -> Vec<String> {
    let enter = case.enter(dropped.drop.netns);
    let on_host = enter.is_empty();
    let iptables = case.iptables();
    let mut commands = Vec::new();
    match hook(dropped) {
        // Docker's own place for the user's rules comes first there.
        Some("FORWARD") | None if on_host => {
            commands.push(format!("{iptables} -vnL DOCKER-USER --line-numbers"));
            commands.push(format!("{iptables} -vnL FORWARD --line-numbers"));
        }
        Some(chain @ ("INPUT" | "OUTPUT" | "FORWARD")) => {
            commands.push(format!("{enter}{iptables} -vnL {chain} --line-numbers"));
        }
        _ => commands.push(format!("{enter}{iptables}-save -c")),
    }
    commands.push(format!("{enter}nft -a list ruleset"));
    commands
}

fn examine(case: &Case<'_>) -> Option<Verdict> {
    let failed = failed(case).filter(|failed| failed.cause == Cause::Netfilter)?;
    let drop = &failed.dropped.drop;
    if failed.heading == Heading::ToImds && (case.exchange.refusal.is_some() || is_refused(case)) {
        return None;
    }
    let at = match hook(failed.dropped) {
        Some(hook) => format!("at netfilter's {hook} hook"),
        None => "at one of netfilter's hooks".to_owned(),
    };
    let mut verdict = Verdict::certain(
        format!("{:?} {at} {}", failed.heading, drop.netns.0),
        format!(
            "{} was dropped by a firewall rule of {} {at}{}, and no answer reached the client.",
            failed.packet(&case.subject()),
            case.whose(drop.netns),
            failed.on()
        ),
    );
    verdict.remedy = commands(case, failed.dropped);
    verdict.caution = "The rule may be there on purpose, to keep containers off the instance's role. Then leave it, and give the \
                       job a role of its own (OIDC, ECS task role, EKS Pod Identity), or set AWS_EC2_METADATA_DISABLED=true so \
                       that SDKs do not wait for IMDS."
        .to_owned();
    Some(failed.concluded(verdict, case))
}
