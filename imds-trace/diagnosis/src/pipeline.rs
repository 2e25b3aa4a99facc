//! In which order do the stages run? Observation, journey, exchange, finding: written here and nowhere else.
//!
//! Pure: no clock, no lookup. The same inputs in the same order give the same events, so a recording replays to what was seen live.

use std::rc::Rc;

use crate::allow::AllowList;
use crate::coverage::{Coverage, Span, Unseen, UnseenSockets};
use crate::event::Reconciled;
use crate::event::{End, Event, ExchangeEvent, Lost, PacketEvent, UnseenConnection};
use crate::exchange::{Assembler, Exchange, Moment, Over, Returned};
use crate::finding::{Aftermath, Case, Finding, History, HopLimit, Ledger, Refused, Spent, Surroundings, spent};
use crate::identity::fact::{Connected, Outcome, Socket, TcpState};
use crate::identity::{Asked, Attribution, Directory, Fact, Failed, Query, Said};
use crate::input::Input;
use crate::journey::{Connection, END, Evidence, Joiner, Journey, Others};
use crate::net::{Direction, Heading, Netns, Timestamp};
use crate::observation::{Observation, Place};

/// What does not change during a run.
#[derive(Clone, Debug)]
pub struct Host {
    /// The namespace that the hooks are in.
    pub netns: Netns,
    /// The pid namespace of its processes, if known.
    pub pid_namespace: Option<u32>,
    /// The EC2 instance's id, if known.
    pub instance: Option<String>,
}

/// All stages together.
#[derive(Debug)]
pub struct Pipeline {
    joiner: Joiner,
    others: Others,
    assembler: Assembler,
    unseen: UnseenSockets,
    interpreter: Interpreter,
    now: Timestamp,
    lost: Lost,
    told_lost: Lost,
}

/// The stages behind the exchanges.
#[derive(Debug)]
struct Interpreter {
    surroundings: Surroundings,
    directory: Directory,
    history: History,
    aftermath: Aftermath,
    ledger: Ledger,
    spent: Reconciled,
    coverage: Coverage,
    /// The host namespace's counters when they were first read.
    counters: Option<u64>,
    /// Does anybody want packets? They are numbered from 1.
    tells_packets: bool,
    packets: u64,
}

/// Takes events.
pub type Sink<'a> = dyn FnMut(&Event) + 'a;

impl Pipeline {
    /// Nothing seen yet.
    pub fn new(host: Host) -> Self {
        Self {
            joiner: Joiner::new(host.netns),
            others: Others::default(),
            assembler: Assembler::default(),
            unseen: UnseenSockets::default(),
            interpreter: Interpreter {
                directory: Directory::new(host.netns).with_pid_namespace(host.pid_namespace),
                surroundings: Surroundings::new(host.netns, host.instance),
                history: History::default(),
                aftermath: Aftermath::default(),
                ledger: Ledger::default(),
                spent: Reconciled::default(),
                coverage: Coverage::default(),
                counters: None,
                tells_packets: false,
                packets: 0,
            },
            now: Timestamp(0),
            lost: Lost::default(),
            told_lost: Lost::default(),
        }
    }

    /// Nothing seen yet, and nothing but what a capture shows will be.
    pub fn of_capture() -> Self {
        let mut pipeline = Self::new(Host { netns: Netns::default(), pid_namespace: None, instance: None });
        (pipeline.joiner, pipeline.assembler) = (Joiner::of_capture(), Assembler::of_capture());
        pipeline.interpreter.surroundings.evidence = Evidence::Capture;
        pipeline
    }

    /// From now on, whoever else takes a token or credentials is a finding.
    pub fn allow(&mut self, allow: Option<AllowList>) {
        self.interpreter.surroundings.allow = allow;
    }

    /// Tells every packet from now on, if that is wanted.
    pub fn tell_packets(&mut self, wanted: bool) {
        self.interpreter.tells_packets = wanted;
    }

    /// Takes in one input; what it leads to goes to `sink`.
    pub fn push(&mut self, input: Input, sink: &mut Sink<'_>) {
        // Only packets and ticks move time. A source may speak while packets older than its word wait to be read.
        match input {
            Input::Observation(observation) => {
                self.advance(observation.at, sink);
                self.interpreter.coverage.heard(observation.at);
                self.others.note(&observation);
                self.note_seen(&observation);
                self.joiner.push(observation);
            }
            Input::Fact(fact) => {
                match &fact.said {
                    Said::Uplinks { interfaces, inward, .. } => self.joiner.uplinks(interfaces, inward),
                    Said::Sending(socket) | Said::Connected(Connected { socket, .. }) => {
                        self.joiner.socket(socket.isn, socket.netns, socket.source, socket.destination)
                    }
                    _ => {}
                }
                self.interpreter.note(fact.at, &fact.said);
                if let Said::Connected(connected) = &fact.said
                    && let Connected { socket, outcome: Outcome::Failed(_) } = connected
                    && (connected.has_no_port() || self.is_unseen(socket))
                {
                    self.interpreter.directory.unseen(fact.at, socket);
                }
                self.lost.state_evicted += self.interpreter.directory.learn(&fact);
                self.hear_socket(&fact, sink);
            }
            Input::Tick { at } => {
                self.advance(at, sink);
                self.interpreter.coverage.heard(at);
            }
            Input::Lost { at, ring_buffer, unreadable } => {
                // Before anything else there is no later moment to tell it at.
                if self.now == Timestamp(0) {
                    self.now = at;
                }
                self.lost.add(Lost { ring_buffer, unreadable, state_evicted: 0 });
                let (now, interpreter) = (self.now, &mut self.interpreter);
                let loss = interpreter.coverage.lost(at, now, unreadable > 0);
                interpreter.ledger.doubt(loss, &mut |finding| tell_finding(finding, now.max(at), sink));
            }
        }
        self.forget(sink);
        self.tell_losses(sink);
    }

    /// When a [`Input::Tick`] will lead to something, if nothing else comes.
    pub fn due(&self) -> Option<Timestamp> {
        let interpreter = &self.interpreter;
        let due = [self.joiner.due(), self.assembler.due(), interpreter.directory.due(), interpreter.aftermath.due()];
        due.into_iter().flatten().min()
    }

    /// Ends the run: closes what is open.
    pub fn finish(&mut self, sink: &mut Sink<'_>) {
        let end = self.now;
        let (assembler, interpreter) = (&mut self.assembler, &mut self.interpreter);
        self.joiner.advance(END, &mut |journey| interpreter.follow(journey, assembler, end, sink));
        interpreter.tell_failed(assembler, END, end, sink);
        assembler.finish(end, &mut |exchange, moment| interpreter.interpret(exchange, moment, end, sink));
        interpreter.judge_refusals(END, end, sink);
        for unseen in self.unseen.take() {
            // It is open, and may receive what it has not yet: that it got nothing is not its last word.
            let counted = unseen.counted.filter(|(received, _)| *received > 0);
            self.tell_unseen(Some(Unseen { counted, ..unseen }), end, sink);
        }
        self.tell_losses(sink);
        let interpreter = &mut self.interpreter;
        interpreter.ledger.finish(&mut |finding| tell_finding(finding, end, sink));
        let (lost, spent, other) = (self.lost, interpreter.spent, self.others.take());
        let coverage = &self.interpreter.coverage;
        let (watched, losses) = (coverage.watched_until(end).collect(), coverage.losses().collect());
        let unwatched = coverage.unwatched_until(end);
        sink(&Event::End(end, End { lost, spent, other, watched, unwatched, losses }));
    }

    fn advance(&mut self, at: Timestamp, sink: &mut Sink<'_>) {
        // Records of two processors may come a little out of order; time does not go back for them.
        self.now = self.now.max(at);
        // In the order in which things fall due, however much time has passed at once: a tick more or less must not show.
        while let Some(due) = self.due().filter(|due| *due <= self.now) {
            let (assembler, interpreter) = (&mut self.assembler, &mut self.interpreter);
            if interpreter.directory.due().is_some_and(|attempt| attempt <= due) {
                interpreter.tell_failed(assembler, due, due, sink);
            } else if assembler.due().is_some_and(|exchange| exchange <= due) {
                assembler.advance(due, &mut |exchange, moment| interpreter.interpret(exchange, moment, due, sink));
            } else if interpreter.aftermath.due().is_some_and(|refusal| refusal <= due) {
                interpreter.judge_refusals(due, due, sink);
            } else {
                self.joiner.advance(due, &mut |journey| interpreter.follow(journey, assembler, due, sink));
            }
        }
    }

    /// What was not seen of a connection before may be seen now.
    fn note_seen(&mut self, observation: &Observation) {
        // What bears IMDS's address may be forged.
        if let (Some(tcp), Place::Hook(_), Heading::ToImds) = (observation.tcp, &observation.place, observation.heading)
        {
            let syn = tcp.flags.opens().then_some(tcp.seq);
            self.unseen.saw(syn, observation.flow.source, observation.flow.destination);
        }
    }

    /// What the joiner has forgotten leads to nothing more: the assembler forgets it once it is told, and then the directory.
    fn forget(&mut self, sink: &mut Sink<'_>) {
        for id in self.joiner.take_forgotten() {
            self.assembler.forsake(id);
        }
        for (isn, endpoint) in self.assembler.take_forgotten() {
            self.interpreter.directory.over(isn, endpoint);
        }
        let ended = self.assembler.take_ended();
        if !ended.is_empty() {
            sink(&Event::Settled(ended));
        }
    }

    /// Did a socket give up of which no packet was seen, though it would have been?
    fn is_unseen(&self, socket: &Socket) -> bool {
        self.interpreter.surroundings.watched
            && !self.joiner.has_seen(socket.isn)
            && !self.joiner.has_seen_between(socket.source, socket.destination)
    }

    /// Takes in what a client's socket said of itself.
    fn hear_socket(&mut self, fact: &Fact, sink: &mut Sink<'_>) {
        match &fact.said {
            Said::Connected(Connected { socket, outcome: Outcome::Failed(_) }) => {
                self.joiner.closed(socket.isn);
                if !self.joiner.has_seen(socket.isn) {
                    self.interpreter.directory.closed_unseen(fact.at, socket.isn, socket.destination);
                }
            }
            Said::Connected(Connected { socket, outcome: Outcome::Established { counts } }) => {
                if *counts {
                    self.assembler.opened(socket.isn);
                }
                if !self.joiner.has_seen(socket.isn) {
                    self.unseen.established(fact.at, socket);
                }
            }
            Said::Counted(socket) => {
                let now = self.now.max(fact.at);
                let interpreter = &mut self.interpreter;
                let closed = socket.state == TcpState::Closed;
                let counts = (socket.received, socket.acked);
                self.unseen.counted(socket.isn, counts);
                self.assembler.counted((fact.at, socket.isn), counts, closed, &mut |exchange, moment| {
                    interpreter.interpret(exchange, moment, now, sink);
                });
                if closed {
                    self.joiner.closed(socket.isn);
                    let over = self.unseen.over(socket.isn);
                    if let Some(unseen) = over {
                        self.interpreter.directory.closed_unseen(fact.at, unseen.isn, unseen.endpoint);
                    }
                    self.tell_unseen(over, fact.at, sink);
                }
            }
            _ => {}
        }
    }

    /// Tells of a connection that no hook saw, unless one has seen it since.
    fn tell_unseen(&mut self, unseen: Option<Unseen>, at: Timestamp, sink: &mut Sink<'_>) {
        let Some(Unseen { isn, client, endpoint, established, counted }) = unseen else { return };
        if self.joiner.has_seen(isn) || self.joiner.has_seen_between(client, endpoint) {
            return;
        }
        let asked = Asked::Connection { client, isn: Some(isn) };
        let query = Query { asked, endpoint, since: established };
        let who = self.interpreter.directory.who(query, established);
        if counted.is_none_or(|(_, acked)| acked > 0) {
            self.interpreter.history.unheard.note_unseen(established, &who);
        }
        sink(&Event::Unseen(at, Box::new(UnseenConnection { who, endpoint, established, counted })));
    }

    fn tell_losses(&mut self, sink: &mut Sink<'_>) {
        self.lost.state_evicted += self.joiner.take_evicted()
            + self.assembler.take_evicted()
            + self.unseen.take_evicted()
            + self.interpreter.ledger.take_evicted();
        // Each doubling is told, not each record: a storm must not make a storm.
        if self.lost.sum() > 2 * self.told_lost.sum() {
            self.told_lost = self.lost;
            sink(&Event::Loss(self.now, self.lost));
        }
    }
}

impl Interpreter {
    /// Takes in a journey that is over.
    fn follow(&mut self, journey: Journey, assembler: &mut Assembler, now: Timestamp, sink: &mut Sink<'_>) {
        if journey.icmp.is_none() && journey.connection.isn.is_none() {
            self.history.unheard.note_half_seen(journey.connection.since);
        }
        assembler.push(&journey, &mut |exchange, moment| self.interpret(exchange, moment, now, sink));
        if !self.tells_packets {
            return;
        }
        let exchange = assembler.latest(journey.connection.id);
        let opened = exchange.map_or(journey.at, |exchange| exchange.opened);
        let who = self.directory.who(of_connection(&journey.connection), opened);
        self.packets += 1;
        let exchange = exchange.map(|exchange| exchange.id);
        sink(&Event::Packet(Box::new(PacketEvent { number: self.packets, journey, exchange, who })));
    }

    fn interpret(&mut self, exchange: &Exchange, moment: Moment<'_>, now: Timestamp, sink: &mut Sink<'_>) {
        let who = self.directory.who(query(exchange), exchange.opened);
        self.interpret_of(who, exchange, moment, now, sink);
    }

    fn interpret_of(
        &mut self,
        who: Attribution,
        exchange: &Exchange,
        moment: Moment<'_>,
        now: Timestamp,
        sink: &mut Sink<'_>,
    ) {
        let (subject, first) = (who.subject(), exchange.decrements.first.map(|(first, _)| first));
        let mut seen = self.limit(exchange, &who);
        let arrived = seen.observed.filter(|_| exchange.is_answered_for_sure() && exchange.brought());
        let is_refuted = arrived.zip(seen.needed).is_some_and(|(arrived, needed)| arrived < needed);
        if is_refuted || exchange.decrements.back == Returned::Rose {
            self.ledger.refute(&subject, first);
        }
        let hop_limit = self.ledger.hop_limit(&subject, first, &mut seen, exchange.came);
        if let Moment::Lost(journey) = moment {
            match spent(journey) {
                Some(Spent::Dropped(dropped) | Spent::Unnamed(dropped))
                    if dropped.drop.netns == self.surroundings.netns =>
                {
                    self.spent.seen += 1;
                }
                // What had left may have been dropped elsewhere, where nobody counts for this host.
                Some(Spent::Vanished) if came_last(journey) => self.spent.inferred += 1,
                Some(Spent::Vanished | Spent::Dropped(_) | Spent::Unnamed(_)) | None => {}
            }
        }
        if let Moment::Closed = moment {
            let event = Event::Exchange(Rc::new(ExchangeEvent {
                exchange: exchange.clone(),
                who: who.clone(),
                hop_limit: seen,
                token: self.history.tokens.used(exchange),
                fell_back: self.history.fell_back(exchange, &who),
                unwatched: self.was_unwatched(exchange, now),
            }));
            sink(&event);
            if let Some(refused) = self.aftermath.note(exchange, &who, now) {
                self.judge(refused, now, sink);
            }
        }
        let span = Span { from: exchange.since().min(exchange.opened), to: now.max(exchange.opened) };
        let (history, host) = (&self.history, &self.surroundings);
        let directory = &self.directory;
        let coverage = &self.coverage;
        let case = Case { exchange, moment, who: &who, hop_limit, history, host, directory, coverage, span };
        let when = match moment {
            Moment::Lost(journey) => journey.at,
            Moment::Asked | Moment::Answered | Moment::Left | Moment::Closed | Moment::Settled | Moment::Afterwards => {
                exchange.asked.unwrap_or(exchange.opened)
            }
        };
        self.ledger.examine(&case, when, &mut |finding| tell_finding(finding, now, sink));
        let contradicted = self.ledger.contradict(&case, when, &mut |finding| tell_finding(finding, now, sink));
        let stands_in = case.is_answered_in_place();
        if let Some(address) = case.source_of_answered() {
            self.surroundings.was_answered(address);
        }
        self.history.note(exchange, moment, &who, stands_in);
        if contradicted {
            for refused in self.aftermath.again(exchange.endpoint.address, when) {
                self.judge(refused, now, sink);
            }
        }
    }

    /// Was its connection open while not every interface towards IMDS was watched? Who is behind this host is seen where it comes in.
    fn was_unwatched(&self, exchange: &Exchange, now: Timestamp) -> bool {
        let open = Span { from: exchange.since(), to: exchange.closed.unwrap_or(now) };
        let unwatched = self.coverage.unwatched_until(now).filter(|_| !exchange.comes_in());
        unwatched.is_some_and(|unwatched| unwatched.touches(&open))
    }

    /// Looks again at what was refused, up to those that are `due`.
    fn judge_refusals(&mut self, due: Timestamp, now: Timestamp, sink: &mut Sink<'_>) {
        while let Some(refused) = self.aftermath.next(due) {
            self.judge(refused, now, sink);
        }
    }

    fn judge(&mut self, (exchange, whose): Refused, now: Timestamp, sink: &mut Sink<'_>) {
        // What was learned since counts, unless the socket was forgotten since.
        let who = self.directory.who(query(&exchange), exchange.opened);
        let who = if who.process.is_none() { whose } else { who };
        self.interpret_of(who, &exchange, Moment::Afterwards, now, sink);
    }

    /// What one exchange says of the hop limit.
    fn limit(&self, exchange: &Exchange, who: &Attribution) -> HopLimit {
        if self.surroundings.evidence == Evidence::Kernel {
            let hops = exchange.inward.iter().flat_map(|travel| travel.hops.first());
            let from_inside = hops.into_iter().any(|hop| self.surroundings.is_inside(hop.hook.interface.index));
            let observed = exchange.hop_limit.filter(|_| !from_inside);
            let needed = exchange.decrements.needed(who.initial_ttl);
            // Translated before the first place it was forwarded there, and its TTL does not show that.
            let first = exchange.decrements.first.map(|(first, _)| first);
            let is_hidden = who.socket_address.is_some_and(|own| who.address.is_some_and(|seen| own != seen))
                && first.is_some_and(|first| who.initial_ttl == Some(first));
            return HopLimit { observed, needed: needed.filter(|_| !is_hidden) };
        }
        // Where no packet was seen behind a forward, the capture may be the client's own, and the answer's TTL have fallen before it.
        let forwarded = exchange.decrements.forwarded();
        let initial = exchange.decrements.likely_initial();
        let (observed, needed) = (exchange.hop_limit, exchange.decrements.needed(initial));
        if forwarded { HopLimit { observed, needed } } else { HopLimit::default() }
    }

    /// Tells of connects that failed before a packet was made.
    fn tell_failed(&mut self, assembler: &mut Assembler, due: Timestamp, now: Timestamp, sink: &mut Sink<'_>) {
        while let Some(Failed { attempt, began, at, endpoint }) = self.directory.failed(due) {
            assembler.failed(attempt, (began, at), endpoint, &mut |exchange, moment| {
                self.interpret(exchange, moment, now, sink);
            });
        }
    }

    /// Takes in what a source said of this host.
    fn note(&mut self, at: Timestamp, said: &Said) {
        match said {
            Said::InHdrErrors { netns, v4, v6 } if *netns == self.surroundings.netns => {
                let now = v4 + v6;
                match self.counters {
                    None => self.counters = Some(now),
                    Some(before) => self.spent.counted = Some(now.saturating_sub(before)),
                }
            }
            Said::Uplinks { interfaces, inward, addresses, networks, watched } => {
                // What passed by an interface that is none towards IMDS any more is not told from what passed inside.
                if self.surroundings.uplinks.iter().any(|before| !interfaces.contains(before)) {
                    self.coverage.watched(at, false);
                }
                self.surroundings.uplinks.clone_from(interfaces);
                self.surroundings.inward.clone_from(inward);
                self.surroundings.networks.clone_from(networks);
                self.surroundings.addresses.clone_from(addresses);
                self.surroundings.watched = *watched;
                self.coverage.watched(at, *watched);
            }
            Said::Forwarding(forwarding) => self.surroundings.forwarding.clone_from(forwarding),
            Said::LinkLocalExceeded { interface, packets } => self.surroundings.exceeded(interface, *packets),
            _ => {}
        }
    }
}

fn query(exchange: &Exchange) -> Query {
    match &exchange.over {
        Over::Connection(connection) => of_connection(connection),
        Over::Attempt { number, since } => {
            Query { asked: Asked::Attempt(*number), endpoint: exchange.endpoint, since: *since }
        }
    }
}

fn of_connection(connection: &Connection) -> Query {
    let Connection { client, endpoint, isn, since, .. } = *connection;
    Query { asked: Asked::Connection { client, isn }, endpoint, since }
}

/// Was a packet last seen coming in?
fn came_last(journey: &Journey) -> bool {
    journey.hops.last().is_some_and(|last| last.hook.direction == Direction::Ingress)
}

fn tell_finding(finding: &Finding, at: Timestamp, sink: &mut Sink<'_>) {
    sink(&Event::Finding(at, Box::new(finding.clone())));
}
