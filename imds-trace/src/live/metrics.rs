//! How does Prometheus ask? For one page over HTTP. Nothing that is sent changes anything here, and nobody is waited for.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::{SysconfVar, sysconf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use diagnosis::config::OutputSpec;
use diagnosis::output::Own;

/// How long one who asks may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// After an error of accept, which is about this process: too many open files.
const PAUSE: Duration = Duration::from_secs(1);
/// Who may ask at once; whoever else does is sent away.
const MAX_ASKING: usize = 8;
/// Bytes of a request.
const MAX_REQUEST: usize = 8192;
/// Where the page is.
const PATH: &str = "/metrics";

/// Listens, if that was asked for.
pub(super) struct Server {
    listener: Option<TcpListener>,
    room: Arc<Semaphore>,
}

impl Server {
    pub(super) async fn listen(outputs: &[OutputSpec]) -> anyhow::Result<Self> {
        let listener = match outputs.iter().find_map(OutputSpec::address) {
            Some(address) => {
                Some(TcpListener::bind(address).await.with_context(|| format!("--output metrics={address}"))?)
            }
            None => None,
        };
        Ok(Self { listener, room: Arc::new(Semaphore::new(MAX_ASKING)) })
    }

    /// The next one who asks; never, if nobody can.
    pub(super) async fn next(&self) -> TcpStream {
        let Some(listener) = &self.listener else { return std::future::pending().await };
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return stream,
                Err(error) => {
                    log::warn!("--output metrics: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Gives the page to one who asks.
    pub(super) fn answer(&self, stream: TcpStream, page: String) {
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else { return };
        tokio::spawn(async move {
            // Whoever asks and goes away is no error of ours.
            let _ = tokio::time::timeout(PATIENCE, exchange(stream, page)).await;
            drop(place);
        });
    }
}

async fn exchange(mut stream: TcpStream, page: String) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MAX_REQUEST {
        match stream.read(&mut part).await? {
            0 => return Ok(()),
            count => request.extend(&part[..count]),
        }
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let method = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default().split(|byte| *byte == b'?').next().unwrap_or_default();
    let (status, page) = match (method, path) {
        (b"GET" | b"HEAD", path) if path == PATH.as_bytes() => ("200 OK", page),
        (b"GET" | b"HEAD", _) => ("404 Not Found", format!("see {PATH}\n")),
        _ => ("405 Method Not Allowed", String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        page.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if method == b"GET" {
        stream.write_all(page.as_bytes()).await?;
    }
    stream.shutdown().await
}

/// What this process has used; nothing of what the system does not say.
pub(super) fn own() -> Own {
    let spent = |time: nix::sys::time::TimeVal| {
        let seconds = Duration::from_secs(u64::try_from(time.tv_sec()).unwrap_or(0));
        seconds + Duration::from_micros(u64::try_from(time.tv_usec()).unwrap_or(0))
    };
    let cpu = getrusage(UsageWho::RUSAGE_SELF).map(|usage| spent(usage.user_time()) + spent(usage.system_time()));
    // proc(5): the second number is of pages in memory.
    let pages = std::fs::read_to_string("/proc/self/statm").ok().and_then(|text| text.split(' ').nth(1)?.parse().ok());
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok());
    Own { cpu: cpu.unwrap_or_default(), memory: pages.zip(page).map_or(0, |(pages, page): (u64, u64)| pages * page) }
}
