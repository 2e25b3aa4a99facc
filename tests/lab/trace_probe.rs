//! Does `probe` say whether a container gets a token, why not, and forget the token?

use std::time::Duration;

use anyhow::{Context, Result};
use imds_trace_tests::expect::{assert_no_secret, expect_equal, expect_that};
use imds_trace_tests::obstacle::{self, Family};
use imds_trace_tests::{Container, ContainerSpec, Engine, Outcome, Tracer, junit};
use serde_json::{Value, json};

use crate::Lab;
use crate::trace::{SOON, hops, ours_on};

crate::tests![
    at_a_hop_limit_of_one_it_names_the_drop,
    at_a_hop_limit_of_two_it_reaches_imds,
    over_ipv6_it_asks_the_address_it_is_told,
    a_firewall_in_its_way_is_named,
    a_silent_server_is_no_answer,
    host_networking_is_probed_for_the_container_that_was_asked_for,
    a_shared_network_is_probed_for_the_container_that_was_asked_for,
    a_container_without_a_network_has_no_route,
    a_process_and_a_namespace_can_be_probed_too,
    what_others_ask_meanwhile_is_not_told,
    an_expectation_and_an_exit_code_judge_the_probe,
    what_was_recorded_replays_to_the_same,
    text_begins_with_what_came_of_it,
    what_cannot_be_probed_is_one_sentence,
];

type Told = anyhow::Result<()>;

/// A container in which nothing but a static client waits: it has no part in what is probed.
fn idle(lab: &Lab, name: &str) -> Result<Container> {
    lab.host.run(ContainerSpec::new(name, &["imds-client", "linger", "600"]))
}

/// How a container is named to `probe`: without an engine, by its process.
fn target(lab: &Lab, container: &Container) -> Result<String> {
    match lab.host.engine() {
        Engine::Docker => Ok(container.name().to_owned()),
        Engine::Plain => Ok(format!("pid:{}", container.pid()?)),
    }
}

/// `imds-trace probe` to its end; it must leave nothing behind and tell no secret.
fn run(lab: &Lab, words: &[&str]) -> Result<Outcome> {
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(500));
    lab.host.settle(SOON)?;
    let outcome = Tracer::run_to_end(&lab.host, "probe", words)?;
    expect_equal("nothing of the tracer is left", ours_on(lab.host.runner())?, Vec::new())?;
    let secrets = lab.host.imds().secrets();
    if !secrets.is_empty() {
        let outputs = [("stdout", outcome.stdout.as_bytes()), ("stderr", outcome.stderr.as_bytes())];
        assert_no_secret(&outputs, &[&outcome.dir], &secrets)?;
    }
    Ok(outcome)
}

/// What came of a probe that ran well.
fn probed(outcome: &Outcome) -> Result<&Value> {
    expect_equal("it ran", outcome.status.code(), Some(0)).with_context(|| format!("{outcome:?}"))?;
    expect_equal("one thing came of it", outcome.of_type("probe").len(), 1)?;
    Ok(outcome.of_type("probe")[0])
}

/// What it says in one sentence.
fn summary(probed: &Value) -> &str {
    probed["summary"].as_str().unwrap_or_default()
}

/// Is every exchange and finding the container's?
fn expect_about(lab: &Lab, outcome: &Outcome, container: &Container) -> Result<()> {
    let told: Vec<&Value> = outcome.exchanges().into_iter().chain(outcome.of_type("finding")).collect();
    expect_that("something was told", !told.is_empty(), &outcome.stdout)?;
    for event in told {
        expect_equal("the process", event["process"]["comm"].as_str(), Some("imds-trace"))?;
        if lab.host.engine() == Engine::Docker {
            let id = event["container"]["id"].as_str();
            expect_equal("the container", id, Some(container.id())).with_context(|| event.to_string())?;
            expect_equal("its name", event["container"]["name"].as_str(), Some(container.name()))?;
        }
    }
    Ok(())
}

fn at_a_hop_limit_of_one_it_names_the_drop(lab: &Lab) -> Told {
    let container = idle(lab, "one-hop")?;
    let name = target(lab, &container)?;
    let outcome = run(lab, &[&name])?;
    let probed = probed(&outcome)?;
    let begin = format!("{name} cannot get a token: the token response to ");
    expect_that("it says so", summary(probed).starts_with(&begin), probed)?;
    expect_that("and where", summary(probed).contains("dropped in ip_forward with TTL 1 on ens5"), probed)?;
    expect_equal("it did not reach IMDS", (&probed["reached"], &probed["token"]), (&json!(false), &Value::Null))?;
    expect_equal("the limit", &probed["hop_limit"], &json!({"observed": 1, "needed": 2}))?;
    expect_about(lab, &outcome, &container)?;
    expect_equal("the rule", outcome.findings("hop-limit-too-low").len(), 1)?;
    expect_equal("and no other", outcome.of_type("finding").len(), 1)?;
    let exchanges = outcome.exchanges();
    expect_equal("one request", exchanges.len(), 1)?;
    expect_equal("its way", hops(&exchanges[0]["request"]), vec!["docker0 ingress", "ens5 egress"])?;
    let agent = exchanges[0]["user_agent"].as_str().unwrap_or_default();
    expect_that("it says who it is", agent.starts_with("imds-trace/") && agent.ends_with(" (probe)"), agent)?;
    let asked: Vec<_> = lab.host.imds().requests().iter().map(|request| request.method.clone()).collect();
    expect_equal("nothing more was asked", asked, vec!["PUT".to_owned()])?;
    Ok(())
}

fn at_a_hop_limit_of_two_it_reaches_imds(lab: &Lab) -> Told {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let container = idle(lab, "two-hops")?;
    let name = target(lab, &container)?;
    let outcome = run(lab, &[&name])?;
    let probed = probed(&outcome)?;
    let sentence = format!("{name} reaches IMDS: token and read answered 200; hop limit observed 2, needed 2");
    expect_equal("what came of it", summary(probed), sentence.as_str())?;
    expect_that("it reached IMDS", probed["reached"] == true && probed["read"] == 200, probed)?;
    expect_about(lab, &outcome, &container)?;
    let paths: Vec<_> = outcome.exchanges().iter().map(|exchange| exchange["path"].clone()).collect();
    expect_equal("two requests", paths, vec![json!("/latest/api/token"), json!("/latest/meta-data/instance-id")])?;
    expect_equal("the report has them too", &outcome.report()?["containers"][0]["exchanges"], &json!(2))?;
    Ok(())
}

fn over_ipv6_it_asks_the_address_it_is_told(lab: &Lab) -> Told {
    let container = idle(lab, "six")?;
    let outcome = run(lab, &[&target(lab, &container)?, "--endpoint", "fd00:ec2::254"])?;
    let probed = probed(&outcome)?;
    expect_that("the drop is named", summary(probed).contains("dropped in ip6_forward with TTL 1 on ens5"), probed)?;
    expect_about(lab, &outcome, &container)?;
    Ok(())
}

fn a_firewall_in_its_way_is_named(lab: &Lab) -> Told {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let rule = "DOCKER-USER -d 169.254.169.254 -p tcp --dport 80 -j DROP";
    let _firewall = obstacle::iptables_rule(lab.host.runner(), Family::V4, "filter", rule)?;
    let container = idle(lab, "fenced-off")?;
    let outcome = run(lab, &["fenced-off", "--timeout", "400ms", "--expect", "blocked"])?;
    let probed = probed(&outcome)?;
    expect_that("it cannot", summary(probed).starts_with("fenced-off cannot get a token: "), probed)?;
    expect_that("and why", summary(probed).contains("dropped by a firewall rule of this host"), probed)?;
    expect_about(lab, &outcome, &container)?;
    let judged = &outcome.report()?["expectations"][0];
    expect_that("it is blocked", judged["held"] == true, judged)?;
    Ok(())
}

fn a_silent_server_is_no_answer(lab: &Lab) -> Told {
    lab.host.imds().set(|behaviour| behaviour.silent = true);
    let container = idle(lab, "unheard")?;
    let outcome = run(lab, &[&target(lab, &container)?, "--timeout", "300ms"])?;
    let probed = probed(&outcome)?;
    expect_that("it says what was seen", summary(probed).contains("nothing was seen coming back"), probed)?;
    expect_equal("the rule", outcome.findings("unanswered").len(), 1)?;
    Ok(())
}

fn host_networking_is_probed_for_the_container_that_was_asked_for(lab: &Lab) -> Told {
    let container = lab.host.run(ContainerSpec::new("on-host", &["imds-client", "linger", "600"]).network("host"))?;
    let outcome = run(lab, &[&target(lab, &container)?])?;
    let probed = probed(&outcome)?;
    let limit = "reaches IMDS: token and read answered 200; hop limit observed 1, needed 1";
    expect_that("one hop is enough", summary(probed).ends_with(limit), probed)?;
    expect_about(lab, &outcome, &container)?;
    Ok(())
}

fn a_shared_network_is_probed_for_the_container_that_was_asked_for(lab: &Lab) -> Told {
    let owner = idle(lab, "owner")?;
    let guest =
        lab.host.run(ContainerSpec::new("guest", &["imds-client", "linger", "600"]).network("container:owner"))?;
    expect_equal("they share one", guest.netns_inum()?, owner.netns_inum()?)?;
    for container in [&owner, &guest] {
        let outcome = run(lab, &[container.name()])?;
        let probed = probed(&outcome)?;
        let begin =
            format!("{} cannot get a token: the token response to container {}", container.name(), container.name());
        expect_that("it is the one that was asked for", summary(probed).starts_with(&begin), probed)?;
        expect_about(lab, &outcome, container)?;
        let confidence = outcome.findings("hop-limit-too-low")[0]["confidence"].clone();
        expect_equal("and that is certain", confidence.as_str(), Some("certain"))?;
    }
    // By a beginning of the id too.
    let outcome = run(lab, &[&guest.id()[..12]])?;
    expect_that("by its id", summary(probed(&outcome)?).starts_with("guest "), &outcome.stdout)?;
    Ok(())
}

fn a_container_without_a_network_has_no_route(lab: &Lab) -> Told {
    let container = lab.host.run(ContainerSpec::new("alone", &["imds-client", "linger", "600"]).network("none"))?;
    let outcome = run(lab, &[&target(lab, &container)?])?;
    let probed = probed(&outcome)?;
    expect_that("it says so", summary(probed).contains("the kernel found no route"), probed)?;
    Ok(())
}

fn a_process_and_a_namespace_can_be_probed_too(lab: &Lab) -> Told {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let container = idle(lab, "by-pid")?;
    let pid = container.pid()?;
    for target in [format!("pid:{pid}"), format!("/proc/{pid}/ns/net")] {
        let outcome = run(lab, &[&target])?;
        let begin = format!("{target} reaches IMDS: ");
        expect_that("it is named as typed", summary(probed(&outcome)?).starts_with(&begin), &outcome.stdout)?;
        expect_about(lab, &outcome, &container)?;
    }
    Ok(())
}

fn what_others_ask_meanwhile_is_not_told(lab: &Lab) -> Told {
    let container = idle(lab, "probed")?;
    let words = ["imds-client", "put-only", "--count", "500", "--timeout-ms", "100"];
    let noisy = lab.host.run(ContainerSpec::new("noisy", &words))?;
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(200));
    // The recording must show that there was something not to tell.
    let outcome = Tracer::run_to_end(&lab.host, "probe", &[&target(lab, &container)?, "--expect", "blocked"])?;
    expect_equal("what came of it", probed(&outcome)?["hop_limit"].clone(), json!({"observed": 1, "needed": 2}))?;
    expect_about(lab, &outcome, &container)?;
    expect_equal("one client is in the report", outcome.report()?["containers"].as_array().map(Vec::len), Some(1))?;
    let why = outcome.report()?["expectations"][0]["why"].as_str().unwrap_or_default().to_owned();
    expect_that("and judged", why.contains("(1 exchange)"), why)?;
    let recording = std::fs::read_to_string(&outcome.recording)?;
    let address = format!("\"{}:", noisy.address().context("an address")?);
    let plain = noisy.address().context("an address")?.to_string();
    expect_that("the recording has the others", recording.contains(&address) || recording.contains(&plain), address)?;
    Ok(())
}

fn an_expectation_and_an_exit_code_judge_the_probe(lab: &Lab) -> Told {
    let container = idle(lab, "judged")?;
    let name = target(lab, &container)?;
    let outcome = run(lab, &[&name, "--exit-code"])?;
    expect_equal("an error was found", outcome.status.code(), Some(1))?;
    let outcome = run(lab, &[&name, "--expect", "reachable", "--output", "junit={dir}/it.xml"])?;
    expect_equal("it is not reachable", outcome.status.code(), Some(1))?;
    let cases = junit::read(&outcome.dir.join("it.xml"))?;
    let failed: Vec<_> = cases.iter().filter_map(|case| case.failure.as_ref()).map(|(kind, _)| kind.as_str()).collect();
    expect_equal("JUnit says so", failed, vec!["expectation", "hop-limit-too-low"])?;
    Ok(())
}

fn what_was_recorded_replays_to_the_same(lab: &Lab) -> Told {
    let container = idle(lab, "kept")?;
    let outcome = run(lab, &[&target(lab, &container)?])?;
    let mut replay = lab.host.in_runner(&imds_trace_tests::tracer::program()?.display().to_string());
    let told = replay.args(["replay", "--output", "json"]).arg(&outcome.recording).output().context("replay it")?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let finding = told.lines().find(|line| line.contains("hop-limit-too-low")).context("the finding")?;
    let finding: Value = serde_json::from_str(finding)?;
    expect_equal(
        "it is about the same",
        &finding["container"]["id"],
        &outcome.of_type("finding")[0]["container"]["id"],
    )?;
    expect_equal("and says the same", &finding["summary"], &outcome.of_type("finding")[0]["summary"])?;
    Ok(())
}

fn text_begins_with_what_came_of_it(lab: &Lab) -> Told {
    let container = idle(lab, "read-by-people")?;
    let name = target(lab, &container)?;
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(500));
    let program = imds_trace_tests::tracer::program()?.display().to_string();
    let mut probe = lab.host.in_runner(&program);
    let told = probe.args(["probe", &name]).output().context("probe")?;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    expect_that("the sentence is first", text.starts_with(&format!("{name} cannot get a token: ")), &text)?;
    let position = |part: &str| {
        lines.iter().position(|line| line.contains(part)).with_context(|| format!("{part} is not in\n{text}"))
    };
    let (way, lost) = (position("request   docker0 ingress  ttl 64")?, position("✗ dropped: IP_INHDR (TTL used up)")?);
    let (finding, remedy) = (position("ERROR hop-limit-too-low")?, position("--http-put-response-hop-limit 2")?);
    expect_that("then the way, then why, then what to do", way < lost && lost < finding && finding < remedy, &text)?;
    expect_equal("the way is told once", text.matches("docker0 ingress").count(), 1)?;
    Ok(())
}

fn what_cannot_be_probed_is_one_sentence(lab: &Lab) -> Told {
    let gone = lab.host.run(ContainerSpec::new("gone", &["true"]).foreground())?;
    let mut wrong = vec![
        ("pid:999999999", "there is no process 999999999"),
        ("/no/such/netns", "No such file or directory"),
        ("/etc/passwd", "not a network namespace"),
        ("pid:0", "not a container, pid:N or the path of a network namespace"),
    ];
    if lab.host.engine() == Engine::Docker {
        wrong.extend([("nobody", "no such container"), (gone.name(), "is not running")]);
    }
    for (target, why) in wrong {
        let outcome = run(lab, &[target])?;
        expect_equal(target, outcome.status.code(), Some(2))?;
        let lines: Vec<_> = outcome.stderr.lines().collect();
        expect_that("one sentence", lines.len() == 1 && lines[0].contains(why) && lines[0].contains(target), lines)?;
        expect_equal("and nothing else", outcome.stdout.as_str(), "")?;
    }
    Ok(())
}
