//! What of an event is shown? Options like `--container` narrow what is told, never what is recorded.
//!
//! An exchange is shown if it fits each kind of option that was given. A finding is shown if its subject does, if the time from its
//! first to its last sighting touches what was asked for, and, where paths or ways of asking were given, if one of the exchanges
//! that it names as evidence fits them. That one is often told after the finding: the finding waits for it.

use std::collections::{HashSet, VecDeque};

use wildmatch::WildMatch;

use crate::config::{Asked, Filter};
use crate::event::{Event, ExchangeEvent};
use crate::exchange::{ExchangeId, Imds};
use crate::finding::{Finding, FindingId};
use crate::identity::Attribution;
use crate::net::{BootTime, Timestamp};

/// Exchanges that fit remembered at most, the latest: findings about older ones were told.
const MAX_FITTING: usize = 65_536;
/// Findings that wait, and findings that were told, remembered at most.
const MAX_FINDINGS: usize = 8_192;

/// Lets through what is to be shown.
#[derive(Debug)]
pub struct Sieve {
    filter: Filter,
    boot_time: BootTime,
    fitting: HashSet<ExchangeId>,
    order: VecDeque<ExchangeId>,
    told: HashSet<FindingId>,
    waiting: VecDeque<(Timestamp, Box<Finding>)>,
}

impl Sieve {
    /// Nothing seen yet.
    pub fn new(filter: Filter, boot_time: BootTime) -> Self {
        Self {
            filter,
            boot_time,
            fitting: HashSet::new(),
            order: VecDeque::new(),
            told: HashSet::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Is nothing left out at all?
    pub fn is_open(&self) -> bool {
        self.filter == Filter::default()
    }

    /// What is to be shown now that this event has come. A report is made anew, of what was.
    pub fn sift(&mut self, event: &Event) -> Vec<Event> {
        match event {
            Event::Exchange(exchange) => {
                let mut shown = Vec::new();
                if self.fits(exchange) {
                    shown.extend(self.remember(exchange.exchange.id));
                    if self.shows_one(&exchange.who) && self.shows_time(exchange.exchange.opened, None) {
                        shown.push(event.clone());
                    }
                }
                shown
            }
            Event::Finding(at, finding) => {
                if !self.shows_one(&finding.who) || !self.shows_time(finding.first, Some(finding.last)) {
                    return Vec::new();
                }
                if self.filter.paths.is_empty() && self.filter.imds.is_empty() {
                    return vec![event.clone()];
                }
                let fits = finding.evidence.iter().any(|id| self.fitting.contains(id));
                if fits || self.told.contains(&finding.id) {
                    self.tell(finding);
                    return vec![event.clone()];
                }
                self.waiting.retain(|(_, waiting)| waiting.id != finding.id);
                self.waiting.push_back((*at, finding.clone()));
                if self.waiting.len() > MAX_FINDINGS {
                    self.waiting.pop_front();
                }
                Vec::new()
            }
            Event::Packet(packet) if !self.shows_one(&packet.who) => Vec::new(),
            event => vec![event.clone()],
        }
    }

    /// Does what was asked fit? Whoever asked, and when.
    fn fits(&self, event: &ExchangeEvent) -> bool {
        let Filter { paths, imds, .. } = &self.filter;
        let asked = match event.exchange.imds() {
            Some(Imds::V1) => Some(Asked::V1),
            Some(Imds::V2) => Some(Asked::V2),
            Some(Imds::Token) => Some(Asked::Token),
            Some(Imds::Other) | None => None,
        };
        let path = event.exchange.request.as_ref().map(|request| request.path.as_str());
        (imds.is_empty() || asked.is_some_and(|asked| imds.contains(&asked))) && matches(paths, path)
    }

    fn remember(&mut self, id: ExchangeId) -> Vec<Event> {
        if self.filter.paths.is_empty() && self.filter.imds.is_empty() {
            return Vec::new();
        }
        if self.fitting.insert(id) {
            self.order.push_back(id);
        }
        if self.order.len() > MAX_FITTING
            && let Some(oldest) = self.order.pop_front()
        {
            self.fitting.remove(&oldest);
        }
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let (shown, waiting): (VecDeque<_>, _) = waiting.partition(|(_, finding)| finding.evidence.contains(&id));
        self.waiting = waiting;
        shown.iter().for_each(|(_, finding)| self.tell(finding));
        shown.into_iter().map(|(at, finding)| Event::Finding(at, finding)).collect()
    }

    fn tell(&mut self, finding: &Finding) {
        if self.told.len() < MAX_FINDINGS {
            self.told.insert(finding.id);
        }
    }

    /// Is anything of this one shown?
    pub fn shows_one(&self, who: &Attribution) -> bool {
        let Filter { containers, pods, namespaces, images, pids, uids, comms, .. } = &self.filter;
        let process = who.process.as_ref();
        let container = who.container.as_ref();
        let pod = container.and_then(|container| container.pod.as_deref());
        (containers.is_empty()
            || container.is_some_and(|container| containers.iter().any(|wanted| container.is_called(wanted))))
            && matches(pods, pod.and_then(|pod| pod.name.as_deref()))
            && matches(namespaces, pod.and_then(|pod| pod.namespace.as_deref()))
            && matches(images, container.and_then(|container| container.image.as_deref()))
            && (pids.is_empty() || process.is_some_and(|process| pids.contains(&process.pid)))
            && (uids.is_empty() || process.is_some_and(|process| uids.contains(&process.uid)))
            && matches(comms, process.map(|process| process.comm.as_str()))
    }

    fn shows_time(&self, first: Timestamp, last: Option<Timestamp>) -> bool {
        let wall = |at: Timestamp| i128::from(self.boot_time.0) + i128::from(at.0);
        self.filter.since.is_none_or(|since| wall(last.unwrap_or(first)) >= since)
            && self.filter.until.is_none_or(|until| wall(first) < until)
    }
}

/// Does one of the patterns fit? None at all fit everything, also what is not known.
fn matches(patterns: &[String], text: Option<&str>) -> bool {
    patterns.is_empty() || text.is_some_and(|text| patterns.iter().any(|pattern| WildMatch::new(pattern).matches(text)))
}
