//! Does `doctor` ever contradict what `watch` finds on the same host at the same time?
//!
//! One trace of clients that ask one after the other, each with something of its own in its way, and `doctor` while it is there. Where
//! `watch` finds an error, `doctor` must have named it or said that it does not know; where all is answered, it must not warn.

use anyhow::{Context, Result, bail};
use imds_trace_tests::expect::expect_that;
use imds_trace_tests::obstacle::{self, Family, MetadataProxy, Traffic, Verdict};
use imds_trace_tests::topology::{Nested, Relayed};
use imds_trace_tests::{Container, ContainerSpec, Engine, Namespace, NetworkSpec, Obstacle};
use serde_json::Value;

use crate::Lab;
use crate::doctor::{Undo, changed, doctor, sysctl};
use crate::trace::{SOON, Seen, client, watched};

crate::tests![
    where_watch_finds_an_error_doctor_named_it_or_did_not_know,
    where_all_is_answered_doctor_warns_of_nothing,
    behind_a_second_bridge_or_a_relay_they_agree,
];

type Outcome = anyhow::Result<()>;

/// Something that is in the way until it is dropped.
trait InTheWay {}

impl InTheWay for Obstacle {}
impl InTheWay for MetadataProxy {}
impl<F: FnMut()> InTheWay for Undo<F> {}
impl<T: InTheWay> InTheWay for Vec<T> {}
impl<A: InTheWay + ?Sized, B: InTheWay + ?Sized> InTheWay for (Box<A>, Box<B>) {}

type Held<'a> = Box<dyn InTheWay + 'a>;

/// Puts it up at a host, which holds until what it gives is dropped.
type PutUp<'a> = Box<dyn FnOnce(&Namespace) -> Result<Held<'a>> + 'a>;

/// A client, and what is put in its way, given its namespace.
struct Turn<'a> {
    spec: ContainerSpec,
    put_up: PutUp<'a>,
}

fn turn<'a>(name: &str, put_up: impl FnOnce(&Namespace) -> Result<Held<'a>> + 'a) -> Turn<'a> {
    Turn { spec: client(name, "put-only --timeout-ms 400"), put_up: Box::new(put_up) }
}

/// With an obstacle of the kit.
fn behind<'a>(name: &str, put_up: impl FnOnce(&Namespace) -> Result<Obstacle> + 'a) -> Turn<'a> {
    turn(name, |own| Ok(Box::new(put_up(own)?)))
}

/// The checks of which one must tell what a rule finds. A rule that is not here names no cause: any will do.
const SAME: &[(&str, &[&str])] = &[
    ("firewall-drop", &["firewall"]),
    ("refused", &["firewall", "route"]),
    ("redirected-away", &["firewall", "route"]),
    ("no-port", &["firewall", "conntrack"]),
    ("no-route", &["route"]),
    ("not-forwarding", &["ip-forward", "route"]),
    ("reverse-path", &["rp-filter", "route"]),
    ("not-masqueraded", &["masquerade", "firewall"]),
    ("misrouted-answer", &["rp-filter", "route"]),
    ("kernel-drop", &["route"]),
];

/// What both said of one client.
struct Both {
    container: Container,
    answers: Vec<Value>,
}

fn asked_in_turn(lab: &Lab, turns: Vec<Turn>) -> Result<(Seen, Vec<Both>)> {
    watched(lab, &[], |_| {
        let turns = turns.into_iter().map(|turn| {
            let container = lab.host.run(turn.spec)?;
            let name = container.name().to_owned();
            let _held = (turn.put_up)(&container.namespace()?).with_context(|| name.clone())?;
            let answers = doctor(lab, &[]).with_context(|| name)?;
            container.go()?;
            container.wait(SOON)?;
            lab.host.settle(SOON)?;
            Ok(Both { container, answers })
        });
        turns.collect()
    })
}

/// Answers that are not ok, of these checks or of all; what is never known in the lab is left out.
fn not_ok<'a>(both: &'a Both, checks: &[&str]) -> Vec<&'a Value> {
    let never_known = ["kernel", "instance", "ena", "engine", "hop-limit", "environment"];
    let wanted = |check: &str| if checks.is_empty() { !never_known.contains(&check) } else { checks.contains(&check) };
    let answers = both.answers.iter();
    answers.filter(|answer| answer["status"] != "ok" && wanted(answer["check"].as_str().unwrap_or_default())).collect()
}

/// They agree about this client; true if it failed.
fn agree(seen: &Seen, both: &Both) -> Result<bool> {
    let name = both.container.name();
    let errors = seen.findings().into_iter().filter(|finding| {
        seen.is_about(finding, &both.container)
            && finding["severity"] == "error"
            && finding["rule"] != "hop-limit-too-low"
    });
    let errors: Vec<&Value> = errors.collect();
    for error in &errors {
        let rule = error["rule"].as_str().unwrap_or_default();
        let checks = SAME.iter().find(|(known, _)| *known == rule).map_or(&[][..], |(_, checks)| checks);
        if not_ok(both, checks).is_empty() {
            let answers = not_ok(both, &[]);
            bail!(
                "{name}: watch finds {rule} ({}), and doctor says of {checks:?} that all is well; else it says {answers:#?}",
                error["summary"]
            );
        }
    }
    let answered = seen.exchanges(&both.container).iter().all(|exchange| exchange["answered"] == true);
    if errors.is_empty() && answered {
        let bad: Vec<_> = not_ok(both, &[]).into_iter().filter(|answer| answer["status"] != "unknown").collect();
        expect_that(&format!("{name} was answered, and doctor has nothing to warn of"), bad.is_empty(), &bad)?;
    }
    Ok(!errors.is_empty())
}

fn where_watch_finds_an_error_doctor_named_it_or_did_not_know(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let runner = lab.host.runner();
    let nft = |hook, traffic, verdict| obstacle::nft(runner, hook, Family::V4, traffic, verdict);
    let mut turns = vec![
        behind("user-drop", |_| obstacle::docker_user(&lab.host, Family::V4, Traffic::ToImds, Verdict::Drop)),
        behind("user-reject", |_| obstacle::docker_user(&lab.host, Family::V4, Traffic::ToImds, Verdict::Reject)),
        behind("answers-drop", |_| obstacle::docker_user(&lab.host, Family::V4, Traffic::Answers, Verdict::Drop)),
        behind("nft-forward", |_| nft("forward", Traffic::ToImds, Verdict::Drop)),
        behind("nft-prerouting", |_| nft("prerouting", Traffic::ToImds, Verdict::Drop)),
        behind("nft-postrouting", |_| nft("postrouting", Traffic::ToImds, Verdict::Drop)),
        behind("nft-answers", |_| nft("forward", Traffic::FromImds, Verdict::Drop)),
        behind("own-drop", |own| obstacle::iptables(own, "OUTPUT", Family::V4, Traffic::ToImds, Verdict::Drop)),
        behind("own-input", |own| obstacle::iptables(own, "INPUT", Family::V4, Traffic::FromImds, Verdict::Drop)),
        behind("own-nft", |own| obstacle::nft(own, "output", Family::V4, Traffic::ToImds, Verdict::Drop)),
        behind("own-no-route", |own| obstacle::no_route(own, Family::V4)),
        behind("own-prohibit", |own| obstacle::prohibited_route(own, Family::V4, "prohibit")),
        behind("own-blackhole", |own| obstacle::prohibited_route(own, Family::V4, "blackhole")),
        behind("host-no-route", |_| obstacle::no_route(runner, Family::V4)),
        behind("host-prohibit", |_| obstacle::prohibited_route(runner, Family::V4, "prohibit")),
        behind("host-unreachable", |_| obstacle::prohibited_route(runner, Family::V4, "unreachable")),
        behind("host-blackhole", |_| obstacle::prohibited_route(runner, Family::V4, "blackhole")),
        behind("not-forwarding", |_| obstacle::not_forwarding(runner)),
        turn("not-forwarding-by-one", |_| Ok(Box::new(sysctl(runner, "net/ipv4/conf/docker0/forwarding", "0", "1")?))),
        turn("answers-not-forwarded", |_| Ok(Box::new(sysctl(runner, "net/ipv4/conf/ens5/forwarding", "0", "1")?))),
        behind("to-nobody", |_| obstacle::redirect(runner, "docker0", "10.77.0.10:8181")),
        behind("to-loopback", |_| obstacle::redirect(runner, "docker0", "127.0.0.1:8181")),
        behind("to-nowhere", |_| obstacle::redirect(runner, "docker0", "192.0.2.1:80")),
        behind("reverse-path", |_| obstacle::reverse_path(&lab.host)),
        behind("answers-elsewhere", |_| obstacle::answers_elsewhere(&lab.host)),
        behind("stale-neighbour", |own| obstacle::stale_neighbour(&lab.host, own)),
        behind("past-the-router", obstacle::past_the_router),
        turn("strict-second-uplink", |_| second_uplink(lab, true, true)),
        turn("into-a-tunnel", |_| {
            let tunnel = changed(runner, "ip", "tuntap add dev tun7 mode tun", "tuntap del dev tun7 mode tun")?;
            runner.ip("link set tun7 up")?;
            runner.ip("route add default dev tun7 table 52")?;
            let rule = changed(runner, "ip", "rule add prio 5270 lookup 52", "rule del prio 5270")?;
            Ok(Box::new((Box::new(rule), Box::new(tunnel))))
        }),
    ];
    let bare = lab.host.network_create(NetworkSpec::new("bare").unmasqueraded())?;
    let mut unmasqueraded = behind("unmasqueraded", |_| Ok(Obstacle::default()));
    unmasqueraded.spec = unmasqueraded.spec.network(bare.name());
    turns.push(unmasqueraded);
    let (seen, all) = asked_in_turn(lab, turns)?;
    let mut wrong = Vec::new();
    for both in &all {
        match agree(&seen, both) {
            Ok(true) => {}
            Ok(false) => wrong.push(format!(
                "{}: watch finds no error: {:#?}",
                both.container.name(),
                seen.exchanges(&both.container)
            )),
            Err(why) => wrong.push(format!("{why:#}")),
        }
    }
    expect_that("they agree", wrong.is_empty(), wrong.join("\n"))
}

/// A second card to IMDS, by which containers of docker0 leave: by a mark, which the way back does not have, or by their interface,
/// which it has. Strict, the kernel drops answers in the first case.
fn second_uplink(lab: &Lab, strict: bool, by_mark: bool) -> Result<Held<'_>> {
    let (runner, imds) = (lab.host.runner(), lab.host.imds_ns());
    let link = changed(runner, "ip", "link add ens6 type veth peer name eth1", "link del ens6")?;
    runner.ip(&format!("link set eth1 netns {}", imds.name()))?;
    for (namespace, words) in [
        (imds, "addr add 10.88.0.1/24 dev eth1"),
        (imds, "link set eth1 up"),
        (runner, "addr add 10.88.0.10/24 dev ens6"),
        (runner, "link set ens6 up"),
        (runner, "route add default via 10.88.0.1 dev ens6 table 100"),
    ] {
        namespace.ip(words)?;
    }
    runner.sysctl("net/ipv4/conf/ens6/rp_filter", if strict { "1" } else { "0" })?;
    if by_mark {
        let mark = "PREROUTING -i docker0 -d 169.254.169.254 -j MARK --set-mark 7";
        let mark = obstacle::iptables_rule(runner, Family::V4, "mangle", mark)?;
        let rule = changed(runner, "ip", "rule add fwmark 7 lookup 100", "rule del fwmark 7 lookup 100")?;
        return Ok(Box::new((Box::new(rule), Box::new((Box::new(mark), Box::new(link))))));
    }
    let rule = changed(runner, "ip", "rule add iif docker0 lookup 100", "rule del iif docker0 lookup 100")?;
    Ok(Box::new((Box::new(rule), Box::new(link))))
}

/// A pod's own link in place of a network: its namespace has nothing yet.
fn pods_own_link<'a>(lab: &'a Lab, own: &Namespace, pid: u32) -> Result<Held<'a>> {
    let runner = lab.host.runner();
    let link =
        changed(runner, "ip", &format!("link add eni17 type veth peer name eth0 netns {pid}"), "link del eni17")?;
    for words in [
        "addr add 10.99.0.200/32 dev eth0",
        "link set eth0 up",
        "route add 169.254.1.1 dev eth0 scope link",
        "route add default via 169.254.1.1 dev eth0",
    ] {
        own.ip(words)?;
    }
    own.ip("neigh replace 169.254.1.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent")?;
    runner.ip("link set eni17 address 02:00:00:00:00:01")?;
    runner.ip("link set eni17 up")?;
    runner.ip("route add 10.99.0.200 dev eni17 scope link")?;
    let rule = "POSTROUTING -s 10.99.0.200/32 -o ens5 -j SNAT --to-source 10.77.0.10";
    let masked = obstacle::iptables_rule(runner, Family::V4, "nat", rule)?;
    Ok(Box::new((Box::new(masked), Box::new(link))))
}

fn where_all_is_answered_doctor_warns_of_nothing(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let runner = lab.host.runner();
    let nothing = |_: &Namespace| Ok(Obstacle::default());
    let ci = lab.host.network_create(NetworkSpec::new("ci"))?;
    let other = lab.host.network_create(NetworkSpec::new("other"))?;
    let mut on_ci = behind("on-ci", nothing);
    on_ci.spec = on_ci.spec.network(ci.name());
    let turns = vec![
        behind("plain", nothing),
        on_ci,
        turn("second-uplink", |_| second_uplink(lab, false, true)),
        turn("strict-second-uplink-by-interface", |_| second_uplink(lab, true, false)),
        turn("strict-and-symmetric", |_| Ok(Box::new(sysctl(runner, "net/ipv4/conf/ens5/rp_filter", "1", "0")?))),
        behind("others-are-blocked", |_| {
            let rule = format!("FORWARD -i {} -d 169.254.169.254 -j DROP", other.bridge());
            obstacle::iptables_rule(runner, Family::V4, "filter", &rule)
        }),
        behind("all-but-these", |_| {
            obstacle::iptables_rule(
                runner,
                Family::V4,
                "filter",
                "FORWARD -d 169.254.169.254 ! -s 172.17.0.0/16 -j DROP",
            )
        }),
        behind("other-pods", |_| {
            obstacle::iptables_rule(runner, Family::V4, "filter", "FORWARD -i eni+ -d 169.254.169.254 -j DROP")
        }),
        turn("proxied", |_| Ok(Box::new(MetadataProxy::start(&lab.host, "docker0")?))),
        turn("a-stricter-route", |_| {
            Ok(Box::new(changed(runner, "ip", "route add 169.254.169.254 via 10.77.0.1", "route del 169.254.169.254")?))
        }),
        turn("a-tunnel-beside", |_| {
            let tunnel = changed(runner, "ip", "tuntap add dev tun8 mode tun", "tuntap del dev tun8 mode tun")?;
            runner.ip("link set tun8 up")?;
            runner.ip("route add 10.200.0.0/16 dev tun8")?;
            Ok(Box::new(tunnel))
        }),
    ];
    let (seen, all) = asked_in_turn(lab, turns)?;
    if lab.host.engine() == Engine::Docker {
        let alone =
            |name| Turn { spec: client(name, "put-only --timeout-ms 400").network("none"), ..behind(name, nothing) };
        let host =
            Turn { spec: client("in-host", "put-only --timeout-ms 400").network("host"), ..behind("in-host", nothing) };
        let (seen, both) = asked_in_turn(lab, vec![host])?;
        agree(&seen, &both[0])?;
        let (seen, both) = watched(lab, &[], |_| {
            let container = lab.host.run(alone("pod").spec)?;
            let _link = pods_own_link(lab, &container.namespace()?, container.pid()?)?;
            let answers = doctor(lab, &[])?;
            container.go()?;
            container.wait(SOON)?;
            lab.host.settle(SOON)?;
            Ok(Both { container, answers })
        })?;
        expect_that(
            "the pod was answered",
            !agree(&seen, &both)? && !seen.exchanges(&both.container).is_empty(),
            seen.exchanges(&both.container),
        )?;
    }
    let mut wrong = Vec::new();
    for both in &all {
        match agree(&seen, both) {
            Ok(false) if !seen.exchanges(&both.container).is_empty() => {}
            Ok(_) => wrong.push(format!("{} was not answered: {:#?}", both.container.name(), seen.findings())),
            Err(why) => wrong.push(format!("{why:#}")),
        }
    }
    expect_that("they agree", wrong.is_empty(), wrong.join("\n"))
}

fn behind_a_second_bridge_or_a_relay_they_agree(lab: &Lab) -> Outcome {
    if lab.host.engine() != Engine::Docker {
        return Ok(());
    }
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 3);
    let nested = Nested::start(&lab.host, "nest")?;
    let relayed = Relayed::start(&lab.host, "relayed")?;
    let (seen, answers) = watched(lab, &[], |_| {
        let answers = doctor(lab, &[])?;
        nested.asks("put-only --timeout-ms 400")?;
        relayed.client().asks("put-only --timeout-ms 400")?;
        Ok(answers)
    })?;
    seen.expect_no_error()?;
    let bad = answers.iter().filter(|answer| answer["status"] == "broken" || answer["status"] == "warning");
    let bad: Vec<_> = bad.filter(|answer| answer["check"] != "kernel").collect();
    expect_that("doctor has nothing to warn of", bad.is_empty(), &bad)?;
    // In the container that forwards, a rule drops what comes from behind.
    let _fence =
        obstacle::iptables(&nested.outer().namespace()?, "FORWARD", Family::V4, Traffic::ToImds, Verdict::Drop)?;
    let answers = doctor(lab, &[])?;
    // Where its packets go once another container has them is not followed.
    let told = answers.iter().any(|answer| answer["check"] == "route" && answer["status"] == "unknown");
    expect_that("that a way leads over another container is said not to be known", told, &answers)?;
    let relayed = relayed.client().name();
    let unsure = answers
        .iter()
        .any(|answer| answer["subject"] == relayed && answer["check"] == "route" && answer["status"] == "unknown");
    expect_that("so is that over the relay", unsure, &answers)
}
