//! What does a program in a container do when it wants something of IMDS?
//!
//! It runs in an image without anything. It prints one JSON line per attempt, and never a token or what it was told:
//!
//! ```text
//! {"pid":7,"step":"put"|"get","status":200|null,"ms":1.2,"error":null|"read timeout","port":40000|null}
//! ```
//!
//! An error is the stage (`connect`, `write`, `read`) and what happened: `timeout`, `reset`, `refused`, `closed` (the server
//! closed before the answer was whole), or the kernel's words, e.g. `host unreachable`.
//!
//! The exit code is 0 if every attempt was answered 200, 1 if not, 2 if the command line made no sense.
//! `imds-client --help` lists the commands and options: [`USAGE`].

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::libc;

#[path = "../own_network.rs"]
mod own_network;
#[path = "../pieces.rs"]
mod pieces;

const USAGE: &str = "usage: imds-client COMMAND [OPTION]...
commands:
  v2                    PUT for a token, then GET with it
  v1                    GET without a token
  fallback              like botocore: PUT; if it fails, GET without a token
  put-only              PUT for a token
  burst                 v2, without a pause, in all threads (--count, --parallel)
  get-with-token TOKEN  GET with this token
  garbage-token         GET with a token nobody issued, of a real one's length
  linger SECONDS        do nothing
what is asked:
  --path P              of the GET (/latest/meta-data/instance-id)
  --token-path P        of the token request (/latest/api/token)
  --method-token M      the token request's method (PUT)
  --token-ttl SECONDS   lifetime asked for (21600); `none` sends no such header
  --header 'NAME: VALUE'  one more header in the token request
  --forwarded-for ADDR  X-Forwarded-For in every request, as a proxy adds it
  --user-agent UA       (imds-client/1)
  --http10              ask in HTTP/1.0
  --endpoint ADDRESS    IPv4 or IPv6 (169.254.169.254); always port 80
how it is sent:
  --split-request N     in pieces of N bytes, each in a segment of its own
  --keep-alive          all turns of a thread on one connection, as long as the server keeps it
  --pipeline N          each GET is N of them, sent at once on one connection; then N answers are read
  --ip-options COUNT    that many bytes of no-operation options in each IPv4 packet after the handshake
when, and how often:
  --count N             turns of each thread (1; burst: 100)
  --parallel N          threads (1; burst: 4)
  --interval-ms MS      pause between turns (0)
  --wait-ms MS          pause between getting a token and using it (0)
  --timeout-ms MS       for connecting, and again for each answer (1000)
  --wait-file PATH      begin when it exists
  --linger-after SECONDS  live on so long after the last turn (0)
  --comm NAME           the process's name
  --help                this";

#[derive(Clone)]
struct Options {
    what: String,
    token: String,
    path: String,
    token_path: String,
    token_method: String,
    token_ttl: String,
    headers: Vec<String>,
    forwarded_for: Option<String>,
    user_agent: String,
    http10: bool,
    endpoint: IpAddr,
    split: Option<usize>,
    keep_alive: bool,
    pipeline: usize,
    ip_options: usize,
    count: u64,
    parallel: u64,
    interval: Duration,
    wait: Duration,
    timeout: Duration,
    wait_file: Option<String>,
    linger: Duration,
    comm: Option<String>,
}

fn main() -> ExitCode {
    if std::env::args().any(|arg| arg == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("imds-client: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Some(why) = own_network::refusal().filter(|_| options.what != "linger") {
        eprintln!("imds-client: {why}");
        return ExitCode::from(2);
    }
    if let Some(name) = &options.comm {
        // The same as prctl(PR_SET_NAME); threads inherit it.
        let _ = std::fs::write("/proc/self/comm", name);
    }
    if let Some(file) = &options.wait_file {
        while !std::path::Path::new(file).exists() {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let well = if options.what == "linger" { true } else { run(&options) };
    if !options.linger.is_zero() {
        std::thread::sleep(options.linger);
    }
    if well { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// Whether every attempt got what it asked for.
fn run(options: &Options) -> bool {
    let threads: Vec<_> = (0..options.parallel)
        .map(|_| {
            let options = options.clone();
            std::thread::spawn(move || {
                let mut client = Client { options: &options, kept: None };
                let mut well = true;
                for turn in 0..options.count {
                    if turn > 0 {
                        std::thread::sleep(options.interval);
                    }
                    well &= client.turn();
                }
                well
            })
        })
        .collect();
    let well: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap_or(false)).collect();
    well.into_iter().all(|well| well)
}

/// One thread's view: how it asks, and the connection it still has.
struct Client<'a> {
    options: &'a Options,
    kept: Option<Connection>,
}

impl Client<'_> {
    fn turn(&mut self) -> bool {
        match self.options.what.as_str() {
            "v1" => self.get(None),
            "get-with-token" => self.get(Some(&self.options.token)),
            "garbage-token" => match garbage() {
                Ok(token) => self.get(Some(&token)),
                Err(_) => false,
            },
            "put-only" => self.put().is_some(),
            "fallback" => {
                let token = self.put();
                self.get(token.as_deref())
            }
            _ => match self.put() {
                Some(token) => self.get(Some(&token)),
                None => false,
            },
        }
    }

    fn put(&mut self) -> Option<String> {
        let options = self.options;
        let mut headers = vec![format!("X-aws-ec2-metadata-token-ttl-seconds: {}", options.token_ttl)];
        if options.token_ttl == "none" {
            headers.clear();
        }
        headers.extend(options.headers.iter().cloned());
        if options.token_method != "GET" {
            headers.push("Content-Length: 0".into());
        }
        let request = request(options, &options.token_method, &options.token_path, &headers);
        let token = self.exchange("put", &request, 1).pop().flatten()?;
        std::thread::sleep(options.wait);
        Some(token)
    }

    fn get(&mut self, token: Option<&str>) -> bool {
        let headers: Vec<_> = token.map(|token| format!("X-aws-ec2-metadata-token: {token}")).into_iter().collect();
        let one = request(self.options, "GET", &self.options.path, &headers);
        let bodies = self.exchange("get", &one.repeat(self.options.pipeline), self.options.pipeline);
        bodies.iter().all(Option::is_some)
    }

    /// Sends what are `count` requests and reads as many answers, each reported. Gives the bodies of those that are 200.
    fn exchange(&mut self, step: &str, requests: &str, count: usize) -> Vec<Option<String>> {
        let began = Instant::now();
        let mut connection = match self.kept.take() {
            Some(connection) => Ok(connection),
            None => Connection::open(self.options),
        };
        if let Ok(open) = &mut connection
            && let Err(error) = open.send(self.options, requests.as_bytes())
        {
            connection = Err((error, open.port));
        }
        let deadline = Instant::now() + self.options.timeout;
        let mut bodies = Vec::new();
        for _ in 0..count {
            let result = match &mut connection {
                Ok(open) => open.receive(deadline).map_err(|error| (error, open.port)),
                Err(error) => Err(error.clone()),
            };
            let port = match &result {
                Ok(_) => connection.as_ref().ok().and_then(|open| open.port),
                Err((_, port)) => *port,
            };
            report(step, began, result.as_ref().map(|answer| answer.status).map_err(|(error, _)| error), port);
            match result {
                Ok(answer) => {
                    self.kept = None;
                    let keep = self.options.keep_alive && !answer.closes;
                    bodies.push((answer.status == 200).then_some(answer.body));
                    if bodies.len() == count && keep {
                        self.kept = connection.ok();
                        break;
                    }
                }
                Err(error) => {
                    bodies.push(None);
                    connection = Err(error);
                }
            }
        }
        bodies
    }
}

/// One JSON line on standard output.
fn report(step: &str, began: Instant, result: Result<u16, &String>, port: Option<u16>) {
    let ms = began.elapsed().as_secs_f64() * 1000.0;
    let (pid, port) = (std::process::id(), port.map_or("null".into(), |port| port.to_string()));
    let (status, error) = match result {
        Ok(status) => (status.to_string(), "null".to_owned()),
        Err(error) => ("null".to_owned(), format!("\"{error}\"")),
    };
    let line = format!(
        "{{\"pid\":{pid},\"step\":\"{step}\",\"status\":{status},\"ms\":{ms:.1},\"error\":{error},\"port\":{port}}}\n"
    );
    // One write a line, so that threads do not mix theirs.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}

fn request(options: &Options, method: &str, path: &str, headers: &[String]) -> String {
    let host = match options.endpoint {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let version = if options.http10 { "1.0" } else { "1.1" };
    let mut request =
        format!("{method} {path} HTTP/{version}\r\nHost: {host}\r\nUser-Agent: {}\r\n", options.user_agent);
    for header in headers {
        request += &format!("{header}\r\n");
    }
    if let Some(address) = &options.forwarded_for {
        request += &format!("X-Forwarded-For: {address}\r\n");
    }
    // A pipeline of which the first answer closes the connection would be none.
    let keep = options.keep_alive || options.pipeline > 1;
    request + &format!("Accept: */*\r\nConnection: {}\r\n\r\n", if keep { "keep-alive" } else { "close" })
}

/// A connection, and what came on it that nobody has read yet.
struct Connection {
    stream: TcpStream,
    /// Our end's.
    port: Option<u16>,
    unread: Vec<u8>,
}

struct Answer {
    status: u16,
    body: String,
    closes: bool,
}

impl Connection {
    /// On failure says what went wrong; there is no port then.
    fn open(options: &Options) -> Result<Connection, (String, Option<u16>)> {
        let address = SocketAddr::new(options.endpoint, 80);
        let stream =
            TcpStream::connect_timeout(&address, options.timeout).map_err(|error| (named("connect", &error), None))?;
        let port = stream.local_addr().ok().map(|address| address.port());
        if options.ip_options > 0 {
            add_ip_options(&stream, options.ip_options).map_err(|error| (named("options", &error), port))?;
        }
        Ok(Connection { stream, port, unread: Vec::new() })
    }

    fn send(&mut self, options: &Options, bytes: &[u8]) -> Result<(), String> {
        match options.split {
            Some(size) => pieces::write(&mut self.stream, bytes, size, options.timeout),
            None => self.stream.write_all(bytes),
        }
        .map_err(|error| named("write", &error))
    }

    fn receive(&mut self, deadline: Instant) -> Result<Answer, String> {
        let mut chunk = [0; 4096];
        loop {
            if let Some((answer, length)) = complete(&self.unread) {
                self.unread.drain(..length);
                return Ok(answer);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("read timeout".into());
            }
            self.stream.set_read_timeout(Some(left)).map_err(|error| named("read", &error))?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err("read closed".into()),
                Ok(count) => self.unread.extend(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(named("read", &error)),
            }
        }
    }
}

fn named(stage: &str, error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("{stage} timeout"),
        ErrorKind::ConnectionReset => format!("{stage} reset"),
        ErrorKind::ConnectionRefused => format!("{stage} refused"),
        other => format!("{stage} {other}"),
    }
}

/// Makes each packet from now on carry `count` no-operation options, so that its IP header is longer than 20 bytes.
fn add_ip_options(stream: &TcpStream, count: usize) -> std::io::Result<()> {
    // IPOPT_NOOP, RFC 791 section 3.1.
    let options = vec![1u8; count];
    // SAFETY: the kernel reads `count` bytes of `options`, which lives until the call returns.
    let result = unsafe {
        let (level, name) = (libc::IPPROTO_IP, libc::IP_OPTIONS);
        libc::setsockopt(stream.as_raw_fd(), level, name, options.as_ptr().cast(), count as libc::socklen_t)
    };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// The first answer and its length, once the whole of it is there.
fn complete(bytes: &[u8]) -> Option<(Answer, usize)> {
    let begin = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..begin]);
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let header = |wanted: &str| {
        head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted).then(|| value.trim().to_ascii_lowercase())
        })
    };
    let end = begin + header("content-length")?.parse::<usize>().ok()?;
    let body = String::from_utf8_lossy(bytes.get(begin..end)?).into_owned();
    Some((Answer { status, body, closes: header("connection").is_some_and(|value| value == "close") }, end))
}

/// 56 letters and digits that look like a token and are none.
fn garbage() -> std::io::Result<String> {
    let mut bytes = [0; 49];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let middle: String = bytes.iter().map(|byte| char::from(letters[usize::from(byte % 64)])).collect();
    Ok(format!("AQAEA{middle}=="))
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let what = args.next().ok_or("what shall it do?")?;
    let mut options = Options {
        what: what.clone(),
        token: String::new(),
        path: "/latest/meta-data/instance-id".into(),
        token_path: "/latest/api/token".into(),
        token_method: "PUT".into(),
        token_ttl: "21600".into(),
        headers: Vec::new(),
        forwarded_for: None,
        user_agent: "imds-client/1".into(),
        http10: false,
        endpoint: IpAddr::from([169, 254, 169, 254]),
        split: None,
        keep_alive: false,
        pipeline: 1,
        ip_options: 0,
        count: if what == "burst" { 100 } else { 1 },
        parallel: if what == "burst" { 4 } else { 1 },
        interval: Duration::ZERO,
        wait: Duration::ZERO,
        timeout: Duration::from_secs(1),
        wait_file: None,
        linger: Duration::ZERO,
        comm: None,
    };
    match what.as_str() {
        "v2" | "v1" | "fallback" | "put-only" | "burst" | "garbage-token" => {}
        "get-with-token" => options.token = args.next().ok_or("get-with-token TOKEN")?,
        "linger" => options.linger = seconds(&args.next().ok_or("linger SECONDS")?)?,
        other => return Err(format!("unknown command {other}")),
    }
    while let Some(option) = args.next() {
        match option.as_str() {
            "--http10" => options.http10 = true,
            "--keep-alive" => options.keep_alive = true,
            _ => {
                let value = args.next().ok_or(format!("{option} wants a value"))?;
                options.take(&option, value)?;
            }
        }
    }
    Ok(options)
}

impl Options {
    /// An option that has a value.
    fn take(&mut self, option: &str, value: String) -> Result<(), String> {
        let number = || value.parse::<u64>().map_err(|_| format!("{option} {value}: not a number"));
        let from_one = || match value.parse() {
            Ok(0) | Err(_) => Err(format!("{option} {value}: not a number from 1 up")),
            Ok(count) => Ok(count),
        };
        let millis = || number().map(Duration::from_millis);
        match option {
            "--path" => self.path = value,
            "--token-path" => self.token_path = value,
            "--method-token" => match value.is_empty() || value.bytes().any(|byte| !byte.is_ascii_uppercase()) {
                true => return Err(format!("{option} {value}: not a method, such as PUT")),
                false => self.token_method = value,
            },
            "--token-ttl" => self.token_ttl = value,
            "--header" => self.headers.push(value),
            "--forwarded-for" => self.forwarded_for = Some(value),
            "--user-agent" => self.user_agent = value,
            "--endpoint" => self.endpoint = value.parse().map_err(|_| format!("{value}: not an address"))?,
            "--split-request" => self.split = Some(from_one()?),
            "--pipeline" => self.pipeline = from_one()?,
            "--ip-options" => self.ip_options = number()? as usize,
            "--count" => self.count = number()?,
            "--parallel" => self.parallel = number()?,
            "--interval-ms" => self.interval = millis()?,
            "--wait-ms" => self.wait = millis()?,
            "--timeout-ms" => self.timeout = millis()?,
            "--wait-file" => self.wait_file = Some(value),
            "--linger-after" => self.linger = seconds(&value)?,
            "--comm" => self.comm = Some(value),
            other => return Err(format!("unknown option {other}")),
        }
        Ok(())
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse().map_err(|_| format!("{text}: not a number of seconds"))?;
    Ok(Duration::from_secs(number))
}
