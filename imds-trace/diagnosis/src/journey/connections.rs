//! Which connection does this packet belong to, behind whatever translation? Learned from the packets.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::packet_key::PacketKey;
use super::{Connection, ConnectionId, Join};
use crate::net::{Direction, Endpoint, Heading, Ifindex, Timestamp, Ttl, is_before};
use crate::observation::{Hook, Observation, Place, Tcp, TcpFlags};
use crate::room;

/// Connections remembered at most.
const MAX_CONNECTIONS: usize = 65_536;
/// A connection in which nothing moved for so long is forgotten; Linux gives up a SYN after 127 s.
const FORGET: Duration = Duration::from_secs(130);
/// One that is over ([`State::is_over`]) is forgotten so much sooner: records of two processors come in a little out of order, and a
/// FIN of which the last acknowledgement was lost on the way is sent again after 200 ms.
const FORGET_OVER: Duration = Duration::from_secs(2);
/// The end of time.
const NEVER: Timestamp = Timestamp(u64::MAX);
/// Two SYNs with the same first sequence number this far apart are two connections.
const SAME_SYN: Duration = Duration::from_secs(130);
/// Addresses under which one connection may be seen: each translation adds one.
const MAX_LEGS: usize = 8;

/// The client's and the IMDS end as they stand in a packet at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Leg {
    client: Endpoint,
    endpoint: Endpoint,
}

/// What is known of one connection.
#[derive(Debug)]
pub struct State<Open> {
    /// What journeys carry.
    pub connection: Connection,
    /// Where the first packet from the client was first seen.
    pub client_hook: Option<Hook>,
    /// Its TTL there.
    pub client_ttl: Option<Ttl>,
    /// Highest acknowledgement seen for data travelling to IMDS, and for data travelling from it.
    pub acked: [Option<u32>; 2],
    /// From where to where the client acknowledged bytes before they were seen to come, and when.
    pub ahead: Option<(u32, u32, Timestamp)>,
    /// Journeys still under way.
    pub open: Vec<Open>,
    legs: Vec<Leg>,
    /// Under which addresses the SYN was seen at each hook.
    syns: Vec<(Hook, Leg)>,
    /// By which interfaces packets to IMDS left.
    left_by: Vec<Ifindex>,
    /// When the journeys are to be looked at next; they are at no other time.
    pub scheduled: Option<Timestamp>,
    last: Timestamp,
    latest: Option<PacketKey>,
    /// Behind the highest sequence number that was sent to IMDS, and from it.
    pub sent: [Option<u32>; 2],
    /// Has the client sent a byte?
    has_asked: bool,
    /// Has the other side sent one, or ended?
    has_answer: bool,
    /// Did each side send its FIN?
    ended: [bool; 2],
    /// The client's TCP has no such connection any more: it reset it, or its socket is closed.
    left: bool,
    /// Does it stand in the order of those that are over?
    listed_over: bool,
}

impl<Open> State<Open> {
    /// A packet to IMDS left by this interface.
    pub fn leaves_by(&mut self, interface: Ifindex) {
        if !self.left_by.contains(&interface) && self.left_by.len() < MAX_LEGS {
            self.left_by.push(interface);
        }
    }

    /// Notes what a packet says of the end of the connection.
    fn note_end(&mut self, heading: Heading, tcp: Tcp) {
        let slot = slot(heading);
        if tcp.end() != tcp.seq && self.sent[slot].is_none_or(|sent| is_before(sent, tcp.end())) {
            self.sent[slot] = Some(tcp.end());
        }
        self.ended[slot] |= tcp.flags.has(TcpFlags::FIN);
        self.has_asked |= heading == Heading::ToImds && tcp.len > 0;
        let answers = tcp.len > 0 || tcp.flags.has(TcpFlags::FIN) || tcp.flags.has(TcpFlags::RST);
        self.has_answer |= heading == Heading::FromImds && answers;
        // A reset in IMDS's name may be dropped on its way: the client's own is the one that counts.
        self.left |= heading == Heading::ToImds && tcp.flags.has(TcpFlags::RST);
    }

    /// Can nothing that comes change what is known of it? Both sides ended, or the client's TCP did when nothing it asked was without an
    /// answer, and all that was seen to be sent to the client was acknowledged: of an answer that is not, copies may come or be dropped
    /// for minutes, and one that was not seen yet may come as late.
    fn is_over(&self) -> bool {
        let has_all = |slot: usize| {
            self.sent[slot].is_none_or(|sent| self.acked[slot].is_some_and(|acked| !is_before(acked, sent)))
        };
        has_all(1) && (self.left && (self.has_answer || !self.has_asked) || self.ended == [true; 2] && has_all(0))
    }
}

/// Index of what is known of each direction.
pub fn slot(heading: Heading) -> usize {
    match heading {
        Heading::ToImds => 0,
        Heading::FromImds => 1,
    }
}

/// Where a packet belongs.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The connection.
    pub id: ConnectionId,
    /// How it was found.
    pub join: Join,
}

/// All connections, bounded.
#[derive(Debug)]
pub struct Connections<Open> {
    states: FxHashMap<ConnectionId, State<Open>>,
    /// Each connection once, and when it was last used as it was entered here: one that was used since goes to the back when it comes
    /// to the front.
    order: VecDeque<(Timestamp, ConnectionId)>,
    /// The same of those that are over.
    over: VecDeque<(Timestamp, ConnectionId)>,
    by_leg: HashMap<Leg, ConnectionId>,
    by_isn: HashMap<u32, ConnectionId>,
    /// The latest packet of each connection.
    by_packet: HashMap<PacketKey, ConnectionId>,
    next: u64,
    evicted: u64,
    forgotten: Vec<ConnectionId>,
}

impl<Open> Default for Connections<Open> {
    fn default() -> Self {
        Self {
            states: FxHashMap::default(),
            order: VecDeque::new(),
            over: VecDeque::new(),
            by_leg: HashMap::new(),
            by_isn: HashMap::new(),
            by_packet: HashMap::new(),
            next: 1,
            evicted: 0,
            forgotten: Vec::new(),
        }
    }
}

impl<Open> Connections<Open> {
    /// The connection of a packet with the numbers `key`, else that with the first sequence number `isn`. One that is new is entered if
    /// it `may_enter`, else there is none.
    pub fn of(&mut self, seen: &Observation, key: PacketKey, isn: Option<u32>, may_enter: bool) -> Option<Found> {
        let (leg, at, tcp) = (leg(seen), seen.at, key.tcp);
        let known = isn.and_then(|isn| self.by_isn.get(&isn)).map(|id| Found { id: *id, join: Join::Rewritten });
        let found = match self.find(seen, tcp, leg, key).or(known) {
            Some(found) => found,
            None if may_enter => Found { id: self.enter(seen, tcp, leg), join: Join::Exact },
            None => return None,
        };
        let id = found.id;
        if let Some(state) = self.states.get_mut(&id) {
            state.last = state.last.max(at);
            let old = state.latest.replace(key);
            self.by_packet.insert(key, id);
            if let Some(old) = old.filter(|old| *old != key && self.by_packet.get(old) == Some(&id)) {
                self.by_packet.remove(&old);
            }
        }
        self.forget(at);
        Some(found)
    }

    /// Notes what a packet of a connection says of its end. To be told when its acknowledgement is.
    pub fn note_end(&mut self, id: ConnectionId, observation: &Observation, tcp: Tcp) {
        // An error about a packet bears that packet's numbers.
        if observation.icmp.is_some() {
            return;
        }
        if let Some(state) = self.states.get_mut(&id) {
            state.note_end(observation.heading, tcp);
            list_over(&mut self.over, state);
        }
    }

    /// The client's TCP has closed the socket of the connection with this first sequence number.
    pub fn closed(&mut self, isn: u32) {
        if let Some(state) = self.by_isn.get(&isn).and_then(|id| self.states.get_mut(id)) {
            state.left = true;
            list_over(&mut self.over, state);
        }
    }

    /// The state of a connection that [`Self::of`] gave, unless it was forgotten since.
    pub fn get_mut(&mut self, id: ConnectionId) -> Option<&mut State<Open>> {
        self.states.get_mut(&id)
    }

    /// Is there a connection between these two ends whose first sequence number is not known?
    pub fn has_without_syn(&self, client: Endpoint, endpoint: Endpoint) -> bool {
        let id = self.by_leg.get(&Leg { client, endpoint });
        id.and_then(|id| self.states.get(id)).is_some_and(|state| state.connection.isn.is_none())
    }

    /// The connection with the addresses of a packet.
    pub fn at(&self, observation: &Observation) -> Option<&State<Open>> {
        self.states.get(self.by_leg.get(&leg(observation))?)
    }

    /// Did packets to IMDS of the connection with these addresses leave by this interface?
    pub fn left_by(&self, observation: &Observation, interface: Ifindex) -> bool {
        self.at(observation).is_some_and(|state| state.left_by.contains(&interface))
    }

    /// The connection with this first sequence number.
    pub fn with_isn(&self, isn: u32) -> Option<&State<Open>> {
        self.states.get(self.by_isn.get(&isn)?)
    }

    /// Is there a connection with this first sequence number?
    pub fn has_isn(&self, isn: u32) -> bool {
        self.by_isn.contains_key(&isn)
    }

    /// How many connections were forgotten of which more may have come, to stay within bounds; counted anew after each call.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    /// The connections that were forgotten since the last call.
    pub fn take_forgotten(&mut self) -> Vec<ConnectionId> {
        std::mem::take(&mut self.forgotten)
    }

    /// When [`Self::forget`] will have something to do.
    pub fn due(&self) -> Option<Timestamp> {
        let over = self.over.front().map(|(last, _)| last.after(FORGET_OVER));
        let quiet = self.order.front().map(|(last, _)| last.after(FORGET));
        // Behind the end of time nothing is due.
        over.into_iter().chain(quiet).min().filter(|due| *due < NEVER)
    }

    fn find(&mut self, observation: &Observation, tcp: Tcp, leg: Leg, key: PacketKey) -> Option<Found> {
        if tcp.flags.opens() && observation.heading == Heading::ToImds {
            let id = *self.by_isn.get(&tcp.seq)?;
            let state = self.states.get_mut(&id)?;
            if observation.at.since(state.last) > SAME_SYN {
                return None;
            }
            // Two SYNs with one number under two addresses at one hook are two connections: a number can be forged.
            if let Place::Hook(hook) = &observation.place {
                match state.syns.iter().find(|(seen, _)| seen == hook) {
                    Some((_, seen)) if *seen != leg => return None,
                    Some(_) => {}
                    None if state.syns.len() >= MAX_LEGS => return None,
                    None => state.syns.push((hook.clone(), leg)),
                }
            }
            let join = if state.legs.first() == Some(&leg) { Join::Exact } else { Join::Rewritten };
            self.claim(id, leg, &observation.place);
            return Some(Found { id, join });
        }
        // By its addresses, and by its numbers if it was the latest packet of a connection. Mostly both say the same; where the
        // SYN was missed on one side of a translation, the numbers are what ties the sides together.
        let by_leg = self.by_leg.get(&leg).copied().filter(|id| self.states.contains_key(id));
        let by_packet = self.by_packet.get(&key).copied().filter(|id| self.states.contains_key(id));
        match (by_leg, by_packet) {
            (None, None) => None,
            (Some(id), None) => Some(self.known(id)),
            (Some(id), Some(same)) if id == same => Some(self.known(id)),
            (None, Some(id)) => {
                self.add_leg(id, leg);
                if observation.heading == Heading::FromImds {
                    self.move_client(id, leg);
                }
                Some(Found { id, join: Join::Guessed })
            }
            (Some(old), Some(id)) => {
                let has_syn =
                    |id| self.states.get(&id).is_some_and(|state: &State<Open>| state.connection.isn.is_some());
                match (has_syn(old), has_syn(id)) {
                    // The addresses were used again by another connection, whose packet this is.
                    (true, true) => {
                        self.claim(id, leg, &observation.place);
                        Some(Found { id, join: Join::Guessed })
                    }
                    // `id` saw the packet first: on the way to IMDS it is nearer to the client, on the way back `old` is.
                    (true, false) => Some(self.merge(old, id, observation.heading == Heading::ToImds)),
                    (false, _) => Some(self.merge(id, old, observation.heading == Heading::FromImds)),
                }
            }
        }
    }

    fn known(&self, id: ConnectionId) -> Found {
        let translated = self.states.get(&id).is_some_and(|state| state.legs.len() > 1);
        Found { id, join: if translated { Join::Rewritten } else { Join::Exact } }
    }

    /// Makes two halves of a connection one. `takes_client`: the half that goes was nearer to the client.
    fn merge(&mut self, id: ConnectionId, gone: ConnectionId, takes_client: bool) -> Found {
        if let Some(mut half) = self.states.remove(&gone) {
            self.forgotten.push(gone);
            for leg in std::mem::take(&mut half.legs) {
                self.add_leg(id, leg);
            }
            if let Some(latest) = half.latest {
                self.by_packet.insert(latest, id);
            }
            if let Some(state) = self.states.get_mut(&id) {
                state.open.append(&mut half.open);
                half.left_by.into_iter().for_each(|interface| state.leaves_by(interface));
                for (known, other) in state.acked.iter_mut().zip(half.acked) {
                    *known = known.or(other);
                }
                for (known, other) in state.sent.iter_mut().zip(half.sent) {
                    *known = known.or(other);
                }
                for (known, other) in state.ended.iter_mut().zip(half.ended) {
                    *known |= other;
                }
                state.left |= half.left;
                state.has_asked |= half.has_asked;
                state.has_answer |= half.has_answer;
                if takes_client {
                    state.connection.client = half.connection.client;
                    state.connection.endpoint = half.connection.endpoint;
                    state.client_ttl = half.client_ttl.or(state.client_ttl);
                    state.client_hook = half.client_hook.or(state.client_hook.take());
                }
            }
        }
        Found { id, join: Join::Guessed }
    }

    /// A packet on its way back was seen under addresses that are new: nearer to the client, if all that was known of the client is
    /// where its packets left this host.
    fn move_client(&mut self, id: ConnectionId, leg: Leg) {
        let Some(state) = self.states.get_mut(&id) else { return };
        let came_in = state.client_hook.as_ref().is_some_and(|hook| hook.direction == Direction::Ingress);
        if !came_in {
            state.connection.client = leg.client;
            state.connection.endpoint = leg.endpoint;
            state.client_hook = None;
        }
    }

    /// Enters addresses under which a connection was seen. One whose packet was dropped does not take them: where two were given the
    /// same at once, the kernel lets only one through, and that one may not have been seen yet.
    fn claim(&mut self, id: ConnectionId, leg: Leg, place: &Place) {
        if matches!(place, Place::Hook(_)) {
            self.add_leg(id, leg);
        }
    }

    fn add_leg(&mut self, id: ConnectionId, leg: Leg) {
        let Some(state) = self.states.get_mut(&id) else { return };
        if !state.legs.contains(&leg) && state.legs.len() < MAX_LEGS {
            state.legs.push(leg);
        }
        if state.legs.contains(&leg) {
            self.by_leg.insert(leg, id);
        }
    }

    fn enter(&mut self, observation: &Observation, tcp: Tcp, leg: Leg) -> ConnectionId {
        let id = ConnectionId(self.next);
        self.next += 1;
        let opens = tcp.flags.opens() && observation.heading == Heading::ToImds;
        let client_hook = match (&observation.place, observation.heading) {
            (Place::Hook(hook), Heading::ToImds) => Some(hook.clone()),
            _ => None,
        };
        let isn = opens.then_some(tcp.seq);
        let syns = match &observation.place {
            Place::Hook(hook) if opens => vec![(hook.clone(), leg)],
            _ => Vec::new(),
        };
        let connection = Connection { id, client: leg.client, endpoint: leg.endpoint, isn, since: observation.at };
        let state = State {
            connection,
            client_ttl: client_hook.is_some().then_some(observation.ttl),
            client_hook,
            acked: [None; 2],
            ahead: None,
            open: Vec::new(),
            legs: vec![leg],
            syns,
            left_by: Vec::new(),
            scheduled: None,
            last: observation.at,
            latest: None,
            sent: [None; 2],
            has_asked: false,
            has_answer: false,
            ended: [false; 2],
            left: false,
            listed_over: false,
        };
        self.states.insert(id, state);
        self.order.push_back((observation.at, id));
        if matches!(observation.place, Place::Hook(_)) || !self.by_leg.contains_key(&leg) {
            self.by_leg.insert(leg, id);
        }
        if let Some(isn) = isn {
            self.by_isn.insert(isn, id);
        }
        id
    }

    /// Forgets what is over and what has gone quiet, and what there is no room for: what is over first, which is no loss.
    pub fn forget(&mut self, now: Timestamp) {
        while let Some(&(listed, id)) = self.over.front() {
            let is_due = listed.after(FORGET_OVER) <= now;
            if !is_due && self.states.len() <= MAX_CONNECTIONS {
                break;
            }
            self.over.pop_front();
            let Some(state) = self.states.get_mut(&id) else { continue };
            state.listed_over = false;
            if !state.is_over() {
                continue;
            }
            if state.last > listed && state.last.after(FORGET_OVER) > now && is_due {
                list_over(&mut self.over, state);
                continue;
            }
            // What is under way of it was not told yet.
            self.evicted += u64::from(!state.open.is_empty());
            self.remove(id);
        }
        while let Some(&(listed, id)) = self.order.front() {
            let is_due = listed.after(FORGET) <= now;
            if !is_due && self.states.len() <= MAX_CONNECTIONS {
                break;
            }
            self.order.pop_front();
            let Some(state) = self.states.get(&id) else { continue };
            let is_quiet = state.last.after(FORGET) <= now;
            if state.last > listed && !is_quiet {
                self.order.push_back((state.last, id));
                continue;
            }
            self.evicted += u64::from(!is_quiet);
            self.remove(id);
        }
        let states = &self.states;
        room::tidy(&mut self.order, states.len(), |(_, id)| states.contains_key(id));
        room::tidy(&mut self.over, states.len(), |(_, id)| states.contains_key(id));
    }

    fn remove(&mut self, id: ConnectionId) {
        let Some(state) = self.states.remove(&id) else { return };
        self.forgotten.push(id);
        for leg in &state.legs {
            if self.by_leg.get(leg) == Some(&id) {
                self.by_leg.remove(leg);
            }
        }
        if let Some(isn) = state.connection.isn
            && self.by_isn.get(&isn) == Some(&id)
        {
            self.by_isn.remove(&isn);
        }
        if let Some(key) = state.latest
            && self.by_packet.get(&key) == Some(&id)
        {
            self.by_packet.remove(&key);
        }
        room::give_back(&mut self.states);
        room::give_back(&mut self.by_leg);
        room::give_back(&mut self.by_isn);
        room::give_back(&mut self.by_packet);
    }
}

/// Enters a connection among those that are over, if it is and does not stand there.
fn list_over<Open>(over: &mut VecDeque<(Timestamp, ConnectionId)>, state: &mut State<Open>) {
    if !state.listed_over && state.is_over() {
        state.listed_over = true;
        over.push_back((state.last, state.connection.id));
    }
}

fn leg(observation: &Observation) -> Leg {
    let flow = observation.flow;
    match observation.heading {
        Heading::ToImds => Leg { client: flow.source, endpoint: flow.destination },
        Heading::FromImds => Leg { client: flow.destination, endpoint: flow.source },
    }
}
