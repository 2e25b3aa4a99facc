//! What follows from somebody's captures?

use super::broken::Broken;
use super::files::Given;
use super::{MAX_SHOWN, files};
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
    let names: Vec<String> = given.iter().map(|file| file.name.clone()).collect();
    let sources = given.into_iter().map(source).collect();
    let mut reader = Reader::of(sources, endpoints).map_err(|failed| unusable(&failed, &names))?;
    let mut pipeline = Pipeline::of_capture();
    // Times of a capture count from the Unix epoch.
    let mut reporter = Reporter::open(telling, BootTime(0))?;
    pipeline.tell_packets(reporter.wants_packets());
    pipeline.allow(telling.allow.clone());
    let mut last = reader.started();
    let mut broken = Broken::default();
    reporter.take(&Event::Ready(last, reader.ready()))?;
    for read in &mut reader {
        let input = match read {
            Ok(input) => input,
            // Everything up to here could be read, and what is missing is said.
            Err(failed) => {
                broken.note(failed.missing());
                Input::Lost { at: last, ring_buffer: 0, unreadable: 1 }
            }
        };
        last = last.max(input.at());
        reporter.take_all(|tell| pipeline.push(input, tell))?;
    }
    let broken = broken.tell();
    for note in reader.notes() {
        crate::say!("imds-trace: {}", printable(&note, MAX_SHOWN));
    }
    reporter.take_all(|tell| pipeline.finish(tell))?;
    Ok(reporter.finish(broken)?)
}

/// The sentence about captures of which nothing can be told, because of one of them.
fn unusable(failed: &Failed, names: &[String]) -> anyhow::Error {
    let spoilt: Vec<&str> = std::iter::once(&failed.name).chain(&failed.also).map(String::as_str).collect();
    let also = match &failed.also[..] {
        [] => String::new(),
        also => format!("; nor can {} be read", also.join(", ")),
    };
    let without = also + &files::without(&spoilt, names);
    match &failed.error {
        Error::Unread(_) | Error::Foreign(_) | Error::Nothing(_) | Error::NoCapture | Error::Open(_) => {
            anyhow::anyhow!("{failed}{without}")
        }
        error => anyhow::anyhow!("{}: a capture of which nothing can be read: {error}{without}", failed.name),
    }
}
