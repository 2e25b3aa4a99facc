//! Does Wireshark read what `--output pcapng` writes, and does it show what became of each packet?

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::Context;
use imds_trace_tests::capturer::{capinfos, tshark};
use imds_trace_tests::expect::{expect_equal, expect_that};

use crate::Lab;
use crate::trace::{client, run_all, watched};

crate::tests![
    wireshark_shows_where_a_token_response_died,
    wireshark_shows_an_exchange_that_works_at_every_place,
    over_ipv6_wireshark_shows_the_same,
    a_probe_is_told_to_wireshark_too,
];

type Outcome = anyhow::Result<()>;

/// What is asked of tshark about each packet.
const FIELDS: [&str; 9] = [
    "frame.interface_name",
    "ip.ttl",
    "ipv6.hlim",
    "http.request.method",
    "http.request.uri",
    "http.response.code",
    "frame.comment",
    "frame.len",
    "ip.src",
];

/// Traces `words` in a container with `--output pcapng` and gives what tshark says of the file; without any secret, as [`watched`] sees
/// to.
fn told(lab: &Lab, hop_limit: u8, words: &str) -> anyhow::Result<Vec<Vec<String>>> {
    // A client waits for a second: then no more than one copy of a lost answer is to come.
    lab.host
        .imds()
        .set(|behaviour| (behaviour.hop_limit, behaviour.give_up) = (hop_limit, Duration::from_millis(1500)));
    // A second --output: the kit asks for JSON itself.
    let (seen, _) =
        watched(lab, &["--output", "pcapng={dir}/it.pcapng"], |_| run_all(lab, vec![client("job-17", words)]))?;
    let file = seen.outcome.dir.join("it.pcapng");
    let mode = std::fs::metadata(&file)?.permissions().mode();
    expect_equal("only its owner may read it", mode & 0o777, 0o600)?;
    let about = capinfos(&file)?;
    expect_that("its times are nanoseconds", about.contains("nanoseconds (9)"), &about)?;
    expect_that("its packets are in order", about.contains("Strict time order:   True"), &about)?;
    expect_that("it says who wrote it", about.contains("imds-trace"), &about)?;
    tshark(&file, &FIELDS)
}

/// The packets that have this value in this column.
fn with<'a>(packets: &'a [Vec<String>], field: &str, value: &str) -> Vec<&'a Vec<String>> {
    let column = FIELDS.iter().position(|known| *known == field).unwrap_or(0);
    packets.iter().filter(|packet| packet[column] == value).collect()
}

fn column<'a>(packet: &'a [String], field: &str) -> &'a str {
    FIELDS.iter().position(|known| *known == field).map_or("", |at| packet[at].as_str())
}

fn places<'a>(packets: &[&'a Vec<String>]) -> Vec<&'a str> {
    packets.iter().map(|packet| column(packet, "frame.interface_name")).collect()
}

fn shows_where_it_died(packets: &[Vec<String>], ttl: &str, location: &str) -> Outcome {
    let requests = with(packets, "http.request.method", "PUT");
    expect_equal("the request's places", places(&requests), vec!["docker0 ingress", "ens5 egress"])?;
    expect_equal("what it asks for", column(requests[0], "http.request.uri"), "/latest/api/token")?;
    expect_equal("its TTL where it came in", column(requests[0], ttl), "64")?;
    expect_equal("its TTL where it left", column(requests[1], ttl), "63")?;
    let answers = with(packets, "http.response.code", "200");
    let drop = format!("drop {location}");
    expect_that("the answer came in", places(&answers).contains(&"ens5 ingress"), &answers)?;
    let dropped = with(packets, "frame.interface_name", &drop);
    let first = dropped.first().context("no packet at the drop")?;
    expect_equal("its TTL where it died", column(first, ttl), "1")?;
    let comment = column(first, "frame.comment");
    for part in ["job-17", "imds-client[", &format!("TTL 1: dropped in {location}")] {
        expect_that(&format!("the comment says {part}"), comment.contains(part), comment)?;
    }
    Ok(())
}

fn wireshark_shows_where_a_token_response_died(lab: &Lab) -> Outcome {
    shows_where_it_died(&told(lab, 1, "put-only")?, "ip.ttl", "ip_forward")
}

fn over_ipv6_wireshark_shows_the_same(lab: &Lab) -> Outcome {
    shows_where_it_died(&told(lab, 1, "put-only --endpoint fd00:ec2::254")?, "ipv6.hlim", "ip6_forward")?;
    let packets = told(lab, 2, "v2 --endpoint fd00:ec2::254")?;
    shows_that_it_works(&packets, "ipv6.hlim")
}

fn shows_that_it_works(packets: &[Vec<String>], ttl: &str) -> Outcome {
    let requests: Vec<_> = packets.iter().filter(|packet| !column(packet, "http.request.method").is_empty()).collect();
    let expected = ["docker0 ingress", "ens5 egress", "docker0 ingress", "ens5 egress"];
    expect_equal("the requests' places", places(&requests), expected.to_vec())?;
    let asked: Vec<&str> = requests.iter().map(|packet| column(packet, "http.request.uri")).collect();
    let (token, id) = ("/latest/api/token", "/latest/meta-data/instance-id");
    expect_equal("what they ask for", asked, vec![token, token, id, id])?;
    let answers = with(packets, "http.response.code", "200");
    let expected = ["ens5 ingress", "docker0 egress", "ens5 ingress", "docker0 egress"];
    expect_equal("the answers' places", places(&answers), expected.to_vec())?;
    let ttls: Vec<&str> = answers.iter().take(2).map(|packet| column(packet, ttl)).collect();
    expect_equal("the token's TTLs", ttls, vec!["2", "1"])?;
    // Drops are seen of the whole machine, where another lab may be at work.
    let is_drop = |packet: &&Vec<String>| column(packet, "frame.interface_name").starts_with("drop");
    let is_ours = |packet: &&Vec<String>| column(packet, "frame.comment").contains("job-17");
    let drops: Vec<_> = packets.iter().filter(|packet| is_drop(packet) && is_ours(packet)).collect();
    expect_that("nothing was dropped", drops.is_empty(), &drops)?;
    Ok(())
}

fn wireshark_shows_an_exchange_that_works_at_every_place(lab: &Lab) -> Outcome {
    shows_that_it_works(&told(lab, 2, "v2")?, "ip.ttl")
}

fn a_probe_is_told_to_wireshark_too(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let job = lab.host.run(client("job-17", "v2"))?;
    let file = lab.host.dir().join("probe.pcapng");
    let mut command = lab.host.runner().command(imds_trace_tests::tracer::program()?);
    command.args(["probe", "job-17", "--docker-host"]).arg(lab.host.docker_host_url());
    command.arg("--output").arg(format!("pcapng={}", file.display()));
    imds_trace_tests::children::output(command)?;
    let packets = tshark(&file, &FIELDS)?;
    std::fs::remove_file(&file)?;
    shows_that_it_works(&packets, "ip.ttl")?;
    job.go()?;
    Ok(())
}
