//! What is done while the trace runs, and what ends it?

use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::supervisor::Supervisor;
use diagnosis::probe::{Answers, Own};

/// What a trace is for.
pub(super) trait Errand {
    /// What is said behind the list of what is watched.
    fn announce(&self) -> &'static str;
    /// Everything is attached: begins.
    fn begin(&mut self) -> anyhow::Result<()>;
    /// Waits until it is done. May be dropped at any time, and called again.
    async fn done(&mut self);
    /// Does it leave something under way that is to be seen to its end?
    fn leaves_something(&self) -> bool;
    /// Is it over when nobody reads stdout any more?
    fn needs_reader(&self) -> bool {
        false
    }
    /// A signal has come. Does the trace end by it?
    fn ends_by(&mut self, signal: Signal) -> bool;

    /// Does it pass signals on to a process that may be another user's?
    fn passes_signals_on(&self) -> bool {
        false
    }

    /// For whom it asks IMDS itself, if it does: then only what it asked is told.
    fn asks_for(&self) -> Option<Own> {
        None
    }

    /// Who is told how it goes, where the trace is all that a service does.
    fn supervisor(&self) -> Supervisor {
        Supervisor::default()
    }

    /// What it was answered, if it asked.
    fn answers(&mut self) -> Option<Answers> {
        None
    }
}

/// `watch`: nothing is done, until told to stop or for a while.
pub(super) struct Watching {
    duration: Option<Duration>,
    deadline: Option<Instant>,
}

impl Watching {
    pub(super) fn new(duration: Option<Duration>) -> Self {
        Self { duration, deadline: None }
    }
}

impl Errand for Watching {
    fn announce(&self) -> &'static str {
        "; Ctrl-C ends with the report"
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        self.deadline = self.duration.map(|duration| Instant::now() + duration);
        Ok(())
    }

    async fn done(&mut self) {
        match self.deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    }

    fn leaves_something(&self) -> bool {
        false
    }

    fn needs_reader(&self) -> bool {
        true
    }

    fn ends_by(&mut self, _: Signal) -> bool {
        true
    }

    fn supervisor(&self) -> Supervisor {
        Supervisor::of_environment()
    }
}

/// The signals that end a run in order. From [`Self::listen`] on none of them ends the process by itself.
pub(super) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// The terminal went away; `None` where that was to be outlived (nohup).
    hang_up: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    pub(super) fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
            hang_up: if ignores(Signal::SIGHUP) {
                None
            } else {
                Some(signal(SignalKind::hangup()).context("listen for SIGHUP")?)
            },
        })
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Signal {
        let hung_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = hung_up => Signal::SIGHUP,
        }
    }

    /// Has one come already? Then it is taken.
    pub(super) async fn has_come(&mut self) -> bool {
        tokio::select! {
            biased;
            _ = self.next() => true,
            () = std::future::ready(()) => false,
        }
    }
}

/// Was this process begun with the signal ignored?
fn ignores(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal as i32 - 1) & 1 == 1)
}
