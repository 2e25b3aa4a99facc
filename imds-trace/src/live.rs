//! What happens on this host now? The shell around the pipeline: owns the runtime, the clock, the signals and every source.

mod command;
mod errand;
mod follower;
mod metrics;
mod probe;
mod session;
mod supervisor;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::time::{ClockId, clock_gettime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::config::{Probe, Run, Tracing, Watch};
use crate::interfaces;
use crate::kernel::attach::{ProbeLog, Tracer};
use crate::kernel::backlog::Backlog;
use crate::kernel::btf::Layout;
use crate::kernel::features::{self, Features};
use crate::kernel::programs;
use crate::kernel::ring::MachineNames;
use crate::kernel::symbols::Symbols;
use crate::memory;
use crate::privileges::{self, Tasks};
use crate::sources::docker::{self, News};
use crate::sources::procfs;
use crate::sources::runtime::Runtimes;
use diagnosis::identity::fact::Said;
use diagnosis::net::{BootTime, Timestamp};
use diagnosis::output;
use diagnosis::printable::printable;
use diagnosis::recording;
use diagnosis::reporter::Judged;
use errand::{Errand, Signals, Watching};
use follower::Follower;
use metrics::Server;
use session::Session;

/// How long the engine may take to list its containers before tracing goes on without; it tells the rest when it can.
const ENGINE_PATIENCE: Duration = Duration::from_secs(2);
/// How often quiet exchanges are closed and losses counted, while there is something to close.
const TICK: Duration = Duration::from_millis(50);
/// And while there is nothing.
const IDLE: Duration = Duration::from_secs(1);
/// How often all interfaces are looked at anew.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long what an errand left under way is waited for at most: an answer sent again comes after 0.2, 0.6 and 1.4 s.
const SETTLE: Duration = Duration::from_millis(1500);
/// Records taken in before anything else gets its turn.
const BATCH: usize = 4096;
/// Facts of the engine that wait to be taken at most.
const BACKLOG: usize = 1024;
/// Engines followed at most.
const MAX_ENGINES: usize = 32;
/// Bytes of a message on stderr.
const MAX_SHOWN: usize = 2048;

/// Traces until told to stop. Gives the exit code: 0, or 1 if what was asserted failed.
pub fn watch(config: Watch) -> anyhow::Result<u8> {
    start("watch", &config.tracing, async {
        let mut signals = Signals::listen()?;
        let judged = trace(&config.tracing, &mut Watching::new(config.duration), &mut signals).await;
        match judged {
            // Nobody reads stdout any more: no error, but the end.
            Err(error) if matches!(error.downcast_ref(), Some(output::Error::Closed)) => Ok(0),
            judged => judged.map(Judged::code),
        }
    })
}

/// Traces while a command runs. Gives the exit code: 1 if what was asserted failed, else the command's.
pub fn run(config: Run) -> anyhow::Result<u8> {
    start("run", &config.tracing, async {
        let mut signals = Signals::listen()?;
        let mut command = command::Errand::new(&config.command);
        let judged = trace(&config.tracing, &mut command, &mut signals).await;
        let code = command.outlast(&mut signals).await;
        match (judged, code) {
            (Ok(judged), Some(0)) => Ok(judged.code()),
            (Ok(judged), Some(code)) => Ok(if judged.broken { 1 } else { code }),
            (Ok(_), None) => bail!("run: a signal came before the command was started"),
            (Err(error), _) => Err(error),
        }
    })
}

/// Asks for a token from inside a container and traces that. Gives the exit code: 0, or 1 if what was asserted failed.
pub fn probe(config: Probe) -> anyhow::Result<u8> {
    start("probe", &config.tracing, async {
        let mut signals = Signals::listen()?;
        let mut probe = probe::Errand::enter(&config, &engines(&config.tracing)).await?;
        let judged = trace(&config.tracing, &mut probe, &mut signals).await;
        if !probe.is_answered() {
            judged?;
            bail!("probe: a signal came before it was done");
        }
        judged.map(Judged::code)
    })
}

/// Does the work of a command that traces, if it may.
fn start(name: &str, config: &Tracing, work: impl Future<Output = anyhow::Result<u8>>) -> anyhow::Result<u8> {
    let missing = features::missing_capabilities();
    if !missing.is_empty() {
        bail!("{name} needs {}: run it as root", missing.join(", "));
    }
    let level = if config.verbosity > 0 { log::LevelFilter::Debug } else { log::LevelFilter::Warn };
    env_logger::Builder::new().filter(Some("imds_trace"), level).format_timestamp(None).init();
    privileges::conceal()?;
    memory::begin();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // The runtime's helpers look up names, and need no more.
        .on_thread_start(|| {
            if let Err(error) = privileges::keep_nothing() {
                log::warn!("{error}");
            }
        })
        .build()
        .context("start the runtime")?;
    runtime.block_on(work)
}

/// Attaches, traces while the errand is done, and reports.
async fn trace(config: &Tracing, errand: &mut impl Errand, signals: &mut Signals) -> anyhow::Result<Judged> {
    let outputs = config.telling.outputs.iter().filter_map(|output| output.path.as_deref());
    recording::spare(outputs.chain(config.ready_file.as_deref()))?;
    if let Some(record) = &config.record {
        recording::check(&record.path, session::limits(record))
            .with_context(|| format!("--record {}", record.path.display()))?;
    }
    if let Some(path) = &config.ready_file
        && path.exists()
    {
        // An earlier run's would say that this one is ready.
        fs::remove_file(path).with_context(|| format!("--ready-file {}", path.display()))?;
    }
    let layout = Layout::of_this_kernel()?;
    let errors_before = procfs::in_hdr_errors();
    let features = Features::ask(Ok(&layout));
    let others = programs::others_in_connect();
    let (interfaces, changes) = interfaces::open()?;
    let mut follower = Follower::new(interfaces, changes, config);
    follower.look().await?;
    let mut tracer = Tracer::load(&layout, features, &config.endpoints, config.verbosity > 1, &follower.wanted())?;
    let probe_log = if config.verbosity > 1 { tracer.log() } else { None };
    let mut names = MachineNames {
        netns: procfs::own_netns(),
        endpoints: config.endpoints.clone(),
        interfaces: BTreeMap::new(),
        counts: layout.counts_bytes(),
        reasons: layout.drop_reasons(),
        symbols: RefCell::new(Symbols::load()),
    };
    drop(layout);
    follower.begin(&mut tracer, &mut names)?;

    let (news_sender, mut news) = mpsc::channel(BACKLOG);
    let mut engines = engines(config);
    for host in &engines {
        tokio::spawn(docker::follow(host.clone(), news_sender.clone()));
    }
    let introduced = introductions(&mut news, &engines).await;

    // Before anything is given up that a low port takes.
    let server = Server::listen(&config.telling.outputs).await?;
    let missing = follower.missing(&tracer).into_iter().chain(others).collect();
    let mut session = Session::begin(config, &tracer, names, missing, errand)?;
    session.header_errors(errors_before)?;
    session.surroundings(follower.surroundings(&tracer))?;
    session.surroundings(follower.forwarding())?;
    session.exceeded(follower.exceeded())?;
    for said in introduced {
        session.fact(said)?;
    }
    if let Some(said) = errand.asks_for().and_then(|own| own.introduction()) {
        session.fact(said)?;
    }
    session.reporter.publish(metrics::own)?;
    session.reporter.flush()?;
    if let Some(path) = &config.ready_file {
        fs::write(path, b"").with_context(|| format!("--ready-file {}", path.display()))?;
    }

    let records = tracer.take_records().context("the ring buffer is there only once")?;
    let mut records = Backlog::begin(records).context("watch the ring buffer")?;
    let mut probe_log = probe_log.map(readable).transpose().context("watch the probes' log")?;
    let mut tick = Instant::now();
    // The time up to which records are taken in before the tick, while there are more than a batch of them.
    let mut until = None;
    let mut look_again = tokio::time::interval_at(Instant::now() + LOOK_AGAIN, LOOK_AGAIN);
    look_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut supervisor = errand.supervisor();
    // A signal that came while it started ends it before anything is done.
    let mut going = !signals.has_come().await;
    if going {
        errand.begin()?;
    }
    privileges::keep_for(&tasks(config, errand))?;
    supervisor.ready(&session::watched(&tracer.attached()));
    memory::give_back();
    memory::let_go_of_the_start();
    // Until when what the errand left under way is waited for.
    let mut settling = None;
    while going && !session.must_end() {
        tokio::select! {
            biased;
            signal = signals.next() => going = settling.is_none() && !errand.ends_by(signal),
            () = errand.done(), if settling.is_none() => {
                settling = errand.leaves_something().then(|| Instant::now() + SETTLE);
                going = settling.is_some();
                tick = tick.min(Instant::now() + TICK);
            }
            Some(told) = news.recv() => session.news(told)?,
            Some(change) = follower.changes.recv() => {
                follower.change(change, &mut tracer, &mut session.names).await;
                session.surroundings(follower.surroundings(&tracer))?;
                session.surroundings(follower.forwarding())?;
                supervisor.status(&session::watched(&tracer.attached()));
            }
            () = read_probe_log(&mut probe_log), if probe_log.is_some() => {}
            _ = look_again.tick() => {
                follower.look_again(&mut tracer, &mut session.names).await;
                session.departed()?;
                // An engine that was started since.
                for host in docker::hosts(&config.docker_hosts, &config.host_root) {
                    if engines.len() < MAX_ENGINES && !engines.contains(&host) {
                        tokio::spawn(docker::follow(host.clone(), news_sender.clone()));
                        engines.push(host);
                    }
                }
                session.surroundings(follower.surroundings(&tracer))?;
                session.surroundings(follower.forwarding())?;
                session.exceeded(follower.exceeded())?;
                supervisor.status(&session::watched(&tracer.attached()));
                session.reporter.publish(metrics::own)?;
                memory::give_back();
            }
            asking = server.next() => {
                if let Some(page) = session.reporter.publish(metrics::own)? {
                    server.answer(asking, page);
                }
            }
            () = tokio::time::sleep_until(tick) => {
                // The time first: what waits now is not later. And what was lost by then, because the window of a loss ends with it.
                let at = match until {
                    Some(at) => at,
                    None => note_lost(&mut session, &tracer)?,
                };
                supervisor.alive(Instant::now());
                if session.drain(&mut records, BATCH, at)? == BATCH {
                    until = Some(at);
                    continue;
                }
                until = None;
                session.tick(at)?;
                let rest = if settling.is_some() { TICK } else { session.rest(at).clamp(TICK, IDLE) };
                tick = supervisor.next().map_or(Instant::now() + rest, |next| next.min(Instant::now() + rest));
                going = settling.is_none_or(|end| Instant::now() < end && !session.is_at_rest(at));
            }
            () = records.ready() => {
                // As before a tick: what waited may be seconds old, and what was lost since then is to be known first.
                let at = note_lost(&mut session, &tracer)?;
                session.drain(&mut records, BATCH, at)?;
                // What was read may fall due before the next tick of an idle time.
                tick = tick.min(Instant::now() + TICK);
            }
        }
    }
    supervisor.stopping();
    // What happens from here on may pass places that are watched no more: that nothing is seen of it there shows nothing.
    session.ends(now()?);
    // The lost ones are asked for while there is somebody to ask; then nothing new comes, and what has come is read.
    let lost = tracer.lost();
    drop(tracer);
    // The kernel's counters are read before the hooks are there and after they are gone: they never show less than was seen.
    let errors_after = procfs::in_hdr_errors();
    session.drain(&mut records, usize::MAX, Timestamp(u64::MAX))?;
    session.header_errors(errors_after)?;
    session.exceeded(follower.exceeded())?;
    session.finish(lost, errand.answers())
}

/// Notes what was lost by now, and says when that is.
fn note_lost(session: &mut Session, tracer: &Tracer) -> anyhow::Result<Timestamp> {
    let at = now()?;
    session.note_lost(tracer.lost(), at)?;
    Ok(at)
}

/// Where the engines listen.
fn engines(config: &Tracing) -> Vec<String> {
    let mut hosts = docker::hosts(&config.docker_hosts, &config.host_root);
    hosts.truncate(MAX_ENGINES);
    hosts
}

/// What is still to be done when everything is attached and the errand has begun.
fn tasks(config: &Tracing, errand: &impl Errand) -> Tasks {
    let rotated = config.record.as_ref().filter(|record| record.size.is_some() || record.age.is_some());
    let folder = rotated.and_then(|record| folder_of(&record.path));
    let outputs = config.telling.outputs.iter();
    let replaced =
        outputs.filter(|output| output.is_replaced()).filter_map(|output| folder_of(output.path.as_deref()?));
    let engines = engines(config).into_iter().filter_map(|host| host.strip_prefix("unix://").map(PathBuf::from));
    Tasks {
        signals: errand.passes_signals_on(),
        writes: folder.into_iter().chain(replaced).chain(engines).collect(),
        reads: Runtimes::of_host(&config.host_root).folders(),
    }
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> Option<PathBuf> {
    path.parent().map(|folder| if folder == Path::new("") { PathBuf::from(".") } else { folder.to_owned() })
}

/// Lets the runtime watch a file descriptor of the kernel room.
fn readable<T: AsRawFd>(source: T) -> std::io::Result<AsyncFd<T>> {
    // SAFETY: `ProbeLog`, the only one given here, owns one file descriptor, gives always the same one, and keeps it open as long as it
    // lives, which the AsyncFd sees to.
    unsafe { Ok(AsyncFd::register_with_interest(source, Interest::READABLE)?) }
}

async fn read_probe_log(log: &mut Option<AsyncFd<ProbeLog>>) {
    let Some(log) = log else { return };
    if let Ok(mut guard) = log.readable_mut().await {
        guard.get_inner_mut().flush();
        guard.clear_ready();
    }
}

/// What the engines tell before each says that this was all.
async fn introductions(news: &mut mpsc::Receiver<News>, engines: &[String]) -> Vec<Said> {
    let mut said = Vec::new();
    let mut left = engines.len();
    let listing = async {
        while left > 0 {
            match news.recv().await {
                Some(News::Said(fact)) => said.push(*fact),
                Some(News::Listed { .. }) => left -= 1,
                Some(News::Unreachable(why)) => {
                    diagnosis::say!(
                        "imds-trace: warning: {}: its containers are known by their runtime's files, id and address only",
                        printable(&why, MAX_SHOWN)
                    );
                    left -= 1;
                }
                None => break,
            }
        }
    };
    if tokio::time::timeout(ENGINE_PATIENCE, listing).await.is_err() {
        diagnosis::say!(
            "imds-trace: warning: the Docker engine is slow to answer; going on without its list of containers"
        );
    }
    said
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
