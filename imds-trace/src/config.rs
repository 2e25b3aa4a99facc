//! What does the user want? Plain values, checked; no clap and no I/O here.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use imds_trace_ebpf::record::MAX_ENDPOINTS;
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

/// What is shown. Empty lists show everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Names, ids, or beginnings of ids.
    pub containers: Vec<String>,
    /// Process ids.
    pub pids: Vec<u32>,
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
}

/// What every command that traces live is asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tracing {
    /// How it is told.
    pub telling: Telling,
    /// Where the recording goes.
    pub record: Option<PathBuf>,
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

/// What `replay` is asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// How it is told.
    pub telling: Telling,
    /// The recording or the capture; `-` is stdin.
    pub file: PathBuf,
    /// Addresses of IMDS in a capture, if not the usual ones; a recording has its own.
    pub endpoints: Option<Vec<IpAddr>>,
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
    /// 1: more on stderr.
    pub verbosity: u8,
}

/// Why what was asked for cannot be done.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
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

/// Reads `--record`, beside the outputs.
pub fn record(path: Option<PathBuf>, outputs: &[OutputSpec]) -> Result<Option<PathBuf>, Error> {
    let wrong = |path: &PathBuf, why| Err(Error::Record(path.display().to_string(), why));
    match &path {
        Some(path) if path.as_os_str() == "-" => wrong(path, "a recording goes to a file; stdout is for --output"),
        Some(path) if outputs.iter().any(|output| output.path.as_ref().is_some_and(|other| is_same(other, path))) => {
            wrong(path, "an output goes to the same file")
        }
        _ => Ok(path),
    }
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
