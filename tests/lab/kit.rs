//! Is the lab itself true to what it imitates? No tracer is involved here.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use imds_trace_tests::attached;
use imds_trace_tests::expect::{assert_no_secret, expect_equal, expect_that, wait_until};
use imds_trace_tests::foreign::{ForeignProgram, Rank, Side, Verdict};
use imds_trace_tests::{Container, ContainerSpec, Engine, LimitScope, NetworkSpec, Tokens, Tracer};
use serde_json::Value;

use crate::Lab;

crate::tests![
    a_token_put_dies_when_the_hop_limit_is_one,
    each_lost_copy_is_one_header_error,
    a_hop_limit_of_two_lets_one_forward_pass,
    a_hop_limit_of_one_kills_ipv6_too,
    a_hop_limit_of_two_lets_ipv6_pass,
    a_get_is_not_hop_limited,
    with_tokens_optional_a_fallback_succeeds_late,
    a_limit_on_all_later_packets_kills_a_get_too,
    a_lost_answer_ends_in_a_reset,
    a_restored_ttl_still_loses_the_answer,
    host_networking_needs_no_hop,
    a_network_made_later_works_like_the_first,
    a_network_made_later_has_ipv6,
    statuses_are_those_of_the_real_one,
    a_token_expires,
    a_token_works_from_anywhere_until_it_expires,
    roles_and_credentials_are_served,
    a_silent_server_is_a_timeout,
    a_slow_answer_comes_after_the_client_left,
    a_thousand_requests_take_a_moment,
    a_container_in_the_foreground_leaves_its_words,
    a_container_waits_for_go,
    nothing_of_the_tracer_is_loaded,
    a_foreign_program_is_seen_and_counts,
    the_client_never_prints_a_secret,
    the_machine_itself_cannot_reach_the_lab,
    a_tracer_is_waited_for_heard_and_ended,
    a_tracer_that_cannot_start_says_why,
];

/// What a test returns.
pub type Outcome = anyhow::Result<()>;

/// The longest a test waits for anything.
pub const SOON: Duration = Duration::from_secs(20);

/// Runs `imds-client` with these words in a container to its end.
pub fn client(lab: &Lab, words: &str) -> anyhow::Result<(Container, i32, Vec<Value>)> {
    client_on(lab, None, words)
}

/// The same on a network: `host`, `none` or a name.
pub fn client_on(lab: &Lab, network: Option<&str>, words: &str) -> anyhow::Result<(Container, i32, Vec<Value>)> {
    let args: Vec<_> = std::iter::once("imds-client").chain(words.split_whitespace()).collect();
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let name = format!("client-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let mut spec = ContainerSpec::new(&name, &args);
    spec.network = network.map(str::to_owned);
    let container = lab.host.run(spec)?;
    let code = container.wait(SOON)?;
    let attempts = container.attempts()?;
    Ok((container, code, attempts))
}

/// `put 200`, `get read timeout`, ...
pub fn told(attempts: &[Value]) -> Vec<String> {
    let one = |attempt: &Value| {
        let answer = attempt["status"].as_u64().map(|status| status.to_string());
        let answer = answer.or_else(|| attempt["error"].as_str().map(str::to_owned)).unwrap_or_default();
        format!("{} {answer}", attempt["step"].as_str().unwrap_or_default())
    };
    attempts.iter().map(one).collect()
}

/// All attempts in their order, each as [`told`] says it.
pub fn expect_told(claim: &str, attempts: &[Value], expected: &[&str]) -> anyhow::Result<()> {
    expect_equal(claim, told(attempts), expected.iter().map(|word| (*word).to_owned()).collect())
}

fn a_token_put_dies_when_the_hop_limit_is_one(lab: &Lab) -> Outcome {
    let (_container, code, attempts) = client(lab, "fallback")?;
    expect_told("the PUT is lost, the GET refused", &attempts, &["put read timeout", "get 401"])?;
    expect_equal("the client fails", code, 1)?;
    expect_that("the 401 came at once", attempts[1]["ms"].as_f64() < Some(500.0), &attempts[1])?;
    let seen: Vec<_> = lab.host.imds().requests().into_iter().map(|request| (request.method, request.status)).collect();
    expect_equal("the server answered both", seen, vec![("PUT".into(), Some(200)), ("GET".into(), Some(401))])?;
    Ok(())
}

fn each_lost_copy_is_one_header_error(lab: &Lab) -> Outcome {
    let before = lab.host.ip_in_hdr_errors()?;
    let (_container, ..) = client(lab, "put-only --timeout-ms 1500")?;
    let rise = lab.host.ip_in_hdr_errors()? - before;
    // The answer, its FIN, and retransmissions after 0.2, 0.4, 0.8 s.
    expect_that("the namespace counted the answer and its copies", (3..20).contains(&rise), rise)?;
    Ok(())
}

fn a_hop_limit_of_two_lets_one_forward_pass(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (_container, code, attempts) = client(lab, "v2")?;
    expect_told("both steps succeed", &attempts, &["put 200", "get 200"])?;
    expect_equal("the client succeeds", code, 0)?;
    Ok(())
}

fn a_hop_limit_of_one_kills_ipv6_too(lab: &Lab) -> Outcome {
    let before = lab.host.ip6_in_hdr_errors()?;
    let (_container, _, attempts) = client(lab, "fallback --endpoint fd00:ec2::254")?;
    expect_told("the PUT is lost, the GET refused", &attempts, &["put read timeout", "get 401"])?;
    expect_that("Ip6InHdrErrors rises", lab.host.ip6_in_hdr_errors()? > before, before)?;
    Ok(())
}

fn a_hop_limit_of_two_lets_ipv6_pass(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (_container, code, attempts) = client(lab, "v2 --endpoint fd00:ec2::254")?;
    expect_told("both steps succeed", &attempts, &["put 200", "get 200"])?;
    expect_equal("the client succeeds", code, 0)?;
    Ok(())
}

fn a_get_is_not_hop_limited(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.tokens = Tokens::Optional);
    let (_container, _, attempts) = client(lab, "v1")?;
    expect_told("IMDSv1 passes at hop limit 1", &attempts, &["get 200"])?;
    Ok(())
}

fn with_tokens_optional_a_fallback_succeeds_late(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.tokens = Tokens::Optional);
    let (_container, code, attempts) = client(lab, "fallback")?;
    expect_told("the PUT is lost, IMDSv1 answers", &attempts, &["put read timeout", "get 200"])?;
    expect_equal("the client succeeds", code, 0)?;
    Ok(())
}

fn a_limit_on_all_later_packets_kills_a_get_too(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.limit_scope = LimitScope::AllLater);
    let (_container, _, attempts) = client(lab, "fallback")?;
    expect_told("neither answer arrives", &attempts, &["put read timeout", "get read timeout"])?;
    Ok(())
}

fn a_lost_answer_ends_in_a_reset(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_millis(500));
    let (_container, _, attempts) = client(lab, "put-only --timeout-ms 5000")?;
    expect_told("the reset passes where the answer did not", &attempts, &["put read reset"])?;
    Ok(())
}

fn a_restored_ttl_still_loses_the_answer(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.fin_ttl_restored = true);
    let (_container, _, attempts) = client(lab, "put-only")?;
    expect_told("the PUT is lost", &attempts, &["put read timeout"])?;
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (_container, _, attempts) = client(lab, "v2")?;
    expect_told("and with two hops it is not", &attempts, &["put 200", "get 200"])?;
    Ok(())
}

fn host_networking_needs_no_hop(lab: &Lab) -> Outcome {
    let (_container, code, attempts) = client_on(lab, Some("host"), "v2")?;
    expect_told("hop limit 1 is enough", &attempts, &["put 200", "get 200"])?;
    expect_equal("the client succeeds", code, 0)?;
    Ok(())
}

fn a_network_made_later_works_like_the_first(lab: &Lab) -> Outcome {
    let network = lab.host.network_create(NetworkSpec::new("later"))?;
    let bridges = attached::interfaces(lab.host.runner())?;
    expect_that("its bridge is there", bridges.iter().any(|name| name == network.bridge()), &bridges)?;
    let (_first, _, attempts) = client_on(lab, Some("later"), "fallback")?;
    expect_told("the PUT is lost, the GET refused", &attempts, &["put read timeout", "get 401"])?;
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (_second, _, attempts) = client_on(lab, Some("later"), "v2")?;
    expect_told("one hop more is enough", &attempts, &["put 200", "get 200"])?;
    Ok(())
}

fn a_network_made_later_has_ipv6(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let _network = lab.host.network_create(NetworkSpec { ipv6: true, ..NetworkSpec::new("later6") })?;
    let (_container, _, attempts) = client_on(lab, Some("later6"), "v2 --endpoint fd00:ec2::254")?;
    expect_told("both steps succeed", &attempts, &["put 200", "get 200"])?;
    Ok(())
}

fn statuses_are_those_of_the_real_one(lab: &Lab) -> Outcome {
    let imds = lab.host.imds();
    let ask = |claim: &str, words: &str, expected: &[&str]| -> anyhow::Result<()> {
        let (_container, _, attempts) = client_on(lab, Some("host"), words)?;
        expect_told(claim, &attempts, expected)
    };
    ask("no TTL header", "put-only --token-ttl none", &["put 400"])?;
    ask("a lifetime of zero", "put-only --token-ttl 0", &["put 400"])?;
    ask("more than six hours", "put-only --token-ttl 21601", &["put 400"])?;
    ask("a dated token path", "put-only --token-path /2021-03-23/api/token", &["put 403"])?;
    ask("GET on the token path", "v1 --path /latest/api/token", &["get 405"])?;
    ask("a missing resource", "v2 --path /latest/meta-data/nothing", &["put 200", "get 404"])?;
    ask("no user data", "v2 --path /latest/user-data", &["put 200", "get 404"])?;
    ask("no token where one is required", "v1", &["get 401"])?;
    imds.set(|behaviour| behaviour.tokens = Tokens::Optional);
    ask("no token where none is required", "v1", &["get 200"])?;
    ask("a wrong token even then", "get-with-token AQAEAwrong==", &["get 401"])?;
    imds.set(|behaviour| behaviour.endpoint_enabled = false);
    ask("a disabled endpoint", "fallback", &["put 403", "get 403"])?;
    imds.set(|behaviour| behaviour.forced_status = Some(503));
    ask("a forced status", "fallback", &["put 503", "get 503"])?;
    Ok(())
}

fn a_token_expires(lab: &Lab) -> Outcome {
    let (_container, _, attempts) = client_on(lab, Some("host"), "put-only --token-ttl 1")?;
    expect_told("a token for a second", &attempts, &["put 200"])?;
    let token = lab.host.imds().secrets().pop().context("a token was handed out")?;
    wait_until("the token to expire", SOON, || {
        let (_container, _, attempts) = client_on(lab, Some("host"), &format!("get-with-token {token}")).ok()?;
        (told(&attempts) == ["get 401"]).then_some(())
    })?;
    Ok(())
}

fn a_token_works_from_anywhere_until_it_expires(lab: &Lab) -> Outcome {
    client_on(lab, Some("host"), "put-only")?;
    let token = lab.host.imds().secrets().pop().context("a token was handed out")?;
    let (_container, _, attempts) = client(lab, &format!("get-with-token {token}"))?;
    expect_told("the host's token serves a container at hop limit 1", &attempts, &["get 200"])?;
    Ok(())
}

fn roles_and_credentials_are_served(lab: &Lab) -> Outcome {
    let role = "/latest/meta-data/iam/security-credentials/lab-runner-role";
    let (_container, _, attempts) = client_on(lab, Some("host"), &format!("v2 --path {role}"))?;
    expect_told("a role's credentials", &attempts, &["put 200", "get 200"])?;
    expect_that("they are known as secrets", lab.host.imds().secrets().len() >= 4, lab.host.imds().counts())?;
    lab.host.imds().set(|behaviour| behaviour.role = None);
    let list = "/latest/meta-data/iam/security-credentials/";
    let (_container, _, attempts) = client_on(lab, Some("host"), &format!("v2 --path {list}"))?;
    expect_told("no role", &attempts, &["put 200", "get 404"])?;
    Ok(())
}

fn a_silent_server_is_a_timeout(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.silent = true);
    let (_container, _, attempts) = client_on(lab, Some("host"), "fallback --timeout-ms 300")?;
    expect_told("nothing is answered", &attempts, &["put read timeout", "get read timeout"])?;
    let answered = lab.host.imds().requests().iter().filter(|request| request.status.is_some()).count();
    expect_equal("nor written down as answered", answered, 0)?;
    Ok(())
}

fn a_slow_answer_comes_after_the_client_left(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| {
        behaviour.hop_limit = 2;
        behaviour.delay_token = Duration::from_millis(600);
    });
    let (_container, _, attempts) = client(lab, "put-only --timeout-ms 200")?;
    expect_told("the client left", &attempts, &["put read timeout"])?;
    wait_until("the server to answer all the same", SOON, || {
        lab.host.imds().requests().iter().any(|request| request.status == Some(200)).then_some(())
    })?;
    Ok(())
}

fn a_thousand_requests_take_a_moment(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.tokens = Tokens::Optional);
    let (_container, code, attempts) = client(lab, "v1 --count 500 --parallel 4")?;
    expect_equal("all are reported", attempts.len(), 2000)?;
    expect_equal("all succeed", code, 0)?;
    Ok(())
}

fn a_container_in_the_foreground_leaves_its_words(lab: &Lab) -> Outcome {
    let mut spec = ContainerSpec::new("brief", &["imds-client", "v1"]).foreground();
    spec.remove = true;
    let container = lab.host.run(spec)?;
    expect_told("it was refused", &container.attempts()?, &["get 401"])?;
    expect_equal("and failed", container.wait(SOON)?, 1)?;
    Ok(())
}

fn a_container_waits_for_go(lab: &Lab) -> Outcome {
    let container = lab.host.run(ContainerSpec::new("patient", &["imds-client", "v1"]).wait_for_go())?;
    expect_that(
        "it has a namespace of its own",
        container.netns_inum()? != lab.host.runner().inum(),
        container.pid()?,
    )?;
    expect_that(
        "and an address",
        container.address().is_some() && container.address6().is_some(),
        container.address(),
    )?;
    let ran = container.exec(&["echo", "here"])?;
    expect_equal("one can run more in it", ran.stdout.trim(), "here")?;
    expect_equal("it has asked nothing yet", lab.host.imds().requests().len(), 0)?;
    container.go()?;
    expect_equal("now it asks", container.wait(SOON)?, 1)?;
    expect_told("and is refused", &container.attempts()?, &["get 401"])?;
    if lab.host.engine() == Engine::Docker {
        expect_equal("its id is a full one", container.id().len(), 64)?;
    }
    Ok(())
}

fn nothing_of_the_tracer_is_loaded(lab: &Lab) -> Outcome {
    attached::loaded()?;
    expect_equal("no program hangs on the runner's interfaces", attached::attached(lab.host.runner())?, Vec::new())?;
    Ok(())
}

fn a_foreign_program_is_seen_and_counts(lab: &Lab) -> Outcome {
    let runner = lab.host.runner();
    let first = ForeignProgram::attach(runner, "ens5", Side::Ingress, Rank::First, Verdict::Next, "lab_first")?;
    let last = ForeignProgram::attach(runner, "ens5", Side::Ingress, Rank::Last, Verdict::Next, "lab_last")?;
    let names: Vec<_> = attached::attached(runner)?.into_iter().map(|one| one.program).collect();
    expect_equal("both hang there in order", names, vec!["lab_first".to_owned(), "lab_last".to_owned()])?;
    let (_container, _, attempts) = client(lab, "v1")?;
    expect_told("packets still pass", &attempts, &["get 401"])?;
    expect_that("the first saw them", first.runs()? >= 3, first.runs()?)?;
    expect_that("the last saw them", last.runs()? >= 3, last.runs()?)?;
    drop((first, last));
    expect_equal("then nothing hangs there", attached::attached(runner)?, Vec::new())?;
    Ok(())
}

fn the_client_never_prints_a_secret(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let role = "/latest/meta-data/iam/security-credentials/lab-runner-role";
    let (container, ..) = client(lab, &format!("v2 --path {role}"))?;
    let logs = container.logs()?;
    assert_no_secret(&[("the client's words", logs.as_bytes())], &[], &lab.host.imds().secrets())?;
    Ok(())
}

fn the_machine_itself_cannot_reach_the_lab(lab: &Lab) -> Outcome {
    // Asked of the routing table only; nothing is sent. In the runner the way to IMDS leads through ens5.
    let route = lab.host.runner().ip("route get 169.254.169.254")?;
    expect_that("the runner's way leads through ens5", route.contains("dev ens5"), &route)?;
    let beyond = lab.host.imds_ns().ip("route show default")?;
    expect_equal("and from there nowhere", beyond.trim(), "")?;
    Ok(())
}

/// A program in the tracer's place, which says these things.
fn stand_in(lab: &Lab, name: &str, script: &str) -> anyhow::Result<PathBuf> {
    let path = lab.host.dir().join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}"))?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    Ok(path)
}

fn a_tracer_is_waited_for_heard_and_ended(lab: &Lab) -> Outcome {
    let script = r#"
while [ $# -gt 0 ]; do case $1 in --ready-file) ready=$2;; --record) record=$2;; esac; shift; done
trap 'echo "{\"type\":\"report\",\"netns\":\"$(readlink /proc/self/ns/net)\"}"; echo bye >&2; exit 0' TERM
echo recorded > "$record"; : > "$ready"
echo '{"type":"finding","rule":"hop-limit-too-low","container":{"name":"job-17"}}'
while :; do sleep 0.05; done"#;
    let tracer = Tracer::start_program(&lab.host, &stand_in(lab, "tracer.sh", script)?, &[])?;
    tracer.wait_for_finding("hop-limit-too-low", "job-17", SOON)?;
    let outcome = tracer.stop()?;
    expect_equal("it ends well", outcome.status.code(), Some(0))?;
    expect_equal("the finding is heard", outcome.rules_about("job-17"), vec!["hop-limit-too-low".to_owned()])?;
    let netns = format!("net:[{}]", lab.host.runner().inum());
    expect_equal("it ran on the runner host", outcome.report()?["netns"].as_str(), Some(netns.as_str()))?;
    expect_equal("its last words are kept", outcome.stderr.as_str(), "bye\n")?;
    expect_equal("its recording too", std::fs::read_to_string(&outcome.recording)?, "recorded\n".to_owned())?;
    Ok(())
}

fn a_tracer_that_cannot_start_says_why(lab: &Lab) -> Outcome {
    let program = stand_in(lab, "broken.sh", "echo 'no BTF here' >&2; exit 2")?;
    match Tracer::start_program(&lab.host, &program, &[]) {
        Ok(_) => anyhow::bail!("it started"),
        Err(error) => Ok(expect_that("its reason is told", format!("{error:#}").contains("no BTF here"), error)?),
    }
}
