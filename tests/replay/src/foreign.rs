//! What must hold of every parser of foreign bytes, whatever the bytes are? No panic, bounded time, the same again, and no secret out.
//!
//! The fuzz targets in `fuzz/` and the tests named `foreign` call these functions; a broken property is a panic. What reads this
//! machine's own words is above the seam, and so are its properties.

use std::fmt::Debug;
use std::io::Cursor;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use diagnosis::capture;
use diagnosis::config::endpoints;
use diagnosis::event::Event;
use diagnosis::identity::cgroup;
use diagnosis::identity::fact;
use diagnosis::input::Input;
use diagnosis::net::{Direction, Endpoint, Flow, Ifindex, Interface, Netns};
use diagnosis::observation::redact::{self, Marker};
use diagnosis::observation::{Hook, Streams, Tcp, TcpFlags};
use diagnosis::pipeline::{Host, Pipeline};
use diagnosis::recording;

use crate::random::Random;

/// A parser with what must hold of it.
#[derive(Clone, Copy, Debug)]
pub struct Property {
    /// Its name, and that of its fuzz target.
    pub name: &'static str,
    /// Panics if it does not hold of these bytes.
    pub holds: fn(&[u8]),
    /// More bytes than this are not given: nothing new is in them.
    pub most: usize,
}

/// One for every parser of foreign bytes below the seam.
pub const PROPERTIES: &[Property] = &[
    Property { name: "http", holds: http, most: 4 << 10 },
    Property { name: "capture", holds: capture, most: 64 << 10 },
    Property { name: "recorded", holds: recorded, most: 64 << 10 },
    Property { name: "cgroup", holds: cgroup, most: 8 << 10 },
    Property { name: "argv", holds: argv, most: 4 << 10 },
];

/// What a token looks like; nothing else here does.
pub const SECRET: &str = "AQAEAJ7xTk2Qm9vZ4pLw8sYcH1nRb6uXe3dGf0aKiOqWtPyUzM5hVw==";
/// One input takes milliseconds, in a build that looks for mistakes a hundred times as long.
const LONG: Duration = Duration::from_secs(10);

/// Heads of HTTP, whole and in segments of any size.
pub fn http(bytes: &[u8]) {
    let started = Instant::now();
    let marker = Marker::default();
    let mut message = bytes.to_vec();
    message.extend_from_slice(
        format!("\r\nX-aws-ec2-metadata-token: {SECRET}\r\nCookie: a={SECRET}\r\n\r\n{SECRET}").as_bytes(),
    );
    let said = same(|| format!("{:?} {:?}", redact::message(&message, &marker), redact::head(&message, &marker)));
    keeps_the_secret(&said, bytes);
    let step = 1 + usize::from(bytes.first().copied().unwrap_or(0));
    let end = |port: u16| Endpoint { address: IpAddr::V4(Ipv4Addr::LOCALHOST), port };
    let flow = Flow { source: end(40_000), destination: end(80) };
    let interface = Interface { netns: Netns(1), index: Ifindex(2), name: "ens5".into() };
    let hook = Hook { interface, direction: Direction::Egress };
    let mut streams = Streams::default();
    let mut seq = u32::MAX - 100;
    for segment in message.chunks(step) {
        let len = u32::try_from(segment.len()).expect("a few bytes");
        let tcp = Tcp { seq, ack: 1, flags: TcpFlags(TcpFlags::ACK), len };
        keeps_the_secret(&format!("{:?}", streams.heads(&hook, flow, tcp, segment)), bytes);
        seq = seq.wrapping_add(len);
    }
    is_fast(started);
}

/// pcap and pcapng, packed or not, and all that is concluded from them.
pub fn capture(bytes: &[u8]) {
    let started = Instant::now();
    same(|| {
        let mut said = Vec::new();
        let mut tell = |event: &Event| said.push(unmarked(event));
        let watched = endpoints(&[]).expect("the default endpoints");
        if let Ok(mut reader) = capture::Reader::new(Box::new(Cursor::new(bytes.to_vec())), watched) {
            let mut pipeline = Pipeline::of_capture();
            for input in reader.by_ref().flatten() {
                pipeline.push(input, &mut tell);
            }
            pipeline.finish(&mut tell);
            said.extend(reader.notes());
        }
        said
    });
    is_fast(started);
}

/// Recordings, and all that is concluded from them.
pub fn recorded(bytes: &[u8]) {
    let started = Instant::now();
    same(|| {
        let mut said = Vec::new();
        let mut tell = |event: &Event| said.push(unmarked(event));
        let Ok(opened) = recording::open(Cursor::new(bytes.to_vec())) else { return said };
        let Ok(reader) = recording::Reader::new(opened) else { return said };
        let host = Host {
            netns: reader.header.netns,
            pid_namespace: reader.header.pid_namespace,
            instance: reader.header.instance.clone(),
        };
        let mut pipeline = Pipeline::new(host);
        // An error ends a recording, or is followed by what can still be read.
        for input in reader.flat_map(Result::<Input, _>::ok) {
            pipeline.push(input, &mut tell);
        }
        pipeline.finish(&mut tell);
        said
    });
    is_fast(started);
}

/// Cgroup paths, and lines of `/proc/PID/cgroup`.
pub fn cgroup(bytes: &[u8]) {
    let started = Instant::now();
    let text = String::from_utf8_lossy(bytes);
    same(|| (cgroup::read(&text), cgroup::read_path(&text)));
    is_fast(started);
}

/// Command lines as the kernel hands them over, with a token as one more argument.
pub fn argv(bytes: &[u8]) {
    let started = Instant::now();
    let text = String::from_utf8_lossy(bytes);
    let line = format!("{text}\0{SECRET}\0");
    for cut in [false, true] {
        let masked = same(|| fact::command_line(&line, cut));
        keeps_the_secret(&format!("{masked:?}"), bytes);
    }
    keeps_the_secret(&diagnosis::secret::mask(&format!("{text} {SECRET}")), bytes);
    is_fast(started);
}

/// Says twice what is to be said: it must be the same.
pub fn same<T: PartialEq + Debug>(say: impl Fn() -> T) -> T {
    let said = say();
    assert_eq!(said, say(), "the same bytes, and something else is said");
    said
}

/// No eight characters of it are said, but for those that stand in what was `given` as something else, or would without what cannot be
/// shown between them: a fuzzer watches comparisons, and writes what it sees there into its inputs.
pub fn keeps_the_secret(said: &str, given: &[u8]) {
    let shown: Vec<u8> = given.iter().copied().filter(u8::is_ascii_graphic).collect();
    let stands = |part: &[u8]| [given, &shown].iter().any(|given| given.windows(8).any(|own| own == part));
    let parts = SECRET.as_bytes().windows(8).filter(|part| !stands(part));
    for part in parts.map(|part| std::str::from_utf8(part).expect("ASCII")) {
        assert!(!said.contains(part), "{part} of the secret is in {said}");
    }
}

/// It began then, and took no longer than it may.
pub fn is_fast(started: Instant) {
    assert!(started.elapsed() < LONG, "it took {:?}", started.elapsed());
}

/// What is shown of it, without the marks of tokens, which mean nothing outside a run.
pub fn unmarked(shown: &impl Debug) -> String {
    const MARK: &str = "TokenMark(";
    let text = format!("{shown:?}");
    let mut parts = text.split(MARK);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + MARK + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// So long the tests try each property, once all seeds were; `IMDS_TRACE_FOREIGN_SECONDS` has them look longer, as `.ci/run` does.
const SECONDS: u64 = 4;

/// How long the tests try each property.
pub fn time() -> Duration {
    let asked = std::env::var("IMDS_TRACE_FOREIGN_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(asked.unwrap_or(SECONDS))
}

/// Does a property hold of its seeds, and for so long of what chance makes of them? What it is broken by is shown by its panic.
pub fn try_out(property: &Property, seeds: &[Vec<u8>], time: Duration) {
    let mut random = Random(0x0f0e_1617);
    for seed in seeds {
        (property.holds)(&seed[..seed.len().min(property.most)]);
    }
    let started = Instant::now();
    while started.elapsed() < time {
        let mut bytes = seeds[random.below(seeds.len())].clone();
        bytes.truncate(property.most);
        for _ in 0..=random.below(8) {
            mutate(&mut bytes, &mut random, seeds);
        }
        bytes.truncate(property.most);
        (property.holds)(&bytes);
    }
}

/// One change: a byte, a bit, a piece cut out, doubled, or taken from another seed, or the end cut off.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random, seeds: &[Vec<u8>]) {
    const TELLING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'\n', b'"', b'/'];
    if bytes.is_empty() {
        bytes.push(0);
    }
    let at = random.below(bytes.len());
    let end = at + random.below(bytes.len() - at + 1).min(64);
    match random.below(6) {
        0 => bytes[at] = TELLING[random.below(TELLING.len())],
        1 => bytes[at] ^= 1 << random.below(8),
        2 => drop(bytes.drain(at..end)),
        3 => {
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
        4 => {
            let other = &seeds[random.below(seeds.len())];
            let from = random.below(other.len() + 1);
            bytes.splice(at..end, other[from..other.len().min(from + 64)].iter().copied());
        }
        _ => bytes.truncate(at),
    }
}
