//! Would reverse-path filtering drop the answers? A strict interface takes a packet only if the route back leads out by itself.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use super::sight::Sight;
use super::{Answer, Check, Status, Subject};
use crate::interfaces::snapshot::{Snapshot, Way};
use diagnosis::net::Ifindex;

/// The check.
pub const CHECK: Check =
    Check { id: "rp-filter", explain: "whether strict reverse-path filtering would drop answers", examine };

/// What an interface has to do with answers from IMDS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Answers come in here, and the route back leads out here.
    Symmetric,
    /// Answers come in here, and the route back leads elsewhere.
    Asymmetric,
    /// It leads to other networks, and no way to IMDS that we know of uses it.
    Other,
}

/// There is no such filter for IPv6: firewall rules do that there.
fn examine(sight: &Sight) -> Vec<Answer> {
    let Ok(network) = &sight.host.network else {
        return vec![Answer::new(
            Subject::Host,
            Status::Unknown,
            "The routes could not be read, so it is not known where answers come in.",
        )];
    };
    let mut answers = Vec::new();
    for endpoint in sight.endpoints.iter().filter(|endpoint| endpoint.is_ipv4()) {
        for (interface, part) in parts(network, *endpoint) {
            let name = network.name(interface);
            answers.push(judge(name, part, *endpoint, network, &|key| {
                fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{key}/rp_filter")).ok()?.trim().parse().ok()
            }));
        }
    }
    answers
}

/// Interfaces that matter.
fn parts(network: &Snapshot, endpoint: IpAddr) -> Vec<(Ifindex, Part)> {
    // For a packet that comes in, the kernel asks for the way back as if it sent one itself.
    let back = network.leaves_by(endpoint);
    let mut inward: BTreeSet<Ifindex> = BTreeSet::new();
    if let Some(Way::Out { interface, source, .. }) = network.way(endpoint) {
        // Answers go to the source address, so they come in where that is.
        inward.insert(source.and_then(|source| network.holder(source)).unwrap_or(*interface));
    }
    for (_, to, way) in &network.forwarded {
        if let Way::Out { interface, .. } = way
            && *to == endpoint
        {
            // Masqueraded: under the address of the interface they leave by.
            inward.insert(*interface);
        }
    }
    let has_address =
        |index: Ifindex| network.addresses.iter().any(|(held, address, _)| *held == index && address.is_ipv4());
    let others = network.defaults.iter().copied().filter(|index| !inward.contains(index) && has_address(*index));
    let others: Vec<_> = others.map(|index| (index, Part::Other)).collect();
    let part = |index| if back == Some(index) { Part::Symmetric } else { Part::Asymmetric };
    inward
        .into_iter()
        .filter(|index| network.name(*index) != "lo")
        .map(|index| (index, part(index)))
        .chain(others)
        .collect()
}

fn judge(name: &str, part: Part, endpoint: IpAddr, network: &Snapshot, read: &dyn Fn(&str) -> Option<u8>) -> Answer {
    let about = Subject::Interface(name.to_owned());
    let word = diagnosis::printable::shell_word(name);
    let look = format!("sysctl net/ipv4/conf/all/rp_filter net/ipv4/conf/{word}/rp_filter; ip route get {endpoint}");
    let (Some(all), Some(own)) = (read("all"), read(name)) else {
        return Answer::new(about, Status::Unknown, "Its rp_filter could not be read: is /proc/sys hidden?").look(look);
    };
    // Documentation/networking/ip-sysctl.rst: the greater of the two is used. 0 off, 1 strict, 2 loose.
    let effective = all.max(own);
    let mode = match effective {
        0 => "off",
        1 => "strict",
        _ => "loose",
    };
    let values = format!("rp_filter is {effective} ({mode}: all {all}, {name} {own})");
    let back = network.leaves_by(endpoint).map_or("nowhere".to_owned(), |index| format!("by {}", network.name(index)));
    let (status, what) = match (effective, part) {
        (1, Part::Asymmetric) => (
            Status::Broken,
            format!("answers of {endpoint} come in here and are dropped, because the route back leads out {back}"),
        ),
        (1, Part::Other) => (
            Status::Warning,
            format!(
                "an answer of {endpoint} that came in here would be dropped, because the route back leads out {back}"
            ),
        ),
        (1, Part::Symmetric) => (Status::Ok, format!("the route back to {endpoint} leads out here, so answers pass")),
        _ => (Status::Ok, "answers are not dropped for the way they come".to_owned()),
    };
    let answer = Answer::new(about, status, format!("{values}: {what}.")).look(look);
    if status == Status::Ok { answer } else { answer.mend(format!("sysctl -w net/ipv4/conf/{word}/rp_filter=2")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greater_of_both_values_counts_and_only_strict_drops() {
        let status = |all: u8, own: u8, part| {
            let read = |key: &str| Some(if key == "all" { all } else { own });
            judge("ens6", part, IpAddr::from([169, 254, 169, 254]), &Snapshot::default(), &read).status
        };
        assert_eq!(status(1, 0, Part::Asymmetric), Status::Broken);
        assert_eq!(status(0, 1, Part::Asymmetric), Status::Broken);
        assert_eq!(status(1, 2, Part::Asymmetric), Status::Ok);
        assert_eq!(status(0, 0, Part::Asymmetric), Status::Ok);
        assert_eq!(status(1, 1, Part::Symmetric), Status::Ok);
        assert_eq!(status(1, 1, Part::Other), Status::Warning);
    }
}
