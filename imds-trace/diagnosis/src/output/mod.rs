//! How is it told? One file and one line in [`OUTPUTS`] for each way.

mod filter;
mod json;
mod junit;
mod pcapng;
mod text;

use std::collections::HashSet;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anstream::AutoStream;
use thiserror::Error;

use crate::config::{OutputSpec, Telling};
use crate::event::Event;
use crate::event::Report;
use crate::expect::Expectations;
use crate::finding::{FindingId, Severity};
use crate::net::BootTime;
use crate::printable::printable;
use crate::report::{Grouping, Tallies};
use filter::Sieve;

/// Bytes of a sentence on stderr.
const MAX_SHOWN: usize = 2048;

/// One way of telling.
pub trait Output {
    /// Tells one event.
    fn tell(&mut self, event: &Event) -> io::Result<()>;
    /// Hands everything told so far to the system.
    fn flush(&mut self) -> io::Result<()>;
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
    /// Begins one that writes to a stream, times told by this boot time.
    pub open: fn(Box<dyn Write>, BootTime) -> Box<dyn Output>,
}

/// All kinds.
pub const OUTPUTS: &[Kind] = &[text::KIND, json::KIND, junit::KIND, pcapng::KIND];

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
    /// Writing failed.
    #[error("write output: {0}")]
    Write(io::Error),
    /// Whoever read stdout went away: no error, but the end.
    #[error("stdout was closed")]
    Closed,
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::Closed } else { Self::Write(error) }
    }
}

/// All outputs of a run.
pub struct Outputs {
    outputs: Vec<Box<dyn Output>>,
    telling: Telling,
    sieve: Sieve,
    groups: Option<Grouping>,
    /// Findings of severity error that were told.
    errors: HashSet<FindingId>,
    expectations: Expectations,
    /// Did something that was asserted not hold?
    broken: bool,
    /// Of what is shown, where not everything is.
    tallies: Tallies,
    hidden: u64,
    /// Does telling go on when whoever read stdout went away?
    outlives_reader: bool,
}

impl Outputs {
    /// Opens what was asked for.
    pub fn open(telling: &Telling, boot_time: BootTime) -> Result<Self, Error> {
        let mut outputs = Vec::new();
        for spec in &telling.outputs {
            let Some(kind) = OUTPUTS.iter().find(|kind| kind.name == spec.kind) else { continue };
            let stream: Box<dyn Write> = match &spec.path {
                // Colour only on a terminal and never with NO_COLOR: anstream looks.
                None => Box::new(BufWriter::new(AutoStream::auto(io::stdout()))),
                Some(path) => {
                    let file = create(kind, path).map_err(|error| Error::Open {
                        kind: spec.kind.clone(),
                        path: path.display().to_string(),
                        error,
                    })?;
                    if kind.packets {
                        Box::new(BufWriter::new(file))
                    } else {
                        Box::new(BufWriter::new(AutoStream::never(file)))
                    }
                }
            };
            outputs.push((kind.open)(stream, boot_time));
        }
        Ok(Self {
            outputs,
            telling: telling.clone(),
            sieve: Sieve::new(telling.filter.clone(), boot_time),
            groups: telling.group_by.map(Grouping::new),
            errors: HashSet::new(),
            expectations: Expectations::new(telling.expectations.clone()),
            broken: false,
            tallies: Tallies::default(),
            hidden: 0,
            outlives_reader: false,
        })
    }

    /// Does any of them tell packets?
    pub fn want_packets(&self) -> bool {
        let told = |spec: &OutputSpec| OUTPUTS.iter().any(|kind| kind.packets && kind.name == spec.kind);
        self.telling.outputs.iter().any(told)
    }

    /// Tells an event to all, if it is to be shown. What is not shown counts for what was asserted all the same.
    pub fn tell(&mut self, event: &Event) -> Result<(), Error> {
        self.expectations.absorb(event);
        if let Event::Report(at, report) = event {
            let mut shown = report.clone();
            if !self.sieve.is_open() {
                shown = self.tallies.finish(report.lost, report.spent);
                shown.hidden = self.hidden;
                shown.broken.clone_from(&report.broken);
                shown.other.clone_from(&report.other);
            }
            shown.expectations = self.expectations.judge(report.lost);
            shown.groups = self.groups.take().map(Grouping::finish);
            self.note_broken(&shown);
            return self.tell_each(&Event::Report(*at, shown));
        }
        if self.sieve.is_open() {
            return self.show(event);
        }
        let shown = self.sieve.sift(event);
        let is_exchange = |event: &Event| matches!(event, Event::Exchange(_));
        self.hidden += u64::from(is_exchange(event) && !shown.iter().any(is_exchange));
        shown.iter().try_for_each(|event| {
            self.tallies.absorb(event);
            self.show(event)
        })
    }

    fn show(&mut self, event: &Event) -> Result<(), Error> {
        match event {
            Event::Finding(_, finding) if finding.severity == Severity::Error && finding.count > 0 => {
                self.errors.insert(finding.id);
            }
            // Withdrawn: nothing of it was left.
            Event::Finding(_, finding) if finding.count == 0 => {
                self.errors.remove(&finding.id);
            }
            Event::Exchange(_) => {
                if let Some(groups) = &mut self.groups {
                    groups.absorb(event);
                }
            }
            _ => {}
        }
        self.tell_each(event)
    }

    fn tell_each(&mut self, event: &Event) -> Result<(), Error> {
        self.each(|output| output.tell(event))
    }

    /// From now on, that nobody reads stdout any more ends only what went there.
    pub fn outlive_reader(&mut self) {
        self.outlives_reader = true;
    }

    fn each(&mut self, mut act: impl FnMut(&mut dyn Output) -> io::Result<()>) -> Result<(), Error> {
        let mut number = 0;
        while let Some(output) = self.outputs.get_mut(number) {
            match act(output.as_mut()).map_err(Error::from) {
                Err(Error::Closed) if self.outlives_reader => drop(self.outputs.remove(number)),
                Err(error) => return Err(error),
                Ok(()) => number += 1,
            }
        }
        Ok(())
    }

    /// Remembers that something asserted did not hold, and says so on stderr if nobody would read it on stdout.
    fn note_broken(&mut self, report: &Report) {
        let told = self.telling.outputs.iter().any(|output| output.kind == text::KIND.name && output.path.is_none());
        for asserted in report.expectations.iter().filter(|asserted| !asserted.held) {
            self.broken = true;
            if !told {
                let (expect, why) = (printable(&asserted.expect, MAX_SHOWN), printable(&asserted.why, MAX_SHOWN));
                eprintln!("imds-trace: expected {expect}: NOT HELD. {why}");
            }
        }
    }

    /// Tells what `run` says, until something cannot be told.
    pub fn told(&mut self, run: impl FnOnce(&mut dyn FnMut(&Event))) -> Result<(), Error> {
        let mut result = Ok(());
        run(&mut |event| {
            if result.is_ok() {
                result = self.tell(event);
            }
        });
        result
    }

    /// Hands everything told so far to the system.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.each(|output| output.flush())
    }

    /// Did something that was asserted (`--expect`) not hold?
    pub fn broken(&self) -> bool {
        self.broken
    }

    /// Was an error found, and is that a failure (`--exit-code`)?
    pub fn erred(&self) -> bool {
        self.telling.exit_code && !self.errors.is_empty()
    }
}

/// Makes the file of an output.
fn create(kind: &Kind, path: &Path) -> io::Result<File> {
    if !kind.packets {
        return File::create(path);
    }
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // One that was there before may be open to others.
    if file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}
