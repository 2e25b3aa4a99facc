//! Is the TTL with which a client's requests start enough for the host to forward them?

use super::firewall::Firewall;
use super::firewall::fate::fate;
use super::firewall::rules::{Chain, Changed, Verdict};
use super::sight::{Leg, Sight};
use super::{Answer, Status};
use crate::interfaces::snapshot::Snapshot;

/// The host forwards once, and drops what comes with less (`ip_forward`, `ip6_forward`).
const NEEDED: u8 = 2;

/// What is said of a client's way that is else as it should be, if the host forwards what comes by it.
pub fn enough(sight: &Sight, network: &Snapshot, leg: &Leg, said: Answer) -> Answer {
    let Some(ttl) = network.ttl(leg.endpoint).filter(|ttl| *ttl < NEEDED && said.status == Status::Ok) else {
        return said;
    };
    // What the host keeps, or sends to itself, is not forwarded.
    let is_redirected = sight.client(leg).is_none_or(|client| {
        let fate = fate(&sight.host.firewall.chains, &client);
        let redirects = |rule: &Verdict| matches!(rule, Verdict::Redirect(_));
        fate.hits.iter().any(|(_, hit)| hit.rule.is_some_and(|rule| redirects(&rule.verdict)))
    });
    if is_redirected {
        return said;
    }
    let inside = &sight.inside[leg.inside];
    let own = inside.view.as_ref().map(|view| view.firewall.chains.as_slice()).unwrap_or_default();
    let is_read = |firewall: &Firewall| firewall.unread().is_none();
    let all_read = is_read(&sight.host.firewall) && inside.view.as_ref().is_ok_and(|view| is_read(&view.firewall));
    let is_sure = all_read && !changes_ttl(own) && !changes_ttl(&sight.host.firewall.chains);
    let (family, setting) = match leg.endpoint.is_ipv4() {
        true => ("ip", "net.ipv4.ip_default_ttl"),
        false => ("ip -6", "-a -r hop_limit"),
    };
    let look = format!("sh -c 'sysctl {setting}; {family} route get {}'", leg.endpoint);
    short(ttl, is_sure, said).look(inside.command(&look))
}

/// May a rule give packets another TTL?
fn changes_ttl(chains: &[Chain]) -> bool {
    let mut rules = chains.iter().flat_map(|chain| &chain.rules);
    rules.any(|rule| matches!(rule.verdict, Verdict::Changes(Changed::Ttl | Changed::MoreTtl)))
}

fn short(ttl: u8, is_sure: bool, said: Answer) -> Answer {
    let begins = format!(
        "{} But what it sends starts with a TTL of {ttl} (net.ipv4.ip_default_ttl or hop_limit of its namespace, or its route's hoplimit), and the host forwards nothing that comes with less than {NEEDED}",
        said.summary
    );
    let (status, summary) = match is_sure {
        true => (Status::Broken, format!("{begins}: nothing gets out.")),
        false => (Status::Unknown, format!("{begins}, unless a firewall rule changes that.")),
    };
    Answer { status, summary, ..said }
}

#[cfg(test)]
mod tests {
    use super::super::Subject;
    use super::super::firewall::iptables;
    use super::*;

    #[test]
    fn a_request_that_starts_with_too_little_is_not_forwarded_unless_a_rule_gives_it_more() {
        let said = || Answer::new(Subject::Host, Status::Ok, "It is reached.");
        assert_eq!(short(1, true, said()).status, Status::Broken);
        assert_eq!(short(1, false, said()).status, Status::Unknown);
        let changes = |rule: &str| {
            let text = format!("*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n{rule}\nCOMMIT\n");
            changes_ttl(&iptables::read(&text, "iptables"))
        };
        assert!(changes("-A PREROUTING -i docker0 -j TTL --ttl-set 64"));
        assert!(!changes("-A FORWARD -d 169.254.169.254/32 -j DROP"));
    }
}
