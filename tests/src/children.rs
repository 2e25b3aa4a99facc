//! How is a process started so that it cannot outlive us, and can be recognised if it does?
//!
//! Each carries a parent-death signal. That signal fires when the *thread* that forked ends, not the process: so what
//! should live on is forked by one thread that never ends.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::unistd::{Pid, getppid};

/// Marks every process of a lab, in its environment: `IMDSLAB=<our pid>`. [`crate::house`] goes by it.
pub const MARK: &str = "IMDSLAB";

/// A command that gets SIGKILL when the starting thread ends, and has no signal blocked.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    command_dying_by(program, Signal::SIGKILL)
}

/// As [`command`], with another parent-death signal (dockerd wants SIGTERM: it puts its containers away).
pub fn command_dying_by(program: impl AsRef<OsStr>, signal: Signal) -> Command {
    let mut command = Command::new(program);
    command.env(MARK, std::process::id().to_string());
    let parent = Pid::this();
    // SAFETY: between fork and exec only prctl, getppid and sigprocmask are called, all bare system calls.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(signal)?;
            if getppid() != parent {
                return Err(io::Error::other("the parent ended before its child began"));
            }
            // `house` blocks SIGINT and SIGTERM in the whole process; children must be born without that.
            pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
            Ok(())
        });
    }
    command
}

type Order = (Command, SyncSender<io::Result<Child>>);

/// Starts a command from a thread that lives as long as the process does.
pub fn spawn(command: Command) -> io::Result<Child> {
    static NURSERY: OnceLock<Sender<Order>> = OnceLock::new();
    let nursery = NURSERY.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        std::thread::Builder::new()
            .name("lab-nursery".into())
            .spawn(move || {
                for (mut command, reply) in inbox {
                    let _ = reply.send(command.spawn());
                }
            })
            .expect("start the thread that forks");
        orders
    });
    let (reply, answer) = sync_channel(1);
    nursery.send((command, reply)).expect("the nursery never ends");
    answer.recv().expect("the nursery always answers")
}

/// Runs a command to its end; returns standard output, or an error with what it wrote to standard error.
pub fn output(mut command: Command) -> Result<String> {
    let shown = show(&command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command as one would type it.
pub fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Asks a child to end with `signal`, waits up to `patience`, then kills it. Returns its status if it was waited for.
pub fn stop(child: &mut Child, signal: Signal, patience: Duration) -> Option<std::process::ExitStatus> {
    if let Ok(Some(status)) = child.try_wait() {
        return Some(status);
    }
    let _ = kill(Pid::from_raw(child.id() as i32), signal);
    if let Some(status) = wait(child, patience) {
        return Some(status);
    }
    let _ = child.kill();
    child.wait().ok()
}

/// Waits for a child with a deadline; `None` when it still runs then.
pub fn wait(child: &mut Child, patience: Duration) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
