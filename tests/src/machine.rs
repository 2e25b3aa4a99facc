//! What must hold of what reads this machine's own words: kernel records, an engine's JSON, firewalls, BTF, kallsyms? As below the
//! seam: no panic, bounded time, the same again, and no secret out.
//!
//! Whoever owns a container chooses much of it: command lines, labels, names, the rules of its namespace.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use diagnosis::net::{Ifindex, Netns};
use diagnosis::observation::Streams;
use imds_trace::doctor::firewall::fate::{Client, fate};
use imds_trace::doctor::firewall::rules::Chain;
use imds_trace::doctor::firewall::{ipset, iptables, nft};
use imds_trace::kernel::btf::Layout;
use imds_trace::kernel::decode::{Names, Tasks, from_record};
use imds_trace::kernel::ring;
use imds_trace::kernel::symbols::Table;
use imds_trace::sources::docker;
use imds_trace_ebpf::record::{self, kind};
use imds_trace_replay_tests::foreign::{Property, SECRET, is_fast, keeps_the_secret, same, unmarked};
use imds_trace_replay_tests::kept;
use zerocopy::IntoBytes;

/// One for every parser of this machine's words.
pub const PROPERTIES: &[Property] = &[
    Property { name: "record", holds: record, most: 8 << 10 },
    Property { name: "docker", holds: docker, most: 16 << 10 },
    Property { name: "iptables", holds: iptables, most: 16 << 10 },
    Property { name: "nft", holds: nft, most: 32 << 10 },
    Property { name: "btf", holds: btf, most: 16 << 10 },
    Property { name: "kallsyms", holds: kallsyms, most: 16 << 10 },
];

/// What the bytes that a property is tried with begin from, by name.
pub fn seeds(property: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let sample = |name: &str| -> Result<(String, Vec<u8>)> {
        let path = kept::tests().join("../imds-trace/src/doctor/firewall/samples").join(name);
        Ok((name.to_owned(), std::fs::read(&path).with_context(|| path.display().to_string())?))
    };
    match property {
        "record" => Ok(records()),
        "docker" => Ok(vec![("inspected".to_owned(), INSPECTED.as_bytes().to_vec())]),
        "iptables" => {
            let ipset = ("ipset".to_owned(), IPSET.as_bytes().to_vec());
            Ok(vec![sample("docker.iptables-save")?, sample("odd.iptables-save")?, ipset])
        }
        "nft" => Ok(vec![sample("odd.nft.json")?]),
        "btf" => Ok(vec![("few".to_owned(), few_types())]),
        _ => Ok(vec![("some".to_owned(), KALLSYMS.as_bytes().to_vec())]),
    }
}

/// Records as they lie in the ring buffer, of every kind; those of tasks with a token in the command line.
pub fn record(bytes: &[u8]) {
    let started = Instant::now();
    decoded(bytes, bytes);
    let mut connect = record::Connect::default();
    let mut task = record::Task::default();
    fill(connect.as_mut_bytes(), bytes);
    fill(task.as_mut_bytes(), bytes.get(size_of::<record::Connect>()..).unwrap_or_default());
    connect.header.kind = if task.argv_cut == 0 { kind::ATTEMPT } else { kind::CONNECT };
    connect.header.len = (size_of::<record::Connect>() + size_of::<record::Task>()) as u32;
    let own = usize::from(task.argv_len) % (record::ARGV - SECRET.len() - 2);
    for (at, byte) in format!("\0{SECRET}\0").bytes().enumerate() {
        task.argv[own + at] = byte;
    }
    task.argv_len = (own + SECRET.len() + 2) as u16;
    decoded(&[connect.as_bytes(), task.as_bytes()].concat(), bytes);
    is_fast(started);
}

fn decoded(bytes: &[u8], given: &[u8]) {
    let mut words = vec![0_u64; bytes.len().div_ceil(8)];
    words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
    let aligned = &words.as_bytes()[..bytes.len()];
    let said = same(|| {
        let record = ring::read(aligned)?;
        let (mut streams, mut tasks) = (Streams::default(), Tasks::default());
        Some(unmarked(&from_record(record, &Anywhere, &mut streams, &mut tasks)))
    });
    keeps_the_secret(&said.unwrap_or_default(), given);
}

fn fill(to: &mut [u8], from: &[u8]) {
    let length = to.len().min(from.len());
    to[..length].copy_from_slice(&from[..length]);
}

/// A machine that has a name for everything.
struct Anywhere;

impl Names for Anywhere {
    fn host_netns(&self) -> Netns {
        Netns(1)
    }

    fn interface(&self, index: Ifindex) -> Option<Arc<str>> {
        (!index.0.is_multiple_of(3)).then(|| format!("eth{}", index.0).into())
    }

    fn symbol(&self, address: u64) -> Option<String> {
        (!address.is_multiple_of(5)).then(|| format!("function_{}", address % 16))
    }

    fn reason(&self, number: u32) -> Option<String> {
        Some(number.to_string())
    }

    fn counts(&self) -> bool {
        true
    }

    fn is_endpoint(&self, address: IpAddr) -> bool {
        address == IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254))
    }
}

/// What an engine says of a container; a token in one of its labels.
pub fn docker(bytes: &[u8]) {
    let started = Instant::now();
    let text = String::from_utf8_lossy(bytes).replace("LABEL", SECRET);
    let said = same(|| format!("{:?}", docker::read_inspected("0123", text.as_bytes())));
    keeps_the_secret(&said, bytes);
    is_fast(started);
}

/// What `iptables-save` says, and `ipset save`, and what becomes of a packet by it.
pub fn iptables(bytes: &[u8]) {
    let started = Instant::now();
    let text = String::from_utf8_lossy(bytes);
    same(|| {
        let mut chains = iptables::read(&text, "iptables");
        ipset::resolve(&mut chains, &ipset::read(&text));
        (iptables::incompatible(&text), fates(&chains))
    });
    is_fast(started);
}

/// What `nft -j list ruleset` says.
pub fn nft(bytes: &[u8]) {
    let started = Instant::now();
    let text = String::from_utf8_lossy(bytes);
    let _ = same(|| nft::read(&text, &text).map(|chains| fates(&chains)).map_err(|error| error.to_string()));
    is_fast(started);
}

fn fates(chains: &[Chain]) -> String {
    let client = |by: Option<&str>, address: &str, endpoint: &str| Client {
        name: "job".to_owned(),
        address: address.parse().ok(),
        by: by.map(str::to_owned),
        uplink: Some("ens5".to_owned()),
        masked: "10.0.0.10".parse().ok(),
        endpoint: endpoint.parse().ok(),
        ..Client::default()
    };
    let clients = [
        client(Some("docker0"), "172.17.0.2", "169.254.169.254"),
        client(None, "10.0.0.10", "169.254.169.254"),
        client(Some("docker0"), "fd00:d0c::2", "fd00:ec2::254"),
    ];
    clients.iter().map(|client| format!("{:?}", fate(chains, client))).collect()
}

/// The kernel's description of its types.
pub fn btf(bytes: &[u8]) {
    let started = Instant::now();
    same(|| {
        let layout = Layout::new(bytes.to_vec()).ok()?;
        let mut reasons: Vec<_> = layout.drop_reasons().into_iter().collect();
        reasons.sort();
        let offsets = layout.offsets().map(|offsets| format!("{offsets:?}")).map_err(|error| error.to_string());
        Some((offsets, reasons, layout.counts_bytes(), layout.kfree_skb_has_reason(), layout.has_type("sk_buff")))
    });
    is_fast(started);
}

/// `/proc/kallsyms`.
pub fn kallsyms(bytes: &[u8]) {
    let started = Instant::now();
    let text = String::from_utf8_lossy(bytes);
    same(|| {
        let table = Table::read(&text);
        [0, 1, 0xffff_ffff_8100_02c0, u64::MAX].map(|address| table.name(address).map(str::to_owned))
    });
    is_fast(started);
}

/// One record of each kind, with what can be in it.
fn records() -> Vec<(String, Vec<u8>)> {
    let header = |kind: u32, len: usize| record::Header { kind, len: len as u32, ..record::Header::default() };
    let network = record::Network {
        version: 4,
        protocol: 6,
        ttl: 64,
        source: address([172, 17, 0, 2]),
        destination: address([169, 254, 169, 254]),
        source_port: 40_000,
        destination_port: 80,
        ..record::Network::default()
    };
    let request = b"GET /latest/meta-data/ HTTP/1.1\r\nUser-Agent: curl/8\r\n\r\n";
    let mut packet = record::Packet { network, ifindex: 2, direction: 1, ..record::Packet::default() };
    packet.header = header(kind::PACKET_WITH_PAYLOAD, size_of::<record::Packet>() + request.len());
    packet.snapped = request.len() as u16;
    let mut drop = record::Drop { network, location: 7, netns: 1, ifindex: 3, ..record::Drop::default() };
    drop.header = header(kind::DROP, size_of::<record::Drop>());
    let mut connect = record::Connect { version: 4, tgid: 7, tid: 7, ..record::Connect::default() };
    connect.header = header(kind::ATTEMPT, size_of::<record::Connect>() + size_of::<record::Task>());
    let mut task = record::Task::default();
    fill(&mut task.argv, b"curl\0-H\0X-aws-ec2-metadata-token: abc\0http://169.254.169.254/\0");
    task.argv_len = 64;
    let mut error = record::IcmpError { network, ifindex: 2, icmp_type: 3, ..record::IcmpError::default() };
    error.header = header(kind::ICMP_ERROR, size_of::<record::IcmpError>());
    let mut connected = record::Connected { version: 4, established: 1, ..record::Connected::default() };
    connected.header = header(kind::CONNECTED, size_of::<record::Connected>());
    let mut counted =
        record::Counted { received: 5, acked: 3, state: record::state::CLOSE, ..record::Counted::default() };
    counted.socket.header = header(kind::COUNTED, size_of::<record::Counted>());
    [
        ("packet", [packet.as_bytes(), request].concat()),
        ("drop", drop.as_bytes().to_vec()),
        ("attempt", [connect.as_bytes(), task.as_bytes()].concat()),
        ("error", error.as_bytes().to_vec()),
        ("connected", connected.as_bytes().to_vec()),
        ("counted", counted.as_bytes().to_vec()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}

fn address(v4: [u8; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&v4);
    bytes
}

/// BTF with the kinds of types that are followed: a structure with an anonymous one in it, a typedef, a pointer, an enumeration.
fn few_types() -> Vec<u8> {
    let mut names = vec![0_u8];
    let mut name = |text: &str| {
        let at = names.len() as u32;
        names.extend_from_slice(text.as_bytes());
        names.push(0);
        at
    };
    let kind = |kind: u32, count: u32| kind << 24 | count;
    let (int, structure, anonymous, typedef) = (1, 2, 3, 4);
    let types: Vec<u32> = [
        // An int; sk_buff { int head; struct { int protocol; }; }; the anonymous one; a typedef of sk_buff.
        vec![name("int"), kind(1, 0), 4, 32],
        vec![name("sk_buff"), kind(4, 2), 16, name("head"), int, 0, 0, anonymous, 64],
        vec![0, kind(4, 1), 8, name("protocol"), int, 0],
        vec![name("skb_t"), kind(8, 0), structure],
        // struct net_device { skb_t nd_net; }; a pointer; enum skb_drop_reason { SKB_DROP_REASON_IP_INHDR = 5 }.
        vec![name("net_device"), kind(4, 1), 16, name("nd_net"), typedef, 0],
        vec![0, kind(2, 0), structure],
        vec![name("skb_drop_reason"), kind(6, 1), 4, name("SKB_DROP_REASON_IP_INHDR"), 5],
    ]
    .concat();
    let header = [0x0001_eb9f, 24, 0, types.len() as u32 * 4, types.len() as u32 * 4, names.len() as u32];
    header.iter().chain(&types).flat_map(|word| word.to_le_bytes()).chain(names).collect()
}

const INSPECTED: &str = r#"{"Id":"0123","Name":"/job-17","State":{"Pid":4711},"Config":{"Image":"registry.example/job:1",
"Labels":{"com.gitlab.gitlab-runner.job.id":"42","registry-password":"LABEL","note":"LABEL","LABEL":"1"}},
"NetworkSettings":{"Networks":{"bridge":{"IPAddress":"172.17.0.2","GlobalIPv6Address":"fd00:d0c::2"}}}}"#;

const IPSET: &str = "create imds hash:ip,port family inet hashsize 1024 maxelem 65536
add imds 169.254.169.254,tcp:80
create nets hash:net family inet
add nets 169.254.0.0/16 nomatch
";

const KALLSYMS: &str = "ffffffff81000000 T _text
ffffffff81000100 t ip_rcv
ffffffff81000200 T ip_forward
ffffffff81000300 D some_data
ffffffffc0000000 t module_function\t[nf_tables]
0000000000000000 T hidden
";
