//! What do recordings say, or somebody's capture? Feeds them to the same pipeline as the live shell.
//!
//! Files of one run are one list of inputs. Several runs of one host are told one after the other, each by a pipeline of its own, with
//! one report of all. Several hosts are told one after the other, each with its report, and one sum. What of a file is not as it was written is left out, and said.

mod broken;
mod capture;
mod files;

use std::borrow::Cow;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::allow::AllowList;
use crate::config::{OutputSpec, Replay};
use crate::event::Event;
use crate::exchange::ExchangeId;
use crate::input::Input;
use crate::net::{BootTime, Timestamp};
use crate::output;
use crate::pipeline::{Host, Pipeline};
use crate::printable::printable;
use crate::progress;
use crate::recording::{self, Error};
use crate::reporter::{Judged, Reporter};
use broken::Broken;
use files::{Given, Run, Source};

/// Bytes of a sentence on stderr.
const MAX_SHOWN: usize = 2048;

/// Replays recordings, or captures; the first bytes say which they are. Gives the exit code: 0, or 1 if what was asserted failed. A
/// recording or capture of which nothing can be used is an error that names the line or the packet.
pub fn replay(config: Replay) -> anyhow::Result<u8> {
    let telling = config.telling.clone();
    if let Some(address) = telling.outputs.iter().find_map(OutputSpec::address) {
        bail!("--output metrics={address}: nobody is waited for here; metrics=PATH.prom has what is left at the end");
    }
    let outputs: Vec<&Path> = telling.outputs.iter().filter_map(|output| output.path.as_deref()).collect();
    recording::spare(outputs.iter().copied())?;
    let given = files::given(&config.files)?;
    let _shown = progress::Replaying::begin(files::bytes(&given));
    let itself = |path: &Path| path.canonicalize().ok().filter(|path| path.is_file());
    for file in &given {
        if outputs.iter().any(|output| itself(output).is_some_and(|output| itself(&file.path) == Some(output))) {
            bail!("{}: an output goes to the same file", file.name);
        }
    }
    if given.iter().any(|file| file.is_capture) {
        files::are_captures(&given)?;
        return capture::replay(given, &telling, &config);
    }
    // A run that was killed before it had written its first line leaves one.
    let told = |file: &Given| file.nothing.map(|nothing| format!("{}: {nothing}", file.name));
    let empty: Vec<String> = given.iter().filter_map(told).collect();
    let given: Vec<Given> = given.into_iter().filter(|file| file.nothing.is_none()).collect();
    if given.is_empty() {
        bail!("{}", empty.join("; "));
    }
    if config.endpoints.is_some() {
        bail!("--endpoint is for captures: a recording says itself which addresses were watched");
    }
    let names: Vec<String> = given.iter().map(|file| file.name.clone()).collect();
    let hosts = files::hosts(given)?;
    let several = hosts.len() > 1;
    if let (true, Some(kind)) = (several, telling.outputs.iter().find_map(output::tells_one_host)) {
        let names = hosts.iter().map(|host| host.runs[0].sources[0].name.as_str()).collect::<Vec<_>>().join(", ");
        bail!("--output {kind} tells of one host, and these are of several ({names}): replay them one by one");
    }
    // Times of all runs are told by the clock that started first, so that none is negative.
    let runs = hosts.iter().flat_map(|host| &host.runs);
    let boot_time = runs.map(Run::boot_time).min_by_key(|time| time.0).context("no recording")?;
    let mut replaying = Replaying {
        reporter: Reporter::open(&telling, boot_time)?,
        allow: telling.allow.clone(),
        boot_time,
        verbose: config.verbosity > 0,
        broken: Broken::default(),
        names,
        unheard: 0,
        is_told: false,
        inputs: 0,
        runs: 0,
        exchanges: 0,
    };
    for why in empty {
        // Whatever it was to tell of, nobody knows.
        replaying.broken.note(why);
        replaying.unheard += 1;
    }
    if telling.exit_code || !telling.expectations.is_empty() {
        // What was asserted is judged, whoever has stopped reading.
        replaying.reporter.outlive_reader();
    }
    let told = hosts.into_iter().try_fold(Judged::default(), |judged, host| {
        let first = &host.runs[0];
        let at = first.header().at.after(later(first, boot_time));
        replaying.reporter.begin_host(at, &host.name, several)?;
        let its: Vec<String> = host.runs.iter().flat_map(|run| &run.sources).map(|file| file.name.clone()).collect();
        host.runs.into_iter().try_for_each(|run| replaying.run(run))?;
        anyhow::Ok(judged.and(replaying.finish(&its)?))
    });
    let told = told.and_then(|judged| {
        replaying.reporter.finish_hosts()?;
        Ok(judged)
    });
    match told {
        Ok(judged) => Ok(judged.code()),
        Err(error) if matches!(error.downcast_ref(), Some(output::Error::Closed)) => Ok(0),
        Err(error) => Err(error),
    }
}

/// By how much a run's clock is behind the one that times are told by.
fn later(run: &Run, boot_time: BootTime) -> Duration {
    Duration::from_nanos(u64::try_from(run.boot_time().0.saturating_sub(boot_time.0)).unwrap_or(0))
}

struct Replaying {
    reporter: Reporter,
    allow: Option<AllowList>,
    boot_time: BootTime,
    verbose: bool,
    broken: Broken,
    /// Of all files, as they were given.
    names: Vec<String>,
    /// Losses that are not told yet.
    unheard: u64,
    /// Was a run of this host told?
    is_told: bool,
    /// Inputs that could be used.
    inputs: u64,
    /// Runs begun.
    runs: u64,
    /// The highest number of an exchange in the runs before.
    exchanges: u64,
}

impl Replaying {
    /// Replays the files of one run.
    fn run(&mut self, run: Run) -> anyhow::Result<()> {
        let header = run.header().clone();
        let later = u64::try_from(later(&run, self.boot_time).as_nanos()).unwrap_or(0);
        let (netns, pid_namespace) = (header.netns, header.pid_namespace);
        let mut pipeline = Pipeline::new(Host { netns, pid_namespace, instance: header.instance });
        pipeline.tell_packets(self.reporter.wants_packets());
        pipeline.allow(self.allow.clone());
        self.runs += 1;
        let mut telling =
            Telling { later, before: self.exchanges, run: self.runs, ready: Some((header.at, header.ready)) };
        let mut last = header.at;
        let known = self.broken.count();
        for source in run.sources {
            if let Some(why) = &source.missing {
                self.broken.note(why.clone());
                last = last.max(source.header().at);
                self.lose(&mut pipeline, &mut telling, last, 1)?;
            }
            if self.verbose {
                source.notes().iter().for_each(|note| crate::say!("imds-trace: {}", printable(note, MAX_SHOWN)));
            }
            let Source { name, reader, .. } = source;
            let sealed = reader.why_unverified().is_none();
            for input in reader {
                let error = match input {
                    Ok(input) => {
                        last = last.max(input.at());
                        self.inputs += 1;
                        if self.unheard > 0 {
                            self.tell_loss(&mut pipeline, &mut telling, last)?;
                        }
                        self.push(&mut pipeline, &mut telling, input)?;
                        continue;
                    }
                    Err(error) => error,
                };
                if !sealed && !error.leaves_a_rest() {
                    bail!("{name}: {error}{}", files::without(&[name.as_str()], &self.names));
                }
                // Everything before it is whole, and what is missing is said.
                let (goes_on, lines) = match &error {
                    Error::Broken { first, last, .. } => (true, last.saturating_sub(*first) + 1),
                    _ => (false, 1),
                };
                self.broken.note(format!("{name}: {error}"));
                self.lose(&mut pipeline, &mut telling, last, lines)?;
                if !goes_on {
                    break;
                }
            }
        }
        if self.inputs == 0 && self.broken.count() > known {
            // Nothing of it can be used; other runs of its host may be told.
            return Ok(());
        }
        if self.unheard > 0 {
            self.tell_loss(&mut pipeline, &mut telling, last)?;
        }
        self.is_told = true;
        self.say_ready(&mut telling)?;
        self.told(&mut telling, |tell| pipeline.finish(tell))
    }

    /// Tells what is attached before anything else, and not before anything could be used.
    fn say_ready(&mut self, telling: &mut Telling) -> anyhow::Result<()> {
        let Some((at, ready)) = telling.ready.take() else { return Ok(()) };
        Ok(self.reporter.take(&Event::Ready(at.after(Duration::from_nanos(telling.later)), ready))?)
    }

    /// Counts the loss of so many lines. It is told once there is something to tell of.
    fn lose(
        &mut self,
        pipeline: &mut Pipeline,
        telling: &mut Telling,
        at: Timestamp,
        lines: u64,
    ) -> anyhow::Result<()> {
        self.unheard += lines;
        if self.inputs == 0 { Ok(()) } else { self.tell_loss(pipeline, telling, at) }
    }

    fn tell_loss(&mut self, pipeline: &mut Pipeline, telling: &mut Telling, at: Timestamp) -> anyhow::Result<()> {
        let unreadable = std::mem::take(&mut self.unheard);
        self.push(pipeline, telling, Input::Lost { at, ring_buffer: 0, unreadable })
    }

    fn push(&mut self, pipeline: &mut Pipeline, telling: &mut Telling, input: Input) -> anyhow::Result<()> {
        self.say_ready(telling)?;
        let later = telling.later;
        self.told(telling, |tell| pipeline.push(input.later(later), tell))
    }

    fn told(&mut self, telling: &mut Telling, run: impl FnOnce(&mut dyn FnMut(&Event))) -> anyhow::Result<()> {
        let Self { reporter, exchanges, .. } = self;
        let (before, run_number) = (telling.before, telling.run);
        reporter.take_all(|tell| {
            run(&mut |event| {
                let event = numbered(event, before, run_number);
                if let Event::Exchange(exchange) = event.as_ref() {
                    *exchanges = (*exchanges).max(exchange.exchange.id.0);
                }
                tell(&event);
            });
        })?;
        Ok(())
    }

    /// Tells the report about a host, out of these files.
    fn finish(&mut self, its: &[String]) -> anyhow::Result<Judged> {
        if !std::mem::take(&mut self.is_told)
            && let Some(why) = self.broken.first()
        {
            let its: Vec<&str> = its.iter().map(String::as_str).collect();
            bail!("{why}; nothing of it can be used{}", files::without(&its, &self.names));
        }
        (self.unheard, self.inputs) = (0, 0);
        let broken = self.broken.tell();
        Ok(self.reporter.finish(broken)?)
    }
}

/// What changes in the events of one run, for they stand beside those of others.
struct Telling {
    /// By how many nanoseconds its clock is behind.
    later: u64,
    /// Exchanges of the runs before.
    before: u64,
    /// Number of the run.
    run: u64,
    ready: Option<(Timestamp, crate::event::Ready)>,
}

/// An event whose exchanges are numbered on from those of the runs before.
fn numbered(event: &Event, before: u64, run: u64) -> Cow<'_, Event> {
    /// More findings than a run has.
    const FINDINGS: u64 = 1 << 40;
    let renumber = |id: &mut ExchangeId| id.0 += before;
    match event {
        Event::Exchange(exchange) if before > 0 => {
            let mut exchange = Rc::clone(exchange);
            renumber(&mut Rc::make_mut(&mut exchange).exchange.id);
            Cow::Owned(Event::Exchange(exchange))
        }
        Event::Settled(exchanges) if before > 0 => {
            let mut exchanges = exchanges.clone();
            exchanges.iter_mut().for_each(renumber);
            Cow::Owned(Event::Settled(exchanges))
        }
        Event::Finding(at, finding) => {
            let mut finding = finding.clone();
            finding.id.0 += run * FINDINGS;
            finding.evidence.iter_mut().for_each(renumber);
            Cow::Owned(Event::Finding(*at, finding))
        }
        event => Cow::Borrowed(event),
    }
}
