//! What does IMDS answer to this request, under this behaviour?
//!
//! Written after the documentation and recorded exchanges. Where the real one is not known (the status for
//! X-Forwarded-For), what other emulators do is done.

use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::behaviour::{Behaviour, ForcedOn, Tokens};
use crate::expect::base64;

/// The path of token requests.
pub const TOKEN_PATH: &str = "/latest/api/token";
/// The longest lifetime of a token, six hours (AWS user guide).
const LONGEST_TTL: u64 = 21_600;
/// What [`super::FakeImds::requests`] remembers; older ones are only counted.
const REMEMBERED: usize = 65_536;

/// One request as the server saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `PUT`, ...
    pub method: String,
    /// The path as sent.
    pub path: String,
    /// Whether it carried a token header, valid or not.
    pub token_present: bool,
    /// The `User-Agent` header.
    pub user_agent: Option<String>,
    /// The status it was answered with; `None` when the server was told to be silent or to reset.
    pub status: Option<u16>,
    /// The client as the server sees it: after the runner's masquerading.
    pub peer: IpAddr,
    /// Its port, likewise.
    pub peer_port: u16,
}

/// Tallies since the start; they never forget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests for a token.
    pub token_requests: u64,
    /// All other requests.
    pub other_requests: u64,
    /// Requests by the status they were answered with.
    pub by_status: HashMap<u16, u64>,
}

/// The parsed head of a request.
pub(super) struct Head {
    pub method: String,
    pub path: String,
    /// `HTTP/1.0`, not `HTTP/1.1`.
    pub http10: bool,
    pub headers: Vec<(String, String)>,
}

impl Head {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// How many bytes of body follow.
    pub fn content_length(&self) -> usize {
        self.header("content-length").and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    }

    pub fn asks_to_close(&self) -> bool {
        match self.header("connection") {
            Some(value) if value.eq_ignore_ascii_case("close") => true,
            // In HTTP/1.0 a connection is kept only for those who ask for it (RFC 9112 section 9.3).
            Some(value) if value.eq_ignore_ascii_case("keep-alive") => false,
            _ => self.http10,
        }
    }

    pub fn asks_for_token(&self) -> bool {
        self.method == "PUT" && self.path == TOKEN_PATH
    }
}

pub(super) struct Response {
    pub status: u16,
    pub content_type: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    pub head_only: bool,
    /// The answer to a token request: the one the hop limit is for.
    pub is_token: bool,
}

impl Response {
    fn empty(status: u16) -> Response {
        let (content_type, headers) = ("text/plain", Vec::new());
        Response { status, content_type, headers, body: Vec::new(), head_only: false, is_token: false }
    }

    /// The bytes on the wire.
    pub fn bytes(&self, http10: bool, close: bool) -> Vec<u8> {
        let (version, ranges) = if http10 { ("HTTP/1.0", "bytes") } else { ("HTTP/1.1", "none") };
        let now = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
        let mut head = format!("{version} {} {}\r\n", self.status, phrase(self.status));
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if self.status == 200 && !self.is_token {
            head += &format!("Accept-Ranges: {ranges}\r\nLast-Modified: Wed, 30 Jul 2025 20:11:43 GMT\r\n");
        }
        head += &format!("Content-Length: {}\r\nDate: {now}\r\nServer: EC2ws\r\n", self.body.len());
        head += if close { "Connection: close\r\n" } else { "Connection: keep-alive\r\n" };
        head += &format!("Content-Type: {}\r\n\r\n", self.content_type);
        let mut bytes = head.into_bytes();
        if !self.head_only {
            bytes.extend(&self.body);
        }
        bytes
    }
}

fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Not Allowed",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

/// What the server knows: tokens, secrets, and what was asked of it.
#[derive(Default)]
pub(super) struct Memory {
    tokens: HashMap<String, Instant>,
    credentials: HashMap<String, String>,
    pub secrets: Vec<String>,
    pub requests: VecDeque<Request>,
    pub counts: Counts,
}

impl Memory {
    /// Writes the request down.
    pub fn note(&mut self, head: &Head, status: Option<u16>, peer: SocketAddr) {
        match head.asks_for_token() {
            true => self.counts.token_requests += 1,
            false => self.counts.other_requests += 1,
        }
        if let Some(status) = status {
            *self.counts.by_status.entry(status).or_default() += 1;
        }
        if self.requests.len() == REMEMBERED {
            self.requests.pop_front();
        }
        self.requests.push_back(Request {
            method: head.method.clone(),
            path: head.path.clone(),
            token_present: head.header("x-aws-ec2-metadata-token").is_some(),
            user_agent: head.header("user-agent").map(str::to_owned),
            status,
            peer: peer.ip().to_canonical(),
            peer_port: peer.port(),
        });
    }

    /// The answer, apart from delays and silence.
    pub fn answer(&mut self, head: &Head, behaviour: &Behaviour) -> Response {
        let mut response = self.judge(head, behaviour);
        response.head_only = head.method == "HEAD";
        response.is_token = head.asks_for_token();
        response
    }

    fn judge(&mut self, head: &Head, behaviour: &Behaviour) -> Response {
        let forced = match behaviour.forced_on {
            ForcedOn::All => true,
            ForcedOn::Token => head.asks_for_token(),
            ForcedOn::Reads => !head.asks_for_token(),
        };
        if let Some(status) = behaviour.forced_status.filter(|_| forced) {
            return Response::empty(status);
        }
        if !behaviour.endpoint_enabled {
            return forbidden(head);
        }
        match (head.method.as_str(), head.path.as_str()) {
            ("PUT", TOKEN_PATH) => self.issue(head),
            (_, TOKEN_PATH) => {
                let mut response = Response::empty(405);
                response.headers.push(("Allow", "OPTIONS, PUT".into()));
                response
            }
            ("PUT", _) => Response::empty(403),
            ("GET" | "HEAD", path) => self.read(head, path, behaviour),
            _ => Response::empty(405),
        }
    }

    fn issue(&mut self, head: &Head) -> Response {
        if head.header("x-forwarded-for").is_some() {
            return Response::empty(403);
        }
        let wanted = head.header("x-aws-ec2-metadata-token-ttl-seconds").and_then(|value| value.trim().parse().ok());
        let Some(ttl @ 1..=LONGEST_TTL) = wanted else {
            return Response::empty(400);
        };
        let token = new_token();
        let now = Instant::now();
        if self.tokens.len() >= 100_000 {
            self.tokens.retain(|_, expiry| *expiry > now);
        }
        self.tokens.insert(token.clone(), now + Duration::from_secs(ttl));
        self.secrets.push(token.clone());
        let mut response = Response::empty(200);
        response.headers.push(("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", ttl.to_string()));
        response.body = token.into_bytes();
        response
    }

    fn read(&mut self, head: &Head, path: &str, behaviour: &Behaviour) -> Response {
        let mut left = None;
        match (head.header("x-aws-ec2-metadata-token"), behaviour.tokens) {
            (Some(token), _) => match self.tokens.get(token).and_then(|end| end.checked_duration_since(Instant::now()))
            {
                Some(rest) if !rest.is_zero() => left = Some(rest.as_secs()),
                _ => return Response::empty(401),
            },
            (None, Tokens::Required) => return Response::empty(401),
            (None, Tokens::Optional) => {}
        }
        let mut response = match self.resource(path, behaviour) {
            Some(body) => Response { body, ..Response::empty(200) },
            None => not_found(),
        };
        if path.ends_with("/user-data") && response.status == 200 {
            response.content_type = "application/octet-stream";
        }
        if let Some(seconds) = left {
            response.headers.push(("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", seconds.to_string()));
        }
        response
    }

    fn resource(&mut self, path: &str, behaviour: &Behaviour) -> Option<Vec<u8>> {
        // `/latest`, `/1.0` and dated versions lead to the same tree.
        let rest = path.strip_prefix('/')?;
        let (version, rest) = rest.split_once('/').unwrap_or((rest, ""));
        if version != "latest" && !version.starts_with(|first: char| first.is_ascii_digit()) {
            return None;
        }
        let role = behaviour.role.as_deref();
        let text = match rest {
            "" => "dynamic\nmeta-data".to_owned(),
            "user-data" => behaviour.user_data.clone()?,
            "dynamic/instance-identity/document" => identity_document(),
            "meta-data" | "meta-data/" => listing(role),
            "meta-data/instance-id" => INSTANCE_ID.into(),
            "meta-data/ami-id" => AMI_ID.into(),
            "meta-data/instance-type" => "m7i.large".into(),
            "meta-data/local-ipv4" => "10.77.0.10".into(),
            "meta-data/hostname" | "meta-data/local-hostname" => "ip-10-77-0-10.eu-central-1.compute.internal".into(),
            "meta-data/placement/" => "availability-zone\navailability-zone-id\nregion".into(),
            "meta-data/placement/availability-zone" => "eu-central-1a".into(),
            "meta-data/placement/availability-zone-id" => "euc1-az2".into(),
            "meta-data/placement/region" => REGION.into(),
            "meta-data/iam/info" => profile(role?),
            "meta-data/iam/security-credentials" | "meta-data/iam/security-credentials/" => role?.to_owned(),
            _ => {
                let asked = rest.strip_prefix("meta-data/iam/security-credentials/")?;
                (Some(asked) == role).then(|| self.credentials_of(asked))?
            }
        };
        Some(text.into_bytes())
    }

    fn credentials_of(&mut self, role: &str) -> String {
        if let Some(known) = self.credentials.get(role) {
            return known.clone();
        }
        let (id, secret, token) = (access_key_id(), random_text(30), random_text(270));
        let now = jiff::Timestamp::now();
        let text = format!(
            "{{\n  \"Code\" : \"Success\",\n  \"LastUpdated\" : \"{}\",\n  \"Type\" : \"AWS-HMAC\",\n  \
             \"AccessKeyId\" : \"{id}\",\n  \"SecretAccessKey\" : \"{secret}\",\n  \"Token\" : \"{token}\",\n  \
             \"Expiration\" : \"{}\"\n}}",
            now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            (now + Duration::from_secs(6 * 3600)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        );
        self.secrets.extend([id, secret, token]);
        self.credentials.insert(role.to_owned(), text.clone());
        text
    }
}

const INSTANCE_ID: &str = "i-0123456789abcdef0";
const AMI_ID: &str = "ami-0abcdef1234567890";
const REGION: &str = "eu-central-1";

fn forbidden(head: &Head) -> Response {
    let mut response = Response::empty(403);
    if head.method == "GET" {
        response.content_type = "text/html";
        response.body = page("403 - Forbidden");
    }
    response
}

fn not_found() -> Response {
    Response { content_type: "text/html", body: page("404 - Not Found"), ..Response::empty(404) }
}

fn page(title: &str) -> Vec<u8> {
    format!(
        "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n<html xmlns=\"http://www.w3.org/1999/xhtml\">\n <head>\n  \
         <title>{title}</title>\n </head>\n <body>\n  <h1>{title}</h1>\n </body>\n</html>\n"
    )
    .into_bytes()
}

fn listing(role: Option<&str>) -> String {
    let mut names = vec!["ami-id", "hostname"];
    names.extend(role.map(|_| "iam/"));
    names.extend(["instance-id", "instance-type", "local-hostname", "local-ipv4", "placement/"]);
    names.join("\n")
}

fn profile(role: &str) -> String {
    format!(
        "{{\n  \"Code\" : \"Success\",\n  \"InstanceProfileArn\" : \
         \"arn:aws:iam::123456789012:instance-profile/{role}\",\n  \"InstanceProfileId\" : \"AIPAEXAMPLEEXAMPLE000\"\n}}"
    )
}

fn identity_document() -> String {
    format!(
        "{{\n  \"accountId\" : \"123456789012\",\n  \"architecture\" : \"x86_64\",\n  \"availabilityZone\" : \
         \"{REGION}a\",\n  \"imageId\" : \"{AMI_ID}\",\n  \"instanceId\" : \"{INSTANCE_ID}\",\n  \"instanceType\" : \
         \"m7i.large\",\n  \"privateIp\" : \"10.77.0.10\",\n  \"region\" : \"{REGION}\",\n  \"version\" : \"2017-09-30\"\n}}"
    )
}

/// 56 characters like the real ones: `AQAEA` in front, `==` at the end.
fn new_token() -> String {
    let mut bytes = random::<40>();
    bytes[..3].copy_from_slice(&[1, 0, 4]);
    bytes[3] &= 3;
    base64(&bytes, b"-_")
}

fn random_text(bytes: usize) -> String {
    let all = random::<270>();
    base64(&all[..bytes], b"+/")
}

fn access_key_id() -> String {
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let tail = random::<16>().map(|byte| char::from(letters[usize::from(byte) % letters.len()]));
    format!("ASIA{}", tail.iter().collect::<String>())
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut source = std::fs::File::open("/dev/urandom").expect("open /dev/urandom");
    source.read_exact(&mut bytes).expect("read /dev/urandom");
    bytes
}
