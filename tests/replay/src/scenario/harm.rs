//! What may become of records on their way, and what must not be concluded then?
//!
//! Records of several processors come a little out of order: nothing may depend on it. One record of the kernel's may be lost, and that
//! may have been told or not: then less may be said, and nothing else. Nobody is accused with certainty of what was not found with all
//! records, no status is another one, and neither an assertion nor `Nothing wrong was seen` holds that did not.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

use anyhow::{Result, bail};
use diagnosis::config::expectation;
use diagnosis::event::{ExchangeEvent, Tally};
use diagnosis::finding::{Confidence, Finding, Severity};
use diagnosis::identity::Said;
use diagnosis::input::Input;
use diagnosis::net::{Heading, Timestamp};
use diagnosis::observation::{Observation, Place};
use diagnosis::pipeline::Host;

use super::judge::{Conclusions, conclude_telling, show, show_exchange};
use super::{HOST_NETNS, INSTANCE, Scenario};

/// Records of two processors come out of order by less, ns.
const JITTER: u64 = 50_000;
/// The live shell notices a loss so long after it at most, ns.
const NOTICED: u64 = 50_000_000;
/// Stands for the report's sentence among what one record alone speaks against.
const NOTHING_WRONG: &str = "nothing-wrong";
/// What is asserted of each scenario.
const CLAIMS: [&str; 8] = [
    "blocked",
    "v2-only",
    "no-errors",
    "works-at:tokens=required",
    "works-at:hop-limit=1",
    "works-at:hop-limit=2",
    "works-at:tokens=required,hop-limit=1",
    "works-at:tokens=required,hop-limit=64",
];
/// Orders of each scenario that are tried.
const ORDERS: u64 = 8;

/// What a scenario must stand; fails with everything that it does not.
pub fn stands(scenario: &Scenario) -> Result<()> {
    let inputs = scenario.inputs()?;
    let whole = heard(scenario, &inputs)?;
    let mut wrong = Vec::new();
    for seed in 0..ORDERS {
        let other = heard(scenario, &shuffled(&inputs, seed))?;
        wrong.extend(whole.differences(&other).into_iter().map(|what| format!("in another order ({seed}): {what}")));
    }
    for (index, lost) in inputs.iter().enumerate().filter(|(_, input)| is_of_kernel(input)) {
        for told in [true, false] {
            let mut less = heard(scenario, &without(&inputs, index, told))?;
            if !told {
                less.held.retain(|claim| !scenario.sole_witness.contains(claim));
                less.nothing_wrong &= !scenario.sole_witness.iter().any(|claim| claim == NOTHING_WRONG);
            }
            let how = if told { "lost, and told" } else { "lost silently" };
            wrong.extend(whole.new_in(&less).into_iter().map(|what| format!("{how}: {}: {what}", brief(lost))));
        }
    }
    if !wrong.is_empty() {
        bail!("{}\n  {}", scenario.about, wrong.join("\n  "));
    }
    Ok(())
}

/// Does the kernel half tell it? Only that goes through the ring buffer.
pub fn is_of_kernel(input: &Input) -> bool {
    match input {
        Input::Observation(_) => true,
        Input::Fact(fact) => matches!(
            fact.said,
            Said::Attempting(_) | Said::Connecting(_) | Said::Sending(_) | Said::Connected(_) | Said::Counted(_)
        ),
        Input::Tick { .. } | Input::Lost { .. } => false,
    }
}

/// The packets' records in an order in which several processors may have told them. What leads to another keeps its order: a packet's
/// way, the packets of a connection where each is seen first, and a connect before its packets.
pub fn shuffled(inputs: &[Input], seed: u64) -> Vec<Input> {
    let mut chance = Chance(seed);
    let mut ways: HashMap<String, u64> = HashMap::new();
    let mut connections: HashMap<u16, u64> = HashMap::new();
    let mut timed: Vec<(u64, &Input)> = Vec::new();
    for input in inputs {
        let Input::Observation(observation) = input else {
            timed.push((input.at().0, input));
            continue;
        };
        let Observation { heading, flow, tcp, ip_id, icmp, .. } = observation;
        let client = if *heading == Heading::ToImds { flow.source } else { flow.destination };
        let mut at = observation.at.0 + chance.draw() % JITTER;
        match ways.entry(format!("{heading:?} {tcp:?} {ip_id} {icmp:?}")) {
            Entry::Occupied(mut way) => {
                at = at.max(*way.get());
                way.insert(at);
            }
            Entry::Vacant(way) => {
                let last = connections.entry(client.port).or_default();
                at = at.max(*last);
                *last = at;
                way.insert(at);
            }
        }
        timed.push((at, input));
    }
    timed.sort_by_key(|(at, _)| *at);
    timed.into_iter().map(|(_, input)| input.clone()).collect()
}

/// All but one; `told`: that one was lost is told as soon as the live shell would.
pub fn without(inputs: &[Input], index: usize, told: bool) -> Vec<Input> {
    let mut less = inputs.to_vec();
    let lost = less.remove(index);
    if told {
        let at = Timestamp(lost.at().0 + NOTICED);
        let place = less.iter().rposition(|input| input.at() <= at).map_or(0, |before| before + 1);
        less.insert(place, Input::Lost { at, ring_buffer: 1, unreadable: 0 });
    }
    less
}

/// A small generator of numbers (splitmix64): the same seed gives the same ones.
pub struct Chance(pub u64);

impl Chance {
    /// The next one.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// What was concluded, as far as it may be false.
struct Heard {
    findings: Vec<Finding>,
    exchanges: Vec<String>,
    /// By the client's port.
    statuses: BTreeSet<(u16, u16)>,
    held: BTreeSet<String>,
    /// Something was seen, and `Nothing wrong was seen`.
    nothing_wrong: bool,
}

fn heard(scenario: &Scenario, inputs: &[Input]) -> Result<Heard> {
    let host = Host { netns: HOST_NETNS, pid_namespace: None, instance: Some(INSTANCE.to_owned()) };
    let asked = CLAIMS.iter().map(|text| Ok(expectation(text)?)).collect::<Result<_>>()?;
    Ok(Heard::of(conclude_telling(host, inputs, true, &scenario.telling(asked)?)?))
}

impl Heard {
    fn of(conclusions: Conclusions) -> Self {
        let Conclusions { exchanges, report } = conclusions;
        let is_bad = |finding: &Finding| finding.severity > Severity::Notice;
        let is_well = |tally: &Tally| tally.unanswered == 0 && tally.unproved == 0 && tally.unread == 0;
        // Where no exchange was seen, that is what is said.
        let nothing_wrong = !exchanges.is_empty()
            && !report.findings.iter().any(is_bad)
            && report.lost.sum() == 0
            && report.subjects.iter().all(is_well);
        let status = |event: &ExchangeEvent| Some((event.exchange.client()?.port, event.exchange.status()?));
        let held = report.expectations.into_iter().filter(|asked| asked.held && !exchanges.is_empty());
        Self {
            held: held.map(|asked| asked.expect).collect(),
            statuses: exchanges.iter().filter_map(status).collect(),
            exchanges: exchanges.iter().map(show_exchange).collect(),
            nothing_wrong,
            findings: report.findings,
        }
    }

    /// What differs.
    fn differences(&self, other: &Self) -> Vec<String> {
        let mut wrong = Vec::new();
        let found = |heard: &Self| -> BTreeSet<String> {
            let told = |finding: &Finding| {
                format!("{} of {} ({:?}, {})", finding.rule, show(&finding.who), finding.says.confidence, finding.count)
            };
            heard.findings.iter().map(told).collect()
        };
        let mut check = |what: &str, one: String, other: String| {
            if one != other {
                wrong.push(format!("{what} {other}, not {one}"));
            }
        };
        check("exchanges", format!("{:?}", self.exchanges), format!("{:?}", other.exchanges));
        check("found", format!("{:?}", found(self)), format!("{:?}", found(other)));
        check("held", format!("{:?}", self.held), format!("{:?}", other.held));
        wrong
    }

    /// What `less` says that was not said of all.
    fn new_in(&self, less: &Self) -> Vec<String> {
        let mut wrong = Vec::new();
        for finding in less.findings.iter().filter(|finding| finding.says.confidence == Confidence::Certain) {
            let is_known = |known: &Finding| {
                // Whose it was may be known less well.
                let same_client = show(&known.who) == show(&finding.who) || known.who.address == finding.who.address;
                // A firewall's drop is the cause, was its reset seen or not.
                let same_drop = known.says.drop.is_some() && known.says.drop == finding.says.drop;
                known.says.confidence == Confidence::Certain && same_client && (known.rule == finding.rule || same_drop)
            };
            if !self.findings.iter().any(is_known) {
                wrong.push(format!("{} of {} is certain", finding.rule, show(&finding.who)));
            }
        }
        let status = |(port, status): &(u16, u16)| format!("{status} to port {port}");
        wrong.extend(less.statuses.difference(&self.statuses).map(status));
        wrong.extend(less.held.difference(&self.held).map(|claim| format!("{claim} holds")));
        if less.nothing_wrong && !self.nothing_wrong {
            wrong.push("nothing wrong was seen".to_owned());
        }
        wrong
    }
}

/// A record in a few words.
pub fn brief(input: &Input) -> String {
    let kind = |said: &Said| {
        let text = format!("{said:?}");
        text.split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
    };
    match input {
        Input::Observation(Observation { heading, tcp, place, at, .. }) => {
            let tcp = tcp.map(|tcp| format!("flags {:#x}, {} bytes", tcp.flags.0, tcp.len)).unwrap_or_default();
            let place = match place {
                Place::Hook(hook) => format!("{} {}", hook.interface.name, hook.direction),
                Place::Drop(drop) => format!("drop in {}", drop.function()),
            };
            format!("{heading:?}, {tcp}, {place}, at {} ms", (at.0 / 1_000_000) as i64 - 1_000_000)
        }
        Input::Fact(fact) => format!("{} at {} ms", kind(&fact.said), (fact.at.0 / 1_000_000) as i64 - 1_000_000),
        Input::Tick { .. } | Input::Lost { .. } => "none of the kernel's".to_owned(),
    }
}
