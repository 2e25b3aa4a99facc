//! Does `doctor` find what would break IMDS, name it, and leave everything as it is?

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use imds_trace::ethtool;
use imds_trace_tests::expect::{expect_equal, expect_that, expect_valid};
use imds_trace_tests::obstacle::{self, Family};
use imds_trace_tests::{Container, ContainerSpec, Engine, Namespace, NetworkSpec, children, tracer};
use serde_json::Value;

use crate::Lab;

crate::tests![
    a_healthy_host_has_nothing_broken,
    a_host_that_does_not_forward_is_broken,
    a_rule_for_containers_that_drops_is_named,
    a_rule_of_nftables_that_drops_is_named,
    a_rule_that_may_drop_is_no_error,
    a_rule_inside_a_container_is_named_with_it,
    a_legacy_rule_is_read_too,
    a_rule_about_others_is_not_told,
    a_drivers_counter_is_read_by_its_name,
    a_container_whose_route_is_prohibited_is_broken,
    an_endpoint_that_is_a_local_address_is_not_imds,
    a_strict_interface_with_the_way_back_elsewhere_is_broken,
    a_strict_interface_that_only_containers_leave_by_is_broken,
    a_network_without_masquerading_is_named,
    a_switch_that_turns_sdks_away_is_broken_and_a_proxy_never_told,
    the_hop_limit_needed_follows_the_network_mode,
    without_root_it_says_what_is_needed,
];

type Outcome = anyhow::Result<()>;

/// What `doctor` said.
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs `doctor` on the runner host, to its end.
fn run(mut command: std::process::Command) -> Result<Said> {
    let output = command.stdin(Stdio::null()).output().with_context(|| children::show(&command))?;
    Ok(Said {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// `doctor` with JSON and these words more, which ends well.
pub fn doctor(lab: &Lab, words: &[&str]) -> Result<Vec<Value>> {
    let program = tracer::program()?;
    let mut command = lab.host.in_runner(&program.to_string_lossy());
    command.args(["doctor", "--output", "json"]).args(words);
    read(&run(command)?, 0)
}

/// One valid object on each line: answers, then one summary that counts them.
fn read(said: &Said, code: i32) -> Result<Vec<Value>> {
    expect_equal("its exit code", said.code, Some(code)).with_context(|| said.stderr.clone())?;
    let lines = said.stdout.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")));
    let mut lines: Vec<Value> = lines.collect::<Result<_>>()?;
    lines.iter().try_for_each(expect_valid)?;
    let summary = lines.pop().context("a summary")?;
    expect_equal("the last line", summary["type"].as_str(), Some("summary"))?;
    for status in ["ok", "warning", "broken", "unknown"] {
        let told = lines.iter().filter(|line| line["status"] == status).count();
        expect_equal(&format!("how many are {status}"), summary[status].as_u64(), Some(told as u64))?;
    }
    for line in &lines {
        let complete = line["type"] == "check" && line["check"].is_string() && line["subject"].is_string();
        expect_that("a line says what was checked, and a sentence", complete && line["summary"].is_string(), line)?;
    }
    Ok(lines)
}

/// The answers of a check about something with this status.
fn about<'a>(answers: &'a [Value], check: &str, subject: &str, status: &str) -> Vec<&'a Value> {
    let fits = |answer: &&Value| answer["check"] == check && answer["subject"] == subject && answer["status"] == status;
    answers.iter().filter(fits).collect()
}

/// The one answer of a check about something with this status, whose sentence has all of these parts.
pub fn expect<'a>(answers: &'a [Value], check: &str, subject: &str, status: &str, parts: &[&str]) -> Result<&'a Value> {
    let told: Vec<_> = answers.iter().filter(|answer| answer["check"] == check).collect();
    let found = about(answers, check, subject, status);
    let fits = |answer: &&&Value| {
        let summary = answer["summary"].as_str().unwrap_or_default();
        parts.iter().all(|part| summary.contains(part))
    };
    match found.iter().filter(fits).collect::<Vec<_>>()[..] {
        [one] => Ok(one),
        ref some => bail!("{} of {check} about {subject} are {status} and have {parts:?}: {told:#?}", some.len()),
    }
}

pub fn expect_nothing_broken(answers: &[Value]) -> Result<()> {
    let broken: Vec<_> = answers.iter().filter(|answer| answer["status"] == "broken").collect();
    expect_that("nothing is broken", broken.is_empty(), &broken)
}

/// A container that only waits.
pub fn waiting(lab: &Lab, name: &str) -> Result<Container> {
    lab.host.run(ContainerSpec::new(name, &["sleep", "1000"]))
}

/// Undoes something when it is dropped.
pub struct Undo<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for Undo<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The name of a port of docker0: the host's end of a container's link.
pub fn port_of_docker0(runner: &Namespace) -> Result<String> {
    let links = runner.ip("-o link show type veth")?;
    let port = links.lines().find(|line| line.contains("master docker0")).context("a port of docker0")?;
    Ok(port.split([':', '@']).nth(1).context("its name")?.trim().to_owned())
}

/// Runs these words of a program in a namespace, and others when the result is dropped.
pub fn changed<'a>(
    namespace: &'a Namespace,
    program: &'a str,
    to: &str,
    back: &'a str,
) -> Result<Undo<impl FnMut() + 'a>> {
    namespace.run(program, &to.split_whitespace().collect::<Vec<_>>())?;
    Ok(Undo(move || {
        let _ = namespace.run(program, &back.split_whitespace().collect::<Vec<_>>());
    }))
}

pub fn sysctl<'a>(namespace: &'a Namespace, key: &'a str, to: &str, back: &'a str) -> Result<Undo<impl FnMut() + 'a>> {
    namespace.sysctl(key, to)?;
    Ok(Undo(move || {
        let _ = namespace.sysctl(key, back);
    }))
}

/// Whatever shows that something was changed. Of IPv6 not the addresses: link-local ones settle by themselves.
fn state(lab: &Lab) -> Result<Vec<String>> {
    let runner = lab.host.runner();
    // Counters of packets aside.
    let rules = runner.run("nft", &["-s", "list", "ruleset"])?;
    let routes = runner.ip("-4 route show table all")?;
    let qdiscs = runner.run("tc", &["qdisc"])?;
    Ok(vec![rules, runner.ip("-4 addr")?, routes, runner.ip("rule")?, qdiscs])
}

fn with_engine(lab: &Lab) -> bool {
    lab.host.engine() == Engine::Docker
}

fn a_healthy_host_has_nothing_broken(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let before = state(lab)?;
    let answers = doctor(lab, &["--exit-code"])?;
    expect_nothing_broken(&answers)?;
    expect_equal("it changes nothing", state(lab)?, before)?;
    expect_equal("it asks IMDS nothing", lab.host.imds().requests().len(), 0)?;
    expect(&answers, "kernel", "tcx", "ok", &[])?;
    expect(&answers, "kernel", "drop reasons", "ok", &["reason"])?;
    expect(&answers, "route", "host", "ok", &["169.254.169.254", "ens5", "10.77.0.1"])?;
    expect(&answers, "route", "host", "ok", &["fd00:ec2::254", "ens5"])?;
    expect(&answers, "ip-forward", "host", "ok", &["net.ipv4.ip_forward is 1"])?;
    expect(&answers, "rp-filter", "ens5", "ok", &["rp_filter"])?;
    expect(&answers, "firewall", "host", "ok", &["firewall rules"])?;
    expect(&answers, "conntrack", "host", "ok", &["of"])?;
    expect(&answers, "ena", "ens5", "unknown", &["veth"])?;
    let bridge = if with_engine(lab) { "bridge" } else { "docker0" };
    expect(&answers, "masquerade", bridge, "ok", &["172.17.0.0/16"])?;
    if with_engine(lab) {
        expect(&answers, "engine", "host", "ok", &["1 container"])?;
        expect(&answers, "route", "job-17", "ok", &["169.254.169.254", "eth0"])?;
        expect(&answers, "firewall", "job-17", "ok", &[])?;
    } else {
        expect(&answers, "engine", "host", "unknown", &["no-engine.sock"])?;
    }
    Ok(())
}

fn a_host_that_does_not_forward_is_broken(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let _off = sysctl(lab.host.runner(), "net/ipv4/ip_forward", "0", "1")?;
    let program = tracer::program()?;
    let mut command = lab.host.in_runner(&program.to_string_lossy());
    command.args(["doctor", "--output", "json", "--exit-code"]);
    let answers = read(&run(command)?, 1)?;
    let answer = expect(&answers, "ip-forward", "host", "broken", &["net.ipv4.ip_forward is 0", "docker0"])?;
    let mend = answer["mend"].as_str().unwrap_or_default();
    expect_that("what mends it", mend.starts_with("sysctl -w net.ipv4.ip_forward=1  # lowers safety: "), answer)?;
    Ok(())
}

fn a_rule_for_containers_that_drops_is_named(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let chain = if with_engine(lab) { "DOCKER-USER" } else { "FORWARD" };
    let rule = format!("{chain} -d 169.254.169.254 -p tcp --dport 80 -j DROP");
    let _rule = obstacle::iptables_rule(lab.host.runner(), Family::V4, "filter", &rule)?;
    let answers = doctor(lab, &[])?;
    let saved = format!("-A {chain} -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DROP");
    // Without an engine a container has the name of its network namespace.
    let who = if with_engine(lab) { "(job-17)" } else { "(" };
    let answer = expect(&answers, "firewall", "host", "broken", &[&saved, "table filter", who])?;
    expect_that("the host's own are not touched", !answer["summary"].to_string().contains("own processes"), answer)?;
    let mend = answer["mend"].as_str().context("a command that mends it")?;
    lab.host.runner().run("sh", &["-c", mend])?;
    expect_nothing_broken(&doctor(lab, &[])?)?;
    Ok(())
}

fn a_rule_of_nftables_that_drops_is_named(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let runner = lab.host.runner();
    let _table = changed(runner, "nft", "add table inet hardening", "delete table inet hardening")?;
    runner.run("nft", &["add chain inet hardening outward { type filter hook forward priority 0; policy accept; }"])?;
    runner
        .run("nft", &["add rule inet hardening outward ip daddr 169.254.0.0/16 tcp dport { 80, 443 } counter drop"])?;
    let answers = doctor(lab, &[])?;
    expect(
        &answers,
        "firewall",
        "host",
        "broken",
        &["ip daddr 169.254.0.0/16 tcp dport { 80, 443 }", "chain outward", "hardening"],
    )?;
    Ok(())
}

fn a_rule_that_may_drop_is_no_error(lab: &Lab) -> Outcome {
    let _rule = obstacle::iptables_rule(
        lab.host.runner(),
        Family::V4,
        "filter",
        "OUTPUT -d 169.254.169.254 -m owner --uid-owner 1000 -j DROP",
    )?;
    let answers = doctor(lab, &[])?;
    expect_nothing_broken(&answers)?;
    expect(&answers, "firewall", "host", "warning", &["--uid-owner 1000", "chain OUTPUT", "the host's own processes"])?;
    Ok(())
}

fn a_rule_inside_a_container_is_named_with_it(lab: &Lab) -> Outcome {
    if !with_engine(lab) {
        return expect_engine_is_missed(lab);
    }
    let (job, _other) = (waiting(lab, "job-17")?, waiting(lab, "job-18")?);
    let inside = job.namespace()?;
    let _rule = obstacle::iptables_rule(&inside, Family::V4, "filter", "OUTPUT -d 169.254.169.254 -j DROP")?;
    let answers = doctor(lab, &[])?;
    let answer = expect(&answers, "firewall", "job-17", "broken", &["-A OUTPUT -d 169.254.169.254/32 -j DROP"])?;
    expect_that(
        "the command enters it",
        answer["mend"].as_str().is_some_and(|mend| mend.starts_with("nsenter -t ")),
        answer,
    )?;
    expect(&answers, "firewall", "job-18", "ok", &[])?;
    expect(&answers, "firewall", "host", "ok", &[])?;
    Ok(())
}

/// Without an engine nobody knows the containers, and that is what it says.
fn expect_engine_is_missed(lab: &Lab) -> Outcome {
    expect(&doctor(lab, &[])?, "engine", "host", "unknown", &["nothing is said of their variables"])?;
    Ok(())
}

fn a_legacy_rule_is_read_too(lab: &Lab) -> Outcome {
    // In a namespace of its own: tables of the older kind stay, once they are there.
    let namespace = Namespace::create(&format!("imdslab-{}-legacy", std::process::id()))?;
    namespace.ip("link add ens5 type bridge")?;
    namespace.ip("addr add 10.0.0.10/24 dev ens5")?;
    namespace.ip("link set ens5 up")?;
    namespace.ip("route add default via 10.0.0.1")?;
    namespace.run("iptables-legacy", &["-A", "OUTPUT", "-d", "169.254.169.254", "-j", "REJECT"])?;
    let mut command = namespace.command(tracer::program()?);
    command.args(["doctor", "--output", "json", "--docker-host"]).arg(lab.host.dir().join("no-engine.sock"));
    let answers = read(&run(command)?, 0)?;
    expect(
        &answers,
        "firewall",
        "host",
        "broken",
        &["-A OUTPUT -d 169.254.169.254/32 -j REJECT", "iptables-legacy", "the host's own"],
    )?;
    Ok(())
}

fn a_drivers_counter_is_read_by_its_name(lab: &Lab) -> Outcome {
    let read = |name: &'static str| lab.host.runner().run_inside(move || ethtool::counter("ens5", name));
    // What a veth's driver counts is little, and the other end's number is never 0.
    let peer = read("peer_ifindex")??;
    expect_that("the counter of a veth", peer.is_some_and(|index| index > 0), peer)?;
    expect_equal("a counter it does not have", read("linklocal_allowance_exceeded")??, None)?;
    Ok(())
}

fn a_rule_about_others_is_not_told(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let _dns = obstacle::iptables_rule(lab.host.runner(), Family::V4, "filter", "FORWARD -d 169.254.169.253 -j DROP")?;
    let _ssh = obstacle::iptables_rule(lab.host.runner(), Family::V4, "filter", "INPUT -p tcp --dport 22 -j DROP")?;
    let _but = obstacle::iptables_rule(
        lab.host.runner(),
        Family::V4,
        "filter",
        "FORWARD ! -d 169.254.0.0/16 -i docker0 -p udp -j REJECT",
    )?;
    expect(&doctor(lab, &[])?, "firewall", "host", "ok", &[])?;
    Ok(())
}

fn a_container_whose_route_is_prohibited_is_broken(lab: &Lab) -> Outcome {
    if !with_engine(lab) {
        return expect_engine_is_missed(lab);
    }
    let (job, _other) = (waiting(lab, "job-17")?, waiting(lab, "job-18")?);
    job.namespace()?.ip("route add prohibit 169.254.169.254")?;
    let answers = doctor(lab, &[])?;
    expect(&answers, "route", "job-17", "broken", &["169.254.169.254", "prohibit", "Permission denied"])?;
    expect(&answers, "route", "job-18", "ok", &["169.254.169.254"])?;
    for (kind, said) in [("blackhole", "Invalid argument"), ("unreachable", "No route to host")] {
        job.namespace()?.ip(&format!("route replace {kind} 169.254.169.254"))?;
        expect(&doctor(lab, &[])?, "route", "job-17", "broken", &[kind, said])?;
    }
    job.namespace()?.ip("route del 169.254.169.254")?;
    job.namespace()?.ip("route del default")?;
    expect(&doctor(lab, &[])?, "route", "job-17", "broken", &["no route", "Network is unreachable"])?;
    Ok(())
}

fn an_endpoint_that_is_a_local_address_is_not_imds(lab: &Lab) -> Outcome {
    let runner = lab.host.runner();
    let _own = changed(runner, "ip", "addr add 169.254.169.254/32 dev lo", "addr del 169.254.169.254/32 dev lo")?;
    let answers = doctor(lab, &[])?;
    expect(&answers, "route", "host", "broken", &["169.254.169.254", "nobody listens on port 80"])?;
    let _stand_in = runner.run_inside(|| std::net::TcpListener::bind("169.254.169.254:80"))??;
    expect(&doctor(lab, &[])?, "route", "host", "warning", &["169.254.169.254", "answered locally"])?;
    Ok(())
}

fn a_strict_interface_with_the_way_back_elsewhere_is_broken(lab: &Lab) -> Outcome {
    let runner = lab.host.runner();
    let _other = changed(runner, "ip", "link add ens6 type veth peer name beyond", "link del ens6")?;
    runner.ip("addr add 10.88.0.10/24 dev ens6")?;
    runner.ip("link set ens6 up")?;
    runner.ip("link set beyond up")?;
    let _strict = sysctl(runner, "net/ipv4/conf/ens5/rp_filter", "1", "0")?;
    expect(&doctor(lab, &[])?, "rp-filter", "ens5", "ok", &["strict"])?;
    // Out by ens6, under the address of ens5: that is where answers come in.
    let to = "route add 169.254.169.254 dev ens6 src 10.77.0.10";
    let _route = changed(runner, "ip", to, "route del 169.254.169.254 dev ens6")?;
    let answer = doctor(lab, &[])?;
    expect(&answer, "rp-filter", "ens5", "broken", &["rp_filter is 1", "strict", "by ens6"])?;
    Ok(())
}

fn a_strict_interface_that_only_containers_leave_by_is_broken(lab: &Lab) -> Outcome {
    if !with_engine(lab) {
        return expect_engine_is_missed(lab);
    }
    let runner = lab.host.runner();
    let _job = waiting(lab, "job-17")?;
    let _other = changed(runner, "ip", "link add ens6 type veth peer name beyond", "link del ens6")?;
    for words in ["addr add 10.88.0.10/24 dev ens6", "link set ens6 up", "link set beyond up"] {
        runner.ip(words)?;
    }
    runner.ip("route add 169.254.169.254 dev ens6 table 100")?;
    runner.sysctl("net/ipv4/conf/ens6/rp_filter", "1")?;
    {
        // The kernel asks for the way back of what it forwards as if that came in by where it leaves.
        let _rule = changed(runner, "ip", "rule add iif docker0 lookup 100", "rule del iif docker0 lookup 100")?;
        expect_nothing_broken(&doctor(lab, &[])?)?;
    }
    let mark = "PREROUTING -i docker0 -d 169.254.169.254 -j MARK --set-mark 7";
    let _mark = obstacle::iptables_rule(runner, Family::V4, "mangle", mark)?;
    let _rule = changed(runner, "ip", "rule add fwmark 7 lookup 100", "rule del fwmark 7 lookup 100")?;
    let answers = doctor(lab, &[])?;
    expect(&answers, "rp-filter", "ens6", "broken", &["rp_filter is 1", "by ens5"])?;
    expect(&answers, "rp-filter", "ens5", "ok", &[])?;
    Ok(())
}

fn a_network_without_masquerading_is_named(lab: &Lab) -> Outcome {
    if !with_engine(lab) {
        return expect_engine_is_missed(lab);
    }
    let option = "com.docker.network.bridge.enable_ip_masquerade=false";
    let extra = vec!["--opt".to_owned(), option.to_owned()];
    let _network = lab.host.network_create(NetworkSpec { extra, ..NetworkSpec::new("bare") })?;
    expect(&doctor(lab, &[])?, "masquerade", "bare", "unknown", &["not-masqueraded", "Nobody is there now"])?;
    let _job = lab.host.run(ContainerSpec::new("job-17", &["sleep", "1000"]).network("bare"))?;
    let answers = doctor(lab, &[])?;
    expect(&answers, "masquerade", "bare", "warning", &["not-masqueraded", "ens5"])?;
    expect(&answers, "masquerade", "bridge", "ok", &["172.17.0.0/16"])?;
    Ok(())
}

fn a_switch_that_turns_sdks_away_is_broken_and_a_proxy_never_told(lab: &Lab) -> Outcome {
    if !with_engine(lab) {
        return expect_engine_is_missed(lab);
    }
    let with = |name: &str, env: &[(&str, &str)]| {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        lab.host.run(ContainerSpec { env, ..ContainerSpec::new(name, &["sleep", "1000"]) })
    };
    let _off = with("off", &[("AWS_EC2_METADATA_DISABLED", "true")])?;
    let _proxied = with("proxied", &[("HTTP_PROXY", "http://user:hunter2@proxy:3128"), ("API_KEY", "hunter3")])?;
    let _spared = with("spared", &[("http_proxy", "http://proxy:3128"), ("no_proxy", "localhost,169.254.169.254")])?;
    let program = tracer::program()?;
    for kind in ["json", "text"] {
        let mut command = lab.host.in_runner(&program.to_string_lossy());
        command.args(["doctor", "-v", "--output", kind]);
        let said = run(command)?;
        let all = format!("{}{}", said.stdout, said.stderr);
        expect_that("no value of a variable is told", !all.contains("hunter") && !all.contains("3128"), &all)?;
    }
    let answers = doctor(lab, &[])?;
    expect(&answers, "environment", "off", "broken", &["AWS_EC2_METADATA_DISABLED"])?;
    expect(&answers, "environment", "proxied", "warning", &["HTTP_PROXY", "no_proxy"])?;
    expect(&answers, "environment", "spared", "ok", &["http_proxy"])?;
    Ok(())
}

fn the_hop_limit_needed_follows_the_network_mode(lab: &Lab) -> Outcome {
    if !with_engine(lab) {
        return expect_engine_is_missed(lab);
    }
    let on = |name: &str, network: &str| lab.host.run(ContainerSpec::new(name, &["sleep", "1000"]).network(network));
    let _bridged = waiting(lab, "bridged")?;
    let _network = lab.host.network_create(NetworkSpec::new("ci"))?;
    let others =
        [on("host-mode", "host")?, on("alone", "none")?, on("sharer", "container:bridged")?, on("in-ci", "ci")?];
    let answers = doctor(lab, &[])?;
    expect_nothing_broken(&answers)?;
    for (name, part) in [
        ("bridged", "hop limit of 2"),
        ("in-ci", "hop limit of 2"),
        ("host-mode", "hop limit of 1"),
        ("alone", "no network"),
        ("sharer", "as bridged"),
    ] {
        expect(&answers, "hop-limit", name, "ok", &[part, "mode"])?;
    }
    expect(&answers, "route", "alone", "warning", &["no network"])?;
    // As a CNI plugin would: the engine does not know of it.
    let alone = lab.host.runner();
    let namespace = others[1].namespace()?;
    alone.ip(&format!("link add given type veth peer name eth0 netns {}", others[1].pid()?))?;
    namespace.ip("link set eth0 up")?;
    expect(&doctor(lab, &[])?, "hop-limit", "alone", "unknown", &["awsvpc"])?;
    Ok(())
}

fn without_root_it_says_what_is_needed(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    // Where the program was built, nobody else may be able to go.
    let folder = std::env::temp_dir().join(format!("imds-trace-doctor-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let _away = Undo(|| {
        let _ = std::fs::remove_dir_all(&folder);
    });
    let copy = folder.join("imds-trace");
    std::fs::copy(tracer::program()?, &copy)?;
    for path in [&folder, &copy] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755))?;
    }
    let as_nobody = || {
        let mut nobody = lab.host.in_runner("setpriv");
        nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--"]).arg(&copy);
        nobody.args(["doctor", "--output", "json"]);
        read(&run(nobody)?, 0)
    };
    let answers = as_nobody()?;
    expect_nothing_broken(&answers)?;
    expect(&answers, "kernel", "capabilities", "warning", &["CAP_BPF", "CAP_NET_ADMIN"])?;
    let mut cleaning = lab.host.in_runner("setpriv");
    cleaning.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--"]).arg(&copy);
    cleaning.args(["doctor", "--clean"]);
    let refused = run(cleaning)?;
    expect_equal("who may not clean is told so", refused.code, Some(2))?;
    expect_that("in a sentence", refused.stderr.contains("needs CAP_NET_ADMIN: run it as root"), &refused.stderr)?;
    expect(&answers, "firewall", "host", "unknown", &["iptables", "nft", "needs root"])?;
    expect(&answers, "engine", "host", "unknown", &["root"])?;
    expect(&answers, "route", "host", "ok", &["169.254.169.254", "ens5"])?;
    if with_engine(lab) {
        // Somebody who may ask the engine, as the group docker may, and is not root.
        let url = lab.host.docker_host_url();
        let socket = url.trim_start_matches("unix://");
        let before = std::fs::metadata(socket)?.permissions();
        let _closed = Undo(|| {
            let _ = std::fs::set_permissions(socket, before.clone());
        });
        std::fs::set_permissions(socket, PermissionsExt::from_mode(0o666))?;
        let answers = as_nobody()?;
        expect(&answers, "route", "job-17", "unknown", &["needs root"])?;
        expect(&answers, "firewall", "job-17", "unknown", &["needs root"])?;
        expect(&answers, "hop-limit", "job-17", "ok", &["hop limit of 2"])?;
    }
    Ok(())
}
