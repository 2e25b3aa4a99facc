//! Does a capture that anybody could have made say what the tracer would have said, as far as a capture can?

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use imds_trace_tests::capturer::{Capturer, FILTER};
use imds_trace_tests::expect::{assert_no_secret, expect_equal, expect_that};
use imds_trace_tests::{ContainerSpec, Namespace, tracer};
use serde_json::{Value, json};

use crate::Lab;
use crate::trace::{SOON, client, run_all};

crate::tests![
    a_capture_on_any_shows_that_a_token_response_was_lost,
    over_ipv6_a_capture_on_any_shows_the_same,
    a_capture_on_any_without_interfaces_shows_the_same,
    a_capture_of_the_uplink_alone_shows_it_too,
    a_capture_of_two_interfaces_shows_it_too,
    where_a_hop_limit_of_two_is_enough_no_capture_shows_an_error,
    a_capture_in_the_container_accuses_nobody,
    a_capture_of_the_bridge_alone_accuses_nobody,
    a_capture_shows_that_nothing_came_back,
];

type Outcome = anyhow::Result<()>;

const IMDS6: &str = "put-only --endpoint fd00:ec2::254";
/// A lost answer is sent three times while its client waits (after 0, 0.2 and 0.6 s), and once more when that has gone.
const GIVE_UP: Duration = Duration::from_millis(1500);

/// A file that goes with the test.
struct Captured(PathBuf);

impl Drop for Captured {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Captures while containers run, with tcpdump in the runner's namespace.
fn captured(lab: &Lab, args: &[&str], specs: Vec<ContainerSpec>) -> Result<Captured> {
    lab.host.imds().set(|behaviour| behaviour.give_up = GIVE_UP);
    lab.host.settle(SOON)?;
    let path = lab.host.dir().join("capture.pcap");
    let capturer = Capturer::tcpdump(lab.host.runner(), &path, &[args, &[FILTER]].concat())?;
    run_all(lab, specs)?;
    lab.host.settle(SOON)?;
    Ok(Captured(capturer.stop()?))
}

/// What is said of a capture; without any secret, though the capture has some.
fn told(lab: &Lab, file: &Path) -> Result<Vec<Value>> {
    let mut command = imds_trace_tests::children::command(tracer::program()?);
    command.args(["replay", "--output", "json"]).arg(file);
    let output = command.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    expect_that("it ends well and quietly", output.status.success() && stderr.is_empty(), &stderr)?;
    let secrets = lab.host.imds().secrets();
    if !secrets.is_empty() {
        assert_no_secret(&[("stdout", &output.stdout)], &[], &secrets)?;
    }
    let text = String::from_utf8(output.stdout)?;
    text.lines().map(|line| serde_json::from_str(line).context("not JSON")).collect()
}

/// The last word on each rule.
fn findings<'a>(events: &'a [Value], rule: &str) -> Option<&'a Value> {
    events.iter().rev().find(|event| event["type"] == "finding" && event["rule"] == rule)
}

fn expect_no_error(events: &[Value]) -> Result<()> {
    let errors: Vec<_> = events.iter().filter(|event| event["severity"] == "error").collect();
    expect_that("no finding is an error", errors.is_empty(), &errors)
}

fn expect_lost(events: &[Value], address: &str) -> Result<()> {
    let finding = findings(events, "hop-limit-too-low").context("no hop-limit-too-low")?;
    expect_equal("how sure it is", finding["confidence"].as_str(), Some("likely"))?;
    expect_equal("whose it is", finding["address"].as_str(), Some(address))?;
    expect_equal("what it says of the limit", &finding["hop_limit"], &json!({"observed": 1, "needed": 2}))?;
    let summary = finding["summary"].as_str().unwrap_or_default();
    expect_that("it says what it rests on", summary.contains("Inferred from a capture"), summary)?;
    let remedy = finding["remedy"][0].as_str().unwrap_or_default();
    expect_that("what mends it", remedy.contains("--http-put-response-hop-limit 2"), finding)?;
    let others: Vec<_> =
        events.iter().filter(|event| event["severity"] == "error" && event["rule"] != "hop-limit-too-low").collect();
    expect_that("no other error is found", others.is_empty(), &others)
}

fn a_capture_on_any_shows_that_a_token_response_was_lost(lab: &Lab) -> Outcome {
    let file = captured(lab, &["-i", "any"], vec![client("job-17", "put-only")])?;
    expect_lost(&told(lab, &file.0)?, "172.17.0.2")
}

fn over_ipv6_a_capture_on_any_shows_the_same(lab: &Lab) -> Outcome {
    let file = captured(lab, &["-i", "any"], vec![client("job-17", IMDS6)])?;
    expect_lost(&told(lab, &file.0)?, "fd00:d0c::242:ac11:2")
}

fn a_capture_on_any_without_interfaces_shows_the_same(lab: &Lab) -> Outcome {
    for (words, address) in [("put-only", "172.17.0.2"), (IMDS6, "fd00:d0c::242:ac11:2")] {
        let file = captured(lab, &["-i", "any", "-y", "LINUX_SLL"], vec![client("job-17", words)])?;
        expect_lost(&told(lab, &file.0)?, address)?;
    }
    Ok(())
}

fn a_capture_of_the_uplink_alone_shows_it_too(lab: &Lab) -> Outcome {
    let file = captured(lab, &["-i", "ens5"], vec![client("job-17", "put-only")])?;
    expect_lost(&told(lab, &file.0)?, "10.77.0.10")?;
    let file = captured(lab, &["-i", "ens5", "--nano"], vec![client("job-18", IMDS6)])?;
    expect_lost(&told(lab, &file.0)?, "fd77::10")
}

fn a_capture_of_two_interfaces_shows_it_too(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.give_up = GIVE_UP);
    lab.host.settle(SOON)?;
    let path = lab.host.dir().join("capture.pcapng");
    let capturer = Capturer::dumpcap(lab.host.runner(), &path, &["-i", "docker0", "-i", "ens5"])?;
    run_all(lab, vec![client("job-17", "put-only")])?;
    lab.host.settle(SOON)?;
    let file = Captured(capturer.stop()?);
    let events = told(lab, &file.0)?;
    expect_lost(&events, "172.17.0.2")?;
    let exchange = events.iter().find(|event| event["type"] == "exchange").context("no exchange")?;
    let hooks: Vec<_> = crate::trace::hops(&exchange["request"]);
    expect_equal("where the request was seen", hooks, vec!["docker0 ingress", "ens5 egress"])?;
    Ok(())
}

fn where_a_hop_limit_of_two_is_enough_no_capture_shows_an_error(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    for args in [&["-i", "any"][..], &["-i", "any", "-y", "LINUX_SLL"], &["-i", "ens5"], &["-i", "docker0"]] {
        let words = ["v2", "v2 --endpoint fd00:ec2::254"];
        let file = captured(lab, args, vec![client("job-17", words[0]), client("job-18", words[1])])?;
        let events = told(lab, &file.0)?;
        expect_no_error(&events).with_context(|| format!("{args:?}"))?;
        let exchanges: Vec<_> = events.iter().filter(|event| event["type"] == "exchange").collect();
        expect_equal("each request is an exchange", exchanges.len(), 4).with_context(|| format!("{args:?}"))?;
        let answered = exchanges.iter().filter(|exchange| exchange["status"] == 200).count();
        expect_equal("each was answered", answered, 4).with_context(|| format!("{args:?}"))?;
    }
    Ok(())
}

fn a_capture_in_the_container_accuses_nobody(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.give_up = GIVE_UP);
    lab.host.settle(SOON)?;
    let job = lab.host.run(client("job-17", "put-only"))?;
    let path = lab.host.dir().join("capture.pcap");
    let inside: Namespace = job.namespace()?;
    let capturer = Capturer::tcpdump(&inside, &path, &["-i", "eth0", FILTER])?;
    job.go()?;
    job.wait(SOON)?;
    let file = Captured(capturer.stop()?);
    expect_no_error(&told(lab, &file.0)?)
}

fn a_capture_of_the_bridge_alone_accuses_nobody(lab: &Lab) -> Outcome {
    let file = captured(lab, &["-i", "docker0"], vec![client("job-17", "put-only")])?;
    expect_no_error(&told(lab, &file.0)?)
}

fn a_capture_shows_that_nothing_came_back(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.silent) = (2, true));
    for args in [["-i", "any"], ["-i", "ens5"]] {
        let file = captured(lab, &args, vec![client("job-17", "put-only")])?;
        let events = told(lab, &file.0)?;
        let finding = findings(&events, "unanswered").with_context(|| format!("no unanswered: {events:#?}"))?;
        expect_equal("how sure it is", finding["confidence"].as_str(), Some("likely"))?;
    }
    Ok(())
}
