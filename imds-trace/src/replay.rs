//! What does a recording say? Feeds it to the same pipeline as the live shell.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use anyhow::Context;

use crate::config::Telling;
use crate::event::Event;
use crate::input::Input;
use crate::output::{self, Outputs};
use crate::pipeline::{Host, Pipeline};
use crate::printable::printable;
use crate::recording::{self, Reader};

/// Replays `file` (`-` is stdin). Gives the exit code: 0, or 1 if what was asserted failed. An unreadable recording is an error that names the line.
pub fn replay(telling: &Telling, file: &Path) -> anyhow::Result<u8> {
    let name = file.display().to_string();
    let input: Box<dyn BufRead> = if name == "-" {
        Box::new(BufReader::new(io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(file).with_context(|| name.clone())?))
    };
    let reader = Reader::new(input).with_context(|| name.clone())?;
    let mut outputs = Outputs::open(telling, reader.header.boot_time)?;
    match run(reader, &mut outputs) {
        Ok(()) => Ok(u8::from(outputs.broken() || outputs.erred())),
        Err(Stopped::Output(output::Error::Closed)) => Ok(0),
        Err(Stopped::Output(error)) => Err(error.into()),
        Err(Stopped::Recording(error)) => Err(error).with_context(|| name.clone()),
    }
}

enum Stopped {
    Output(output::Error),
    Recording(recording::Error),
}

fn run(mut reader: Reader<impl BufRead>, outputs: &mut Outputs) -> Result<(), Stopped> {
    let header = reader.header.clone();
    let mut pipeline = Pipeline::new(Host { netns: header.netns, instance: header.instance });
    outputs.tell(&Event::Ready(header.at, header.ready)).map_err(Stopped::Output)?;
    let mut last = header.at;
    for input in &mut reader {
        match input {
            Ok(input) => {
                last = last.max(input.at());
                outputs.told(|tell| pipeline.push(input, tell)).map_err(Stopped::Output)?;
            }
            // The writer was killed: everything before this line is whole, and what is missing is said.
            Err(error @ recording::Error::CutShort { .. }) => {
                eprintln!("imds-trace: {}; what came after it is missing", printable(&error.to_string(), 512));
                let lost = Input::Lost { at: last, ring_buffer: 0, unreadable: 1 };
                outputs.told(|tell| pipeline.push(lost, tell)).map_err(Stopped::Output)?;
            }
            Err(error) => return Err(Stopped::Recording(error)),
        }
    }
    outputs.told(|tell| pipeline.finish(tell)).and_then(|()| outputs.flush()).map_err(Stopped::Output)
}
