//! How does the user want to trace this host? Plain values, checked; no clap and no I/O here.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use diagnosis::config::{self, OutputSpec, Telling};
use imds_trace_ebpf::record::MAX_ENDPOINTS;
use thiserror::Error;

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
    /// URLs of engines; empty: all that are found.
    pub docker_hosts: Vec<String>,
    /// The root directory of the host, where we run in a container.
    pub host_root: PathBuf,
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
    /// URLs of engines; empty: all that are found.
    pub docker_hosts: Vec<String>,
    /// The root directory of the host, where we run in a container.
    pub host_root: PathBuf,
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
    /// What is shown, asserted or replayed.
    #[error(transparent)]
    Shared(#[from] config::Error),
    /// More than the kernel half has room for.
    #[error("--endpoint: more than {MAX_ENDPOINTS} addresses of one family")]
    TooManyEndpoints,
    /// Nothing that can be probed.
    #[error("probe {0:?}: not a container, pid:N or the path of a network namespace")]
    Target(String),
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
    /// No interface can have this name.
    #[error("--interface {0:?}: not an interface name (1 to 15 characters, no space and no slash; * stands for any)")]
    Interface(String),
}

/// Reads `--endpoint`; without any, the IMDS addresses.
pub fn endpoints(given: &[String]) -> Result<Vec<IpAddr>, Error> {
    let endpoints = config::endpoints(given)?;
    let v4 = endpoints.iter().filter(|address| address.is_ipv4()).count();
    if v4.max(endpoints.len() - v4) > MAX_ENDPOINTS { Err(Error::TooManyEndpoints) } else { Ok(endpoints) }
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
        // A slash elsewhere stands between the names of a pod and a container.
        path if path.starts_with(['/', '.']) => Ok(Target::Path(PathBuf::from(path))),
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

/// Do two paths name the same file, as far as they say themselves: `./a` and `a` do.
fn is_same(one: &Path, other: &Path) -> bool {
    let plain = |path: &Path| path.components().filter(|part| *part != Component::CurDir).collect::<PathBuf>();
    plain(one) == plain(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_have_room_in_the_kernel_half() {
        let many: Vec<String> = (0..9).map(|n| format!("10.0.0.{n}")).collect();
        assert_eq!(endpoints(&many), Err(Error::TooManyEndpoints));
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
    fn a_target_is_a_container_a_process_or_a_path() {
        assert_eq!(target("web"), Ok(Target::Container("web".into())));
        assert_eq!(target("pid:17"), Ok(Target::Pid(17)));
        for path in ["/run/netns/x", "./x", "../x"] {
            assert_eq!(target(path), Ok(Target::Path(path.into())));
        }
        assert_eq!(target("shop/web-0/app"), Ok(Target::Container("shop/web-0/app".into())));
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
