//! What does a recording say, or somebody's capture? Feeds it to the same pipeline as the live shell.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use anyhow::{Context, anyhow, bail};

use crate::capture;
use crate::config::{self, Replay};
use crate::event::{Event, Ready};
use crate::input::Input;
use crate::net::{BootTime, Timestamp};
use crate::output::{self, Outputs};
use crate::pipeline::{Host, Pipeline};
use crate::printable::printable;
use crate::recording;

/// Bytes of a sentence on stderr.
const MAX_SHOWN: usize = 512;
/// How files begin that gzip, xz and zstd made.
const COMPRESSED: [&[u8]; 3] = [&[0x1f, 0x8b], &[0xfd, b'7', b'z', b'X'], &[0x28, 0xb5, 0x2f, 0xfd]];

/// Replays a recording or a capture; its first bytes say which it is. Gives the exit code: 0, or 1 if what was asserted failed. A
/// file that cannot be read is an error that names the line or the packet.
pub fn replay(asked: &Replay) -> anyhow::Result<u8> {
    let name = asked.file.display().to_string();
    let mut input: Box<dyn Read + Send> = if name == "-" {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(&asked.file).with_context(|| name.clone())?)
    };
    let mut magic = Vec::new();
    (&mut input).take(capture::MAGIC_LENGTH as u64).read_to_end(&mut magic).with_context(|| name.clone())?;
    if COMPRESSED.iter().any(|known| magic.starts_with(known)) {
        bail!("{name}: it is compressed: unpack it first");
    }
    let is_capture = capture::is_capture(&magic);
    let input: Box<dyn Read + Send> = Box::new(io::Cursor::new(magic).chain(BufReader::new(input)));
    let told = if is_capture { tell_capture(input, asked) } else { tell_recording(BufReader::new(input), asked) };
    match told {
        Ok(outputs) => Ok(u8::from(outputs.broken() || outputs.erred())),
        Err(Stopped::Output(output::Error::Closed)) => Ok(0),
        Err(Stopped::Output(error)) => Err(error.into()),
        Err(Stopped::File(error)) => Err(error).context(name),
    }
}

enum Stopped {
    Output(output::Error),
    File(anyhow::Error),
}

impl From<output::Error> for Stopped {
    fn from(error: output::Error) -> Self {
        Self::Output(error)
    }
}

impl From<recording::Error> for Stopped {
    fn from(error: recording::Error) -> Self {
        Self::File(error.into())
    }
}

/// A pipeline and those who hear it.
struct Telling {
    outputs: Outputs,
    pipeline: Pipeline,
    last: Timestamp,
}

impl Telling {
    fn begin(
        asked: &Replay,
        boot_time: BootTime,
        mut pipeline: Pipeline,
        at: Timestamp,
        ready: Ready,
    ) -> Result<Self, Stopped> {
        let mut outputs = Outputs::open(&asked.telling, boot_time)?;
        pipeline.tell_packets(outputs.want_packets());
        outputs.tell(&Event::Ready(at, ready))?;
        Ok(Self { outputs, pipeline, last: at })
    }

    fn push(&mut self, input: Input) -> Result<(), Stopped> {
        self.last = self.last.max(input.at());
        Ok(self.outputs.told(|tell| self.pipeline.push(input, tell))?)
    }

    /// Everything up to here could be read, and what is missing is said.
    fn cut(&mut self, error: &dyn std::error::Error) -> Result<(), Stopped> {
        eprintln!("imds-trace: {}; what came after it is missing", printable(&error.to_string(), MAX_SHOWN));
        self.push(Input::Lost { at: self.last, ring_buffer: 0, unreadable: 1 })
    }

    fn finish(mut self) -> Result<Outputs, Stopped> {
        self.outputs.told(|tell| self.pipeline.finish(tell))?;
        self.outputs.flush()?;
        Ok(self.outputs)
    }
}

fn tell_recording(input: impl BufRead, asked: &Replay) -> Result<Outputs, Stopped> {
    let mut reader = recording::Reader::new(input)?;
    if asked.endpoints.is_some() {
        return Err(Stopped::File(anyhow!(
            "--endpoint is for captures: a recording says itself which addresses were watched"
        )));
    }
    let header = reader.header.clone();
    let pipeline = Pipeline::new(Host { netns: header.netns, instance: header.instance });
    let mut telling = Telling::begin(asked, header.boot_time, pipeline, header.at, header.ready)?;
    for input in &mut reader {
        match input {
            Ok(input) => telling.push(input)?,
            // The writer was killed: everything before this line is whole.
            Err(error @ recording::Error::CutShort { .. }) => telling.cut(&error)?,
            Err(error) => return Err(error.into()),
        }
    }
    telling.finish()
}

fn tell_capture(input: Box<dyn Read + Send>, asked: &Replay) -> Result<Outputs, Stopped> {
    let endpoints = match &asked.endpoints {
        Some(endpoints) => endpoints.clone(),
        None => config::endpoints(&[]).map_err(|error| Stopped::File(error.into()))?,
    };
    let mut reader = capture::Reader::new(input, endpoints)
        .map_err(|error| Stopped::File(anyhow::Error::from(error).context("a capture of which nothing can be read")))?;
    let pipeline = Pipeline::of_capture();
    // Times of a capture count from the Unix epoch.
    let mut telling = Telling::begin(asked, BootTime(0), pipeline, reader.started(), reader.ready())?;
    for input in &mut reader {
        match input {
            Ok(input) => telling.push(input)?,
            Err(error) => telling.cut(&error)?,
        }
    }
    for note in reader.notes() {
        eprintln!("imds-trace: {}: {note}", printable(&asked.file.display().to_string(), MAX_SHOWN));
    }
    telling.finish()
}
