//! What becomes of a client's requests, and of their answers, at the rules of a namespace? Hook by hook, in the kernel's order. Pure.

use std::net::IpAddr;

use super::mark::Bits;
use super::rules::{Chain, Hook, Packet, Side, Verdict};
use super::walk::{Hit, walk};

/// Ports a client's connections come from; the kernel's default begins at 32768, and nobody sets it below 1024.
const CLIENT_PORTS: (u16, u16) = (1024, 65535);
/// IMDS.
const PORT: (u16, u16) = (80, 80);

/// A client whose packets the rules are asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Who.
    pub name: String,
    /// Its address in this namespace, if known.
    pub address: Option<IpAddr>,
    /// The interface by which it comes in, a bridge or a pod's link; `None` if it is a process of this namespace.
    pub by: Option<String>,
    /// The interface by which the endpoint is reached, if known.
    pub uplink: Option<String>,
    /// The address of this namespace that what is masqueraded there gets, if known.
    pub masked: Option<IpAddr>,
    /// The endpoint.
    pub endpoint: Option<IpAddr>,
}

/// Which way a packet of a client's travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heading {
    /// Its requests.
    Request,
    /// The answers.
    Answer,
}

/// What becomes of them.
#[derive(Clone, Debug, Default)]
pub struct Fate<'a> {
    /// All that happens or may happen but being let through, in order.
    pub hits: Vec<(Heading, Hit<'a>)>,
    /// Do requests get an address of this namespace on their way out? `None`: no; `Some(false)`: perhaps.
    pub masqueraded: Option<bool>,
    /// The requests end here: nothing goes out to the endpoint.
    pub ends: bool,
}

/// What becomes of a client's packets.
pub fn fate<'a>(chains: &'a [Chain], client: &Client) -> Fate<'a> {
    use Heading::{Answer, Request};
    let mut fate = Fate::default();
    let Some(endpoint) = client.endpoint else { return fate };
    let uplink = || client.uplink.clone().map_or(Side::Unknown, Side::Is);
    let by = || client.by.clone().map_or(Side::Nothing, Side::Is);
    let mut request = Packet {
        v6: endpoint.is_ipv6(),
        source: client.address,
        destination: Some(endpoint),
        source_ports: CLIENT_PORTS,
        destination_ports: PORT,
        from: Side::Nothing,
        to: Side::Nothing,
        state: "new",
        // IMDS is not this host, unless somebody made it so, which the routes show.
        local: Some(false),
        translated: None,
        mark: Bits::default(),
        connmark: Bits::default(),
    };
    let out: &[(Hook, Side, Side)] = match &client.by {
        Some(_) => &[
            (Hook::Ingress, by(), Side::Nothing),
            (Hook::Prerouting, by(), Side::Nothing),
            (Hook::Forward, by(), uplink()),
            // Since Linux 5.7 rules may ask there by what it came in.
            (Hook::Postrouting, by(), uplink()),
        ],
        None => &[(Hook::Output, Side::Nothing, uplink()), (Hook::Postrouting, Side::Nothing, uplink())],
    };
    for (hook, from, to) in out {
        (request.from, request.to) = (from.clone(), to.clone());
        if fate.take(Request, walk(chains, *hook, &mut request)) {
            fate.ends = true;
            return fate;
        }
    }
    let masked = match fate.masqueraded {
        Some(true) => client.masked,
        Some(false) => None,
        None => client.address,
    };
    let mut answer = Packet {
        source: Some(endpoint),
        destination: masked,
        source_ports: PORT,
        destination_ports: CLIENT_PORTS,
        state: "established",
        local: match (&client.by, fate.masqueraded) {
            (None, _) | (_, Some(true)) => Some(true),
            (_, None) => Some(false),
            (_, Some(false)) => None,
        },
        mark: Bits::default(),
        ..request
    };
    // Translated back in the middle of the first hook.
    answer.translated = client.address.filter(|_| client.by.is_some());
    let back: &[(Hook, Side, Side)] = match &client.by {
        Some(_) => &[
            (Hook::Ingress, uplink(), Side::Nothing),
            (Hook::Prerouting, uplink(), Side::Nothing),
            (Hook::Forward, uplink(), by()),
            (Hook::Postrouting, uplink(), by()),
        ],
        None => &[
            (Hook::Ingress, uplink(), Side::Nothing),
            (Hook::Prerouting, uplink(), Side::Nothing),
            (Hook::Input, uplink(), Side::Nothing),
        ],
    };
    for (hook, from, to) in back {
        (answer.from, answer.to) = (from.clone(), to.clone());
        if *hook != Hook::Ingress
            && *hook != Hook::Prerouting
            && let Some(translated) = answer.translated.take()
        {
            (answer.destination, answer.local) = (Some(translated), Some(false));
        }
        if fate.take(Answer, walk(chains, *hook, &mut answer)) {
            return fate;
        }
    }
    fate
}

impl<'a> Fate<'a> {
    /// Notes what happens at a hook; true if the packets get no further.
    fn take(&mut self, heading: Heading, hits: Vec<Hit<'a>>) -> bool {
        for hit in hits {
            match hit.rule.map(|rule| &rule.verdict) {
                Some(Verdict::Accept) => {}
                Some(Verdict::Masquerade) => {
                    if heading == Heading::Request && self.masqueraded != Some(true) {
                        self.masqueraded = Some(hit.sure);
                    }
                }
                Some(Verdict::Redirect(_)) if hit.sure => {
                    self.hits.push((heading, hit));
                    return true;
                }
                _ => {
                    self.hits.push((heading, hit));
                    if hit.sure && hit.ends() {
                        return true;
                    }
                }
            }
        }
        false
    }
}
