//! Does `doctor` follow each client's own way, and mend without harm?

use anyhow::Context;
use imds_trace_tests::Namespace;
use imds_trace_tests::expect::{expect_equal, expect_that, wait_until};
use imds_trace_tests::obstacle::{self, Family};

use crate::Lab;
use crate::doctor::{Undo, changed, doctor, expect, expect_nothing_broken, port_of_docker0, sysctl, waiting};
use crate::trace::SOON;

crate::tests![
    a_redirect_is_judged_by_who_is_there,
    a_redirect_goes_where_the_kernel_sends_it,
    a_rule_that_gives_another_address_is_named_and_no_route_is_mended,
    a_pod_with_a_link_of_its_own_is_judged_by_it,
    a_route_into_a_containers_link_is_broken_and_mended,
    a_way_into_a_tunnel_or_under_a_link_local_address_is_broken,
    a_next_hop_that_does_not_answer_is_broken,
];

type Outcome = anyhow::Result<()>;

fn a_redirect_is_judged_by_who_is_there(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let runner = lab.host.runner();
    let redirect = |to: &str| {
        let rule = format!("PREROUTING -d 169.254.169.254 -p tcp --dport 80 -i docker0 -j DNAT --to-destination {to}");
        obstacle::iptables_rule(runner, Family::V4, "nat", &rule)
    };
    {
        let _rule = redirect("10.77.0.10:8181")?;
        let parts = ["DNAT --to-destination 10.77.0.10:8181", "nobody listens on port 8181"];
        expect(&doctor(lab, &[])?, "firewall", "host", "broken", &parts)?;
        let _proxy = runner.run_inside(|| std::net::TcpListener::bind("10.77.0.10:8181"))??;
        let answers = doctor(lab, &[])?;
        expect_nothing_broken(&answers)?;
        expect(&answers, "firewall", "host", "ok", &["10.77.0.10:8181", "a process listens", "in place of IMDS"])?;
    }
    {
        let _rule = redirect("127.0.0.1:8181")?;
        let _proxy = runner.run_inside(|| std::net::TcpListener::bind("127.0.0.1:8181"))??;
        let answers = doctor(lab, &[])?;
        let refused = expect(&answers, "firewall", "host", "broken", &["127.0.0.1:8181", "route_localnet is 0"])?;
        let mend = refused["mend"].as_str().context("a command that mends it")?;
        expect_that("it says that it lowers safety", mend.contains("# lowers safety"), mend)?;
        let _back = Undo(|| {
            let _ = runner.sysctl("net/ipv4/conf/docker0/route_localnet", "0");
        });
        runner.run("sh", &["-c", mend])?;
        expect_nothing_broken(&doctor(lab, &[])?)?;
    }
    let _rule = redirect("192.0.2.1")?;
    expect(&doctor(lab, &[])?, "firewall", "host", "broken", &["192.0.2.1", "no host's address"])?;
    Ok(())
}

fn a_redirect_goes_where_the_kernel_sends_it(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let runner = lab.host.runner();
    let rule = "PREROUTING -d 169.254.169.254 -p tcp --dport 80 -i docker0 -j DNAT --to-destination 10.99.0.1:8181";
    let _rule = obstacle::iptables_rule(runner, Family::V4, "nat", rule)?;
    for kind in ["throw", "blackhole"] {
        // One that leaves it to the next table, and one in a table that nobody asks.
        let who = if kind == "throw" { "pref 5270" } else { "fwmark 0x99" };
        let [route, rule] = [format!("{kind} 10.99.0.1/32 table 52"), format!("{who} lookup 52")];
        let [no_route, no_rule] = [format!("route del {route}"), format!("rule del {rule}")];
        let _route = changed(runner, "ip", &format!("route add {route}"), &no_route)?;
        let _asked = changed(runner, "ip", &format!("rule add {rule}"), &no_rule)?;
        let answers = doctor(lab, &[])?;
        expect_nothing_broken(&answers)?;
        expect(&answers, "firewall", "host", "warning", &["10.99.0.1:8181", "beyond this host"])?;
    }
    let (refuse, no_longer) = ("rule add to 10.99.0.0/24 blackhole", "rule del to 10.99.0.0/24 blackhole");
    let _refused = changed(runner, "ip", refuse, no_longer)?;
    expect(&doctor(lab, &[])?, "firewall", "host", "broken", &["10.99.0.1:8181", "rule of type blackhole"])?;
    Ok(())
}

fn a_rule_that_gives_another_address_is_named_and_no_route_is_mended(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let runner = lab.host.runner();
    let _rule = obstacle::iptables_rule(
        runner,
        Family::V4,
        "nat",
        "POSTROUTING -o ens5 -s 172.17.0.0/16 -j SNAT --to-source 169.254.77.5",
    )?;
    let answers = doctor(lab, &[])?;
    let named = ["-j SNAT --to-source 169.254.77.5", "a link-local one"];
    let told = expect(&answers, "masquerade", "bridge", "broken", &named)?;
    expect_that("no route is mended", told["mend"].is_null(), told)?;
    let routes: Vec<_> = answers.iter().filter(|line| line["check"] == "route" && line["status"] == "broken").collect();
    expect_that("and no route is at fault", routes.is_empty(), &routes)
}

fn a_pod_with_a_link_of_its_own_is_judged_by_it(lab: &Lab) -> Outcome {
    let runner = lab.host.runner();
    let pod = Namespace::create(&format!("imdslab-{}-pod", std::process::id()))?;
    let _link = changed(
        runner,
        "ip",
        &format!("link add eni17 type veth peer name eth0 netns {}", pod.name()),
        "link del eni17",
    )?;
    pod.ip("addr add 10.99.0.200/32 dev eth0")?;
    pod.ip("link set eth0 up")?;
    runner.ip("link set eni17 up")?;
    pod.ip("route add 169.254.1.1 dev eth0 scope link")?;
    pod.ip("route add default via 169.254.1.1 dev eth0")?;
    runner.ip("route add 10.99.0.200 dev eni17 scope link")?;
    let name = format!("namespace {}", pod.name());
    let silent = ["nobody answers there for 169.254.1.1", "proxy_arp", "eni17"];
    expect(&doctor(lab, &[])?, "route", &name, "broken", &silent)?;
    {
        let _proxy = sysctl(runner, "net/ipv4/conf/eni17/proxy_arp", "1", "0")?;
        expect(&doctor(lab, &[])?, "route", &name, "ok", &["from the host by ens5"])?;
    }
    // As the VPC CNI does, which enters the host's end; and one that is stale.
    runner.ip("link set eni17 address 02:00:00:00:00:17")?;
    pod.ip("neigh replace 169.254.1.1 lladdr 02:00:00:00:00:99 dev eth0 nud permanent")?;
    expect(&doctor(lab, &[])?, "route", &name, "broken", &["fixed neighbour entry for 169.254.1.1", ":99"])?;
    pod.ip("neigh replace 169.254.1.1 lladdr 02:00:00:00:00:17 dev eth0 nud permanent")?;
    let answers = doctor(lab, &[])?;
    expect(&answers, "route", &name, "ok", &["169.254.169.254", "from the host by ens5"])?;
    expect(&answers, "masquerade", &name, "warning", &["10.99.0.200", "not-masqueraded"])?;
    let rule = "FORWARD -d 169.254.169.254 -i eni+ -j DROP";
    let _rule = obstacle::iptables_rule(runner, Family::V4, "filter", rule)?;
    let answers = doctor(lab, &[])?;
    let blocked = expect(&answers, "firewall", "host", "broken", &["-i eni+", &name, "disablePodIMDS"])?;
    expect_that("nobody is told to delete what was set up on purpose", blocked["mend"].is_null(), blocked)?;
    let _off = sysctl(runner, "net/ipv4/ip_forward", "0", "1")?;
    expect(&doctor(lab, &[])?, "ip-forward", "host", "broken", &["eni17", &name])?;
    Ok(())
}

fn a_route_into_a_containers_link_is_broken_and_mended(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let runner = lab.host.runner();
    let port = &port_of_docker0(runner)?;
    let (to, back) = (format!("addr add 169.254.77.5/16 dev {port}"), format!("addr del 169.254.77.5/16 dev {port}"));
    let _address = changed(runner, "ip", &to, &back)?;
    // An address that is new is tentative for a moment, and a link that came up is still told as one without a carrier.
    let is_rising = |line: &str| line.contains("NO-CARRIER") && line.contains("LOWER_UP");
    let is_settled = |shown: &String| !shown.contains("tentative") && !shown.lines().any(is_rising);
    let settled = || runner.ip("addr").ok().filter(is_settled);
    let before = wait_until("addresses to settle", SOON, settled)?;
    let answers = doctor(lab, &[])?;
    let broken = expect(&answers, "route", "host", "broken", &[port, "nobody has that address"])?;
    let mend = broken["mend"].as_str().context("a command that mends it")?;
    let _route = Undo(|| {
        let _ = runner.ip("route del 169.254.169.254/32");
    });
    runner.run("sh", &["-c", mend])?;
    expect_nothing_broken(&doctor(lab, &[])?)?;
    expect_equal("nothing else is changed", runner.ip("addr")?, before)?;
    Ok(())
}

fn a_way_into_a_tunnel_or_under_a_link_local_address_is_broken(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let runner = lab.host.runner();
    {
        let _address = changed(runner, "ip", "addr add 169.254.7.7/16 dev ens5", "addr del 169.254.7.7/16 dev ens5")?;
        let answers = doctor(lab, &[])?;
        let broken = expect(&answers, "route", "host", "broken", &["169.254.7.7", "link-local"])?;
        let mend = broken["mend"].as_str().context("a command that mends it")?;
        let _route = Undo(|| {
            let _ = runner.ip("route del 169.254.169.254/32");
        });
        runner.run("sh", &["-c", mend])?;
        expect_nothing_broken(&doctor(lab, &[])?)?;
    }
    // As an exit node of a VPN takes everything, by a table of its own.
    let _tunnel = changed(runner, "ip", "tuntap add dev tun7 mode tun", "tuntap del dev tun7 mode tun")?;
    runner.ip("link set tun7 up")?;
    runner.ip("route add default dev tun7 table 52")?;
    let _rule = changed(runner, "ip", "rule add prio 5270 lookup 52", "rule del prio 5270")?;
    let answers = doctor(lab, &[])?;
    let broken = expect(&answers, "route", "host", "broken", &["tunnel tun7", "169.254.169.254"])?;
    expect_that("what would not help is not offered", broken["mend"].is_null(), broken)?;
    Ok(())
}

fn a_next_hop_that_does_not_answer_is_broken(lab: &Lab) -> Outcome {
    let job = waiting(lab, "job-17")?;
    let (runner, inside) = (lab.host.runner(), job.namespace()?);
    {
        let _route = obstacle::past_the_router(&inside)?;
        let parts = ["by no router", "nobody answers there for 169.254.169.254"];
        expect(&doctor(lab, &[])?, "route", "job-17", "broken", &parts)?;
        // Behind another port there may be who answers, as a card in a bridge leads to EC2's own router.
        let _port = changed(runner, "ip", "link add port7 type veth peer name beyond7", "link del port7")?;
        runner.ip("link set port7 master docker0")?;
        expect(&doctor(lab, &[])?, "route", "job-17", "unknown", &["not all of its ports were looked into"])?;
    }
    {
        let _ignore = sysctl(runner, "net/ipv4/conf/all/arp_ignore", "8", "0")?;
        expect(&doctor(lab, &[])?, "route", "job-17", "broken", &["does not answer ARP", "arp_ignore is 8"])?;
    }
    {
        let _entry = obstacle::stale_neighbour(&lab.host, &inside)?;
        let parts = ["the host's fixed neighbour entry", "answers go to nobody"];
        expect(&doctor(lab, &[])?, "route", "job-17", "broken", &parts)?;
    }
    expect_nothing_broken(&doctor(lab, &[])?)
}
