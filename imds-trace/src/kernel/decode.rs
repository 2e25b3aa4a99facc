//! What does a kernel record mean? Records as they lie in the ring buffer to [`Input`]s, numbers to the names that this machine has.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use diagnosis::identity::fact::{
    self, Ancestor, Connected, Connecting, Counted, Fact, Outcome, Said, Socket, TcpState, Told,
};
use diagnosis::input::Input;
use diagnosis::net::{Direction, Endpoint, Flow, Heading, Ifindex, Interface, Netns, Timestamp, Ttl, address};
use diagnosis::observation::{Drop, Hook, IPPROTO_TCP, Icmp, Observation, Place, Streams, Tcp, TcpFlags};
use imds_trace_ebpf::record::{self, state};
use zerocopy::IntoBytes;

/// Functions kept of those that led to a drop: netfilter's own and the one whose hook it was.
const MAX_CALLERS: usize = 6;
/// Processes of which it is remembered what was said.
const MAX_TASKS: usize = 4096;

/// A kernel record as it lies in the ring buffer.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// A packet at a hook, with its first payload bytes.
    Packet(&'a record::Packet, &'a [u8]),
    /// A drop.
    Drop(&'a record::Drop),
    /// An ICMP error.
    IcmpError(&'a record::IcmpError),
    /// A task is about to connect.
    Attempt(&'a record::Connect, Option<&'a record::Task>),
    /// A connect. Without its task where the attempt told of it.
    Connect(&'a record::Connect, Option<&'a record::Task>),
    /// The port of one, about to be used or used.
    Connected(&'a record::Connected),
    /// What the TCP of one had counted.
    Counted(&'a record::Counted),
}

/// What only the machine knows: names for the numbers in a record.
pub trait Names {
    /// The namespace in which the hooks are attached.
    fn host_netns(&self) -> Netns;
    /// The name of an interface in that namespace.
    fn interface(&self, index: Ifindex) -> Option<Arc<str>>;
    /// The function at an address in the kernel's text.
    fn symbol(&self, address: u64) -> Option<String>;
    /// A drop reason.
    fn reason(&self, number: u32) -> Option<String>;
    /// Does a socket's TCP say what it counted?
    fn counts(&self) -> bool;
    /// Is this a watched endpoint?
    fn is_endpoint(&self, address: std::net::IpAddr) -> bool;
}

/// The record's meaning; `None` if it has none. `streams` keeps what HTTP messages have begun, and all that is ever kept of payload.
/// `tasks` keeps what was said of tasks.
pub fn from_record(record: Record<'_>, names: &impl Names, streams: &mut Streams, tasks: &mut Tasks) -> Option<Input> {
    Some(match record {
        Record::Packet(packet, payload) => {
            let (heading, flow, tcp) = headers(&packet.network, |address| names.is_endpoint(address));
            let hook = hook(packet.ifindex, packet.direction, names);
            let heads = tcp.map(|tcp| streams.heads(&hook, flow, tcp, payload)).unwrap_or_default();
            Input::Observation(Observation {
                at: Timestamp(packet.header.at),
                place: Place::Hook(hook),
                heading,
                flow,
                ttl: Ttl(packet.network.ttl),
                ip_id: packet.network.ip_id,
                protocol: packet.network.protocol,
                tcp,
                heads,
                icmp: None,
                redirected: packet.network.redirected == 1,
            })
        }
        Record::IcmpError(error) => {
            let (_, quoted, tcp) = headers(&error.network, |address| names.is_endpoint(address));
            Input::Observation(Observation {
                at: Timestamp(error.header.at),
                place: Place::Hook(hook(error.ifindex, error.direction, names)),
                heading: Heading::FromImds,
                flow: Flow { source: quoted.destination, destination: quoted.source },
                ttl: Ttl(error.network.ttl),
                ip_id: error.network.ip_id,
                protocol: error.network.protocol,
                // Of the quoted header only the sequence number is sure to be there.
                tcp: tcp.map(|tcp| Tcp { seq: tcp.seq, ack: 0, flags: TcpFlags(0), len: 0 }),
                heads: Vec::new(),
                icmp: Some(Icmp {
                    kind: error.icmp_type,
                    code: error.icmp_code,
                    sender: address(error.network.version, error.sender),
                }),
                redirected: false,
            })
        }
        Record::Drop(drop) => {
            let (heading, flow, tcp) = headers(&drop.network, |address| names.is_endpoint(address));
            let netns = Netns(drop.netns);
            let interface = (drop.ifindex != 0).then(|| Interface {
                netns,
                index: Ifindex(drop.ifindex),
                name: text(&drop.ifname).into(),
            });
            Input::Observation(Observation {
                at: Timestamp(drop.header.at),
                place: Place::Drop(Drop {
                    location: names.symbol(drop.location),
                    reason: names.reason(drop.reason),
                    interface,
                    netns,
                    callers: callers(drop, names),
                }),
                heading,
                flow,
                ttl: Ttl(drop.network.ttl),
                ip_id: drop.network.ip_id,
                protocol: drop.network.protocol,
                tcp,
                heads: Vec::new(),
                icmp: None,
                redirected: drop.network.redirected == 1,
            })
        }
        Record::Attempt(attempt, task) => said(attempt.header.at, Said::Attempting(connecting(attempt, task, tasks))),
        Record::Connect(connect, task) => said(connect.header.at, Said::Connecting(connecting(connect, task, tasks))),
        Record::Connected(connected) => {
            let socket = Socket {
                socket: connected.socket,
                source: end(connected.version, connected.source, connected.source_port),
                destination: end(connected.version, connected.destination, connected.destination_port),
                isn: connected.isn,
                netns: Netns(connected.netns),
            };
            let outcome = match connected.established {
                1 => Outcome::Established { counts: names.counts() },
                _ => Outcome::Failed((connected.error != 0).then_some(connected.error)),
            };
            said(
                connected.header.at,
                match connected.header.kind {
                    record::kind::SENDING => Said::Sending(socket),
                    _ => Said::Connected(Connected { socket, outcome }),
                },
            )
        }
        Record::Counted(counted) => said(counted.socket.header.at, Said::Counted(self::counted(counted)?)),
    })
}

/// `None` for a state of which the kernel half does not tell.
fn counted(counted: &record::Counted) -> Option<Counted> {
    let socket = &counted.socket;
    Some(Counted {
        socket: socket.socket,
        source: end(socket.version, socket.source, socket.source_port),
        destination: end(socket.version, socket.destination, socket.destination_port),
        isn: socket.isn,
        netns: Netns(socket.netns),
        established: socket.established == 1,
        received: counted.received,
        acked: counted.acked,
        error: (socket.error != 0).then_some(socket.error),
        state: match counted.state {
            state::CLOSE_WAIT => TcpState::CloseWait,
            state::FIN_WAIT1 => TcpState::FinWait,
            state::LAST_ACK => TcpState::LastAck,
            state::CLOSE => TcpState::Closed,
            _ => return None,
        },
    })
}

fn said(at: u64, said: Said) -> Input {
    Input::Fact(Fact { at: Timestamp(at), said })
}

fn hook(index: u32, direction: u8, names: &impl Names) -> Hook {
    let index = Ifindex(index);
    let name = names.interface(index).unwrap_or_else(|| format!("if{}", index.0).into());
    let ingress = direction == record::direction::INGRESS;
    let direction = if ingress { Direction::Ingress } else { Direction::Egress };
    Hook { interface: Interface { netns: names.host_netns(), index, name }, direction }
}

/// Functions that led to a drop, from the caller of the one that dropped on. What lies before it is the tracing itself, and the
/// function that frees.
fn callers(drop: &record::Drop, names: &impl Names) -> Vec<String> {
    let Some(location) = names.symbol(drop.location) else { return Vec::new() };
    let stack = drop.callers.iter().take_while(|address| **address != 0).map(|address| names.symbol(*address));
    stack.skip_while(|function| function.as_ref() != Some(&location)).skip(1).take(MAX_CALLERS).flatten().collect()
}

fn connecting(connect: &record::Connect, task: Option<&record::Task>, tasks: &mut Tasks) -> Connecting {
    Connecting {
        socket: connect.socket,
        destination: end(connect.version, connect.destination, connect.destination_port),
        netns: Netns(connect.netns),
        pid: connect.tgid,
        tid: connect.tid,
        uid: connect.uid,
        gid: connect.gid,
        comm: fact::comm(&text(&connect.comm)),
        cgroup: connect.cgroup,
        ttl: (connect.ttl != 0).then_some(Ttl(connect.ttl)),
        started: (connect.started != 0).then_some(Timestamp(connect.started)),
        pid_namespace: (connect.pid_namespace != 0).then_some(connect.pid_namespace),
        inner_pid: (connect.inner_pid != 0).then_some(connect.inner_pid),
        told: task.map(|task| tasks.told(connect.tgid, task)).unwrap_or_default(),
    }
}

/// What was said last of each process. Most connects are of processes that connected before, and masking is what costs most of
/// reading a record: what is said again word for word is masked once.
#[derive(Debug, Default)]
pub struct Tasks {
    known: HashMap<u32, (Digest, Arc<Told>)>,
    keys: (RandomState, RandomState),
}

impl Tasks {
    fn told(&mut self, pid: u32, task: &record::Task) -> Arc<Told> {
        let said = digest(task, &self.keys);
        if let Some((known, told)) = self.known.get(&pid)
            && *known == said
        {
            return Arc::clone(told);
        }
        if self.known.len() >= MAX_TASKS {
            self.known.clear();
        }
        let told = Arc::new(told(task));
        self.known.insert(pid, (said, Arc::clone(&told)));
        told
    }
}

/// Of everything that counts in a task's record. Keyed, with keys that nobody sees: the record itself may hold secrets.
type Digest = (u64, u64);

fn digest(task: &record::Task, keys: &(RandomState, RandomState)) -> Digest {
    let said = (
        task.ancestors.as_bytes(),
        (counting(&task.argv, task.argv_len), task.argv_len, task.argv_cut),
        (counting(&task.exe.names, task.exe.len), task.exe.len, task.exe.state),
        (counting(&task.cgroup.names, task.cgroup.len), task.cgroup.len, task.cgroup.state),
    );
    (keys.0.hash_one(said), keys.1.hash_one(said))
}

/// What the kernel half read of a task, secrets masked: nothing else of it is kept.
fn told(task: &record::Task) -> Told {
    let ancestors = task.ancestors.iter().take_while(|ancestor| ancestor.pid != 0);
    Told {
        exe: path(&task.exe),
        argv: fact::command_line(&beginning(&task.argv, task.argv_len), task.argv_cut != 0),
        cgroup: path(&task.cgroup),
        ancestors: ancestors
            .map(|ancestor| Ancestor { pid: ancestor.pid, comm: fact::comm(&text(&ancestor.comm)) })
            .collect(),
    }
}

fn path(path: &record::Path) -> Option<String> {
    let is_known = path.state != record::path::UNKNOWN;
    is_known.then(|| fact::path(&beginning(&path.names, path.len), path.state == record::path::CUT))
}

/// The first `len` bytes, those that were written. What is not UTF-8 becomes U+FFFD.
fn beginning(bytes: &[u8], len: u16) -> String {
    String::from_utf8_lossy(counting(bytes, len)).into_owned()
}

/// The first `len` bytes, or as many as there are.
fn counting(bytes: &[u8], len: u16) -> &[u8] {
    &bytes[..usize::from(len).min(bytes.len())]
}

fn end(version: u8, bytes: [u8; 16], port: u16) -> Endpoint {
    Endpoint { address: address(version, bytes), port }
}

/// A NUL-padded name. What is not UTF-8 becomes U+FFFD.
fn text(bytes: &[u8; 16]) -> String {
    let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}

/// Converts what the kernel half read from the headers. `endpoints` tells which end is IMDS.
fn headers(network: &record::Network, is_endpoint: impl Fn(std::net::IpAddr) -> bool) -> (Heading, Flow, Option<Tcp>) {
    let end = |bytes, port| Endpoint { address: address(network.version, bytes), port };
    let flow = Flow {
        source: end(network.source, network.source_port),
        destination: end(network.destination, network.destination_port),
    };
    let to_imds = network.redirected == 1 || is_endpoint(flow.destination.address);
    let heading = if to_imds { Heading::ToImds } else { Heading::FromImds };
    let is_tcp = network.protocol == IPPROTO_TCP && network.later_fragment == 0 && network.source_port != 0;
    let tcp = is_tcp.then_some(Tcp {
        seq: network.seq,
        ack: network.ack,
        flags: TcpFlags(network.tcp_flags),
        len: network.payload_len,
    });
    (heading, flow, tcp)
}

#[cfg(test)]
mod tests {
    use imds_trace_ebpf::record::Task;

    use super::*;

    const TOKEN: &str = "AQAEAEXAMPLEtokenEXAMPLEtokenEXAMPLEtoken0123456789abc==";

    /// A task whose command line the kernel half read as far as it does.
    fn task(argv: &[&str]) -> Task {
        let whole: Vec<u8> = argv.iter().flat_map(|argument| argument.bytes().chain([0])).collect();
        // What lay in the ring buffer before.
        let mut task = Task { argv: [b'x'; record::ARGV], ..Task::default() };
        let len = whole.len().min(record::ARGV);
        task.argv[..len].copy_from_slice(&whole[..len]);
        task.argv_len = len as u16;
        task.argv_cut = u8::from(whole.len() > len);
        task
    }

    fn names(names: &[u8], state: u16) -> record::Path {
        let mut path = record::Path { names: [b'x'; record::PATH + record::NAME], ..record::Path::default() };
        path.names[..names.len()].copy_from_slice(names);
        (path.len, path.state) = (names.len() as u16, state);
        path
    }

    #[test]
    fn a_command_line_is_kept_with_its_secrets_masked() {
        let header = format!("X-aws-ec2-metadata-token: {TOKEN}");
        let argv = told(&task(&["curl", "-s", TOKEN, "", "-H", &header])).argv.expect("there is one");
        assert_eq!(argv, ["curl", "-s", "***", "", "-H", "X-aws-ec2-metadata-token:***"]);
        assert_eq!(told(&task(&[])).argv, None);
    }

    #[test]
    fn what_a_process_says_anew_is_told_and_what_it_repeats_is_the_same() {
        let mut tasks = Tasks::default();
        let shell = task(&["sh", "-c", "curl"]);
        let first = tasks.told(7, &shell);
        assert_eq!(tasks.told(7, &shell), first);
        assert_eq!(*first, told(&shell));
        // The same process after its exec, and in another cgroup.
        let curl = task(&["curl", TOKEN]);
        assert_eq!(*tasks.told(7, &curl), told(&curl));
        let moved = Task { cgroup: names(b"b\0a\0", record::path::WHOLE), ..curl };
        assert_eq!(tasks.told(7, &moved).cgroup.as_deref(), Some("/a/b"));
        let cut = Task { argv_cut: 1, ..curl };
        assert_eq!(*tasks.told(7, &cut), told(&cut));
        // What lies behind the bytes that count says nothing.
        let mut rest = cut;
        rest.argv[record::ARGV - 1] = b'?';
        assert_eq!(*tasks.told(7, &rest), told(&cut));
    }

    #[test]
    fn of_a_secret_that_is_cut_nothing_is_kept() {
        for before in 256 - TOKEN.len() - 6..256 {
            let padding = "a".repeat(before);
            let argv = told(&task(&["curl", &padding, TOKEN])).argv.expect("there is one");
            let is_kept = |argument: &String| ["curl", &padding, "***", "…"].contains(&argument.as_str());
            assert!(argv.iter().all(is_kept), "{before}: {argv:?}");
            let whole = "curl".len() + 1 + before + 1 + TOKEN.len() < record::ARGV;
            assert_eq!(argv.last().map(String::as_str), Some(if whole { "***" } else { "…" }), "{before}");
        }
    }

    #[test]
    fn a_path_is_joined_from_its_end() {
        let exe = names(b"python3.11\0bin\0usr\0", record::path::WHOLE);
        let told_of = |exe| told(&Task { exe, ..Task::default() }).exe;
        assert_eq!(told_of(exe).as_deref(), Some("/usr/bin/python3.11"));
        assert_eq!(told_of(names(b"c\0b\0", record::path::CUT)).as_deref(), Some("…/b/c"));
        assert_eq!(told_of(names(b"", record::path::WHOLE)).as_deref(), Some("/"));
        assert_eq!(told_of(names(b"half", record::path::UNKNOWN)), None);
        assert_eq!(told_of(names(b"\xff\x1b\0", record::path::WHOLE)).as_deref(), Some("/\u{fffd}\u{1b}"));
    }

    #[test]
    fn a_state_that_the_kernel_half_does_not_tell_of_has_no_meaning() {
        let mut record =
            record::Counted { received: 5, acked: 3, state: state::FIN_WAIT1, ..record::Counted::default() };
        record.socket.version = 4;
        record.socket.established = 1;
        let counted = counted(&record).expect("it has a meaning");
        assert_eq!((counted.received, counted.acked, counted.state), (5, 3, TcpState::FinWait));
        assert_eq!((counted.established, counted.error), (true, None));
        record.state = state::FIN_WAIT2;
        assert!(self::counted(&record).is_none());
    }

    #[test]
    fn numbers_out_of_bounds_do_no_harm() {
        let mut task = task(&["a"]);
        (task.argv_len, task.exe.len, task.exe.state) = (u16::MAX, u16::MAX, 9);
        assert!(told(&task).argv.is_some_and(|argv| argv.len() == 2));
    }
}
