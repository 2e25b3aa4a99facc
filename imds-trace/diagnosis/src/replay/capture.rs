//! What follows from somebody's captures?

use super::MAX_SHOWN;
use super::files::Given;
use crate::capture::{Error, Failed, From, Reader, Source};
use crate::config::{self, Replay, Telling};
use crate::event::Event;
use crate::input::Input;
use crate::net::BootTime;
use crate::output;
use crate::pipeline::Pipeline;
use crate::printable::printable;
use crate::reporter::{Judged, Reporter};

/// Replays captures of one host, as one. Gives the exit code.
pub fn replay(given: Vec<Given>, telling: &Telling, asked: &Replay) -> anyhow::Result<u8> {
    match tell(given, telling, asked) {
        Ok(judged) => Ok(judged.code()),
        Err(error) if matches!(error.downcast_ref(), Some(output::Error::Closed)) => Ok(0),
        Err(error) => Err(error),
    }
}

fn tell(given: Vec<Given>, telling: &Telling, asked: &Replay) -> anyhow::Result<Judged> {
    let endpoints = match &asked.endpoints {
        Some(endpoints) => endpoints.clone(),
        None => config::endpoints(&[])?,
    };
    let source =
        |Given { name, path, stream, .. }| Source { name, from: stream.map_or(From::File(path), From::Stream) };
    let mut reader = Reader::of(given.into_iter().map(source).collect(), endpoints).map_err(unusable)?;
    let mut pipeline = Pipeline::of_capture();
    // Times of a capture count from the Unix epoch.
    let mut reporter = Reporter::open(telling, BootTime(0))?;
    pipeline.tell_packets(reporter.wants_packets());
    pipeline.allow(telling.allow.clone());
    let mut last = reader.started();
    reporter.take(&Event::Ready(last, reader.ready()))?;
    for read in &mut reader {
        let input = match read {
            Ok(input) => input,
            // Everything up to here could be read, and what is missing is said.
            Err(failed) => {
                crate::say!("imds-trace: {}; what came after it is missing", printable(&failed.to_string(), MAX_SHOWN));
                Input::Lost { at: last, ring_buffer: 0, unreadable: 1 }
            }
        };
        last = last.max(input.at());
        reporter.take_all(|tell| pipeline.push(input, tell))?;
    }
    for note in reader.notes() {
        crate::say!("imds-trace: {}", printable(&note, MAX_SHOWN));
    }
    reporter.take_all(|tell| pipeline.finish(tell))?;
    Ok(reporter.finish(Vec::new())?)
}

/// The sentence about captures of which nothing can be told.
fn unusable(failed: Failed) -> anyhow::Error {
    match &failed.error {
        Error::Unread(_) | Error::Foreign(_) | Error::Empty | Error::NoCapture | Error::Open(_) => failed.into(),
        error => anyhow::anyhow!("{}: a capture of which nothing can be read: {error}", failed.name),
    }
}
