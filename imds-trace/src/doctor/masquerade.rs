//! Do requests leave under the host's address? EC2 drops those that leave under one that is not the network interface's.

use std::net::IpAddr;

use super::astray;
use super::firewall::fate::{Client, Fate, fate};
use super::firewall::rules::{Chain, Hook, Verdict, What};
use super::sight::{self, Sight, is_link_local};
use super::{Answer, Check, Status, Subject, some_of};
use crate::interfaces::snapshot::{Snapshot, Way};
use diagnosis::net::Ifindex;
use diagnosis::printable::shell_word;
use diagnosis::way::network::in_prefix;

/// The check.
pub const CHECK: Check =
    Check { id: "masquerade", explain: "whether requests leave under the host's address", examine };

/// An address that a rule names, and that the uplink does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    /// It is one that no network interface of EC2 has.
    LinkLocal(IpAddr),
    /// It is not of the uplink's subnets.
    Foreign(IpAddr),
    /// It is, and the uplink does not have it: an old one, or one that the host was not told of.
    Unheld(IpAddr),
}

/// Clients that come in by one interface and go out by another, and fare alike.
struct Group {
    by: String,
    uplink: Ifindex,
    v6: bool,
    masqueraded: Option<bool>,
    /// The address that they get, where a rule names one.
    given: Option<Given>,
    /// The rule that gives them an address.
    rule: Option<String>,
    /// Has the uplink no address that they could get?
    bare: bool,
    /// Are they kept from being tracked, so that no rule for addresses is asked?
    untracked: Option<bool>,
    /// Has the uplink's network these addresses, too?
    own: bool,
    /// Are their addresses of none of their bridge's subnets?
    strays: bool,
    addresses: Vec<IpAddr>,
    names: Vec<String>,
    /// Is there anybody among them?
    real: bool,
}

fn examine(sight: &Sight) -> Vec<Answer> {
    let Ok(network) = &sight.host.network else { return Vec::new() };
    let mut groups: Vec<Group> = Vec::new();
    for endpoint in &sight.endpoints {
        let legs = sight.legs.iter().filter(|leg| leg.endpoint == *endpoint).filter_map(|leg| {
            let Some(Way::Out { interface, gateway, .. }) = sight.onward(leg) else { return None };
            Some((sight.client(leg)?, *interface, *gateway))
        });
        let idle = sight.bridges.iter().filter_map(|bridge| {
            let way = sight.forwarded(bridge.example(*endpoint)?, &bridge.name, *endpoint)?;
            let Way::Out { interface, gateway, .. } = way else { return None };
            Some((sight.example(bridge, *endpoint)?, *interface, *gateway))
        });
        for (client, uplink, gateway) in legs.chain(idle) {
            // What does not go to IMDS is told as such.
            if astray::of(sight, uplink, gateway, *endpoint).is_none() {
                take(&mut groups, sight, network, &client, uplink);
            }
        }
    }
    let own = sight.endpoints.iter().filter_map(|endpoint| of_host(sight, network, *endpoint));
    groups.iter().map(|group| answer(group, sight, network)).chain(own).collect()
}

/// What is to be said of what the host itself sends, where a rule changes its address.
fn of_host(sight: &Sight, network: &Snapshot, endpoint: IpAddr) -> Option<Answer> {
    let Some(Way::Out { interface, gateway, .. }) = network.way(endpoint) else { return None };
    if astray::of(sight, *interface, *gateway, endpoint).is_some() {
        return None;
    }
    let client = sight::own(String::new(), Some(network), endpoint)?;
    let fate = fate(&sight.host.firewall.chains, &client);
    let given = changed(&fate, network, *interface).filter(|_| !fate.ends)?;
    let uplink = network.name(*interface);
    let rule = fate.by.map(|rule| rule.text.as_str()).unwrap_or_default();
    let (status, summary) = if fate.masqueraded == Some(true) {
        given.told(rule, &format!("the host itself sends by {uplink}"))
    } else {
        let summary = format!(
            "Whether the rule `{rule}` gives what the host itself sends by {uplink} another address cannot be decided here."
        );
        (Status::Unknown, summary)
    };
    Some(Answer::new(Subject::Host, status, summary).look(look(sight, endpoint.is_ipv6(), Some(rule))))
}

/// What is to be said of the address that a rule gives, or may give, to what leaves by an interface.
fn changed(fate: &Fate, network: &Snapshot, uplink: Ifindex) -> Option<Given> {
    let (first, last) = fate.becomes?;
    let addresses = network.addresses.iter().filter(|(index, _, _)| *index == uplink);
    let held = |address| addresses.clone().any(|(_, held, _)| *held == address);
    let of_uplink = |address| addresses.clone().any(|(_, held, length)| in_prefix(address, (*held, *length)));
    given(first, last, &held, &of_uplink)
}

/// A command that shows the rules for addresses, and this one.
fn look(sight: &Sight, v6: bool, rule: Option<&str>) -> String {
    match tool(sight, v6).filter(|_| rule.is_none_or(|rule| rule.starts_with("-A "))) {
        Some(tool) => format!("{tool} -t nat -nvL POSTROUTING"),
        None => "nft list ruleset".to_owned(),
    }
}

/// The tool that shows a family's rules, if it is there.
fn tool(sight: &Sight, v6: bool) -> Option<&'static str> {
    let tool = if v6 { "ip6tables" } else { "iptables" };
    sight.host.firewall.read_by.contains(&tool).then_some(tool)
}

fn take(groups: &mut Vec<Group>, sight: &Sight, network: &Snapshot, client: &Client, uplink: Ifindex) {
    let (Some(by), Some(address)) = (client.by.clone(), client.address) else { return };
    let fate = fate(&sight.host.firewall.chains, client);
    if fate.ends {
        // It goes nowhere under any address.
        return;
    }
    let (masqueraded, untracked, v6) = (fate.masqueraded, fate.untracked, address.is_ipv6());
    let mut subnets = network.addresses.iter().filter(|(index, _, _)| *index == uplink);
    let own = subnets.any(|(_, held, length)| in_prefix(address, (*held, *length)));
    let given = changed(&fate, network, uplink).filter(|_| masqueraded == Some(true));
    let rule = fate.by.filter(|_| given.is_some()).map(|rule| rule.text.clone());
    let bare = masqueraded == Some(true) && fate.becomes.is_none() && is_bare(network, uplink, v6);
    // An address of none of its bridge's subnets: what is said of those is not about it.
    let strays = sight.bridge(&by).is_some_and(|bridge| {
        let mut all = bridge.subnets.iter().filter(|(held, _)| held.is_ipv6() == v6).peekable();
        all.peek().is_some() && !all.any(|subnet| in_prefix(address, *subnet))
    });
    // Pods with a link of their own are alike if they fare alike.
    let bridged = |by: &str| sight.bridge(by).is_some();
    let alike = |group: &&mut Group| {
        (group.by == by || !bridged(&group.by) && !bridged(&by))
            && (group.uplink, group.v6, group.masqueraded, group.own) == (uplink, v6, masqueraded, own)
            && (group.given, group.untracked, group.strays) == (given, untracked, strays)
            && group.rule == rule
            && group.bare == bare
    };
    match groups.iter_mut().find(alike) {
        Some(group) => {
            group.real |= !client.is_example;
            group.addresses.push(address);
            group.names.push(client.name.clone());
        }
        None => {
            let (addresses, names) = (vec![address], vec![client.name.clone()]);
            groups.push(Group {
                by,
                uplink,
                v6,
                masqueraded,
                given,
                rule,
                bare,
                untracked,
                own,
                strays,
                addresses,
                names,
                real: !client.is_example,
            });
        }
    }
}

/// Has an interface no address of a family? The kernel masquerades with another interface's then, or drops (`inet_select_addr`).
pub fn is_bare(network: &Snapshot, interface: Ifindex, v6: bool) -> bool {
    !network.addresses.iter().any(|(index, held, _)| *index == interface && held.is_ipv6() == v6)
}

/// What is to be said of the addresses that a rule gives, first to last; nothing if the uplink has all of them.
fn given(
    first: IpAddr,
    last: IpAddr,
    held: &dyn Fn(IpAddr) -> bool,
    of_uplink: &dyn Fn(IpAddr) -> bool,
) -> Option<Given> {
    if first.is_ipv4() && is_link_local(first) {
        return Some(Given::LinkLocal(first));
    }
    if !of_uplink(first) {
        return Some(Given::Foreign(first));
    }
    // One of many that is not held is enough, and the kernel takes any of them.
    match (held(first), held(last)) {
        (false, _) => Some(Given::Unheld(first)),
        (true, false) => Some(Given::Unheld(last)),
        (true, true) => None,
    }
}

impl Given {
    /// How bad it is that a rule gives this address to what `what`, and a sentence.
    fn told(self, rule: &str, what: &str) -> (Status, String) {
        let begins = |address| format!("The rule `{rule}` gives what {what} the address {address}");
        match self {
            Self::LinkLocal(address) => (
                Status::Broken,
                format!("{}, a link-local one: EC2 answers only addresses of the network interface.", begins(address)),
            ),
            Self::Foreign(address) => (
                Status::Warning,
                format!(
                    "{}, which is not of that interface's subnet: EC2 drops it (not-masqueraded), unless it is the network interface's own.",
                    begins(address)
                ),
            ),
            Self::Unheld(address) => (
                Status::Unknown,
                format!(
                    "{}, which that interface does not have: EC2 answers it only if it is assigned to that network interface, which is not known here.",
                    begins(address)
                ),
            ),
        }
    }
}

fn answer(group: &Group, sight: &Sight, network: &Snapshot) -> Answer {
    let uplink = network.name(group.uplink);
    let bridge = sight.bridge(&group.by);
    let subnets = bridge.map(|bridge| bridge.subnets.as_slice()).unwrap_or_default();
    let subnet = subnets.iter().find(|(address, _)| !group.strays && address.is_ipv6() == group.v6);
    let whose = match subnet {
        Some((address, length)) => format!("{address}/{length}"),
        None => some_of(&group.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>()),
    };
    let about = match (bridge, group.names.as_slice()) {
        (Some(bridge), _) => Subject::Network(bridge.network.clone().unwrap_or_else(|| bridge.name.clone())),
        (None, [one]) => Subject::Container(one.clone()),
        (None, _) => Subject::Host,
    };
    let (has_tool, look) = (tool(sight, group.v6), look(sight, group.v6, group.rule.as_deref()));
    let answer = |status, summary: String| {
        // What would become of somebody who is not there breaks nothing, and is perhaps meant so.
        let (status, summary) = match (group.real, status) {
            (false, Status::Warning | Status::Broken) => (Status::Unknown, format!("{summary} Nobody is there now.")),
            _ => (status, summary),
        };
        Answer::new(about.clone(), status, summary).look(look.clone())
    };
    let unread = sight.host.firewall.unread();
    if let Some(given) = group.given {
        let rule = group.rule.as_deref().unwrap_or_default();
        let (status, summary) = given.told(rule, &format!("leaves {whose} by {uplink}"));
        return answer(status, summary);
    }
    if group.untracked.is_some() && !group.own {
        let (status, may) = match group.untracked {
            Some(true) => (Status::Warning, "keeps"),
            _ => (Status::Unknown, "may keep"),
        };
        let summary = format!(
            "A rule (NOTRACK) {may} what leaves {whose} by {uplink} from being tracked, so that nothing gives it the host's address: EC2 \
             drops it then (not-masqueraded)."
        );
        let look = has_tool.map_or("nft list ruleset".to_owned(), |tool| format!("{tool} -t raw -nvL PREROUTING"));
        return answer(status, summary).look(look);
    }
    if group.bare {
        let summary = format!(
            "A rule masquerades what leaves {whose} by {uplink}, which has no address: it gets another interface's, and EC2 drops it \
             (not-masqueraded), unless that is the network interface's own."
        );
        return answer(Status::Warning, summary).look(format!("ip addr show dev {}", shell_word(uplink)));
    }
    match (group.masqueraded, unread) {
        (Some(true), _) => answer(Status::Ok, format!("What leaves {whose} by {uplink} gets the host's address.")),
        (Some(false), _) => answer(
            Status::Unknown,
            format!("Whether what leaves {whose} by {uplink} gets the host's address cannot be decided here."),
        ),
        (None, Some(unread)) => answer(
            Status::Unknown,
            format!("Whether what leaves {whose} gets the host's address is not known: {unread}."),
        ),
        (None, None) if group.own => answer(
            Status::Unknown,
            format!(
                "What leaves {whose} by {uplink} keeps its address, which is of that interface's subnet, as with a CNI that gives pods \
                 addresses of the VPC: EC2 answers it if it is assigned to that very interface, which is not known here."
            ),
        ),
        (None, None) => {
            let said = answer(
                Status::Warning,
                format!(
                    "No rule gives what leaves {whose} by {uplink} the host's address: EC2 drops it (not-masqueraded), unless the \
                     address is the network interface's own."
                ),
            );
            let endpoint = sight.endpoints.iter().find(|endpoint| endpoint.is_ipv6() == group.v6);
            if let Some(rule) = endpoint.and_then(|endpoint| left_out(&sight.host.firewall.chains, *endpoint)) {
                return Answer {
                    summary: format!("{} The rule `{rule}` leaves IMDS out, perhaps on purpose.", said.summary),
                    ..said
                };
            }
            match (subnet, endpoint) {
                // For IMDS alone: what else leaves is as it was. Before all others, one of which may have let it out as it is.
                (Some((address, length)), Some(endpoint))
                    if has_tool.is_some() || sight.host.firewall.chains.is_empty() =>
                {
                    let tool = if group.v6 { "ip6tables" } else { "iptables" };
                    said.mend(format!(
                        "{tool} -t nat -I POSTROUTING -s {address}/{length} -d {endpoint} -p tcp --dport 80 -o {} -j MASQUERADE  # lowers safety: every container of {address}/{length} can then take the instance's role",
                        shell_word(uplink)
                    ))
                }
                _ => said,
            }
        }
    }
}

/// The rule of a table with chains for addresses that lets an endpoint out as it is, by naming it: an exception that somebody made.
fn left_out(chains: &[Chain], endpoint: IpAddr) -> Option<&str> {
    let nat: Vec<&Chain> = chains.iter().filter(|chain| chain.nat && chain.hook == Some(Hook::Postrouting)).collect();
    let of_nat = |chain: &&Chain| {
        nat.iter().any(|base| (base.tool, &base.family, &base.table) == (chain.tool, &chain.family, &chain.table))
    };
    let names = |rule: &&super::firewall::rules::Rule| {
        rule.conditions.iter().any(|condition| {
            let What::Destination(ranges) = &condition.what else { return false };
            let covers = |(first, last): &(IpAddr, IpAddr)| {
                !first.is_unspecified() && first.is_ipv6() == endpoint.is_ipv6() && (*first..=*last).contains(&endpoint)
            };
            let excepts = match rule.verdict {
                Verdict::Accept | Verdict::Return => !condition.negated,
                Verdict::Masquerade(_) => condition.negated,
                _ => false,
            };
            excepts && ranges.iter().any(covers)
        })
    };
    let rules = chains.iter().filter(of_nat).flat_map(|chain| &chain.rules);
    rules.into_iter().find(names).map(|rule| rule.text.as_str())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::firewall::{Firewall, iptables};
    use super::super::inside::View;
    use super::super::listeners::Listeners;
    use super::*;
    use diagnosis::way::network::{Kind, Link};

    const IMDS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 169, 254));

    /// What is said of the host itself, which sends by ens5 under 10.77.0.10, with a rule of POSTROUTING.
    fn of_the_host(rule: &str) -> Option<(Status, String)> {
        let uplink = Ifindex(2);
        let links = [(uplink, Link::new(uplink, "ens5", Kind::Nic))].into();
        let held = [10, 11].map(|last| (uplink, IpAddr::from([10, 77, 0, last]), 24)).to_vec();
        let way = Way::Out {
            interface: uplink,
            gateway: Some(IpAddr::from([10, 77, 0, 1])),
            source: Some(IpAddr::from([10, 77, 0, 10])),
        };
        let network = Snapshot { links, addresses: held, ways: vec![(IMDS, way)], ..Snapshot::default() };
        let mut firewall = Firewall::default();
        let text = format!("*nat\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING {rule}\nCOMMIT\n");
        firewall.chains = iptables::read(&text, "iptables");
        let host = View {
            network: Ok(network.clone()),
            firewall,
            listeners: Listeners::here(),
            outward: BTreeMap::new(),
            programs: Ok(BTreeMap::new()),
        };
        let sight = Sight {
            endpoints: vec![IMDS],
            engine: Err("there is none".into()),
            host,
            inside: Vec::new(),
            legs: Vec::new(),
            bridges: Vec::new(),
            passages: Vec::new(),
        };
        let said = examine(&sight);
        assert!(said.len() < 2, "{said:?}");
        said.into_iter().next().map(|answer| (answer.status, answer.summary))
    }

    #[test]
    fn what_the_host_sends_under_anothers_address_is_told() {
        let status = |rule: &str| of_the_host(rule).map(|(status, _)| status);
        assert_eq!(status("-o ens5 -j SNAT --to-source 10.200.0.1"), Some(Status::Warning));
        assert_eq!(status("-o ens5 -d 169.254.169.254/32 -j SNAT --to-source 10.77.0.99"), Some(Status::Unknown));
        assert_eq!(status("-o ens5 -j SNAT --to-source 10.77.0.11-10.77.0.12"), Some(Status::Unknown));
        assert_eq!(status("-o ens5 -j SNAT --to-source 169.254.77.5"), Some(Status::Broken));
        let perhaps = "-o ens5 -m statistic --mode random --probability 0.5 -j SNAT --to-source 10.200.0.1";
        assert_eq!(status(perhaps), Some(Status::Unknown));
        for rule in [
            "-o ens5 -j SNAT --to-source 10.77.0.11",
            "-o ens5 -j MASQUERADE",
            "-o ens6 -j SNAT --to-source 10.200.0.1",
            "-s 172.17.0.0/16 -j SNAT --to-source 10.200.0.1",
        ] {
            assert_eq!(status(rule), None, "{rule}");
        }
        let (_, summary) = of_the_host("-o ens5 -j SNAT --to-source 10.200.0.1").expect("an answer");
        assert!(summary.contains("-A POSTROUTING -o ens5 -j SNAT --to-source 10.200.0.1"), "{summary}");
    }

    #[test]
    fn an_address_that_the_uplink_does_not_have_is_no_good_news() {
        let at = |last| IpAddr::from([10, 0, 0, last]);
        let held = |address| address == at(10) || address == at(11);
        let of_uplink = |address: IpAddr| in_prefix(address, (at(0), 24));
        let of = |first, last| given(first, last, &held, &of_uplink);
        assert_eq!(of(at(10), at(10)), None);
        assert_eq!(of(at(10), at(11)), None);
        assert_eq!(of(at(99), at(99)), Some(Given::Unheld(at(99))));
        assert_eq!(of(at(10), at(12)), Some(Given::Unheld(at(12))));
        let other = IpAddr::from([10, 9, 0, 1]);
        assert_eq!(of(other, other), Some(Given::Foreign(other)));
        let link_local = IpAddr::from([169, 254, 77, 5]);
        assert_eq!(given(link_local, link_local, &|_| true, &|_| true), Some(Given::LinkLocal(link_local)));
    }

    #[test]
    fn an_exception_for_imds_is_seen_and_others_are_not() {
        let excepted = |rule: &str| {
            let text =
                format!("*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:SUB - [0:0]\n{rule}\nCOMMIT\n");
            left_out(&iptables::read(&text, "iptables"), IpAddr::from([169, 254, 169, 254])).is_some()
        };
        assert!(excepted("-A POSTROUTING -d 169.254.169.254/32 -j ACCEPT"));
        assert!(excepted("-A POSTROUTING -j SUB\n-A SUB -d 169.254.0.0/16 -j RETURN"));
        assert!(excepted("-A POSTROUTING -s 172.17.0.0/16 ! -d 169.254.0.0/16 -j MASQUERADE"));
        assert!(!excepted("-A POSTROUTING -d 10.0.0.0/8 -j ACCEPT"));
        assert!(!excepted("-A POSTROUTING -s 172.17.0.0/16 ! -d 10.0.0.0/8 -j MASQUERADE"));
        assert!(!excepted("-A POSTROUTING -d 0.0.0.0/0 -j ACCEPT"));
    }
}
