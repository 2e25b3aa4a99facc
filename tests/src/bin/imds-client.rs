//! What does a program in a container do when it wants something of IMDS?
//!
//! It runs in an image without anything. It prints one JSON line per attempt and never a token.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::libc;

const USAGE: &str =
    "usage: imds-client v2|v1|fallback|put-only|burst|get-with-token TOKEN|linger SECONDS [OPTION VALUE]...
  v2              PUT for a token, then GET with it
  v1              GET without a token
  fallback        like botocore: PUT; if it fails, GET without a token
  put-only        PUT for a token
  burst           v2, without a pause, in all threads (--count, --parallel)
  get-with-token  GET with this token
  linger          do nothing
options: --path P  --count N  --parallel N  --timeout-ms MS (1000)  --interval-ms MS (0)  --endpoint ADDRESS
  --user-agent UA  --token-ttl SECONDS (21600)  --header 'NAME: VALUE' (to the PUT)  --token-path P
  --linger-after SECONDS  --wait-file PATH (begin when it exists)  --comm NAME
  --ip-options COUNT (that many bytes of no-operation options in each IPv4 packet after the handshake)";

#[derive(Clone)]
struct Options {
    what: String,
    token: String,
    path: String,
    token_path: String,
    count: u64,
    parallel: u64,
    timeout: Duration,
    interval: Duration,
    endpoint: IpAddr,
    user_agent: String,
    token_ttl: String,
    headers: Vec<String>,
    linger: Duration,
    wait_file: Option<String>,
    comm: Option<String>,
    ip_options: usize,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("imds-client: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
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
                let mut well = true;
                for turn in 0..options.count {
                    if turn > 0 {
                        std::thread::sleep(options.interval);
                    }
                    well &= once(&options);
                }
                well
            })
        })
        .collect();
    let well: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap_or(false)).collect();
    well.into_iter().all(|well| well)
}

fn once(options: &Options) -> bool {
    match options.what.as_str() {
        "v1" => get(options, None),
        "get-with-token" => get(options, Some(&options.token)),
        "put-only" => put(options).is_some(),
        "fallback" => {
            let token = put(options);
            get(options, token.as_deref())
        }
        _ => match put(options) {
            Some(token) => get(options, Some(&token)),
            None => false,
        },
    }
}

fn put(options: &Options) -> Option<String> {
    let mut headers = vec![format!("X-aws-ec2-metadata-token-ttl-seconds: {}", options.token_ttl)];
    if options.token_ttl == "none" {
        headers.clear();
    }
    headers.extend(options.headers.iter().cloned());
    let (status, body) = attempt(options, "put", "PUT", &options.token_path, &headers);
    (status == Some(200)).then_some(body)
}

fn get(options: &Options, token: Option<&str>) -> bool {
    let headers: Vec<_> = token.map(|token| format!("X-aws-ec2-metadata-token: {token}")).into_iter().collect();
    attempt(options, "get", "GET", &options.path, &headers).0 == Some(200)
}

/// One request on a connection of its own, reported on standard output.
fn attempt(options: &Options, step: &str, method: &str, path: &str, headers: &[String]) -> (Option<u16>, String) {
    let began = Instant::now();
    let (result, port) = match ask(options, method, path, headers) {
        Ok((status, body, port)) => (Ok((status, body)), Some(port)),
        Err((error, port)) => (Err(error), port),
    };
    let ms = began.elapsed().as_secs_f64() * 1000.0;
    let (pid, port) = (std::process::id(), port.map_or("null".into(), |port| port.to_string()));
    let (status, error) = match &result {
        Ok((status, _)) => (status.to_string(), "null".to_owned()),
        Err(error) => ("null".to_owned(), format!("\"{error}\"")),
    };
    let line = format!(
        "{{\"pid\":{pid},\"step\":\"{step}\",\"status\":{status},\"ms\":{ms:.1},\"error\":{error},\"port\":{port}}}\n"
    );
    // One write a line, so that threads do not mix theirs.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
    match result {
        Ok((status, body)) => (Some(status), body),
        Err(_) => (None, String::new()),
    }
}

type Failure = (String, Option<u16>);

/// Status, body and own port; on failure what went wrong, and the port if there was one.
fn ask(options: &Options, method: &str, path: &str, headers: &[String]) -> Result<(u16, String, u16), Failure> {
    let name = |stage: &str, error: std::io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("{stage} timeout"),
        ErrorKind::ConnectionReset => format!("{stage} reset"),
        ErrorKind::ConnectionRefused => format!("{stage} refused"),
        other => format!("{stage} {other}"),
    };
    let address = SocketAddr::new(options.endpoint, 80);
    let mut stream =
        TcpStream::connect_timeout(&address, options.timeout).map_err(|error| (name("connect", error), None))?;
    let port = stream.local_addr().ok().map(|address| address.port());
    let failed = |stage: &str, error: std::io::Error| (name(stage, error), port);
    if options.ip_options > 0 {
        add_ip_options(&stream, options.ip_options).map_err(|error| failed("options", error))?;
    }
    let host = match options.endpoint {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {}\r\n", options.user_agent);
    for header in headers {
        request += &format!("{header}\r\n");
    }
    if method == "PUT" {
        request += "Content-Length: 0\r\n";
    }
    request += "Accept: */*\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).map_err(|error| failed("write", error))?;

    let deadline = Instant::now() + options.timeout;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some(found) = complete(&answer) {
            return Ok((found.0, found.1, port.unwrap_or(0)));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(("read timeout".into(), port));
        }
        stream.set_read_timeout(Some(left)).map_err(|error| failed("read", error))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Err(("read closed".into(), port)),
            Ok(count) => answer.extend(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed("read", error)),
        }
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

/// Status and body, once the whole answer is there.
fn complete(answer: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    (body.len() >= length).then(|| (status, body[..length].to_owned()))
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let what = args.next().ok_or("what shall it do?")?;
    let mut options = Options {
        what: what.clone(),
        token: String::new(),
        path: "/latest/meta-data/instance-id".into(),
        token_path: "/latest/api/token".into(),
        count: if what == "burst" { 100 } else { 1 },
        parallel: if what == "burst" { 4 } else { 1 },
        timeout: Duration::from_secs(1),
        interval: Duration::ZERO,
        endpoint: IpAddr::from([169, 254, 169, 254]),
        user_agent: "imds-client/1".into(),
        token_ttl: "21600".into(),
        headers: Vec::new(),
        linger: Duration::ZERO,
        wait_file: None,
        comm: None,
        ip_options: 0,
    };
    match what.as_str() {
        "v2" | "v1" | "fallback" | "put-only" | "burst" => {}
        "get-with-token" => options.token = args.next().ok_or("get-with-token TOKEN")?,
        "linger" => options.linger = seconds(&args.next().ok_or("linger SECONDS")?)?,
        other => return Err(format!("unknown command {other}")),
    }
    while let Some(option) = args.next() {
        let value = args.next().ok_or(format!("{option} wants a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{option} {value}: not a number"));
        match option.as_str() {
            "--path" => options.path = value,
            "--token-path" => options.token_path = value,
            "--count" => options.count = number()?,
            "--parallel" => options.parallel = number()?,
            "--timeout-ms" => options.timeout = Duration::from_millis(number()?),
            "--interval-ms" => options.interval = Duration::from_millis(number()?),
            "--endpoint" => options.endpoint = value.parse().map_err(|_| format!("{value}: not an address"))?,
            "--user-agent" => options.user_agent = value,
            "--token-ttl" => options.token_ttl = value,
            "--header" => options.headers.push(value),
            "--linger-after" => options.linger = seconds(&value)?,
            "--wait-file" => options.wait_file = Some(value),
            "--comm" => options.comm = Some(value),
            "--ip-options" => options.ip_options = number()? as usize,
            other => return Err(format!("unknown option {other}")),
        }
    }
    Ok(options)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse().map_err(|_| format!("{text}: not a number of seconds"))?;
    Ok(Duration::from_secs(number))
}
