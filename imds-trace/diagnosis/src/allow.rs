//! Who may take a token or credentials? An allow-list: TOML, one `[[client]]` for each kind of client, all of whose keys must fit.
//!
//! Refuses to let a container pass for the host: an entry is about containers only if it names one (`container`, `image`, `job` or `pod`),
//! and about the host's own processes otherwise.
//!
//! Cannot know: whether an executable is what its path says. In a container that is up to the container.

mod entry;

use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use thiserror::Error;
use wildmatch::WildMatch;

use crate::identity::{Attribution, Container, Key};
pub use entry::entry;

/// A list is for people to read; more is a mistake.
const MAX_BYTES: u64 = 1 << 20;

/// Who may take a token or credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList {
    clients: Vec<Entry>,
}

/// Why there is no allow-list.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// The file cannot be read.
    #[error("--allow {0}: {1}")]
    Read(String, String),
    /// It is not for people.
    #[error("--allow {0}: longer than 1 MiB")]
    Long(String),
    /// It is not what it should be.
    #[error("--allow {0}: {1}")]
    Wrong(String, String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    client: Vec<Typed>,
}

/// One entry as it is typed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Typed {
    container: Option<OneOrMany<String>>,
    image: Option<OneOrMany<String>>,
    job: Option<OneOrMany<String>>,
    pod: Option<OneOrMany<String>>,
    exe: Option<OneOrMany<String>>,
    uid: Option<OneOrMany<u32>>,
    path: Option<OneOrMany<String>>,
    role: Option<OneOrMany<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected one value or a list of them")]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn many(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// One entry; empty lists say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    containers: Vec<String>,
    images: Vec<String>,
    jobs: Vec<String>,
    pods: Vec<String>,
    exes: Vec<String>,
    uids: Vec<u32>,
    paths: Vec<String>,
    roles: Vec<String>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// A token.
    Token,
    /// Credentials: the path that was asked for, and the role in it.
    Credentials {
        /// The path.
        path: &'a str,
        /// The role.
        role: &'a str,
    },
}

/// Does a client fit?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fits {
    /// Something that is known says no.
    No,
    /// What is not known would decide: this.
    NotKnown(&'static str),
    /// All that is asked for fits.
    Yes,
}

impl AllowList {
    /// Reads a list from a file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let read = |error: std::io::Error| Error::Read(name.clone(), error.to_string());
        // What is no file does not say how long it is.
        let mut text = String::new();
        std::fs::File::open(path).map_err(read)?.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(read)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(Error::Long(name));
        }
        Self::parse(&text).map_err(|why| Error::Wrong(name, why))
    }

    /// Reads a list.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            format!("{line}{}", error.message())
        })?;
        let clients: Vec<Entry> = file.client.into_iter().map(Entry::from).collect();
        for (number, entry) in (1..).zip(&clients) {
            entry.check().map_err(|why| format!("client {number}: {why}"))?;
        }
        Ok(Self { clients })
    }

    /// May this one take it? Of several entries the one that fits best decides.
    pub fn fits(&self, who: &Attribution, wanted: Wanted<'_>) -> Fits {
        self.clients.iter().map(|entry| entry.fits(who, wanted)).max().unwrap_or(Fits::No)
    }
}

impl From<Typed> for Entry {
    fn from(typed: Typed) -> Self {
        fn many<T>(given: Option<OneOrMany<T>>) -> Vec<T> {
            given.map(OneOrMany::many).unwrap_or_default()
        }
        let Typed { container, image, job, pod, exe, uid, path, role } = typed;
        Self {
            containers: many(container),
            images: many(image),
            jobs: many(job),
            pods: many(pod),
            exes: many(exe),
            uids: many(uid),
            paths: many(path),
            roles: many(role),
        }
    }
}

impl Entry {
    fn check(&self) -> Result<(), String> {
        let lists = [&self.containers, &self.images, &self.jobs, &self.pods, &self.exes, &self.paths, &self.roles];
        if lists.iter().any(|list| list.iter().any(String::is_empty)) {
            return Err("a value is empty, which fits nothing".to_owned());
        }
        if !self.is_of_containers() && self.exes.is_empty() && self.uids.is_empty() {
            return Err(
                "it names nobody: container, image, job or pod, or exe or uid of the host's own processes".to_owned()
            );
        }
        Ok(())
    }

    fn is_of_containers(&self) -> bool {
        [&self.containers, &self.images, &self.jobs, &self.pods].iter().any(|list| !list.is_empty())
    }

    fn fits(&self, who: &Attribution, wanted: Wanted<'_>) -> Fits {
        let container = who.container.as_ref();
        let place = match (self.is_of_containers(), container) {
            (true, Some(container)) => self.fits_container(container),
            (false, None) if who.by == Key::Cgroup => Fits::Yes,
            // Nobody could name it: it may be anybody.
            (_, None) if who.by == Key::Unknown => Fits::NotKnown("whose process it is"),
            _ => Fits::No,
        };
        let process = who.process.as_ref();
        let exe = process.and_then(|process| process.exe.as_deref());
        let uid = process.map(|process| process.uid);
        let uid = match uid {
            _ if self.uids.is_empty() => Fits::Yes,
            Some(uid) if self.uids.contains(&uid) => Fits::Yes,
            Some(_) => Fits::No,
            None => Fits::NotKnown("its user"),
        };
        let what = match wanted {
            // Whoever may take credentials needs a token for that.
            Wanted::Token => Fits::Yes,
            Wanted::Credentials { path, role } => {
                fit(&self.paths, Some(path), "its path").min(fit(&self.roles, Some(role), "its role"))
            }
        };
        [place, fit(&self.exes, exe, "its executable"), uid, what].into_iter().min().unwrap_or(Fits::No)
    }

    fn fits_container(&self, container: &Container) -> Fits {
        let names = [container.name.as_deref(), Some(container.id.as_str())];
        let named = names.into_iter().map(|name| fit(&self.containers, name, "its container's name")).max();
        [
            named.unwrap_or(Fits::No),
            fit(&self.images, container.image.as_deref(), "its image"),
            fit(&self.jobs, container.job_id(), "its CI job"),
            self.fits_pod(container),
        ]
        .into_iter()
        .min()
        .unwrap_or(Fits::No)
    }

    /// A pod is meant by its name, NAMESPACE/NAME or its uid.
    fn fits_pod(&self, container: &Container) -> Fits {
        let pod = container.pod.as_deref();
        let name = pod.and_then(|pod| pod.name.as_deref());
        let full = pod.and_then(|pod| Some(format!("{}/{}", pod.namespace.as_deref()?, name?)));
        let names = [name, full.as_deref(), pod.and_then(|pod| pod.uid.as_deref())];
        let fits = names.into_iter().map(|name| fit(&self.pods, name, "its pod")).max();
        fits.unwrap_or(Fits::No)
    }
}

/// Does one of the patterns fit? None at all say nothing.
fn fit(patterns: &[String], text: Option<&str>, what: &'static str) -> Fits {
    match text {
        _ if patterns.is_empty() => Fits::Yes,
        Some(text) if patterns.iter().any(|pattern| WildMatch::new(pattern).matches(text)) => Fits::Yes,
        Some(_) => Fits::No,
        None => Fits::NotKnown(what),
    }
}

#[cfg(test)]
mod tests;
