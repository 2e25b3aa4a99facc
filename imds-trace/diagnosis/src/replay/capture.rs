//! Is it somebody's capture, and what follows from it?

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use anyhow::{Context, bail};

use super::MAX_SHOWN;
use crate::capture;
use crate::config::{self, Replay, Telling};
use crate::event::Event;
use crate::input;
use crate::net::BootTime;
use crate::output::{self, Outputs};
use crate::pipeline::Pipeline;
use crate::printable::printable;

/// What is read from.
pub type Input = Box<dyn Read + Send>;

/// A file, as its first bytes say.
pub enum Opened {
    /// A capture.
    Capture(Input),
    /// Something else, on stdin, which can be opened only once.
    Stdin(Input),
    /// Something else.
    Other,
}

/// How files begin that gzip and xz made.
const COMPRESSED: [&[u8]; 2] = [&[0x1f, 0x8b], &[0xfd, b'7', b'z', b'X']];

/// Looks at a file's first bytes. A pattern, and what is not there, is something else.
pub fn open(path: &Path) -> anyhow::Result<Opened> {
    let name = path.display().to_string();
    let is_stdin = name == "-";
    let mut input: Input = if is_stdin {
        Box::new(io::stdin())
    } else {
        match File::open(path) {
            Ok(file) if path.is_file() => Box::new(file),
            _ => return Ok(Opened::Other),
        }
    };
    let mut magic = Vec::new();
    (&mut input).take(capture::MAGIC_LENGTH as u64).read_to_end(&mut magic).with_context(|| name.clone())?;
    if COMPRESSED.iter().any(|known| magic.starts_with(known)) {
        bail!("{name}: it is compressed: unpack it first");
    }
    let is_capture = capture::is_capture(&magic);
    let whole: Input = Box::new(io::Cursor::new(magic).chain(BufReader::new(input)));
    Ok(match (is_capture, is_stdin) {
        (true, _) => Opened::Capture(whole),
        (false, true) => Opened::Stdin(whole),
        (false, false) => Opened::Other,
    })
}

/// Replays a capture. Gives the exit code.
pub fn replay(input: Input, telling: &Telling, asked: &Replay) -> anyhow::Result<u8> {
    let name = asked.files.first().map(|file| file.display().to_string()).unwrap_or_default();
    match tell(input, &name, telling, asked) {
        Ok(outputs) => Ok(u8::from(outputs.broken() || outputs.erred())),
        Err(error) if matches!(error.downcast_ref(), Some(output::Error::Closed)) => Ok(0),
        Err(error) if error.is::<output::Error>() => Err(error),
        Err(error) => Err(error).context(name),
    }
}

fn tell(input: Input, name: &str, telling: &Telling, asked: &Replay) -> anyhow::Result<Outputs> {
    let endpoints = match &asked.endpoints {
        Some(endpoints) => endpoints.clone(),
        None => config::endpoints(&[])?,
    };
    let mut reader = capture::Reader::new(input, endpoints).context("a capture of which nothing can be read")?;
    let mut pipeline = Pipeline::of_capture();
    // Times of a capture count from the Unix epoch.
    let mut outputs = Outputs::open(telling, BootTime(0))?;
    pipeline.tell_packets(outputs.want_packets());
    let mut last = reader.started();
    outputs.tell(&Event::Ready(last, reader.ready()))?;
    for read in &mut reader {
        let input = match read {
            Ok(input) => input,
            // Everything up to here could be read, and what is missing is said.
            Err(error) => {
                eprintln!("imds-trace: {}; what came after it is missing", printable(&error.to_string(), MAX_SHOWN));
                input::Input::Lost { at: last, ring_buffer: 0, unreadable: 1 }
            }
        };
        last = last.max(input.at());
        outputs.told(|tell| pipeline.push(input, tell))?;
    }
    for note in reader.notes() {
        eprintln!("imds-trace: {}: {note}", printable(name, MAX_SHOWN));
    }
    outputs.told(|tell| pipeline.finish(tell))?;
    outputs.flush()?;
    Ok(outputs)
}
