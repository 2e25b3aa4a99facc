//! What happens on this host now? The shell around the pipeline: owns the runtime, the clock, the signals and every source.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::BufWriter;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::time::{ClockId, clock_gettime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::config::Watch;
use crate::event::{Event, Ready};
use crate::identity::docker::{self, News};
use crate::identity::fact::{Fact, Said};
use crate::identity::procfs::{self, Procfs};
use crate::input::{self, Input, Record};
use crate::interfaces::{self, Change, Interfaces, Link};
use crate::kernel::attach::{ProbeLog, Tracer};
use crate::kernel::btf::Layout;
use crate::kernel::features;
use crate::kernel::plan::{self, Why};
use crate::kernel::ring::{self, MachineNames, Records};
use crate::kernel::symbols::Symbols;
use crate::net::{BootTime, Ifindex, Timestamp};
use crate::output::{self, Outputs};
use crate::pipeline::{Host, Pipeline};
use crate::printable::printable;
use crate::recording::{self, Header};

/// How long the engine may take to list its containers before tracing goes on without; it tells the rest when it can.
const ENGINE_PATIENCE: Duration = Duration::from_secs(2);
/// How often quiet exchanges are closed and losses counted.
const TICK: Duration = Duration::from_millis(50);
/// Records taken from the ring buffer before anything else gets its turn.
const BATCH: usize = 4096;
/// Facts of the engine that wait to be taken at most.
const BACKLOG: usize = 1024;
/// Bytes of a message on stderr.
const MAX_SHOWN: usize = 2048;
/// On Nitro instances the board's asset tag is the instance's id.
const ASSET_TAG: &str = "/sys/devices/virtual/dmi/id/board_asset_tag";

/// Traces until told to stop. Gives whether what was asserted held.
pub fn watch(config: Watch) -> anyhow::Result<bool> {
    let missing = features::missing_capabilities();
    if !missing.is_empty() {
        bail!("watch needs {}: run it as root", missing.join(", "));
    }
    let level = if config.verbosity > 0 { log::LevelFilter::Debug } else { log::LevelFilter::Warn };
    env_logger::Builder::new().filter(Some("imds_trace"), level).format_timestamp(None).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        match run(config).await {
            Err(error) if matches!(error.downcast_ref(), Some(output::Error::Closed)) => Ok(true),
            result => result,
        }
    })
}

async fn run(config: Watch) -> anyhow::Result<bool> {
    // From here on a signal ends the run in order, even while it starts.
    let mut interrupted = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminated = signal(SignalKind::terminate()).context("listen for SIGTERM")?;

    if let Some(path) = &config.ready_file
        && path.exists()
    {
        // An earlier run's would say that this one is ready.
        fs::remove_file(path).with_context(|| format!("--ready-file {}", path.display()))?;
    }
    let layout = Layout::of_this_kernel()?;
    let errors_before = procfs::in_hdr_errors();
    let mut tracer = Tracer::load(&layout, &config.endpoints, config.verbosity > 1)?;
    let probe_log = if config.verbosity > 1 { tracer.log() } else { None };
    let (interfaces, changes) = interfaces::open()?;
    let mut names = MachineNames {
        netns: procfs::own_netns(),
        endpoints: config.endpoints.clone(),
        interfaces: BTreeMap::new(),
        reasons: layout.drop_reasons(),
        symbols: RefCell::new(Symbols::load()),
    };
    drop(layout);
    let mut follower =
        Follower { interfaces, changes, links: BTreeMap::new(), routes: BTreeSet::new(), config: &config };
    follower.begin(&mut tracer, &mut names).await?;

    let (news_sender, mut news) = mpsc::channel(BACKLOG);
    let engine = config.docker_host.clone().or_else(|| std::env::var("DOCKER_HOST").ok());
    tokio::spawn(docker::follow(engine.unwrap_or_else(|| docker::DEFAULT_HOST.to_owned()), news_sender));
    let introduced = introductions(&mut news).await;

    let mut session = Session::begin(&config, &tracer, names, follower.missing(&tracer))?;
    session.header_errors(errors_before)?;
    for said in introduced {
        session.fact(said)?;
    }
    session.outputs.flush()?;
    if let Some(path) = &config.ready_file {
        fs::write(path, b"").with_context(|| format!("--ready-file {}", path.display()))?;
    }

    let records = tracer.take_records().context("the ring buffer is there only once")?;
    let mut records = readable(records).context("watch the ring buffer")?;
    let mut probe_log = probe_log.map(readable).transpose().context("watch the probes' log")?;
    let deadline = config.duration.map(|duration| Instant::now() + duration);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = interrupted.recv() => break,
            _ = terminated.recv() => break,
            () = until(deadline) => break,
            Some(told) = news.recv() => session.news(told)?,
            Some(change) = follower.changes.recv() => follower.change(change, &mut tracer, &mut session.names).await,
            () = read_probe_log(&mut probe_log), if probe_log.is_some() => {}
            _ = tick.tick() => {
                // The time first: what the ring buffer holds now is not later.
                let at = now()?;
                session.drain(records.get_mut(), usize::MAX, at)?;
                session.tick(&tracer, at)?;
            }
            ready = records.readable_mut() => {
                let mut guard = ready.context("watch the ring buffer")?;
                if session.drain(guard.get_inner_mut(), BATCH, Timestamp(u64::MAX))? < BATCH {
                    guard.clear_ready();
                }
            }
        }
    }
    // The lost ones are asked for while there is somebody to ask; then nothing new comes, and what has come is read.
    let lost = tracer.lost();
    let errors_after = procfs::in_hdr_errors();
    drop(tracer);
    session.drain(records.get_mut(), usize::MAX, Timestamp(u64::MAX))?;
    session.header_errors(errors_after)?;
    session.finish(lost)
}

/// Lets the runtime watch a file descriptor of the kernel room.
fn readable<T: AsRawFd>(source: T) -> std::io::Result<AsyncFd<T>> {
    // SAFETY: `Records` and `ProbeLog`, the only ones given here, own one file descriptor, give always the same one, and keep it
    // open as long as they live, which the AsyncFd sees to.
    unsafe { Ok(AsyncFd::register_with_interest(source, Interest::READABLE)?) }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn read_probe_log(log: &mut Option<AsyncFd<ProbeLog>>) {
    let Some(log) = log else { return };
    if let Ok(mut guard) = log.readable_mut().await {
        guard.get_inner_mut().flush();
        guard.clear_ready();
    }
}

/// What the engine tells before it says that this was all.
async fn introductions(news: &mut mpsc::Receiver<News>) -> Vec<Said> {
    let mut said = Vec::new();
    let listing = async {
        while let Some(told) = news.recv().await {
            match told {
                News::Said(fact) => said.push(fact),
                News::Listed => break,
                News::Unreachable(why) => {
                    eprintln!("imds-trace: warning: {why}: containers are known by id and address only");
                    break;
                }
            }
        }
    };
    if tokio::time::timeout(ENGINE_PATIENCE, listing).await.is_err() {
        eprintln!("imds-trace: warning: the Docker engine is slow to answer; going on without its list of containers");
    }
    said
}

/// Keeps the tracer on the right interfaces.
struct Follower<'a> {
    interfaces: Interfaces,
    changes: mpsc::Receiver<Change>,
    links: BTreeMap<Ifindex, Link>,
    routes: BTreeSet<Ifindex>,
    config: &'a Watch,
}

impl Follower<'_> {
    async fn begin(&mut self, tracer: &mut Tracer, names: &mut MachineNames) -> anyhow::Result<()> {
        self.links = self.interfaces.list().await?.into_iter().map(|link| (link.index, link)).collect();
        for asked in self.config.interfaces.iter().filter(|asked| !asked.contains('*')) {
            if !self.links.values().any(|link| link.name == *asked) {
                bail!("--interface {asked}: no such interface in this network namespace");
            }
        }
        self.routes = self.interfaces.towards(&self.config.endpoints).await;
        let failed = self.attach(tracer, names);
        if !tracer.attached().iter().any(|attached| matches!(attached, crate::event::Attached::Tc { .. })) {
            match failed.first() {
                Some(missing) => bail!("{}", missing.why),
                // Nothing to listen on yet; a bridge or a route may come. Drops are seen all the same.
                None => eprintln!(
                    "imds-trace: warning: no interface to listen on yet (no route to the endpoints, no bridge)"
                ),
            }
        }
        Ok(())
    }

    fn attach(&self, tracer: &mut Tracer, names: &mut MachineNames) -> Vec<crate::event::Missing> {
        for link in self.links.values() {
            names.interfaces.insert(link.index, link.name.clone());
        }
        let wanted = plan::plan(&self.links, &self.routes, &self.config.interfaces);
        let (new, failed) = tracer.follow(&wanted);
        for new in new {
            let why = match new.why {
                Why::Asked => "--interface",
                Why::Route => "the route to an endpoint",
                Why::Bridge => "a container bridge",
            };
            log::info!("listening on {} ({why})", printable(&new.name, MAX_SHOWN));
        }
        for missing in &failed {
            log::warn!("{}", printable(&missing.why, MAX_SHOWN));
        }
        failed
    }

    fn missing(&self, tracer: &Tracer) -> Vec<crate::event::Missing> {
        tracer.missing().to_vec()
    }

    async fn change(&mut self, change: Change, tracer: &mut Tracer, names: &mut MachineNames) {
        let mut routes_changed = false;
        let mut next = Some(change);
        while let Some(change) = next {
            match change {
                Change::Link(link) => drop(self.links.insert(link.index, link)),
                Change::Gone(index) => drop(self.links.remove(&index)),
                Change::Routes => routes_changed = true,
            }
            next = self.changes.try_recv().ok();
        }
        if routes_changed {
            self.routes = self.interfaces.towards(&self.config.endpoints).await;
        }
        self.attach(tracer, names);
    }
}

/// The pipeline with everything that feeds it and everything that hears it.
struct Session {
    names: MachineNames,
    pipeline: Pipeline,
    outputs: Outputs,
    recording: Option<recording::Writer<BufWriter<fs::File>>>,
    procfs: Procfs,
    lost: u64,
    unreadable: u64,
}

impl Session {
    fn begin(
        config: &Watch,
        tracer: &Tracer,
        names: MachineNames,
        missing: Vec<crate::event::Missing>,
    ) -> anyhow::Result<Self> {
        let ready = Ready {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: read_line("/proc/sys/kernel/osrelease").unwrap_or_default(),
            hooks: tracer.attached(),
            missing,
        };
        let header = Header {
            recording: recording::VERSION,
            boot_time: boot_time()?,
            at: now()?,
            netns: names.netns,
            endpoints: config.endpoints.clone(),
            instance: read_line(ASSET_TAG).filter(|tag| tag.starts_with("i-")),
            ready: ready.clone(),
        };
        let recording = config.record.as_ref().map(|path| {
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
            file.and_then(|file| recording::Writer::new(BufWriter::new(file), &header))
                .with_context(|| format!("--record {}", path.display()))
        });
        let mut outputs = Outputs::open(&config.telling, header.boot_time)?;
        tell_what_is_watched(&ready);
        outputs.tell(&Event::Ready(header.at, ready))?;
        let pipeline = Pipeline::new(Host { netns: names.netns, instance: header.instance.clone() });
        Ok(Self {
            names,
            pipeline,
            outputs,
            recording: recording.transpose()?,
            procfs: Procfs::default(),
            lost: 0,
            unreadable: 0,
        })
    }

    /// Gives an input to the recording and to the pipeline, in this order: what is told was recorded before.
    fn push(&mut self, input: Input) -> anyhow::Result<()> {
        if let Some(recording) = &mut self.recording {
            recording.write(&input).context("write the recording")?;
        }
        let mut result = Ok(());
        let outputs = &mut self.outputs;
        self.pipeline.push(input, &mut |event| {
            if result.is_ok() {
                result = outputs.tell(event);
            }
        });
        Ok(result?)
    }

    fn fact(&mut self, said: Said) -> anyhow::Result<()> {
        self.push(Input::Fact(Fact { at: now()?, said }))
    }

    fn news(&mut self, told: News) -> anyhow::Result<()> {
        match told {
            News::Said(said) => self.fact(said),
            News::Listed => {
                log::info!("the Docker engine has listed its containers");
                Ok(())
            }
            News::Unreachable(why) => {
                log::info!("{why}");
                Ok(())
            }
        }
    }

    /// Takes at most `limit` records from the ring buffer, and none behind the first that is later than `until`: in a storm the
    /// buffer is never empty. Gives how many.
    fn drain(&mut self, records: &mut Records, limit: usize, until: Timestamp) -> anyhow::Result<usize> {
        let mut taken = 0;
        while taken < limit {
            let names = &self.names;
            let read = records.next(|bytes| {
                let record = ring::read(bytes)?;
                let connecting = match record {
                    Record::Connect(connect) => Some(connect.tgid),
                    _ => None,
                };
                Some((input::from_record(record, names), connecting))
            });
            let Some(read) = read else { break };
            taken += 1;
            let Some((input, connecting)) = read else {
                self.unreadable += 1;
                continue;
            };
            let at = input.at();
            self.push(input)?;
            // At once: the process may not live long.
            if let Some(detail) = connecting.and_then(|pid| self.procfs.describe(pid)) {
                self.push(Input::Fact(Fact { at, said: Said::Process(detail) }))?;
            }
            if at > until {
                break;
            }
        }
        if taken > 0 {
            self.outputs.flush()?;
        }
        Ok(taken)
    }

    /// Lets time pass: closes what has gone quiet, says what was lost.
    fn tick(&mut self, tracer: &Tracer, at: Timestamp) -> anyhow::Result<()> {
        self.note_lost(tracer.lost(), at)?;
        // Only a tick that leads to something is an input: an idle host's recording does not grow.
        if self.pipeline.due().is_some_and(|due| due <= at) {
            self.push(Input::Tick { at })?;
        }
        self.outputs.flush()?;
        if let Some(recording) = &mut self.recording {
            recording.flush().context("write the recording")?;
        }
        Ok(())
    }

    fn note_lost(&mut self, lost: u64, at: Timestamp) -> anyhow::Result<()> {
        if lost == self.lost && self.unreadable == 0 {
            return Ok(());
        }
        let (ring_buffer, unreadable) = (lost - self.lost, std::mem::take(&mut self.unreadable));
        self.lost = lost;
        self.push(Input::Lost { at, ring_buffer, unreadable })
    }

    fn header_errors(&mut self, (v4, v6): (u64, u64)) -> anyhow::Result<()> {
        self.fact(Said::InHdrErrors { netns: self.names.netns, v4, v6 })
    }

    fn finish(mut self, lost: u64) -> anyhow::Result<bool> {
        let at = now()?;
        self.note_lost(lost, at)?;
        self.push(Input::Tick { at })?;
        if let Some(recording) = &mut self.recording {
            recording.flush().context("write the recording")?;
        }
        let mut result = Ok(());
        let outputs = &mut self.outputs;
        self.pipeline.finish(&mut |event| {
            if result.is_ok() {
                result = outputs.tell(event);
            }
        });
        result?;
        self.outputs.flush()?;
        Ok(!self.outputs.failed())
    }
}

fn tell_what_is_watched(ready: &Ready) {
    use crate::event::Attached;
    let mut interfaces: Vec<&str> = Vec::new();
    let mut tracepoints: Vec<&str> = Vec::new();
    for hook in &ready.hooks {
        match hook {
            Attached::Tc { interface, .. } if !interfaces.contains(&interface.as_str()) => interfaces.push(interface),
            Attached::Tc { .. } => {}
            Attached::Tracepoint { name } => tracepoints.push(name),
        }
    }
    let interfaces = if interfaces.is_empty() { "no interface yet".to_owned() } else { interfaces.join(", ") };
    let interfaces = printable(&interfaces, MAX_SHOWN);
    eprintln!("imds-trace: watching {interfaces} and {}; Ctrl-C ends with the report", tracepoints.join(", "));
    for missing in &ready.missing {
        eprintln!("imds-trace: warning: without {}: {}", missing.hook, printable(&missing.why, MAX_SHOWN));
    }
}

fn read_line(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn now() -> anyhow::Result<Timestamp> {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).context("read the clock")?;
    Ok(Timestamp(u64::try_from(nanoseconds(time)).unwrap_or(0)))
}

/// Wall-clock time at boot. The two clocks are read one after the other: exact to a microsecond.
fn boot_time() -> anyhow::Result<BootTime> {
    let wall = clock_gettime(ClockId::CLOCK_REALTIME).context("read the clock")?;
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).context("read the clock")?;
    Ok(BootTime(nanoseconds(wall) - nanoseconds(boot)))
}

fn nanoseconds(time: nix::sys::time::TimeSpec) -> i64 {
    time.tv_sec() * 1_000_000_000 + time.tv_nsec()
}
