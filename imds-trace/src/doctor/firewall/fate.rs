//! What becomes of a client's requests, and of their answers, at the rules of a namespace? Hook by hook, in the kernel's order. Pure.

use std::net::IpAddr;

use super::mark::Bits;
use super::rules::{Chain, Hook, Packet, Rule, Side, Verdict};
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
    /// The bridge's port by which it comes in, where [`Self::by`] is a bridge and the port is known.
    pub port: Option<String>,
    /// Interfaces that the uplink is stacked on.
    pub cards: Vec<String>,
    /// Is the uplink a bridge?
    pub over_bridge: bool,
    /// Is nobody there, and this is what somebody could be?
    pub is_example: bool,
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
    /// What they get, where a rule says; else the interface's own.
    pub becomes: Option<(IpAddr, IpAddr)>,
    /// The rule that gives it.
    pub by: Option<&'a Rule>,
    /// They are not tracked, so nothing translates them: `None`: no; `Some(false)`: perhaps.
    pub untracked: Option<bool>,
    /// The requests end here: nothing goes out to the endpoint.
    pub ends: bool,
    /// A rule may change the TTL of the answers, so that what they bring along does not say how far they come.
    pub ttl_changed: bool,
    /// Marks of requests and of answers where the kernel looks for their route.
    pub marks: [Bits; 2],
}

/// What becomes of a client's packets.
pub fn fate<'a>(chains: &'a [Chain], client: &Client) -> Fate<'a> {
    use Heading::Answer;
    let mut fate = Fate::default();
    let Some(endpoint) = client.endpoint else { return fate };
    let uplink = || client.uplink.clone().map_or(Side::Unknown, Side::Is);
    let by = || client.by.clone().map_or(Side::Nothing, Side::Is);
    let mut request = Packet {
        v6: endpoint.is_ipv6(),
        finds: false,
        source: client.address,
        destination: Some(endpoint),
        source_ports: CLIENT_PORTS,
        destination_ports: PORT,
        from: Side::Nothing,
        to: Side::Nothing,
        state: "new",
        maybe_untracked: false,
        before_tracking: false,
        ttl_changed: false,
        beside: Vec::new(),
        port: Side::Nothing,
        // IMDS is not this host, unless somebody made it so, which the routes show.
        local: Some(false),
        translated: None,
        leaves_as: None,
        masks: client.masked,
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
            (Hook::Egress, Side::Nothing, uplink()),
        ],
        None => &[
            (Hook::Output, Side::Nothing, uplink()),
            (Hook::Postrouting, Side::Nothing, uplink()),
            (Hook::Egress, Side::Nothing, uplink()),
        ],
    };
    if fate.send(chains, client, out, &mut request) {
        return fate;
    }
    fate.untracked = match (request.state, request.maybe_untracked) {
        ("untracked", _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    let masked = match fate.masqueraded {
        Some(true) => match fate.becomes {
            Some((first, last)) => (first == last).then_some(first),
            None => client.masked,
        },
        Some(false) => None,
        None => client.address,
    };
    let mut later = Packet {
        source: client.address,
        state: "established",
        maybe_untracked: false,
        mark: Bits::default(),
        leaves_as: fate.masqueraded.map(|_| masked),
        ..request.clone()
    };
    if fate.send_on(chains, client, out, &mut later) {
        return fate;
    }
    let mut answer = Packet {
        source: Some(endpoint),
        destination: masked,
        source_ports: PORT,
        destination_ports: CLIENT_PORTS,
        state: "established",
        // Tracked by itself, an answer to what was not is taken for INVALID.
        maybe_untracked: request.state == "untracked" || request.maybe_untracked,
        local: match (&client.by, fate.masqueraded) {
            (None, _) | (_, Some(true)) => Some(true),
            (_, None) => Some(false),
            (_, Some(false)) => None,
        },
        mark: Bits::default(),
        ttl_changed: false,
        ..request
    };
    // Translated back in the middle of the first hook.
    answer.translated = client.address.filter(|_| client.by.is_some());
    let [inner, outer] = client.sides();
    let back: &[(Hook, Side, Side)] = match &client.by {
        Some(_) => &[
            (Hook::Ingress, uplink(), Side::Nothing),
            (Hook::Prerouting, uplink(), Side::Nothing),
            (Hook::Forward, uplink(), by()),
            (Hook::Postrouting, uplink(), by()),
            (Hook::Egress, Side::Nothing, by()),
        ],
        None => &[
            (Hook::Ingress, uplink(), Side::Nothing),
            (Hook::Prerouting, uplink(), Side::Nothing),
            (Hook::Input, uplink(), Side::Nothing),
        ],
    };
    for (hook, from, to) in back {
        (answer.from, answer.to) = (from.clone(), to.clone());
        let inward = matches!(hook, Hook::Ingress | Hook::Prerouting);
        (answer.beside, answer.port) = if inward { outer.clone() } else { inner.clone() };
        if *hook != Hook::Ingress
            && *hook != Hook::Prerouting
            && let Some(translated) = answer.translated.take()
        {
            (answer.destination, answer.local) = (Some(translated), Some(false));
        }
        let ended = fate.take(Answer, walk(chains, *hook, &mut answer));
        fate.ttl_changed |= answer.ttl_changed;
        if *hook == Hook::Prerouting {
            fate.marks[1] = answer.mark;
        }
        if ended {
            return fate;
        }
    }
    fate
}

/// May a rule stop requests of a client whose destination was changed to this one, behind the change? `to`: the interface by which the
/// new destination is reached; `None` if it is this namespace itself.
pub fn stops_redirected(chains: &[Chain], client: &Client, to: (IpAddr, u16), by: Option<&str>) -> bool {
    let from = client.by.clone().unwrap_or_else(|| "lo".to_owned());
    let [mark, _] = fate(chains, client).marks;
    let packet = |state| Packet {
        v6: to.0.is_ipv6(),
        finds: false,
        source: client.address,
        destination: Some(to.0),
        source_ports: CLIENT_PORTS,
        destination_ports: (to.1, to.1),
        from: Side::Is(from.clone()),
        to: by.map_or(Side::Nothing, |by| Side::Is(by.to_owned())),
        state,
        maybe_untracked: false,
        before_tracking: false,
        ttl_changed: false,
        beside: Vec::new(),
        port: Side::Nothing,
        local: Some(by.is_none()),
        translated: None,
        leaves_as: None,
        masks: None,
        mark,
        connmark: Bits::default(),
    };
    let hook = if by.is_some() { Hook::Forward } else { Hook::Input };
    let stops = |hit: &Hit| match hit.rule.map(|rule| &rule.verdict) {
        None | Some(Verdict::Drop | Verdict::Reject | Verdict::Asks(_)) => true,
        Some(_) => false,
    };
    ["new", "established"].into_iter().any(|state| walk(chains, hook, &mut packet(state)).iter().any(stops))
}

impl Client {
    /// On the client's side, and on the uplink's: the interfaces passed, and the port of the bridge passed.
    fn sides(&self) -> [(Vec<String>, Side); 2] {
        let named = |name: &Option<String>, more: &[String]| name.iter().chain(more).cloned().collect::<Vec<_>>();
        let port = self.port.clone().map_or(Side::Nothing, Side::Is);
        let card = match (self.over_bridge, self.cards.as_slice()) {
            (false, _) => Side::Nothing,
            (true, [one]) => Side::Is(one.clone()),
            (true, _) => Side::Unknown,
        };
        [(named(&self.by, self.port.as_slice()), port), (named(&self.uplink, &self.cards), card)]
    }
}

impl<'a> Fate<'a> {
    /// Takes a request through its hooks; true if it gets no further.
    fn send(&mut self, chains: &'a [Chain], client: &Client, out: &[(Hook, Side, Side)], request: &mut Packet) -> bool {
        let [inner, outer] = client.sides();
        for (hook, from, to) in out {
            (request.from, request.to) = (from.clone(), to.clone());
            let inward = matches!(hook, Hook::Ingress | Hook::Prerouting);
            (request.beside, request.port) = if inward { inner.clone() } else { outer.clone() };
            let ended = self.take(Heading::Request, walk(chains, *hook, request));
            if matches!(hook, Hook::Prerouting | Hook::Output) {
                self.marks[0] = request.mark;
            }
            if ended {
                self.ends = true;
                return true;
            }
        }
        false
    }

    /// The same for what a client sends once its connection is established: the request itself. What befalls both is noted once.
    fn send_on(
        &mut self,
        chains: &'a [Chain],
        client: &Client,
        out: &[(Hook, Side, Side)],
        later: &mut Packet,
    ) -> bool {
        let mut fate = Fate::default();
        self.ends = fate.send(chains, client, out, later);
        self.marks[0] = self.marks[0].or(fate.marks[0]);
        for (heading, hit) in fate.hits {
            let same = |(_, known): &&mut (Heading, Hit)| {
                std::ptr::eq(known.chain, hit.chain)
                    && known.rule.map(std::ptr::from_ref) == hit.rule.map(std::ptr::from_ref)
            };
            match self.hits.iter_mut().find(same) {
                Some((_, known)) => known.sure |= hit.sure,
                None => self.hits.push((heading, hit)),
            }
        }
        self.ends
    }

    /// Notes what happens at a hook; true if the packets get no further.
    fn take(&mut self, heading: Heading, hits: Vec<Hit<'a>>) -> bool {
        for hit in hits {
            match hit.rule.map(|rule| &rule.verdict) {
                Some(Verdict::Accept) => {}
                Some(Verdict::Masquerade(to)) => {
                    if heading == Heading::Request && self.masqueraded != Some(true) {
                        // One before that may hold gives another address.
                        let differs = self.masqueraded.is_some() && self.becomes != *to;
                        self.masqueraded = Some(hit.sure && !differs);
                        (self.becomes, self.by) = (*to, hit.rule);
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
