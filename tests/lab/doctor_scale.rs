//! Is `doctor` done soon, and small, on a host with many clients and many rules, and with rules that somebody wrote to hold it up?

use std::fmt::Write;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use imds_trace_tests::expect::{expect_equal, expect_that, wait_until};
use imds_trace_tests::{Namespace, children, tracer};
use serde_json::Value;

use crate::Lab;
use crate::trace::SOON;

crate::tests![
    two_hundred_clients_and_five_thousand_rules_are_read_soon,
    a_set_with_a_million_elements_is_read_in_little_memory,
    chains_that_jump_to_each_other_without_an_end_are_left,
];

/// What it may take on a machine of its own is 2 s, optimised; tests are neither.
const PATIENCE: Duration = Duration::from_secs(30);
/// Kilobytes of memory.
const MEMORY: u64 = 50 * 1024;

const CLIENTS: usize = 200;
const SERVICES: usize = 1_000;

/// What `doctor` said on the runner host, how long it took, and how many kilobytes it had at most.
fn measured(lab: &Lab) -> Result<(Vec<Value>, Duration, u64)> {
    let mut command = lab.host.in_runner(&tracer::program()?.to_string_lossy());
    let nobody = format!("unix://{}", lab.host.dir().join("no-engine.sock").display());
    let said = lab.host.dir().join("doctor.jsonl");
    command.args(["doctor", "--output", "json", "--docker-host", &nobody]).stdin(Stdio::null());
    command.stdout(std::fs::File::create(&said)?).stderr(Stdio::null());
    let begun = Instant::now();
    let mut child = children::spawn(command)?;
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    let ended = wait_until("doctor to end", PATIENCE * 2, || {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        most = most.max(peak.unwrap_or(0));
        child.try_wait().ok().flatten()
    });
    let took = begun.elapsed();
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    expect_equal("its exit code", ended?.code(), Some(0))?;
    let answers = std::fs::read_to_string(&said)?;
    let answers = answers.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    eprintln!("doctor took {:.2} s and {:.1} MB", took.as_secs_f64(), most as f64 / 1024.0);
    Ok((answers, took, most))
}

/// A namespace's rules of iptables as they were; dropping it brings them back.
struct Before<'a> {
    namespace: &'a Namespace,
    rules: String,
}

fn restore(namespace: &Namespace, words: &[&str], rules: &str) -> Result<()> {
    let mut command = namespace.command("iptables-restore");
    let mut child = command.args(words).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    std::io::Write::write_all(&mut child.stdin.take().context("a pipe")?, rules.as_bytes())?;
    expect_that("rules are taken", child.wait()?.success(), words)
}

impl Drop for Before<'_> {
    fn drop(&mut self) {
        let _ = restore(self.namespace, &[], &self.rules);
    }
}

/// Rules as kube-proxy writes them: a service has a rule that asks for its address and a chain, which jumps to one of three ends.
fn kube_proxy() -> String {
    let (mut chains, mut rules, mut count) = (String::new(), String::new(), 0);
    let mut rule = |text: String| {
        rules += &text;
        rules.push('\n');
        count += 1;
    };
    rule("-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES".into());
    for number in 0..SERVICES {
        let (high, low) = (number / 250, number % 250 + 1);
        let service = format!("KUBE-SVC-{number:016}");
        let _ = writeln!(chains, ":{service} - [0:0]");
        rule(format!("-A KUBE-SERVICES -d 10.96.{high}.{low}/32 -p tcp -m tcp --dport 443 -j {service}"));
        for end in 0..2 {
            let end = format!("KUBE-SEP-{number:014}{end:02}");
            let _ = writeln!(chains, ":{end} - [0:0]");
            rule(format!("-A {service} -m statistic --mode random --probability 0.5 -j {end}"));
            rule(format!("-A {end} -p tcp -m tcp -j DNAT --to-destination 10.88.{high}.{low}:8443"));
        }
    }
    assert!(count >= 5_000, "{count} rules");
    format!("*nat\n:KUBE-SERVICES - [0:0]\n{chains}{rules}COMMIT\n")
}

/// Processes in network namespaces of their own, on a bridge of the runner host. They go with this.
struct Crowd<'a> {
    runner: &'a Namespace,
    clients: Vec<Child>,
}

impl<'a> Crowd<'a> {
    fn gather(lab: &'a Lab) -> Result<Crowd<'a>> {
        let runner = lab.host.runner();
        let mut crowd = Crowd { runner, clients: Vec::new() };
        let mut links = "link add many type bridge\naddr add 10.99.255.254/16 dev many\nlink set many up\n".to_owned();
        for number in 0..CLIENTS {
            let mut client = children::command("unshare");
            client.args(["--net", "sleep", "1000"]).stdin(Stdio::null()).stdout(Stdio::null());
            let client = children::spawn(client)?;
            let pid = client.id();
            crowd.clients.push(client);
            let _ = writeln!(links, "link add many{number} type veth peer name eth0 netns {pid}");
            let _ = writeln!(links, "link set many{number} master many up");
        }
        let comm = |client: &Child| std::fs::read_to_string(format!("/proc/{}/comm", client.id())).unwrap_or_default();
        wait_until("clients to be in their namespaces", SOON, || {
            crowd.clients.iter().all(|client| comm(client) == "sleep\n").then_some(())
        })?;
        let batch = lab.host.dir().join("batch");
        let run = |namespace: &Namespace, lines: &str| -> Result<()> {
            std::fs::write(&batch, lines)?;
            namespace.ip(&format!("-batch {}", batch.display())).map(drop)
        };
        run(runner, &links)?;
        for (number, client) in crowd.clients.iter().enumerate() {
            let address = format!("10.99.{}.{}", number / 250, number % 250 + 1);
            let own =
                format!("addr add {address}/16 dev eth0\nlink set eth0 up\nroute add default via 10.99.255.254\n");
            run(&Namespace::of_process(client.id())?, &own)?;
        }
        Ok(crowd)
    }
}

impl Drop for Crowd<'_> {
    fn drop(&mut self) {
        for client in &mut self.clients {
            let _ = client.kill();
            let _ = client.wait();
        }
        let _ = self.runner.ip("link del many");
    }
}

fn two_hundred_clients_and_five_thousand_rules_are_read_soon(lab: &Lab) -> Result<()> {
    let runner = lab.host.runner();
    let _before = Before { namespace: runner, rules: runner.run("iptables-save", &[])? };
    let masquerade = "*nat\n-A POSTROUTING -s 10.99.0.0/16 ! -o many -j MASQUERADE\nCOMMIT\n";
    restore(runner, &["--noflush"], &(kube_proxy() + masquerade))?;
    let crowd = Crowd::gather(lab)?;
    let (answers, took, most) = measured(lab)?;
    drop(crowd);
    expect_that("it is done soon", took < PATIENCE, took)?;
    expect_that("and small", most < MEMORY, most)?;
    let reached = |answer: &&Value| answer["check"] == "route" && answer["status"] == "ok";
    let seen = answers
        .iter()
        .filter(reached)
        .filter(|answer| answer["subject"].as_str().is_some_and(|it| it.starts_with("pid ")));
    expect_that("everybody's way is told", seen.count() >= CLIENTS, answers.len())?;
    let broken: Vec<&Value> = answers.iter().filter(|answer| answer["status"] == "broken").collect();
    expect_equal("nothing is broken", broken, Vec::new())
}

/// A table of nftables in the runner's namespace; it goes with this.
struct Table<'a>(&'a Namespace);

impl Drop for Table<'_> {
    fn drop(&mut self) {
        let _ = self.0.run("nft", &["delete", "table", "inet", "lab"]);
    }
}

fn ruleset<'a>(lab: &'a Lab, text: &str) -> Result<Table<'a>> {
    let path = lab.host.dir().join("rules.nft");
    std::fs::write(&path, text)?;
    let table = Table(lab.host.runner());
    table.0.run("nft", &["-f", &path.display().to_string()])?;
    std::fs::remove_file(path)?;
    Ok(table)
}

fn a_set_with_a_million_elements_is_read_in_little_memory(lab: &Lab) -> Result<()> {
    let mut elements = String::new();
    for number in 0..1_000_000_u32 {
        let [_, b, c, d] = number.to_be_bytes();
        let _ = write!(elements, "11.{b}.{c}.{d},");
    }
    let _table = ruleset(
        lab,
        &format!(
            "table inet lab {{\n set many {{ type ipv4_addr; elements = {{ {elements} }} }}\n chain out {{ type filter hook forward priority 0; \
             ip daddr @many drop; }}\n}}\n"
        ),
    )?;
    let (answers, took, most) = measured(lab)?;
    expect_that("it is done soon", took < PATIENCE, took)?;
    expect_that("and small", most < MEMORY, most)?;
    let told = answers.iter().filter(|answer| answer["check"] == "firewall" && answer["subject"] == "host");
    let told: Vec<&Value> = told.collect();
    expect_that("it does not say that all is well", told.iter().all(|answer| answer["status"] != "ok"), &told)
}

fn chains_that_jump_to_each_other_without_an_end_are_left(lab: &Lab) -> Result<()> {
    // The kernel takes no circle, but chains of which each jumps twice to the next: two to the power of fifteen walks.
    let mut chains = String::new();
    for number in (0..15).rev() {
        let next = if number == 14 { String::new() } else { format!("jump c{0}; jump c{0};", number + 1) };
        let _ = writeln!(chains, "chain c{number} {{ {next} }}");
    }
    let text = format!(
        "table inet lab {{\n{chains} chain out {{ type filter hook forward priority 0; jump c0; jump c0; }}\n}}\n"
    );
    let _table = ruleset(lab, &text)?;
    let (answers, took, most) = measured(lab)?;
    expect_that("it is done soon", took < PATIENCE, took)?;
    expect_that("and small", most < MEMORY, most)?;
    let broken: Vec<&Value> = answers.iter().filter(|answer| answer["status"] == "broken").collect();
    expect_equal("nothing is broken", broken, Vec::new())
}
