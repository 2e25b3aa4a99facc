//! How is it told? One file and one line in [`OUTPUTS`] for each way.

mod filter;
mod json;
mod pcapng;
mod text;

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anstream::AutoStream;
use thiserror::Error;

use crate::config::{OutputSpec, Telling};
use crate::event::Event;
use crate::finding::Severity;
use crate::net::BootTime;
use crate::report::{Report, Tallies};

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
pub const OUTPUTS: &[Kind] = &[text::KIND, json::KIND, pcapng::KIND];

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
    errors: u64,
    /// Of what is shown, where not everything is.
    tallies: Tallies,
    hidden: u64,
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
        Ok(Self { outputs, telling: telling.clone(), errors: 0, tallies: Tallies::default(), hidden: 0 })
    }

    /// Does any of them tell packets?
    pub fn want_packets(&self) -> bool {
        let told = |spec: &OutputSpec| OUTPUTS.iter().any(|kind| kind.packets && kind.name == spec.kind);
        self.telling.outputs.iter().any(told)
    }

    /// Tells an event to all, if it is to be shown.
    pub fn tell(&mut self, event: &Event) -> Result<(), Error> {
        let filter = &self.telling.filter;
        let narrowed;
        let event = match event {
            _ if filter.is_empty() => event,
            Event::Report(at, report) => {
                let shown = self.tallies.finish(report.lost, report.spent);
                narrowed = Event::Report(*at, Report { hidden: self.hidden, ..shown });
                &narrowed
            }
            event if filter.shows(event) => {
                self.tallies.absorb(event);
                event
            }
            event => {
                self.hidden += u64::from(matches!(event, Event::Exchange(_)));
                return Ok(());
            }
        };
        if let Event::Finding(_, finding) = event {
            self.errors += u64::from(finding.severity == Severity::Error);
        }
        for output in &mut self.outputs {
            output.tell(event)?;
        }
        Ok(())
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
        for output in &mut self.outputs {
            output.flush()?;
        }
        Ok(())
    }

    /// Did something happen that was asserted not to?
    pub fn failed(&self) -> bool {
        self.telling.exit_code && self.errors > 0
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
