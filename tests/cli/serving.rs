//! Does `watch` tell a service manager how it goes: ready, what is watched, alive, ending?

use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use imds_trace_tests::{Namespace, children, tracer};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Outcome;
use crate::program::{Folder, finish};

/// Only root can trace.
pub const TESTS_OF_ROOT: &[crate::Test] = &[
    ("a_service_manager_is_told_how_it_goes", a_service_manager_is_told_how_it_goes),
    ("what_is_no_service_tells_nobody", what_is_no_service_tells_nobody),
];

/// Loading BPF on an emulated machine takes seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// The next message, line by line.
fn heard(socket: &UnixDatagram) -> Result<Vec<String>> {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).context("wait for a message")?;
    Ok(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned).collect())
}

fn expect(claim: &str, seen: &[String], expected: &[&str]) -> Result<(), libtest_mimic::Failed> {
    if seen == expected { Ok(()) } else { Err(format!("{claim}: expected {expected:?}, heard {seen:?}").into()) }
}

fn a_service_manager_is_told_how_it_goes() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let namespace = Namespace::create(&format!("imdslab-{}-serving", std::process::id()))?;
    namespace.ip("link add name docker0 type bridge")?;
    let mut command = namespace.command(tracer::program()?);
    command.args(["watch", "--docker-host", "unix:///no/such/engine.sock", "--interface", "docker*"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000").env_remove("WATCHDOG_PID");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = children::spawn(command)?;

    let watched = "STATUS=watching docker0 and skb:kfree_skb, sock:inet_sock_set_state";
    expect("it is ready", &heard(&socket)?, &["READY=1", watched])?;
    // Twice in the time after which it would be taken for hanging; far more would be a loop gone wild.
    let before = std::time::Instant::now();
    for _ in 0..4 {
        expect("it is alive", &heard(&socket)?, &["WATCHDOG=1"])?;
    }
    let took = before.elapsed();
    if took < Duration::from_millis(500) {
        return Err(format!("four signs of life within {took:?}, when one in 200 ms was asked for").into());
    }
    namespace.ip("link add name docker1 type bridge")?;
    let told = loop {
        let news = heard(&socket)?;
        if news != ["WATCHDOG=1"] {
            break news;
        }
    };
    let watched = "STATUS=watching docker0, docker1 and skb:kfree_skb, sock:inet_sock_set_state";
    expect("it says what has changed", &told, &[watched])?;

    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM)?;
    let last = loop {
        let news = heard(&socket)?;
        if news != ["WATCHDOG=1"] {
            break news;
        }
    };
    expect("it says that it ends", &last, &["STOPPING=1"])?;
    let status = children::wait(&mut child, PATIENCE).context("it did not end")?;
    if status.success() { Ok(()) } else { Err(format!("it ended badly: {status}").into()) }
}

fn what_is_no_service_tells_nobody() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_nonblocking(true)?;
    let namespace = Namespace::create(&format!("imdslab-{}-command", std::process::id()))?;
    let mut command = namespace.command(tracer::program()?);
    command.args(["run", "--docker-host", "unix:///no/such/engine.sock", "--", "true"]);
    command.env("NOTIFY_SOCKET", &path).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(command)?.expect_code(0)?;
    match heard(&socket) {
        Err(_) => Ok(()),
        Ok(news) => Err(format!("`run` spoke for somebody else's service: {news:?}").into()),
    }
}
