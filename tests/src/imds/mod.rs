//! Who answers at 169.254.169.254 in the lab?
//!
//! A small HTTP server in this process, whose sockets stand inside a network namespace. It imitates what is documented or
//! recorded of the real one, TTLs included; [`Behaviour`] says how, and can change while it runs.

mod answer;
mod behaviour;
mod closing;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{Backlog, Shutdown as Half, listen, shutdown};

pub use answer::{Counts, Request, TOKEN_PATH};
pub use behaviour::{Behaviour, ForcedOn, LimitScope, ORDINARY_TTL, Tokens};

use crate::netns::Namespace;
use crate::pieces;
use answer::{Head, Memory};
use closing::{Leaving, set_ttl};

/// The IPv4 endpoint.
pub const ENDPOINT: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The IPv6 endpoint, `fd00:ec2::254`.
pub const ENDPOINT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Connections served at once; more wait in the listen backlog.
const MOST_CONNECTIONS: usize = 4096;
/// A client that sends nothing for so long is let go.
const IDLE: Duration = Duration::from_secs(60);
/// How often a waiting connection looks whether the server still runs.
const LOOK_UP: Duration = Duration::from_millis(250);

/// A running fake IMDS. Dropping it closes the listeners and resets what is still open.
pub struct FakeImds {
    shared: Arc<Shared>,
    namespace: Namespace,
    addresses: Vec<SocketAddr>,
    listeners: Mutex<Vec<(Arc<TcpListener>, JoinHandle<()>)>>,
    closing: Option<JoinHandle<()>>,
}

struct Shared {
    behaviour: Mutex<Behaviour>,
    memory: Mutex<Memory>,
    running: AtomicBool,
    open: AtomicUsize,
    leaving: Mutex<Option<Sender<Leaving>>>,
}

impl FakeImds {
    /// Starts serving at `addresses` inside the namespace, which must have them already.
    pub fn start(namespace: &Namespace, addresses: &[SocketAddr], behaviour: Behaviour) -> Result<FakeImds> {
        let (leaving, arrivals) = channel();
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(behaviour),
            memory: Mutex::default(),
            running: AtomicBool::new(true),
            open: AtomicUsize::new(0),
            leaving: Mutex::new(Some(leaving)),
        });
        let closing =
            std::thread::Builder::new().name("imds-closing".into()).spawn(move || closing::look_after(&arrivals))?;
        let (namespace, addresses) = (namespace.clone(), addresses.to_vec());
        let imds = FakeImds { shared, namespace, addresses, listeners: Mutex::default(), closing: Some(closing) };
        imds.listen()?;
        Ok(imds)
    }

    /// Listens at all addresses.
    fn listen(&self) -> Result<()> {
        let mut listeners = lock(&self.listeners);
        for address in &self.addresses {
            let listener = self
                .namespace
                .run_inside(|| -> io::Result<TcpListener> {
                    let listener = TcpListener::bind(address)?;
                    // The standard library lets 128 wait; a storm of clients is more, and their SYNs would go unanswered.
                    listen(&listener, Backlog::MAXALLOWABLE)?;
                    Ok(listener)
                })?
                .with_context(|| format!("listen at {address} in namespace {}", self.namespace.name()))?;
            let listener = Arc::new(listener);
            let (shared, accepting) = (Arc::clone(&self.shared), Arc::clone(&listener));
            let thread =
                std::thread::Builder::new().name("imds-accept".into()).spawn(move || accept(&accepting, &shared))?;
            listeners.push((listener, thread));
        }
        Ok(())
    }

    /// Refuses connections, with a RST from the server's own host, until what this returns is dropped. Open ones go on.
    pub fn stop_listening(&self) -> NotListening<'_> {
        self.close();
        NotListening(self)
    }

    fn close(&self) {
        for (listener, thread) in lock(&self.listeners).drain(..) {
            // accept() returns at once on a listener that was shut down, which is how its thread knows.
            let _ = shutdown(listener.as_raw_fd(), Half::Both);
            let _ = thread.join();
        }
    }

    /// Changes the behaviour from the next request on.
    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut lock(&self.shared.behaviour));
    }

    /// The behaviour now.
    pub fn behaviour(&self) -> Behaviour {
        lock(&self.shared.behaviour).clone()
    }

    /// Every token and credential ever handed out, also in answers that never arrived.
    pub fn secrets(&self) -> Vec<String> {
        lock(&self.shared.memory).secrets.clone()
    }

    /// The requests since the start or the last [`forget_requests`](Self::forget_requests), oldest first; of very many,
    /// the last 65 536.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.memory).requests.iter().cloned().collect()
    }

    /// Tallies of all requests since the start.
    pub fn counts(&self) -> Counts {
        lock(&self.shared.memory).counts.clone()
    }

    /// Empties [`requests`](Self::requests), for the next test. Tokens stay valid and secrets stay known.
    pub fn forget_requests(&self) {
        lock(&self.shared.memory).requests.clear();
    }
}

impl Drop for FakeImds {
    fn drop(&mut self) {
        self.shared.running.store(false, Ordering::Relaxed);
        lock(&self.shared.leaving).take();
        self.close();
        if let Some(thread) = self.closing.take() {
            let _ = thread.join();
        }
    }
}

/// A fake IMDS that refuses connections; dropping it lets it listen again.
pub struct NotListening<'a>(&'a FakeImds);

impl Drop for NotListening<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.listen() {
            eprintln!("the fake IMDS does not listen again: {error:#}");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while shared.running.load(Ordering::Relaxed) {
        if shared.open.load(Ordering::Relaxed) >= MOST_CONNECTIONS {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // Shut down: a listener that no longer listens says EINVAL (accept(2)).
            Err(error) if error.kind() == ErrorKind::InvalidInput => return,
            Err(_) => {
                // Out of descriptors, or an aborted connection.
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
        };
        shared.open.fetch_add(1, Ordering::Relaxed);
        let ours = Arc::clone(shared);
        let served = std::thread::Builder::new().name("imds-serve".into()).stack_size(128 * 1024).spawn(move || {
            // A client that goes away is no failure of the server.
            let _ = serve(stream, peer, &ours);
            ours.open.fetch_sub(1, Ordering::Relaxed);
        });
        if served.is_err() {
            shared.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn serve(mut stream: TcpStream, peer: SocketAddr, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LOOK_UP))?;
    let mut buffer = Vec::new();
    loop {
        let Some(head) = read_request(&mut stream, &mut buffer, shared)? else { return Ok(()) };
        let behaviour = lock(&shared.behaviour).clone();
        if behaviour.reset_after_request {
            lock(&shared.memory).note(&head, None, peer);
            closing::reset(&stream);
            return Ok(());
        }
        if behaviour.silent {
            lock(&shared.memory).note(&head, None, peer);
            return wait_for_end(&mut stream, shared);
        }
        std::thread::sleep(if head.asks_for_token() { behaviour.delay_token } else { behaviour.delay_get });
        let response = {
            let mut memory = lock(&shared.memory);
            let response = memory.answer(&head, &behaviour);
            memory.note(&head, Some(response.status), peer);
            response
        };
        let close = !behaviour.keep_alive || behaviour.http10 || head.asks_to_close();
        let bytes = response.bytes(behaviour.http10, close);
        let write = |stream: &mut TcpStream| match behaviour.split {
            Some(size) => pieces::write(stream, &bytes, size, behaviour.give_up),
            None => stream.write_all(&bytes),
        };
        let all_later = behaviour.limit_scope == LimitScope::AllLater;
        if !(response.is_token || all_later) {
            write(&mut stream)?;
            if close {
                return Ok(());
            }
            continue;
        }

        set_ttl(&stream, behaviour.hop_limit)?;
        write(&mut stream)?;
        let give_up_at = Instant::now() + behaviour.give_up;
        let restore_for_fin = behaviour.fin_ttl_restored && !all_later;
        if !close {
            while closing::unsent(&stream)? > 0 && Instant::now() < give_up_at {
                std::thread::sleep(Duration::from_millis(1));
            }
            if closing::unsent(&stream)? == 0 {
                if !all_later {
                    set_ttl(&stream, ORDINARY_TTL)?;
                }
                continue;
            }
        } else if !restore_for_fin {
            stream.shutdown(Shutdown::Write)?;
        }
        let one = Leaving { stream, restore_for_fin, restore_for_reset: !all_later, give_up_at };
        if let Some(leaving) = lock(&shared.leaving).as_ref() {
            let _ = leaving.send(one);
        }
        return Ok(());
    }
}

/// Reads one request with its body. `None` when the client closed, or sent what is not HTTP.
fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>, shared: &Shared) -> io::Result<Option<Head>> {
    let began = Instant::now();
    loop {
        if let Some((head, length)) = match parse(buffer) {
            Ok(parsed) => parsed,
            Err(_) => return Ok(None),
        } {
            let whole = length + head.content_length();
            if buffer.len() >= whole {
                buffer.drain(..whole);
                return Ok(Some(head));
            }
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(None),
            Ok(count) => buffer.extend(&chunk[..count]),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
        let over = began.elapsed() > IDLE || buffer.len() > 64 * 1024;
        if over || !shared.running.load(Ordering::Relaxed) {
            return Ok(None);
        }
    }
}

fn parse(buffer: &[u8]) -> Result<Option<(Head, usize)>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = request.parse(buffer)? else { return Ok(None) };
    let head = Head {
        method: request.method.unwrap_or_default().to_owned(),
        path: request.path.unwrap_or_default().to_owned(),
        http10: request.version == Some(0),
        headers: request
            .headers
            .iter()
            .map(|header| (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned()))
            .collect(),
    };
    Ok(Some((head, length)))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Says nothing until the client goes.
fn wait_for_end(stream: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    let began = Instant::now();
    let mut ignored = [0; 512];
    while shared.running.load(Ordering::Relaxed) && began.elapsed() < IDLE {
        match stream.read(&mut ignored) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
