//! Would these rules let this packet through? Rules of any tool in one shape, and a walk through them. Pure.
//!
//! Three answers, never a guess: what cannot be known of a packet or a rule is `Maybe`, and so is all that hangs on it.

use std::net::IpAddr;

/// Chains jumped into at most; the kernel allows 16 (`NFT_JUMP_STACK_SIZE`).
const MAX_DEPTH: usize = 32;

/// Rules asked about one packet at one hook at most. Chains that jump to each other twice are a walk without an end, and who owns a
/// container's namespace may write some; nobody's real rules come near.
const MAX_STEPS: u32 = 100_000;

/// Does a condition hold?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holds {
    /// Certainly not.
    No,
    /// It cannot be known here.
    Maybe,
    /// Certainly.
    Yes,
}

/// Where in the kernel a chain is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `netdev` families, before everything else.
    Ingress,
    /// Before the routing decision.
    Prerouting,
    /// To this namespace itself.
    Input,
    /// Through it.
    Forward,
    /// From its own processes.
    Output,
    /// On the way out.
    Postrouting,
}

/// What a packet's interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// This one.
    Is(String),
    /// There is none at this hook.
    Nothing,
    /// Not known.
    Unknown,
}

/// A packet at one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Is it IPv6?
    pub v6: bool,
    /// From where; `None` if it is not known.
    pub source: Option<IpAddr>,
    /// To where; `None` if it is not known.
    pub destination: Option<IpAddr>,
    /// TCP ports that it may come from, first and last.
    pub source_ports: (u16, u16),
    /// TCP ports that it may go to.
    pub destination_ports: (u16, u16),
    /// In by.
    pub from: Side,
    /// Out by.
    pub to: Side,
    /// `new` for a connection's first packet, else `established`.
    pub state: &'static str,
}

/// One thing that a rule asks of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// It must not hold.
    pub negated: bool,
    /// What.
    pub what: What,
}

/// What a rule can ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Is the source in one of these ranges?
    Source(Vec<(IpAddr, IpAddr)>),
    /// Is the destination in one of these ranges?
    Destination(Vec<(IpAddr, IpAddr)>),
    /// Is the source port in one of these ranges?
    SourcePort(Vec<(u16, u16)>),
    /// Is the destination port in one of these ranges?
    DestinationPort(Vec<(u16, u16)>),
    /// Is the protocol one of these? Ours is always TCP.
    Protocol(Vec<String>),
    /// Is it IPv6?
    V6(bool),
    /// Did it come in by one of these? A last `+` or `*` stands for anything.
    From(Vec<String>),
    /// Does it go out by one of these?
    To(Vec<String>),
    /// Is its connection in one of these states?
    State(Vec<String>),
    /// Is the destination this host itself?
    ToThisHost,
    /// Something that is not decided here.
    Undecided,
    /// Something that says nothing about the packet, as a comment.
    Always,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Lets it through this chain for good.
    Accept,
    /// Drops it.
    Drop,
    /// Drops it and says so.
    Reject,
    /// Sends it elsewhere.
    Redirect(String),
    /// Gives it another source.
    Masquerade,
    /// Goes on in another chain, and comes back.
    Jump(String),
    /// Goes on in another chain instead.
    Goto(String),
    /// Back to where it came from.
    Return,
    /// Counts, marks, logs: goes on.
    Continue,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// What then.
    pub verdict: Verdict,
    /// The rule, as its tool shows it.
    pub text: String,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The tool that shows it: `iptables`, `ip6tables` or `nft`.
    pub tool: &'static str,
    /// Family of its table: `ip`, `ip6`, `inet`, `netdev`, `bridge`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where it is asked; `None` if only others jump to it.
    pub hook: Option<Hook>,
    /// Is it asked for a connection's first packet only, and may change addresses?
    pub nat: bool,
    /// Does what comes to its end die?
    pub drops_the_rest: bool,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// Something that would happen to a packet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit<'a> {
    /// In this chain.
    pub chain: &'a Chain,
    /// By this rule; `None` is the chain's policy.
    pub rule: Option<&'a Rule>,
    /// Certainly?
    pub sure: bool,
    /// Does a rule on the way name the packet's endpoint, more narrowly than by a range as wide as the world?
    pub named: bool,
}

impl Chain {
    fn in_table_of(&self, other: &Chain) -> bool {
        self.tool == other.tool && self.family == other.family && self.table == other.table
    }

    fn concerns(&self, packet: &Packet) -> bool {
        match self.family.as_str() {
            "ip" => !packet.v6,
            "ip6" => packet.v6,
            "inet" | "netdev" | "bridge" => true,
            _ => false,
        }
    }
}

/// How a walk through a chain ends.
enum End {
    /// Decided: accepted, or not.
    Decided { accepted: bool },
    /// Came to the end. `sure`: nothing on the way may have let it through for good.
    Through { sure: bool },
}

/// Everything that would or may happen to a packet at a hook, acceptance included.
pub fn walk<'a>(chains: &'a [Chain], hook: Hook, packet: &Packet) -> Vec<Hit<'a>> {
    let mut hits = Hits { found: Vec::new(), steps: 0 };
    let bases = chains.iter().filter(|chain| chain.hook == Some(hook) && chain.concerns(packet));
    for base in bases.filter(|chain| !chain.nat || packet.state == "new") {
        // Which packets come by a bridge's or a card's own chain is not known from here.
        let sure = !matches!(base.family.as_str(), "netdev" | "bridge");
        let end = through(chains, base, packet, Certainty { sure, named: false }, 0, &mut hits);
        if let End::Through { sure: true } = end
            && base.drops_the_rest
        {
            hits.found.push(Hit { chain: base, rule: None, sure, named: false });
        }
    }
    hits.found
}

/// What was found, and how many rules were asked.
struct Hits<'a> {
    found: Vec<Hit<'a>>,
    steps: u32,
}

#[derive(Clone, Copy)]
struct Certainty {
    sure: bool,
    named: bool,
}

fn through<'a>(
    chains: &'a [Chain],
    chain: &'a Chain,
    packet: &Packet,
    mut way: Certainty,
    depth: usize,
    hits: &mut Hits<'a>,
) -> End {
    // Nothing on the way may have let it through for good.
    let mut not_accepted = true;
    for rule in &chain.rules {
        hits.steps += 1;
        if hits.steps > MAX_STEPS {
            if hits.steps == MAX_STEPS + 1 {
                // Told as a hit by a rule that decides nothing: what comes behind it is not known.
                hits.found.push(Hit { chain, rule: Some(rule), sure: false, named: false });
            }
            return End::Through { sure: false };
        }
        let holds = rule.holds(packet);
        if holds == Holds::No {
            continue;
        }
        let certain = holds == Holds::Yes;
        let here = Certainty { sure: way.sure && certain, named: way.named || rule.names(packet) };
        match &rule.verdict {
            Verdict::Continue => {}
            Verdict::Return if certain => return End::Through { sure: not_accepted },
            Verdict::Return => way.sure = false,
            Verdict::Jump(target) | Verdict::Goto(target) => {
                let goes = matches!(rule.verdict, Verdict::Goto(_));
                let target = chains.iter().find(|other| other.name == *target && other.in_table_of(chain));
                let Some(target) = target.filter(|_| depth < MAX_DEPTH) else { continue };
                match through(chains, target, packet, here, depth + 1, hits) {
                    End::Decided { accepted } if certain => return End::Decided { accepted },
                    End::Decided { accepted: true } | End::Through { sure: false } => {
                        way.sure = false;
                        not_accepted = false;
                    }
                    End::Decided { accepted: false } | End::Through { sure: true } => {}
                }
                if goes && certain {
                    return End::Through { sure: not_accepted };
                }
            }
            verdict => {
                hits.found.push(Hit { chain, rule: Some(rule), sure: here.sure, named: here.named });
                let accepted = !matches!(verdict, Verdict::Drop | Verdict::Reject);
                if certain {
                    return End::Decided { accepted };
                }
                if accepted {
                    way.sure = false;
                    not_accepted = false;
                }
            }
        }
    }
    End::Through { sure: not_accepted }
}

impl Rule {
    fn holds(&self, packet: &Packet) -> Holds {
        self.conditions.iter().map(|condition| condition.holds(packet)).min().unwrap_or(Holds::Yes)
    }

    fn names(&self, packet: &Packet) -> bool {
        self.conditions.iter().any(|condition| {
            let ranges = match &condition.what {
                What::Source(ranges) | What::Destination(ranges) if !condition.negated => ranges,
                _ => return false,
            };
            let narrow = |(first, last): &(IpAddr, IpAddr)| !first.is_unspecified() && first <= last;
            condition.holds(packet) == Holds::Yes && ranges.iter().all(narrow)
        })
    }
}

impl Condition {
    fn holds(&self, packet: &Packet) -> Holds {
        let holds = self.what.holds(packet);
        match (self.negated, holds) {
            (true, Holds::Yes) => Holds::No,
            (true, Holds::No) => Holds::Yes,
            _ => holds,
        }
    }
}

impl What {
    fn holds(&self, packet: &Packet) -> Holds {
        match self {
            What::Source(ranges) => address(ranges, packet.source, packet.v6),
            What::Destination(ranges) => address(ranges, packet.destination, packet.v6),
            What::SourcePort(ranges) => ports(ranges, packet.source_ports),
            What::DestinationPort(ranges) => ports(ranges, packet.destination_ports),
            What::Protocol(names) => yes(names.iter().any(|name| matches!(name.as_str(), "tcp" | "6" | "all" | "0"))),
            What::V6(v6) => yes(*v6 == packet.v6),
            What::From(names) => interface(names, &packet.from),
            What::To(names) => interface(names, &packet.to),
            What::State(names) => yes(names.iter().any(|name| name.eq_ignore_ascii_case(packet.state))),
            // IMDS is not this host, unless somebody made it so, which the routes show.
            What::ToThisHost => match (&packet.to, packet.destination) {
                (_, None) => Holds::Maybe,
                (_, Some(_)) if packet.source_ports == (80, 80) => Holds::Maybe,
                (_, Some(_)) => Holds::No,
            },
            What::Undecided => Holds::Maybe,
            What::Always => Holds::Yes,
        }
    }
}

fn yes(holds: bool) -> Holds {
    if holds { Holds::Yes } else { Holds::No }
}

fn address(ranges: &[(IpAddr, IpAddr)], address: Option<IpAddr>, v6: bool) -> Holds {
    let mut ours = ranges.iter().filter(|(first, _)| first.is_ipv6() == v6).peekable();
    if ours.peek().is_none() {
        return Holds::No;
    }
    match address {
        Some(address) => yes(ours.any(|(first, last)| (*first..=*last).contains(&address))),
        None if ours.any(|(first, last)| first.is_unspecified() && is_last(*last)) => Holds::Yes,
        None => Holds::Maybe,
    }
}

fn is_last(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.to_bits() == u32::MAX,
        IpAddr::V6(address) => address.to_bits() == u128::MAX,
    }
}

fn ports(ranges: &[(u16, u16)], (first, last): (u16, u16)) -> Holds {
    if ranges.iter().any(|(from, to)| *from <= first && last <= *to) {
        Holds::Yes
    } else if ranges.iter().any(|(from, to)| *from <= last && first <= *to) {
        Holds::Maybe
    } else {
        Holds::No
    }
}

fn interface(names: &[String], side: &Side) -> Holds {
    match side {
        Side::Is(name) => yes(names.iter().any(|pattern| match pattern.strip_suffix(['+', '*']) {
            Some(beginning) => name.starts_with(beginning),
            None => pattern == name,
        })),
        Side::Nothing => Holds::No,
        Side::Unknown => Holds::Maybe,
    }
}

/// First and last address of `a.b.c.d`, `a.b.c.d/n` or `a.b.c.d/m.m.m.m`.
pub fn range(text: &str) -> Option<(IpAddr, IpAddr)> {
    let (address, mask) = text.split_once('/').map_or((text, None), |(address, mask)| (address, Some(mask)));
    match address.parse().ok()? {
        IpAddr::V4(address) => {
            let bits = match mask {
                None => u32::MAX,
                Some(mask) => match mask.parse::<u32>() {
                    Ok(length) => u32::MAX.checked_shl(32u32.checked_sub(length)?).unwrap_or(0),
                    Err(_) => mask.parse::<std::net::Ipv4Addr>().ok()?.to_bits(),
                },
            };
            // A mask with holes is no range.
            if bits.leading_ones() + bits.trailing_zeros() < 32 {
                return None;
            }
            let first = address.to_bits() & bits;
            Some((IpAddr::V4(first.into()), IpAddr::V4((first | !bits).into())))
        }
        IpAddr::V6(address) => {
            let length: u32 = mask.map_or(Some(128), |mask| mask.parse().ok())?;
            let bits = u128::MAX.checked_shl(128u32.checked_sub(length)?).unwrap_or(0);
            let first = address.to_bits() & bits;
            Some((IpAddr::V6(first.into()), IpAddr::V6((first | !bits).into())))
        }
    }
}
