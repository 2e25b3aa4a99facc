//! At which of netfilter's hooks was a packet dropped, and which commands show the rules there?

use super::Case;
use super::drops::plain;
use crate::journey::Dropped;

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
    ("br_", "bridge"),
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
