//! Are packets read whatever stands in front of them: VLAN tags, IP options, IPv6 extension headers?

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use imds_trace_tests::expect::{expect_equal, wait_until};
use imds_trace_tests::frames::{ethernet, ipv4, ipv6, send, tcp};
use serde_json::Value;

use crate::Lab;
use crate::trace::{SOON, watched};

crate::tests![
    a_request_is_read_behind_vlan_tags,
    a_response_is_read_behind_a_vlan_tag,
    a_request_is_read_behind_ip_options_and_tcp_options,
    a_request_is_read_behind_ipv6_extension_headers,
    a_later_fragment_has_no_ports,
];

type Outcome = anyhow::Result<()>;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x10);
const IMDS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const IMDS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
const CUSTOMER_TAG: (u16, u16) = (0x8100, 7);
/// Priority 2 and 3 make the tag's first byte look like the first of an IPv4 or IPv6 header.
const MISLEADING_TAGS: [(u16, u16); 2] = [(0x8100, 0x4507), (0x8100, 0x6007)];
const SERVICE_TAG: (u16, u16) = (0x88a8, 9);
/// Four no-operations; a TCP timestamp with padding.
const NOPS: [u8; 4] = [1; 4];
const TIMESTAMP: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
/// Eight bytes: next header (filled in), length 0, and six bytes of padding.
const PADDING: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];

fn request(name: &str) -> Vec<u8> {
    format!("GET /{name} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
}

/// Sends frames out by the runner's ens5 and gives what the recording says of the first packet from each of these ports.
fn observed(lab: &Lab, frames: &[(u16, Vec<u8>)]) -> Result<Vec<Value>> {
    observed_by(lab, lab.host.runner(), "ens5", "/flow/source/port", frames)
}

fn observed_by(
    lab: &Lab,
    namespace: &imds_trace_tests::Namespace,
    interface: &str,
    port: &str,
    frames: &[(u16, Vec<u8>)],
) -> Result<Vec<Value>> {
    let (_, found) = watched(lab, &[], |tracer| {
        for (_, frame) in frames {
            send(namespace, interface, frame)?;
        }
        let recording = tracer.dir().join("recording.jsonl");
        wait_until("all frames in the recording", SOON, || {
            let text = std::fs::read_to_string(&recording).ok()?;
            let seen: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            let of = |wanted: u16| {
                let is_it = |line: &&Value| line["observation"].pointer(port) == Some(&Value::from(wanted));
                seen.iter().find(is_it).map(|line| line["observation"].clone())
            };
            frames.iter().map(|(wanted, _)| of(*wanted)).collect::<Option<Vec<_>>>()
        })
    })?;
    Ok(found)
}

fn path(observation: &Value) -> Option<&str> {
    observation["heads"][0]["request"]["path"].as_str()
}

fn a_request_is_read_behind_vlan_tags(lab: &Lab) -> Outcome {
    let tagged = |port: u16, tags: &[(u16, u16)], name: &str| {
        (port, ethernet(tags, &ipv4(HOST, IMDS, 61, &[], 0, &tcp(port, 80, &[], &request(name)))))
    };
    let frames = [
        tagged(50_001, &[CUSTOMER_TAG], "one-tag"),
        tagged(50_002, &[SERVICE_TAG, CUSTOMER_TAG], "two-tags"),
        tagged(50_003, &MISLEADING_TAGS[..1], "like-v4"),
        tagged(50_004, &MISLEADING_TAGS[1..], "like-v6"),
    ];
    let found = observed(lab, &frames)?;
    let paths: Vec<_> = found.iter().map(path).collect();
    expect_equal("each request", paths, vec![Some("/one-tag"), Some("/two-tags"), Some("/like-v4"), Some("/like-v6")])?;
    for observation in &found {
        expect_equal("its TTL", &observation["ttl"], &Value::from(61))?;
        expect_equal("where", &observation["place"]["hook"]["direction"], &Value::from("egress"))?;
    }
    Ok(())
}

fn a_response_is_read_behind_a_vlan_tag(lab: &Lab) -> Outcome {
    let answer = b"HTTP/1.1 404 Not Found\r\nServer: tagged\r\n\r\n";
    let frames = [(50_011, ethernet(&[CUSTOMER_TAG], &ipv4(IMDS, HOST, 1, &[], 0, &tcp(80, 50_011, &[], answer))))];
    let found = observed_by(lab, lab.host.imds_ns(), "eth0", "/flow/destination/port", &frames)?;
    let observation = found.first().context("one frame")?;
    expect_equal("its server", &observation["heads"][0]["response"]["server"], &Value::from("tagged"))?;
    expect_equal("its TTL", &observation["ttl"], &Value::from(1))?;
    expect_equal("where", &observation["place"]["hook"]["direction"], &Value::from("ingress"))?;
    Ok(())
}

fn a_request_is_read_behind_ip_options_and_tcp_options(lab: &Lab) -> Outcome {
    let options: Vec<u8> = NOPS.repeat(10);
    let segment = tcp(50_021, 80, &TIMESTAMP, &request("options"));
    let found = observed(lab, &[(50_021, ethernet(&[], &ipv4(HOST, IMDS, 62, &options, 0, &segment)))])?;
    expect_equal("the request", found.first().and_then(path), Some("/options"))?;
    Ok(())
}

fn a_request_is_read_behind_ipv6_extension_headers(lab: &Lab) -> Outcome {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    const AUTHENTICATION: u8 = 51;
    // An authentication header counts its length in words of four bytes, less two.
    const AUTHENTICATED: [u8; 16] = [0, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0];
    let with = |port: u16, extensions: &[(u8, &[u8])], name: &str| {
        let segment = tcp(port, 80, &TIMESTAMP, &request(name));
        (port, ethernet(&[], &ipv6(HOST6, IMDS6, 63, extensions, &segment)))
    };
    let frames = [
        with(50_031, &[], "none"),
        with(50_032, &[(HOP_BY_HOP, &PADDING), (DESTINATION, &PADDING)], "two"),
        with(50_033, &[(ROUTING, &PADDING), (AUTHENTICATION, &AUTHENTICATED)], "authenticated"),
    ];
    let found = observed(lab, &frames)?;
    let paths: Vec<_> = found.iter().map(path).collect();
    expect_equal("each request", paths, vec![Some("/none"), Some("/two"), Some("/authenticated")])?;
    Ok(())
}

fn a_later_fragment_has_no_ports(lab: &Lab) -> Outcome {
    // What looks like a TCP header in the middle of a packet is data: only the fragment that begins it may be believed.
    let fake = tcp(50_041, 80, &[], &request("fragment"));
    let frames = [
        (0, ethernet(&[], &ipv4(HOST, IMDS, 60, &[], 100, &fake))),
        (50_042, ethernet(&[], &ipv4(HOST, IMDS, 60, &[], 0, &tcp(50_042, 80, &[], &request("whole"))))),
    ];
    let found = observed(lab, &frames)?;
    let fragment = found.first().context("two frames")?;
    expect_equal("its TCP header", &fragment["tcp"], &Value::Null)?;
    expect_equal("its payload", fragment.get("heads"), None)?;
    expect_equal("the whole packet", found.get(1).and_then(path), Some("/whole"))?;
    Ok(())
}
