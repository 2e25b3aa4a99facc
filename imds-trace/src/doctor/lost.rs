//! Did nobody answer when the kernel asked last for the next station of a way that leads out of a namespace?
//!
//! Nothing is sent here: where nobody has asked of late, nothing is known, and nothing is said.

use std::net::IpAddr;

use super::{Answer, Status};
use crate::interfaces::snapshot::{Known, Neighbour, Snapshot};
use diagnosis::net::Ifindex;

/// What is said of a way that is else as it should be. `command`: how a command is run in that namespace.
pub fn station(
    network: &Snapshot,
    (interface, gateway): (Ifindex, Option<IpAddr>),
    endpoint: IpAddr,
    command: &dyn Fn(&str) -> String,
    said: Answer,
) -> Answer {
    // On the link the endpoint itself is asked for.
    let next = gateway.unwrap_or(endpoint);
    let failed = |one: &Neighbour| (one.interface, one.address, one.known) == (interface, next, Known::Failed);
    if said.status != Status::Ok || !network.neighbours.iter().any(failed) {
        return said;
    }
    let asks = if next.is_ipv4() { "ARP" } else { "neighbour discovery" };
    let name = network.name(interface);
    let summary =
        format!("{} Nobody answered when the kernel asked last on {name} who has {next} ({asks}).", said.summary);
    Answer { status: Status::Warning, summary, ..said }.look(command(&format!("ip neigh show to {next}")))
}

#[cfg(test)]
mod tests {
    use diagnosis::way::network::{Kind, Link};

    use super::super::Subject;
    use super::*;

    #[test]
    fn a_station_that_did_not_answer_is_warned_of_by_a_router_or_on_the_link() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let imds = address("169.254.169.254");
        let status = |known, entry: (u32, &str), gateway: Option<&str>| {
            let one = Neighbour { interface: Ifindex(entry.0), address: address(entry.1), mac: None, known };
            let links = [(Ifindex(3), Link::new(Ifindex(3), "ens6", Kind::Nic))].into();
            let network = Snapshot { neighbours: vec![one], links, ..Snapshot::default() };
            let said = Answer::new(Subject::Host, Status::Ok, "It is reached.");
            station(&network, (Ifindex(3), gateway.map(address)), imds, &|command| command.to_owned(), said).status
        };
        assert_eq!(status(Known::Failed, (3, "10.77.1.66"), Some("10.77.1.66")), Status::Warning);
        assert_eq!(status(Known::Failed, (3, "fd77::66"), Some("fd77::66")), Status::Warning);
        assert_eq!(status(Known::Failed, (3, "169.254.169.254"), None), Status::Warning, "on the link");
        for known in [Known::Not, Known::Found, Known::Fixed] {
            assert_eq!(status(known, (3, "10.77.1.66"), Some("10.77.1.66")), Status::Ok, "{known:?}");
        }
        assert_eq!(status(Known::Failed, (4, "10.77.1.66"), Some("10.77.1.66")), Status::Ok, "of a container network");
        assert_eq!(status(Known::Failed, (3, "10.77.1.9"), Some("10.77.1.66")), Status::Ok, "of somebody else");
    }
}
