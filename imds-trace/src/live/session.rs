//! What becomes of a record, a fact and a moment of a live run?

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::errand::Errand;
use super::{MAX_SHOWN, boot_time, now};
use crate::config::{self, Tracing};
use crate::kernel::attach::Tracer;
use crate::kernel::backlog::Backlog;
use crate::kernel::decode::{self, Record, Tasks};
use crate::kernel::ring::{self, MachineNames};
use crate::sources::docker::News;
use crate::sources::procfs::{self, Procfs};
use crate::sources::runtime::Runtimes;
use diagnosis::event::{Attached, Event, Missing, Ready};
use diagnosis::identity::cgroup;
use diagnosis::identity::fact::{CUT, Fact, ProcessDetail, Said};
use diagnosis::input::Input;
use diagnosis::net::Timestamp;
use diagnosis::observation::Streams;
use diagnosis::pipeline::{Host, Pipeline};
use diagnosis::printable::printable;
use diagnosis::probe::{Answers, Own};
use diagnosis::recording::{self, Chain, Files, Header, Limits, Notice};
use diagnosis::reporter::{Judged, Reporter};

/// On Nitro instances the board's asset tag is the instance's id.
const ASSET_TAG: &str = "/sys/devices/virtual/dmi/id/board_asset_tag";

/// What takes longer is not waited for at the end: the end of an exchange that nobody closed, or forgetting one.
const MOMENT: Duration = Duration::from_secs(1);

/// A random name for the time since this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The pipeline with everything that feeds it and everything that hears it.
pub(super) struct Session {
    pub(super) names: MachineNames,
    pipeline: Pipeline,
    pub(super) reporter: Reporter,
    /// What we ask ourselves, where only that is told.
    own: Option<Own>,
    recording: Option<Files>,
    procfs: Procfs,
    runtimes: Runtimes,
    streams: Streams,
    tasks: Tasks,
    /// The last of each driver.
    readings: Vec<Said>,
    /// Why there is no recording any more.
    stopped: Option<std::io::Error>,
    /// Until when the hooks were there, once they go.
    ended: Option<Timestamp>,
    lost: u64,
    unreadable: u64,
}

impl Session {
    pub(super) fn begin(
        config: &Tracing,
        tracer: &Tracer,
        names: MachineNames,
        missing: Vec<Missing>,
        errand: &impl Errand,
    ) -> anyhow::Result<Self> {
        let ready = Ready {
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            kernel: read_line("/proc/sys/kernel/osrelease"),
            hooks: tracer.attached(),
            missing,
            features: tracer.features().told(),
        };
        let header = Header {
            recording: recording::VERSION,
            boot_time: boot_time()?,
            at: now()?,
            netns: names.netns,
            pid_namespace: procfs::host_pid_namespace(),
            endpoints: config.endpoints.clone(),
            instance: read_line(ASSET_TAG).filter(|tag| tag.starts_with("i-")),
            ready: ready.clone(),
            chain: Chain { boot: read_line(BOOT_ID), ..Chain::default() },
        };
        let recording = begin_recording(config, &header)?;
        let mut reporter = Reporter::open(&config.telling, header.boot_time)?;
        if !errand.needs_reader() {
            reporter.outlive_reader();
        }
        tell_what_is_watched(&ready, errand.announce());
        reporter.take(&Event::Ready(header.at, ready))?;
        let mut pipeline = Pipeline::new(Host {
            netns: names.netns,
            pid_namespace: header.pid_namespace,
            instance: header.instance.clone(),
        });
        pipeline.tell_packets(reporter.wants_packets());
        pipeline.allow(config.telling.allow.clone());
        let mut streams = Streams::default();
        streams.tick(header.at);
        Ok(Self {
            names,
            pipeline,
            reporter,
            own: errand.asks_for(),
            recording,
            procfs: Procfs::default(),
            runtimes: Runtimes::of_host(&config.host_root),
            streams,
            tasks: Tasks::default(),
            readings: Vec::new(),
            stopped: None,
            ended: None,
            lost: 0,
            unreadable: 0,
        })
    }

    /// Gives an input to the recording and to the pipeline, in this order: what is told was recorded before.
    fn push(&mut self, input: Input) -> anyhow::Result<()> {
        self.keep(|recording| recording.write(&input));
        self.tell(|pipeline, tell| pipeline.push(input, tell))
    }

    /// Tells what the pipeline says; only what is our own, at the end, where we ask ourselves.
    fn tell(&mut self, run: impl FnOnce(&mut Pipeline, &mut dyn FnMut(&Event))) -> anyhow::Result<()> {
        let pipeline = &mut self.pipeline;
        match &mut self.own {
            Some(own) => run(pipeline, &mut |event| own.hear(event)),
            None => self.reporter.take_all(|tell| run(pipeline, tell))?,
        }
        Ok(())
    }

    pub(super) fn fact(&mut self, said: Said) -> anyhow::Result<()> {
        self.push(Input::Fact(Fact { at: now()?, said }))
    }

    /// Tells what the network card's driver counts, where that has changed.
    pub(super) fn exceeded(&mut self, readings: Vec<Said>) -> anyhow::Result<()> {
        for said in readings {
            if !self.readings.contains(&said) {
                let Said::LinkLocalExceeded { interface, .. } = &said else { continue };
                self.readings
                    .retain(|old| !matches!(old, Said::LinkLocalExceeded { interface: of, .. } if of == interface));
                self.readings.push(said.clone());
                self.fact(said)?;
            }
        }
        Ok(())
    }

    /// Tells what has changed of the host's surroundings, if anything has.
    pub(super) fn surroundings(&mut self, changed: Option<Said>) -> anyhow::Result<()> {
        changed.map_or(Ok(()), |said| self.fact(said))
    }

    pub(super) fn news(&mut self, told: News) -> anyhow::Result<()> {
        match told {
            News::Said(said) => self.fact(*said),
            News::Listed { host, again: false } => {
                log::info!("the Docker engine at {host} has listed its containers");
                Ok(())
            }
            News::Listed { host, again: true } => {
                diagnosis::say!("imds-trace: the Docker engine at {} answers again", printable(&host, MAX_SHOWN));
                Ok(())
            }
            News::Unreachable(why) => {
                diagnosis::say!(
                    "imds-trace: warning: {}; it is asked again until it answers",
                    printable(&why, MAX_SHOWN)
                );
                Ok(())
            }
        }
    }

    /// Tells which containers have ended that no engine may tell of.
    pub(super) fn departed(&mut self) -> anyhow::Result<()> {
        for (id, user) in self.runtimes.departed() {
            self.fact(Said::ContainerGone { id, user: Some(user) })?;
        }
        Ok(())
    }

    /// Takes in at most `limit` of the records that wait, and none behind the first that is later than `until`: in a storm some always
    /// wait. Gives how many.
    pub(super) fn drain(&mut self, records: &mut Backlog, limit: usize, until: Timestamp) -> anyhow::Result<usize> {
        let mut taken = 0;
        while taken < limit {
            let (names, streams, tasks) = (&self.names, &mut self.streams, &mut self.tasks);
            let read = records.next(|bytes| {
                let record = ring::read(bytes)?;
                // Without its task it is the connect of an attempt: /proc was asked then.
                let is_told = matches!(record, Record::Attempt(_, Some(_)) | Record::Connect(_, Some(_)));
                Some((decode::from_record(record, names, streams, tasks)?, is_told))
            });
            let Some(read) = read else { break };
            taken += 1;
            let Some((mut input, is_told)) = read else {
                self.unreadable += 1;
                continue;
            };
            if self.ended.is_some_and(|ended| input.at() > ended) {
                continue;
            }
            self.disown(&mut input);
            let connecting = if is_told { self.whom_to_ask(&input) } else { None };
            let at = input.at();
            let told = cgroup_told(&input);
            self.push(input)?;
            // At once: the process may not live long, nor its container.
            let detail = connecting.and_then(|pid| self.describe(pid));
            let read = detail.as_ref().and_then(|detail| detail.cgroup.clone());
            if let Some(detail) = detail {
                self.push(Input::Fact(Fact { at, said: Said::Process(detail) }))?;
            }
            // /proc knows every hierarchy, the kernel half told of one: from the root on, while /proc begins at our own cgroup.
            let told = told.filter(|path| read.is_none() || cgroup::read_path(path).is_some());
            if let Some(introduced) = told.or(read).and_then(|path| self.runtimes.introduce(at, &path)) {
                self.push(Input::Fact(Fact { at, said: Said::Container(introduced) }))?;
            }
            if at > until {
                break;
            }
        }
        if taken > 0 {
            self.reporter.flush()?;
        }
        Ok(taken)
    }

    /// Where we ask for somebody, the kernel's word on our own cgroup does not count either.
    fn disown(&self, input: &mut Input) {
        if let Input::Fact(Fact { said: Said::Attempting(task) | Said::Connecting(task), .. }) = input
            && self.own.as_ref().is_some_and(|own| own.is_ours(task.pid))
        {
            Arc::make_mut(&mut task.told).cgroup = None;
        }
    }

    /// The process that connects, if /proc may know more of it. Where we ask ourselves it is always asked.
    fn whom_to_ask(&mut self, input: &Input) -> Option<u32> {
        let Input::Fact(Fact { at, said: Said::Attempting(task) | Said::Connecting(task) }) = input else {
            return None;
        };
        let is_ours = self.own.as_ref().is_some_and(|own| own.is_ours(task.pid));
        (is_ours || self.procfs.is_needed(*at, task)).then_some(task.pid)
    }

    /// What /proc says of a process. Where we ask for a container, our own cgroup is not the one that counts.
    fn describe(&mut self, pid: u32) -> Option<ProcessDetail> {
        match &self.own {
            Some(own) if own.is_ours(pid) && own.container().is_some() => None,
            Some(own) if own.is_ours(pid) => {
                self.procfs.describe(pid).map(|detail| ProcessDetail { container: None, ..detail })
            }
            _ => self.procfs.describe(pid),
        }
    }

    /// Lets time pass: closes what has gone quiet.
    pub(super) fn tick(&mut self, at: Timestamp) -> anyhow::Result<()> {
        // Only a tick that leads to something is an input: an idle host's recording does not grow.
        if self.pipeline.due().is_some_and(|due| due <= at) {
            self.push(Input::Tick { at })?;
        }
        self.streams.tick(at);
        self.reporter.flush()?;
        self.keep(|recording| recording.flush(at));
        Ok(())
    }

    /// Writes to the recording, if there is one. An error, a full disk mostly, ends it and the run; what was seen so far is told.
    fn keep(&mut self, write: impl FnOnce(&mut Files) -> std::io::Result<()>) {
        if let Some(Err(error)) = self.recording.as_mut().map(write) {
            self.recording = None;
            self.stopped = Some(error);
        }
    }

    /// How long nothing falls due.
    pub(super) fn rest(&self, at: Timestamp) -> Duration {
        self.pipeline.due().map_or(Duration::MAX, |due| due.since(at))
    }

    /// Will nothing of what was seen so far lead to anything within a moment?
    pub(super) fn is_at_rest(&self, at: Timestamp) -> bool {
        self.pipeline.due().is_none_or(|due| due > at.after(MOMENT))
    }

    /// Must the run end?
    pub(super) fn must_end(&self) -> bool {
        self.stopped.is_some()
    }

    /// Says what was lost by `at`, before what came by then is told: whoever concludes from it is to know.
    pub(super) fn note_lost(&mut self, lost: u64, at: Timestamp) -> anyhow::Result<()> {
        if lost == self.lost && self.unreadable == 0 {
            return Ok(());
        }
        let (ring_buffer, unreadable) = (lost - self.lost, std::mem::take(&mut self.unreadable));
        self.lost = lost;
        self.push(Input::Lost { at, ring_buffer, unreadable })
    }

    pub(super) fn header_errors(&mut self, (v4, v6): (u64, u64)) -> anyhow::Result<()> {
        self.fact(Said::InHdrErrors { netns: self.names.netns, v4, v6 })
    }

    /// From this moment on hooks go: nothing later is taken in.
    pub(super) fn ends(&mut self, at: Timestamp) {
        self.ended = Some(at);
    }

    /// Ends it: closes what is open and tells the report, and before it what we were answered, if we asked.
    pub(super) fn finish(mut self, lost: u64, answers: Option<Answers>) -> anyhow::Result<Judged> {
        let at = now()?;
        if self.stopped.is_some() {
            // The run ends with its recording: what else went on in its time was not seen.
            self.unreadable += 1;
        }
        self.note_lost(lost, at)?;
        self.push(Input::Tick { at })?;
        let closed = self.recording.take().map(|recording| recording.close(at)).transpose();
        let closed = closed.unwrap_or_else(|error| {
            self.stopped = Some(error);
            None
        });
        self.tell(|pipeline, tell| pipeline.finish(tell))?;
        if let Some(own) = self.own.take() {
            self.reporter.take_all(|tell| own.tell(answers.as_ref(), tell))?;
        }
        let judged = self.reporter.finish(Vec::new())?;
        if let Some(closed) = closed {
            let path = printable(&closed.path.display().to_string(), MAX_SHOWN);
            diagnosis::say!("imds-trace: recorded in {path}; SHA-256 {}", closed.digest);
        }
        match self.stopped {
            Some(error) => Err(anyhow::Error::new(error).context("--record: the recording ends before the run")),
            None => Ok(judged),
        }
    }
}

/// The cgroup path of a task that connects, as the kernel half told it, if it told all of it.
fn cgroup_told(input: &Input) -> Option<String> {
    let Input::Fact(Fact { said: Said::Attempting(task) | Said::Connecting(task), .. }) = input else { return None };
    task.told.cgroup.clone().filter(|path| !path.starts_with(CUT))
}

/// When a file of it is put away.
pub(super) fn limits(record: &config::Record) -> Limits {
    Limits { size: record.size, age: record.age, keep: record.keep }
}

/// Begins the recording that was asked for; says so if an earlier one there was not closed.
fn begin_recording(config: &Tracing, header: &Header) -> anyhow::Result<Option<Files>> {
    let Some(record) = &config.record else { return Ok(None) };
    let (files, notice) = Files::begin(&record.path, header.clone(), limits(record))
        .with_context(|| format!("--record {}", record.path.display()))?;
    if let Some(Notice { kept, reaches }) = notice {
        let reaches = match reaches {
            Some((from, until)) => format!("it reaches from {from} to {until}, and its end is missing"),
            None => "nothing of it can be read".to_owned(),
        };
        let [path, kept] = [&record.path, &kept].map(|path| printable(&path.display().to_string(), MAX_SHOWN));
        diagnosis::say!(
            "imds-trace: --record {path}: an earlier recording there was not closed: {reaches}; it is kept as {kept}"
        );
    }
    Ok(Some(files))
}

/// What is watched, in words.
pub(super) fn watched(hooks: &[Attached]) -> String {
    let mut interfaces: Vec<&str> = Vec::new();
    let mut tracepoints: Vec<&str> = Vec::new();
    for hook in hooks {
        match hook {
            Attached::Tc { interface, .. } if !interfaces.contains(&interface.as_str()) => interfaces.push(interface),
            Attached::Tc { .. } => {}
            Attached::Tracepoint { name } => tracepoints.push(name),
            Attached::Cgroup { .. } | Attached::Capture { .. } => {}
        }
    }
    let interfaces = if interfaces.is_empty() { "no interface yet".to_owned() } else { interfaces.join(", ") };
    format!("watching {} and {}", printable(&interfaces, MAX_SHOWN), tracepoints.join(", "))
}

fn tell_what_is_watched(ready: &Ready, until: &str) {
    diagnosis::say!("imds-trace: {}{until}", watched(&ready.hooks));
    for missing in &ready.missing {
        diagnosis::say!("imds-trace: warning: without {}: {}", missing.hook, printable(&missing.why, MAX_SHOWN));
    }
}

fn read_line(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
