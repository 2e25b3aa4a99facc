//! Does a list let through whom it names, and nobody else?

use std::net::IpAddr;

use std::rc::Rc;

use super::*;
use crate::identity::Process;
use crate::net::Netns;

fn process(exe: Option<&str>, uid: u32) -> Option<Rc<Process>> {
    Some(Rc::new(Process {
        pid: 4711,
        tid: 4711,
        uid,
        gid: uid,
        comm: "agent".into(),
        exe: exe.map(str::to_owned),
        argv: None,
        started: None,
        pid_in_container: None,
        pid_namespace: None,
        netns: Netns(1),
        cgroup_id: 1,
        cgroup: None,
        ancestors: Vec::new(),
    }))
}

fn host(exe: &str) -> Attribution {
    let address = IpAddr::from([10, 0, 0, 10]);
    Attribution { process: process(Some(exe), 0), by: Key::Cgroup, ..Attribution::of_nobody(Some(address)) }
}

fn container(image: &str, exe: &str) -> Attribution {
    let container =
        Container { id: "c0ffee".into(), name: Some("web".into()), image: Some(image.into()), ..Container::default() };
    Attribution { container: Some(container), ..host(exe) }
}

const ROLE: Wanted<'_> =
    Wanted::Credentials { path: "/latest/meta-data/iam/security-credentials/deploy", role: "deploy" };

fn fits(list: &str, who: &Attribution, wanted: Wanted<'_>) -> Fits {
    AllowList::parse(list).unwrap().fits(who, wanted)
}

#[test]
fn all_keys_of_one_entry_must_fit() {
    let list = "[[client]]\nimage = \"registry.example/ci/*\"\nexe = [\"/usr/bin/python3*\", \"/usr/bin/aws\"]\nuid = 0\nrole = \"deploy\"\n";
    let python = container("registry.example/ci/build:3", "/usr/bin/python3.11");
    assert_eq!(fits(list, &python, Wanted::Token), Fits::Yes);
    assert_eq!(fits(list, &python, ROLE), Fits::Yes);
    let other = Wanted::Credentials { path: "/latest/meta-data/iam/security-credentials/admin", role: "admin" };
    assert_eq!(fits(list, &python, other), Fits::No);
    assert_eq!(fits(list, &container("registry.example/ci/build:3", "/tmp/x"), ROLE), Fits::No);
    assert_eq!(fits(list, &container("evil/registry.example/ci/x", "/usr/bin/aws"), ROLE), Fits::No);
    let root = Attribution { process: process(Some("/usr/bin/aws"), 1000), ..python };
    assert_eq!(fits(list, &root, ROLE), Fits::No);
    assert_eq!(fits("", &host("/usr/bin/aws"), Wanted::Token), Fits::No);
}

#[test]
fn a_container_does_not_pass_for_the_host_nor_the_host_for_a_container() {
    let agent = "[[client]]\nexe = \"/usr/bin/amazon-ssm-agent\"\n";
    assert_eq!(fits(agent, &host("/usr/bin/amazon-ssm-agent"), ROLE), Fits::Yes);
    assert_eq!(fits(agent, &container("x", "/usr/bin/amazon-ssm-agent"), ROLE), Fits::No);
    let any = "[[client]]\ncontainer = \"*\"\nexe = \"/usr/bin/amazon-ssm-agent\"\n";
    assert_eq!(fits(any, &container("x", "/usr/bin/amazon-ssm-agent"), ROLE), Fits::Yes);
    assert_eq!(fits(any, &host("/usr/bin/amazon-ssm-agent"), ROLE), Fits::No);
}

#[test]
fn what_is_not_known_fits_nothing_and_is_told_apart() {
    let list = "[[client]]\nimage = \"x\"\nexe = \"/usr/bin/aws\"\n";
    let unread = Attribution { process: process(None, 0), ..container("x", "") };
    assert_eq!(fits(list, &unread, ROLE), Fits::NotKnown("its executable"));
    let other = Attribution { process: process(None, 0), ..container("y", "") };
    assert_eq!(fits(list, &other, ROLE), Fits::No, "the image says no");
    let nobody = Attribution { container: None, process: None, by: Key::Unknown, ..unread };
    assert!(matches!(fits(list, &nobody, ROLE), Fits::NotKnown(_)));
}

#[test]
fn what_is_no_list_is_one_sentence() {
    for (list, part) in [
        ("[[client]]\nimages = \"x\"\n", "line 2: unknown field `images`"),
        ("[[clients]]\n", "unknown field"),
        ("client", "line 1"),
        ("[[client]]\n", "client 1: it names nobody"),
        ("[[client]]\nrole = \"x\"\n", "client 1: it names nobody"),
        ("[[client]]\nimage = \"\"\n", "a value is empty"),
        ("[[client]]\nimage = \"x\"\nuid = -1\n", "expected one value"),
    ] {
        let why = AllowList::parse(list).unwrap_err();
        assert!(why.contains(part) && !why.contains('\n'), "{list:?}: {why}");
    }
}

#[test]
fn an_entry_lets_its_client_through_and_no_other_whatever_it_is_called() {
    for exe in ["/usr/bin/aws", "/a \"b\"\\", "/a\nexe = \"/x\"", "/\u{1b}[31m/ü/\u{202e}", "/a]\n[[client]]"] {
        let who = container("registry.example/x", exe);
        let text = entry(&who, &["deploy".to_owned()]).unwrap();
        assert!(text.lines().count() == 5 && text.bytes().all(|b| b == b'\n' || (32..127).contains(&b)), "{text}");
        assert_eq!(fits(&text, &who, ROLE), Fits::Yes, "{text}");
        assert_eq!(fits(&text, &container("registry.example/x", "/x"), ROLE), Fits::No);
        assert_eq!(fits(&text, &container("registry.example/y", exe), ROLE), Fits::No);
        let own = entry(&host(exe), &[]).unwrap();
        assert_eq!((fits(&own, &host(exe), ROLE), fits(&own, &who, ROLE)), (Fits::Yes, Fits::No));
    }
    for exe in ["*", "/usr/bin/?"] {
        assert!(entry(&container("x", exe), &[]).unwrap_err().contains("a pattern for others"));
    }
    assert!(entry(&container("*", "/x"), &[]).is_err());
    assert!(entry(&Attribution { by: Key::Unknown, ..host("/x") }, &[]).is_err());
    assert!(entry(&Attribution { process: None, ..host("/x") }, &[]).is_err());
}
