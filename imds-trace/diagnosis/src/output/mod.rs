//! How is it told? One file and one line in [`OUTPUTS`] for each way.

mod allow;
mod html;
pub mod json;
mod junit;
mod markdown;
mod metrics;
mod pcapng;
mod text;
mod whole;

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use anstream::AutoStream;
use thiserror::Error;

use crate::config::OutputSpec;
use crate::event::{Event, HostSum, Report};
use crate::net::{BootTime, Timestamp};
use crate::progress::Aside;
use whole::Whole;

/// One way of telling.
pub trait Output {
    /// Tells one event.
    fn tell(&mut self, event: &Event) -> io::Result<()>;
    /// Tells what came of it all, last.
    fn report(&mut self, at: Timestamp, report: &Report) -> io::Result<()>;
    /// From now on it is about this host, one of several. Only where [`Kind::several`].
    fn host(&mut self, _: Timestamp, _: &str) -> io::Result<()> {
        Ok(())
    }
    /// Tells the sum of several hosts, after all of them.
    fn sum(&mut self, _: &[HostSum]) -> io::Result<()> {
        Ok(())
    }
    /// Tells how it stands now, if it is of that kind: in its file anew, and as a page for whoever asks over the network. Asks `own` only
    /// then.
    fn publish(&mut self, _own: fn() -> Own) -> io::Result<Option<String>> {
        Ok(None)
    }
    /// Hands everything told so far to the system.
    fn flush(&mut self) -> io::Result<()>;
}

/// What this process has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// CPU time.
    pub cpu: Duration,
    /// Bytes of memory.
    pub memory: u64,
}

/// A kind of output.
#[derive(Clone, Copy)]
pub struct Kind {
    /// What `--output` calls it.
    pub name: &'static str,
    /// For whom it is.
    pub explain: &'static str,
    /// Must it go to a file?
    pub needs_path: bool,
    /// Does it tell packets? Then it is bytes, not text, and its file is for its owner alone.
    pub packets: bool,
    /// Does it go out as it is? It is bytes, or text in which control characters are escaped. Of any other, what only a terminal
    /// understands is left out where none is.
    pub verbatim: bool,
    /// Can it tell of several hosts, one after the other?
    pub several: bool,
    /// Is it also what `generate` writes of a recording?
    pub generated: bool,
    /// Begins one that writes to a stream, times told by this boot time.
    pub open: fn(Box<dyn Write>, BootTime) -> Box<dyn Output>,
}

/// All kinds.
pub const OUTPUTS: &[Kind] =
    &[text::KIND, json::KIND, junit::KIND, pcapng::KIND, markdown::KIND, html::KIND, metrics::KIND, allow::KIND];

/// Why something could not be told.
#[derive(Debug, Error)]
pub enum Error {
    /// A file could not be made.
    #[error("--output {kind}={path}: {error}")]
    Open {
        /// Kind of output.
        kind: String,
        /// The file.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// Two outputs would be written over each other.
    #[error("--output: {0} and {1} are one file; give each its own")]
    Same(String, String),
    /// Writing failed.
    #[error("write --output {0}: {1}")]
    Write(String, io::Error),
    /// Whoever read stdout went away: no error, but the end.
    #[error("stdout was closed")]
    Closed,
}

/// What an output is called that cannot tell of several hosts.
pub fn tells_one_host(spec: &OutputSpec) -> Option<&'static str> {
    OUTPUTS.iter().find(|kind| kind.name == spec.kind && !kind.several).map(|kind| kind.name)
}

/// All outputs of a run.
#[derive(Default)]
pub struct Outputs {
    /// Each with what it was asked for as.
    outputs: Vec<(String, Box<dyn Output>)>,
    specs: Vec<OutputSpec>,
    /// Does telling go on when whoever read stdout went away?
    outlives_reader: bool,
}

impl Outputs {
    /// Opens what was asked for.
    pub fn open(specs: &[OutputSpec], boot_time: BootTime) -> Result<Self, Error> {
        let mut files = Files::open(specs)?;
        let is_terminal = io::stdout().is_terminal();
        let mut outputs = Vec::new();
        for (number, spec) in specs.iter().enumerate() {
            let Some(kind) = OUTPUTS.iter().find(|kind| kind.name == spec.kind) else { continue };
            let stream: Box<dyn Write> = match &spec.path {
                _ if spec.address().is_some() => Box::new(io::sink()),
                Some(path) if spec.is_replaced() => {
                    Box::new(Whole::open(path).map_err(|error| cannot_open(spec, path, error))?)
                }
                // Colour only on a terminal and never with NO_COLOR: anstream looks.
                None if kind.verbatim => Box::new(BufWriter::new(Aside::new(io::stdout(), is_terminal))),
                None => Box::new(BufWriter::new(Aside::new(AutoStream::auto(io::stdout()), is_terminal))),
                Some(path) => {
                    let file = files.take(number).map_err(|error| cannot_open(spec, path, error))?;
                    if kind.verbatim {
                        Box::new(BufWriter::new(file))
                    } else {
                        Box::new(BufWriter::new(AutoStream::never(file)))
                    }
                }
            };
            outputs.push((asked(spec), (kind.open)(stream, boot_time)));
        }
        Ok(Self { outputs, specs: specs.to_vec(), outlives_reader: false })
    }

    /// Does any of them tell packets?
    pub fn want_packets(&self) -> bool {
        let told = |spec: &OutputSpec| OUTPUTS.iter().any(|kind| kind.packets && kind.name == spec.kind);
        self.specs.iter().any(told)
    }

    /// Does a person read one of them on stdout?
    pub fn are_read(&self) -> bool {
        self.specs.iter().any(|output| output.kind == text::KIND.name && output.path.is_none())
    }

    /// From now on, that nobody reads stdout any more ends only what went there.
    pub fn outlive_reader(&mut self) {
        self.outlives_reader = true;
    }

    /// Tells an event to all.
    pub fn tell(&mut self, event: &Event) -> Result<(), Error> {
        self.each(|output| output.tell(event))
    }

    /// Tells all that it is about this host from now on.
    pub fn host(&mut self, at: Timestamp, name: &str) -> Result<(), Error> {
        self.each(|output| output.host(at, name))
    }

    /// Tells all the sum of several hosts.
    pub fn sum(&mut self, hosts: &[HostSum]) -> Result<(), Error> {
        self.each(|output| output.sum(hosts))
    }

    /// Tells all what came of it.
    pub fn report(&mut self, at: Timestamp, report: &Report) -> Result<(), Error> {
        self.each(|output| output.report(at, report))
    }

    /// Tells how it stands now, where somebody looks at that. Gives the page, if there is one.
    pub fn publish(&mut self, own: fn() -> Own) -> Result<Option<String>, Error> {
        let mut page = None;
        self.each(|output| {
            page = output.publish(own)?.or(page.take());
            Ok(())
        })?;
        Ok(page)
    }

    /// Hands everything told so far to the system.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.each(|output| output.flush())
    }

    fn each(&mut self, mut act: impl FnMut(&mut dyn Output) -> io::Result<()>) -> Result<(), Error> {
        let mut number = 0;
        while let Some((asked, output)) = self.outputs.get_mut(number) {
            match act(output.as_mut()) {
                Ok(()) => number += 1,
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    return Err(Error::Write(asked.clone(), error));
                }
                Err(_) if self.outlives_reader => drop(self.outputs.remove(number)),
                Err(_) => return Err(Error::Closed),
            }
        }
        Ok(())
    }
}

/// As it was typed.
fn asked(spec: &OutputSpec) -> String {
    match &spec.path {
        Some(path) => format!("{}={}", spec.kind, path.display()),
        None => spec.kind.clone(),
    }
}

/// The files of outputs, by the outputs' numbers. None is emptied before all are known to be there.
struct Files(Vec<Option<File>>);

impl Files {
    fn open(specs: &[OutputSpec]) -> Result<Self, Error> {
        let (mut files, mut made) = (Vec::new(), Vec::new());
        let opened = specs.iter().try_for_each(|spec| {
            files.push(Self::file(spec, &mut made)?);
            Ok(())
        });
        let opened = opened.and_then(|()| Self::apart(specs, &files));
        if let Err(error) = opened {
            // Nothing was told in them.
            made.iter().for_each(|path| drop(std::fs::remove_file(path)));
            return Err(error);
        }
        Ok(Self(files))
    }

    fn file<'a>(spec: &'a OutputSpec, made: &mut Vec<&'a Path>) -> Result<Option<File>, Error> {
        let kind = OUTPUTS.iter().find(|kind| kind.name == spec.kind);
        let path = spec.path.as_deref().filter(|_| spec.address().is_none() && !spec.is_replaced());
        let (Some(kind), Some(path)) = (kind, path) else { return Ok(None) };
        let is_new = !path.exists();
        let file = create(kind, path).map_err(|error| cannot_open(spec, path, error))?;
        made.extend(is_new.then_some(path));
        Ok(Some(file))
    }

    /// An error if two are one file, whatever they are called.
    fn apart(specs: &[OutputSpec], files: &[Option<File>]) -> Result<(), Error> {
        let key = |file: &Option<File>| {
            let there = file.as_ref()?.metadata().ok().filter(std::fs::Metadata::is_file)?;
            Some((there.dev(), there.ino()))
        };
        for (number, file) in files.iter().enumerate() {
            let same = |other: &Option<File>| key(other).is_some() && key(other) == key(file);
            if let Some(other) = files[..number].iter().position(same) {
                return Err(Error::Same(asked(&specs[other]), asked(&specs[number])));
            }
        }
        Ok(())
    }

    /// The file of an output, emptied.
    fn take(&mut self, number: usize) -> io::Result<File> {
        let file = self.0.get_mut(number).and_then(Option::take).ok_or(io::ErrorKind::NotFound)?;
        if file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        Ok(file)
    }
}

fn cannot_open(spec: &OutputSpec, path: &Path, error: io::Error) -> Error {
    Error::Open { kind: spec.kind.clone(), path: path.display().to_string(), error }
}

/// Makes the file of an output, or opens the one that is there as it is.
fn create(kind: &Kind, path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    if !kind.packets {
        return options.open(path);
    }
    let file = options.mode(0o600).open(path)?;
    // One that was there before may be open to others.
    if file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}
