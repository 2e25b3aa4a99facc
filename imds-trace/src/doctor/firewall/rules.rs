//! Does a rule hold for a packet? Rules of any tool in one shape. Pure.
//!
//! Three answers, never a guess: what cannot be known of a packet or a rule is `Maybe`, and so is all that hangs on it.

use std::net::IpAddr;
use std::sync::Arc;

use super::holds::Holds;
use super::mark::{Bits, Marking};

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
    /// `netdev` families, after everything else.
    Egress,
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
    /// Does it ask or tell who has an address? It is ARP's then, or neighbour discovery's of IPv6.
    pub finds: bool,
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
    /// `new` for a connection's first packet, `established`, or `untracked`.
    pub state: &'static str,
    /// A rule may have kept it from being tracked.
    pub maybe_untracked: bool,
    /// Connections are not tracked yet where it is, so that it has no state.
    pub before_tracking: bool,
    /// A rule may have changed its TTL.
    pub ttl_changed: bool,
    /// Interfaces that it passes on the side of this hook, by any of which a card's own chain sees it.
    pub beside: Vec<String>,
    /// The bridge's port by which it passes a bridge on this side: none, one, or one that is not known.
    pub port: Side,
    /// Is the destination this namespace's own address? `None` if it is not known.
    pub local: Option<bool>,
    /// Where it is bound for behind the chains that translate addresses (destination NAT), if that is elsewhere.
    pub translated: Option<IpAddr>,
    /// The source that its connection's first packet got, if known, where it got one: it gets that behind the chains that translate.
    pub leaves_as: Option<Option<IpAddr>>,
    /// The address that it gets where it is masqueraded, if known.
    pub masks: Option<IpAddr>,
    /// Its mark.
    pub mark: Bits,
    /// Its connection's mark.
    pub connmark: Bits,
}

/// One thing that a rule asks of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// It must not hold.
    pub negated: bool,
    /// What.
    pub what: What,
}

/// What is asked one instead of the other; many rules may ask for the same.
pub type Alternatives = Arc<Vec<Vec<What>>>;

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
    /// Has its mark these bits, under this mask?
    Mark(u32, u32),
    /// Has its connection's mark these bits, under this mask?
    ConnMark(u32, u32),
    /// Is it in a set of this name, by these of its ends? Not decided until the set is known.
    InSet(String, Vec<End>),
    /// Does all of one of these hold?
    AnyOf(Alternatives),
    /// Something that is not decided here.
    Undecided,
    /// Something that says nothing about the packet, as a comment.
    Always,
}

/// Which of a packet's ends a set is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// `src`
    Source,
    /// `dst`
    Destination,
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
    /// Gives it another source: one of these addresses, or the interface's own.
    Masquerade(Option<(IpAddr, IpAddr)>),
    /// Keeps it from being tracked: no address of it is changed.
    Notrack,
    /// Goes on in another chain, and comes back.
    Jump(String),
    /// Goes on in another chain instead.
    Goto(String),
    /// Back to where it came from.
    Return,
    /// Marks it: goes on.
    Mark(Marking),
    /// A program in user space decides.
    Asks(String),
    /// Changes it in a way on which depends whether it arrives: goes on.
    Changes(Changed),
    /// Counts, logs: goes on.
    Continue,
}

/// What a rule changes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// How often it may still be forwarded.
    Ttl,
    /// That, upwards: it arrives all the better.
    MoreTtl,
    /// In which zone its connection is looked up.
    Zone,
    /// An address or a port, without the connection's being noted.
    Ends,
}

impl Changed {
    /// In a sentence.
    pub fn words(self) -> &'static str {
        match self {
            Changed::Ttl | Changed::MoreTtl => "the TTL",
            Changed::Zone => "the connection tracking zone",
            Changed::Ends => "an address or a port",
        }
    }
}

/// A TTL of which any way of ours leaves enough.
pub const MUCH: u64 = 8;

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
    /// Family of its table: `ip`, `ip6`, `inet`, `netdev`, `bridge`, `arp`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where it is asked; `None` if only others jump to it.
    pub hook: Option<Hook>,
    /// When it is asked among those of its hook: the lowest first.
    pub priority: i32,
    /// Is it asked for a connection's first packet only, and may change addresses?
    pub nat: bool,
    /// Does what comes to its end die?
    pub drops_the_rest: bool,
    /// The interfaces whose packets it sees, where it is these interfaces' own.
    pub devices: Vec<String>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

impl Rule {
    /// Does it hold for this packet?
    pub fn holds(&self, packet: &Packet) -> Holds {
        self.conditions.iter().map(|condition| condition.holds(packet)).min().unwrap_or(Holds::Yes)
    }

    /// Does it name the packet's own addresses, more narrowly than by a range as wide as the world?
    pub fn names(&self, packet: &Packet) -> bool {
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
            What::Protocol(names) if packet.finds => {
                let own: &[&str] = if packet.v6 { &["icmpv6", "ipv6-icmp", "58", "all", "0"] } else { &["arp"] };
                yes(names.iter().any(|name| own.contains(&name.as_str())))
            }
            What::Protocol(names) => yes(names.iter().any(|name| matches!(name.as_str(), "tcp" | "6" | "all" | "0"))),
            What::V6(v6) => yes(*v6 == packet.v6),
            What::From(names) => interface(names, &packet.from),
            What::To(names) => interface(names, &packet.to),
            What::State(names) => match names.iter().any(|name| name.eq_ignore_ascii_case(packet.state)) {
                _ if packet.maybe_untracked || packet.before_tracking => Holds::Maybe,
                is => yes(is),
            },
            What::ToThisHost => packet.local.map_or(Holds::Maybe, yes),
            What::Mark(value, mask) => packet.mark.are(*value, *mask),
            What::ConnMark(value, mask) => packet.connmark.are(*value, *mask),
            What::AnyOf(entries) => {
                let all = |entry: &Vec<What>| entry.iter().map(|what| what.holds(packet)).min().unwrap_or(Holds::No);
                entries.iter().map(all).max().unwrap_or(Holds::No)
            }
            What::InSet(..) => Holds::Maybe,
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
