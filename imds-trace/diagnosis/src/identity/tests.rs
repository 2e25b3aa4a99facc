//! Does the directory answer for a moment, and never guess?

use std::sync::Arc;

use super::fact::{Connected, Connecting, Outcome, ProcessDetail, Socket, Told};
use super::*;

mod whose;

const HOST: Netns = Netns(1);

fn at(ms: u64) -> Timestamp {
    Timestamp(ms * 1_000_000)
}

fn end(text: &str) -> Endpoint {
    let socket: std::net::SocketAddr = text.parse().unwrap();
    Endpoint { address: socket.ip(), port: socket.port() }
}

fn query(client: &str, isn: u32) -> Query {
    let asked = Asked::Connection { client: end(client), isn: Some(isn) };
    Query { asked, endpoint: end("169.254.169.254:80"), since: at(1100) }
}

fn task(socket: u64, pid: u32, netns: u32) -> Connecting {
    Connecting {
        socket,
        destination: end("169.254.169.254:80"),
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
        told: Arc::default(),
    }
}

fn connect(directory: &mut Directory, ms: u64, pid: u32, netns: u32, source: &str, isn: u32) {
    let said = Said::Connecting(task(u64::from(isn), pid, netns));
    directory.learn(&Fact { at: at(ms), said });
    connected(directory, ms, netns, source, isn);
}

/// The socket of this number got its port, and its first sequence number is the same.
fn connected(directory: &mut Directory, ms: u64, netns: u32, source: &str, isn: u32) {
    directory.learn(&Fact {
        at: at(ms + 1),
        said: Said::Connected(Connected {
            socket: socket(netns, source, isn),
            outcome: Outcome::Established { counts: false },
        }),
    });
}

fn socket(netns: u32, source: &str, isn: u32) -> Socket {
    Socket {
        socket: u64::from(isn),
        source: end(source),
        destination: end("169.254.169.254:80"),
        isn,
        netns: Netns(netns),
    }
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
    directory.learn(&Fact { at: at(1500), said: Said::ContainerGone { id: "a".into(), user: None } });
    container(&mut directory, 1900, "b", None, Some("172.17.0.2"));
    let client = query("172.17.0.2:40000", 7);
    assert_eq!(id(&directory.who(client, at(1200))), Some("a"));
    assert_eq!(id(&directory.who(client, at(2000))), Some("b"));
    let between = directory.who(client, at(1850));
    assert_eq!((id(&between), between.by), (Some("b"), Key::Address), "acts before the engine's word of it arrives");
}

#[test]
fn a_socket_is_known_by_its_attempt_and_its_syn_alone() {
    let mut directory = Directory::new(HOST);
    container(&mut directory, 1000, "a", Some(20), Some("172.17.0.2"));
    directory.learn(&Fact { at: at(1100), said: Said::Attempting(task(9, 77, 20)) });
    directory.learn(&Fact { at: at(1101), said: Said::Sending(socket(20, "172.17.0.2:40000", 9)) });
    let who = directory.who(query("172.17.0.2:40000", 9), at(1102));
    assert_eq!((id(&who), who.process.as_ref().map(|process| process.pid)), (Some("a"), Some(77)));
    assert_eq!(directory.failed(at(9000)), None, "its SYN was about to be sent");
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
    assert!(directory.sockets.find(Query { since: at(199_999), ..query("172.17.0.2:40000", 199_999) }).is_some());
    assert!(directory.sockets.find(query("172.17.0.9:1", 1)).is_none());
}

#[test]
fn a_pid_reused_within_a_second_belongs_to_each_container_in_its_time() {
    let mut directory = Directory::new(HOST);
    container(&mut directory, 1000, "a", Some(20), Some("172.17.0.2"));
    connect(&mut directory, 1100, 77, 20, "172.17.0.2:40000", 9);
    process(&mut directory, 1100, 77, Some("a"));
    directory.learn(&Fact { at: at(1300), said: Said::ContainerGone { id: "a".into(), user: None } });
    container(&mut directory, 1600, "b", Some(30), Some("172.17.0.2"));
    connect(&mut directory, 1700, 77, 30, "172.17.0.2:40000", 10);
    process(&mut directory, 1700, 77, Some("b"));
    assert_eq!(id(&directory.who(query("172.17.0.2:40000", 9), at(1102))), Some("a"));
    assert_eq!(id(&directory.who(query("172.17.0.2:40000", 10), at(1702))), Some("b"));
    assert_eq!(id(&directory.who(query("172.17.0.2:40000", 9), at(1102))), Some("a"), "asked late, of then");
}

#[test]
fn a_reused_pid_inherits_nothing_if_its_second_process_was_gone_too_soon() {
    let mut directory = Directory::new(HOST);
    container(&mut directory, 1000, "a", Some(20), None);
    connect(&mut directory, 1100, 77, 20, "172.17.0.2:40000", 9);
    process(&mut directory, 1100, 77, Some("a"));
    directory.learn(&Fact { at: at(1300), said: Said::ContainerGone { id: "a".into(), user: None } });
    container(&mut directory, 1600, "b", Some(30), None);
    connect(&mut directory, 1700, 77, 30, "172.17.0.3:40000", 10);
    let mut gone = ProcessDetail::gone(77);
    directory.learn(&Fact { at: at(1701), said: Said::Process(gone.clone()) });
    let who = directory.who(query("172.17.0.3:40000", 10), at(1702));
    assert_eq!((id(&who), who.by), (Some("b"), Key::Netns));
    gone.pid = 78;
    directory.learn(&Fact { at: at(1703), said: Said::Process(gone) });
    assert_eq!(id(&directory.who(query("172.17.0.2:40000", 9), at(1102))), Some("a"));
}

#[test]
fn the_engines_pid_and_namespace_of_a_container_hold_while_it_lives() {
    let mut containers = containers::Containers::default();
    let named =
        |id: &str| ContainerDetail { id: id.into(), pid: Some(77), netns: Some(Netns(20)), ..Default::default() };
    containers.appeared(at(1000), &named("a"));
    containers.gone(at(1400), "a");
    containers.appeared(at(1800), &named("b"));
    containers.gone(at(2500), "b");
    for (ms, expected) in [(1200, Some("a")), (1400, Some("a")), (1900, Some("b")), (2500, Some("b")), (2600, None)] {
        assert_eq!(containers.of_process(77, at(ms)), expected, "the pid at {ms}");
        let in_netns = containers.in_netns(Netns(20), at(ms));
        assert_eq!(in_netns.as_ref().map(|found| found.id.as_str()), expected, "the namespace at {ms}");
    }
    assert_eq!(containers.of_process(77, at(1700)), Some("b"), "acts before the engine's word of it arrives");
}

#[test]
fn a_cgroup_that_another_container_was_met_in_since_is_that_ones() {
    let mut containers = containers::Containers::default();
    containers.met(at(1000), "a", None, 100, None);
    assert_eq!(containers.in_cgroup(100), Some("a"));
    containers.gone(at(1100), "a");
    containers.met(at(1200), "b", None, 100, None);
    assert_eq!(containers.in_cgroup(100), Some("b"));
    containers.met(at(1300), "c", None, 1, None);
    assert_eq!(containers.in_cgroup(1), None, "the root is nobody's");
}

#[test]
fn runtime_pod_and_inner_container_come_from_the_cgroup_path() {
    const OUTER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const INNER: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
    let mut directory = Directory::new(HOST);
    let mut ask = |ms: u64, pid: u32, path: String| {
        connect(&mut directory, ms, pid, 20, "172.17.0.2:40000", pid);
        let detail = ProcessDetail {
            found: true,
            cgroup: Some(path),
            container: Some(OUTER.into()),
            ..ProcessDetail::gone(pid)
        };
        directory.learn(&Fact { at: at(ms), said: Said::Process(detail) });
        directory.who(query("172.17.0.2:40000", pid), at(ms + 1)).container.unwrap()
    };
    let nested = ask(1000, 7, format!("/system.slice/docker-{OUTER}.scope/docker/{INNER}"));
    assert_eq!((nested.runtime, nested.inner.as_deref()), (Some(Runtime::Docker), Some(INNER)));
    assert_eq!(nested.title(), "docker 0123456789ab");
    let plain = ask(2000, 8, format!("/system.slice/docker-{OUTER}.scope"));
    assert_eq!((plain.runtime, plain.inner), (Some(Runtime::Docker), None));
    let other = ask(3000, 9, format!("/docker/{INNER}/docker/{OUTER}"));
    assert_eq!(other.inner, None, "a path that names another container says nothing of this one");
}

/// A process as the kernel told of it, and then perhaps another of the same number as /proc did.
fn told(directory: &mut Directory, ms: u64, started: u64, told: Told) {
    let mut task = task(5, 77, HOST.0);
    (task.started, task.told) = (Some(at(started)), Arc::new(told));
    directory.learn(&Fact { at: at(ms), said: Said::Connecting(task) });
    connected(directory, ms, HOST.0, "10.0.0.1:40000", 5);
}

fn read(directory: &mut Directory, ms: u64, started: u64, argv: &[&str]) {
    let detail = ProcessDetail {
        started: Some(at(started)),
        found: true,
        exe: Some("/read".into()),
        argv: Some(argv.iter().map(|argument| (*argument).to_owned()).collect()),
        container: Some("a".into()),
        ..ProcessDetail::gone(77)
    };
    directory.learn(&Fact { at: at(ms), said: Said::Process(detail) });
}

fn argv(arguments: &[&str]) -> Option<Vec<String>> {
    Some(arguments.iter().map(|argument| (*argument).to_owned()).collect())
}

#[test]
fn a_number_given_to_another_process_lends_nothing_of_it() {
    let mut directory = Directory::new(HOST);
    told(&mut directory, 1100, 1000, Told { argv: argv(&["first"]), ..Told::default() });
    read(&mut directory, 1101, 1100, &["second"]);
    let who = directory.who(query("10.0.0.1:40000", 5), at(1102));
    let process = who.process.as_ref().expect("it connected");
    assert_eq!((process.argv.clone(), process.exe.clone()), (argv(&["first"]), None));
    assert_eq!((id(&who), who.by), (None, Key::Unknown), "nor is it in the other one's container");
    // And the other way round: what was read of the one is not held to be true of the next.
    read(&mut directory, 1103, 1000, &["first"]);
    assert_eq!(id(&directory.who(query("10.0.0.1:40000", 5), at(1104))), Some("a"));
    told(&mut directory, 1200, 1150, Told::default());
    assert_eq!(directory.who(query("10.0.0.1:40000", 5), at(1202)).process.unwrap().argv, None);
}

#[test]
fn what_the_kernel_said_stands_and_proc_adds_to_it() {
    let mut directory = Directory::new(HOST);
    let cut = Told { argv: argv(&["curl", "-s", "…"]), ..Told::default() };
    told(&mut directory, 1100, 1000, cut);
    // Within the tick of /proc.
    read(&mut directory, 1101, 1009, &["curl", "-s", "http://169.254.169.254/"]);
    let process = directory.who(query("10.0.0.1:40000", 5), at(1102)).process.unwrap();
    assert_eq!(process.argv, argv(&["curl", "-s", "http://169.254.169.254/"]));
    assert_eq!(process.exe.as_deref(), Some("/read"));
    read(&mut directory, 1103, 1000, &["sleep", "1"]);
    let process = directory.who(query("10.0.0.1:40000", 5), at(1104)).process.unwrap();
    assert_eq!(process.argv, argv(&["curl", "-s", "…"]), "it has become another program since");
}

#[test]
fn the_kernels_word_on_the_cgroup_tells_host_and_container_apart() {
    let host = |path: &str| {
        let mut directory = Directory::new(HOST);
        told(&mut directory, 1100, 1000, Told { cgroup: Some(path.into()), ..Told::default() });
        directory.learn(&Fact { at: at(1101), said: Said::Process(ProcessDetail::gone(77)) });
        let who = directory.who(query("10.0.0.1:40000", 5), at(1102));
        (id(&who).map(str::to_owned), who.by)
    };
    let container = "0123456789abcdef".repeat(4);
    assert_eq!(host(&format!("/docker/{container}")), (Some(container.clone()), Key::Cgroup));
    assert_eq!(host("/user.slice"), (None, Key::Cgroup));
    assert_eq!(host("…/deep/down"), (None, Key::Unknown), "what was cut off may have named one");
}

#[test]
fn an_attempts_word_holds_for_the_connect_that_follows() {
    // The second: somebody wrote another destination into the call.
    for destination in ["169.254.169.254:80", "10.9.9.9:80"] {
        let mut directory = Directory::new(HOST);
        let mut attempt = Connecting { destination: end(destination), ..task(0, 77, HOST.0) };
        Arc::make_mut(&mut attempt.told).argv = argv(&["curl"]);
        directory.learn(&Fact { at: at(1100), said: Said::Attempting(attempt) });
        connect(&mut directory, 1101, 77, HOST.0, "10.0.0.1:40000", 5);
        let process = directory.who(query("10.0.0.1:40000", 5), at(1103)).process;
        assert_eq!(process.and_then(|process| process.argv.clone()), argv(&["curl"]), "{destination}");
    }
}

const UID: &str = "1c0d7e2a-5a5f-4d8b-9c55-0a1b2c3d4e5f";
const ONE: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const TWO: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

/// The kernel told of a connect from this cgroup path.
fn connect_from(directory: &mut Directory, pid: u32, netns: u32, source: &str, isn: u32, path: &str) {
    let told = Told { cgroup: Some(path.into()), ..Told::default() };
    let said = Said::Connecting(Connecting { told: Arc::new(told), ..task(u64::from(isn), pid, netns) });
    directory.learn(&Fact { at: at(1100), said });
    connected(directory, 1100, netns, source, isn);
}

fn in_pod(id: &str, uid: Option<&str>, name: &str) -> Fact {
    let pod =
        Some(Pod { uid: uid.map(Into::into), name: Some(name.into()), namespace: Some("shop".into()), sandbox: None });
    let detail = ContainerDetail { id: id.into(), name: Some("app".into()), pod, ..ContainerDetail::default() };
    Fact { at: at(1101), said: Said::Container(detail) }
}

#[test]
fn a_pod_is_told_by_the_path_alone_and_named_by_its_runtime() {
    let mut directory = Directory::new(HOST);
    connect_from(&mut directory, 77, 20, "10.0.0.7:40000", 9, &format!("/kubepods/pod{UID}/{ONE}"));
    let who = directory.who(query("10.0.0.7:40000", 9), at(1102)).container.expect("a container");
    assert_eq!(who.pod.as_deref(), Some(&Pod::of_uid(UID)));
    assert_eq!(who.handle(), "0123456789ab");
    directory.learn(&in_pod(ONE, Some(UID), "web-7d4b9"));
    let who = directory.who(query("10.0.0.7:40000", 9), at(1102)).container.expect("a container");
    assert_eq!(who.title(), "pod web-7d4b9/app (namespace shop)");
    assert_eq!((who.phrase(64), who.handle()), (who.title(), "shop/web-7d4b9/app".into()));
    for wanted in ["app", "web-7d4b9/app", "shop/web-7d4b9/app", "0123456789ab", ONE, "web-7d4b9/0123456789ab"] {
        assert!(who.is_called(wanted), "{wanted}");
    }
    for wanted in ["ci/web-7d4b9/app", "9/app", "b9/app", "web-7d4b9", "/app", "shop//app", "web-7d4b9/", "app2"] {
        assert!(!who.is_called(wanted), "{wanted}");
    }
}

#[test]
fn a_name_of_another_pod_is_not_believed() {
    let mut directory = Directory::new(HOST);
    directory.learn(&in_pod(ONE, Some("00000000-0000-0000-0000-000000000000"), "kube-system"));
    connect_from(&mut directory, 77, 20, "10.0.0.7:40000", 9, &format!("/kubepods/pod{UID}/{ONE}"));
    let who = directory.who(query("10.0.0.7:40000", 9), at(1102)).container.expect("a container");
    assert_eq!(who.pod.as_deref(), Some(&Pod::of_uid(UID)));
}

#[test]
fn pods_inside_one_container_are_not_taken_for_each_other() {
    let mut directory = Directory::new(HOST);
    let other = UID.replace('1', "2");
    for (pid, isn, uid) in [(77, 9_u32, UID), (78, 10, other.as_str())] {
        let path = format!("/docker/{ONE}/kubelet/kubepods/pod{uid}/{TWO}");
        connect_from(&mut directory, pid, 20 + isn, "10.244.0.7:40000", isn, &path);
    }
    for (isn, uid) in [(9, UID), (10, other.as_str())] {
        let who = directory.who(query("10.244.0.7:40000", isn), at(1102)).container.expect("a container");
        assert_eq!((who.id.as_str(), who.pod.as_deref()), (ONE, Some(&Pod::of_uid(uid))));
    }
    assert_eq!(directory.containers.named(ONE).pod, None, "the outer one is in no pod");
}

#[test]
fn whoever_is_elsewhere_is_not_named_by_an_address_of_the_same_name() {
    let mut directory = Directory::new(HOST);
    container(&mut directory, 1000, "a", Some(20), Some("10.88.0.2"));
    connect_from(&mut directory, 77, 30, "10.88.0.2:40000", 9, "/garden/5f3c");
    let who = directory.who(query("10.88.0.2:40000", 9), at(1102));
    assert_eq!((id(&who), who.by), (None, Key::Unknown));
    assert_eq!(who.place().as_deref(), Some("a process in network namespace 30, cgroup /garden/5f3c"));
    let unnamed = serde_json::to_value(who.told()).expect("it can be written");
    assert_eq!((&unnamed["id"], &unnamed["runtime"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    assert!(unnamed.is_object(), "it is not the host");
}
