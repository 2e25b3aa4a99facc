//! Do containers' requests leave under the host's address? EC2 drops those that leave under any other.

use super::firewall::rules::{Hook, Verdict, walk};
use super::firewall::{Client, Heading};
use super::sight::Sight;
use super::{Answer, Check, Status, Subject};

/// The check.
pub const CHECK: Check =
    Check { id: "masquerade", explain: "whether each bridge's subnets leave under the host's address", examine };

fn examine(sight: &Sight) -> Vec<Answer> {
    let mut answers = Vec::new();
    for bridge in sight.bridges.iter().filter(|bridge| !bridge.internal) {
        for (address, length) in &bridge.subnets {
            let Some(endpoint) = sight.endpoints.iter().find(|endpoint| endpoint.is_ipv4() == address.is_ipv4()) else {
                continue;
            };
            let Some(uplink) = sight.uplink(Some(bridge), *endpoint) else { continue };
            let client = Client {
                name: String::new(),
                address: bridge.example(*endpoint),
                bridge: Some(bridge.name.clone()),
                uplink: Some(uplink.clone()),
                endpoint: *endpoint,
            };
            let packets = client.packets();
            let hits = packets
                .iter()
                .filter(|(heading, hook, _)| *heading == Heading::Request && *hook == Hook::Postrouting)
                .flat_map(|(_, hook, packet)| walk(&sight.host.firewall.chains, *hook, packet))
                .filter(|hit| hit.rule.is_some_and(|rule| rule.verdict == Verdict::Masquerade));
            let sure: Option<bool> = hits.map(|hit| hit.sure).max();
            let about = match &bridge.network {
                Some(network) => Subject::Network(network.clone()),
                None => Subject::Network(bridge.name.clone()),
            };
            let (tool, subnet) =
                (if address.is_ipv4() { "iptables" } else { "ip6tables" }, format!("{address}/{length}"));
            let look = format!("{tool} -t nat -nvL POSTROUTING");
            let answer = |status, summary: String| Answer::new(about, status, summary).look(look);
            answers.push(match sure {
                Some(true) => answer(Status::Ok, format!("What leaves {subnet} by {uplink} gets the host's address.")),
                Some(false) => answer(Status::Unknown, format!("Whether what leaves {subnet} by {uplink} gets the host's address cannot be decided here.")),
                None if sight.host.firewall.unread().is_some() => answer(
                    Status::Unknown,
                    format!(
                        "Whether what leaves {subnet} gets the host's address is not known: {}.",
                        sight.host.firewall.unread().unwrap_or_default()
                    ),
                ),
                None => answer(
                    Status::Warning,
                    format!("No rule gives what leaves {subnet} by {uplink} the host's address: EC2 drops it (not-masqueraded), unless the address is the instance's own."),
                )
                .mend(format!("{tool} -t nat -A POSTROUTING -s {subnet} ! -o {} -j MASQUERADE", diagnosis::printable::shell_word(&bridge.name))),
            });
        }
    }
    answers
}
