//! Which task opened this connection? Sockets by their first sequence number and by their addresses.

use std::cell::OnceCell;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::cgroup;
use super::fact::{self, CUT, Connected, Connecting, Outcome, ProcessDetail, TICK, Told};
use super::{Asked, Process, Query};
use crate::net::{Endpoint, Netns, Timestamp, Ttl};
use crate::room;

/// Sockets remembered at most: those of all connections that are remembered, and some of which no packet was seen.
const MAX_SOCKETS: usize = 80_000;
/// A socket that closed and of which no packet was seen is forgotten so much later: until then what became of it is told.
const FORGET_CLOSED: Duration = Duration::from_secs(15);
/// Processes whose /proc entries are remembered at most.
const MAX_PROCESSES: usize = 4_096;
/// An initial sequence number is believed this long before and after the first packet: Linux draws a new one for a reused pair of
/// ports from a clock that turns over in 274 s.
const BELIEVED: Duration = Duration::from_secs(120);

/// Between a connect() and its SYN the kernel looks for a route and for a free port, in the same system call: a connect of which
/// no more was seen after so long has failed there. Microseconds would do, but a task that has used up its time (a quota of its
/// cgroup, Linux 7 under load) can be kept waiting in the middle.
const FAILED: Duration = Duration::from_secs(1);

/// A socket that connected, or tries to.
#[derive(Debug)]
pub struct Socket {
    at: Timestamp,
    /// As it was said last; what `told` is may be of its attempt.
    task: Connecting,
    told: Arc<Told>,
    detail: Option<Rc<ProcessDetail>>,
    /// What these three come to, once somebody has asked.
    process: OnceCell<Rc<Process>>,
    /// What it was told when the connection failed.
    error: Option<u16>,
    /// How long the connect took to fail.
    failed_after: Option<Duration>,
    has_no_port: bool,
    /// Its SYN was about to be sent: the kernel had a route for it.
    went_on: bool,
    /// Under which first sequence number and addresses it is entered.
    keys: Option<(Isn, Ends)>,
    /// When it closed, if a packet of it was never seen.
    closed_unseen: Option<Timestamp>,
}

/// A first sequence number and where to; and both ends of a connection.
type Isn = (u32, Endpoint);
type Ends = (Endpoint, Endpoint);

impl Socket {
    /// The process that opened it.
    pub fn process(&self) -> Rc<Process> {
        Rc::clone(self.process.get_or_init(|| Rc::new(self.read())))
    }

    fn read(&self) -> Process {
        let (told, detail) = (&self.told, self.detail.as_deref());
        let exe = told.exe.clone().filter(|exe| !exe.starts_with(CUT));
        let ancestors = Some(&told.ancestors).filter(|ancestors| !ancestors.is_empty());
        Process {
            pid: self.task.pid,
            tid: self.task.tid,
            uid: self.task.uid,
            gid: self.task.gid,
            comm: self.task.comm.clone(),
            exe: exe.or_else(|| detail?.exe.clone()).or_else(|| told.exe.clone()),
            argv: whole(told.argv.as_ref(), detail.and_then(|detail| detail.argv.as_ref())).cloned(),
            started: self.task.started,
            pid_in_container: self.task.inner_pid,
            pid_namespace: self.task.pid_namespace,
            netns: self.task.netns,
            cgroup_id: self.task.cgroup,
            cgroup: self.cgroup_path().map(str::to_owned),
            ancestors: ancestors.or(detail.map(|detail| &detail.ancestors)).cloned().unwrap_or_default(),
        }
    }

    /// Container id from the task's cgroup path: as /proc said, which knows every hierarchy, else as the kernel told.
    pub fn container(&self) -> Option<String> {
        match self.detail.as_deref() {
            Some(detail) if detail.found => detail.container.clone(),
            _ => cgroup::read_path(self.told.cgroup.as_deref()?).map(|named| named.outer.id),
        }
    }

    /// Was the task's cgroup path read? Then a missing container id means: none.
    pub fn was_read(&self) -> bool {
        let told = self.told.cgroup.as_deref().is_some_and(|path| !path.starts_with(CUT));
        told || self.detail.as_deref().is_some_and(|detail| detail.found)
    }

    /// Is this a process of the host itself, which is in its network namespace and whose cgroup names nobody? Not if it has processes of
    /// its own, as in a container of a runtime that is not known here, nor if its cgroups do not agree which container it is.
    pub fn is_of_host(&self, host_pids: Option<u32>) -> bool {
        let own = self.task.pid_namespace.filter(|own| host_pids.is_some_and(|hosts| hosts != *own));
        let within = self.cgroup_path().and_then(cgroup::read_path);
        // What a user calls a cgroup of his does not make him another one.
        own.is_none() && within.is_none_or(|within| within.user != 0)
    }

    /// As with the container: /proc knows every hierarchy, the kernel told of one.
    fn cgroup_path(&self) -> Option<&str> {
        let read = self.detail.as_deref().and_then(|detail| detail.cgroup.as_deref());
        read.or(self.told.cgroup.as_deref())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.task.pid
    }

    /// Its network namespace.
    pub fn netns(&self) -> Netns {
        self.task.netns
    }

    /// Its task's version 2 cgroup.
    pub fn cgroup(&self) -> u64 {
        self.task.cgroup
    }

    /// The error with which its connect failed, a number of `errno.h`.
    pub fn error(&self) -> Option<u16> {
        self.error
    }

    /// How long its connect took to fail; `None` if it did not, or has not yet.
    pub fn failed_after(&self) -> Option<Duration> {
        self.failed_after
    }

    /// Its own address, if it was told.
    pub fn source(&self) -> Option<IpAddr> {
        self.keys.map(|(_, (source, _))| source.address).filter(|address| !address.is_unspecified())
    }

    /// Did its connect fail before it had a local port?
    pub fn has_no_port(&self) -> bool {
        self.has_no_port
    }

    /// TTL its packets start with.
    pub fn ttl(&self) -> Option<Ttl> {
        self.task.ttl
    }
}

/// The command line that the kernel told of, or /proc's if that one goes on where the kernel's was cut. A process may have become
/// another program between the two.
fn whole<'a>(told: Option<&'a Vec<String>>, read: Option<&'a Vec<String>>) -> Option<&'a Vec<String>> {
    let Some(told) = told else { return read };
    let goes_on = |read: &&Vec<String>| match told.split_last() {
        Some((last, before)) => last == CUT && read.len() > before.len() && read.starts_with(before),
        None => false,
    };
    Some(read.filter(goes_on).unwrap_or(told))
}

/// Is this /proc's word on the very process that connected? If not, its number was given to another one since.
fn is_of(detail: &ProcessDetail, task: &Connecting) -> bool {
    match (detail.started, task.started) {
        (Some(read), Some(told)) => read.0 / TICK == told.0 / TICK,
        _ => true,
    }
}

/// A connect that may have failed before a packet of it was made, or seen.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    at: Timestamp,
    tid: u32,
    number: u64,
    /// It gave up, and no packet was seen; else it is not known yet whether it went on.
    gave_up: bool,
}

/// A connect that failed before a packet of it was made, or seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Its number.
    pub attempt: u64,
    /// When connect() was called.
    pub began: Timestamp,
    /// When it gave up; without that, when it was called.
    pub at: Timestamp,
    /// Where to.
    pub endpoint: Endpoint,
}

/// All sockets that connect or connected to a watched endpoint, the latest [`MAX_SOCKETS`].
#[derive(Debug, Default)]
pub struct Sockets {
    /// By number, in the order of their connects. Boxed: the table has room for more than there are.
    all: HashMap<u64, Box<Socket>>,
    order: VecDeque<u64>,
    next: u64,
    /// Thread to number, from the attempt until its SYN is about to be sent.
    attempting: HashMap<u32, u64>,
    /// Attempts, and connects that gave up unseen, in their order, until it is known what became of them.
    attempts: VecDeque<Attempt>,
    /// Kernel address to number, from connect until the port is known.
    connecting: HashMap<u64, u64>,
    by_isn: HashMap<Isn, u64>,
    by_flow: HashMap<Ends, u64>,
    /// Those that closed unseen, and when.
    closed: VecDeque<(Timestamp, u64)>,
    /// What /proc said last, and where the process stood then.
    processes: HashMap<u32, ((Netns, u64), Rc<ProcessDetail>)>,
    process_order: VecDeque<u32>,
}

impl Sockets {
    /// A task is about to connect. Gives how many old sockets had to go.
    pub fn attempting(&mut self, at: Timestamp, task: &Connecting) -> u64 {
        let (number, evicted) = self.enter(at, task);
        self.attempting.insert(task.tid, number);
        self.attempts.push_back(Attempt { at, tid: task.tid, number, gave_up: false });
        if task.socket != 0 {
            self.connecting.insert(task.socket, number);
        }
        evicted
    }

    /// A task connects: a route was found. Gives how many old sockets had to go.
    pub fn connecting(&mut self, at: Timestamp, task: &Connecting) -> u64 {
        let attempt = self.attempting.get(&task.tid).copied();
        let attempted = attempt.and_then(|number| Some((number, self.all.get(&number)?)));
        let attempted = attempted
            .filter(|(_, socket)| (socket.task.pid, socket.task.started) == (task.pid, task.started))
            .map(|(number, socket)| (number, Arc::clone(&socket.told), socket.task.destination));
        let (number, evicted) = match attempted {
            Some((number, _, destination)) if destination == task.destination => {
                self.attempting.remove(&task.tid);
                if let Some(socket) = self.all.get_mut(&number) {
                    socket.process.take();
                    if *task.told != Told::default() {
                        socket.told = Arc::clone(&task.told);
                    }
                    socket.task = task.clone();
                }
                (number, 0)
            }
            attempted => {
                let (number, evicted) = self.enter(at, task);
                // Somebody wrote another destination into the same call.
                if let (Some((_, told, _)), Some(socket)) = (attempted, self.all.get_mut(&number))
                    && *task.told == Told::default()
                {
                    socket.process.take();
                    socket.told = told;
                }
                (number, evicted)
            }
        };
        if let Some(socket) = self.all.get_mut(&number) {
            socket.went_on = true;
        }
        self.connecting.insert(task.socket, number);
        evicted
    }

    fn enter(&mut self, at: Timestamp, task: &Connecting) -> (u64, u64) {
        let number = self.next;
        self.next += 1;
        // A process says what is new about it right after its connect; silence means that what is known still holds.
        let known = self.processes.get(&task.pid).filter(|(_, detail)| is_of(detail, task));
        let detail = known.map(|(_, detail)| Rc::clone(detail));
        // Of many connects of one process most tell the same.
        let latest = self.latest_of(task.pid).and_then(|latest| self.all.get(&latest));
        let told = latest.map(|latest| &latest.told).filter(|told| **told == task.told).unwrap_or(&task.told);
        let told = Arc::clone(told);
        let task = Connecting { told: Arc::clone(&told), ..task.clone() };
        let socket = Socket {
            at,
            task,
            told,
            detail,
            process: OnceCell::new(),
            error: None,
            failed_after: None,
            has_no_port: false,
            went_on: false,
            keys: None,
            closed_unseen: None,
        };
        self.all.insert(number, Box::new(socket));
        self.order.push_back(number);
        let evicted = self.make_room(at);
        (number, evicted)
    }

    /// Forgets what closed unseen, and the oldest if there are too many. Gives how many of those more may have been asked about.
    fn make_room(&mut self, now: Timestamp) -> u64 {
        while let Some(&(closed, number)) = self.closed.front() {
            if now.since(closed) < FORGET_CLOSED {
                break;
            }
            self.closed.pop_front();
            self.forget(number);
        }
        let mut evicted = 0;
        while self.all.len() > MAX_SOCKETS
            && let Some(oldest) = self.order.pop_front()
        {
            let Some(socket) = self.all.get(&oldest) else { continue };
            evicted += u64::from(socket.closed_unseen.is_none());
            self.forget(oldest);
        }
        self.tidy();
        evicted
    }

    /// Takes what was forgotten out of what only refers to it.
    fn tidy(&mut self) {
        let all = &self.all;
        room::tidy(&mut self.order, all.len(), |number| all.contains_key(number));
        room::tidy(&mut self.closed, all.len(), |(_, number)| all.contains_key(number));
        if room::is_slack(self.attempting.len() + self.connecting.len(), all.len()) {
            self.attempting.retain(|_, number| all.contains_key(number));
            self.connecting.retain(|_, number| all.contains_key(number));
            room::give_back(&mut self.attempting);
            room::give_back(&mut self.connecting);
        }
    }

    /// A socket closed, and no packet of it was seen.
    pub fn closed_unseen(&mut self, at: Timestamp, isn: u32, endpoint: Endpoint) {
        if let Some(number) = self.by_isn.get(&(isn, endpoint)).copied() {
            self.close_unseen(at, number);
        }
    }

    fn close_unseen(&mut self, at: Timestamp, number: u64) {
        if let Some(socket) = self.all.get_mut(&number)
            && socket.closed_unseen.is_none()
        {
            socket.closed_unseen = Some(at);
            self.closed.push_back((at, number));
        }
    }

    /// The connection with this first sequence number is over, and all of it was told.
    pub fn over(&mut self, isn: u32, endpoint: Endpoint) {
        if let Some(number) = self.by_isn.get(&(isn, endpoint)).copied() {
            self.forget(number);
        }
    }

    /// A socket gave up connecting, and no packet of it was seen. To be told before [`Self::connected`] is.
    pub fn unseen(&mut self, at: Timestamp, socket: &fact::Socket) {
        let Some(number) = self.connecting.get(&socket.socket).copied() else { return };
        if let Some(known) = self.all.get(&number) {
            self.attempts.push_back(Attempt { at, tid: known.task.tid, number, gave_up: true });
        }
    }

    fn forget(&mut self, number: u64) {
        let Some((isn, ends)) = self.all.remove(&number).and_then(|socket| socket.keys) else { return };
        self.tidy();
        // A later socket may have come to the same keys.
        if self.by_isn.get(&isn) == Some(&number) {
            self.by_isn.remove(&isn);
        }
        if self.by_flow.get(&ends) == Some(&number) {
            self.by_flow.remove(&ends);
        }
        room::give_back(&mut self.all);
        room::give_back(&mut self.by_isn);
        room::give_back(&mut self.by_flow);
    }

    /// When [`Self::failed`] may have something to tell.
    pub fn due(&self) -> Option<Timestamp> {
        self.attempts.front().map(|attempt| attempt.at.after(FAILED))
    }

    /// The next attempt that has failed by `now`.
    pub fn failed(&mut self, now: Timestamp) -> Option<Failed> {
        while self.due().is_some_and(|due| due <= now) {
            let Attempt { at, tid, number, gave_up } = self.attempts.pop_front()?;
            if self.attempting.get(&tid) == Some(&number) {
                self.attempting.remove(&tid);
            }
            let Some(socket) = self.all.get(&number).filter(|socket| gave_up || !socket.went_on) else {
                continue;
            };
            let failed = Failed { attempt: number, began: socket.at, at, endpoint: socket.task.destination };
            self.close_unseen(now, number);
            return Some(failed);
        }
        None
    }

    /// A socket got its port.
    pub fn sending(&mut self, socket: &fact::Socket) {
        let Some(number) = self.connecting.get(&socket.socket).copied() else { return };
        let keys = ((socket.isn, socket.destination), (socket.source, socket.destination));
        if let Some(known) = self.all.get_mut(&number) {
            known.went_on = true;
            known.keys = Some(keys);
        }
        self.by_isn.insert(keys.0, number);
        self.by_flow.insert(keys.1, number);
    }

    /// A socket got its port, if it did not have it before, and its connect() was decided.
    pub fn connected(&mut self, at: Timestamp, connected: &Connected) {
        let Connected { socket, outcome } = connected;
        self.sending(socket);
        let number = self.connecting.remove(&socket.socket);
        if let Some(known) = number.and_then(|number| self.all.get_mut(&number)) {
            known.has_no_port = connected.has_no_port();
            known.error = outcome.error();
            known.failed_after = matches!(outcome, Outcome::Failed(_)).then(|| at.since(known.at));
        }
    }

    /// Where a process that connects stands: namespace and cgroup, of its latest socket; `None` if /proc spoke of another one.
    pub fn place_of(&self, detail: &ProcessDetail) -> Option<(Netns, u64)> {
        let socket = self.all.get(&self.latest_of(detail.pid)?)?;
        is_of(detail, &socket.task).then_some((socket.task.netns, socket.task.cgroup))
    }

    fn latest_of(&self, pid: u32) -> Option<u64> {
        // The fact about a process follows its connect at once: it is among the last few.
        let mut latest = self.order.iter().rev().take(64).copied();
        latest.find(|number| self.all.get(number).is_some_and(|socket| socket.task.pid == pid))
    }

    /// /proc said more about a process. Holds for its latest socket and for those it opens until the next such fact.
    ///
    /// A process that is gone by now but connected before from the same cgroup and namespace is taken for the same as then.
    pub fn process(&mut self, detail: &ProcessDetail) {
        let Some(number) = self.latest_of(detail.pid) else { return };
        let Some(socket) = self.all.get_mut(&number) else { return };
        let place = (socket.task.netns, socket.task.cgroup);
        let found = detail.found && is_of(detail, &socket.task);
        let known = self.processes.get(&detail.pid).filter(|(at, known)| *at == place && is_of(known, &socket.task));
        let detail = match known {
            Some((_, known)) if !found || **known == *detail => Rc::clone(known),
            _ if found => Rc::new(detail.clone()),
            _ => Rc::new(ProcessDetail::gone(detail.pid)),
        };
        socket.process.take();
        socket.detail = Some(Rc::clone(&detail));
        let pid = detail.pid;
        if self.processes.insert(pid, (place, detail)).is_none() {
            self.process_order.push_back(pid);
        }
        while self.process_order.len() > MAX_PROCESSES {
            if let Some(oldest) = self.process_order.pop_front() {
                self.processes.remove(&oldest);
            }
        }
    }

    /// The socket of a connection: by its first sequence number, which survives every translation. By its addresses only where
    /// the SYN was not seen: a forged packet can bear another's addresses, not its sequence number.
    pub fn find(&self, query: Query) -> Option<&Socket> {
        let number = match query.asked {
            Asked::Attempt(number) => number,
            Asked::Connection { isn: Some(isn), .. } => *self.by_isn.get(&(isn, query.endpoint))?,
            Asked::Connection { client, isn: None } => *self.by_flow.get(&(client, query.endpoint))?,
        };
        let socket: &Socket = self.all.get(&number)?;
        let apart = query.since.since(socket.at).max(socket.at.since(query.since));
        (apart < BELIEVED).then_some(socket)
    }
}
