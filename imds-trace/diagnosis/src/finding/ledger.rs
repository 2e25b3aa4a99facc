//! How often was it found? One entry per rule, subject and cause. What an exchange added is taken back when its outcome changes.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::contradiction::{Contradicted, WITHIN, contradicted};
use super::hop_limit_too_low::settle;
use super::{Case, Confidence, Finding, FindingId, HopLimit, RULES, Rule, Verdict, imds_disabled, vantage};
use crate::coverage::{Span, WhyNot};
use crate::exchange::imds::known_by;
use crate::exchange::{Exchange, ExchangeId, Moment};
use crate::identity::{Key, Subject};
use crate::net::{Timestamp, Ttl};

/// Exchanges named as evidence of one finding.
pub const MAX_EVIDENCE: usize = 16;
/// Findings kept at most; beyond that the oldest goes, counted.
const MAX_FINDINGS: usize = 8_192;
/// Exchanges whose findings can be taken back at most, the latest: most exchanges have none.
const MAX_REVISABLE: usize = 14_000;
/// Behind the cause of what is known by an address only.
const BY_ADDRESS: &str = " by address";
/// Subjects whose hop limit is remembered at most.
const MAX_SUBJECTS: usize = 8_192;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct FindingKey {
    rule: &'static str,
    subject: Subject,
    cause: String,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    /// What it says of the instance, that says of IMDS at this address.
    endpoint: IpAddr,
    finding: Finding,
    told: u64,
}

/// What one exchange added to a finding when it was over.
#[derive(Clone, Copy, Debug)]
struct Share {
    /// The finding's number.
    finding: u64,
    weight: u64,
    waited: Option<Duration>,
    /// It was said of a packet that was not seen again: taken back only if the client has the response after all.
    vanished: bool,
}

/// All findings of a run.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: HashMap<FindingKey, Entry>,
    order: BTreeMap<u64, FindingKey>,
    hop_limits: HashMap<Subject, HopLimit>,
    /// Whose requests with which TTL at their first place do not show what their answers need.
    refuted: HashSet<(Subject, Option<Ttl>)>,
    /// The instance's hop limit as it was seen last, and when.
    latest_limit: Option<(Timestamp, Ttl)>,
    shares: HashMap<ExchangeId, Vec<Share>>,
    share_order: VecDeque<ExchangeId>,
    next: u64,
    evicted: u64,
}

/// What is added to what a later answer contradicts.
const LATER: &str = " (Later it answered otherwise: it has changed since, or this was something else.)";
/// What is added to what an answer may contradict that could not be read.
const UNREAD: &str = " (Later something was asked or answered that could not be read.)";

impl Ledger {
    /// What is known of a subject's hop limit, `seen` included, which becomes less where it was refuted. `came`: when the answer did that
    /// shows it; `first`: the TTL of its requests at their first place, by which ways are told apart.
    pub fn hop_limit(
        &mut self,
        subject: &Subject,
        first: Option<Ttl>,
        seen: &mut HopLimit,
        came: Option<Timestamp>,
    ) -> HopLimit {
        self.latest_limit = self.latest_limit.max(came.zip(seen.observed));
        // Most runs have none, and this is asked at each moment of each exchange.
        if !self.refuted.is_empty() && self.refuted.contains(&(subject.clone(), first)) {
            seen.needed = None;
        }
        if self.hop_limits.len() >= MAX_SUBJECTS && !self.hop_limits.contains_key(subject) {
            return *seen;
        }
        let known = self.hop_limits.entry(subject.clone()).or_default();
        *known = known.and(*seen);
        *known
    }

    /// An answer refutes what the TTLs on this way of a subject seemed to show: something sets them.
    pub fn refute(&mut self, subject: &Subject, first: Option<Ttl>) {
        if self.refuted.len() < MAX_SUBJECTS
            && self.refuted.insert((subject.clone(), first))
            && let Some(known) = self.hop_limits.get_mut(subject)
        {
            known.needed = None;
        }
    }

    /// Asks every rule about a case of the moment `at`; `told` gets the findings that are new, and those of which nothing is left
    /// (count 0) because the outcome of the exchange has changed.
    pub fn examine(&mut self, case: &Case<'_>, at: Timestamp, told: &mut dyn FnMut(&Finding)) {
        let taken_back = match case.moment {
            Moment::Closed => self.take_back(case.exchange.id, case.exchange.response_proof.is_some()),
            Moment::Asked
            | Moment::Answered
            | Moment::Left
            | Moment::Lost(_)
            | Moment::Settled
            | Moment::Afterwards => Vec::new(),
        };
        for rule in RULES {
            if let Some(mut verdict) = (rule.examine)(case) {
                if case.who.by == Key::Address {
                    // Anybody on the bridge can send packets with another's address: a finding of its own, and no certainty.
                    verdict.confidence = Confidence::Likely;
                    verdict.cause.push_str(BY_ADDRESS);
                    verdict.summary.push_str(" (Known by its address only: no socket of it was seen.)");
                }
                if case.rests_on_capture() {
                    verdict.confidence = Confidence::Likely;
                    verdict.summary.push_str(&vantage::told(case.exchange));
                }
                let vanished = matches!(case.moment, Moment::Lost(_)) && verdict.drop.is_none();
                let share = Share { vanished, ..self.enter(rule, verdict, case, at, told) };
                if vanished || matches!(case.moment, Moment::Closed | Moment::Settled | Moment::Afterwards) {
                    self.remember(case.exchange.id, share);
                }
            }
        }
        for number in taken_back {
            let entry = self.order.get(&number).and_then(|key| self.entries.get_mut(key));
            if let Some(entry) = entry.filter(|entry| entry.finding.count == 0 && entry.told > 0) {
                entry.told = 0;
                told(&entry.finding);
            }
        }
    }

    /// Takes back what was said of the instance shortly before, of whomever, and what the case's answer contradicts.
    /// Gives whether there was something.
    pub fn contradict(&mut self, case: &Case<'_>, at: Timestamp, told: &mut dyn FnMut(&Finding)) -> bool {
        let all = contradicted(case);
        let is_unread = case.closed().is_some_and(Exchange::is_unread);
        if all.is_empty() && !is_unread {
            return false;
        }
        let (endpoint, mut any) = (known_by(case.exchange.endpoint.address), false);
        for key in self.order.values() {
            let cause_of = key.cause.strip_suffix(BY_ADDRESS).unwrap_or(&key.cause);
            let is_meant = |(rule, cause): &Contradicted| key.rule == *rule && cause_of == cause;
            let is_contradicted = all.iter().any(is_meant);
            let may_be = is_unread && key.rule == imds_disabled::RULE.id;
            let Some(entry) = self.entries.get_mut(key).filter(|_| is_contradicted || may_be) else { continue };
            if known_by(entry.endpoint) != endpoint || entry.finding.count == 0 {
                continue;
            }
            let says = &mut entry.finding.says;
            if !is_contradicted || at.since(entry.finding.last) >= WITHIN {
                // Both may have been true.
                if says.confidence == Confidence::Certain {
                    says.confidence = Confidence::Likely;
                    says.summary.push_str(if is_contradicted { LATER } else { UNREAD });
                    if entry.told > 0 {
                        told(&entry.finding);
                    }
                }
            } else {
                any = true;
                (entry.finding.count, entry.finding.says.waited) = (0, None);
                entry.finding.evidence.clear();
                if entry.told > 0 {
                    entry.told = 0;
                    told(&entry.finding);
                }
            }
        }
        any
    }

    /// Records turn out to have been lost in this time: what was certain because something was not seen in it is not.
    pub fn doubt(&mut self, loss: Span, told: &mut dyn FnMut(&Finding)) {
        for key in self.order.values() {
            let Some(entry) = self.entries.get_mut(key) else { continue };
            let says = &mut entry.finding.says;
            if says.confidence == Confidence::Certain && says.absent.is_some_and(|absent| absent.is_refuted_by(loss)) {
                says.doubt(WhyNot::Lost);
                if entry.told > 0 {
                    told(&entry.finding);
                }
            }
        }
    }

    /// Takes back what an exchange added when it was over; what it added before for want of a sighting, too, if it is `received`.
    /// Gives the numbers of the findings.
    fn take_back(&mut self, exchange: ExchangeId, received: bool) -> Vec<u64> {
        let Some(shares) = self.shares.get_mut(&exchange) else { return Vec::new() };
        let taken: Vec<Share> = shares.extract_if(.., |share| received || !share.vanished).collect();
        if shares.is_empty() {
            self.shares.remove(&exchange);
        }
        let shares = taken;
        for share in &shares {
            let Some(entry) = self.order.get(&share.finding).and_then(|key| self.entries.get_mut(key)) else {
                continue;
            };
            entry.finding.count = entry.finding.count.saturating_sub(share.weight);
            let waited = &mut entry.finding.says.waited;
            *waited = match (*waited, share.waited) {
                (Some(known), Some(less)) => known.checked_sub(less),
                (known, _) => known,
            };
            entry.finding.evidence.retain(|evidence| *evidence != exchange);
        }
        shares.iter().map(|share| share.finding).collect()
    }

    fn remember(&mut self, exchange: ExchangeId, share: Share) {
        let shares = self.shares.entry(exchange).or_default();
        if shares.is_empty() {
            self.share_order.push_back(exchange);
        }
        shares.push(share);
        while self.share_order.len() > MAX_REVISABLE {
            if let Some(oldest) = self.share_order.pop_front() {
                self.shares.remove(&oldest);
            }
        }
    }

    /// Tells once more what has changed since it was told: the run ends.
    pub fn finish(&mut self, told: &mut dyn FnMut(&Finding)) {
        for key in self.order.values() {
            if let Some(entry) = self.entries.get_mut(key)
                && (settle(&mut entry.finding, self.latest_limit) || entry.told != entry.finding.count)
            {
                entry.told = entry.finding.count;
                told(&entry.finding);
            }
        }
    }

    /// How many findings had to go to stay within bounds; counted anew after each call.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    fn enter(
        &mut self,
        rule: &Rule,
        verdict: Verdict,
        case: &Case<'_>,
        at: Timestamp,
        told: &mut dyn FnMut(&Finding),
    ) -> Share {
        let (weight, waited) = (verdict.weight, verdict.waited);
        let key = FindingKey { rule: rule.id, subject: case.who.subject(), cause: verdict.cause.clone() };
        let last = verdict.last.unwrap_or(at).max(at);
        if let Some(Entry { number, finding, told: said, .. }) = self.entries.get_mut(&key) {
            let is_empty = finding.count == 0;
            finding.count += weight;
            finding.last = finding.last.max(last);
            finding.hop_limit = finding.hop_limit.and(case.hop_limit);
            match is_empty {
                // What was said before was taken back.
                true => finding.says = verdict,
                false => finding.says.absorb(verdict),
            }
            finding.who.process = finding.who.process.take().or_else(|| case.who.process.clone());
            if let (Some(known), Some(seen)) = (&mut finding.who.container, &case.who.container)
                && known.name.is_none()
            {
                *known = seen.clone();
            }
            if finding.evidence.len() < MAX_EVIDENCE && !finding.evidence.contains(&case.exchange.id) {
                finding.evidence.push(case.exchange.id);
            }
            // Nothing of it was left, and that was told.
            if *said == 0 {
                *said = finding.count;
                told(finding);
            }
            return Share { finding: *number, weight, waited, vanished: false };
        }
        let number = self.next;
        self.next += 1;
        let finding = Finding {
            id: FindingId(number),
            rule: rule.id,
            severity: rule.severity,
            who: case.who.clone(),
            count: weight,
            first: at,
            last,
            hop_limit: case.hop_limit,
            evidence: vec![case.exchange.id],
            says: verdict,
        };
        told(&finding);
        self.order.insert(number, key.clone());
        let endpoint = case.exchange.endpoint.address;
        self.entries.insert(key, Entry { number, endpoint, told: finding.count, finding });
        while self.entries.len() > MAX_FINDINGS {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.evicted += u64::from(self.entries.remove(&oldest).is_some());
        }
        Share { finding: number, weight, waited, vanished: false }
    }
}
