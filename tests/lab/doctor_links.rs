//! Does `doctor` see where nothing passes, although all routes are there: a port, a queue, a neighbour, a TTL?

use anyhow::Context;
use imds_trace_tests::expect::expect_that;
use serde_json::Value;

use crate::Lab;
use crate::doctor::{Undo, changed, doctor, expect, expect_nothing_broken, port_of_docker0, sysctl, waiting};

crate::tests![
    a_station_that_did_not_answer_is_warned_of,
    a_client_that_starts_with_too_low_a_ttl_is_broken,
    a_port_or_a_queue_that_passes_nothing_is_broken,
    a_link_without_neighbours_or_with_too_small_an_mtu_is_told,
    a_route_to_many_and_an_address_without_a_local_route_are_broken,
    a_card_without_an_address_masquerades_nobody,
];

type Outcome = anyhow::Result<()>;

/// How an answer about IPv4 begins.
const IMDS: &str = "169.254.169.254 is reached";

fn a_station_that_did_not_answer_is_warned_of(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let runner = lab.host.runner();
    for (route, next) in [("via 10.77.0.66 dev ens5", "10.77.0.66"), ("dev ens5", "169.254.169.254")] {
        let (to, back) = (format!("route add 169.254.169.254/32 {route}"), "route del 169.254.169.254/32");
        let _route = changed(runner, "ip", &to, back)?;
        let entry = format!("neigh replace {next} dev ens5 nud failed");
        let forget = format!("neigh del {next} dev ens5");
        let _entry = changed(runner, "ip", &entry, &forget)?;
        let answers = doctor(lab, &[])?;
        for subject in ["host", "job-17"] {
            expect(&answers, "route", subject, "warning", &["Nobody answered", next])?;
        }
    }
    Ok(())
}

fn a_client_that_starts_with_too_low_a_ttl_is_broken(lab: &Lab) -> Outcome {
    let job = waiting(lab, "job-17")?;
    let inside = job.namespace()?;
    {
        let _ttl = sysctl(&inside, "net/ipv4/ip_default_ttl", "1", "64")?;
        expect(&doctor(lab, &[])?, "route", "job-17", "broken", &["TTL of 1"])?;
    }
    let default = inside.ip("route show default")?;
    let default = default.trim();
    inside.ip(&format!("route replace {default} hoplimit 1"))?;
    expect(&doctor(lab, &[])?, "route", "job-17", "broken", &["TTL of 1", "hoplimit"])?;
    inside.ip(&format!("route replace {default} hoplimit 2"))?;
    expect_nothing_broken(&doctor(lab, &[])?)
}

fn a_port_or_a_queue_that_passes_nothing_is_broken(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let runner = lab.host.runner();
    let port = &port_of_docker0(runner)?;
    let set = |to: &str| format!("link set dev {port} {to}");
    let (forwards, learns) = (set("state 3"), set("flood on learning on"));
    {
        let _state = changed(runner, "bridge", &set("state 0"), &forwards)?;
        expect(&doctor(lab, &[])?, "route", "job-17", "broken", &[IMDS, port, "disabled"])?;
    }
    {
        let _state = changed(runner, "bridge", &set("state 1"), &forwards)?;
        expect(&doctor(lab, &[])?, "route", "job-17", "unknown", &[IMDS, port, "listening"])?;
    }
    {
        let _deaf = changed(runner, "bridge", &set("flood off learning off"), &learns)?;
        runner.ip(&format!("link set dev {port} type bridge_slave fdb_flush"))?;
        expect(&doctor(lab, &[])?, "route", "job-17", "broken", &[IMDS, port, "neither learns nor floods"])?;
    }
    let (queue, none) = (format!("qdisc replace dev {port} root pfifo limit 0"), format!("qdisc del dev {port} root"));
    {
        let _queue = changed(runner, "tc", &queue, &none)?;
        expect(&doctor(lab, &[])?, "route", "job-17", "broken", &[IMDS, port, "pfifo limit 0"])?;
    }
    expect_nothing_broken(&doctor(lab, &[])?)
}

fn a_link_without_neighbours_or_with_too_small_an_mtu_is_told(lab: &Lab) -> Outcome {
    let job = waiting(lab, "job-17")?;
    let inside = job.namespace()?;
    {
        let _silent = changed(&inside, "ip", "link set eth0 arp off", "link set eth0 arp on")?;
        expect(&doctor(lab, &[])?, "route", "job-17", "broken", &[IMDS, "eth0", "NOARP"])?;
    }
    {
        let _narrow = changed(&inside, "ip", "link set eth0 mtu 200", "link set eth0 mtu 1500")?;
        expect(&doctor(lab, &[])?, "route", "job-17", "warning", &["MTU of eth0 is 200"])?;
    }
    expect_nothing_broken(&doctor(lab, &[])?)
}

fn a_route_to_many_and_an_address_without_a_local_route_are_broken(lab: &Lab) -> Outcome {
    let runner = lab.host.runner();
    {
        let (to, back) =
            ("route add broadcast 169.254.169.254 dev ens5", "route del broadcast 169.254.169.254 dev ens5");
        let _route = changed(runner, "ip", to, back)?;
        let parts = ["type broadcast", "Network is unreachable"];
        expect(&doctor(lab, &[])?, "route", "host", "broken", &parts)?;
    }
    let local = runner.ip("route show table local dev ens5 type local")?;
    let local = local.lines().find(|line| line.contains("10.77.0.10")).context("the card's own address")?.trim();
    let (to, back) =
        (format!("route del {local} dev ens5 table local"), format!("route add {local} dev ens5 table local"));
    let _gone = changed(runner, "ip", &to, &back)?;
    expect(&doctor(lab, &[])?, "route", "host", "broken", &["10.77.0.10", "no table has a local route"])?;
    Ok(())
}

fn a_card_without_an_address_masquerades_nobody(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let runner = lab.host.runner();
    let default = runner.ip("route show default")?;
    let _back = Undo(|| {
        for command in ["addr add 10.77.0.10/24 dev ens5", &format!("route replace {}", default.trim())] {
            let _ = runner.ip(command);
        }
    });
    runner.ip("addr del 10.77.0.10/24 dev ens5")?;
    runner.ip("route replace default dev ens5")?;
    let answers = doctor(lab, &[])?;
    let is_told = |answer: &Value| {
        let summary = answer["summary"].as_str().unwrap_or_default();
        answer["status"] == "warning" && summary.contains("by ens5, which has no address")
    };
    expect_that("it is told", answers.iter().any(is_told), &answers)
}
