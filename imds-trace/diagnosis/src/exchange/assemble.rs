//! Which connection does this journey belong to, and when is that one looked at next?

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use rustc_hash::FxHashMap;

use super::connection::{Entry, Witness};
use super::progress::Live;
use super::{Exchange, ExchangeId, Moment, Over, Sink};
use crate::journey::{ConnectionId, END, Evidence, Fate, Journey};
use crate::net::{Endpoint, Heading, Timestamp};
use crate::observation::TcpFlags;
use crate::room;

/// Connections remembered at most.
const MAX_CONNECTIONS: usize = 65_536;
/// Exchanges remembered of one connection at most.
const MAX_EXCHANGES: usize = 256;

/// Makes exchanges of journeys.
#[derive(Debug, Default)]
pub struct Assembler {
    entries: FxHashMap<ConnectionId, Entry>,
    due: BinaryHeap<Reverse<(Timestamp, ConnectionId)>>,
    order: VecDeque<ConnectionId>,
    by_isn: HashMap<u32, ConnectionId>,
    /// Sockets by first sequence number.
    witnesses: HashMap<u32, Witness>,
    witness_order: VecDeque<u32>,
    next: u64,
    evicted: u64,
    forgotten: Vec<(u32, Endpoint)>,
    /// Exchanges of which nothing new comes.
    ended: Vec<ExchangeId>,
    /// What a capture lacks, nothing else tells of.
    evidence: Evidence,
}

impl Assembler {
    /// For the packets of a capture.
    pub fn of_capture() -> Self {
        Self { evidence: Evidence::Capture, ..Self::default() }
    }

    /// Takes in a journey.
    pub fn push(&mut self, journey: &Journey, sink: &mut Sink<'_>) {
        let id = journey.connection.id;
        if !self.entries.contains_key(&id) {
            self.enter(journey);
        }
        let next = &mut self.next;
        let witness = journey.connection.isn.and_then(|isn| self.witnesses.get(&isn)).copied();
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.is_of_another(journey) {
            entry.note_another(journey);
            return;
        }
        if let Some(witness) = witness {
            entry.hear(witness, journey.connection.isn);
        }
        entry.note_received(journey);
        entry.prove(journey.at, sink);
        entry.last = entry.last.max(journey.at);
        for live in entry.live.iter_mut().filter(|live| live.exchange.closed.is_none()) {
            live.exchange.over = Over::Connection(journey.connection.clone());
        }
        match journey.heading {
            Heading::ToImds => entry.outward(journey, next, sink),
            Heading::FromImds if journey.icmp.is_some() => entry.refused(journey),
            Heading::FromImds => entry.inward(journey, next, sink),
        }
        entry.prove(journey.at, sink);
        while entry.live.len() > MAX_EXCHANGES {
            let gone = entry.forget_oldest();
            self.ended.extend(gone.as_ref().map(|live| live.exchange.id));
            self.evicted += u64::from(gone.is_some_and(|live| live.exchange.closed.is_none()));
        }
        let flags = journey.tcp.flags;
        let is_open = entry.live.iter().any(Live::waits);
        let fin = flags.has(TcpFlags::FIN) && (journey.heading == Heading::ToImds || !is_open);
        // What never reached its client ends nothing for it.
        let reset = flags.has(TcpFlags::RST)
            && (journey.heading == Heading::ToImds || !matches!(journey.fate, Fate::Dropped(_)));
        if (fin || reset) && entry.ending.is_none() && entry.closed.is_none() {
            entry.ending = Some(journey.at);
        }
        schedule(&mut self.due, entry, id);
    }

    /// The latest exchange of a connection, unless it is forgotten.
    pub fn latest(&self, connection: ConnectionId) -> Option<&Exchange> {
        self.entries.get(&connection)?.live.back().map(|live| &live.exchange)
    }

    /// A connect that `began` and failed `at` a moment before a packet was made: an exchange of which there is nothing but that.
    pub fn failed(
        &mut self,
        attempt: u64,
        (began, at): (Timestamp, Timestamp),
        endpoint: Endpoint,
        sink: &mut Sink<'_>,
    ) {
        self.next += 1;
        let over = Over::Attempt { number: attempt, since: began };
        let mut exchange = Exchange::of(ExchangeId(self.next), endpoint, over, at);
        exchange.closed = Some(at);
        sink(&exchange, Moment::Closed);
        sink(&exchange, Moment::Settled);
        self.ended.push(exchange.id);
    }

    /// A socket was established that will say what its TCP counts when it changes its state.
    pub fn opened(&mut self, isn: u32) {
        if self.witnesses.insert(isn, Witness::default()).is_none() {
            self.witness_order.push_back(isn);
        }
        while self.witnesses.len() > MAX_CONNECTIONS
            && let Some(oldest) = self.witness_order.pop_front()
        {
            self.witnesses.remove(&oldest);
        }
        self.tidy();
        self.heard(isn, None, &mut |_, _| {});
    }

    /// A socket's TCP has counted so many payload bytes received and acknowledged; `closed`: it will count no more.
    pub fn counted(
        &mut self,
        (at, isn): (Timestamp, u32),
        (received, acked): (u64, u64),
        closed: bool,
        sink: &mut Sink<'_>,
    ) {
        let Some(witness) = self.witnesses.get_mut(&isn) else { return };
        *witness = Witness {
            received: witness.received.max(received),
            acked: witness.acked.max(acked),
            closed: witness.closed.or(closed.then_some(at)),
        };
        self.heard(isn, Some(at), sink);
    }

    /// Tells the connection of a socket what that said.
    fn heard(&mut self, isn: u32, at: Option<Timestamp>, sink: &mut Sink<'_>) {
        let (Some(id), Some(witness)) = (self.by_isn.get(&isn).copied(), self.witnesses.get(&isn).copied()) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.hear(witness, Some(isn));
        if let Some(at) = at {
            entry.prove(at, sink);
        }
        schedule(&mut self.due, entry, id);
    }

    /// No journey of this connection comes any more: it is forgotten as soon as all of it is told.
    pub fn forsake(&mut self, id: ConnectionId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.forsaken = true;
        if entry.is_told() {
            self.forget(id);
        }
    }

    /// First sequence numbers, and where to, of the connections that were forgotten since the last call.
    pub fn take_forgotten(&mut self) -> Vec<(u32, Endpoint)> {
        std::mem::take(&mut self.forgotten)
    }

    /// The exchanges since the last call of which nothing new comes.
    pub fn take_ended(&mut self) -> Vec<ExchangeId> {
        std::mem::take(&mut self.ended)
    }

    /// Forgets a connection.
    fn forget(&mut self, id: ConnectionId) {
        let Some(entry) = self.entries.remove(&id) else { return };
        self.ended.extend(entry.live.iter().map(|live| live.exchange.id));
        room::give_back(&mut self.entries);
        self.tidy();
        let connection = entry.live.back().and_then(|live| live.exchange.connection());
        let Some((isn, endpoint)) = connection.and_then(|connection| Some((connection.isn?, connection.endpoint)))
        else {
            return;
        };
        if self.by_isn.get(&isn) == Some(&id) {
            self.by_isn.remove(&isn);
            self.witnesses.remove(&isn);
            room::give_back(&mut self.by_isn);
            room::give_back(&mut self.witnesses);
            self.forgotten.push((isn, endpoint));
        }
    }

    /// Closes what has gone quiet at `now`.
    pub fn advance(&mut self, now: Timestamp, sink: &mut Sink<'_>) {
        while let Some(&Reverse((due, id))) = self.due.peek() {
            if due > now {
                break;
            }
            self.due.pop();
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            // An entry that an earlier one replaced.
            if entry.scheduled != due {
                continue;
            }
            entry.scheduled = END;
            let due = entry.due();
            if due > now {
                schedule(&mut self.due, entry, id);
                continue;
            }
            match entry.closed {
                None => entry.close(entry.ending.unwrap_or(due), &mut self.next, sink),
                Some(_) => entry.settle(sink),
            }
            if entry.forsaken && entry.is_told() {
                self.forget(id);
                continue;
            }
            schedule(&mut self.due, entry, id);
        }
    }

    /// When [`Self::advance`] will have something to tell.
    pub fn due(&self) -> Option<Timestamp> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// Closes everything: the run ends `at`.
    pub fn finish(&mut self, at: Timestamp, sink: &mut Sink<'_>) {
        let mut entries: Vec<&mut Entry> = self.entries.values_mut().collect();
        entries.sort_by_key(|entry| entry.live.front().map(|live| live.exchange.id));
        for entry in &mut entries {
            if entry.closed.is_none() {
                entry.cut_off_by_the_end(at);
                let end = entry.ending.unwrap_or(entry.last.max(at));
                entry.close(end, &mut self.next, sink);
            }
        }
        for entry in entries {
            entry.settle(sink);
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
        let exchange = Exchange::new(ExchangeId(self.next), journey.connection.clone(), opened);
        let mut first = Live::new(exchange);
        // The capture may lack what came before, or have begun in the middle: whatever was asked on it, nobody saw.
        first.told = self.evidence == Evidence::Capture && journey.connection.isn.is_none();
        let entry = Entry::new(first, journey.at, self.evidence);
        self.entries.insert(id, entry);
        if let Some(isn) = journey.connection.isn {
            self.by_isn.insert(isn, id);
        }
        self.order.push_back(id);
        while self.entries.len() > MAX_CONNECTIONS {
            match self.order.pop_front() {
                Some(oldest) => {
                    // What is over and told is no loss.
                    let is_loss = self.entries.get(&oldest).is_some_and(|entry| !entry.is_told());
                    self.forget(oldest);
                    self.evicted += u64::from(is_loss);
                }
                None => break,
            }
        }
        self.tidy();
    }

    /// Takes what was forgotten out of what only tells of an order.
    fn tidy(&mut self) {
        let (entries, witnesses) = (&self.entries, &self.witnesses);
        room::tidy(&mut self.order, entries.len(), |id| entries.contains_key(id));
        room::tidy(&mut self.witness_order, witnesses.len(), |isn| witnesses.contains_key(isn));
        room::give_back_heap(&mut self.due);
    }
}

/// Has a connection looked at when something is due, and not more often.
fn schedule(due: &mut BinaryHeap<Reverse<(Timestamp, ConnectionId)>>, entry: &mut Entry, id: ConnectionId) {
    let at = entry.due();
    if at < entry.scheduled {
        entry.scheduled = at;
        due.push(Reverse((at, id)));
    }
}
