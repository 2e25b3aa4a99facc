//! Would reverse-path filtering drop the answers? A strict interface takes a packet only if the route back leads out by itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::setting::ipv4_setting;
use super::sight::Sight;
use super::{Answer, Check, Status, Subject};
use crate::interfaces::snapshot::{Snapshot, Way};
use diagnosis::net::Ifindex;
use diagnosis::way::back::{Back, back};

/// The check.
pub const CHECK: Check =
    Check { id: "rp-filter", explain: "whether strict reverse-path filtering would drop answers", examine };

/// What an interface has to do with answers from IMDS.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// Answers come in here, and the route back leads out here.
    Symmetric,
    /// Answers come in here, and the route back leads elsewhere: where.
    Asymmetric(String),
    /// Answers come in here, and nobody knows where the route back leads.
    Unknown,
    /// Answers come in here, and the kernel says that it takes them as things are set.
    Accepted,
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
        for (interface, part) in parts(sight, network, *endpoint) {
            answers.push(judge(network.name(interface), &part, *endpoint, &ipv4_setting));
        }
    }
    answers
}

/// Interfaces that matter.
fn parts(sight: &Sight, network: &Snapshot, endpoint: IpAddr) -> Vec<(Ifindex, Part)> {
    let mut found: BTreeMap<Ifindex, Part> = BTreeMap::new();
    let mut add = |index: Ifindex, part: Part| {
        let known = found.entry(index).or_insert_with(|| part.clone());
        if part.rank() > known.rank() {
            *known = part;
        }
    };
    // Translated back before the filter looks, so the answer's destination is the client's own address.
    let expected = |index: Ifindex, whose: Option<IpAddr>, oif: &str| match whose
        .map(|address| back(&network.routing, endpoint, address, oif))
    {
        Some(Back::By(by)) if by.contains(&index) => Part::Symmetric,
        Some(Back::By(by)) => {
            let names: Vec<&str> = by.iter().map(|index| network.name(*index)).collect();
            Part::Asymmetric(format!("by {}", names.join(", ")))
        }
        Some(Back::Nowhere) => Part::Asymmetric("nowhere".to_owned()),
        Some(Back::Unknown) | None => Part::Unknown,
    };
    if let Some(Way::Out { interface, source, .. }) = network.way(endpoint) {
        // Answers go to the source address, so they come in where that is.
        let index = source.and_then(|source| network.holder(source)).unwrap_or(*interface);
        add(index, expected(index, *source, "lo"));
    }
    for passage in &sight.passages {
        // Of a bridge on which somebody is, those count that are there.
        let counts = sight.legs.iter().any(|leg| leg.source == Some(passage.source)) || !sight.is_entered(&passage.by);
        let Way::Out { interface, .. } = &passage.onward else { continue };
        if passage.endpoint != endpoint || !counts {
            continue;
        }
        // Masqueraded: under the address of the interface they leave by.
        let expected = expected(*interface, Some(passage.source), &passage.by);
        // The kernel was asked for the way of the answer, and its word counts more.
        let part = match (&passage.back, passage.sure, expected) {
            (Some(Way::Nowhere { why: "reverse path", .. }), true, Part::Asymmetric(by)) => Part::Asymmetric(by),
            (Some(Way::Nowhere { why: "reverse path", .. }), true, _) => Part::Asymmetric("elsewhere".to_owned()),
            (Some(Way::Out { .. }), true, Part::Asymmetric(_)) => Part::Accepted,
            (_, false, Part::Asymmetric(_)) => Part::Unknown,
            (_, _, expected) => expected,
        };
        add(*interface, part);
    }
    let has_address =
        |index: Ifindex| network.addresses.iter().any(|(held, address, _)| *held == index && address.is_ipv4());
    let others: Vec<Ifindex> =
        network.defaults.iter().copied().filter(|index| !found.contains_key(index) && has_address(*index)).collect();
    found.extend(others.into_iter().map(|index| (index, Part::Other)));
    found.into_iter().filter(|(index, _)| network.name(*index) != "lo").collect()
}

impl Part {
    fn rank(&self) -> u8 {
        match self {
            Part::Other => 0,
            Part::Symmetric | Part::Accepted => 1,
            Part::Unknown => 2,
            Part::Asymmetric(_) => 3,
        }
    }
}

fn judge(name: &str, part: &Part, endpoint: IpAddr, read: &dyn Fn(&str, &str) -> Option<u8>) -> Answer {
    let about = Subject::Interface(name.to_owned());
    let word = diagnosis::printable::shell_word(name);
    let look =
        format!("sysctl net/ipv4/conf/all/rp_filter net/ipv4/conf/{word}/rp_filter; ip rule; ip route get {endpoint}");
    let (Some(all), Some(own)) = (read("all", "rp_filter"), read(name, "rp_filter")) else {
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
    // With it the mark decides, too, and that is not known.
    let by_mark = ["all", name].iter().any(|key| read(key, "src_valid_mark") == Some(1));
    let (status, what) = match (effective, part) {
        (1, Part::Asymmetric(back)) if !by_mark => (
            Status::Broken,
            format!("answers from {endpoint} arrive here and are dropped, because the route back leads out {back}"),
        ),
        (1, Part::Asymmetric(_) | Part::Unknown) => (
            Status::Unknown,
            format!("whether the way back to {endpoint} leads out here depends on rules that cannot be decided here"),
        ),
        (1, Part::Symmetric) => (Status::Ok, format!("the route back to {endpoint} leads out here, so answers pass")),
        (1, Part::Accepted) => (Status::Ok, format!("the kernel says that answers from {endpoint} pass")),
        (1, Part::Other) => (Status::Ok, format!("nobody who is known reaches {endpoint} by it")),
        _ => (Status::Ok, "answers are accepted whichever way they come in".to_owned()),
    };
    let answer = Answer::new(about, status, format!("{values}: {what}.")).look(look);
    if status != Status::Broken {
        return answer;
    }
    answer.mend(format!("sysctl -w net/ipv4/conf/{word}/rp_filter=2  # lowers safety: {name} then takes packets from any address that some route leads to"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greater_of_both_values_counts_and_only_strict_drops() {
        let status = |all: u8, own: u8, part| {
            let read = |name: &str, key: &str| match key {
                "rp_filter" => Some(if name == "all" { all } else { own }),
                _ => Some(0),
            };
            judge("ens6", &part, IpAddr::from([169, 254, 169, 254]), &read).status
        };
        let elsewhere = || Part::Asymmetric("ens5".into());
        assert_eq!(status(1, 0, elsewhere()), Status::Broken);
        assert_eq!(status(0, 1, elsewhere()), Status::Broken);
        assert_eq!(status(1, 2, elsewhere()), Status::Ok);
        assert_eq!(status(0, 0, elsewhere()), Status::Ok);
        assert_eq!(status(1, 1, Part::Symmetric), Status::Ok);
        assert_eq!(status(1, 1, Part::Other), Status::Ok);
        assert_eq!(status(1, 1, Part::Unknown), Status::Unknown);
    }
}
