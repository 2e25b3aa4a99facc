//! How are inputs kept in a file, and read again?
//!
//! JSON Lines. The first line is the header: `{"recording":1,…}`, where 1 is the version of the format. Every further line is one
//! input, `{"observation":…}`, `{"fact":…}`, `{"tick":…}` or `{"lost":…}`, in the order in which the pipeline took them. Times are
//! nanoseconds since boot; the header's `boot_time` (nanoseconds from the Unix epoch to boot) makes wall-clock time of them.
//! Fields may be added within a version; a reader ignores those it does not know.
//!
//! Secrets never reach this file: what can be an input is an allow-list (`observation::redact`).

use std::io::{self, BufRead, Write};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::event::Ready;
use crate::input::Input;
use crate::net::{BootTime, Netns, Timestamp};
use crate::printable::json_safe;

/// Version of the format that this program writes and reads.
pub const VERSION: u32 = 1;
/// A line longer than this is no recording; the longest input, a container with many labels, has some kilobytes.
const MAX_LINE: u64 = 1 << 20;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`] of the writer.
    pub recording: u32,
    /// Makes wall-clock time of timestamps.
    pub boot_time: BootTime,
    /// When tracing began.
    pub at: Timestamp,
    /// The namespace that the hooks were in.
    pub netns: Netns,
    /// Watched addresses.
    pub endpoints: Vec<IpAddr>,
    /// The EC2 instance's id, if known.
    pub instance: Option<String>,
    /// What was attached.
    pub ready: Ready,
}

/// Why a recording cannot be read.
#[derive(Debug, Error)]
pub enum Error {
    /// The file could not be read.
    #[error("line {line}: {error}")]
    Io {
        /// Line number, from 1.
        line: u64,
        /// What the system said.
        error: io::Error,
    },
    /// The first line is not a header.
    #[error(
        "line 1: not an imds-trace recording (its first line must be {{\"recording\":{VERSION},…}}), nor a pcap or pcapng file: {0}"
    )]
    NotARecording(String),
    /// The file was written by a newer program.
    #[error(
        "line 1: the recording has format version {0}, this imds-trace reads up to {VERSION}: use a newer imds-trace"
    )]
    TooNew(u32),
    /// A line is damaged.
    #[error("line {line}: not an input of a recording: {why}")]
    Unreadable {
        /// Line number, from 1.
        line: u64,
        /// What the parser said.
        why: String,
    },
    /// The last line has no end: the writer was stopped in the middle of it.
    #[error("line {line}: cut short: the writer was stopped in the middle of this line")]
    CutShort {
        /// Line number, from 1.
        line: u64,
    },
}

/// Writes a recording.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    pub fn new(mut out: W, header: &Header) -> io::Result<Self> {
        serde_json::to_writer(&mut out, header)?;
        out.write_all(b"\n")?;
        out.flush()?;
        Ok(Self { out })
    }

    /// Writes one input.
    pub fn write(&mut self, input: &Input) -> io::Result<()> {
        self.out.write_all(json_safe(&serde_json::to_string(input)?).as_bytes())?;
        self.out.write_all(b"\n")
    }

    /// Hands everything written so far to the system.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Reads a recording.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    line: u64,
    /// The first line.
    pub header: Header,
}

/// Only the version, which every later format keeps.
#[derive(Deserialize)]
struct Versioned {
    recording: u32,
}

impl<R: BufRead> Reader<R> {
    /// Reads the header.
    pub fn new(mut input: R) -> Result<Self, Error> {
        let text = match read_line(&mut input, 1)? {
            Some(Line::Whole(text)) => text,
            Some(Line::Cut) | None => return Err(Error::NotARecording("it has no whole line".into())),
        };
        let version: Versioned =
            serde_json::from_slice(&text).map_err(|error| Error::NotARecording(error.to_string()))?;
        if version.recording > VERSION {
            return Err(Error::TooNew(version.recording));
        }
        let header = serde_json::from_slice(&text).map_err(|error| Error::NotARecording(error.to_string()))?;
        Ok(Self { input, line: 1, header })
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Input, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.line += 1;
        let line = self.line;
        match read_line(&mut self.input, line) {
            Ok(None) => None,
            Ok(Some(Line::Cut)) => Some(Err(Error::CutShort { line })),
            Ok(Some(Line::Whole(text))) => {
                Some(serde_json::from_slice(&text).map_err(|error| Error::Unreadable { line, why: error.to_string() }))
            }
            Err(error) => Some(Err(error)),
        }
    }
}

enum Line {
    Whole(Vec<u8>),
    Cut,
}

fn read_line(input: &mut impl BufRead, line: u64) -> Result<Option<Line>, Error> {
    let mut text = Vec::new();
    let read = io::Read::take(&mut *input, MAX_LINE)
        .read_until(b'\n', &mut text)
        .map_err(|error| Error::Io { line, error })?;
    Ok(match (read, text.last()) {
        (0, _) => None,
        (_, Some(b'\n')) => Some(Line::Whole(text)),
        _ if read as u64 == MAX_LINE => {
            return Err(Error::Unreadable { line, why: format!("longer than {MAX_LINE} bytes") });
        }
        _ => Some(Line::Cut),
    })
}
