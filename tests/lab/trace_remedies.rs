//! Do the commands of a finding show the fault, or mend it, when they are typed where it is?

use anyhow::{Context, Result};
use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::obstacle::{self, Family, Traffic, Verdict};
use imds_trace_tests::{Container, ContainerSpec, NetworkSpec, Obstacle, Tokens};
use serde_json::{Value, json};

use crate::Lab;
use crate::trace::{Seen, watched};

crate::tests![
    a_namespace_without_a_free_port_is_named_and_mended,
    an_answer_that_fails_the_reverse_path_is_mended,
    what_leaves_unmasqueraded_is_mended,
    a_firewall_rule_is_shown,
    a_missing_route_is_shown_in_the_containers_own_namespace,
    a_redirect_is_shown,
    the_rule_that_takes_an_answer_elsewhere_is_shown,
];

/// A container that lives until it is dropped.
fn living(lab: &Lab, name: &str, network: Option<&str>) -> Result<Container> {
    let spec = ContainerSpec::new(name, &["imds-client", "linger", "120"]);
    lab.host.run(match network {
        Some(network) => spec.network(network),
        None => spec,
    })
}

/// What a tracer saw while a container asked with something in its way, which is still there.
fn asked(lab: &Lab, container: &Container, words: &str, obstacle: Obstacle) -> Result<(Seen, Obstacle)> {
    let (seen, ()) = watched(lab, &[], |_| container.asks(words).map(drop))?;
    Ok((seen, obstacle))
}

/// Types every command of a finding that can be run here, in the runner's namespace; all that they printed.
fn typed(lab: &Lab, finding: &Value) -> Result<String> {
    let mut printed = String::new();
    for command in finding["remedy"].as_array().context("what to do")? {
        let command = command.as_str().context("a command")?;
        let program = command.split(' ').next().unwrap_or_default();
        let is_there = lab.host.runner().run("sh", &["-c", &format!("command -v {program}")]).is_ok();
        // AWS is not asked; and what has a gap is not for typing as it stands.
        if program != "aws" && is_there && !command.contains('<') {
            // A look at what is wrong may itself fail, and say why: `ip route get` without a route.
            let output = lab.host.in_runner("sh").args(["-c", command]).output()?;
            printed += &String::from_utf8_lossy(&output.stdout);
            printed += &String::from_utf8_lossy(&output.stderr);
        }
    }
    expect_that("something was typed", !printed.is_empty(), finding)?;
    Ok(printed)
}

fn is_answered(container: &Container, words: &str) -> Result<()> {
    let attempts = container.asks(words)?;
    let well = !attempts.is_empty() && attempts.iter().all(|attempt| attempt["status"] == json!(200));
    expect_that("it is mended", well, &attempts)
}

fn a_namespace_without_a_free_port_is_named_and_mended(lab: &Lab) -> Result<()> {
    lab.host.imds().set(|behaviour| {
        (behaviour.hop_limit, behaviour.delay_get) = (3, std::time::Duration::from_millis(400));
        behaviour.tokens = Tokens::Optional;
    });
    let container = living(lab, "portless", None)?;
    container.namespace()?.sysctl("net/ipv4/ip_local_port_range", "40000 40000")?;
    let words = "v1 --parallel 3 --timeout-ms 3000";
    let (seen, _obstacle) = asked(lab, &container, words, Obstacle::default())?;
    let finding = seen.only(&container, "no-port")?;
    expect_equal("how sure", finding["confidence"].as_str(), Some("certain"))?;
    expect_equal("two of three got none", &finding["count"], &json!(2))?;
    let rules = seen.rules(&container);
    expect_that("nothing else is the cause", !rules.contains(&"no-route") && !rules.contains(&"refused"), &rules)?;
    let printed = typed(lab, finding)?;
    expect_that("the range is shown", printed.contains("40000"), &printed)?;
    // What may make a range narrower is no command: who has seen that this one is narrow is told what to type.
    let caution = finding["caution"].as_str().unwrap_or_default();
    let told = ["range is 32768 to 60999", "`sysctl -w net.ipv4.ip_local_port_range`"];
    expect_that("and how it is widened", told.iter().all(|part| caution.contains(part)), caution)?;
    container.namespace()?.run("sysctl", &["-w", "net.ipv4.ip_local_port_range=32768 60999"])?;
    is_answered(&container, words)
}

fn an_answer_that_fails_the_reverse_path_is_mended(lab: &Lab) -> Result<()> {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 3);
    let container = living(lab, "misled", None)?;
    let words = "put-only --timeout-ms 1500";
    let (seen, _obstacle) = asked(lab, &container, words, obstacle::reverse_path(&lab.host)?)?;
    typed(lab, seen.only(&container, "reverse-path")?)?;
    is_answered(&container, words)
}

fn what_leaves_unmasqueraded_is_mended(lab: &Lab) -> Result<()> {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 3);
    let network = lab.host.network_create(NetworkSpec::new("bare").unmasqueraded())?;
    let container = living(lab, "bare-one", Some(network.name()))?;
    let words = "put-only --timeout-ms 1500";
    let (seen, _obstacle) = asked(lab, &container, words, Obstacle::default())?;
    let finding = seen.only(&container, "not-masqueraded")?;
    typed(lab, finding)?;
    let mended = is_answered(&container, words);
    // The rule that was typed goes again, whatever came of it.
    let added = finding["remedy"].as_array().and_then(|all| all.last()).and_then(Value::as_str).context("the rule")?;
    let deleted = added.replacen(" -I POSTROUTING 1 ", " -D POSTROUTING ", 1);
    lab.host.runner().run("sh", &["-c", &deleted])?;
    mended
}

fn a_firewall_rule_is_shown(lab: &Lab) -> Result<()> {
    let container = living(lab, "fenced", None)?;
    let runner = lab.host.runner();
    let rule = obstacle::docker_user(&lab.host, Family::V4, Traffic::ToImds, Verdict::Drop)
        .or_else(|_| obstacle::iptables(runner, "FORWARD", Family::V4, Traffic::ToImds, Verdict::Drop))?;
    let (seen, _obstacle) = asked(lab, &container, "put-only --timeout-ms 400", rule)?;
    let printed = typed(lab, seen.only(&container, "firewall-drop")?)?;
    let is_shown = printed.lines().any(|line| line.contains("DROP") && line.contains("169.254.169.254"));
    expect_that("the rule is shown", is_shown, &printed)
}

fn a_missing_route_is_shown_in_the_containers_own_namespace(lab: &Lab) -> Result<()> {
    let container = living(lab, "astray", None)?;
    let obstacle = obstacle::no_route(&container.namespace()?, Family::V4)?;
    let (seen, _obstacle) = asked(lab, &container, "put-only", obstacle)?;
    let printed = typed(lab, seen.only(&container, "no-route")?)?;
    expect_that("there is none", printed.contains("unreachable"), &printed)
}

fn a_redirect_is_shown(lab: &Lab) -> Result<()> {
    let container = living(lab, "stale-proxy", None)?;
    let rule = obstacle::redirect(lab.host.runner(), "docker0", "10.77.0.10:8181")?;
    let (seen, _obstacle) = asked(lab, &container, "put-only --timeout-ms 400", rule)?;
    let printed = typed(lab, seen.only(&container, "refused")?)?;
    expect_that("the rule is shown", printed.contains("10.77.0.10:8181"), &printed)
}

fn the_rule_that_takes_an_answer_elsewhere_is_shown(lab: &Lab) -> Result<()> {
    let container = living(lab, "behind-a-vpn", None)?;
    let (seen, _obstacle) =
        asked(lab, &container, "put-only --timeout-ms 2500", obstacle::answers_elsewhere(&lab.host)?)?;
    let printed = typed(lab, seen.only(&container, "misrouted-answer")?)?;
    expect_that("the wrong way is shown", printed.contains("vpn0"), &printed)
}
