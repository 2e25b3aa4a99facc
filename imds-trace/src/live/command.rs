//! How does a command run while it is traced, and how did it end?

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::errand::{self, Signals};

/// A shell says 128 and the number of the signal that ended a command.
const BY_SIGNAL: i32 = 128;

/// `run`: a command, which has our terminal, our files and our environment.
pub(super) struct Errand<'a> {
    words: &'a [OsString],
    child: Option<Child>,
    status: Option<ExitStatus>,
}

impl<'a> Errand<'a> {
    pub(super) fn new(words: &'a [OsString]) -> Self {
        Self { words, child: None, status: None }
    }

    /// Waits for a command that the trace did not outlast, and gives its exit code; `None` if it never began.
    pub(super) async fn outlast(mut self, signals: &mut Signals) -> Option<u8> {
        self.child.as_ref()?;
        loop {
            if let Some(status) = self.status {
                return Some(code(status));
            }
            tokio::select! {
                signal = signals.next() => drop(errand::Errand::ends_by(&mut self, signal)),
                () = errand::Errand::done(&mut self) => {}
            }
        }
    }
}

impl errand::Errand for Errand<'_> {
    fn announce(&self) -> &'static str {
        " while the command runs"
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        let (program, arguments) = self.words.split_first().context("run: no command")?;
        let child = Command::new(program).args(arguments).spawn();
        self.child = Some(child.with_context(|| format!("run {}", program.display()))?);
        Ok(())
    }

    async fn done(&mut self) {
        let Some(child) = &mut self.child else { return };
        match child.wait().await {
            Ok(status) => self.status = Some(status),
            // Somebody else has waited for our child: how it ended is not known, that it did is.
            Err(error) => {
                log::warn!("wait for the command: {error}");
                self.status = Some(ExitStatus::from_raw(i32::from(u8::MAX) << 8));
            }
        }
    }

    fn leaves_something(&self) -> bool {
        true
    }

    fn passes_signals_on(&self) -> bool {
        true
    }

    /// Ctrl-C reaches the command by itself; we outlive it. What is meant for us alone is passed on.
    fn ends_by(&mut self, signal: Signal) -> bool {
        let pid = self.child.as_ref().and_then(Child::id).and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.filter(|_| signal == Signal::SIGTERM) {
            // It has not been waited for, so the number is still its own.
            let _ = kill(Pid::from_raw(pid), signal);
        }
        false
    }
}

/// The exit code that tells how it ended.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| BY_SIGNAL + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_one_a_shell_would_give() {
        assert_eq!(code(ExitStatus::from_raw(0)), 0);
        assert_eq!(code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code(ExitStatus::from_raw(Signal::SIGTERM as i32)), 143);
    }
}
