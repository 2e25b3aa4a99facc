//! What is to be shown, asserted and replayed? Plain values, checked; no clap and no I/O here.

mod question;
mod settings;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use question::{Asked, GroupBy, Moment, asked, group_by, moment};
pub use settings::{Settings, settings};
use thiserror::Error;

use crate::allow::{self, AllowList};

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

/// The one output that may listen instead of writing.
const LISTENS: &str = "metrics";
/// How its file's name ends: the textfile collector reads no other.
const METRICS: &str = ".prom";

impl OutputSpec {
    /// Where it is to be asked over the network, if it goes to nobody.
    pub fn address(&self) -> Option<SocketAddr> {
        self.path.as_ref().filter(|_| self.kind == LISTENS)?.to_str()?.parse().ok()
    }

    /// Is its file replaced again and again, by another in the same folder?
    pub fn is_replaced(&self) -> bool {
        self.kind == LISTENS && self.address().is_none()
    }
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
    /// No finding of severity error is about them.
    NoErrors,
    /// All that they were seen doing would work if the instance were set so.
    WorksAt(Settings),
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
    /// Patterns of pods' names.
    pub pods: Vec<String>,
    /// Patterns of their namespaces.
    pub namespaces: Vec<String>,
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

/// What `replay` is asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// How it is told.
    pub telling: Telling,
    /// Recordings, or patterns of their names, or one capture; `-` is stdin.
    pub files: Vec<PathBuf>,
    /// Addresses of IMDS in a capture, if not the usual ones; a recording has its own.
    pub endpoints: Option<Vec<IpAddr>>,
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
    /// Is a finding of severity error a failure, shown or not?
    pub exit_code: bool,
    /// What is asserted.
    pub expectations: Vec<Expectation>,
    /// What exchanges are counted together by, in the report.
    pub group_by: Option<GroupBy>,
    /// Who may take a token or credentials.
    pub allow: Option<AllowList>,
    /// How the instance might be set.
    pub what_if: Vec<Settings>,
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
    /// Not a duration.
    #[error("{0} {1}: not a duration (try 30s, 5m or 1h30m)")]
    Duration(&'static str, String),
    /// Unknown kind of output, or one without what it needs.
    #[error("--output {0}: {1}")]
    Output(String, String),
    /// Two outputs to the same place.
    #[error("--output: two outputs go to {0}; give one of them a file, e.g. json=events.jsonl")]
    Twice(String),
    /// Nothing that can be asserted.
    #[error(
        "--expect {0:?}: not reachable, blocked, v2-only, no-errors or works-at:SETTINGS, alone or with a container behind it, e.g. \
         blocked:web"
    )]
    Expect(String),
    /// Not a moment.
    #[error(
        "{0} {1}: not a time (try 2026-11-20, \"2026-11-20 08:00\", 2026-11-20T08:00:00Z or \"2h ago\"; UTC unless it says otherwise)"
    )]
    Moment(&'static str, String),
    /// A time that ends before it begins.
    #[error("--since is not before --until: nothing can be between them")]
    Backwards,
    /// Not a way of asking.
    #[error("--imds {0}: not v1, v2 or token")]
    Asked(String),
    /// No list of those who may take credentials.
    #[error(transparent)]
    Allow(#[from] allow::Error),
    /// No settings of an instance.
    #[error("{0} {1:?}: not tokens=required, hop-limit=N (1 to 64), or both with a comma between them")]
    Settings(&'static str, String),
    /// Not something to count by.
    #[error("--group-by {0}: not container, pod, namespace, workload, process, image, job, path or host")]
    GroupBy(String),
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
    Ok(endpoints)
}

/// Reads a duration, given by this option.
pub fn duration(option: &'static str, text: &str) -> Result<Duration, Error> {
    let wrong = || Error::Duration(option, text.to_owned());
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(parsed).ok().filter(|duration| !duration.is_zero()).ok_or_else(wrong)
}

/// Reads `--expect`.
pub fn expectation(text: &str) -> Result<Expectation, Error> {
    let (claim, who) = match text.split_once(':') {
        Some((claim, who)) => (claim, Some(who)),
        None => (text, None),
    };
    if claim == "works-at" {
        let (asked, who) = who
            .unwrap_or_default()
            .split_once(':')
            .map_or((who.unwrap_or_default(), None), |(asked, who)| (asked, Some(who)));
        let claim = Claim::WorksAt(settings("--expect works-at", asked)?);
        return of(text, claim, who);
    }
    let claim = match claim {
        "reachable" => Claim::Reachable,
        "blocked" => Claim::Blocked,
        "v2-only" => Claim::V2Only,
        "no-errors" => Claim::NoErrors,
        _ => return Err(Error::Expect(text.to_owned())),
    };
    of(text, claim, who)
}

/// A claim about somebody.
fn of(text: &str, claim: Claim, who: Option<&str>) -> Result<Expectation, Error> {
    if who == Some("") {
        return Err(Error::Expect(text.to_owned()));
    }
    Ok(Expectation { text: text.to_owned(), claim, who: who.map(str::to_owned) })
}

/// Refuses an empty value of an option that chooses what is shown.
pub fn not_empty(option: &'static str, values: &[String]) -> Result<(), Error> {
    if values.iter().any(String::is_empty) { Err(Error::Empty(option)) } else { Ok(()) }
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
        let spec = OutputSpec { kind: kind.to_owned(), path };
        if kind == LISTENS && spec.address().is_none() && !place.ends_with(METRICS) {
            return Err(wrong("neither ADDR:PORT (127.0.0.1:9469, [::1]:9469) nor a file whose name ends in .prom"));
        }
        if spec.address().is_some() && outputs.iter().any(|other: &OutputSpec| other.address().is_some()) {
            return Err(wrong("one address is listened on at most"));
        }
        outputs.push(spec);
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
        let strict = Settings { tokens_required: true, hop_limit: Some(1) };
        for (text, who) in
            [("works-at:tokens=required,hop-limit=1", None), ("works-at:hop-limit=1,tokens=required:web", Some("web"))]
        {
            let read = expectation(text).unwrap();
            assert_eq!((read.claim, read.who.as_deref()), (Claim::WorksAt(strict), who), "{text}");
        }
        assert!(matches!(expectation("works-at"), Err(Error::Settings(..))));
        assert!(matches!(expectation("works-at:web"), Err(Error::Settings(..))));
        for wrong in ["", "blocked:", "Blocked", "unreachable", ":web", "works-at:tokens=required:"] {
            assert_eq!(expectation(wrong), Err(Error::Expect(wrong.into())), "{wrong}");
        }
    }
}
