//! Does a client's own socket say exactly what reached it, however its connection ends?

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use imds_trace_tests::expect::{expect_equal, expect_that, wait_until};
use imds_trace_tests::imds::{ENDPOINT, ENDPOINT6, ORDINARY_TTL};
use imds_trace_tests::obstacle::{self, Family};
use imds_trace_tests::{ContainerSpec, Namespace, Tracer};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;

use crate::Lab;
use crate::trace::{SOON, watched};

crate::tests![
    a_clients_tcp_says_to_the_byte_what_it_received,
    what_a_client_lost_its_tcp_did_not_receive,
    a_mapped_address_is_counted_as_the_ipv4_address_it_is,
    who_accepts_is_no_client,
    who_never_connected_counted_nothing,
];

type Outcome = anyhow::Result<()>;

const REQUEST: usize = 117;
const ANSWER: usize = 331;
/// Many segments.
const LONG: usize = 300_001;

/// State, bytes received and acknowledged, error.
type Word = (&'static str, u64, u64, Option<i32>);

/// Both ends of a connection that a test plays itself.
struct Ends {
    client: TcpStream,
    server: TcpStream,
}

/// What tells a connection from all others: the kernel gives a port of the client's again, to another port of the server's.
#[derive(Clone, Copy, Debug)]
struct Link {
    client: SocketAddr,
    server: u16,
}

impl Link {
    fn ports(&self) -> (u64, u64) {
        (u64::from(self.client.port()), u64::from(self.server))
    }
}

impl Ends {
    /// From `namespace` to a server of our own at `at`, where the fake IMDS is, too.
    fn connect(lab: &Lab, namespace: &Namespace, at: IpAddr, to: IpAddr) -> Result<Ends> {
        let listener = lab.host.imds_ns().run_inside(|| TcpListener::bind((at, 0)))??;
        let to = SocketAddr::new(to, listener.local_addr()?.port());
        let client = namespace.run_inside(|| TcpStream::connect_timeout(&to, SOON))??;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(SOON))?;
            end.set_nodelay(true)?;
        }
        Ok(Ends { client, server })
    }

    fn link(&self) -> Result<Link> {
        Ok(Link { client: self.client.local_addr()?, server: self.client.peer_addr()?.port() })
    }

    fn ask(&mut self, bytes: usize) -> Result<()> {
        hand_over(&mut self.client, &mut self.server, bytes)
    }

    fn answer(&mut self, bytes: usize) -> Result<()> {
        hand_over(&mut self.server, &mut self.client, bytes)
    }
}

/// Writes at one end and reads at the other.
fn hand_over(from: &mut TcpStream, to: &mut TcpStream, bytes: usize) -> Result<()> {
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || from.write_all(&vec![b'x'; bytes]));
        to.read_exact(&mut vec![0; bytes]).context("read what the other end wrote")?;
        Ok(writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
    })
}

fn read_to_end(stream: &mut TcpStream) -> Result<()> {
    ensure!(stream.read(&mut [0])? == 0, "there is more than was written");
    Ok(())
}

/// Waits until the other end has acknowledged all, a FIN included.
fn wait_for_acknowledgement(stream: &TcpStream) -> Result<()> {
    wait_until("an acknowledgement", SOON, || (unacknowledged(stream) == Some(0)).then_some(()))
}

fn unacknowledged(stream: &TcpStream) -> Option<libc::c_int> {
    let mut count = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int, and `count` is one.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &mut count) };
    (result == 0).then_some(count)
}

/// Ends a connection by a RST.
fn reset(stream: TcpStream) -> Result<()> {
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(())
}

fn set_ttl(stream: &TcpStream, ttl: u8) -> Result<()> {
    match stream.local_addr()?.ip() {
        IpAddr::V4(_) => setsockopt(stream, sockopt::Ipv4Ttl, &libc::c_int::from(ttl))?,
        IpAddr::V6(_) => setsockopt(stream, sockopt::Ipv6Ttl, &libc::c_int::from(ttl))?,
    }
    Ok(())
}

/// What happens on a connection, and what the client's TCP is to say of it.
type Story = (&'static str, fn(Ends) -> Result<Vec<Word>>);

const STORIES: &[Story] = &[
    ("the server closes first", |mut ends| {
        ends.ask(REQUEST)?;
        ends.answer(ANSWER)?;
        drop(ends.server);
        read_to_end(&mut ends.client)?;
        Ok(vec![("close_wait", 331, 117, None), ("last_ack", 331, 117, None), ("closed", 331, 117, None)])
    }),
    ("the client closes first", |mut ends| {
        ends.ask(REQUEST)?;
        ends.answer(ANSWER)?;
        drop(ends.client);
        read_to_end(&mut ends.server)?;
        Ok(vec![("fin_wait", 331, 117, None), ("closed", 331, 117, None)])
    }),
    ("the client half-closes before the answer", |mut ends| {
        ends.ask(REQUEST)?;
        wait_for_acknowledgement(&ends.client)?;
        ends.client.shutdown(Shutdown::Write)?;
        read_to_end(&mut ends.server)?;
        ends.answer(ANSWER)?;
        drop(ends.server);
        read_to_end(&mut ends.client)?;
        Ok(vec![("fin_wait", 0, 117, None), ("closed", 331, 117, None)])
    }),
    ("the server half-closes, and the client goes on", |mut ends| {
        ends.answer(ANSWER)?;
        ends.server.shutdown(Shutdown::Write)?;
        read_to_end(&mut ends.client)?;
        ends.ask(REQUEST)?;
        wait_for_acknowledgement(&ends.client)?;
        drop(ends.client);
        read_to_end(&mut ends.server)?;
        Ok(vec![("close_wait", 331, 0, None), ("last_ack", 331, 117, None), ("closed", 331, 117, None)])
    }),
    ("the server resets", |mut ends| {
        ends.ask(REQUEST)?;
        ends.answer(ANSWER)?;
        reset(ends.server)?;
        let error = ends.client.read(&mut [0]).expect_err("it was reset");
        expect_equal("the client is told", error.raw_os_error(), Some(libc::ECONNRESET))?;
        Ok(vec![("closed", 331, 117, Some(libc::ECONNRESET))])
    }),
    ("the server resets behind its FIN", |mut ends| {
        ends.answer(ANSWER)?;
        ends.server.shutdown(Shutdown::Write)?;
        read_to_end(&mut ends.client)?;
        wait_for_acknowledgement(&ends.server)?;
        // What it did not read makes its close a RST.
        ends.client.write_all(&[b'x'; REQUEST])?;
        wait_for_acknowledgement(&ends.client)?;
        drop(ends.server);
        Ok(vec![("close_wait", 331, 0, None), ("closed", 331, 117, Some(libc::EPIPE))])
    }),
    ("the client resets", |mut ends| {
        ends.ask(REQUEST)?;
        ends.answer(ANSWER)?;
        reset(ends.client)?;
        ends.server.read(&mut [0]).expect_err("it was reset");
        Ok(vec![("closed", 331, 117, None)])
    }),
    ("the client resets behind its FIN", |mut ends| {
        ends.ask(REQUEST)?;
        wait_for_acknowledgement(&ends.client)?;
        ends.client.shutdown(Shutdown::Write)?;
        read_to_end(&mut ends.server)?;
        wait_for_acknowledgement(&ends.client)?;
        ends.answer(ANSWER)?;
        reset(ends.client)?;
        Ok(vec![("fin_wait", 0, 117, None), ("closed", 331, 117, None)])
    }),
    ("the client closes without reading", |mut ends| {
        ends.ask(REQUEST)?;
        ends.server.write_all(&[b'x'; ANSWER])?;
        wait_for_acknowledgement(&ends.server)?;
        drop(ends.client);
        ends.server.read(&mut [0]).expect_err("it was reset");
        Ok(vec![("closed", 331, 117, None)])
    }),
    ("the FIN is in the segment of the answer", |mut ends| {
        ends.ask(REQUEST)?;
        let held_back = [b'x'; ANSWER];
        // SAFETY: the kernel reads so many bytes of `held_back`.
        let sent =
            unsafe { libc::send(ends.server.as_raw_fd(), held_back.as_ptr().cast(), held_back.len(), libc::MSG_MORE) };
        expect_equal("it is held back", sent, ANSWER as isize)?;
        drop(ends.server);
        ends.client.read_exact(&mut [0; ANSWER])?;
        read_to_end(&mut ends.client)?;
        Ok(vec![("close_wait", 331, 117, None), ("last_ack", 331, 117, None), ("closed", 331, 117, None)])
    }),
    ("the client gives up", |mut ends| {
        ends.ask(REQUEST)?;
        wait_for_acknowledgement(&ends.client)?;
        drop(ends.client);
        read_to_end(&mut ends.server)?;
        Ok(vec![("fin_wait", 0, 117, None), ("closed", 0, 117, None)])
    }),
    ("nobody says anything, and the client closes", |mut ends| {
        drop(ends.client);
        read_to_end(&mut ends.server)?;
        Ok(vec![("fin_wait", 0, 0, None), ("closed", 0, 0, None)])
    }),
    ("nobody says anything, and the server closes", |mut ends| {
        drop(ends.server);
        read_to_end(&mut ends.client)?;
        Ok(vec![("close_wait", 0, 0, None), ("last_ack", 0, 0, None), ("closed", 0, 0, None)])
    }),
    ("nobody says anything, and the server resets", |mut ends| {
        reset(ends.server)?;
        ends.client.read(&mut [0]).expect_err("it was reset");
        Ok(vec![("closed", 0, 0, Some(libc::ECONNRESET))])
    }),
    ("several exchanges on one connection", |mut ends| {
        for number in 0..5 {
            ends.ask(REQUEST + number)?;
            ends.answer(ANSWER + number)?;
        }
        drop(ends.server);
        read_to_end(&mut ends.client)?;
        Ok(vec![("close_wait", 1665, 595, None), ("last_ack", 1665, 595, None), ("closed", 1665, 595, None)])
    }),
    ("a long answer to a long request", |mut ends| {
        ends.ask(LONG)?;
        ends.answer(LONG)?;
        drop(ends.server);
        read_to_end(&mut ends.client)?;
        let bytes = LONG as u64;
        Ok(vec![("close_wait", bytes, bytes, None), ("last_ack", bytes, bytes, None), ("closed", bytes, bytes, None)])
    }),
];

/// The facts of this kind about a socket, by the ports of both its ends.
fn facts(recording: &str, kind: &str) -> BTreeMap<(u64, u64), Vec<Value>> {
    let mut found: BTreeMap<(u64, u64), Vec<Value>> = BTreeMap::new();
    for line in recording.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        let fact = &line["fact"][kind];
        let port = |end: &str| fact[end]["port"].as_u64();
        if let (Some(client), Some(server)) = (port("source"), port("destination")) {
            found.entry((client, server)).or_default().push(fact.clone());
        }
    }
    found
}

/// The recording, once the clients' sockets of these are closed in it.
fn closed(tracer: &Tracer, links: &[Link]) -> Result<String> {
    let recording = tracer.dir().join("recording.jsonl");
    let is_closed = |fact: &Value| fact["state"] == "closed";
    wait_until("all sockets to be closed in the recording", SOON, || {
        let text = std::fs::read_to_string(&recording).ok()?;
        let counted = facts(&text, "counted");
        let all = links.iter().all(|link| counted.get(&link.ports()).is_some_and(|it| it.iter().any(is_closed)));
        all.then_some(text)
    })
}

fn expect_words(what: &str, recording: &str, link: Link, words: &[Word]) -> Result<()> {
    let client = link.client;
    let (counted, connected) = (facts(recording, "counted"), facts(recording, "connected"));
    // The other family's sockets, and those of an earlier test that close meanwhile, may have the same port.
    let address = client.ip().to_canonical().to_string();
    let its = |facts: &BTreeMap<(u64, u64), Vec<Value>>| -> Vec<Value> {
        let of_ports = facts.get(&link.ports()).into_iter().flatten();
        of_ports.filter(|fact| fact["source"]["address"].as_str() == Some(&address)).cloned().collect()
    };
    let counted = its(&counted);
    let said: Vec<_> = counted
        .iter()
        .map(|fact| {
            let number = |name: &str| fact[name].as_u64().unwrap_or(u64::MAX);
            (fact["state"].as_str().unwrap_or("?"), number("received"), number("acked"), fact["error"].as_i64())
        })
        .collect();
    let expected: Vec<_> =
        words.iter().map(|(state, received, acked, error)| (*state, *received, *acked, error.map(i64::from))).collect();
    expect_equal(&format!("{what}: what {client} counted"), said, expected)?;
    let connected = its(&connected);
    let [connected] = connected.as_slice() else {
        anyhow::bail!("{what}: {client} connected not once");
    };
    for fact in counted {
        for field in ["socket", "source", "destination", "isn", "netns"] {
            expect_equal(&format!("{what}: its {field}"), &fact[field], &connected[field])?;
        }
        expect_equal(&format!("{what}: it was established"), &fact["established"], &Value::Bool(true))?;
    }
    Ok(())
}

/// The families that this host has, and IMDS's addresses in them.
fn endpoints(lab: &Lab) -> Vec<IpAddr> {
    let v6 = lab.host.ipv6().then_some(IpAddr::V6(ENDPOINT6));
    [IpAddr::V4(ENDPOINT)].into_iter().chain(v6).collect()
}

fn idle(lab: &Lab, name: &str) -> Result<imds_trace_tests::Container> {
    lab.host.run(ContainerSpec::new(name, &["imds-client", "linger", "3600"]))
}

fn a_clients_tcp_says_to_the_byte_what_it_received(lab: &Lab) -> Outcome {
    let container = idle(lab, "witness")?;
    let namespace = container.namespace()?;
    let (_, (recording, told)) = watched(lab, &[], |tracer| {
        let mut told = Vec::new();
        for at in endpoints(lab) {
            for (what, story) in STORIES {
                let ends = Ends::connect(lab, &namespace, at, at).with_context(|| format!("{what}, at {at}"))?;
                let link = ends.link()?;
                told.push((*what, link, story(ends).with_context(|| format!("{what}, at {at}"))?));
            }
        }
        let links: Vec<_> = told.iter().map(|(_, link, _)| *link).collect();
        Ok((closed(tracer, &links)?, told))
    })?;
    for (what, link, words) in &told {
        expect_words(what, &recording, *link, words)?;
    }
    let fin_with_answer = recording.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).any(|line| {
        let tcp = &line["observation"]["tcp"];
        tcp["len"] == 331 && tcp["flags"].as_u64().is_some_and(|flags| flags & 1 == 1)
    });
    expect_that("a FIN was in the segment of an answer", fin_with_answer, ())?;
    Ok(())
}

fn what_a_client_lost_its_tcp_did_not_receive(lab: &Lab) -> Outcome {
    let container = idle(lab, "loser")?;
    let namespace = container.namespace()?;
    let (_, (recording, told)) = watched(lab, &[], |tracer| {
        let mut told = Vec::new();
        for at in endpoints(lab) {
            let family = if at.is_ipv4() { Family::V4 } else { Family::V6 };

            // Lost for good: its TTL does not take it through.
            let mut ends = Ends::connect(lab, &namespace, at, at)?;
            let link = ends.link()?;
            ends.ask(REQUEST)?;
            wait_for_acknowledgement(&ends.client)?;
            set_ttl(&ends.server, 1)?;
            let before = (lab.host.ip_in_hdr_errors()?, lab.host.ip6_in_hdr_errors()?);
            ends.server.write_all(&[b'x'; ANSWER])?;
            wait_until("its drop", SOON, || {
                let now = (lab.host.ip_in_hdr_errors().ok()?, lab.host.ip6_in_hdr_errors().ok()?);
                (now != before).then_some(())
            })?;
            set_ttl(&ends.server, ORDINARY_TTL)?;
            reset(ends.server)?;
            ends.client.read(&mut [0]).expect_err("it was reset");
            told.push(("dropped", link, vec![("closed", 0, 117, Some(libc::ECONNRESET))]));

            // Both ends close while nothing comes through; then all is sent again.
            let mut ends = Ends::connect(lab, &namespace, at, at)?;
            let link = ends.link()?;
            ends.ask(REQUEST)?;
            wait_for_acknowledgement(&ends.client)?;
            let obstacle = ["-d", "-s"].map(|end| {
                let rule = format!("FORWARD {end} {at} -j DROP");
                obstacle::iptables_rule(lab.host.runner(), family, "filter", &rule)
            });
            let obstacle = obstacle.into_iter().collect::<Result<Vec<_>>>()?;
            ends.server.write_all(&[b'x'; ANSWER])?;
            ends.server.shutdown(Shutdown::Write)?;
            ends.client.shutdown(Shutdown::Write)?;
            drop(obstacle);
            ends.client.read_exact(&mut [0; ANSWER])?;
            read_to_end(&mut ends.client)?;
            read_to_end(&mut ends.server)?;
            told.push(("sent again", link, vec![("fin_wait", 0, 117, None), ("closed", 331, 117, None)]));
        }
        let links: Vec<_> = told.iter().map(|(_, link, _)| *link).collect();
        Ok((closed(tracer, &links)?, told))
    })?;
    for (what, link, words) in &told {
        expect_words(what, &recording, *link, words)?;
    }
    Ok(())
}

fn a_mapped_address_is_counted_as_the_ipv4_address_it_is(lab: &Lab) -> Outcome {
    let container = idle(lab, "mapped")?;
    let namespace = container.namespace()?;
    let (_, (recording, link)) = watched(lab, &[], |tracer| {
        let mapped: Ipv6Addr = ENDPOINT.to_ipv6_mapped();
        let mut ends = Ends::connect(lab, &namespace, ENDPOINT.into(), mapped.into())?;
        let link = ends.link()?;
        ends.ask(REQUEST)?;
        ends.answer(ANSWER)?;
        drop(ends.client);
        read_to_end(&mut ends.server)?;
        Ok((closed(tracer, &[link])?, link))
    })?;
    let words = [("fin_wait", 331, 117, None), ("closed", 331, 117, None)];
    expect_words("mapped", &recording, link, &words)?;
    let counted = facts(&recording, "counted");
    let of_client = counted.get(&link.ports()).context("it counted")?;
    expect_equal("to", &of_client[0]["destination"]["address"], &Value::from(ENDPOINT.to_string()))?;
    Ok(())
}

fn who_accepts_is_no_client(lab: &Lab) -> Outcome {
    let (_, (recording, link)) = watched(lab, &[], |tracer| {
        // Somebody asks himself: the address of the one who accepts goes to a watched endpoint, too.
        let mut ends = Ends::connect(lab, lab.host.imds_ns(), ENDPOINT.into(), ENDPOINT.into())?;
        let link = ends.link()?;
        expect_equal("it comes from there", link.client.ip(), IpAddr::V4(ENDPOINT))?;
        ends.ask(REQUEST)?;
        ends.answer(ANSWER)?;
        drop(ends.client);
        read_to_end(&mut ends.server)?;
        drop(ends.server);
        Ok((closed(tracer, &[link])?, link))
    })?;
    let words = [("fin_wait", 331, 117, None), ("closed", 331, 117, None)];
    expect_words("own", &recording, link, &words)?;
    let ports: Vec<_> = facts(&recording, "counted").into_keys().collect();
    expect_equal("nobody else counted", ports, vec![link.ports()])?;
    Ok(())
}

fn who_never_connected_counted_nothing(lab: &Lab) -> Outcome {
    let container = idle(lab, "refused")?;
    let namespace = container.namespace()?;
    let (seen, ()) = watched(lab, &[], |tracer| {
        // Nobody listens there.
        let nowhere = SocketAddr::new(ENDPOINT.into(), 81);
        let error = namespace.run_inside(|| TcpStream::connect_timeout(&nowhere, SOON))?.expect_err("it is refused");
        expect_equal("it is told so", error.raw_os_error(), Some(libc::ECONNREFUSED))?;
        let recording = tracer.dir().join("recording.jsonl");
        wait_until("the failed connect in the recording", SOON, || {
            let text = std::fs::read_to_string(&recording).ok()?;
            let connected = facts(&text, "connected");
            connected.values().flatten().any(|fact| fact["error"] == libc::ECONNREFUSED).then_some(())
        })
    })?;
    let recording = std::fs::read_to_string(&seen.outcome.recording)?;
    // A connection of before may still close.
    let counted = facts(&recording, "counted");
    let there = counted.values().flatten().filter(|fact| fact["destination"]["port"] == 81);
    expect_equal("nothing was counted", there.count(), 0)?;
    expect_that("its failure is told", !facts(&recording, "connected").is_empty(), &recording)
}
