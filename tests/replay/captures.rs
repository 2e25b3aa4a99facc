//! Is what the program says of each capture what it said when somebody looked at it, whatever the file's format, and does damage do no
//! harm?

use std::io::Cursor;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use diagnosis::capture::Reader;
use diagnosis::config::endpoints;
use diagnosis::event::Event;
use diagnosis::finding::Confidence;
use diagnosis::pipeline::Pipeline;
use imds_trace_replay_tests::{expect_equal, kept};
use libtest_mimic::{Failed, Trial};

use crate::recordings::is_told_as_before;

/// One file takes milliseconds.
const LONG: Duration = Duration::from_secs(5);

/// One for each capture, and some about forms and damage.
pub fn trials() -> Result<Vec<Trial>> {
    let mut trials = vec![
        Trial::test("captures::the_byte_order_of_a_pcap_does_not_matter", || Ok(big_endian_pcap()?)),
        Trial::test("captures::the_byte_order_of_a_pcapng_does_not_matter", || Ok(big_endian_pcapng()?)),
        Trial::test("captures::what_is_before_the_ip_header_does_not_matter", || Ok(other_links()?)),
        Trial::test("captures::a_pcap_cut_anywhere_does_no_harm", || Ok(cut_anywhere("docker0-hop-limit-1.pcap")?)),
        Trial::test("captures::a_pcapng_cut_anywhere_does_no_harm", || Ok(cut_anywhere(PCAPNG)?)),
        Trial::test("captures::a_pcap_damaged_anywhere_does_no_harm", || Ok(damaged_anywhere(ANY, 1)?)),
        Trial::test("captures::icmp_errors_damaged_anywhere_do_no_harm", || Ok(damaged_anywhere(WITH_ICMP, 11)?)),
        Trial::test("captures::a_pcapng_damaged_anywhere_does_no_harm", || Ok(damaged_anywhere(PCAPNG, 5)?)),
    ];
    for (name, path) in kept::captures()? {
        trials.push(Trial::test(format!("captures::{name}"), move || -> Result<(), Failed> {
            Ok(is_told_as_before(&path, &name)?)
        }));
    }
    Ok(trials)
}

const ANY: &str = "any-silent.pcap";
/// It has the ICMP errors that the host sent for what it dropped.
const WITH_ICMP: &str = "any-hop-limit-1-ipv6.pcap";
const ETHERNET: &str = "ens5-hop-limit-1.pcap";
const PCAPNG: &str = "two-interfaces-hop-limit-1.pcapng";

fn read(name: &str) -> Result<Vec<u8>> {
    std::fs::read(kept::captures_folder().join(Path::new(name))).with_context(|| name.to_owned())
}

/// Everything that is said of a capture but what it is like, as text; and whether it could be read to its end.
fn said(bytes: &[u8]) -> Result<(Vec<String>, bool)> {
    let mut said = Vec::new();
    let whole = tell(bytes, &mut |event| said.push(unmarked(&format!("{event:?}"))))?;
    Ok((said, whole))
}

/// Without the marks of tokens, which mean nothing outside a run.
fn unmarked(text: &str) -> String {
    const MARK: &str = "TokenMark(";
    let mut parts = text.split(MARK);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + MARK + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// Tells a capture; gives whether it could be read to its end.
fn tell(bytes: &[u8], tell: &mut dyn FnMut(&Event)) -> Result<bool> {
    let started = Instant::now();
    let mut whole = true;
    if let Ok(mut reader) = Reader::new(Box::new(Cursor::new(bytes.to_vec())), endpoints(&[])?) {
        let mut pipeline = Pipeline::of_capture();
        for input in &mut reader {
            match input {
                Ok(input) => pipeline.push(input, tell),
                Err(_) => whole = false,
            }
        }
        pipeline.finish(tell);
    } else {
        whole = false;
    }
    if started.elapsed() > LONG {
        bail!("it took {:?}", started.elapsed());
    }
    Ok(whole)
}

fn number(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize
}

/// The records of a pcap file, each with its header.
fn records(bytes: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut records = Vec::new();
    let mut rest = &bytes[24..];
    while !rest.is_empty() {
        let length = number(rest, 8);
        records.push((&rest[..16], &rest[16..16 + length]));
        rest = &rest[16 + length..];
    }
    records
}

/// Turns the numbers of these lengths round.
fn turned(bytes: &[u8], lengths: &[usize]) -> Vec<u8> {
    let mut rest = bytes;
    let mut out = Vec::new();
    for length in lengths {
        out.extend(rest[..*length].iter().rev());
        rest = &rest[*length..];
    }
    out.extend(rest);
    out
}

fn big_endian_pcap() -> Result<()> {
    let bytes = read(ETHERNET)?;
    let mut other = turned(&bytes[..24], &[4, 2, 2, 4, 4, 4, 4]);
    for (header, frame) in records(&bytes) {
        other.extend(turned(header, &[4, 4, 4, 4]));
        other.extend(frame);
    }
    let (said_before, whole) = said(&bytes)?;
    expect_equal("it is read to its end", whole, true)?;
    expect_equal("what is said", said(&other)?, (said_before, true))
}

fn big_endian_pcapng() -> Result<()> {
    let bytes = read(PCAPNG)?;
    let mut other = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let (kind, length) = (number(rest, 0), number(rest, 4));
        let (block, behind) = rest.split_at(length);
        let body = &block[8..length - 4];
        other.extend(turned(&block[..8], &[4, 4]));
        match kind {
            1 => {
                other.extend(turned(&body[..8], &[2, 2, 4]));
                let mut options = &body[8..];
                while options.len() >= 4 {
                    let padded = 4 + usize::from(u16::from_le_bytes([options[2], options[3]])).next_multiple_of(4);
                    other.extend(turned(&options[..padded], &[2, 2]));
                    options = &options[padded..];
                }
            }
            6 => other.extend(turned(body, &[4; 5])),
            _ => other.extend(turned(body, &[4, 2, 2, 8])),
        }
        other.extend(turned(&block[length - 4..], &[4]));
        rest = behind;
    }
    let (said_before, whole) = said(&bytes)?;
    expect_equal("it is read to its end", whole, true)?;
    expect_equal("what is said", said(&other)?, (said_before, true))
}

/// The Ethernet capture with its frames changed, as of another link type.
fn relinked(bytes: &[u8], link: u32, change: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut other = bytes[..20].to_vec();
    other.extend(link.to_le_bytes());
    for (header, frame) in records(bytes) {
        let changed = change(frame);
        other.extend(&header[..8]);
        other.extend((changed.len() as u32).to_le_bytes());
        other.extend((changed.len() as u32).to_le_bytes());
        other.extend(changed);
    }
    other
}

fn other_links() -> Result<()> {
    let bytes = read(ETHERNET)?;
    let (said_before, _) = said(&bytes)?;
    let tagged = |frame: &[u8]| [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat();
    let twice = |frame: &[u8]| [&frame[..12], &[0x88, 0xa8, 0, 9, 0x81, 0, 0, 7], &frame[12..]].concat();
    let padded = |frame: &[u8]| [frame, &[0; 18]].concat();
    let bare = |frame: &[u8]| frame[14..].to_vec();
    for (what, other) in [
        ("a VLAN tag", relinked(&bytes, 1, tagged)),
        ("two VLAN tags", relinked(&bytes, 1, twice)),
        ("padding", relinked(&bytes, 1, padded)),
        ("raw IP", relinked(&bytes, 101, bare)),
        ("raw IPv4", relinked(&bytes, 228, bare)),
    ] {
        expect_equal(what, said(&other)?, (said_before.clone(), true))?;
    }
    Ok(())
}

fn cut_anywhere(name: &str) -> Result<()> {
    let bytes = read(name)?;
    for end in 0..bytes.len() {
        let mut certain = false;
        let mut hear = |event: &Event| {
            certain |= matches!(event, Event::Finding(_, finding) if finding.says.confidence == Confidence::Certain);
        };
        tell(&bytes[..end], &mut hear).with_context(|| format!("{name} cut at {end}"))?;
        expect_equal("nothing is certain", certain, false).with_context(|| format!("{name} cut at {end}"))?;
    }
    Ok(())
}

fn damaged_anywhere(name: &str, step: usize) -> Result<()> {
    let bytes = read(name)?;
    for at in (0..bytes.len()).step_by(step) {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            tell(&damaged, &mut |_| ()).with_context(|| format!("{name} with byte {at} turned by {flip:#x}"))?;
        }
    }
    Ok(())
}
