//! Do clients' requests leave under the host's address? EC2 drops those that leave under one that is not the network interface's.

use std::net::IpAddr;

use super::astray;
use super::firewall::fate::{Client, fate};
use super::sight::Sight;
use super::{Answer, Check, Status, Subject, some_of};
use crate::interfaces::snapshot::{Snapshot, Way};
use diagnosis::net::Ifindex;
use diagnosis::printable::shell_word;
use diagnosis::way::network::in_prefix;

/// The check.
pub const CHECK: Check =
    Check { id: "masquerade", explain: "whether what clients send leaves under the host's address", examine };

/// Clients that come in by one interface and go out by another, and fare alike.
struct Group {
    by: String,
    uplink: Ifindex,
    v6: bool,
    masqueraded: Option<bool>,
    /// The address that they get, where a rule names one that is not of the uplink's subnets.
    foreign: Option<IpAddr>,
    /// Are they kept from being tracked, so that no rule for addresses is asked?
    untracked: Option<bool>,
    /// Has the uplink's network these addresses, too?
    own: bool,
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
    groups.iter().map(|group| answer(group, sight, network)).collect()
}

fn take(groups: &mut Vec<Group>, sight: &Sight, network: &Snapshot, client: &Client, uplink: Ifindex) {
    let (Some(by), Some(address)) = (client.by.clone(), client.address) else { return };
    let fate = fate(&sight.host.firewall.chains, client);
    if fate.ends {
        // It goes nowhere under any address.
        return;
    }
    let (masqueraded, untracked, v6) = (fate.masqueraded, fate.untracked, address.is_ipv6());
    let of_uplink = |address| {
        let mut subnets = network.addresses.iter().filter(|(index, _, _)| *index == uplink);
        subnets.any(|(_, held, length)| in_prefix(address, (*held, *length)))
    };
    let own = of_uplink(address);
    let becomes = fate.becomes.filter(|_| masqueraded == Some(true)).map(|(first, _)| first);
    let foreign = becomes.filter(|address| !of_uplink(*address));
    // Pods with a link of their own are alike if they fare alike.
    let bridged = |by: &str| sight.bridge(by).is_some();
    let alike = |group: &&mut Group| {
        (group.by == by || !bridged(&group.by) && !bridged(&by))
            && (group.uplink, group.v6, group.masqueraded, group.own) == (uplink, v6, masqueraded, own)
            && (group.foreign, group.untracked) == (foreign, untracked)
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
                foreign,
                untracked,
                own,
                addresses,
                names,
                real: !client.is_example,
            });
        }
    }
}

fn answer(group: &Group, sight: &Sight, network: &Snapshot) -> Answer {
    let uplink = network.name(group.uplink);
    let bridge = sight.bridge(&group.by);
    let subnets = bridge.map(|bridge| bridge.subnets.as_slice()).unwrap_or_default();
    let subnet = subnets.iter().find(|(address, _)| address.is_ipv6() == group.v6);
    let whose = match subnet {
        Some((address, length)) => format!("{address}/{length}"),
        None => some_of(&group.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>()),
    };
    let about = match (bridge, group.names.as_slice()) {
        (Some(bridge), _) => Subject::Network(bridge.network.clone().unwrap_or_else(|| bridge.name.clone())),
        (None, [one]) => Subject::Container(one.clone()),
        (None, _) => Subject::Host,
    };
    let tool = if group.v6 { "ip6tables" } else { "iptables" };
    let has_tool = sight.host.firewall.read_by.contains(&tool);
    let look = if has_tool { format!("{tool} -t nat -nvL POSTROUTING") } else { "nft list ruleset".to_owned() };
    let answer = |status, summary: String| {
        // What would become of somebody who is not there breaks nothing, and is perhaps meant so.
        let (status, summary) = match (group.real, status) {
            (false, Status::Warning) => (Status::Unknown, format!("{summary} Nobody is there now.")),
            _ => (status, summary),
        };
        Answer::new(about.clone(), status, summary).look(look.clone())
    };
    let unread = sight.host.firewall.unread();
    if let Some(foreign) = group.foreign {
        let summary = format!(
            "A rule gives what leaves {whose} by {uplink} the address {foreign}, which is not of that interface's subnet: EC2 drops it \
             (not-masqueraded), unless it is the network interface's own."
        );
        return answer(Status::Warning, summary);
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
        let look = if has_tool { format!("{tool} -t raw -nvL PREROUTING") } else { "nft list ruleset".to_owned() };
        return answer(status, summary).look(look);
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
            match (subnet, endpoint) {
                // For IMDS alone: what else leaves is as it was. Before all others, one of which may have let it out as it is.
                (Some((address, length)), Some(endpoint)) if has_tool || sight.host.firewall.chains.is_empty() => {
                    said.mend(format!(
                        "{tool} -t nat -I POSTROUTING -s {address}/{length} -d {endpoint} -p tcp --dport 80 -o {} -j MASQUERADE",
                        shell_word(uplink)
                    ))
                }
                _ => said,
            }
        }
    }
}
