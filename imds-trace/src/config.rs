//! What does the user want? Plain values, checked; no clap and no I/O here.

mod question;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use imds_trace_ebpf::record::MAX_ENDPOINTS;
pub use question::{Asked, GroupBy, Moment, asked, group_by, moment};
use thiserror::Error;

/// IMDS on IPv4.
pub const IMDS_V4: &str = "169.254.169.254";
/// IMDS on IPv6.
pub const IMDS_V6: &str = "fd00:ec2::254";

/// Where an output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputSpec {
    /// Name of a kind in `output::OUTPUTS`.
    pub kind: String,
    /// File; `None` is stdout.
    pub path: Option<PathBuf>,
}

/// What is asserted of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// They get what they ask IMDS for.
    Reachable,
    /// No token and no credentials reach them.
    Blocked,
    /// They never ask without a token.
    V2Only,
}

/// One `--expect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// As typed.
    pub text: String,
    /// What is asserted.
    pub claim: Claim,
    /// Of whom: a container's name, id or the beginning of one, or [`HOST`]; `None` is everybody.
    pub who: Option<String>,
}

/// The host's own processes, where a container could be named.
pub const HOST: &str = "host";

/// What is shown: what fits one of each list that is not empty, and the time. In patterns `*` stands for any characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Names, ids, or beginnings of ids.
    pub containers: Vec<String>,
    /// Patterns of images.
    pub images: Vec<String>,
    /// Process ids.
    pub pids: Vec<u32>,
    /// User ids.
    pub uids: Vec<u32>,
    /// Patterns of process names.
    pub comms: Vec<String>,
    /// Patterns of paths.
    pub paths: Vec<String>,
    /// Ways of asking.
    pub imds: Vec<Asked>,
    /// Not before, in nanoseconds from the Unix epoch.
    pub since: Option<i128>,
    /// Not after.
    pub until: Option<i128>,
}

/// Where a recording goes, and when a new file is begun.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The current file.
    pub path: PathBuf,
    /// Bytes of one file.
    pub size: Option<u64>,
    /// Age of one file.
    pub age: Option<Duration>,
    /// Files kept besides the current one; `None`: all.
    pub keep: Option<usize>,
}

/// What `replay` is asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// How it is told.
    pub telling: Telling,
    /// Recordings, or patterns of their names, or one capture; `-` is stdin.
    pub files: Vec<PathBuf>,
    /// Addresses of IMDS in a capture, if not the usual ones; a recording has its own.
    pub endpoints: Option<Vec<IpAddr>>,
    /// Show nothing before.
    pub since: Option<Moment>,
    /// Show nothing after.
    pub until: Option<Moment>,
    /// 1: more on stderr.
    pub verbosity: u8,
}

/// What `watch` and `replay` have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Telling {
    /// How it is told.
    pub outputs: Vec<OutputSpec>,
    /// What of it.
    pub filter: Filter,
    /// Is a finding of severity error a failure?
    pub exit_code: bool,
    /// What is asserted.
    pub expectations: Vec<Expectation>,
    /// What exchanges are counted together by, in the report.
    pub group_by: Option<GroupBy>,
}

/// What every command that traces live is asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tracing {
    /// How it is told.
    pub telling: Telling,
    /// Where the recording goes.
    pub record: Option<Record>,
    /// Names of interfaces, `*` stands for any characters; empty: routes and bridges.
    pub interfaces: Vec<String>,
    /// Watched addresses.
    pub endpoints: Vec<IpAddr>,
    /// Made once everything is attached.
    pub ready_file: Option<PathBuf>,
    /// URL of the engine.
    pub docker_host: Option<String>,
    /// 1: more on stderr; 2: the probes' own log.
    pub verbosity: u8,
}

/// What `watch` is asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// How it traces.
    pub tracing: Tracing,
    /// Stop after so long.
    pub duration: Option<Duration>,
}

/// What `run` is asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// How it traces.
    pub tracing: Tracing,
    /// The command and its arguments.
    pub command: Vec<OsString>,
}

/// Whose network a probe asks from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A container's, by name, id or the beginning of one.
    Container(String),
    /// A process's.
    Pid(u32),
    /// A network namespace, by a file that stands for it.
    Path(PathBuf),
}

/// What `probe` is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// How it traces. Its one endpoint is the one that is asked.
    pub tracing: Tracing,
    /// From where it asks.
    pub target: Target,
    /// How long each of its requests may take.
    pub timeout: Duration,
}

/// What `doctor` is asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doctor {
    /// How it is told.
    pub outputs: Vec<OutputSpec>,
    /// Addresses of IMDS.
    pub endpoints: Vec<IpAddr>,
    /// URL of the engine.
    pub docker_host: Option<String>,
    /// Is something broken a failure?
    pub exit_code: bool,
    /// Remove what was left behind, and look at nothing.
    pub clean: bool,
    /// 1: more on stderr.
    pub verbosity: u8,
}

/// Why what was asked for cannot be done.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// It would match nothing, which is never meant.
    #[error("{0}: empty (is a variable not set?)")]
    Empty(&'static str),
    /// Not an address.
    #[error("--endpoint {0}: not the IP address of a host (try {IMDS_V4} or {IMDS_V6})")]
    Endpoint(String),
    /// More than the kernel half has room for.
    #[error("--endpoint: more than {MAX_ENDPOINTS} addresses of one family")]
    TooManyEndpoints,
    /// Not a duration.
    #[error("{0} {1}: not a duration (try 30s, 5m or 1h30m)")]
    Duration(&'static str, String),
    /// Nothing that can be probed.
    #[error("probe {0:?}: not a container, pid:N or the path of a network namespace")]
    Target(String),
    /// Unknown kind of output, or one without what it needs.
    #[error("--output {0}: {1}")]
    Output(String, String),
    /// Two outputs to the same place.
    #[error("--output: two outputs go to {0}; give one of them a file, e.g. json=events.jsonl")]
    Twice(String),
    /// Nothing that can be asserted.
    #[error("--expect {0:?}: not reachable, blocked or v2-only, alone or with a container behind it, e.g. blocked:web")]
    Expect(String),
    /// Not a place for a recording.
    #[error("--record {0}: {1}")]
    Record(String, &'static str),
    /// Neither a size nor an age.
    #[error("--record-rotate {0}: neither a size from {MIN_ROTATE_KIB}KiB on (64MiB, 500MB, 1000000) nor an age (24h)")]
    Rotate(String),
    /// Two sizes, or two ages.
    #[error("--record-rotate {0}: a second {1}; give one size and one age at most")]
    RotateTwice(String, &'static str),
    /// Not a number of files.
    #[error("--record-keep {0}: not a number of files from 1 on")]
    Keep(String),
    /// Of a recording that is not made.
    #[error("{0}: needs --record PATH")]
    NoRecord(&'static str),
    /// Not a moment.
    #[error(
        "{0} {1}: not a time (try 2026-11-20, \"2026-11-20 08:00\", 2026-11-20T08:00:00Z or \"2h ago\"; UTC unless it says otherwise)"
    )]
    Moment(&'static str, String),
    /// Not a way of asking.
    #[error("--imds {0}: not v1, v2 or token")]
    Asked(String),
    /// Not something to count by.
    #[error("--group-by {0}: not container, process, image, job or path")]
    GroupBy(String),
    /// Nothing that can be made of the command line.
    #[error("generate {0}: there is none; `generate kinds` lists what there is")]
    Generate(String),
    /// No interface can have this name.
    #[error("--interface {0:?}: not an interface name (1 to 15 characters, no space and no slash; * stands for any)")]
    Interface(String),
}

/// Reads `--endpoint`; without any, the IMDS addresses.
pub fn endpoints(given: &[String]) -> Result<Vec<IpAddr>, Error> {
    let defaults = [IMDS_V4.to_owned(), IMDS_V6.to_owned()];
    let given = if given.is_empty() { &defaults[..] } else { given };
    let mut endpoints = Vec::new();
    for text in given {
        // As in a URL, IPv6 may stand in brackets.
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let address: IpAddr = bare.parse().map_err(|_| Error::Endpoint(text.clone()))?;
        // ::ffff:a.b.c.d is on the wire as the IPv4 address that it is.
        let address = address.to_canonical();
        if address.is_unspecified() || address.is_multicast() {
            return Err(Error::Endpoint(text.clone()));
        }
        if !endpoints.contains(&address) {
            endpoints.push(address);
        }
    }
    let v4 = endpoints.iter().filter(|address| address.is_ipv4()).count();
    if v4.max(endpoints.len() - v4) > MAX_ENDPOINTS { Err(Error::TooManyEndpoints) } else { Ok(endpoints) }
}

/// Reads a duration, given by this option.
pub fn duration(option: &'static str, text: &str) -> Result<Duration, Error> {
    let wrong = || Error::Duration(option, text.to_owned());
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(parsed).ok().filter(|duration| !duration.is_zero()).ok_or_else(wrong)
}

/// Reads `--interface`.
pub fn interface(text: &str) -> Result<String, Error> {
    /// IFNAMSIZ without the NUL.
    const MAX_NAME: usize = 15;
    let bad = text.is_empty() || text.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control());
    if bad || (text.len() > MAX_NAME && !text.contains('*')) {
        return Err(Error::Interface(text.to_owned()));
    }
    Ok(text.to_owned())
}

/// Reads `--expect`.
pub fn expectation(text: &str) -> Result<Expectation, Error> {
    let (claim, who) = match text.split_once(':') {
        Some((claim, who)) => (claim, Some(who)),
        None => (text, None),
    };
    let claim = match claim {
        "reachable" => Claim::Reachable,
        "blocked" => Claim::Blocked,
        "v2-only" => Claim::V2Only,
        _ => return Err(Error::Expect(text.to_owned())),
    };
    if who == Some("") {
        return Err(Error::Expect(text.to_owned()));
    }
    Ok(Expectation { text: text.to_owned(), claim, who: who.map(str::to_owned) })
}

/// Reads what to probe. Names of containers have no slash and no colon.
pub fn target(text: &str) -> Result<Target, Error> {
    let wrong = || Error::Target(text.to_owned());
    if let Some(pid) = text.strip_prefix("pid:") {
        // What the kernel takes for a process id: a signed number above 0.
        return pid
            .parse::<i32>()
            .ok()
            .and_then(|pid| u32::try_from(pid).ok())
            .filter(|pid| *pid > 0)
            .map(Target::Pid)
            .ok_or_else(wrong);
    }
    match text {
        "" => Err(wrong()),
        path if path.contains('/') => Ok(Target::Path(PathBuf::from(path))),
        name => Ok(Target::Container(name.to_owned())),
    }
}

/// Smallest size of a file, KiB: the header and what every file repeats need some.
const MIN_ROTATE_KIB: u64 = 64;

/// Reads `--record`, `--record-rotate` and `--record-keep`, beside the outputs.
pub fn record(
    path: Option<PathBuf>,
    rotate: &[String],
    keep: Option<&str>,
    outputs: &[OutputSpec],
) -> Result<Option<Record>, Error> {
    let Some(path) = path else {
        return match (rotate, keep) {
            ([], None) => Ok(None),
            ([], Some(_)) => Err(Error::NoRecord("--record-keep")),
            _ => Err(Error::NoRecord("--record-rotate")),
        };
    };
    let wrong = |why| Err(Error::Record(path.display().to_string(), why));
    if path.as_os_str() == "-" {
        return wrong("a recording goes to a file; stdout is for --output");
    }
    if outputs.iter().any(|output| output.path.as_ref().is_some_and(|other| is_same(other, &path))) {
        return wrong("an output goes to the same file");
    }
    let mut record = Record { path, ..Record::default() };
    for text in rotate {
        let twice = |what| Error::RotateTwice(text.clone(), what);
        match (bytes(text), text.parse::<jiff::SignedDuration>().ok().and_then(|age| Duration::try_from(age).ok())) {
            (Some(_), _) if record.size.is_some() => return Err(twice("size")),
            (Some(size), _) if size >= MIN_ROTATE_KIB << 10 => record.size = Some(size),
            (None, Some(_)) if record.age.is_some() => return Err(twice("age")),
            (None, Some(age)) if !age.is_zero() => record.age = Some(age),
            _ => return Err(Error::Rotate(text.clone())),
        }
    }
    let kept = |text: &str| text.parse().ok().filter(|keep| *keep > 0).ok_or_else(|| Error::Keep(text.to_owned()));
    record.keep = keep.map(kept).transpose()?;
    Ok(Some(record))
}

/// A number of bytes: `1000000`, `64KiB`, `64MiB`, `1GiB`, `500kB`, `500MB`, `1GB`.
fn bytes(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 7] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("", 1),
    ];
    let (number, unit) = UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    let number = number.strip_suffix(' ').unwrap_or(number);
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse::<u64>().ok()?.checked_mul(*unit))?
}

/// Refuses an empty value of an option that chooses what is shown.
pub fn not_empty(option: &'static str, values: &[String]) -> Result<(), Error> {
    if values.iter().any(String::is_empty) { Err(Error::Empty(option)) } else { Ok(()) }
}

/// Do two paths name the same file, as far as they say themselves: `./a` and `a` do.
fn is_same(one: &Path, other: &Path) -> bool {
    let plain = |path: &Path| path.components().filter(|part| *part != Component::CurDir).collect::<PathBuf>();
    plain(one) == plain(other)
}

/// Reads `--output`, `KIND` or `KIND=PATH`; without any, text on stdout. `known` are the kinds there are, and whether each must go
/// to a file.
pub fn outputs(given: &[String], known: &[(&str, bool)]) -> Result<Vec<OutputSpec>, Error> {
    let mut outputs = Vec::new();
    for text in given {
        let (kind, path) = match text.split_once('=') {
            Some((kind, path)) => (kind, Some(path)),
            None => (text.as_str(), None),
        };
        let wrong = |why: &str| Error::Output(text.clone(), why.to_owned());
        let Some((_, needs_path)) = known.iter().find(|(name, _)| *name == kind) else {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            return Err(wrong(&format!("no such output (there are {})", names.join(", "))));
        };
        if path == Some("") {
            return Err(wrong("the path is empty"));
        }
        let path = path.filter(|path| *path != "-").map(PathBuf::from);
        if *needs_path && path.is_none() {
            return Err(wrong(&format!("it goes to a file: {kind}=PATH")));
        }
        let place = path.as_ref().map_or("stdout".to_owned(), |path| path.display().to_string());
        if outputs.iter().any(|other: &OutputSpec| other.path == path) {
            return Err(Error::Twice(place));
        }
        outputs.push(OutputSpec { kind: kind.to_owned(), path });
    }
    if outputs.is_empty() {
        outputs.push(OutputSpec { kind: "text".into(), path: None });
    }
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_addresses_and_default_to_imds() {
        let both: Vec<IpAddr> = vec![IMDS_V4.parse().unwrap(), IMDS_V6.parse().unwrap()];
        assert_eq!(endpoints(&[]), Ok(both.clone()));
        assert_eq!(endpoints(&["[fd00:ec2::254]".into(), IMDS_V6.into()]), Ok(vec![both[1]]));
        assert_eq!(endpoints(&["imds".into()]), Err(Error::Endpoint("imds".into())));
        let many: Vec<String> = (0..9).map(|n| format!("10.0.0.{n}")).collect();
        assert_eq!(endpoints(&many), Err(Error::TooManyEndpoints));
    }

    #[test]
    fn durations_have_units_and_are_not_zero() {
        assert_eq!(duration("--for", "30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("--for", "1h30m"), Ok(Duration::from_secs(5400)));
        for text in ["", "30", "0s", "-1s", "soon", "1month"] {
            assert_eq!(duration("--for", text), Err(Error::Duration("--for", text.into())), "{text}");
        }
    }

    #[test]
    fn outputs_are_known_and_go_to_places_of_their_own() {
        let known = [("text", false), ("json", false), ("junit", true)];
        let read = |given: &[&str]| outputs(&given.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(), &known);
        assert_eq!(read(&[]).unwrap()[0].kind, "text");
        assert_eq!(read(&["text", "json=x"]).unwrap().len(), 2);
        assert!(matches!(read(&["yaml"]), Err(Error::Output(..))));
        assert!(matches!(read(&["json="]), Err(Error::Output(..))));
        assert!(matches!(read(&["junit"]), Err(Error::Output(..))));
        assert!(matches!(read(&["junit=-"]), Err(Error::Output(..))));
        assert_eq!(read(&["junit=x.xml"]).unwrap().len(), 1);
        assert_eq!(read(&["text", "json"]), Err(Error::Twice("stdout".into())));
        assert_eq!(read(&["text=a", "json=a"]), Err(Error::Twice("a".into())));
    }

    #[test]
    fn a_file_is_put_away_by_size_or_age() {
        let read = |rotate: &[&str]| {
            let rotate: Vec<String> = rotate.iter().map(|text| (*text).to_owned()).collect();
            record(Some("x".into()), &rotate, None, &[]).map(|record| record.map(|record| (record.size, record.age)))
        };
        for (text, size) in [("64MiB", 64 << 20), ("1000000", 1_000_000), ("500kB", 500_000), ("2 GB", 2_000_000_000)] {
            assert_eq!(read(&[text]), Ok(Some((Some(size), None))), "{text}");
        }
        assert_eq!(read(&["24h", "256KiB"]), Ok(Some((Some(256 << 10), Some(Duration::from_secs(86_400))))));
        for wrong in ["", "64", "64M", "-1", "KiB", "0s", "1.5GiB", "99999999999999999999", "18446744073709551615GiB"] {
            assert_eq!(read(&[wrong]), Err(Error::Rotate(wrong.into())), "{wrong}");
        }
        assert_eq!(read(&["1MB", "2MB"]), Err(Error::RotateTwice("2MB".into(), "size")));
        assert_eq!(record(None, &[], Some("3"), &[]), Err(Error::NoRecord("--record-keep")));
        assert_eq!(record(Some("x".into()), &[], Some("0"), &[]), Err(Error::Keep("0".into())));
    }

    #[test]
    fn an_expectation_is_a_claim_and_perhaps_a_container() {
        assert_eq!(expectation("blocked").unwrap().who, None);
        let of_web = expectation("v2-only:web").unwrap();
        assert_eq!((of_web.claim, of_web.who.as_deref()), (Claim::V2Only, Some("web")));
        for wrong in ["", "blocked:", "Blocked", "unreachable", ":web"] {
            assert_eq!(expectation(wrong), Err(Error::Expect(wrong.into())), "{wrong}");
        }
    }

    #[test]
    fn a_target_is_a_container_a_process_or_a_path() {
        assert_eq!(target("web"), Ok(Target::Container("web".into())));
        assert_eq!(target("pid:17"), Ok(Target::Pid(17)));
        assert_eq!(target("/run/netns/x"), Ok(Target::Path("/run/netns/x".into())));
        for wrong in ["", "pid:", "pid:0", "pid:-1", "pid:x", "pid:4294967295"] {
            assert_eq!(target(wrong), Err(Error::Target(wrong.into())), "{wrong}");
        }
    }

    #[test]
    fn interface_names_are_those_the_kernel_takes() {
        for good in ["ens5", "br-*", "*", "eth0.100"] {
            assert_eq!(interface(good).as_deref(), Ok(good));
        }
        for bad in ["", "a b", "a/b", "0123456789abcdef", "a\n"] {
            assert!(interface(bad).is_err(), "{bad:?}");
        }
    }
}
