//! How does one file of a recording come about? Header, lines, seals, end.

use std::io::{self, Write};
use std::time::Duration;

use super::Header;
use super::seal::Chain;
use crate::input::Input;
use crate::net::Timestamp;
use crate::printable::json_safe;

/// Lines between two seals at most: so many are lost with one damaged byte.
pub(super) const MAX_UNSEALED: u64 = 64;
/// Time between two seals: what came since the last one is not sealed if the writer is killed.
const SEAL_AFTER: Duration = Duration::from_secs(1);

/// Writes one file.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    chain: Chain,
    /// Bytes written.
    bytes: u64,
    inputs: u64,
    lost: u64,
    /// Lines since the last seal.
    unsealed: u64,
    /// When the last seal was made.
    sealed: Timestamp,
    last: Timestamp,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    pub fn new(out: W, header: &Header) -> io::Result<Self> {
        let (sealed, last) = (header.at, header.at);
        let mut writer = Self { out, chain: Chain::default(), bytes: 0, inputs: 0, lost: 0, unsealed: 0, sealed, last };
        writer.line(&serde_json::to_string(header)?)?;
        writer.seal(header.at)?;
        writer.out.flush()?;
        Ok(writer)
    }

    /// Writes one input.
    pub fn write(&mut self, input: &Input) -> io::Result<()> {
        self.write_line(input, &serde_json::to_string(input)?)
    }

    /// Writes one input whose JSON is `text`.
    pub(super) fn write_line(&mut self, input: &Input, text: &str) -> io::Result<()> {
        self.inputs += 1;
        if let Input::Lost { ring_buffer, unreadable, .. } = input {
            self.lost += ring_buffer + unreadable;
        }
        self.last = self.last.max(input.at());
        self.line(&json_safe(text))?;
        self.seal_if_due(self.last)
    }

    /// Repeats what an earlier file says: the JSON of an input.
    pub(super) fn repeat(&mut self, text: &str) -> io::Result<()> {
        self.line(&json_safe(&format!("{{\"again\":{text}}}")))?;
        self.seal_if_due(self.sealed)
    }

    /// Hands everything written so far to the system.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Seals what has been written, if it is time to. Gives whether it did.
    pub fn seal_if_due(&mut self, now: Timestamp) -> io::Result<()> {
        let due = self.unsealed >= MAX_UNSEALED || now.since(self.sealed) >= SEAL_AFTER;
        if due && self.unsealed > 0 { self.seal(now) } else { Ok(()) }
    }

    /// Ends the file in order. `rotated`: it goes on in another.
    pub fn close(mut self, at: Timestamp, rotated: bool) -> io::Result<W> {
        let (inputs, lost, at) = (self.inputs, self.lost, at.max(self.last).0);
        let body = format!("{{\"end\":{{\"at\":{at},\"inputs\":{inputs},\"lost\":{lost},\"rotated\":{rotated}}}");
        self.sealed_by(&body)?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// Bytes written, before any compression.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Inputs written.
    pub(super) fn inputs(&self) -> u64 {
        self.inputs
    }

    pub(super) fn out(&mut self) -> &mut W {
        &mut self.out
    }

    fn seal(&mut self, now: Timestamp) -> io::Result<()> {
        self.sealed = self.sealed.max(now);
        let body = format!("{{\"seal\":{{\"inputs\":{}}}", self.inputs);
        self.sealed_by(&body)
    }

    fn sealed_by(&mut self, body: &str) -> io::Result<()> {
        let line = self.chain.seal(body);
        self.unsealed = 0;
        self.bytes += line.len() as u64;
        self.out.write_all(&line)
    }

    fn line(&mut self, text: &str) -> io::Result<()> {
        self.chain.absorb(text.as_bytes());
        self.chain.absorb(b"\n");
        self.unsealed += 1;
        self.bytes += text.len() as u64 + 1;
        self.out.write_all(text.as_bytes())?;
        self.out.write_all(b"\n")
    }
}
