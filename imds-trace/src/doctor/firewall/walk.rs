//! Would these rules let this packet through? A walk through chains, hook by hook, as the kernel takes it. Pure.

use super::holds::Holds;
use super::rules::{Chain, Hook, Packet, Rule, Side, Verdict};

/// Chains jumped into at most; the kernel allows 16 (`NFT_JUMP_STACK_SIZE`).
const MAX_DEPTH: usize = 32;

/// Rules asked about one packet at one hook at most. Chains that jump to each other twice are a walk without an end, and who owns a
/// container's namespace may write some; nobody's real rules come near.
const MAX_STEPS: u32 = 100_000;

/// Where destinations are translated (`NF_IP_PRI_NAT_DST`): chains behind it see the translated one.
const NAT_DST: i32 = -100;
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

    fn is_asked(&self, hook: Hook, packet: &Packet) -> bool {
        if self.nat && packet.state != "new" {
            return false;
        }
        match self.family.as_str() {
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

/// How a walk through a chain ends.
enum End {
    /// Decided: accepted, or not.
    Decided { accepted: bool },
    /// Came to the end. `sure`: nothing on the way may have let it through for good.
    Through { sure: bool },
}

/// Everything that would or may happen to a packet at a hook, acceptance included. Its marks are then what rules made of them.
pub fn walk<'a>(chains: &'a [Chain], hook: Hook, packet: &mut Packet) -> Vec<Hit<'a>> {
    let mut hits = Hits { found: Vec::new(), steps: 0, priority: 0 };
    // Of thousands of chains, all but a few are only jumped to.
    let hooked = chains.iter().filter(|chain| chain.hook.is_some());
    let mut bases: Vec<&Chain> = hooked.filter(|chain| chain.is_asked(hook, packet)).collect();
    bases.sort_by_key(|chain| chain.priority);
    for base in bases {
        if hook == Hook::Prerouting
            && base.priority > NAT_DST
            && let Some(translated) = packet.translated.take()
        {
            packet.destination = Some(translated);
            packet.local = Some(false);
        }
        let (from, to) = (packet.from.clone(), packet.to.clone());
        hits.priority = base.priority;
        let mut sure = !(base.nat && packet.maybe_untracked);
        if base.family == "bridge" {
            // A bridge's rules name its ports.
            let port = packet.port.clone();
            sure &= port != Side::Unknown;
            (packet.from, packet.to) =
                if hook == Hook::Prerouting { (port, Side::Nothing) } else { (Side::Nothing, port) };
        } else if matches!(hook, Hook::Ingress | Hook::Egress) {
            sure &= !base.devices.is_empty();
            (packet.from, packet.to) = (Side::Unknown, Side::Unknown);
        }
        let end = through(chains, base, packet, Certainty { sure, named: false }, 0, &mut hits);
        (packet.from, packet.to) = (from, to);
        if let End::Through { sure: true } = end
            && base.drops_the_rest
        {
            hits.found.push(Hit { chain: base, rule: None, sure, named: false });
        }
        if hits.found.last().is_some_and(|hit| sure && hit.sure && hit.ends()) {
            break;
        }
    }
    hits.found
}

impl Hit<'_> {
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
            Verdict::Notrack if here.sure && hook_priority < CONNTRACK => packet.state = "untracked",
            Verdict::Notrack => packet.maybe_untracked |= hook_priority < CONNTRACK,
            Verdict::Mark(marking) => marking.apply(&mut packet.mark, &mut packet.connmark, here.sure),
            Verdict::Asks(_) => {
                hits.found.push(Hit { chain, rule: Some(rule), sure: false, named: here.named });
                if certain {
                    return End::Through { sure: false };
                }
                way.sure = false;
                not_accepted = false;
            }
            Verdict::Return if certain => return End::Through { sure: not_accepted },
            Verdict::Return => way.sure = false,
            Verdict::Jump(target) | Verdict::Goto(target) => {
                let goes = matches!(rule.verdict, Verdict::Goto(_));
                let target = chains.iter().find(|other| other.name == *target && other.in_table_of(chain));
                let Some(target) = target.filter(|_| depth < MAX_DEPTH) else {
                    // A target that is not known here may let it through, or not.
                    way.sure = false;
                    not_accepted = false;
                    continue;
                };
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
