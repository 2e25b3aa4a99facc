//! Who asks, and who answers, fast enough that neither is what is measured?
//!
//! A server of a few lines instead of the fake IMDS, at an address of its own: one thread that takes a connection, reads one request and
//! writes one answer. Clients are threads of this process in a container's network namespace.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::netns::Namespace;
use crate::own_network;

/// Where the server is: not where the fake IMDS is.
pub const ENDPOINT: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 250);
/// Threads that ask.
const CLIENTS: u32 = 4;
/// The answer to a request for a token; nobody issued this one.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21600\r\nContent-Type: text/plain\r\n\
Content-Length: 56\r\nConnection: close\r\nServer: EC2ws\r\n\r\nAQAEAEXAMPLEtokenEXAMPLEtokenEXAMPLEtokenEXAMPLEtoken0==";
const REQUEST: &[u8] =
    b"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: Boto3/1.40.21 md/Botocore#1.40.21\r\n\
Accept: */*\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600\r\nContent-Length: 0\r\n\r\n";
const PATIENCE: Duration = Duration::from_secs(5);
/// Threads that ask where no answer comes, how long each waits for one, and the TTL of answers that do come.
const HASTY: u32 = 32;
const HASTE: Duration = Duration::from_millis(10);
const FAR: u32 = 64;

/// Answers at [`ENDPOINT`] as long as it lives.
pub struct Server {
    ends: Arc<AtomicBool>,
    /// TTL of what it sends once it has taken a connection.
    ttl: Arc<AtomicU32>,
    serving: Option<JoinHandle<()>>,
    namespace: Namespace,
}

impl Server {
    /// Gives the namespace the address, and serves there.
    pub fn start(namespace: &Namespace) -> Result<Server> {
        namespace.ip(&format!("addr replace {ENDPOINT}/32 dev eth0"))?;
        let listener = namespace.run_inside(|| TcpListener::bind((ENDPOINT, 80)))?.context("listen")?;
        let ends = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&ends);
        let ttl = Arc::new(AtomicU32::new(FAR));
        let its_ttl = Arc::clone(&ttl);
        let serving = thread::spawn(move || {
            let mut room = [0; 1024];
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                // A client that is gone is counted where it asks.
                let Ok(mut stream) = stream else { continue };
                let _ = stream.set_read_timeout(Some(PATIENCE));
                let _ = stream.set_ttl(its_ttl.load(Ordering::Relaxed));
                let _ = stream.read(&mut room).and_then(|_| stream.write_all(ANSWER));
            }
        });
        Ok(Server { ends, ttl, serving: Some(serving), namespace: namespace.clone() })
    }

    /// From now on its answers have a TTL of 1, until what this gives is dropped.
    pub fn near(&self) -> impl Drop + use<> {
        struct Near(Arc<AtomicU32>);
        impl Drop for Near {
            fn drop(&mut self) {
                self.0.store(FAR, Ordering::Relaxed);
            }
        }
        self.ttl.store(1, Ordering::Relaxed);
        Near(Arc::clone(&self.ttl))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // A last connection wakes it.
        let _ = self.namespace.run_inside(|| TcpStream::connect((ENDPOINT, 80)));
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

/// How `count` requests went.
pub struct Asked {
    /// How many were answered.
    pub answered: u32,
    /// How long all took.
    pub took: Duration,
}

/// Asks `count` times from within a namespace of the lab: `a_second` times each second, or as fast as it can.
pub fn ask(namespace: &Namespace, count: u32, a_second: Option<u32>) -> Result<Asked> {
    by(CLIENTS, PATIENCE, namespace, count, a_second)
}

/// Asks `count` times where no answer comes.
pub fn ask_in_vain(namespace: &Namespace, count: u32) -> Result<Asked> {
    by(HASTY, HASTE, namespace, count, None)
}

fn by(clients: u32, patience: Duration, namespace: &Namespace, count: u32, a_second: Option<u32>) -> Result<Asked> {
    refuse(namespace)?;
    let each = count / clients;
    let pace = a_second.map(|rate| Duration::from_secs(u64::from(clients)) / rate);
    let began = Instant::now();
    let answered = thread::scope(|scope| {
        let client = || -> Result<u32> {
            namespace.enter().context("enter the client's namespace")?;
            let began = Instant::now();
            let mut answered = 0;
            for turn in 0..each {
                if let Some(pace) = pace {
                    thread::sleep((pace * turn).saturating_sub(began.elapsed()));
                }
                answered += u32::from(exchange(patience).is_ok());
            }
            Ok(answered)
        };
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        let joined = clients.into_iter().map(|client| client.join().unwrap_or_else(|_| bail!("a client panicked")));
        joined.sum::<Result<u32>>()
    })?;
    Ok(Asked { answered, took: began.elapsed() })
}

fn exchange(patience: Duration) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((ENDPOINT, 80)), PATIENCE)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(REQUEST)?;
    let mut answer = Vec::with_capacity(512);
    stream.read_to_end(&mut answer)?;
    if answer == ANSWER { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

/// What one connect, accept and close on the loopback of a namespace takes.
pub fn connects(namespace: &Namespace, count: u32) -> Result<Duration> {
    refuse(namespace)?;
    let run = || -> std::io::Result<Duration> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let began = Instant::now();
        for _ in 0..count {
            let near = TcpStream::connect(address)?;
            let (far, _) = listener.accept()?;
            drop(near);
            drop(far);
        }
        Ok(began.elapsed() / count)
    };
    Ok(namespace.run_inside(run)??)
}

/// What sending one 64-byte UDP packet from a namespace through its host's bridge and NAT takes.
pub fn packets(namespace: &Namespace, sink: &UdpSocket, count: u32) -> Result<Duration> {
    refuse(namespace)?;
    let to = sink.local_addr()?;
    let run = || -> std::io::Result<Duration> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        let began = Instant::now();
        for _ in 0..count {
            socket.send(&[0; 36])?;
        }
        Ok(began.elapsed() / count)
    };
    Ok(namespace.run_inside(run)??)
}

/// What one UDP packet takes that nobody listens for, on the loopback of a namespace: the kernel drops it.
pub fn drops(namespace: &Namespace, count: u32) -> Result<Duration> {
    refuse(namespace)?;
    let run = || -> std::io::Result<Duration> {
        // Bound and let go: nobody listens there.
        let to = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let began = Instant::now();
        for _ in 0..count {
            socket.send_to(&[0; 36], to)?;
        }
        Ok(began.elapsed() / count)
    };
    Ok(namespace.run_inside(run)??)
}

/// Bytes a second of one TCP connection from a namespace through its host's bridge and NAT, for so long.
pub fn throughput(from: &Namespace, to: &Namespace, listen: Ipv4Addr, time: Duration) -> Result<f64> {
    refuse(from)?;
    let listener = to.run_inside(|| TcpListener::bind((listen, 0)))??;
    let address = listener.local_addr()?;
    let sink = thread::spawn(move || -> std::io::Result<u64> {
        let (mut stream, _) = listener.accept()?;
        let (mut room, mut taken) = (vec![0; 256 << 10], 0);
        loop {
            match stream.read(&mut room)? {
                0 => return Ok(taken),
                bytes => taken += bytes as u64,
            }
        }
    });
    let send = || -> std::io::Result<Duration> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        let (bytes, began) = (vec![0; 256 << 10], Instant::now());
        while began.elapsed() < time {
            stream.write_all(&bytes)?;
        }
        Ok(began.elapsed())
    };
    let took = from.run_inside(send)??;
    let taken = sink.join().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()))?;
    Ok(taken as f64 / took.as_secs_f64())
}

/// Nobody asks from the machine's own network.
fn refuse(namespace: &Namespace) -> Result<()> {
    let own = std::fs::metadata("/proc/self/ns/net")?.ino();
    if namespace.inum() == own {
        bail!("bench: this is our own network namespace, and none of the lab's");
    }
    match own_network::refused(namespace.inum()) {
        Some(why) => bail!("bench: {why}"),
        None => Ok(()),
    }
}
