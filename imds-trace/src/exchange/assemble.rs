//! Which exchange does this journey belong to, and is that one over?

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use super::{Exchange, ExchangeId, Moment, Travel};
use crate::journey::{ConnectionId, Fate, Journey};
use crate::net::{Direction, Heading, Timestamp, Ttl};
use crate::observation::{Head, TcpFlags};

/// An exchange in which nothing moves for so long is over. SDKs wait 0.5 to 5 s for an answer; a SYN is repeated after 1, 2 and
/// 4 s.
pub const QUIET: Duration = Duration::from_secs(5);
/// A closed exchange is remembered so long for copies that are lost afterwards: a server repeats an unacknowledged segment with
/// growing gaps of up to 120 s (RFC 6298; Linux TCP_RTO_MAX).
const REMEMBER: Duration = Duration::from_secs(125);
/// Exchanges remembered at most.
const MAX_EXCHANGES: usize = 65_536;

#[derive(Debug)]
struct Entry {
    exchange: Exchange,
    last: Timestamp,
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
        match journey.heading {
            Heading::ToImds => outward(entry, &journey),
            Heading::FromImds => inward(entry, &journey),
        }
        if !asked_before && entry.exchange.asked.is_some() {
            sink(&entry.exchange, Moment::Asked);
        }
        if journey.fate != Fate::Delivered {
            sink(&entry.exchange, Moment::Lost(&journey));
        }
        let exchange = &entry.exchange;
        let flags = journey.tcp.flags;
        let ends = flags.has(TcpFlags::FIN) || flags.has(TcpFlags::RST);
        let over = match journey.heading {
            Heading::ToImds => ends,
            Heading::FromImds => flags.has(TcpFlags::RST) || (ends && exchange.answered.is_some()),
        };
        if over && exchange.closed.is_none() {
            close(entry, journey.at, sink);
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
            let limit = if entry.exchange.closed.is_some() { REMEMBER } else { QUIET };
            let due = entry.last.after(limit);
            if due > now {
                self.due.push(Reverse((due, id)));
            } else if entry.exchange.closed.is_none() {
                let last = entry.last;
                close(entry, last, sink);
                self.due.push(Reverse((last.after(REMEMBER), id)));
            } else {
                self.entries.remove(&id);
            }
        }
    }

    /// When [`Self::advance`] will have something to tell. Forgetting can wait for it.
    pub fn due(&self) -> Option<Timestamp> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// Closes everything: the run ends.
    pub fn finish(&mut self, sink: &mut Sink<'_>) {
        let mut open: Vec<&mut Entry> =
            self.entries.values_mut().filter(|entry| entry.exchange.closed.is_none()).collect();
        open.sort_by_key(|entry| entry.exchange.id);
        for entry in open {
            let last = entry.last;
            close(entry, last, sink);
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
        self.entries.insert(id, Entry { exchange, last: journey.at, told: false });
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
        exchange.decrements.first.get_or_insert((first.ttl, first.hook.direction));
        if last.hook.direction == Direction::Egress {
            fell(&mut exchange.decrements.seen, first.ttl, last.ttl);
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
    if opens || journey.tcp.len > 0 {
        travelled(&mut exchange.outward, journey);
    }
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
    {
        fell(&mut exchange.decrements.seen, first.ttl, last.ttl);
    }
    if has_payload && journey.fate == Fate::Delivered && exchange.answered.is_none() {
        exchange.answered = Some(journey.hops.last().map_or(journey.at, |hop| hop.at));
    }
    // The client's acknowledgement of a FIN or nothing at all is not worth a ladder; a lost one is.
    if has_payload || journey.tcp.flags.has(TcpFlags::SYN) || journey.fate != Fate::Delivered {
        travelled(&mut exchange.inward, journey);
    }
}

/// Enters how often a TTL fell between two hooks; the most that was seen, as ways may differ.
fn fell(seen: &mut Option<u8>, first: Ttl, last: Ttl) {
    if let Some(decrements) = first.0.checked_sub(last.0) {
        *seen = Some(seen.map_or(decrements, |known| known.max(decrements)));
    }
}

fn travelled(travel: &mut Option<Travel>, journey: &Journey) {
    let lost = u64::from(journey.fate != Fate::Delivered);
    match travel {
        None => {
            *travel = Some(Travel {
                hops: journey.hops.clone(),
                fate: journey.fate.clone(),
                copies: lost,
                join: journey.join,
            });
        }
        Some(travel) => {
            travel.copies += lost;
            let better = match (&travel.fate, &journey.fate) {
                (Fate::Delivered, _) | (Fate::Dropped(_), Fate::Unresolved) => false,
                (_, Fate::Delivered) => true,
                (Fate::Unresolved, Fate::Dropped(_)) => true,
                (Fate::Dropped(_), Fate::Dropped(_)) | (Fate::Unresolved, Fate::Unresolved) => false,
            };
            if better {
                travel.hops.clone_from(&journey.hops);
                travel.fate = journey.fate.clone();
                travel.join = journey.join;
            }
        }
    }
}
