//! Is every exchange attributed to the very process that made it, by that process's own account?

use std::collections::{BTreeMap, HashMap};
use std::process::Stdio;

use anyhow::{Context, Result};
use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::{Container, ContainerSpec, NetworkSpec};
use serde_json::Value;

use crate::Lab;
use crate::trace::{go, start_all, watched};
use crate::trace_forensics::shell;

crate::tests![
    every_exchange_of_five_hundred_brief_clients_is_attributed_to_the_right_one,
    containers_that_take_over_an_address_within_a_second_are_not_mixed_up,
];

type Outcome = anyhow::Result<()>;

const CONTAINERS: usize = 10;
/// Clients of each container, [`AT_ONCE`] at a time.
const EACH: usize = 45;
const ON_THE_HOST: usize = 50;
const AT_ONCE: usize = 5;
/// What the clients of the host call themselves.
const HOST: &str = "the-host";
/// Exchanges whose attribution may be unknown.
const MAX_UNKNOWN: f64 = 0.01;

/// Clients started by a shell as fast as it can.
fn crowd(name: &str) -> ContainerSpec {
    let together = format!("imds-client v2 --timeout-ms 5000 --user-agent {name} & ").repeat(AT_ONCE);
    shell(name, &format!("i=0; while [ $i -lt {} ]; do {together} wait; i=$((i+1)); done", EACH / AT_ONCE))
}

/// The same on the runner host.
fn on_the_host(lab: &Lab, client: &str) -> Result<Vec<Value>> {
    let mut attempts = Vec::new();
    for _ in 0..ON_THE_HOST / AT_ONCE {
        let start = |_| {
            let mut command = lab.host.in_runner(client);
            command.args(["v2", "--timeout-ms", "5000", "--user-agent", HOST]).stdout(Stdio::piped());
            command.spawn().context("start imds-client on the host")
        };
        for child in (0..AT_ONCE).map(start).collect::<Result<Vec<_>>>()? {
            let said = String::from_utf8_lossy(&child.wait_with_output()?.stdout).into_owned();
            attempts.extend(said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()));
        }
    }
    Ok(attempts)
}

/// Which process made an attempt, as it says itself: by what it calls itself, its port, and what it did.
type Accounts = HashMap<(String, u64, &'static str), Vec<u64>>;

fn note(accounts: &mut Accounts, name: &str, attempts: &[Value]) -> Result<()> {
    for attempt in attempts {
        expect_equal("each attempt was answered", attempt["status"].as_u64(), Some(200))?;
        let step = if attempt["step"] == "put" { "token" } else { "v2" };
        let key = (name.to_owned(), attempt["port"].as_u64().context("a port")?, step);
        accounts.entry(key).or_default().push(attempt["pid"].as_u64().context("a pid")?);
    }
    Ok(())
}

/// What an exchange says of itself against what is said of it. A port may have been used twice: each account is good for one.
fn judge(exchange: &Value, accounts: &mut Accounts) -> &'static str {
    let name = exchange["user_agent"].as_str().unwrap_or_default();
    let step = if exchange["imds"] == "token" { "token" } else { "v2" };
    let port = exchange["client"]["port"].as_u64().unwrap_or_default();
    let mut key = (name.to_owned(), port, step);
    if name == HOST && !accounts.contains_key(&key) {
        // A masqueraded connection held the port that this one had chosen, and the kernel gave it another: its pid must do.
        let is_it = |(other, _, did): &(String, u64, &str), pids: &Vec<u64>| {
            other == HOST && *did == step && pids.iter().any(|pid| exchange["process"]["pid"] == *pid)
        };
        key = accounts.iter().find(|(key, pids)| is_it(key, pids)).map_or(key, |(key, _)| key.clone());
    }
    let Some(pids) = accounts.get_mut(&key) else { return "of nobody" };
    let (container, by) = (&exchange["container"], &exchange["attributed_by"]);
    let process = &exchange["process"];
    if process.is_null() || (container.is_null() && by == "unknown") {
        return "unknown";
    }
    let right_container = if name == HOST { container.is_null() } else { container["name"] == name };
    let known = pids.iter().position(|pid| process["pid_in_container"] == *pid);
    let right_program = process["argv"][5] == name && process["comm"] == "imds-client";
    match known {
        Some(account) if right_container && right_program => {
            pids.remove(account);
            "right"
        }
        _ => "wrong",
    }
}

fn every_exchange_of_five_hundred_brief_clients_is_attributed_to_the_right_one(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let program = std::env::current_exe()?;
    let client =
        program.ancestors().skip(1).take(2).map(|folder| folder.join("imds-client")).find(|path| path.is_file());
    let client = client.context("imds-client is beside the tests")?.display().to_string();
    let (seen, (containers, of_the_host)) = watched(lab, &[], |_| {
        let specs = (0..CONTAINERS).map(|number| crowd(&format!("crowd-{number}")));
        let containers = start_all(lab, specs.collect())?;
        let of_the_host = std::thread::scope(|scope| {
            let host = scope.spawn(|| on_the_host(lab, &client));
            go(&containers)?;
            host.join().unwrap_or_else(|_| anyhow::bail!("the host's clients could not be started"))
        })?;
        Ok((containers, of_the_host))
    })?;
    let mut accounts = Accounts::new();
    for container in &containers {
        note(&mut accounts, container.name(), &container.attempts()?)?;
    }
    note(&mut accounts, HOST, &of_the_host)?;
    let exchanges = seen.outcome.exchanges();
    let clients = CONTAINERS * EACH + ON_THE_HOST;
    expect_equal("each client asked twice, and all was seen", exchanges.len(), clients * 2)?;
    let mut judged: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for exchange in exchanges {
        judged.entry(judge(exchange, &mut accounts)).or_default().push(exchange);
    }
    let count = |verdict| judged.get(verdict).map_or(0, Vec::len);
    let (right, unknown) = (count("right"), count("unknown"));
    eprintln!("{clients} clients: {right} exchanges right, {unknown} unknown, {} wrong", 2 * clients - right - unknown);
    for verdict in ["wrong", "of nobody"] {
        expect_equal(&format!("no exchange is {verdict}"), judged.get(verdict).and_then(|all| all.first()), None)?;
    }
    let sample = judged.get("unknown").and_then(|all| all.first());
    expect_that("hardly any is unknown", unknown as f64 <= MAX_UNKNOWN * (2 * clients) as f64, sample)?;
    Ok(())
}

fn containers_that_take_over_an_address_within_a_second_are_not_mixed_up(lab: &Lab) -> Outcome {
    const ONE_AFTER_THE_OTHER: usize = 20;
    const SUBNET: &str = "172.31.77.0/29";
    const ADDRESS: &str = "172.31.77.2";
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let options = ["--subnet", SUBNET].map(str::to_owned).to_vec();
    let network = lab.host.network_create(NetworkSpec { extra: options, ..NetworkSpec::new("taken-over") })?;
    let (seen, containers) = watched(lab, &[], |_| {
        let run = |number| {
            let name = format!("heir-{number}");
            // The first ARP request may be lost at a bridge's port that is a moment old, and the next comes a second later.
            let words = ["imds-client", "v2", "--timeout-ms", "5000", "--user-agent", &name];
            let spec = ContainerSpec::new(&name, &words).network(network.name());
            let extra = ["--ip", ADDRESS].map(str::to_owned).to_vec();
            lab.host.run(ContainerSpec { foreground: true, remove: true, extra, ..spec })
        };
        (0..ONE_AFTER_THE_OTHER).map(run).collect::<Result<Vec<Container>>>()
    })?;
    let exchanges = seen.outcome.exchanges();
    expect_equal("all exchanges were seen", exchanges.len(), ONE_AFTER_THE_OTHER * 2)?;
    for exchange in exchanges {
        expect_equal("the address is one", exchange["client"]["address"].as_str(), Some(ADDRESS))?;
        let (named, asked) = (&exchange["container"]["name"], &exchange["user_agent"]);
        expect_that("the container is its own", named == asked && named.is_string(), exchange)?;
        let owner =
            containers.iter().find(|container| *asked == container.name()).context("a container of that name")?;
        expect_equal("by its id", exchange["container"]["id"].as_str(), Some(owner.id()))?;
        expect_equal("and its first process", exchange["process"]["pid_in_container"].as_u64(), Some(1))?;
    }
    Ok(())
}
