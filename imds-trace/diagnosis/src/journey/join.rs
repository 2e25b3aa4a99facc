//! Which journey does this observation continue, and when is a journey over?

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use super::connections::{Connections, Found, State, slot};
use super::drops::{Meaning, meaning};
use super::origin::Origins;
use super::packet_key::PacketKey;
use super::{ConnectionId, Dropped, Evidence, Fate, Hop, Join, Journey, Redirect};
use crate::net::{Direction, Endpoint, Heading, Ifindex, Netns, Timestamp, has_fallen, is_before};
use crate::observation::{Drop, Head, Icmp, Observation, Place, Tcp, TcpFlags};
use crate::room;

/// A journey is over when nothing more was seen of it for so long. Crossing a host takes microseconds; the rest is for the
/// sources of identity, which may speak a little later than the packets.
pub const QUIET: Duration = Duration::from_millis(250);
/// The time of the last call of [`Joiner::advance`]: nothing more comes.
pub const END: Timestamp = Timestamp(u64::MAX);
/// Journeys under way in one connection at most; a window of small segments.
const MAX_OPEN: usize = 256;
/// Sockets whose namespace is remembered at most.
const MAX_SOCKETS: usize = 14_000;
/// Bytes that a client sends on one connection at most, where its numbers are to tell whose a packet is.
const MAX_SENT: u32 = 1 << 20;
/// A packet that is seen at another hook so soon after a drop of it was not dropped: that was a copy. Nothing is sent again so soon
/// (the least time before a retransmission is 200 ms on Linux).
const SAME_PACKET: Duration = Duration::from_millis(1);
/// Records of two processors come out of order by so much at most.
const OUT_OF_ORDER: Duration = Duration::from_micros(100);
/// Hops of one journey at most: more than any stack of bridges has.
const MAX_HOPS: usize = 32;

#[derive(Debug)]
struct Open {
    key: PacketKey,
    tcp: Tcp,
    heading: Heading,
    hops: Vec<Hop>,
    /// Apart, because it is large and rare.
    dropped: Option<Box<Dropped>>,
    /// The receiving host's TCP had it in hand.
    reached: bool,
    heads: Vec<Head>,
    contradicted: bool,
    icmp: Option<Icmp>,
    redirected: Option<Redirect>,
    needless: bool,
    forestalled: bool,
    join: Join,
    last: Timestamp,
}

/// A client's socket: its namespace, its own end, and where it connects to.
#[derive(Clone, Copy, Debug)]
struct Socket {
    netns: Netns,
    own: Endpoint,
    endpoint: Endpoint,
}

/// Joins observations into journeys.
#[derive(Debug)]
pub struct Joiner {
    /// The namespace that the hooks are in.
    host: Netns,
    origins: Origins,
    /// The sockets that connected last, by first sequence number.
    sockets: HashMap<u32, Socket>,
    /// First sequence number of the latest of them with these ends of its own.
    socket_ends: HashMap<(Endpoint, Endpoint), u32>,
    socket_order: VecDeque<u32>,
    connections: Connections<Open>,
    /// Of a capture only what nobody acknowledged is lost.
    evidence: Evidence,
    /// When the latest packet was seen.
    latest: Timestamp,
    due: BinaryHeap<Reverse<(Timestamp, ConnectionId)>>,
    evicted: u64,
}

impl Joiner {
    /// Joins what was seen on a host whose hooks are in the namespace `host`.
    pub fn new(host: Netns) -> Self {
        Self {
            host,
            origins: Origins::default(),
            sockets: HashMap::new(),
            socket_ends: HashMap::new(),
            socket_order: VecDeque::new(),
            connections: Connections::default(),
            evidence: Evidence::Kernel,
            latest: Timestamp(0),
            due: BinaryHeap::new(),
            evicted: 0,
        }
    }

    /// Joins what a capture shows.
    pub fn of_capture() -> Self {
        Self { evidence: Evidence::Capture, ..Self::new(Netns::default()) }
    }

    /// The routes to the endpoints use these interfaces now; containers are behind `inward`, empty if nobody said.
    pub fn uplinks(&mut self, interfaces: &[Ifindex], inward: &[Ifindex]) {
        self.origins.learn(interfaces, inward);
    }

    /// The socket that opens the connection with this first sequence number is in this namespace, has the end `own`, and connects to
    /// `endpoint`.
    pub fn socket(&mut self, isn: u32, netns: Netns, own: Endpoint, endpoint: Endpoint) {
        match self.sockets.insert(isn, Socket { netns, own, endpoint }) {
            Some(before) => self.forget_ends(isn, before),
            None => self.socket_order.push_back(isn),
        }
        self.socket_ends.insert((own, endpoint), isn);
        while self.socket_order.len() > MAX_SOCKETS {
            if let Some(oldest) = self.socket_order.pop_front()
                && let Some(socket) = self.sockets.remove(&oldest)
            {
                self.forget_ends(oldest, socket);
            }
        }
    }

    fn forget_ends(&mut self, isn: u32, Socket { own, endpoint, .. }: Socket) {
        if self.socket_ends.get(&(own, endpoint)) == Some(&isn) {
            self.socket_ends.remove(&(own, endpoint));
        }
    }

    /// First sequence number of the socket whose packet was dropped under the socket's own addresses, which no hook may have seen: they
    /// are translated in another namespace. Two clients may have the same there; their numbers tell them apart.
    fn socket_of(&self, observation: &Observation, tcp: Tcp) -> Option<u32> {
        let Observation { place: Place::Drop(_), flow, heading, .. } = observation else { return None };
        let (ends, number) = match heading {
            Heading::ToImds => ((flow.source, flow.destination), tcp.seq),
            Heading::FromImds => ((flow.destination, flow.source), tcp.ack),
        };
        self.socket_ends.get(&ends).copied().filter(|isn| number.wrapping_sub(*isn) < MAX_SENT)
    }

    /// Takes in one observation. Journeys come out of [`Self::advance`].
    pub fn push(&mut self, mut observation: Observation) {
        self.latest = self.latest.max(observation.at);
        // Without a TCP header (ICMP, UDP, a later fragment) there is nothing to join by.
        let Some(tcp) = observation.tcp else { return };
        // Sent elsewhere: it is joined as what it was.
        let redirected = observation.redirected.then_some(observation.flow.destination);
        if observation.redirected {
            let Some(endpoint) = self.endpoint_of(tcp.seq) else { return };
            observation.flow.destination = endpoint;
        }
        let reached = match &observation.place {
            Place::Hook(_) => false,
            // A TCP had it in hand: another one than it was meant for, and nobody listens there.
            Place::Drop(drop) if redirected.is_some() && meaning(drop) == Meaning::NoSocket => false,
            // A copy everywhere else.
            Place::Drop(drop) if drop.is_misaddressed() && self.is_at_client(drop, &observation) => false,
            Place::Drop(drop) => match (meaning(drop), self.is_others(drop, &observation)) {
                (Meaning::Copy, _) | (Meaning::Unclear, false) => return,
                (Meaning::Received | Meaning::NoSocket, false) => true,
                (Meaning::Received | Meaning::NoSocket | Meaning::Unclear, true) | (Meaning::Lost, _) => false,
            },
        };
        let key = PacketKey::new(&observation, tcp);
        let connections = &self.connections;
        if self.origins.is_forged(&observation, key, |interface| connections.left_by(&observation, interface)) {
            return;
        }
        // What a TCP discards of itself, with no journey that brought it there, says nothing of the network. And kfree_skb speaks
        // for every namespace: a response dropped in another one that never came in here is none of this host's.
        // Nor does an error about a packet begin a connection.
        let only_continues = reached || self.is_foreign(&observation);
        let may_enter = !only_continues && observation.icmp.is_none();
        let socket = self.socket_of(&observation, tcp);
        let Some(Found { id, join }) = self.connections.of(&observation, key, socket, may_enter) else { return };
        let Some(state) = self.connections.get_mut(id) else { return };
        if self.evidence == Evidence::Kernel {
            note_ahead(state, &observation, tcp);
        }
        note_ack(state, observation.heading, tcp);
        note_way(state, &observation);
        self.connections.note_end(id, &observation, tcp);
        let Some(state) = self.connections.get_mut(id) else { return };
        let forestalled = is_forestalled(state, &observation, tcp);
        let needless = is_acked(observation.heading, tcp, state) && !forestalled;
        let mut all = state.open.iter_mut().rev();
        let continued = all.find(|open| open.key == key && open.goes_on_at(&observation.place, observation.at));
        let open = match continued {
            Some(open) => open,
            None if only_continues => return,
            None => {
                state.open.push(Open {
                    key,
                    tcp,
                    heading: observation.heading,
                    hops: Vec::new(),
                    dropped: None,
                    reached: false,
                    heads: Vec::new(),
                    contradicted: false,
                    icmp: observation.icmp,
                    redirected: redirected.map(|to| Redirect { to, before: true }),
                    needless,
                    forestalled,
                    join,
                    last: observation.at,
                });
                state.open.last_mut().unwrap_or_else(|| unreachable!("pushed just now"))
            }
        };
        open.last = open.last.max(observation.at);
        open.join = open.join.max(join);
        let before = open.redirected.is_some_and(|redirect| redirect.before);
        open.redirected = redirected.map(|to| Redirect { to, before }).or(open.redirected);
        if open.heads.is_empty() {
            open.heads = observation.heads;
        } else if !observation.heads.is_empty() && open.heads != observation.heads {
            open.contradicted = true;
        }
        let client = match observation.heading {
            Heading::ToImds => observation.flow.source,
            Heading::FromImds => observation.flow.destination,
        };
        match observation.place {
            Place::Hook(hook) => {
                // Seen again behind its drop: that was of a copy.
                open.dropped = open.dropped.take().filter(|dropped| observation.at < dropped.at);
                let behind = open.hops.partition_point(|hop| hop.at <= observation.at);
                open.hops.insert(behind, Hop { at: observation.at, hook, ttl: observation.ttl, client });
            }
            Place::Drop(_) if reached => open.reached = true,
            Place::Drop(drop) => {
                open.dropped = Some(Box::new(Dropped { at: observation.at, drop, ttl: observation.ttl, client }));
            }
        }
        while state.open.len() > MAX_OPEN {
            state.open.remove(0);
            self.evicted += 1;
        }
        if state.scheduled.is_none() {
            let due = observation.at.after(QUIET);
            state.scheduled = Some(due);
            self.due.push(Reverse((due, id)));
        }
    }

    /// Is it a drop of an answer by another TCP than its client's? Where nobody said in which namespace the client is, by where its
    /// packets were seen first: one that came in to this host, or had been forwarded before, is not in the host's own.
    fn is_others(&self, drop: &Drop, observation: &Observation) -> bool {
        if observation.heading != Heading::FromImds || drop.netns == Netns::default() {
            return false;
        }
        let Some(state) = self.connections.at(observation) else { return false };
        match state.connection.isn.and_then(|isn| self.sockets.get(&isn)) {
            Some(socket) => socket.netns != drop.netns,
            None => match &state.client_hook {
                Some(hook) if hook.direction == Direction::Ingress => drop.netns == self.host,
                Some(_) if state.client_ttl.is_some_and(has_fallen) => drop.netns == self.host,
                Some(_) | None => false,
            },
        }
    }

    /// Is it a drop of an answer in the network namespace that its client is said to be in, which is not the host's?
    fn is_at_client(&self, drop: &Drop, observation: &Observation) -> bool {
        let state = self.connections.at(observation).filter(|_| observation.heading == Heading::FromImds);
        let socket = state.and_then(|state| self.sockets.get(&state.connection.isn?));
        socket.is_some_and(|socket| socket.netns == drop.netns && socket.netns != self.host)
    }

    /// Where the connection with this first sequence number goes, as its client addressed it.
    fn endpoint_of(&self, isn: u32) -> Option<Endpoint> {
        let known = self.connections.with_isn(isn).map(|state| state.connection.endpoint);
        known.or_else(|| self.sockets.get(&isn).map(|socket| socket.endpoint))
    }

    fn is_foreign(&self, observation: &Observation) -> bool {
        let elsewhere = matches!(&observation.place, Place::Drop(drop) if drop.netns != self.host);
        elsewhere && observation.heading == Heading::FromImds
    }

    /// Was a SYN with this first sequence number seen?
    pub fn has_seen(&self, isn: u32) -> bool {
        self.connections.has_isn(isn)
    }

    /// Was a connection seen between these two ends whose SYN was not?
    pub fn has_seen_between(&self, client: Endpoint, endpoint: Endpoint) -> bool {
        self.connections.has_without_syn(client, endpoint)
    }

    /// The client's TCP has closed the socket of the connection with this first sequence number.
    pub fn closed(&mut self, isn: u32) {
        self.connections.closed(isn);
    }

    /// Gives the journeys that are over at `now`, in the order in which they ended, and forgets the connections that are.
    pub fn advance(&mut self, now: Timestamp, sink: &mut dyn FnMut(Journey)) {
        while let Some(&Reverse((due, id))) = self.due.peek() {
            if due > now {
                break;
            }
            self.due.pop();
            let Some(state) = self.connections.get_mut(id) else { continue };
            // One entry a connection: what is not the one it is scheduled for is left from a half that was merged.
            if state.scheduled != Some(due) {
                continue;
            }
            let over: Vec<Open> = state.open.extract_if(.., |open| open.last.after(QUIET) <= now).collect();
            state.scheduled = state.open.iter().map(|open| open.last.after(QUIET)).min();
            if let Some(next) = state.scheduled {
                self.due.push(Reverse((next, id)));
            }
            if state.open.is_empty() {
                // Most connections have no more than these.
                state.open = Vec::new();
            }
            // An acknowledgement proves that one of several copies arrived.
            let besides: Vec<bool> =
                over.iter().map(|open| came_besides(open, over.iter().chain(&state.open), state)).collect();
            for (open, besides) in over.into_iter().zip(besides) {
                // At the end of a capture the acknowledgement may be what is not in it any more.
                let in_capture =
                    (self.evidence == Evidence::Capture).then(|| now < END || self.latest.since(open.last) >= QUIET);
                let misrouted = is_misrouted(&open, state, |interface| self.origins.is_only_up(interface));
                sink(finish(open, state, misrouted, besides, in_capture));
            }
        }
        room::give_back_heap(&mut self.due);
        // At the end all journeys are to be told first.
        if now < END {
            self.connections.forget(now);
        }
    }

    /// When [`Self::advance`] will have something to do.
    pub fn due(&self) -> Option<Timestamp> {
        let journeys = self.due.peek().map(|Reverse((due, _))| *due);
        journeys.into_iter().chain(self.connections.due()).min()
    }

    /// How many connections and journeys had to go of which more may have come; counted anew after each call.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted) + self.connections.take_evicted()
    }

    /// The connections that were forgotten since the last call: no journey of them comes any more.
    pub fn take_forgotten(&mut self) -> Vec<ConnectionId> {
        self.connections.take_forgotten()
    }
}

impl Open {
    /// Can a packet with these numbers at this place be the one followed here, or is it sent again?
    fn goes_on_at(&self, place: &Place, at: Timestamp) -> bool {
        match place {
            Place::Drop(_) => self.dropped.is_none(),
            // A packet that was dropped is not sent again at once; one that passed a hook does not pass it twice.
            Place::Hook(hook) => {
                let is_same = self.dropped.as_ref().is_none_or(|dropped| at < dropped.at.after(SAME_PACKET));
                is_same && self.hops.len() < MAX_HOPS && !self.hops.iter().any(|hop| hop.hook == *hook)
            }
        }
    }
}

/// Was another copy of an answer's packet seen to arrive, and this one not?
fn came_besides<'a>(open: &Open, mut all: impl Iterator<Item = &'a Open>, state: &State<Open>) -> bool {
    let has_come = |open: &Open| open.dropped.is_none() && (open.reached || arrived(open, state));
    let is_copy =
        |other: &Open| open.heading == other.heading && (open.tcp.seq, open.tcp.len) == (other.tcp.seq, other.tcp.len);
    // Almost all have come, or are no answer's: others are not looked at then.
    open.heading == Heading::FromImds
        && open.tcp.len > 0
        && !has_come(open)
        && all.any(|other| is_copy(other) && !other.needless && has_come(other))
}

/// `besides`: another copy of it arrived. `in_capture`: of what a capture shows; and then, was an acknowledgement waited for?
fn finish(open: Open, state: &State<Open>, misrouted: bool, besides: bool, in_capture: Option<bool>) -> Journey {
    let is_other = open.forestalled || besides && in_capture.is_none();
    let acked = is_acked(open.heading, open.tcp, state) && !is_other;
    let arrived = match in_capture {
        None => !misrouted && arrived(&open, state),
        Some(waited) => seems_arrived(&open, state, waited),
    };
    let fate = match open.dropped {
        Some(dropped) => Fate::Dropped(*dropped),
        None if open.reached || arrived || acked => Fate::Delivered,
        None => Fate::Unresolved,
    };
    Journey {
        connection: state.connection.clone(),
        heading: open.heading,
        tcp: open.tcp,
        ip_id: open.key.ip_id,
        heads: open.heads,
        contradicted: open.contradicted,
        icmp: open.icmp,
        redirected: open.redirected,
        needless: open.needless,
        forestalled: open.forestalled,
        hops: open.hops,
        fate,
        acked,
        join: open.join,
        at: open.last,
    }
}

/// Did an answer leave by an interface that leads to IMDS (or to a VPN), and not by the one that its client's packets come in by?
fn is_misrouted(open: &Open, state: &State<Open>, is_only_up: impl Fn(Ifindex) -> bool) -> bool {
    let (Some(last), Some(client), Heading::FromImds) = (open.hops.last(), &state.client_hook, open.heading) else {
        return false;
    };
    let leaves_there = |hop: &Hop| hop.hook.direction == Direction::Egress && hop.hook.interface == client.interface;
    client.direction == Direction::Ingress
        && last.hook.direction == Direction::Egress
        && is_only_up(last.hook.interface.index)
        && !open.hops.iter().any(leaves_there)
}

/// Was its last hop the end of the way that this host can see?
fn arrived(open: &Open, state: &State<Open>) -> bool {
    let Some(last) = open.hops.last() else { return false };
    match open.heading {
        Heading::ToImds => last.hook.direction == Direction::Egress,
        Heading::FromImds => match &state.client_hook {
            // The client sent from this host itself, and what comes in is for it; unless its packets had been forwarded before:
            // then it is behind this host, on a side that is not watched.
            Some(hook) if hook.direction == Direction::Egress => {
                !state.client_ttl.is_some_and(has_fallen) || !(open.tcp.len > 0 || open.tcp.flags.has(TcpFlags::SYN))
            }
            _ => last.hook.direction == Direction::Egress,
        },
    }
}

/// The same of a capture, which shows neither drops nor all places: lost is only what should have been seen again.
fn seems_arrived(open: &Open, state: &State<Open>, waited: bool) -> bool {
    let Some(last) = open.hops.last() else { return false };
    let carries = open.tcp.len > 0 || open.tcp.flags.has(TcpFlags::SYN);
    match (open.heading, &state.client_hook) {
        (Heading::ToImds, _) => last.hook.direction == Direction::Egress || !carries,
        // Whose it is was not seen.
        (Heading::FromImds, None) => true,
        // It comes to the client where the client's packets were seen first; what reached it from elsewhere, it acknowledges. And so it
        // does if it is behind the host that this was captured on.
        (Heading::FromImds, Some(hook)) => {
            let came_there = last.hook.interface == hook.interface && last.hook.direction != hook.direction;
            let is_alone = hook.direction == Direction::Egress;
            let is_behind = is_alone && state.client_ttl.is_some_and(has_fallen);
            came_there && !is_behind || is_alone && (open.tcp.len == 0 || !waited)
        }
    }
}

/// The other side has acknowledged it: it arrived, whatever we saw of it.
fn is_acked(heading: Heading, tcp: Tcp, state: &State<Open>) -> bool {
    let occupies = tcp.end() != tcp.seq;
    occupies && state.acked[slot(heading)].is_some_and(|acked| !is_before(acked, tcp.end()))
}

/// Notes whether a client acknowledges what was not seen to come yet. Numbers far from its own are of whoever had its ends before.
fn note_ahead(state: &mut State<Open>, observation: &Observation, tcp: Tcp) {
    let acknowledges = tcp.flags.has(TcpFlags::ACK) && !tcp.flags.has(TcpFlags::RST) && observation.icmp.is_none();
    let is_own = state.connection.isn.is_some_and(|isn| tcp.seq.wrapping_sub(isn) < MAX_SENT);
    let Some(sent) = state.sent[1].filter(|_| observation.heading == Heading::ToImds && acknowledges && is_own) else {
        return;
    };
    let is_ahead = is_before(sent, tcp.ack) && tcp.ack.wrapping_sub(sent) < MAX_SENT;
    if is_ahead && state.ahead.is_none_or(|(_, to, _)| !is_before(sent, to)) {
        state.ahead = Some((sent, tcp.ack, observation.at));
    }
}

/// Did its client acknowledge it before any copy of it came?
fn is_forestalled(state: &mut State<Open>, observation: &Observation, tcp: Tcp) -> bool {
    let Some((from, to, at)) = state.ahead.filter(|_| observation.heading == Heading::FromImds && tcp.len > 0) else {
        return false;
    };
    if is_before(tcp.seq, from) || is_before(to, tcp.end()) {
        return false;
    }
    let is_behind = observation.at > at.after(OUT_OF_ORDER);
    state.ahead = state.ahead.filter(|_| is_behind);
    is_behind
}

fn note_ack(state: &mut State<Open>, heading: Heading, tcp: Tcp) {
    if !tcp.flags.has(TcpFlags::ACK) {
        return;
    }
    // What travels to IMDS acknowledges what travelled from it.
    let acked = &mut state.acked[1 - slot(heading)];
    if acked.is_none_or(|known| is_before(known, tcp.ack)) {
        *acked = Some(tcp.ack);
    }
}

/// By which interfaces requests leave: there their answers come in.
fn note_way(state: &mut State<Open>, observation: &Observation) {
    if let (Place::Hook(hook), Heading::ToImds) = (&observation.place, observation.heading)
        && hook.direction == Direction::Egress
    {
        state.leaves_by(hook.interface.index);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
