//! Which exchange does this journey belong to, and is that one over?

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use super::{Decrements, Exchange, ExchangeId, Moment, Travel};
use crate::journey::{ConnectionId, Fate, Journey};
use crate::net::{Direction, Heading, Timestamp, Ttl};
use crate::observation::{Head, TcpFlags};

/// An exchange in which nothing moves for so long is over. SDKs wait 0.5 to 5 s for an answer; a SYN is repeated after 1, 2 and
/// 4 s.
pub const QUIET: Duration = Duration::from_secs(5);
/// An exchange that ends is told so much later: a client that closed its side may still listen for its answer, and another that
/// ended before it is told first. An answer that takes longer to come finds nobody, most likely.
pub const LINGER: Duration = Duration::from_millis(500);
/// A closed exchange is remembered so long for copies that are lost afterwards: a server repeats an unacknowledged segment with
/// growing gaps of up to 120 s (RFC 6298; Linux TCP_RTO_MAX).
const REMEMBER: Duration = Duration::from_secs(125);
/// Exchanges remembered at most.
const MAX_EXCHANGES: usize = 65_536;

#[derive(Debug)]
struct Entry {
    exchange: Exchange,
    last: Timestamp,
    /// When one side said that this is the end.
    ending: Option<Timestamp>,
    /// Worth telling: something besides the end of an older connection was seen.
    told: bool,
}

/// Makes exchanges of journeys.
#[derive(Debug, Default)]
pub struct Assembler {
    entries: HashMap<ConnectionId, Entry>,
    due: BinaryHeap<Reverse<(Timestamp, ConnectionId)>>,
    order: VecDeque<ConnectionId>,
    next: u64,
    evicted: u64,
}

/// What the assembler tells.
pub type Sink<'a> = dyn FnMut(&Exchange, Moment<'_>) + 'a;

impl Assembler {
    /// Takes in a journey.
    pub fn push(&mut self, journey: Journey, sink: &mut Sink<'_>) {
        let id = journey.connection.id;
        if let Some(Head::Request(_)) = &journey.head
            && let Some(entry) = self.entries.get_mut(&id)
            && entry.exchange.answered.is_some()
        {
            // Another request on a connection that was kept alive.
            close(entry, journey.at, sink);
            self.entries.remove(&id);
        }
        if !self.entries.contains_key(&id) {
            self.enter(&journey);
        }
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.last = entry.last.max(journey.at);
        entry.exchange.connection = journey.connection.clone();
        let asked_before = entry.exchange.asked.is_some();
        let answered_before = entry.exchange.answered.is_some();
        match journey.heading {
            Heading::ToImds => outward(entry, &journey),
            Heading::FromImds => inward(entry, &journey),
        }
        if !asked_before && entry.exchange.asked.is_some() {
            sink(&entry.exchange, Moment::Asked);
        }
        if !answered_before && entry.exchange.answered.is_some() {
            sink(&entry.exchange, Moment::Answered);
        }
        if journey.fate != Fate::Delivered {
            sink(&entry.exchange, Moment::Lost(&journey));
        }
        let flags = journey.tcp.flags;
        let fin = flags.has(TcpFlags::FIN) && (journey.heading == Heading::ToImds || entry.exchange.answered.is_some());
        if (fin || flags.has(TcpFlags::RST)) && entry.ending.is_none() && entry.exchange.closed.is_none() {
            entry.ending = Some(journey.at);
            self.due.push(Reverse((journey.at.after(LINGER), id)));
        }
    }

    /// Closes what has gone quiet at `now` and forgets what is long over.
    pub fn advance(&mut self, now: Timestamp, sink: &mut Sink<'_>) {
        while let Some(&Reverse((due, id))) = self.due.peek() {
            if due > now {
                break;
            }
            self.due.pop();
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            // When it is over, and when that can be said.
            let (end, due) = match (entry.exchange.closed, entry.ending) {
                (Some(_), _) => (entry.last, entry.last.after(REMEMBER)),
                (None, Some(end)) => (end, end.after(LINGER)),
                (None, None) => (entry.last.after(QUIET), entry.last.after(QUIET)),
            };
            if due > now {
                self.due.push(Reverse((due, id)));
            } else if entry.exchange.closed.is_none() {
                close(entry, end, sink);
                self.due.push(Reverse((entry.last.after(REMEMBER), id)));
            } else {
                self.entries.remove(&id);
            }
        }
    }

    /// When [`Self::advance`] will have something to tell. Forgetting can wait for it.
    pub fn due(&self) -> Option<Timestamp> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// Closes everything: the run ends `at`.
    pub fn finish(&mut self, at: Timestamp, sink: &mut Sink<'_>) {
        let mut open: Vec<&mut Entry> =
            self.entries.values_mut().filter(|entry| entry.exchange.closed.is_none()).collect();
        open.sort_by_key(|entry| entry.exchange.id);
        for entry in open {
            let end = entry.ending.unwrap_or(entry.last.max(at));
            close(entry, end, sink);
        }
    }

    /// How many exchanges had to go before their time; counted anew after each call.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    fn enter(&mut self, journey: &Journey) {
        let id = journey.connection.id;
        self.next += 1;
        let opened = journey.hops.first().map_or(journey.at, |hop| hop.at);
        let exchange = Exchange {
            id: ExchangeId(self.next),
            connection: journey.connection.clone(),
            opened,
            asked: None,
            answered: None,
            closed: None,
            request: None,
            response: None,
            outward: None,
            inward: None,
            handshake: false,
            responded: false,
            reset: false,
            hop_limit: None,
            decrements: Default::default(),
        };
        self.entries.insert(id, Entry { exchange, last: journey.at, ending: None, told: false });
        self.due.push(Reverse((journey.at.after(QUIET), id)));
        self.order.push_back(id);
        while self.entries.len() > MAX_EXCHANGES {
            match self.order.pop_front() {
                Some(oldest) => self.evicted += u64::from(self.entries.remove(&oldest).is_some()),
                None => break,
            }
        }
        while self.order.front().is_some_and(|oldest| !self.entries.contains_key(oldest)) {
            self.order.pop_front();
        }
    }
}

fn close(entry: &mut Entry, at: Timestamp, sink: &mut Sink<'_>) {
    entry.exchange.closed = Some(at);
    if entry.told {
        sink(&entry.exchange, Moment::Closed);
    }
}

fn outward(entry: &mut Entry, journey: &Journey) {
    let exchange = &mut entry.exchange;
    if let (Some(first), Some(last)) = (journey.hops.first(), journey.hops.last()) {
        // Both numbers from one packet, the one that most hooks saw.
        if last.hook.direction == Direction::Egress && journey.hops.len() > exchange.decrements.hops {
            let seen = first.ttl.0.checked_sub(last.ttl.0);
            exchange.decrements =
                Decrements { seen, first: Some((first.ttl, first.hook.direction)), hops: journey.hops.len() };
        }
    }
    let asks = match &journey.head {
        Some(Head::Request(head)) => Some(head),
        _ => None,
    };
    let opens = journey.tcp.flags.opens();
    entry.told |= opens || asks.is_some() || journey.fate != Fate::Delivered;
    let first_request = asks.is_some() && exchange.request.is_none();
    if first_request {
        exchange.request = asks.cloned();
        exchange.asked = Some(journey.hops.first().map_or(journey.at, |hop| hop.at));
        // What happened to the SYN matters no more: it led here.
        exchange.outward = None;
    }
    travelled(&mut exchange.outward, journey, exchange.closed.is_some());
}

fn inward(entry: &mut Entry, journey: &Journey) {
    let exchange = &mut entry.exchange;
    let answers = match &journey.head {
        Some(Head::Response(head)) => Some(head),
        _ => None,
    };
    let has_payload = journey.tcp.len > 0;
    exchange.handshake |= journey.tcp.flags.has(TcpFlags::SYN);
    exchange.reset |= journey.tcp.flags.has(TcpFlags::RST);
    entry.told |= answers.is_some() || journey.fate != Fate::Delivered;
    if has_payload && !exchange.responded {
        exchange.responded = true;
        // The handshake led here.
        exchange.inward = None;
    }
    if let Some(head) = answers {
        exchange.response.get_or_insert_with(|| head.clone());
        let grants_token = exchange.imds() == Some(super::Imds::Token) && head.status == 200;
        if let Some(hop) = journey.hops.first().filter(|hop| grants_token && hop.hook.direction == Direction::Ingress) {
            exchange.hop_limit.get_or_insert(hop.ttl);
        }
    }
    if let (Some(first), Some(last)) = (journey.hops.first(), journey.hops.last())
        && first.hook.direction == Direction::Ingress
        && last.hook.direction == Direction::Egress
        && exchange.decrements.hops == 0
    {
        fell(&mut exchange.decrements.seen, first.ttl, last.ttl);
    }
    if has_payload && journey.fate == Fate::Delivered && exchange.answered.is_none() {
        exchange.answered = Some(journey.hops.last().map_or(journey.at, |hop| hop.at));
    }
    travelled(&mut exchange.inward, journey, exchange.closed.is_some());
}

/// Enters how often a TTL fell between two hooks; the most that was seen, as ways may differ.
fn fell(seen: &mut Option<u8>, first: Ttl, last: Ttl) {
    if let Some(decrements) = first.0.checked_sub(last.0) {
        *seen = Some(seen.map_or(decrements, |known| known.max(decrements)));
    }
}

/// Enters how a packet travelled. Bare acknowledgements, FIN and RST tell nothing of the way but that they were lost, and what
/// happens after the end is not why it ended: of those only the losses are counted.
fn travelled(travel: &mut Option<Travel>, journey: &Journey, is_over: bool) {
    let tells = !is_over && journey.carries();
    let lost = u64::from(journey.fate != Fate::Delivered);
    let last_lost = (lost > 0).then_some(journey.at);
    match travel {
        None if !tells => {}
        None => {
            *travel = Some(Travel {
                hops: journey.hops.clone(),
                fate: journey.fate.clone(),
                copies: lost,
                last_lost,
                join: journey.join,
            });
        }
        Some(travel) => {
            travel.copies += lost;
            travel.last_lost = last_lost.or(travel.last_lost);
            let better = match (&travel.fate, &journey.fate) {
                (Fate::Delivered, _) | (Fate::Dropped(_), Fate::Unresolved) => false,
                (_, Fate::Delivered) => true,
                (Fate::Unresolved, Fate::Dropped(_)) => true,
                (Fate::Dropped(_), Fate::Dropped(_)) | (Fate::Unresolved, Fate::Unresolved) => false,
            };
            if better && tells {
                travel.hops.clone_from(&journey.hops);
                travel.fate = journey.fate.clone();
                travel.join = journey.join;
            }
        }
    }
}
