//! Does the directory answer for a moment, and never guess?

use super::fact::{Connected, Connecting, ProcessDetail, Told};
use super::*;

const HOST: Netns = Netns(1);

fn at(ms: u64) -> Timestamp {
    Timestamp(ms * 1_000_000)
}

fn end(text: &str) -> Endpoint {
    let socket: std::net::SocketAddr = text.parse().unwrap();
    Endpoint { address: socket.ip(), port: socket.port() }
}

fn query(client: &str, isn: u32) -> Query {
    Query { client: end(client), endpoint: end("169.254.169.254:80"), isn: Some(isn), attempt: None }
}

fn connect(directory: &mut Directory, ms: u64, pid: u32, netns: u32, source: &str, isn: u32) {
    let destination = end("169.254.169.254:80");
    let said = Said::Connecting(Connecting {
        socket: u64::from(isn),
        destination,
        netns: Netns(netns),
        pid,
        tid: pid,
        uid: 0,
        gid: 0,
        comm: "python3".into(),
        cgroup: 1,
        ttl: Some(Ttl(64)),
        started: None,
        pid_namespace: None,
        inner_pid: None,
        told: Told::default(),
    });
    directory.learn(&Fact { at: at(ms), said });
    let said = Said::Connected(Connected {
        socket: u64::from(isn),
        source: end(source),
        destination,
        isn,
        netns: Netns(netns),
        established: true,
        error: None,
    });
    directory.learn(&Fact { at: at(ms + 1), said });
}

fn process(directory: &mut Directory, ms: u64, pid: u32, container: Option<&str>) {
    let detail = ProcessDetail {
        pid,
        found: true,
        started: None,
        exe: None,
        argv: None,
        cgroup: None,
        container: container.map(Into::into),
        ancestors: vec![],
    };
    directory.learn(&Fact { at: at(ms), said: Said::Process(detail) });
}

fn container(directory: &mut Directory, ms: u64, id: &str, netns: Option<u32>, address: Option<&str>) {
    let detail = ContainerDetail {
        id: id.into(),
        name: Some(format!("{id}-name")),
        netns: netns.map(Netns),
        addresses: address.map(|address| address.parse().unwrap()).into_iter().collect(),
        ..ContainerDetail::default()
    };
    directory.learn(&Fact { at: at(ms), said: Said::Container(detail) });
}

fn id(attribution: &Attribution) -> Option<&str> {
    attribution.container.as_ref().map(|container| container.id.as_str())
}

#[test]
fn an_address_reused_within_a_second_belongs_to_each_in_its_time() {
    let mut directory = Directory::new(HOST);
    container(&mut directory, 1000, "a", None, Some("172.17.0.2"));
    directory.learn(&Fact { at: at(1500), said: Said::ContainerGone { id: "a".into() } });
    container(&mut directory, 1900, "b", None, Some("172.17.0.2"));
    let client = query("172.17.0.2:40000", 7);
    assert_eq!(id(&directory.who(client, at(1200))), Some("a"));
    assert_eq!(id(&directory.who(client, at(2000))), Some("b"));
    let between = directory.who(client, at(1850));
    assert_eq!((id(&between), between.by), (Some("b"), Key::Address), "acts before the engine's word of it arrives");
}

#[test]
fn the_cgroup_decides_against_a_forged_address() {
    let mut directory = Directory::new(HOST);
    container(&mut directory, 1000, "victim", Some(20), Some("172.17.0.2"));
    container(&mut directory, 1000, "liar", Some(30), Some("172.17.0.3"));
    connect(&mut directory, 1100, 77, 30, "172.17.0.2:40000", 9);
    process(&mut directory, 1101, 77, Some("liar"));
    let who = directory.who(query("172.17.0.2:40000", 9), at(1102));
    assert_eq!((id(&who), who.by), (Some("liar"), Key::Cgroup));
    assert_eq!(who.process.unwrap().pid, 77);
}

#[test]
fn a_process_gone_before_proc_could_be_read_is_named_by_its_namespace() {
    let mut directory = Directory::new(HOST);
    container(&mut directory, 1000, "a", Some(20), None);
    connect(&mut directory, 1100, 77, 20, "172.17.0.2:40000", 9);
    let who = directory.who(query("10.0.0.1:1234", 9), at(1102));
    assert_eq!(
        (id(&who), who.by),
        (Some("a"), Key::Netns),
        "found by sequence number although the address was rewritten"
    );
}

#[test]
fn two_containers_in_one_namespace_are_not_told_apart_by_it() {
    let mut directory = Directory::new(HOST);
    container(&mut directory, 1000, "a", Some(20), None);
    container(&mut directory, 1000, "b", Some(20), None);
    connect(&mut directory, 1100, 77, 20, "172.17.0.2:40000", 9);
    let who = directory.who(query("172.17.0.2:40000", 9), at(1102));
    assert_eq!((id(&who), who.by), (None, Key::Unknown));
}

#[test]
fn a_host_process_has_no_container_and_that_is_known() {
    let mut directory = Directory::new(HOST);
    connect(&mut directory, 1100, 77, HOST.0, "10.0.0.1:40000", 9);
    process(&mut directory, 1100, 77, None);
    let who = directory.who(query("10.0.0.1:40000", 9), at(1102));
    assert_eq!((who.subject(), who.by), (Subject::Host, Key::Cgroup));
}

#[test]
fn a_container_with_host_networking_is_named_by_its_process() {
    let mut directory = Directory::new(HOST);
    container(&mut directory, 1000, "agent", Some(HOST.0), None);
    connect(&mut directory, 1100, 77, HOST.0, "10.0.0.1:40000", 9);
    process(&mut directory, 1100, 77, Some("agent"));
    assert_eq!(id(&directory.who(query("10.0.0.1:40000", 9), at(1102))), Some("agent"));
    connect(&mut directory, 1200, 78, HOST.0, "10.0.0.1:40001", 10);
    process(&mut directory, 1200, 78, None);
    assert_eq!(id(&directory.who(query("10.0.0.1:40001", 10), at(1202))), None);
}

#[test]
fn hostile_numbers_of_sockets_and_containers_stay_bounded() {
    let mut directory = Directory::new(HOST);
    for n in 0..200_000u32 {
        connect(&mut directory, u64::from(n), n, 20, "172.17.0.2:40000", n);
        container(&mut directory, u64::from(n), &format!("c{n}"), Some(n), Some("172.17.0.2"));
    }
    assert!(directory.sockets.find(query("172.17.0.2:40000", 199_999), at(199_999)).is_some());
    assert!(directory.sockets.find(query("172.17.0.9:1", 1), at(1)).is_none());
}
