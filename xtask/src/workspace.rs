//! Where does this workspace stand, and how is a program run in it?

use std::{
    env,
    ffi::OsStr,
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// The folder with the workspace's Cargo.toml.
pub fn root() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&xtask).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// A program that cargo has built, in whatever target folder it was told to use: this program stands in the same one.
pub fn built(folder: impl AsRef<Path>, program: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("find this program's own path")?;
    let target = own.ancestors().nth(2).context("find the target folder")?;
    Ok(target.join(folder).join(program))
}

/// The cargo that runs us, in the workspace's folder.
pub fn cargo<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(arguments: I) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root()).stdin(Stdio::null());
    if let Some(target) = env::var_os("CARGO_TARGET_DIR").filter(|path| !path.is_empty()) {
        // A relative one was meant from the folder the user stands in.
        if let Ok(target) = std::path::absolute(target) {
            command.env("CARGO_TARGET_DIR", target);
        }
    }
    command
}

/// What is tested. Cargo chooses the features of what these depend on by which of them a command names, and builds all of it anew for
/// another choice: so a command always names them all, and says by its targets which it wants.
const TESTED: [&str; 5] =
    ["imds-trace", "imds-trace-diagnosis", "imds-trace-tests", "imds-trace-replay-tests", "xtask"];

/// `cargo build` or `cargo test` with these targets of what is tested, e.g. `--test=cli`.
pub fn tested(command: &str, targets: &[&str]) -> Command {
    of_tested(cargo([command]), targets)
}

/// The same of another `cargo build` or `cargo test`.
pub fn of_tested(mut cargo: Command, targets: &[&str]) -> Command {
    cargo.args(TESTED.map(|name| format!("--package={name}"))).args(targets);
    cargo
}

/// Runs it to its end; not succeeding is an error that names what was run.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs it, and gives each line of its stdout to `each` without showing it.
pub fn read(command: &mut Command, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("run {}", shown(command)))?;
    for line in read_lines(&mut child) {
        each(String::from_utf8_lossy(&line).trim_end());
    }
    child.wait().with_context(|| format!("wait for {}", shown(command)))
}

/// Runs it to its end and gives what it printed; not succeeding is an error with what it said on stderr.
pub fn say(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("run {}", shown(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", shown(command), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What was run, as one would type it.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Runs it, shows each line of its stdout and gives the line to `each`. After the deadline it is ended, and there is no status.
pub fn stream(
    command: &mut Command,
    deadline: Option<Instant>,
    mut each: impl FnMut(&str),
) -> Result<Option<ExitStatus>> {
    if deadline.is_some() {
        // So that everything it starts can be ended with it. (Ctrl-C would not reach it: only for runs nobody watches.)
        command.process_group(0);
    }
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("run {}", shown(command)))?;
    let lines = read_lines(&mut child);
    loop {
        match lines.recv_timeout(Duration::from_millis(500)) {
            Ok(line) => {
                // A closed stdout must not keep the tests from being counted.
                let _ = io::stdout().write_all(&line);
                each(String::from_utf8_lossy(&line).trim_end());
            }
            Err(RecvTimeoutError::Disconnected) => break,
            // Something it left behind may hold its stdout open for ever.
            Err(RecvTimeoutError::Timeout) if child.try_wait().is_ok_and(|status| status.is_some()) => {
                break;
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            end(&mut child)?;
            return Ok(None);
        }
    }
    Ok(Some(child.wait().with_context(|| format!("wait for {}", shown(command)))?))
}

/// Programs that run one after the other, while processors have nothing else to do.
pub struct Background(Option<thread::JoinHandle<()>>);

impl Drop for Background {
    /// Waits for their end.
    fn drop(&mut self) {
        let _ = self.0.take().map(thread::JoinHandle::join);
    }
}

/// Begins to run them. Nobody hears of it when one fails: who needs what it makes runs it again and shows why.
pub fn background(commands: Vec<Command>) -> Background {
    let nice = |command: &Command| {
        let mut nice = Command::new("nice");
        nice.args(["-n", "19"]).arg(command.get_program()).args(command.get_args()).current_dir(root());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => nice.env(name, value),
                None => nice.env_remove(name),
            };
        }
        nice.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()
    };
    let all = move || commands.iter().for_each(|command| drop(nice(command)));
    Background(Some(thread::spawn(all)))
}

/// What it prints on its stdout, line by line, with what ends each.
pub fn read_lines(child: &mut Child) -> mpsc::Receiver<Vec<u8>> {
    let (send, lines) = mpsc::channel();
    let stdout = child.stdout.take();
    thread::spawn(move || {
        let Some(mut stdout) = stdout.map(BufReader::new) else {
            return;
        };
        let mut line = Vec::new();
        while stdout.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            if send.send(std::mem::take(&mut line)).is_err() {
                return;
            }
        }
    });
    lines
}

/// Ends a process group: politely, so that a lab takes down what it set up, then not.
fn end(child: &mut Child) -> Result<()> {
    let group = child.id();
    let signal = |name: &str| {
        let _ = Command::new("sh").args(["-c", &format!("kill -s {name} -- -{group}")]).stderr(Stdio::null()).status();
    };
    signal("TERM");
    let patience = Instant::now() + Duration::from_secs(20);
    while child.try_wait().context("wait for an ended program")?.is_none() && Instant::now() < patience {
        thread::sleep(Duration::from_millis(100));
    }
    signal("KILL");
    child.wait().context("wait for a killed program")?;
    Ok(())
}

/// Whether we may do what only root may.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_handed_on_and_the_status_kept() {
        let mut seen = Vec::new();
        let status = stream(Command::new("sh").args(["-c", "echo one; echo two; exit 3"]), None, |line| {
            seen.push(line.to_owned());
        });
        assert_eq!(status.unwrap().unwrap().code(), Some(3));
        assert_eq!(seen, ["one", "two"]);
    }

    #[test]
    fn a_daemon_left_behind_does_not_hold_the_run_up() {
        let before = Instant::now();
        let status = stream(Command::new("sh").args(["-c", "sleep 20 & echo up"]), None, |_| {});
        assert!(status.unwrap().unwrap().success());
        assert!(before.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_program_past_its_deadline_is_ended_with_what_it_started() {
        let deadline = Instant::now() + Duration::from_millis(200);
        let status = stream(Command::new("sh").args(["-c", "sleep 600 & sleep 600"]), Some(deadline), |_| {});
        assert!(status.unwrap().is_none());
        assert!(deadline.elapsed() < Duration::from_secs(15));
    }
}
