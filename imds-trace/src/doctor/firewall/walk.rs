//! Would these rules let this packet through? A walk through chains, hook by hook, as the kernel takes it. Pure.

use std::net::IpAddr;

use super::holds::Holds;
use super::rules::{Chain, Changed, Hook, Packet, Rule, Side, Verdict};

/// Chains jumped into at most; the kernel allows 16 (`NFT_JUMP_STACK_SIZE`).
const MAX_DEPTH: usize = 32;

/// Rules asked about one packet at one hook at most. Chains that jump to each other twice are a walk without an end, and who owns a
/// container's namespace may write some; nobody's real rules come near.
const MAX_STEPS: u32 = 100_000;

/// Where destinations are translated (`NF_IP_PRI_NAT_DST`): chains behind it see the translated one.
pub const NAT_DST: i32 = -100;
/// Where sources are (`NF_IP_PRI_NAT_SRC`).
pub const NAT_SRC: i32 = 100;
/// Where connections begin to be tracked (`NF_IP_PRI_CONNTRACK`).
const CONNTRACK: i32 = -200;

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

    /// When it is asked: all that change addresses are asked at one moment, whatever their own priorities are among them
    /// (`nf_nat_inet_fn`).
    fn asked_at(&self, hook: Hook) -> i32 {
        match hook {
            _ if !self.nat => self.priority,
            Hook::Postrouting | Hook::Input => NAT_SRC,
            _ => NAT_DST,
        }
    }

    fn is_asked(&self, hook: Hook, packet: &Packet) -> bool {
        if self.nat && packet.state != "new" {
            return false;
        }
        match self.family.as_str() {
            "arp" => self.hook == Some(hook) && packet.finds && !packet.v6,
            _ if packet.finds && !packet.v6 => false,
            _ if matches!(hook, Hook::Ingress | Hook::Egress) => {
                let here = |device: &String| packet.beside.contains(device);
                self.hook == Some(hook) && (self.devices.is_empty() || self.devices.iter().any(here))
            }
            "ip" => self.hook == Some(hook) && !packet.v6,
            "ip6" => self.hook == Some(hook) && packet.v6,
            "inet" => self.hook == Some(hook),
            // What a bridge hands up to the host, or gets of it, is not forwarded by the bridge.
            "bridge" if packet.port != Side::Nothing => match hook {
                Hook::Prerouting => matches!(self.hook, Some(Hook::Prerouting | Hook::Input)),
                Hook::Postrouting => matches!(self.hook, Some(Hook::Postrouting | Hook::Output)),
                _ => false,
            },
            _ => false,
        }
    }
}

impl Packet {
    /// Is it for this namespace itself, so that it is not forwarded any more?
    fn stays(&self) -> bool {
        self.local == Some(true) && self.translated.is_none()
    }

    /// Is it an answer that arrives only if its connection is known?
    fn needs_translation(&self) -> bool {
        self.state == "established" && self.translated.is_some() && self.translated != self.destination
    }
}

/// How a walk through a chain ends.
enum End {
    /// Decided. `accepted`: it may have been let through.
    Decided { accepted: bool },
    /// Came to the end. `sure`: nothing on the way may have let it through for good.
    Through { sure: bool },
}

/// Everything that would or may happen to a packet at a hook, acceptance included. Its marks are then what rules made of them.
pub fn walk<'a>(chains: &'a [Chain], hook: Hook, packet: &mut Packet) -> Vec<Hit<'a>> {
    // Of thousands of chains, all but a few are only jumped to.
    let hooked = chains.iter().filter(|chain| chain.hook.is_some());
    let mut bases: Vec<&Chain> = hooked.filter(|chain| chain.is_asked(hook, packet)).collect();
    bases.sort_by_key(|chain| (chain.asked_at(hook), chain.priority));
    ask(chains, &bases, hook, packet)
}

/// The same of these chains, in this order.
fn ask<'a>(chains: &'a [Chain], bases: &[&'a Chain], hook: Hook, packet: &mut Packet) -> Vec<Hit<'a>> {
    let mut hits = Hits { found: Vec::new(), steps: 0, priority: 0 };
    let mut masqueraded = false;
    for equal in bases.chunk_by(|one, next| one.nat && next.nat && one.priority == next.priority) {
        let contested = is_contested(chains, equal, hook, packet);
        for base in equal {
            if masqueraded && base.nat {
                // The first that gives a source is the last that is asked.
                continue;
            }
            let before = hits.found.len();
            let sure = ask_one(chains, base, hook, packet, &mut hits) && !contested;
            if contested {
                for hit in &mut hits.found[before..] {
                    (hit.sure, hit.named) = (false, false);
                }
            }
            if hook == Hook::Postrouting
                && let Some((to, sure)) = hits.found[before..].iter().find_map(Hit::masquerades)
            {
                masqueraded = sure;
                packet.source = match to {
                    _ if !sure => None,
                    Some((first, last)) => (first == last).then_some(first),
                    None => packet.masks,
                };
            }
            if hits.found.last().is_some_and(|hit| sure && hit.sure && hit.ends()) {
                return hits.found;
            }
        }
    }
    hits.found
}

/// Would several chains that change addresses at the same priority, each by itself, do different things to a packet? The kernel asks first
/// whichever was registered last, and tells nobody which that was.
fn is_contested(chains: &[Chain], equal: &[&Chain], hook: Hook, packet: &Packet) -> bool {
    if equal.len() < 2 {
        return false;
    }
    let does = |base: &&Chain| {
        let mut hits = Hits { found: Vec::new(), steps: 0, priority: 0 };
        ask_one(chains, base, hook, &mut packet.clone(), &mut hits);
        let verdicts = hits.found.iter().map(|hit| (hit.rule.map(|rule| &rule.verdict), hit.sure));
        let own = |given: &(IpAddr, IpAddr)| [given.0, given.1].iter().all(|address| Some(*address) == packet.masks);
        let does =
            verdicts.filter(|(verdict, _)| *verdict != Some(&Verdict::Accept)).map(|(verdict, sure)| match verdict {
                // What it would get anyway.
                Some(Verdict::Masquerade(Some(given))) if own(given) => (Some(Verdict::Masquerade(None)), sure),
                verdict => (verdict.cloned(), sure),
            });
        does.collect::<Vec<_>>()
    };
    let mut all = equal.iter().map(does).filter(|does| !does.is_empty());
    let first = all.next();
    all.any(|other| Some(&other) != first.as_ref())
}

/// Asks one chain of a hook, and those that it jumps to; whether it is sure that it is asked.
fn ask_one<'a>(chains: &'a [Chain], base: &'a Chain, hook: Hook, packet: &mut Packet, hits: &mut Hits<'a>) -> bool {
    if hook == Hook::Prerouting
        && base.priority > NAT_DST
        && let Some(translated) = packet.translated.take()
    {
        packet.destination = Some(translated);
        packet.local = Some(false);
    }
    if (hook == Hook::Egress || hook == Hook::Postrouting && base.priority > NAT_SRC)
        && let Some(source) = packet.leaves_as.take()
    {
        packet.source = source;
    }
    let (from, to) = (packet.from.clone(), packet.to.clone());
    hits.priority = base.priority;
    packet.before_tracking = match hook {
        Hook::Ingress => true,
        Hook::Prerouting | Hook::Output => base.priority < CONNTRACK,
        _ => false,
    };
    let mut sure = !(base.nat && packet.maybe_untracked);
    if base.family == "bridge" {
        // A bridge's rules name its ports.
        let port = packet.port.clone();
        sure &= port != Side::Unknown;
        (packet.from, packet.to) = if hook == Hook::Prerouting { (port, Side::Nothing) } else { (Side::Nothing, port) };
    } else if matches!(hook, Hook::Ingress | Hook::Egress) {
        sure &= !base.devices.is_empty();
        (packet.from, packet.to) = (Side::Unknown, Side::Unknown);
    }
    let end = through(chains, base, packet, Certainty { sure, named: false }, 0, hits);
    (packet.from, packet.to) = (from, to);
    if let End::Through { sure: alone } = end
        && base.drops_the_rest
    {
        hits.found.push(Hit { chain: base, rule: None, sure: sure && alone, named: false });
    }
    sure
}

impl Hit<'_> {
    /// The addresses that it gives as a source, and whether it certainly does.
    fn masquerades(&self) -> Option<(Option<(IpAddr, IpAddr)>, bool)> {
        match self.rule.map(|rule| &rule.verdict) {
            Some(Verdict::Masquerade(to)) => Some((*to, self.sure)),
            _ => None,
        }
    }

    /// Is it the end of the packet's way, if it happens?
    pub fn ends(&self) -> bool {
        self.rule.is_none_or(|rule| matches!(rule.verdict, Verdict::Drop | Verdict::Reject))
    }
}

/// What was found, and how many rules were asked.
struct Hits<'a> {
    found: Vec<Hit<'a>>,
    steps: u32,
    /// Of the chain at the hook from which they were asked.
    priority: i32,
}

#[derive(Clone, Copy)]
struct Certainty {
    sure: bool,
    named: bool,
}

fn through<'a>(
    chains: &'a [Chain],
    chain: &'a Chain,
    packet: &mut Packet,
    mut way: Certainty,
    depth: usize,
    hits: &mut Hits<'a>,
) -> End {
    let hook_priority = hits.priority;
    // Nothing on the way may have let it through for good.
    let mut not_accepted = true;
    // Something on the way may have sent it back, past all that follows here.
    let mut maybe_back = false;
    let decided = |accepted: bool, maybe_back: bool| match maybe_back {
        true => End::Through { sure: !accepted },
        false => End::Decided { accepted },
    };
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
            Verdict::Changes(Changed::MoreTtl) => packet.ttl_changed = true,
            Verdict::Changes(Changed::Ttl) if packet.stays() => {}
            Verdict::Changes(changed) => {
                packet.ttl_changed |= *changed == Changed::Ttl;
                hits.found.push(Hit { chain, rule: Some(rule), sure: false, named: here.named });
            }
            Verdict::Notrack if hook_priority < CONNTRACK && packet.needs_translation() => {
                hits.found.push(Hit { chain, rule: Some(rule), sure: false, named: here.named });
            }
            Verdict::Notrack if here.sure && hook_priority < CONNTRACK => {
                packet.state = "untracked";
                packet.maybe_untracked = false;
            }
            Verdict::Notrack => packet.maybe_untracked |= hook_priority < CONNTRACK,
            Verdict::Mark(marking) => marking.apply(&mut packet.mark, &mut packet.connmark, here.sure),
            Verdict::Asks(_) => {
                hits.found.push(Hit { chain, rule: Some(rule), sure: false, named: here.named });
                if certain {
                    // Who is asked decides, and no policy does.
                    return decided(true, maybe_back);
                }
                way.sure = false;
                not_accepted = false;
            }
            Verdict::Return if certain => return End::Through { sure: not_accepted },
            Verdict::Return => {
                way.sure = false;
                maybe_back = true;
            }
            Verdict::Jump(target) | Verdict::Goto(target) => {
                let goes = matches!(rule.verdict, Verdict::Goto(_));
                let target = chains.iter().find(|other| other.name == *target && other.in_table_of(chain));
                let Some(target) = target.filter(|_| depth < MAX_DEPTH) else {
                    // A target that is not known here may let it through, or not.
                    way.sure = false;
                    not_accepted = false;
                    maybe_back |= goes;
                    continue;
                };
                match through(chains, target, packet, here, depth + 1, hits) {
                    End::Decided { accepted } if certain => return decided(accepted || !not_accepted, maybe_back),
                    End::Decided { accepted: true } | End::Through { sure: false } => {
                        way.sure = false;
                        not_accepted = false;
                    }
                    End::Decided { accepted: false } | End::Through { sure: true } => {}
                }
                if goes && certain {
                    return End::Through { sure: not_accepted };
                }
                if goes {
                    // It came back from there to where this chain was jumped to, if it went.
                    way.sure = false;
                    maybe_back = true;
                }
            }
            verdict => {
                hits.found.push(Hit { chain, rule: Some(rule), sure: here.sure, named: here.named });
                let accepted = !matches!(verdict, Verdict::Drop | Verdict::Reject);
                if certain {
                    return decided(accepted || !not_accepted, maybe_back);
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
