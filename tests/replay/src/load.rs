//! What does a busy host's tracer take in? Any number of exchanges of a few containers, made without a kernel.
//!
//! Each is a whole connection: SYN, SYN-ACK, request, answer, both FINs, seen at the bridge and at the uplink. Tokens and a role's
//! credentials by turns; the last of the containers asks without a token.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use diagnosis::identity::fact::{
    Ancestor, Connected, Connecting, ContainerDetail, Fact, Outcome, ProcessDetail, Said, Socket,
};
use diagnosis::input::Input;
use diagnosis::net::{Direction, Endpoint, Flow, Heading, Ifindex, Interface, Timestamp, Ttl};
use diagnosis::observation::{Head, Hook, Observation, Place, RequestHead, ResponseHead, Tcp, TcpFlags};

use crate::scenario::{HOST_NETNS, id_of};

/// The containers.
pub const CONTAINERS: [&str; 5] = ["job-1", "job-2", "job-3", "job-4", "legacy"];
/// The role that they ask for.
pub const ROLE: &str = "ci-runner";
/// Where it begins, ns since boot; between two exchanges; and between two things of one exchange.
const BEGIN: u64 = 1_000_000_000_000;
const BETWEEN: u64 = 10_000_000;
const STEP: u64 = 50_000;
const IMDS: Endpoint = Endpoint { address: IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), port: 80 };
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 10));

/// What is told before the first exchange.
pub fn introduction() -> Vec<Input> {
    let fact = |said| Input::Fact(Fact { at: Timestamp(BEGIN - 1_000_000_000), said });
    let uplinks = Said::Uplinks {
        interfaces: vec![Ifindex(2)],
        inward: Vec::new(),
        addresses: vec![HOST],
        networks: Vec::new(),
        watched: true,
    };
    let containers = (0u8..).zip(CONTAINERS).map(|(number, name)| {
        let label = ("com.gitlab.gitlab-runner.job.id".to_owned(), format!("42{number}"));
        Said::Container(ContainerDetail {
            id: id_of(name),
            name: Some(name.to_owned()),
            image: Some(format!("registry.example/{name}:1")),
            labels: Arc::new([label].into_iter().collect()),
            netns: None,
            pid: None,
            addresses: vec![inside(number)],
            ..ContainerDetail::default()
        })
    });
    let counters = Said::InHdrErrors { netns: HOST_NETNS, v4: 7, v6: 0 };
    [counters, uplinks].into_iter().chain(containers).map(fact).collect()
}

/// What is told behind the last of `count` exchanges.
pub fn conclusion(count: u64) -> Vec<Input> {
    let at = Timestamp(BEGIN + count * BETWEEN + 600_000_000_000);
    vec![
        Input::Tick { at },
        Input::Fact(Fact { at, said: Said::InHdrErrors { netns: HOST_NETNS, v4: 7, v6: 0 } }),
        Input::Tick { at },
    ]
}

/// When an exchange of [`exchange`] begins.
pub fn begins(number: u64) -> Timestamp {
    Timestamp(BEGIN + number * BETWEEN)
}

fn inside(container: u8) -> IpAddr {
    Ipv4Addr::new(172, 17, 0, 2 + container).into()
}

/// The inputs of one exchange, at a pace that a host sees every day.
pub fn exchange(number: u64) -> Vec<Input> {
    exchange_at(number, begins(number))
}

/// The inputs of one exchange that begins at this moment.
pub fn exchange_at(number: u64, begins: Timestamp) -> Vec<Input> {
    let at = begins.0;
    let which = u8::try_from(number % CONTAINERS.len() as u64).unwrap_or(0);
    let round = number / CONTAINERS.len() as u64;
    let (name, pid) = (CONTAINERS[usize::from(which)], 4_700 + u32::from(which));
    let port = 30_000 + u16::try_from(number % 30_000).unwrap_or(0);
    let isn = u32::try_from(number.wrapping_mul(4_001) & 0xffff_ffff).unwrap_or(0);
    let source = Endpoint { address: inside(which), port };
    let netns = diagnosis::net::Netns(20 + u32::from(which));
    let socket = 0xffff_8880_0000_0000 + number * 0x1000;
    let comm = if name == "legacy" { "curl" } else { "python3" };
    let task = Connecting {
        socket,
        destination: IMDS,
        netns,
        pid,
        tid: pid,
        uid: 1000 + u32::from(which),
        gid: 100,
        comm: comm.to_owned(),
        cgroup: 100 + u64::from(which),
        ttl: Some(Ttl(64)),
        started: None,
        pid_namespace: None,
        inner_pid: None,
        told: Arc::default(),
    };
    let connected = Connected {
        socket: Socket { socket, source, destination: IMDS, isn, netns },
        outcome: Outcome::Established { counts: false },
    };
    let mut inputs = vec![fact(at, Said::Connecting(task))];
    if round == 0 {
        inputs.push(fact(at, Said::Process(process(pid, name, comm))));
    }
    inputs.push(fact(at + 1_000, Said::Connected(connected)));
    let path = format!("/latest/meta-data/iam/security-credentials/{ROLE}");
    let request = match (name, round % 2) {
        ("legacy", _) => RequestHead { method: "GET".into(), path, ..RequestHead::default() },
        (_, 0) => RequestHead {
            method: "PUT".into(),
            path: "/latest/api/token".into(),
            requested_ttl: Some(21_600),
            ..RequestHead::default()
        },
        _ => RequestHead { method: "GET".into(), path, token: true, ..RequestHead::default() },
    };
    let answer = ResponseHead {
        status: 200,
        content_length: None,
        token_ttl: None,
        server: Some("EC2ws".into()),
        ends: None,
        begins: None,
    };
    let (seq, ack) = (isn.wrapping_add(1), isn.wrapping_add(500_000_001));
    let ip_id = u16::try_from(number % 60_000).unwrap_or(0);
    let client = (source, Endpoint { address: HOST, port });
    let packet = |step: u64, flags: u8, (seq, ack, len): (u32, u32, u32), head: Option<Head>, out: bool| {
        let tcp = Tcp { seq, ack, flags: TcpFlags(flags), len };
        let id = ip_id.wrapping_mul(7).wrapping_add(u16::try_from(step).unwrap_or(0));
        packet(at + 2_000 + step * STEP * 2, tcp, id, head, client, out)
    };
    let (asks, answers) = (Some(Head::Request(request)), Some(Head::Response(answer)));
    let packets = [
        packet(0, TcpFlags::SYN, (isn, 0, 0), None, true),
        packet(1, TcpFlags::SYN | TcpFlags::ACK, (ack.wrapping_sub(1), seq, 0), None, false),
        packet(2, TcpFlags::ACK, (seq, ack, 200), asks, true),
        packet(3, TcpFlags::ACK, (ack, seq.wrapping_add(200), 300), answers, false),
        packet(4, TcpFlags::FIN | TcpFlags::ACK, (seq.wrapping_add(200), ack.wrapping_add(300), 0), None, true),
        packet(5, TcpFlags::FIN | TcpFlags::ACK, (ack.wrapping_add(300), seq.wrapping_add(201), 0), None, false),
        packet(6, TcpFlags::ACK, (seq.wrapping_add(201), ack.wrapping_add(301), 0), None, true),
    ];
    inputs.extend(packets.into_iter().flatten());
    inputs
}

fn fact(at: u64, said: Said) -> Input {
    Input::Fact(Fact { at: Timestamp(at), said })
}

fn process(pid: u32, container: &str, comm: &str) -> ProcessDetail {
    ProcessDetail {
        found: true,
        exe: Some(format!("/usr/bin/{comm}")),
        argv: Some(vec![comm.to_owned(), "fetch".to_owned()]),
        cgroup: Some(format!("/docker/{}", id_of(container))),
        container: Some(id_of(container)),
        ancestors: vec![Ancestor { pid: 4_600, comm: "sh".into() }, Ancestor { pid: 1, comm: "init".into() }],
        ..ProcessDetail::gone(pid)
    }
}

/// A packet at the bridge and at the uplink.
fn packet(at: u64, tcp: Tcp, ip_id: u16, head: Option<Head>, client: (Endpoint, Endpoint), out: bool) -> [Input; 2] {
    let (inside, outside) = client;
    let hop = |index: u32, direction: Direction, ttl: u8, client: Endpoint, later: u64| {
        let name = if index == 2 { "ens5" } else { "docker0" };
        let interface = Interface { netns: HOST_NETNS, index: Ifindex(index), name: name.into() };
        let (source, destination) = if out { (client, IMDS) } else { (IMDS, client) };
        Input::Observation(Observation {
            at: Timestamp(at + later),
            place: Place::Hook(Hook { interface, direction }),
            heading: if out { Heading::ToImds } else { Heading::FromImds },
            flow: Flow { source, destination },
            ttl: Ttl(ttl),
            ip_id,
            protocol: 6,
            tcp: Some(tcp),
            heads: head.clone().into_iter().collect(),
            icmp: None,
            redirected: false,
        })
    };
    if out {
        [hop(3, Direction::Ingress, 64, inside, 0), hop(2, Direction::Egress, 63, outside, STEP)]
    } else {
        [hop(2, Direction::Ingress, 3, outside, 0), hop(3, Direction::Egress, 2, inside, STEP)]
    }
}
