//! Is everybody named by the files of the runtime that made the container, in every kind of network, and nobody by another's name?

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use imds_trace_tests::expect::{expect_equal, expect_that, wait_until};
use imds_trace_tests::runtimes::{self, Backend, Cni, Node, OWN_CARD, PodContainer, Podman, PodmanContainer};
use imds_trace_tests::{ContainerSpec, Tracer, tracer};
use serde_json::{Value, json};

use crate::Lab;
use crate::doctor::{changed, doctor};
use crate::trace::{SOON, Seen, watched};

crate::tests![
    a_pod_on_a_bridge_is_named_and_needs_two,
    a_pod_with_a_route_of_its_own_is_named_and_needs_two,
    a_pod_beside_the_uplink_is_named_and_needs_one,
    a_pod_in_the_hosts_network_is_named_and_needs_one,
    a_pod_with_a_card_of_its_own_is_named_and_nothing_holds_of_it,
    a_container_of_podman_is_named_without_its_engine,
    a_container_of_podman_with_cni_is_named_without_its_engine,
    a_container_of_docker_is_named_without_its_engine,
    a_probe_finds_what_is_printed,
    whoever_nobody_can_name_is_told_by_namespace_and_cgroup,
    a_crowd_over_all_runtimes_is_told_apart,
];

type Outcome = anyhow::Result<()>;

/// How clients wait for the word.
const WAITING: [&str; 3] = ["imds-client", "v2", "--wait-file"];
/// A client that dies of its hop limit need not wait long for that.
const IMPATIENT: [&str; 2] = ["--timeout-ms", "400"];
/// No engine, and none of this machine's.
const NO_ENGINE: [&str; 2] = ["--docker-host", "unix:///no/such/engine.sock"];

/// Options by which the tracer finds the lab's runtimes, and no engine.
fn options(lab: &Lab) -> Result<Vec<String>> {
    let root = runtimes::root(&lab.host)?.display().to_string();
    Ok([NO_ENGINE[0], NO_ENGINE[1], "--host-root", &root].map(str::to_owned).to_vec())
}

/// What the tracer said while clients did this.
fn traced<T>(lab: &Lab, hop_limit: u8, story: impl FnOnce(&Tracer) -> Result<T>) -> Result<(Seen, T)> {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = hop_limit);
    let options = options(lab)?;
    watched(lab, &options.iter().map(String::as_str).collect::<Vec<_>>(), story)
}

fn text(seen: &Seen) -> Result<String> {
    let output = Command::new(tracer::program()?).arg("replay").arg(&seen.outcome.recording).output()?;
    ensure!(output.status.success(), "replay: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn of<'a>(seen: &'a Seen, id: &str) -> Vec<&'a Value> {
    seen.outcome.exchanges().into_iter().filter(|exchange| exchange["container"]["id"] == id).collect()
}

/// The table of what this file's tests saw.
const TABLE: &str = include_str!("../../docs/findings.md");

/// A container of a kind, which waits for a word to ask, or sleeps.
trait Client {
    fn id(&self) -> &str;
    fn go(&self) -> Result<()>;
    /// What its runtime chose for its pod.
    fn pod(&self) -> Vec<(&str, &str)> {
        Vec::new()
    }
}

impl Client for PodContainer<'_> {
    fn id(&self) -> &str {
        &self.id
    }

    fn go(&self) -> Result<()> {
        PodContainer::go(self)
    }

    fn pod(&self) -> Vec<(&str, &str)> {
        vec![("uid", &self.uid), ("sandbox", &self.sandbox)]
    }
}

impl Client for PodmanContainer<'_> {
    fn id(&self) -> &str {
        &self.id
    }

    fn go(&self) -> Result<()> {
        PodmanContainer::go(self)
    }
}

/// What is to be said of a container of a kind.
struct Kind<'a> {
    /// As the table calls it.
    name: &'a str,
    /// The container as JSON has it, as far as it is known before.
    container: Value,
    /// As text has it; also what `probe` is to take.
    told: &'a str,
    probed: &'a str,
    needed: u64,
}

/// One asks with a hop limit of 1 and one with 2, one is probed and looked at by `doctor`, whose worst word counts: all is as the table
/// has it.
fn expect_row<C: Client>(lab: &Lab, kind: &Kind<'_>, run: impl Fn(&[&str]) -> Result<C>) -> Outcome {
    let mut lost_at = Vec::new();
    for hop_limit in [1, 2] {
        let args = [&WAITING[..], &["/go"], &IMPATIENT[..]].concat();
        let (seen, container) = traced(lab, hop_limit, |tracer| {
            let container = run(&args)?;
            container.go()?;
            tracer.wait_for("an exchange of it", SOON, |events| {
                let is_its = |event: &&Value| event["type"] == "exchange" && event["container"]["id"] == container.id();
                events.iter().find(is_its).map(|_| ())
            })?;
            Ok(container)
        })?;
        let exchanges = of(&seen, container.id());
        let told = exchanges.first().context("an exchange of it")?;
        for (name, value) in kind.container.as_object().context("an object")? {
            match value.as_object() {
                Some(parts) => parts.iter().try_for_each(|(part, value)| {
                    expect_equal(&format!("its {name}.{part}"), &told["container"][name][part], value)
                })?,
                None => expect_equal(&format!("its {name}"), &told["container"][name], value)?,
            }
        }
        for (name, value) in container.pod() {
            expect_equal(&format!("its pod's {name}"), &told["container"]["pod"][name], &json!(value))?;
        }
        expect_equal("nobody else asked", exchanges.len(), seen.outcome.exchanges().len())?;
        expect_equal("what it needs", &told["hop_limit"]["needed"], &json!(kind.needed))?;
        let text = text(&seen)?;
        expect_that("people are told", text.contains(kind.told), &text)?;
        if seen.findings().iter().any(|finding| finding["rule"] == "hop-limit-too-low") {
            lost_at.push(hop_limit.to_string());
        }
    }
    let container = run(&["sleep", "1000"])?;
    let options = options(lab)?;
    let words: Vec<&str> = options.iter().map(String::as_str).chain([kind.probed]).collect();
    let probe = Tracer::run_to_end(&lab.host, "probe", &words)?;
    expect_that("its probe ends well", probe.status.success(), &probe)?;
    let asked = probe.exchanges();
    expect_equal(
        "it asks for that one",
        &asked.first().context("it asks")?["container"]["id"],
        &json!(container.id()),
    )?;
    let words: Vec<&str> = options.iter().map(String::as_str).collect();
    let answers = doctor(lab, &words)?;
    let about: Vec<_> = answers.iter().filter(|answer| is_about(answer, kind)).collect();
    let limits = about.iter().filter(|answer| answer["check"] == "hop-limit");
    let words = format!("hop limit of {}", kind.needed);
    let agrees = |answer: &&&Value| answer["summary"].as_str().is_some_and(|text| text.contains(&words));
    expect_equal("doctor says that it needs as much", limits.clone().filter(agrees).count(), limits.count())?;
    let worst = ["broken", "warning", "unknown", "ok"];
    let worst = worst.into_iter().find(|status| about.iter().any(|answer| answer["status"] == *status));
    let lost_at = if lost_at.is_empty() { "-".to_owned() } else { lost_at.join(", ") };
    let row = format!(
        "| {} | `{}` | {} | {lost_at} | `{}` | {} |",
        kind.name,
        kind.told,
        kind.needed,
        kind.probed,
        worst.unwrap_or("-")
    );
    expect_that("docs/findings.md has this row", TABLE.lines().any(|line| line == row), (&row, &about))
}

fn is_about(answer: &Value, kind: &Kind<'_>) -> bool {
    // Of a pod the network is spoken of, which its containers share.
    let name = kind.probed.split('/').next().unwrap_or(kind.probed);
    answer["subject"].as_str().is_some_and(|subject| subject.contains(name))
}

/// A pod of one container.
fn pod(lab: &Lab, name: &str, cni: Cni, on_node: bool, needed: u64) -> Outcome {
    let node = Node::start(&lab.host, cni)?;
    let container = json!({
        "pod": {"name": "web-7d4b9", "namespace": "shop"}, "name": "app", "image": "localhost/imdslab:1", "runtime": "containerd"
    });
    let told = "pod web-7d4b9/app (namespace shop)";
    let kind = Kind { name, container, told, probed: "web-7d4b9/app", needed };
    expect_row(lab, &kind, |args| node.run("web-7d4b9", "shop", "app", on_node, args))
}

fn a_pod_on_a_bridge_is_named_and_needs_two(lab: &Lab) -> Outcome {
    pod(lab, "containerd: pod on a bridge", Cni::Bridge, false, 2)
}

fn a_pod_with_a_route_of_its_own_is_named_and_needs_two(lab: &Lab) -> Outcome {
    pod(lab, "containerd: pod with a routed veth", Cni::Routed, false, 2)
}

fn a_pod_beside_the_uplink_is_named_and_needs_one(lab: &Lab) -> Outcome {
    pod(lab, "containerd: pod on a macvlan", Cni::Macvlan, false, 1)
}

fn a_pod_in_the_hosts_network_is_named_and_needs_one(lab: &Lab) -> Outcome {
    pod(lab, "containerd: pod with hostNetwork", Cni::Bridge, true, 1)
}

fn a_pod_with_a_card_of_its_own_is_named_and_nothing_holds_of_it(lab: &Lab) -> Outcome {
    let (runner, imds) = (lab.host.runner(), lab.host.imds_ns());
    let card = format!("link add beyond type veth peer name {OWN_CARD} netns {}", runner.name());
    let _card = changed(imds, "ip", &card, "link del beyond")?;
    imds.ip("addr add 10.89.0.1/24 dev beyond")?;
    imds.ip("link set beyond up")?;
    let node = Node::start(&lab.host, Cni::Card)?;
    let (name, namespace, container) = ("web-7d4b9", "shop", "app");
    let args = [&WAITING[..], &["/go"], &IMPATIENT[..]].concat();
    // Nobody forwards its answers, so a hop limit of 1 is enough for it.
    let (seen, id) = traced(lab, 1, |tracer| {
        let pod = node.run(name, namespace, container, false, &args)?;
        pod.go()?;
        tracer.wait_for("its connection", SOON, |events| {
            let is_its = |event: &&Value| event["type"] == "unseen" && event["container"]["id"] == *pod.id;
            events.iter().find(is_its).map(|_| ())
        })?;
        Ok(pod.id.clone())
    })?;
    expect_equal("no hook saw an exchange", seen.outcome.exchanges().len(), 0)?;
    let all = seen.outcome.events.iter().filter(|event| event["type"] == "unseen");
    for unseen in all {
        expect_equal("whose it was", &unseen["container"]["id"], &json!(id))?;
        expect_equal("its pod", &unseen["container"]["pod"]["name"], &json!(name))?;
        expect_that("it was answered", unseen["received"].as_u64() > Some(0), unseen)?;
    }
    let text = text(&seen)?;
    let told = format!("pod {name}/{container} (namespace {namespace})");
    expect_that("people are told", text.contains(&told) && !text.contains("Nothing wrong"), &text)?;
    for claim in ["blocked", "v2-only", "no-errors"] {
        let mut replay = Command::new(tracer::program()?);
        let judged = replay.arg("replay").arg(&seen.outcome.recording).args(["--expect", claim]).output()?;
        expect_equal(&format!("{claim} does not hold"), judged.status.code(), Some(1))?;
    }
    let pod = node.run(name, namespace, container, false, &["sleep", "1000"])?;
    let options = options(lab)?;
    let probed = format!("{name}/{container}");
    let words: Vec<&str> = options.iter().map(String::as_str).chain([probed.as_str()]).collect();
    let probe = Tracer::run_to_end(&lab.host, "probe", &words)?;
    let summary = probe.events.iter().find(|event| event["type"] == "probe").context("what it found")?;
    let says = summary["summary"].as_str().unwrap_or_default();
    expect_that("it reaches IMDS", says.contains("reaches IMDS: token and read answered 200"), summary)?;
    expect_that("and nothing was seen of that", says.contains("none of its packets was seen"), summary)?;
    let words: Vec<&str> = options.iter().map(String::as_str).collect();
    let answers = doctor(lab, &words)?;
    // The lab's host is no machine of its own, so whoever has no link to it may be anybody's.
    let about = answers.iter().find(|answer| answer["subject"].as_str().is_some_and(|subject| subject.contains(name)));
    expect_that("doctor does not judge whom it cannot tell to be of this host", about.is_none(), about)?;
    drop(pod);
    let row = format!("| containerd: pod with a card of its own | `{told}` | - | - | `{probed}` | - |");
    expect_that("docs/findings.md has this row", TABLE.lines().any(|line| line == row), &row)
}

fn podman(lab: &Lab, name: &str, backend: Backend) -> Outcome {
    let podman = Podman::start(&lab.host, backend)?;
    let container = json!({"name": "web", "image": "localhost/imdslab:1", "runtime": "podman"});
    let kind = Kind { name, container, told: "web", probed: "web", needed: 2 };
    expect_row(lab, &kind, |args| podman.run("web", &[], args))
}

fn a_container_of_podman_is_named_without_its_engine(lab: &Lab) -> Outcome {
    podman(lab, "podman, netavark", Backend::Netavark)
}

fn a_container_of_podman_with_cni_is_named_without_its_engine(lab: &Lab) -> Outcome {
    podman(lab, "podman, CNI", Backend::Cni)
}

fn a_container_of_docker_is_named_without_its_engine(lab: &Lab) -> Outcome {
    let (seen, container) = traced(lab, 2, |_| {
        // It begins at once, and is gone when the engine would have spoken.
        let spec = ContainerSpec::new("job-17", &["imds-client", "v2"]).foreground();
        lab.host.run(spec.label("com.gitlab.gitlab-runner.job.id", "4711"))
    })?;
    let exchanges = of(&seen, container.id());
    expect_equal("both exchanges are its", exchanges.len(), 2)?;
    let told = &exchanges[0]["container"];
    expect_equal("its name", &told["name"], &json!("job-17"))?;
    expect_equal("its image", &told["image"], &json!("imdslab"))?;
    expect_equal("its job", &told["job"]["id"], &json!("4711"))?;
    Ok(())
}

fn a_probe_finds_what_is_printed(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let node = Node::start(&lab.host, Cni::Bridge)?;
    let pod = node.run("web-7d4b9", "shop", "app", false, &["sleep", "1000"])?;
    let other = node.run("web-7d4b9", "ci", "app", false, &["sleep", "1000"])?;
    let options = options(lab)?;
    let probe = |target: &str| {
        let options: Vec<&str> = options.iter().map(String::as_str).chain([target]).collect();
        Tracer::run_to_end(&lab.host, "probe", &options)
    };
    for target in ["shop/web-7d4b9/app", "shop/web-7d4b9", &pod.id, &pod.id[..12]] {
        let outcome = probe(target)?;
        expect_that(&format!("probe {target} ends well"), outcome.status.success(), &outcome)?;
        let exchanges = outcome.exchanges();
        let told = &exchanges.first().with_context(|| format!("probe {target} asks: {outcome:?}"))?["container"];
        expect_equal("for that container", &told["id"], &json!(pod.id))?;
        expect_equal("in its pod", &told["pod"]["namespace"], &json!("shop"))?;
    }
    let outcome = probe("web-7d4b9/app")?;
    expect_equal("two have that name", outcome.status.code(), Some(2))?;
    for name in ["ci/web-7d4b9/app", "shop/web-7d4b9/app"] {
        expect_that("and both are named", outcome.stderr.contains(name), &outcome.stderr)?;
    }
    drop(other);
    Ok(())
}

fn whoever_nobody_can_name_is_told_by_namespace_and_cgroup(lab: &Lab) -> Outcome {
    let program = std::env::current_exe()?;
    let client =
        program.ancestors().skip(1).take(2).map(|folder| folder.join("imds-client")).find(|path| path.is_file());
    let client = client.context("imds-client is beside the tests")?;
    let alone = imds_trace_tests::Namespace::create(&format!("imdslab-{}-alone", std::process::id()))?;
    let runner = lab.host.runner();
    alone.ip(&format!("link add eth0 type veth peer name alone0 netns {}", runner.name()))?;
    alone.ip("addr add 10.99.0.2/24 dev eth0")?;
    alone.ip("link set eth0 up")?;
    runner.ip("addr add 10.99.0.1/24 dev alone0")?;
    runner.ip("link set alone0 up")?;
    alone.ip("route add default via 10.99.0.1")?;
    runner.run("iptables", &["-t", "nat", "-A", "POSTROUTING", "-s", "10.99.0.0/24", "-j", "MASQUERADE"])?;
    let seen = traced(lab, 2, |_| {
        let ran = alone.command(&client).args(["v2"]).output()?;
        expect_equal("it is served", ran.status.code(), Some(0))
    });
    let undone = runner.run("iptables", &["-t", "nat", "-D", "POSTROUTING", "-s", "10.99.0.0/24", "-j", "MASQUERADE"]);
    let (seen, ()) = seen?;
    undone?;
    let exchanges = seen.outcome.exchanges();
    expect_equal("its two exchanges", exchanges.len(), 2)?;
    for exchange in exchanges {
        expect_equal("it is not the host", exchange["container"].is_null(), false)?;
        for unknown in ["id", "name", "runtime", "pod"] {
            expect_equal(unknown, &exchange["container"][unknown], &Value::Null)?;
        }
        expect_equal("where it is", &exchange["process"]["netns"], &json!(alone.inum()))?;
    }
    let text = text(&seen)?;
    let words = format!("a process in network namespace {}, cgroup /", alone.inum());
    expect_that("people are told", text.contains(&words) && !text.contains("this host"), &text)?;
    Ok(())
}

/// Containers of one runtime in the crowd, and clients of each, one after the other.
const CONTAINERS: usize = 3;
const CLIENTS: usize = 56;

fn a_crowd_over_all_runtimes_is_told_apart(lab: &Lab) -> Outcome {
    let node = Node::start(&lab.host, Cni::Bridge)?;
    let podman = Podman::start(&lab.host, Backend::Netavark)?;
    // Each client is a process of its own, and says who it is.
    let script = |name: &str| {
        format!(
            "while [ ! -e /go ]; do true; done; i=0; while [ $i -lt {CLIENTS} ]; do imds-client v2 --user-agent {name}; i=$((i+1)); \
             done; touch /done; sleep 1000"
        )
    };
    let (seen, names) = traced(lab, 2, |tracer| {
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        let mut pods: Vec<PodContainer<'_>> = Vec::new();
        let mut others = Vec::new();
        let mut dockers = Vec::new();
        for number in 0..CONTAINERS {
            let name = |runtime: &str| format!("{runtime}-{number}");
            let pod = node.run(&name("pod"), "shop", &name("pod"), false, &["sh", "-c", &script(&name("pod"))])?;
            names.insert(name("pod"), pod.id.clone());
            pods.push(pod);
            let other = podman.run(&name("podman"), &[], &["sh", "-c", &script(&name("podman"))])?;
            names.insert(name("podman"), other.id.clone());
            others.push(other);
            let docker = lab.host.run(ContainerSpec::new(&name("docker"), &["sh", "-c", &script(&name("docker"))]))?;
            names.insert(name("docker"), docker.id().to_owned());
            dockers.push(docker);
        }
        pods.iter().try_for_each(PodContainer::go)?;
        others.iter().try_for_each(|other| other.go())?;
        for docker in &dockers {
            std::fs::write(format!("/proc/{}/root/go", docker.pid()?), "go")?;
        }
        let all = 3 * CONTAINERS * CLIENTS * 2;
        wait_until("all exchanges", SOON * 2, || {
            let told = tracer.events().iter().filter(|event| event["type"] == "exchange").count();
            (told >= all).then_some(())
        })?;
        Ok(names)
    })?;
    let exchanges = seen.outcome.exchanges();
    let mut wrong = Vec::new();
    for exchange in &exchanges {
        let claims = exchange["user_agent"].as_str().and_then(|name| names.get_key_value(name));
        let told = &exchange["container"];
        let is_right = claims.is_some_and(|(name, id)| told["id"] == id.as_str() && told["name"] == name.as_str());
        if !is_right {
            wrong.push(format!("{}: {}", exchange["user_agent"], told));
        }
    }
    expect_equal("each is with the right container", wrong, Vec::new())?;
    expect_equal("and all are there", exchanges.len(), 3 * CONTAINERS * CLIENTS * 2)?;
    Ok(())
}
