//! Is an answer told of the request that it answers, in whatever segments both come?
//!
//! Random connections of one container: requests and answers as they are, cut into segments anywhere, swapped on their way, dropped and sent
//! again in other segments, one after the other or all at once. What is true of each is known; less may be told. `IMDS_TRACE_MODEL_RUNS`
//! chooses how many.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use diagnosis::config::{Claim, Expectation, Telling};
use diagnosis::finding::Confidence;
use diagnosis::identity::fact::{Connected, Connecting, Fact, Outcome, ProcessDetail, Said, Socket};
use diagnosis::input::Input;
use diagnosis::net::{Direction, Endpoint, Flow, Heading, Ifindex, Interface, Netns, Timestamp, Ttl};
use diagnosis::observation::{Drop, Hook, Observation, Place, Streams, Tcp, TcpFlags};
use diagnosis::pipeline::Host;
use imds_trace_replay_tests::load;
use imds_trace_replay_tests::random::Random;
use imds_trace_replay_tests::scenario::{HOST_NETNS, conclude_telling, id_of};
use libtest_mimic::{Failed, Trial};

/// Connections that are tried.
const RUNS: u64 = 1_500;
/// The kernel half keeps so much of a segment (`imds_trace_ebpf::record::SNAP`).
const SNAP: usize = 1_024;
const ACK: u8 = TcpFlags::ACK;
const PUSH: u8 = 0x18;
const MS: u64 = 1_000_000;
/// Longer than a connection without news is looked at.
const LONG: u64 = 40_000 * MS;
const TOKEN: &str = "AQAEAEXAMPLEtokenEXAMPLEtokenEXAMPLEtoken0123456789abc==";

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    vec![Trial::test("segments::an_answer_is_told_of_what_it_answers", || {
        let runs = std::env::var("IMDS_TRACE_MODEL_RUNS").ok().map_or(Ok(RUNS), |runs| runs.parse())?;
        for seed in 1..=runs {
            tried(seed).map_err(|error| Failed::from(format!("seed {seed}: {error:#}")))?;
        }
        Ok(())
    })]
}

/// A segment on its way.
struct Segment {
    at: u64,
    to_imds: bool,
    tcp: Tcp,
    bytes: Vec<u8>,
    /// A firewall of this host drops it.
    lost: bool,
}

/// What is true.
#[derive(Default)]
struct Truth {
    /// How often each request was answered with each status.
    got: BTreeMap<(String, String, u16), usize>,
    asked_v1: bool,
    /// A request got no answer, and is nobody waiting before it.
    silent: bool,
    /// Something got no answer.
    failed: bool,
}

/// One connection as it is made.
struct Connection {
    random: Random,
    now: u64,
    /// The next byte of each side: the client's, and IMDS's.
    next: [u32; 2],
    segments: Vec<Segment>,
}

impl Connection {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let next = [random.below(usize::MAX) as u32, random.below(usize::MAX) as u32];
        Self { random, now: load::begins(0).0 + MS, next, segments: Vec::new() }
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.random.below(100) < percent
    }

    fn pass(&mut self, time: u64) {
        self.now += time;
    }

    /// Sends bytes with this number, without moving on.
    fn send(&mut self, to_imds: bool, seq: u32, flags: u8, bytes: &[u8], lost: bool) {
        let ack = if flags & ACK == 0 { 0 } else { self.next[usize::from(to_imds)] };
        let tcp = Tcp { seq, ack, flags: TcpFlags(flags), len: bytes.len() as u32 };
        self.segments.push(Segment { at: self.now, to_imds, tcp, bytes: bytes.to_vec(), lost });
        self.pass(MS / 10);
    }

    /// Sends what has no payload, and moves on.
    fn control(&mut self, to_imds: bool, flags: u8) {
        let side = usize::from(!to_imds);
        self.send(to_imds, self.next[side], flags, &[], false);
        self.next[side] = self.next[side].wrapping_add(u32::from(flags & (TcpFlags::SYN | TcpFlags::FIN) != 0));
    }

    /// Sends a message in one to three segments, in their order or another.
    fn cut(&mut self, to_imds: bool, seq: u32, bytes: &[u8], lost: bool) {
        let mut cuts: Vec<usize> = (0..self.random.below(3)).map(|_| self.random.below(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut pieces: Vec<(usize, usize)> = cuts.windows(2).map(|pair| (pair[0], pair[1])).collect();
        pieces.retain(|(from, to)| from < to);
        if self.chance(15) {
            pieces.reverse();
        }
        for (from, to) in pieces {
            self.send(to_imds, seq.wrapping_add(from as u32), PUSH, &bytes[from..to], lost);
        }
    }

    /// Sends a message until it has arrived; moves on.
    fn deliver(&mut self, to_imds: bool, bytes: &[u8]) {
        let side = usize::from(!to_imds);
        let seq = self.next[side];
        if self.chance(15) {
            self.cut(to_imds, seq, bytes, true);
            self.pass(200 * MS);
        }
        self.cut(to_imds, seq, bytes, false);
        if self.chance(10) {
            self.pass(200 * MS);
            self.cut(to_imds, seq, bytes, false);
        }
        self.next[side] = seq.wrapping_add(bytes.len() as u32);
        self.pass(MS / 2);
    }
}

/// A request, and what IMDS answers.
struct Ask {
    method: &'static str,
    path: String,
    token: bool,
    status: u16,
}

impl Ask {
    fn random(number: usize, random: &mut Random) -> Self {
        let (method, path, token) = match random.below(5) {
            0 => ("PUT", "/latest/api/token".to_owned(), false),
            kind @ (1 | 2) => ("GET", format!("/latest/meta-data/x{number}"), kind == 1),
            kind => ("GET", format!("/latest/meta-data/iam/security-credentials/role{number}"), kind == 3),
        };
        let status = [200, 200, 200, 403, 404, 401, 503][random.below(7)];
        Self { method, path, token, status }
    }

    fn request(&self, padding: usize) -> Vec<u8> {
        let header = match (self.method, self.token) {
            ("PUT", _) => "X-aws-ec2-metadata-token-ttl-seconds: 21600\r\n".to_owned(),
            (_, true) => format!("X-aws-ec2-metadata-token: {TOKEN}\r\n"),
            (_, false) => String::new(),
        };
        let padding = "p".repeat(padding);
        format!("{} {} HTTP/1.1\r\nHost: 169.254.169.254\r\n{header}X-Pad: {padding}\r\n\r\n", self.method, self.path)
            .into_bytes()
    }

    fn answer(&self, random: &mut Random) -> Vec<u8> {
        let (header, body) = match (self.status, self.method) {
            (200, "PUT") => ("X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21600\r\n", TOKEN.to_owned()),
            (200, _) => ("", "b".repeat([1, 20, 3_000][random.below(3)])),
            (_, _) => ("", ["", "<p>HTTP/1.1 200 OK\r\n\r\n</p>"][random.below(2)].to_owned()),
        };
        let interim = if random.below(12) == 0 { "HTTP/1.1 100 Continue\r\n\r\n" } else { "" };
        let (status, length) = (self.status, body.len());
        format!("{interim}HTTP/1.1 {status} X\r\nServer: EC2ws\r\n{header}Content-Length: {length}\r\n\r\n{body}")
            .into_bytes()
    }
}

/// A connection, and what is true of it.
fn connection(seed: u64) -> (Vec<Segment>, Truth) {
    let mut connection = Connection::new(seed);
    let mut truth = Truth::default();
    connection.control(true, TcpFlags::SYN);
    connection.control(false, TcpFlags::SYN | ACK);
    connection.control(true, ACK);
    let count = 1 + connection.random.below(3);
    let asks: Vec<Ask> = (0..count).map(|number| Ask::random(number, &mut connection.random)).collect();
    let requests: Vec<Vec<u8>> =
        asks.iter().map(|ask| ask.request([0, 0, 30, 300][connection.random.below(4)])).collect();
    let at_once = connection.chance(20);
    if at_once {
        connection.deliver(true, &requests.concat());
    }
    for (ask, request) in asks.iter().zip(&requests) {
        if !at_once {
            connection.deliver(true, request);
        }
        if connection.chance(8) {
            (truth.silent, truth.failed) = (true, true);
            connection.pass(2_000 * MS);
            connection.control(true, [TcpFlags::FIN, TcpFlags::RST][seed as usize % 2] | ACK);
            break;
        }
        let answer = ask.answer(&mut connection.random);
        if connection.chance(8) {
            truth.failed = true;
            for _ in 0..3 {
                connection.cut(false, connection.next[1], &answer, true);
                connection.pass(300 * MS);
            }
            connection.control(true, TcpFlags::FIN | ACK);
            break;
        }
        connection.deliver(false, &answer);
        connection.control(true, ACK);
        *truth.got.entry((ask.method.to_owned(), ask.path.clone(), ask.status)).or_default() += 1;
        let pause = if at_once { MS } else { [MS, 50 * MS, 6_000 * MS, LONG][connection.random.below(4)] };
        connection.pass(pause);
    }
    truth.asked_v1 = asks.iter().zip(0..).any(|(ask, number)| {
        let was_sent = at_once || number <= truth.got.values().sum::<usize>();
        was_sent && ask.method == "GET" && !ask.token
    });
    if !truth.failed && connection.chance(70) {
        connection.control(true, TcpFlags::FIN | ACK);
        connection.control(false, TcpFlags::FIN | ACK);
        connection.control(true, ACK);
    }
    (connection.segments, truth)
}

/// What the hooks see of it.
fn seen(segments: &[Segment]) -> Vec<Input> {
    let end = |address: [u8; 4], port| Endpoint { address: std::net::Ipv4Addr::from(address).into(), port };
    let (imds, inside, outside) =
        (end([169, 254, 169, 254], 80), end([172, 17, 0, 2], 40_000), end([10, 0, 0, 10], 40_000));
    let hook = |index: u32, name: &str, direction| {
        let interface = Interface { netns: HOST_NETNS, index: Ifindex(index), name: name.into() };
        Hook { interface, direction }
    };
    let mut streams = Streams::default();
    let mut inputs = introduced(segments[0].at, segments[0].tcp.seq, inside, imds);
    for (number, segment) in segments.iter().enumerate() {
        let (heading, near, far) = match segment.to_imds {
            true => (
                Heading::ToImds,
                (hook(3, "docker0", Direction::Ingress), inside),
                (hook(2, "ens5", Direction::Egress), outside),
            ),
            false => (
                Heading::FromImds,
                (hook(2, "ens5", Direction::Ingress), outside),
                (hook(3, "docker0", Direction::Egress), inside),
            ),
        };
        let flow = |client| match segment.to_imds {
            true => Flow { source: client, destination: imds },
            false => Flow { source: imds, destination: client },
        };
        let mut observe = |later: u64, ttl: u8, (place, client): (Place, Endpoint)| {
            let payload = &segment.bytes[..segment.bytes.len().min(SNAP)];
            let heads = match &place {
                Place::Hook(hook) => streams.heads(hook, flow(client), segment.tcp, payload),
                Place::Drop(_) => Vec::new(),
            };
            inputs.push(Input::Observation(Observation {
                at: Timestamp(segment.at + later),
                place,
                heading,
                flow: flow(client),
                ttl: Ttl(ttl),
                ip_id: number as u16,
                protocol: 6,
                tcp: Some(segment.tcp),
                heads,
                icmp: None,
                redirected: false,
            }));
        };
        let dropped = Drop {
            location: Some("nft_do_chain".to_owned()),
            reason: Some("NETFILTER_DROP".to_owned()),
            interface: Some(near.0.interface.clone()),
            netns: HOST_NETNS,
            callers: Vec::new(),
        };
        observe(0, 64, (Place::Hook(near.0), near.1));
        match segment.lost {
            true => observe(5_000, 64, (Place::Drop(dropped), near.1)),
            false => observe(5_000, 63, (Place::Hook(far.0), far.1)),
        }
    }
    let last = segments.last().map_or(0, |last| last.at) + 60_000 * MS;
    inputs.push(Input::Tick { at: Timestamp(last) });
    inputs
}

/// Who the client is.
fn introduced(at: u64, isn: u32, source: Endpoint, destination: Endpoint) -> Vec<Input> {
    let (netns, pid, name) = (Netns(20), 4_711, load::CONTAINERS[0]);
    let socket = 0xffff_8880_0000_0000;
    let connecting = Connecting {
        socket,
        destination,
        netns,
        pid,
        tid: pid,
        uid: 0,
        gid: 0,
        comm: "curl".to_owned(),
        cgroup: 100,
        ttl: Some(Ttl(64)),
        started: None,
        pid_namespace: None,
        inner_pid: None,
        told: std::sync::Arc::default(),
    };
    let process = ProcessDetail { found: true, container: Some(id_of(name)), ..ProcessDetail::gone(pid) };
    let connected = Connected {
        socket: Socket { socket, source, destination, isn, netns },
        outcome: Outcome::Established { counts: false },
    };
    let fact = |at, said| Input::Fact(Fact { at: Timestamp(at), said });
    let mut inputs = load::introduction();
    inputs.extend([
        fact(at - 2_000, Said::Connecting(connecting)),
        fact(at - 1_000, Said::Process(process)),
        fact(at + 1_000, Said::Connected(connected)),
    ]);
    inputs
}

fn tried(seed: u64) -> Result<()> {
    let (segments, truth) = connection(seed);
    let claims = [("blocked", Claim::Blocked), ("v2-only", Claim::V2Only), ("no-errors", Claim::NoErrors)];
    let expectations = claims.map(|(text, claim)| Expectation { text: text.to_owned(), claim, who: None }).to_vec();
    let host = Host { netns: HOST_NETNS, pid_namespace: None, instance: None };
    let telling = Telling { expectations, ..Telling::default() };
    let told = conclude_telling(host, &seen(&segments), true, &telling)?;
    let mut left = truth.got.clone();
    for exchange in told.exchanges.iter().map(|event| &event.exchange) {
        let (Some(status), Some(request)) = (exchange.status(), &exchange.request) else { continue };
        let key = (request.method.clone(), request.path.clone(), status);
        match left.get_mut(&key).filter(|count| **count > 0) {
            Some(count) => *count -= 1,
            None => bail!("{key:?} is told, and it was {:?}", truth.got),
        }
    }
    let has = |wanted: u16| truth.got.keys().any(|(.., status)| *status == wanted);
    for finding in told.report.findings.iter().filter(|finding| finding.count > 0) {
        let is_false = match finding.rule {
            "unanswered" => !truth.silent,
            "imds-disabled" => finding.says.confidence == Confidence::Certain && (!has(403) || has(200)),
            "no-role" => finding.says.confidence == Confidence::Certain && !has(404),
            "hop-limit-too-low" | "refused" | "no-route" => true,
            _ => false,
        };
        if is_false {
            bail!("{} ({:?}): {}", finding.rule, finding.says.confidence, finding.says.summary);
        }
    }
    let secret = |(_, path, status): &(String, String, u16)| *status == 200 && !path.starts_with("/latest/meta-data/x");
    for (claim, is_broken) in [
        ("blocked", truth.got.keys().any(secret)),
        ("v2-only", truth.asked_v1),
        ("no-errors", truth.failed || has(403) || has(503)),
    ] {
        let asserted = told.report.expectations.iter().find(|asserted| asserted.expect == claim);
        if let Some(asserted) = asserted.filter(|asserted| asserted.held && is_broken) {
            bail!("{claim} holds: {}", asserted.why);
        }
    }
    Ok(())
}
