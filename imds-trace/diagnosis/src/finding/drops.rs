//! Why did the kernel drop it, and did an exchange fail by that? What the rules about drops have in common.
//!
//! Each drop has one cause, so that one rule speaks of it.

use super::programs::{Gate, Program, program};
use super::{Case, Confidence, Verdict};
use crate::exchange::{Exchange, Moment};
use crate::journey::{Dropped, Fate, Hop, Journey};
use crate::net::{Direction, Heading, Timestamp, Ttl};

/// Why the kernel dropped a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Its TTL was used up where it should be forwarded.
    Spent,
    /// A rule of netfilter (iptables, nftables).
    Netfilter,
    /// The way back to its source does not lead out by the interface that it came in by.
    ReversePath,
    /// There is no route for it.
    NoRoute,
    /// It should be forwarded where nothing is.
    NotForwarding,
    /// Its next hop does not answer (ARP, neighbour discovery).
    NoNeighbour,
    /// It was broken when it came.
    Malformed,
    /// A BPF program, or a filter of tc.
    Program(Program),
    /// Something else.
    Other,
}

/// Functions in which the kernel drops a packet that it should forward and whose TTL is used up.
const FORWARDS: [&str; 2] = ["ip_forward", "ip6_forward"];
/// The reason that such a drop has, and that of a broken header.
const SPENT_REASON: &str = "IP_INHDR";
/// What else they give where the kernel has no word for why.
const NO_REASON: [&str; 2] = ["", "NOT_SPECIFIED"];
/// Functions that drop for netfilter, by prefix.
const NETFILTER: [&str; 5] = ["nf_", "nft_", "ipt_", "ip6t_", "xt_"];
/// Those of them that track connections and translate addresses: they drop without a rule, with their table full for instance.
const TRACKING: [&str; 4] = ["nf_conntrack", "nf_ct_", "nf_confirm", "nf_nat"];
/// Where an IPv4 packet's route is looked for. What is dropped there mostly came by an interface that does not lead back, which
/// kernels before 5.17 do not say.
const CAME_BY_ANOTHER: &str = "ip_rcv_finish_core";
/// Functions that drop what has no route, by prefix.
const NO_ROUTE: [&str; 2] = ["ip_error", "ip6_pkt_drop"];
/// The function that drops IPv4 packets without a usable route, and the reason that it gives where forwarding is off and never else: with it
/// on, this error of a route (EHOSTUNREACH) is answered with ICMP and has no reason (`ip_error` of net/ipv4/route.c).
const IP_ERROR: &str = "ip_error";
const OFF_REASON: &str = "IP_INADDRERRORS";
/// The function that drops IPv6 packets where forwarding is off; it does so for other things as well.
const FORWARDS_V6: &str = "ip6_forward";
/// Reasons that say so.
const NO_ROUTE_REASONS: [&str; 2] = ["IP_OUTNOROUTES", "IP_INNOROUTES"];
/// Functions that drop what waited for a next hop in vain, by prefix.
const NO_NEIGHBOUR: [&str; 3] = ["neigh_", "arp_error_report", "ndisc_error_report"];
/// Reasons that say so.
const NO_NEIGHBOUR_REASONS: [&str; 2] = ["NEIGH_FAILED", "NEIGH_CREATEFAIL"];
/// A client that sends broken packets is refused for them, which is no loss.
const MALFORMED: [&str; 5] = ["IP_INHDR", "IP_CSUM", "TCP_CSUM", "PKT_TOO_SMALL", "HDR_TRUNC"];

/// A function's name without what compilers add to clones: `ip_forward.isra.0`.
pub(super) fn plain(function: &str) -> &str {
    function.split('.').next().unwrap_or_default()
}

/// The cause of a drop. The reason's name is no test for a used-up TTL: the kernel uses it for broken headers as well, and older
/// kernels give none. Function and TTL decide; where functions have no names, reason and TTL must do.
pub(super) fn cause(heading: Heading, dropped: &Dropped) -> Cause {
    let location = dropped.drop.location.as_deref();
    let function = plain(location.unwrap_or_default());
    let reason = dropped.drop.reason.as_deref().unwrap_or_default();
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| function.starts_with(prefix));
    let gives = reason == SPENT_REASON || NO_REASON.contains(&reason) && location.is_some();
    let forwards = (FORWARDS.contains(&function) || location.is_none()) && gives;
    if dropped.ttl.0 <= 1 && forwards {
        Cause::Spent
    } else if begins(&TRACKING) {
        Cause::Other
    } else if reason == "NETFILTER_DROP" || begins(&NETFILTER) {
        Cause::Netfilter
    } else if reason == "IP_RPFILTER" || (reason.is_empty() && function == CAME_BY_ANOTHER) {
        Cause::ReversePath
    } else if NO_NEIGHBOUR_REASONS.contains(&reason) || begins(&NO_NEIGHBOUR) {
        Cause::NoNeighbour
    } else if function == IP_ERROR && reason == OFF_REASON {
        Cause::NotForwarding
    } else if NO_ROUTE_REASONS.contains(&reason) || begins(&NO_ROUTE) {
        Cause::NoRoute
    } else if heading == Heading::ToImds && MALFORMED.contains(&reason) {
        Cause::Malformed
    } else if let Some(program) = program(function, reason) {
        Cause::Program(program)
    } else {
        Cause::Other
    }
}

/// Was a dropped packet's TTL used up where it should have been forwarded, by the kernel or by a program in its place?
pub fn is_spent(dropped: &Dropped) -> bool {
    dropped.ttl.0 <= 1 && matches!(cause(Heading::FromImds, dropped), Cause::Spent | Cause::Program(_))
}

/// Did a program drop an answer that had no TTL left for the forwards ahead of it? Programs that forward (Cilium's) drop where the
/// kernel's own forwarding would; and whatever made one drop it, it could not have arrived. `hops`: where it was seen before.
pub(super) fn spent_at_program(case: &Case<'_>, hops: &[Hop], dropped: &Dropped) -> Option<Program> {
    let Cause::Program(program) = cause(Heading::FromImds, dropped) else { return None };
    let is_first = matches!(program.gate, Gate::Ingress | Gate::Xdp) && dropped.drop.netns == case.host.netns;
    // With what TTL it came to this host.
    let came = match hops.first() {
        Some(first) => (first.hook.direction == Direction::Ingress).then_some(first.ttl),
        None => is_first.then_some(dropped.ttl),
    }?;
    let needed = case.exchange.decrements.needed(case.who.initial_ttl)?;
    let ahead = needed.0.checked_sub(1)?.checked_sub(came.0.checked_sub(dropped.ttl.0)?)?;
    (dropped.ttl.0 <= 1 && dropped.ttl.0 <= ahead).then_some(program)
}

/// How a packet was lost to its TTL, if it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent<'a> {
    /// The kernel dropped it where it forwards, with a TTL of 1 or less.
    Dropped(&'a Dropped),
    /// The same, in a function without a name: by its reason.
    Unnamed(&'a Dropped),
    /// It came in with a TTL of 1 or less for a client behind this host and was not seen again; no drop was seen either.
    Vanished,
}

/// Was this response packet lost because its TTL was used up?
pub fn spent(journey: &Journey) -> Option<Spent<'_>> {
    if journey.heading != Heading::FromImds {
        return None;
    }
    match &journey.fate {
        Fate::Dropped(dropped) => {
            let how = if dropped.drop.location.is_none() { Spent::Unnamed } else { Spent::Dropped };
            (cause(journey.heading, dropped) == Cause::Spent).then(|| how(dropped))
        }
        Fate::Unresolved => {
            let last = journey.hops.last()?;
            (last.ttl.0 <= 1).then_some(Spent::Vanished)
        }
        Fate::Delivered => None,
    }
}

/// Did a response's TTL fall by more, where it was seen, than its forwards take? Something here sets it, or it went in a circle; the hop
/// limit of the instance is not why it was used up.
pub(super) fn is_lowered(hops: &[Hop], dropped: &Dropped, needed: Option<Ttl>) -> bool {
    let Some(first) = hops.first().filter(|hop| hop.hook.direction == Direction::Ingress) else { return false };
    let forwards = hops.iter().filter(|hop| hop.hook.direction == Direction::Egress).count();
    let ahead = needed.map_or(0, |needed| usize::from(needed.0.saturating_sub(1)));
    usize::from(first.ttl.0.saturating_sub(dropped.ttl.0)) > forwards.max(ahead)
}

/// A drop that an exchange failed by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failed<'a> {
    /// Which way the packet went.
    pub heading: Heading,
    /// The drop.
    pub dropped: &'a Dropped,
    /// Why.
    pub cause: Cause,
    /// Copies lost.
    pub weight: u64,
    /// When the last of them was, if not now.
    pub last: Option<Timestamp>,
    /// Is it a part of the response behind its head, which arrived?
    pub is_rest: bool,
}

/// The drop that the case's exchange failed by, if that is what has just turned out, or one more copy of it.
pub(super) fn failed<'a>(case: &Case<'a>) -> Option<Failed<'a>> {
    let exchange = case.exchange;
    let (heading, dropped, weight, last) = match case.moment {
        Moment::Closed if exchange.answered.is_some() => {
            let rest = exchange.rest_lost()?;
            let Fate::Dropped(dropped) = &rest.fate else { return None };
            (Heading::FromImds, dropped, rest.copies, rest.last_lost)
        }
        // Sent again, and that arrived.
        _ if exchange.answered.is_some() => return None,
        Moment::Closed => {
            // Of a request that IMDS has, a copy came through.
            let request_drop = exchange.request_drop().filter(|_| exchange.request_proof.is_none());
            let outward = request_drop.map(|dropped| (Heading::ToImds, dropped, exchange.outward.as_ref()));
            let inward = exchange.response_drop().map(|dropped| (Heading::FromImds, dropped, exchange.inward.as_ref()));
            let (heading, dropped, travel) = inward.or(outward)?;
            (heading, dropped, travel?.copies, travel?.last_lost)
        }
        // More copies of what it failed by; what is dropped after the client has gone for another reason is no cause.
        Moment::Lost(journey) if exchange.closed.is_some() && journey.carries() => match &journey.fate {
            Fate::Dropped(dropped) if failed_there(exchange, journey.heading, dropped) => {
                (journey.heading, dropped, 1, None)
            }
            Fate::Dropped(_) | Fate::Delivered | Fate::Unresolved => return None,
        },
        Moment::Asked | Moment::Answered | Moment::Left | Moment::Lost(_) | Moment::Settled | Moment::Afterwards => {
            return None;
        }
    };
    let cause = cause_here(case, heading, dropped);
    if exchange.redirected.is_some() && heading == Heading::ToImds && !drops_whatever_its_way(case, dropped) {
        return None;
    }
    Some(Failed { heading, dropped, cause, weight, last, is_rest: exchange.answered.is_some() })
}

/// Did something of this host drop it that does not ask where it goes? Else what was sent elsewhere died on that way, and not on the one to
/// IMDS: a rule of its own speaks of that.
pub(super) fn drops_whatever_its_way(case: &Case<'_>, dropped: &Dropped) -> bool {
    let cause = cause_here(case, Heading::ToImds, dropped);
    dropped.drop.netns == case.host.netns
        && matches!(cause, Cause::Netfilter | Cause::NotForwarding | Cause::Program(_))
}

/// Does the kernel leave open why?
pub(super) fn is_unexplained(dropped: &Dropped) -> bool {
    matches!(dropped.drop.reason.as_deref(), None | Some("NOT_SPECIFIED"))
}

/// The cause, where the host's settings say what the kernel does not.
fn cause_here(case: &Case<'_>, heading: Heading, dropped: &Dropped) -> Cause {
    let drop = &dropped.drop;
    let is_v6_off = drop.reason.as_deref() == Some(OFF_REASON);
    if (is_unexplained(dropped) || is_v6_off) && drop.netns == case.host.netns {
        let forwarding = &case.host.forwarding;
        let is_off = |name: &str| forwarding.off.iter().any(|off| off == name);
        let off = match plain(drop.location.as_deref().unwrap_or_default()) {
            IP_ERROR => drop.interface.as_ref().is_some_and(|interface| is_off(&interface.name)),
            FORWARDS_V6 => forwarding.v6 == Some(false) && dropped.ttl.0 > 1,
            _ => false,
        };
        if off {
            return Cause::NotForwarding;
        }
    }
    cause(heading, dropped)
}

/// Was this way's packet dropped at the same place before the exchange ended?
fn failed_there(exchange: &Exchange, heading: Heading, dropped: &Dropped) -> bool {
    let before = match heading {
        Heading::ToImds => exchange.request_drop(),
        Heading::FromImds => exchange.response_drop(),
    };
    before
        .is_some_and(|before| before.drop.location == dropped.drop.location && before.drop.netns == dropped.drop.netns)
}

impl Failed<'_> {
    /// What every rule about a drop says besides its own words: the drop, the way there, and how many copies.
    pub(super) fn concluded(&self, mut verdict: Verdict, case: &Case<'_>) -> Verdict {
        verdict.path = case.path(None);
        verdict.drop = Some(self.dropped.clone());
        verdict.weight = self.weight;
        verdict.last = self.last;
        if case.exchange.is_aside(self.dropped, case.who.netns) {
            verdict.confidence = Confidence::Likely;
            verdict.summary.push_str(
                " (That is neither on this host nor where the client is: it may have been a copy, of a mirror for instance.)",
            );
        }
        verdict.resting_on(case.absent())
    }

    /// `A request packet of …` or `A response packet to …`.
    pub(super) fn packet(&self, subject: &str) -> String {
        match self.heading {
            Heading::ToImds => format!("A request packet of {subject}"),
            Heading::FromImds if self.is_rest => {
                format!("A part of the response to {subject} behind its head, which arrived,")
            }
            Heading::FromImds => format!("A response packet to {subject}"),
        }
    }

    /// What came of it for the client.
    pub(super) fn so(&self) -> &'static str {
        if self.is_rest { "so the response did not arrive whole" } else { "and no answer reached the client" }
    }

    /// ` on ens5`, or nothing.
    pub(super) fn on(&self) -> String {
        let interface = self.dropped.drop.interface.as_ref();
        interface.map(|interface| format!(" on {}", interface.name)).unwrap_or_default()
    }
}
