//! Which captures are kept, and how are they made in the lab?
//!
//! Each is one run of tcpdump or dumpcap beside containers that ask the fake IMDS. What it holds of HTTP bodies and of tokens is blanked,
//! and what says more of this machine than of the situation is left out, before it is kept.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::capturer::{Capturer, FILTER};
use crate::expect::assert_no_secret;
use crate::imds::{Behaviour, Tokens};
use crate::{Container, ContainerSpec, HostOptions, RunnerHost};

/// A larger one tells nobody more.
const MAX_SIZE: usize = 50_000;
const SOON: Duration = Duration::from_secs(20);

/// Where it is captured, and how.
enum How {
    /// tcpdump with these arguments, in the runner's namespace.
    Tcpdump(&'static [&'static str]),
    /// dumpcap, there as well.
    Dumpcap(&'static [&'static str]),
    /// tcpdump, in the container's.
    Inside(&'static [&'static str]),
}

/// A capture that is kept.
struct Situation {
    name: &'static str,
    how: How,
    behave: fn(&mut Behaviour),
    /// What `imds-client` is told.
    words: &'static str,
}

const V4: &str = "fallback --user-agent Boto3/1.40.21";
const V6: &str = "fallback --endpoint fd00:ec2::254";
const HOP_LIMIT_1: fn(&mut Behaviour) = |behaviour| behaviour.tokens = Tokens::Required;
const HOP_LIMIT_2: fn(&mut Behaviour) = |behaviour| behaviour.hop_limit = 2;
const SILENT: fn(&mut Behaviour) = |behaviour| (behaviour.hop_limit, behaviour.silent) = (2, true);

const SITUATIONS: &[Situation] = &[
    Situation { name: "any-hop-limit-1.pcap", how: How::Tcpdump(&["-i", "any"]), behave: HOP_LIMIT_1, words: V4 },
    Situation { name: "any-hop-limit-1-ipv6.pcap", how: How::Tcpdump(&["-i", "any"]), behave: HOP_LIMIT_1, words: V6 },
    Situation {
        name: "any-hop-limit-1-cooked-v1.pcap",
        how: How::Tcpdump(&["-i", "any", "-y", "LINUX_SLL"]),
        behave: HOP_LIMIT_1,
        words: V4,
    },
    Situation { name: "any-hop-limit-2.pcap", how: How::Tcpdump(&["-i", "any"]), behave: HOP_LIMIT_2, words: "v2" },
    Situation { name: "any-silent.pcap", how: How::Tcpdump(&["-i", "any"]), behave: SILENT, words: "put-only" },
    Situation { name: "ens5-hop-limit-1.pcap", how: How::Tcpdump(&["-i", "ens5"]), behave: HOP_LIMIT_1, words: V4 },
    Situation {
        name: "ens5-hop-limit-1-ipv6-nano.pcap",
        how: How::Tcpdump(&["-i", "ens5", "--nano"]),
        behave: HOP_LIMIT_1,
        words: V6,
    },
    Situation { name: "ens5-hop-limit-2.pcap", how: How::Tcpdump(&["-i", "ens5"]), behave: HOP_LIMIT_2, words: "v2" },
    Situation {
        name: "two-interfaces-hop-limit-1.pcapng",
        how: How::Dumpcap(&["-i", "docker0", "-i", "ens5"]),
        behave: HOP_LIMIT_1,
        words: V4,
    },
    Situation {
        name: "docker0-hop-limit-1.pcap",
        how: How::Tcpdump(&["-i", "docker0"]),
        behave: HOP_LIMIT_1,
        words: V4,
    },
    Situation { name: "container-hop-limit-1.pcap", how: How::Inside(&["-i", "eth0"]), behave: HOP_LIMIT_1, words: V4 },
    Situation {
        name: "snapped-hop-limit-2.pcap",
        how: How::Tcpdump(&["-i", "any", "-s", "120"]),
        behave: HOP_LIMIT_2,
        words: "v2",
    },
];

/// Makes all captures anew.
pub fn record(dir: &Path) -> Result<()> {
    let (options, why_plain) = HostOptions::best();
    if let Some(why) = why_plain {
        bail!("captures are made with a real engine: {why}");
    }
    for situation in SITUATIONS {
        let host = RunnerHost::start(HostOptions { ipv6: true, behaviour: Behaviour::default(), ..options.clone() })?;
        let bytes = capture(&host, situation).with_context(|| situation.name.to_owned())?;
        if bytes.len() > MAX_SIZE {
            bail!("{}: {} bytes, more than {MAX_SIZE}", situation.name, bytes.len());
        }
        let secrets = host.imds().secrets();
        if !secrets.is_empty() {
            assert_no_secret(&[(situation.name, &bytes)], &[], &secrets)?;
        }
        std::fs::write(dir.join(situation.name), &bytes)?;
        eprintln!("{}: {} bytes", situation.name, bytes.len());
    }
    Ok(())
}

fn capture(host: &RunnerHost, situation: &Situation) -> Result<Vec<u8>> {
    host.imds().set(situation.behave);
    let args: Vec<&str> = ["imds-client"].into_iter().chain(situation.words.split(' ')).collect();
    let job: Container = host.run(ContainerSpec::new("job-17", &args).wait_for_go())?;
    let path = host.dir().join(situation.name);
    let with_filter = |args: &[&'static str]| [args, &[FILTER]].concat();
    let capturer = match situation.how {
        How::Tcpdump(args) => Capturer::tcpdump(host.runner(), &path, &with_filter(args))?,
        How::Inside(args) => Capturer::tcpdump(&job.namespace()?, &path, &with_filter(args))?,
        How::Dumpcap(args) => Capturer::dumpcap(host.runner(), &path, args)?,
    };
    job.go()?;
    job.wait(SOON)?;
    host.settle(SOON)?;
    let bytes = std::fs::read(capturer.stop()?)?;
    if situation.name.ends_with(".pcapng") { pcapng_without(&bytes) } else { pcap_without(bytes) }
}

/// Link types, and the lengths of their headers.
const LINKS: [(u32, usize); 3] = [(1, 14), (113, 16), (276, 20)];
const PCAP_HEADER: usize = 24;
const PCAP_RECORD: usize = 16;

fn number(bytes: &[u8], at: usize) -> Result<usize> {
    let four = bytes.get(at..at + 4).context("the capture is cut short")?;
    Ok(u32::from_le_bytes(four.try_into()?) as usize)
}

/// A pcap file of this machine's byte order without what may not be kept.
fn pcap_without(mut bytes: Vec<u8>) -> Result<Vec<u8>> {
    let link = number(&bytes, 20)? as u32;
    let mut at = PCAP_HEADER;
    while at < bytes.len() {
        let length = number(&bytes, at + 8)?;
        at += PCAP_RECORD;
        blank(link, bytes.get_mut(at..at + length).context("the capture is cut short")?)?;
        at += length;
    }
    Ok(bytes)
}

/// A pcapng file the same, and without what dumpcap says of this machine. Packets of others are left out: it has no filter.
fn pcapng_without(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut kept = Vec::new();
    let mut links = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let (kind, length) = (number(bytes, at)?, number(bytes, at + 4)?);
        let block = bytes.get(at..at + length).context("the capture is cut short")?;
        at += length;
        match kind {
            0x0a0d_0d0a => put(&mut kept, kind, &block[8..24], &[]),
            1 => {
                links.push(u32::from(u16::from_le_bytes([block[8], block[9]])));
                // Name and resolution.
                put(&mut kept, kind, &block[8..16], &options(&block[16..length - 4], &[2, 9]));
            }
            6 => {
                let captured = number(block, 20)?;
                let mut body = block[8..28 + captured].to_vec();
                let link = *links.get(number(block, 8)?).context("no such interface")?;
                if !text_in(&body[20..], &[169, 254, 169, 254]) {
                    continue;
                }
                blank(link, &mut body[20..])?;
                body.resize(body.len().next_multiple_of(4), 0);
                put(&mut kept, kind, &body, &[]);
            }
            _ => {}
        }
    }
    Ok(kept)
}

fn text_in(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

/// Those of a block's options that have these codes.
fn options(bytes: &[u8], codes: &[u16]) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut rest = bytes;
    while let [a, b, c, d, ..] = *rest {
        let (code, length) = (u16::from_le_bytes([a, b]), usize::from(u16::from_le_bytes([c, d])));
        let whole = 4 + length.next_multiple_of(4);
        let Some(option) = rest.get(..whole).filter(|_| code != 0) else { break };
        if codes.contains(&code) {
            kept.extend(option);
        }
        rest = &rest[whole..];
    }
    kept.extend([0; 4]);
    kept
}

fn put(out: &mut Vec<u8>, kind: usize, body: &[u8], options: &[u8]) {
    let length = (12 + body.len() + options.len()) as u32;
    out.extend((kind as u32).to_le_bytes());
    out.extend(length.to_le_bytes());
    out.extend(body);
    out.extend(options);
    out.extend(length.to_le_bytes());
}

/// Blanks bodies, and tokens in headers.
fn blank(link: u32, frame: &mut [u8]) -> Result<()> {
    let (_, skip) = LINKS.iter().find(|(known, _)| *known == link).context("an unknown link type")?;
    let Some(ip) = frame.get_mut(*skip..) else { return Ok(()) };
    let tcp = match (ip.first().map(|first| first >> 4), ip.len()) {
        (Some(4), 20..) if ip[9] == 6 => usize::from(ip[0] & 0xf) * 4,
        (Some(6), 40..) if ip[6] == 6 => 40,
        // An ICMP error quotes a packet: of that, its IP header and ports and sequence number.
        (Some(version @ (4 | 6)), _) => {
            let quoted = if version == 4 { 56 } else { 96 };
            ip.iter_mut().skip(quoted).for_each(|byte| *byte = b'x');
            return Ok(());
        }
        _ => return Ok(()),
    };
    let Some(offset) = ip.get(tcp + 12) else { return Ok(()) };
    let begin = tcp + usize::from(offset >> 4) * 4;
    let Some(payload) = ip.get_mut(begin..) else { return Ok(()) };
    let is_head = ["HTTP/", "GET ", "PUT "].iter().any(|begin| payload.starts_with(begin.as_bytes()));
    if !is_head {
        payload.fill(b'x');
        return Ok(());
    }
    let head = payload.windows(4).position(|window| window == b"\r\n\r\n").map_or(payload.len(), |end| end + 4);
    payload[head..].fill(b'x');
    for line in payload[..head].split_mut(|byte| *byte == b'\n') {
        const TOKEN: &[u8] = b"x-aws-ec2-metadata-token: ";
        if line.len() > TOKEN.len() && line[..TOKEN.len()].eq_ignore_ascii_case(TOKEN) {
            let end = line.len() - usize::from(line.ends_with(b"\r"));
            line[TOKEN.len()..end].fill(b'x');
        }
    }
    Ok(())
}
