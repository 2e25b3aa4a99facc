//! Whose is a cgroup, and is a process in the host's network the host's?

use super::*;

#[test]
fn a_cgroup_that_a_user_named_after_somebody_elses_container_names_nobody() {
    let own = format!("/user.slice/user-1000.slice/user@1000.service/docker-{ONE}.scope");
    let roots = format!("/system.slice/docker-{ONE}.scope");
    let ones = query("172.17.0.2:40000", 9);
    let claims = query("10.0.0.7:40000", 8);
    let introduce = |directory: &mut Directory, user: u32| {
        let detail =
            ContainerDetail { id: ONE.into(), name: Some("job-17".into()), user: Some(user), ..Default::default() };
        directory.learn(&Fact { at: at(1000), said: Said::Container(detail) });
    };
    let who = |directory: &Directory, of: Query| directory.who(of, at(1102)).container.map(|container| container.name);
    // Root's engine or files, or a cgroup that only root can make, came first, or come later.
    for roots_first in [true, false] {
        for by_engine in [true, false] {
            let mut directory = Directory::new(HOST);
            let roots = |directory: &mut Directory| {
                if by_engine {
                    introduce(directory, 0);
                }
                connect_from(directory, 77, 20, "172.17.0.2:40000", 9, &roots);
            };
            if roots_first {
                roots(&mut directory);
            }
            connect_from(&mut directory, 78, 30, "10.0.0.7:40000", 8, &own);
            connect_from(&mut directory, 79, HOST.0, "10.0.0.8:40000", 7, &own);
            if !roots_first {
                roots(&mut directory);
            }
            let case = (roots_first, by_engine);
            assert_eq!(who(&directory, ones), Some(by_engine.then(|| "job-17".to_owned())), "{case:?}");
            assert_eq!(directory.who(ones, at(1102)).by, Key::Cgroup);
            assert_eq!(who(&directory, claims), None, "{case:?}");
            let place = directory.who(claims, at(1102)).place();
            assert_eq!(place, Some(format!("a process in network namespace 30, cgroup {own}")), "{case:?}");
            let in_hosts = directory.who(query("10.0.0.8:40000", 7), at(1102));
            assert_eq!((in_hosts.told(), in_hosts.by), (None, Key::Cgroup), "a process of the host");
            directory.learn(&Fact { at: at(1102), said: Said::ContainerGone { id: ONE.into(), user: Some(1000) } });
            let asked = Asked::Connection { client: end("172.17.0.9:40000"), isn: None };
            let others = Query { asked, ..query("172.17.0.9:40000", 6) };
            connect_from(&mut directory, 80, 20, "172.17.0.9:40000", 6, "/");
            assert_eq!(directory.who(others, at(1102)).by, Key::Netns, "it has not ended because he says so");
            assert!(
                directory.containers.in_netns(Netns(30), at(1102)).is_none(),
                "nor is that namespace the container's"
            );
        }
    }
    // A user's own containers are that user's.
    let mut directory = Directory::new(HOST);
    introduce(&mut directory, 1000);
    connect_from(&mut directory, 78, 30, "10.0.0.7:40000", 8, &own);
    assert_eq!(who(&directory, claims), Some(Some("job-17".into())));
    let others = own.replace("1000", "1001");
    connect_from(&mut directory, 79, 31, "10.0.0.8:40000", 7, &others);
    assert_eq!(who(&directory, query("10.0.0.8:40000", 7)), None, "another user's");
    introduce(&mut directory, 1001);
    assert_eq!(who(&directory, claims), Some(Some("job-17".into())));
}

#[test]
fn a_process_in_the_hosts_network_is_the_hosts_only_if_nothing_speaks_against_it() {
    let host = || Directory::new(HOST).with_pid_namespace(Some(1));
    let connect = |directory: &mut Directory, pids: Option<u32>, path: &str| {
        let told = Told { cgroup: Some(path.into()), ..Told::default() };
        let said = Said::Connecting(Connecting { told: Arc::new(told), pid_namespace: pids, ..task(9, 77, HOST.0) });
        directory.learn(&Fact { at: at(1100), said });
        connected(directory, 1100, HOST.0, "10.0.0.10:40000", 9);
    };
    let of = query("10.0.0.10:40000", 9);
    for (pids, path, is_hosts) in [
        (Some(1), "/system.slice/agent.service".to_owned(), true),
        (None, "/".to_owned(), true),
        (Some(1), "/garden/4f1a".to_owned(), true),
        // Garden, Nomad and others give it processes of its own, and leave it the host's network.
        (Some(2), "/garden/4f1a".to_owned(), false),
    ] {
        let mut directory = host();
        connect(&mut directory, pids, &path);
        let who = directory.who(of, at(1101));
        assert_eq!(who.told().is_none(), is_hosts, "{pids:?} {path}");
        assert_eq!(who.by == Key::Cgroup, is_hosts, "{pids:?} {path}");
        let place = format!("a process in network namespace {}, cgroup {path}", HOST.0);
        assert_eq!(who.place(), Some(place));
    }
    // /proc has a line for each hierarchy, and two of them name different containers: it names the longest, and no container.
    let mut directory = host();
    connect(&mut directory, Some(1), "/");
    let detail = ProcessDetail { found: true, cgroup: Some(format!("/docker/{ONE}")), ..ProcessDetail::gone(77) };
    directory.learn(&Fact { at: at(1100), said: Said::Process(detail) });
    let who = directory.who(of, at(1101));
    assert!(who.told().is_some_and(|container| container.id.is_empty()), "neither of the two, nor the host: {who:?}");
    // Nobody told of namespaces: an older recording.
    let mut directory = Directory::new(HOST);
    connect(&mut directory, Some(2), "/garden/4f1a");
    assert_eq!(directory.who(of, at(1101)).told(), None);
}
