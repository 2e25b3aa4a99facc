//! How is IMDS asked from inside a container's network, without the container's help and without keeping the token?
//!
//! One thread enters the network namespace, and only that: sockets made there stay there, and nothing of the container is run.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::errand;
use crate::config::{Probe, Target};
use crate::privileges;
use crate::sources::docker;
use crate::sources::procfs::{Found, Procfs, Several};
use crate::sources::runtime::Runtimes;
use diagnosis::identity::cgroup;
use diagnosis::identity::fact::ContainerDetail;
use diagnosis::probe::{Answer, Answers, Own, waited};

/// IMDS listens on the port of HTTP.
const PORT: u16 = 80;
/// A token answer has about 300 bytes, an instance's id fewer.
const MAX_ANSWER: usize = 8 * 1024;
/// More headers than IMDS sends.
const MAX_HEADERS: usize = 32;
/// What the probe reads: every instance has it.
const READ: &str = "/latest/meta-data/instance-id";
/// Seconds that the token is good for: it is used at once, then forgotten.
const TOKEN_TTL: u32 = 60;

/// `probe`: two requests from somewhere else.
pub(super) struct Errand {
    own: Own,
    go: Option<mpsc::Sender<()>>,
    coming: oneshot::Receiver<Answers>,
    answers: Option<Answers>,
    answered: bool,
}

impl Errand {
    /// Finds whom to ask for and enters its network; nothing is sent yet. An error if it is not there, or may not be entered.
    pub(super) async fn enter(config: &Probe, engines: &[String]) -> anyhow::Result<Self> {
        let runtimes = Runtimes::of_host(&config.tracing.host_root);
        let Place { name, container, netns } = find(&config.target, engines, &runtimes).await?;
        let (go, begin) = mpsc::channel();
        let (entered, enter) = oneshot::channel();
        let (sender, coming) = oneshot::channel();
        let endpoint = *config.tracing.endpoints.first().context("probe: no endpoint to ask")?;
        let timeout = config.timeout;
        let work = move || {
            let result = setns(&netns, CloneFlags::CLONE_NEWNET);
            let may = result.is_ok();
            if let Err(error) = privileges::keep_nothing() {
                log::warn!("{error}");
            }
            // If nobody wants to know any more, nobody will say go.
            let _ = entered.send(result);
            if may && begin.recv().is_ok() {
                let _ = sender.send(ask(SocketAddr::new(endpoint, PORT), timeout));
            }
        };
        std::thread::Builder::new().name("imds-trace".into()).spawn(work).context("start the thread that asks")?;
        match enter.await.context("enter the network namespace")? {
            Ok(()) => {}
            Err(Errno::EINVAL) => bail!("probe {name}: not a network namespace"),
            Err(Errno::EPERM) => {
                bail!("probe {name}: enter its network namespace: not permitted (needs CAP_SYS_ADMIN)")
            }
            Err(error) => bail!("probe {name}: enter its network namespace: {}", error.desc()),
        }
        Ok(Self {
            own: Own::new(std::process::id(), name, container),
            go: Some(go),
            coming,
            answers: None,
            answered: false,
        })
    }

    /// Has it come to its end?
    pub(super) fn is_answered(&self) -> bool {
        self.answered
    }
}

impl errand::Errand for Errand {
    fn announce(&self) -> &'static str {
        " for one probe"
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        let go = self.go.take().context("a probe begins once")?;
        go.send(()).map_err(|_| anyhow!("probe: the thread that asks has ended"))
    }

    async fn done(&mut self) {
        // Without a sender nothing comes any more.
        self.answers = (&mut self.coming).await.ok();
        self.answered = self.answers.is_some();
    }

    fn leaves_something(&self) -> bool {
        true
    }

    fn ends_by(&mut self, _: Signal) -> bool {
        true
    }

    fn asks_for(&self) -> Option<Own> {
        Some(self.own.clone())
    }

    fn answers(&mut self) -> Option<Answers> {
        self.answers.take()
    }
}

/// From where to ask.
struct Place {
    /// As reports name it.
    name: String,
    /// The container, if it is one's.
    container: Option<ContainerDetail>,
    netns: File,
}

async fn find(target: &Target, engines: &[String], runtimes: &Runtimes) -> anyhow::Result<Place> {
    match target {
        Target::Container(wanted) => {
            // By the cgroups of processes, with what the runtimes' files say of them; then what only an engine knows.
            let found = match Procfs::default().of_container(wanted, runtimes) {
                Ok(Some(found)) if found.detail.name.is_some() => found,
                // Its runtime's files are elsewhere: an engine may know its name.
                Ok(Some(found)) => introduced(engines, &found.detail.id).await.unwrap_or(found),
                Ok(None) => introduced(engines, wanted).await?,
                Err(Several(names)) => {
                    bail!("probe {wanted}: several containers are called so, or have an id that begins so: {names}")
                }
            };
            let pid = found.pid.with_context(|| format!("probe {wanted}: the container is not running"))?;
            let netns = open_of(pid).with_context(|| format!("probe {wanted}"))?;
            Ok(Place { name: found.name, container: Some(found.detail), netns })
        }
        Target::Pid(pid) => {
            let netns = open_of(*pid).with_context(|| format!("probe pid:{pid}"))?;
            let process = Procfs::default().describe(*pid);
            let container = process.and_then(|process| {
                let (id, path) = (process.container?, process.cgroup?);
                let within = cgroup::read_path(&path).filter(|within| within.outer.id == id);
                let said = within.and_then(|within| runtimes.describe(&within)).unwrap_or_default();
                Some(ContainerDetail { id, ..said })
            });
            Ok(Place { name: format!("pid:{pid}"), container, netns })
        }
        Target::Path(path) => {
            let name = path.display().to_string();
            let netns = File::open(path).with_context(|| format!("probe {name}"))?;
            Ok(Place { name, container: None, netns })
        }
    }
}

/// The container that an engine knows by this name.
async fn introduced(engines: &[String], wanted: &str) -> anyhow::Result<Found> {
    let mut refused = Vec::new();
    for engine in engines {
        match docker::find(engine, wanted).await {
            Ok(found) => return Ok(found),
            Err(why) => refused.push(why),
        }
    }
    refused.dedup();
    bail!(
        "probe {wanted}: {}; and no process is in a container or pod of that name or with an id that begins so",
        refused.join("; ")
    )
}

fn open_of(pid: u32) -> anyhow::Result<File> {
    match File::open(format!("/proc/{pid}/ns/net")) {
        Err(error) if error.kind() == ErrorKind::NotFound => bail!("there is no process {pid}"),
        opened => opened.with_context(|| format!("open the network namespace of process {pid}")),
    }
}

/// Asks for a token, then reads with it. It is nowhere but in buffers that are wiped when they go.
fn ask(endpoint: SocketAddr, timeout: Duration) -> Answers {
    let host = match endpoint.ip() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let head = |request: &str| {
        let agent = concat!("imds-trace/", env!("CARGO_PKG_VERSION"), " (probe)");
        format!("{request} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\nAccept: */*\r\nConnection: close\r\n")
    };
    let put = format!(
        "{}X-aws-ec2-metadata-token-ttl-seconds: {TOKEN_TTL}\r\nContent-Length: 0\r\n\r\n",
        head("PUT /latest/api/token")
    );
    let (status, token) = match exchange(endpoint, put.as_bytes(), timeout) {
        Ok(answered) => answered,
        Err(answer) => return Answers { token: answer, read: None },
    };
    let answers = Answers { token: Answer::Status(status), read: None };
    if status != 200 {
        return answers;
    }
    // What is no token must not become part of a request.
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Answers { token: Answer::None("its answer holds no token".to_owned()), read: None };
    }
    let before = format!("{}X-aws-ec2-metadata-token: ", head(&format!("GET {READ}")));
    // As large as it will be: a buffer that grows leaves copies behind.
    let mut get = Zeroizing::new(Vec::with_capacity(before.len() + token.len() + 4));
    for part in [before.as_bytes(), &token, b"\r\n\r\n"] {
        get.extend_from_slice(part);
    }
    let read = match exchange(endpoint, &get, timeout) {
        Ok((status, _)) => Answer::Status(status),
        Err(answer) => answer,
    };
    Answers { read: Some(read), ..answers }
}

/// One request on a connection of its own: status and body.
fn exchange(endpoint: SocketAddr, request: &[u8], timeout: Duration) -> Result<(u16, Zeroizing<Vec<u8>>), Answer> {
    let failed = |what: &'static str| {
        move |error: std::io::Error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => waited(what, timeout),
            ErrorKind::ConnectionRefused => Answer::None("the connection was refused".to_owned()),
            ErrorKind::ConnectionReset => Answer::None("the connection was reset".to_owned()),
            ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => {
                Answer::None("there is no route to IMDS from there".to_owned())
            }
            _ => Answer::None(error.to_string()),
        }
    };
    let end = Instant::now() + timeout;
    // A timeout of zero would mean none.
    let left = || end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut stream = TcpStream::connect_timeout(&endpoint, timeout).map_err(failed("no connection"))?;
    stream.set_write_timeout(Some(left())).map_err(failed("no connection"))?;
    stream.write_all(request).map_err(failed("no answer"))?;
    let mut buffer = Zeroizing::new(vec![0; MAX_ANSWER]);
    let mut length = 0;
    loop {
        if Instant::now() >= end {
            return Err(waited("no answer", timeout));
        }
        stream.set_read_timeout(Some(left())).map_err(failed("no answer"))?;
        let room = &mut buffer[length..];
        let count = match stream.read(room) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed("no answer")(error)),
        };
        length += count;
        match answer(&buffer[..length], count == 0) {
            Some(result) => return result.ok_or_else(|| Answer::None("the answer is no HTTP".to_owned())),
            None if length == buffer.len() => return Err(Answer::None("the answer is too long".to_owned())),
            None if count == 0 => return Err(Answer::None("the connection was closed without an answer".to_owned())),
            None => {}
        }
    }
}

/// Status and body of an answer, once it is whole; `Some(None)` if it is none. `over`: nothing more comes.
fn answer(bytes: &[u8], over: bool) -> Option<Option<(u16, Zeroizing<Vec<u8>>)>> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut slots);
    let head = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return None,
        Err(_) => return Some(None),
    };
    let body = &bytes[head..];
    let declared = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = match declared {
        Some(header) => match std::str::from_utf8(header.value).ok().and_then(|text| text.trim().parse().ok()) {
            Some(length) => length,
            None => return Some(None),
        },
        None if over => body.len(),
        None => return None,
    };
    let body = body.get(..length)?;
    Some(parsed.code.map(|status| (status, Zeroizing::new(body.to_vec()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, over: bool) -> Option<Option<(u16, String)>> {
        let text_of = |body: Zeroizing<Vec<u8>>| String::from_utf8_lossy(&body).into_owned();
        answer(text.as_bytes(), over).map(|whole| whole.map(|(status, body)| (status, text_of(body))))
    }

    #[test]
    fn an_answer_is_read_when_it_is_whole() {
        let whole = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc";
        for cut in 0..whole.len() {
            assert_eq!(read(&whole[..cut], false), None, "{cut}");
        }
        assert_eq!(read(whole, false), Some(Some((200, "abc".into()))));
        assert_eq!(read(&format!("{whole}more"), false), Some(Some((200, "abc".into()))));
    }

    #[test]
    fn without_a_length_the_end_of_the_connection_ends_it() {
        let text = "HTTP/1.0 401 Unauthorized\r\n\r\nno";
        assert_eq!(read(text, false), None);
        assert_eq!(read(text, true), Some(Some((401, "no".into()))));
    }

    #[test]
    fn what_is_no_http_is_said() {
        assert_eq!(read("SSH-2.0-OpenSSH\r\n\r\n", false), Some(None));
        assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", false), Some(None));
        assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n", false), Some(None));
    }
}
