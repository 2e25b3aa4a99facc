//! Does anybody answer where a client's requests go first, and where answers to it go last? By what the kernels know of neighbours, and by
//! what the host answers ARP for. Nothing is sent.

use std::net::IpAddr;

use super::inside::Inside;
use super::setting::{by_filter, ipv4_setting, is_strict};
use crate::interfaces::snapshot::{self, Asked, Known, Mac, Neighbour, Snapshot, Way};
use diagnosis::net::Ifindex;
use diagnosis::way::network::{Kind, Link, in_prefix};

/// Why nothing comes through between a client and the host's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Is it certain?
    pub sure: bool,
    /// A part of a sentence.
    pub why: String,
    /// In the client's namespace, or on the host?
    pub inside: bool,
    /// A command that shows it; `None`: what is known of neighbours does.
    pub look: Option<String>,
}

/// The first part of a client's way: from its link to the host's interface.
pub struct Crossing<'a> {
    /// The host's network.
    pub host: &'a Snapshot,
    /// All namespaces.
    pub insides: &'a [Inside],
    /// The client's.
    pub inside: &'a Inside,
    /// Where it sends to.
    pub endpoint: IpAddr,
    /// Its next router, if there is one.
    pub gateway: Option<IpAddr>,
    /// Its address.
    pub source: Option<IpAddr>,
    /// The host's interface that takes its packets: a bridge, or the end of its own link.
    pub by: &'a str,
    /// What the host's kernel says of a packet from there to the next router's address; `None` if it was not asked.
    pub heard: Option<&'a Way>,
    /// Could a BPF program there answer for others, or decide about ARP?
    pub has_programs: bool,
}

/// Does the host answer for an address on an interface?
enum Answers {
    Yes,
    No(String),
    /// That is not known here.
    Perhaps,
    /// The kernel did not tell: why.
    Untold(String),
    /// The host does not, and not everybody is seen who could.
    NotSeen,
}

/// What keeps requests from the host, or answers from the client, if something does.
pub fn silence(crossing: &Crossing<'_>) -> Option<Silence> {
    let own = crossing.inside.network()?;
    let out = own.leaves_by(crossing.endpoint)?;
    let link = own.links.get(&out)?;
    let by = crossing.host.links.values().find(|link| link.name == crossing.by)?;
    // What knows no neighbours asks for none.
    if link.no_arp {
        return None;
    }
    let silence = there(crossing, own, out, by).or_else(|| back(crossing, link, by))?;
    // A program there may answer in others' place, or send on without asking for a neighbour.
    Some(Silence { sure: silence.sure && !crossing.has_programs, ..silence })
}

/// Is everybody seen who could answer there? A card or a tunnel in a bridge leads to others, and so does a link into a namespace that
/// was not looked into.
fn sees_all(crossing: &Crossing<'_>, by: &Link) -> bool {
    let is_seen = |port: &Link| {
        let mut views = crossing.insides.iter().filter_map(|inside| inside.view.as_ref().ok());
        port.kind == Kind::Pair && views.any(|view| view.outward.values().any(|end| *end == port.index))
    };
    let mut ports = crossing.host.links.values().filter(|port| port.master == Some(by.index));
    by.kind != Kind::Bridge || ports.all(is_seen)
}

/// The requests.
fn there(crossing: &Crossing<'_>, own: &Snapshot, out: Ifindex, by: &Link) -> Option<Silence> {
    let next = crossing.gateway.unwrap_or(crossing.endpoint);
    let known = own.neighbours.iter().find(|one| one.interface == out && one.address == next);
    let takes = |mac: Mac| crossing.host.links.values().any(|link| link.mac == Some(mac) && is_there(link, by));
    match known {
        Some(Neighbour { mac: Some(mac), .. }) if takes(*mac) => return None,
        Some(Neighbour { mac: Some(mac), known: Known::Fixed, .. }) => {
            // On a bridge it may be another's, who sends on.
            let sure = by.kind != Kind::Bridge || !crossing.insides.iter().any(|other| has_mac(other, *mac));
            let why = format!(
                "its fixed neighbour entry for {next} bears {}, which is not the host's {}",
                told(*mac),
                by.name
            );
            return Some(Silence { sure, why, inside: true, look: None });
        }
        Some(Neighbour { mac: Some(mac), known: Known::Found, .. }) => {
            let why = format!("{} answers there for {next}, which is not the host's {}", told(*mac), by.name);
            return Some(Silence { sure: false, why, inside: true, look: None });
        }
        Some(_) | None => {}
    }
    match answers(crossing, by, next) {
        Answers::Yes => None,
        Answers::Perhaps => known.filter(|one| one.known == Known::Failed).map(|_| Silence {
            sure: false,
            why: format!("its kernel asked who has {next} and got no answer"),
            inside: true,
            look: None,
        }),
        Answers::No(why) => Some(Silence { sure: true, why, inside: true, look: None }),
        Answers::Untold(why) => Some(Silence { sure: false, why, inside: true, look: None }),
        Answers::NotSeen => Some(Silence {
            sure: false,
            why: format!(
                "whether somebody on {} answers there for {next} is not known: not all of its ports were looked into",
                by.name
            ),
            inside: true,
            look: None,
        }),
    }
}

/// The answers: an entry that somebody made is not asked about.
fn back(crossing: &Crossing<'_>, link: &Link, by: &Link) -> Option<Silence> {
    let source = crossing.source?;
    let fixed = |one: &&Neighbour| one.interface == by.index && one.address == source && one.known == Known::Fixed;
    let entry = crossing.host.neighbours.iter().find(fixed)?;
    let (held, own) = (entry.mac?, link.mac?);
    (held != own).then(|| Silence {
        sure: true,
        why: format!(
            "the host's fixed neighbour entry for {source} on {} bears {}, and its own address there is {}: answers go to nobody",
            by.name,
            told(held),
            told(own)
        ),
        inside: false,
        look: None,
    })
}

/// Does a frame to this link's address come to the interface? A bridge takes what is for its ports' own addresses, too.
fn is_there(link: &Link, by: &Link) -> bool {
    link.index == by.index || link.master == Some(by.index)
}

fn has_mac(inside: &Inside, mac: Mac) -> bool {
    inside.network().is_some_and(|network| network.links.values().any(|link| link.mac == Some(mac)))
}

/// As the kernel decides it (`arp_process`, `arp_ignore` in `net/ipv4/arp.c`, `ndisc_recv_ns` in `net/ipv6/ndisc.c`).
fn answers(crossing: &Crossing<'_>, by: &Link, next: IpAddr) -> Answers {
    let host = crossing.host;
    let setting = |key: &str| ["all", &by.name].into_iter().filter_map(|name| ipv4_setting(name, key)).max();
    if next.is_ipv4() && by.no_arp {
        return Answers::No(format!(
            "{} on the host does not take part in ARP (NOARP), so nobody answers for {next}",
            by.name
        ));
    }
    let mut held = host.addresses.iter().filter(|(_, address, _)| *address == next);
    if let Some((index, _, length)) = held.clone().find(|(index, _, _)| *index == by.index).or_else(|| held.next()) {
        // In a VRF the kernel asks another table.
        if next.is_ipv6() || by.master.is_some() {
            return Answers::Yes;
        }
        let is_here = *index == by.index;
        let is_near = is_here && crossing.source.is_some_and(|source| in_prefix(source, (next, *length)));
        let heard = || heard(crossing, next, setting("proxy_arp") == Some(0));
        return match setting("arp_ignore") {
            Some(0) => heard(),
            Some(1) if is_here => heard(),
            Some(2) if is_near => heard(),
            Some(ignore @ (1 | 2 | 8)) => Answers::No(format!(
                "the host has {next} and does not answer ARP for it on {} (arp_ignore is {ignore})",
                by.name
            )),
            _ => Answers::Perhaps,
        };
    }
    let is_proxied = host.proxies.contains(&next);
    let elsewhere = crossing.insides.iter().filter_map(Inside::network).any(|network| network.holder(next).is_some());
    let how = match next {
        IpAddr::V4(_) => match (setting("proxy_arp"), setting("proxy_arp_pvlan")) {
            (Some(0), Some(0)) => "which answers ARP for others' only where proxy_arp is set",
            (Some(0) | None, _) => return Answers::Perhaps,
            (Some(_), _) => return Answers::Yes,
        },
        IpAddr::V6(_) => "which answers for others' only where `ip -6 neigh show proxy` has them",
    };
    if is_proxied || elsewhere {
        return Answers::Perhaps;
    }
    if !sees_all(crossing, by) {
        return Answers::NotSeen;
    }
    Answers::No(format!(
        "nobody answers there for {next}: it is no address of the host, {how}, and it is not for {}",
        by.name
    ))
}

/// Who asks for his router.
pub struct Sender<'a> {
    /// Whose namespace, by its place.
    pub inside: usize,
    /// By which of the host's interfaces it comes in, if by one.
    pub by: Option<&'a str>,
    /// Where its requests go.
    pub endpoint: IpAddr,
    /// Under which address.
    pub source: Option<IpAddr>,
}

/// The packets of which the kernel is asked in place of the clients' ARP requests: it answers only if the route of one from the client to
/// the address that is asked for is a local one (`arp_process`), and by its reverse-path filter there is no route at all.
fn requests<'a>(senders: impl Iterator<Item = Sender<'a>>, insides: &[Inside], host: &Snapshot) -> Vec<Option<Asked>> {
    let request = |sender: Sender<'_>| {
        let Way::Out { gateway, .. } = insides.get(sender.inside)?.network()?.way(sender.endpoint)? else {
            return None;
        };
        let by = host.links.values().find(|link| Some(link.name.as_str()) == sender.by)?.index;
        let (to, source) = (gateway.unwrap_or(sender.endpoint), sender.source?);
        let is_arp = to.is_ipv4() && source.is_ipv4() && host.holder(to).is_some();
        is_arp.then_some(Asked { inward: Some((source, by)), ..Asked::own(to) })
    };
    senders.map(request).collect()
}

/// What the kernel says of them, each in its place.
pub fn asked<'a>(senders: impl Iterator<Item = Sender<'a>>, insides: &[Inside], host: &Snapshot) -> Vec<Option<Way>> {
    let requests = requests(senders, insides, host);
    let packets: Vec<Asked> = requests.iter().flatten().copied().collect();
    let mut ways = match snapshot::ask(&packets) {
        Ok(ways) => ways.into_iter(),
        Err(_) => Vec::new().into_iter(),
    };
    let mut filtered = |asked: Asked| {
        let strict = asked.inward.is_some_and(|(_, by)| is_strict(host.name(by)));
        Some(by_filter(ways.next()?, strict))
    };
    requests.into_iter().map(|asked| filtered(asked?)).collect()
}

/// Does the kernel answer ARP for an address of the host by the route that it told? `unproxied`: it answers for no others.
fn heard(crossing: &Crossing<'_>, next: IpAddr, unproxied: bool) -> Answers {
    let by = crossing.by;
    let Some(source) = crossing.source else { return Answers::Perhaps };
    let no = |because: String| Answers::No(format!("the host's kernel does not answer its ARP for {next}: {because}"));
    match crossing.heard {
        Some(Way::Local) => Answers::Yes,
        Some(Way::Nowhere { why: "reverse path", .. }) => no(format!(
            "the reverse-path filter of {by} (rp_filter strict) drops the request, because the way from {next} back to {source} does not lead out there"
        )),
        Some(Way::Nowhere { why: "blackhole", .. }) => no(format!(
            "it drops what comes in by {by} from {source}, which it takes for an address from which nothing may come in there (a martian source)"
        )),
        Some(Way::Nowhere { .. }) => no(format!("its routes do not lead {next} to the host itself")),
        Some(Way::Out { .. }) if unproxied => no(format!("its routes do not lead {next} to the host itself")),
        Some(Way::Out { .. }) => Answers::Perhaps,
        Some(Way::Unknown(why)) => {
            Answers::Untold(format!("whether the host's kernel answers its ARP for {next} is not known: {why}"))
        }
        None => Answers::Untold(format!(
            "whether the host's kernel answers its ARP for {next} is not known: it could not be asked"
        )),
    }
}

/// `02:00:00:00:00:01`.
fn told(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Is a client kept from its router, which is an address of the host's bridge? By what the kernel says of its ARP request.
    fn kept(heard: Option<&Way>) -> Option<bool> {
        let address = |last: u8| IpAddr::from([10, 42, 0, last]);
        let host = Snapshot { addresses: vec![(Ifindex(4), address(1), 24)], ..Snapshot::default() };
        let crossing = Crossing {
            host: &host,
            insides: &[],
            inside: &Inside {
                containers: vec!["job-17".into()],
                pid: None,
                path: None,
                cgroups: Default::default(),
                view: Err("it is not looked into".into()),
            },
            endpoint: IpAddr::from([169, 254, 169, 254]),
            gateway: Some(address(1)),
            source: Some(address(10)),
            by: "cni0",
            heard,
            has_programs: false,
        };
        match super::heard(&crossing, address(1), true) {
            Answers::Yes => None,
            Answers::No(_) => Some(true),
            Answers::Untold(_) => Some(false),
            Answers::Perhaps | Answers::NotSeen => panic!("neither yes nor no"),
        }
    }

    #[test]
    fn the_kernel_answers_only_what_its_filter_lets_in() {
        let nowhere = |why| Way::Nowhere { why, answer: "Invalid cross-device link".into() };
        assert_eq!(kept(Some(&Way::Local)), None);
        assert_eq!(kept(Some(&nowhere("reverse path"))), Some(true));
        assert_eq!(kept(Some(&nowhere("blackhole"))), Some(true));
        assert_eq!(kept(Some(&Way::Out { interface: Ifindex(2), gateway: None, source: None })), Some(true));
        assert_eq!(kept(Some(&Way::Unknown("Operation not permitted".into()))), Some(false));
        assert_eq!(kept(None), Some(false), "it was not asked");
    }
}
