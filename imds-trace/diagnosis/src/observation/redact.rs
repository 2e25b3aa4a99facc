//! Which facts of an HTTP message may be kept? An allow-list: everything that is not named here is never copied.
//!
//! Refuses bodies and header values other than those listed. Of a token a keyed hash is made, which tells within one run that two
//! tokens are the same and nothing else; its key is made at start and never written. A request that sends its token in a place where none belongs (the
//! path, the User-Agent) is masked by shape, see [`crate::secret`].

use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::host;
use crate::net::bounded;
use crate::secret::{MASK, mask};

/// More headers than any SDK sends (the longest list seen has 9); the rest of the message is not read.
const MAX_HEADERS: usize = 32;
/// A path longer than this is cut; the longest documented one has about 120 characters.
const MAX_PATH: usize = 256;
/// Botocore's User-Agent has about 150 characters with an execution environment.
const MAX_USER_AGENT: usize = 256;
/// IAM allows role names of 64 characters.
const MAX_SEGMENT: usize = 64;
/// `OPTIONS` and `CONNECT` are the longest methods of RFC 9110.
const MAX_METHOD: usize = 7;
/// `EC2ws` and what other clouds call theirs.
const MAX_SERVER: usize = 64;

/// Bytes that a token may have. Today's have 56; nothing promises that.
pub const TOKEN_LENGTH: RangeInclusive<u64> = 24..=512;
/// What a request can begin with (RFC 9110, RFC 5789).
const METHODS: [&str; 7] = ["GET ", "PUT ", "HEAD ", "POST ", "DELETE ", "OPTIONS ", "PATCH "];

/// What is kept of an HTTP message.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// The beginning of a request.
    Request(RequestHead),
    /// The beginning of a response.
    Response(ResponseHead),
    /// The body of the response before it was this token.
    Token(TokenMark),
}

/// Tells within one run that two tokens are the same: a keyed hash of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenMark(pub u64);

/// Makes [`TokenMark`]s. Its key is made with it, at random, and is never written.
#[derive(Debug, Default)]
pub struct Marker(RandomState);

impl Marker {
    /// A number that is the same for the same bytes, within this run.
    pub fn tell_apart(&self, bytes: &[u8]) -> u64 {
        self.0.hash_one(bytes)
    }

    /// The mark of what may be a token, one word of the letters that tokens are made of; `None` if it is no such word.
    pub fn mark(&self, token: &[u8]) -> Option<TokenMark> {
        let token = token.trim_ascii();
        let fits = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'_' | b'-');
        let is_word = TOKEN_LENGTH.contains(&(token.len() as u64)) && token.iter().all(fits);
        is_word.then(|| TokenMark(self.0.hash_one(token)))
    }
}

/// What is kept of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequestHead {
    /// Method, upper case as sent.
    pub method: String,
    /// Path without query, masked where it holds what does not belong into a path.
    pub path: String,
    /// Was there an `X-aws-ec2-metadata-token`, as far as the head was read?
    pub token: bool,
    /// That header had no value: its client had no token to send.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_token: bool,
    /// Which token it was; `None` if it cannot be one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<TokenMark>,
    /// `X-aws-ec2-metadata-token-ttl-seconds`, seconds; `None` if absent or not a number.
    pub requested_ttl: Option<u32>,
    /// Was there an `X-Forwarded-For`? IMDS refuses token requests that carry one.
    pub forwarded_for: bool,
    /// Was there an `Expect: 100-continue`? IMDS answers 417 to a token request that carries one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expects_continue: bool,
    /// Was there a header that only another cloud's metadata service asks for?
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub other_cloud: bool,
    /// Was there a `Via`? Proxies add one (RFC 9110 section 7.6.3).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub via: bool,
    /// Did its `Host` name something that is no address and not IMDS? The name is not kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub foreign_host: bool,
    /// Was it for an absolute URL, as a proxy is asked?
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub absolute: bool,
    /// `User-Agent`: a hint, never an identity.
    pub user_agent: Option<String>,
    /// Was only its beginning seen? Then a header that is not here may have been there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

/// What is kept of a response.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ResponseHead {
    /// Status code.
    pub status: u16,
    /// `Content-Length`, bytes.
    pub content_length: Option<u64>,
    /// `X-aws-ec2-metadata-token-ttl-seconds`, seconds the token has left.
    pub token_ttl: Option<u32>,
    /// `Server`; EC2's says `EC2ws`.
    pub server: Option<String>,
}

impl ResponseHead {
    /// Does the answer itself come later? RFC 9110 section 15.2; behind 101 another protocol begins.
    pub fn is_interim(&self) -> bool {
        matches!(self.status, 100 | 102..200)
    }
}

/// A message, as far as its head was seen.
#[derive(Debug)]
pub enum Message {
    /// The head is whole.
    Whole {
        /// What is kept of it.
        head: Head,
        /// Its bytes.
        length: usize,
        /// What follows it.
        body: Body,
    },
    /// More must come.
    Partial,
}

/// How a message's body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// By its length in bytes.
    Length(u64),
    /// By a last chunk.
    Chunked,
    /// By the end of the connection, or in a way that is not read here.
    Unknown,
}

/// Does a message begin here?
pub fn begins(bytes: &[u8]) -> bool {
    bytes.starts_with(b"HTTP/1.") || METHODS.iter().any(|method| bytes.starts_with(method.as_bytes()))
}

/// Reads a message's head; `None` if it is none.
pub fn message(bytes: &[u8], marker: &Marker) -> Option<Message> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_HEADERS];
    if bytes.starts_with(b"HTTP/") {
        let mut parsed = httparse::Response::new(&mut slots);
        let httparse::Status::Complete(length) = parsed.parse(bytes).ok()? else { return Some(Message::Partial) };
        let head = response(&parsed)?;
        // RFC 9112 section 6.3.
        let body = match (head.status, encoded(parsed.headers)) {
            (101, _) => Body::Unknown,
            (100..200 | 204 | 304, _) => Body::Length(0),
            (_, Some(body)) => body,
            (_, None) => head.content_length.map_or(Body::Unknown, Body::Length),
        };
        Some(Message::Whole { head: Head::Response(head), length, body })
    } else {
        let mut parsed = httparse::Request::new(&mut slots);
        let httparse::Status::Complete(length) = parsed.parse(bytes).ok()? else { return Some(Message::Partial) };
        let mut announced = parsed.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("content-length"));
        let announced = announced.next().and_then(|header| number(header.value)).unwrap_or(0);
        let body = encoded(parsed.headers).unwrap_or(Body::Length(announced));
        Some(Message::Whole { head: Head::Request(request(&parsed, marker)?), length, body })
    }
}

/// What a `Transfer-Encoding` says of the body; `None` if there is none. It overrides a length (RFC 9112 section 6.3).
fn encoded(headers: &[httparse::Header<'_>]) -> Option<Body> {
    let encoding = headers.iter().rfind(|header| header.name.eq_ignore_ascii_case("transfer-encoding"))?;
    let last = encoding.value.rsplit(|byte| *byte == b',').next().unwrap_or_default();
    Some(if last.trim_ascii().eq_ignore_ascii_case(b"chunked") { Body::Chunked } else { Body::Unknown })
}

/// Reads the allow-listed facts from the first bytes of a message that is bad or was not seen whole; `None` if it is none. A head
/// that is cut short gives the facts of its whole lines.
pub fn head(bytes: &[u8], marker: &Marker) -> Option<Head> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_HEADERS];
    // Too many headers, or a bad one: what was read before it still counts, if the first line was good.
    if bytes.starts_with(b"HTTP/") {
        let mut parsed = httparse::Response::new(&mut slots);
        let _ = parsed.parse(bytes);
        response(&parsed).map(Head::Response)
    } else {
        let mut parsed = httparse::Request::new(&mut slots);
        let _ = parsed.parse(bytes);
        request(&parsed, marker).map(|head| Head::Request(RequestHead { cut: true, ..head }))
    }
}

fn request(parsed: &httparse::Request<'_, '_>, marker: &Marker) -> Option<RequestHead> {
    let target = parsed.path?;
    let mut head = RequestHead { method: method(parsed.method?), path: path(target), ..RequestHead::default() };
    head.absolute = !target.starts_with('/') && target.contains("://");
    for header in parsed.headers.iter().filter(|header| !header.name.is_empty()) {
        let name = header.name;
        if name.eq_ignore_ascii_case("x-aws-ec2-metadata-token") {
            head.token = true;
            head.empty_token = header.value.trim_ascii().is_empty();
            head.mark = marker.mark(header.value);
        } else if name.eq_ignore_ascii_case("x-aws-ec2-metadata-token-ttl-seconds") {
            head.requested_ttl = number(header.value);
        } else if name.eq_ignore_ascii_case("x-forwarded-for") {
            head.forwarded_for = true;
        } else if name.eq_ignore_ascii_case("via") {
            head.via = true;
        } else if name.eq_ignore_ascii_case("host") {
            head.foreign_host = host::is_foreign(header.value);
        } else if name.eq_ignore_ascii_case("expect") {
            head.expects_continue = header.value.trim_ascii().eq_ignore_ascii_case(b"100-continue");
        } else if is_other_cloud(name, header.value) {
            head.other_cloud = true;
        } else if name.eq_ignore_ascii_case("user-agent") {
            head.user_agent = Some(text(header.value, MAX_USER_AGENT));
        }
    }
    Some(head)
}

/// Headers without which another cloud's metadata service does not answer: Google's two, Azure's, Akamai's (Linode) three, Alibaba's
/// two. As in the providers' own documentation and cloud-init's sources.
const OTHER_CLOUDS: [&str; 8] = [
    "metadata-flavor",
    "x-google-metadata-request",
    "metadata",
    "metadata-token",
    "metadata-token-expiry-seconds",
    "x-metadata-token-expiry-seconds",
    "x-aliyun-ecs-metadata-token",
    "x-aliyun-ecs-metadata-token-ttl-seconds",
];

/// Does only another cloud ask for this header? Oracle's has a name that others use, and a value of its own.
fn is_other_cloud(name: &str, value: &[u8]) -> bool {
    OTHER_CLOUDS.iter().any(|other| name.eq_ignore_ascii_case(other))
        || name.eq_ignore_ascii_case("authorization") && value.trim_ascii().eq_ignore_ascii_case(b"bearer oracle")
}

fn response(parsed: &httparse::Response<'_, '_>) -> Option<ResponseHead> {
    let mut head = ResponseHead { status: parsed.code?, ..ResponseHead::default() };
    for header in parsed.headers.iter().filter(|header| !header.name.is_empty()) {
        let name = header.name;
        if name.eq_ignore_ascii_case("content-length") {
            head.content_length = number(header.value);
        } else if name.eq_ignore_ascii_case("x-aws-ec2-metadata-token-ttl-seconds") {
            head.token_ttl = number(header.value);
        } else if name.eq_ignore_ascii_case("server") {
            head.server = Some(text(header.value, MAX_SERVER));
        }
    }
    Some(head)
}

/// A method, masked if it cannot be one: a client may put anything before the path.
fn method(method: &str) -> String {
    let is_method = method.len() <= MAX_METHOD && method.bytes().all(|byte| byte.is_ascii_uppercase());
    if is_method { method.to_owned() } else { MASK.to_owned() }
}

fn number<N: std::str::FromStr>(value: &[u8]) -> Option<N> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

fn text(value: &[u8], limit: usize) -> String {
    let masked = mask(&String::from_utf8_lossy(value));
    bounded(&masked, limit).to_owned()
}

/// The path of a target in whatever form (RFC 9112 section 3.2), without query.
fn origin(target: &str) -> &str {
    let target = target.split(['?', '#']).next().unwrap_or_default();
    match target.split_once("://") {
        Some((scheme, rest)) if scheme.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
            rest.find('/').map_or("/", |begin| &rest[begin..])
        }
        _ => target,
    }
}

/// The path without query. IMDS names its categories in lower case; capital letters belong to what an account names itself, roles
/// and tags, and nowhere else: a segment with them in another place, or one that looks like a secret, is masked with all that
/// follows it, for a secret may hold slashes. Of other clouds' paths only their first words are known.
fn path(target: &str) -> String {
    let path = origin(target);
    let mut named_by_account = false;
    let mut masked = false;
    let segments: Vec<&str> = path.split('/').collect();
    let last = segments.iter().rposition(|segment| !segment.is_empty()).unwrap_or(0);
    let segments: Vec<&str> = segments
        .into_iter()
        .enumerate()
        .map(|(number, segment)| {
            let names = std::mem::replace(&mut named_by_account, NAMED_BY_ACCOUNT.contains(&segment));
            let fits = segment.len() <= MAX_SEGMENT
                && if names {
                    // Nothing stands behind a role's name or a tag's key: a secret with slashes may.
                    !segment.ends_with('=') && number >= last
                } else if number == 1 && CAPITALISED.contains(&segment) {
                    true
                } else {
                    !segment.bytes().any(|byte| byte.is_ascii_uppercase()) && mask(segment) == segment
                };
            masked |= !fits;
            if masked { MASK } else { segment }
        })
        .collect();
    bounded(&segments.join("/"), MAX_PATH).to_owned()
}

/// First segments of other clouds' paths that have capital letters: Google's, and Azure's as some clients spell it.
const CAPITALISED: [&str; 2] = ["computeMetadata", "Metadata"];
/// Behind these a role's name or a tag's key stands.
const NAMED_BY_ACCOUNT: [&str; 3] = ["security-credentials", "security-credentials-extended", "instance"];

#[cfg(test)]
mod tests {
    use super::*;

    fn read(payload: &[u8]) -> Option<Head> {
        head(payload, &Marker::default())
    }

    const TOKEN: &str = "AQAEAEXAMPLEtokenEXAMPLEtokenEXAMPLEtoken0123456789abc==";

    #[test]
    fn a_token_request_keeps_method_path_lifetime_and_user_agent() {
        let payload = b"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\n\
            X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21600\r\nUser-Agent: Boto3/1.40\r\n\r\n";
        let Some(Head::Request(head)) = read(payload) else { panic!("not a request") };
        assert_eq!(head.method, "PUT");
        assert_eq!(head.path, "/latest/api/token");
        assert_eq!(head.requested_ttl, Some(21600));
        assert_eq!(head.user_agent.as_deref(), Some("Boto3/1.40"));
        assert!(!head.token);
    }

    #[test]
    fn no_byte_of_a_token_is_kept_wherever_the_client_puts_it() {
        for payload in [
            format!("GET /latest/meta-data/ HTTP/1.1\r\nX-AWS-EC2-METADATA-TOKEN: {TOKEN}\r\n\r\n"),
            format!("GET /{TOKEN} HTTP/1.1\r\nx-aws-ec2-metadata-token: {TOKEN}\r\nHost: {TOKEN}\r\n\r\n"),
            format!("GET /latest/meta-data/iam/security-credentials/{TOKEN}?t={TOKEN} HTTP/1.1\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nUser-Agent: x/{TOKEN} y\r\nAuthorization: {TOKEN}\r\n"),
            format!("HTTP/1.1 200 OK\r\nServer: {TOKEN}\r\nContent-Length: 56\r\n\r\n{TOKEN}"),
            format!("{TOKEN} / HTTP/1.1\r\n\r\n"),
            format!("HTTP/1.1 200 {TOKEN}\r\n\r\n{TOKEN}"),
        ] {
            let kept = serde_json::to_string(&read(payload.as_bytes())).unwrap();
            assert!(!kept.contains(&TOKEN[..8]), "{kept}");
            assert!(!kept.contains(&TOKEN[30..]), "{kept}");
        }
    }

    #[test]
    fn a_secret_that_a_client_announces_in_its_user_agent_is_not_kept_however_short() {
        for agent in [
            "x token=pa55word",
            "x (Authorization: Bearer pa55word)",
            "https://me:pa55word@h/",
            "x password: pa55word y",
        ] {
            let Some(Head::Request(head)) = read(format!("GET / HTTP/1.1\r\nUser-Agent: {agent}\r\n\r\n").as_bytes())
            else {
                panic!("not a request")
            };
            let kept = head.user_agent.unwrap();
            assert!(kept.contains(MASK) && !kept.contains("pa55"), "{kept}");
        }
    }

    #[test]
    fn what_does_not_belong_into_a_path_is_not_kept() {
        for path in [
            "/latest/glpat-abcdefghij0123456789",
            "/latest/x=eyJhbGciOiJI.eyJzdWIiOiIx.c2ln",
            "/latest/Secret",
            "/token=pa55word",
        ] {
            let Some(Head::Request(head)) = read(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()) else {
                panic!("not a request")
            };
            assert!(
                head.path.ends_with(MASK) && !head.path.contains("abcdefgh") && !head.path.contains("pa55"),
                "{}",
                head.path
            );
        }
        let Some(Head::Request(head)) = read(b"GET /latest/api/token HTTP/1.1\r\n\r\n") else { panic!() };
        assert_eq!(head.path, "/latest/api/token");
    }

    #[test]
    fn a_mark_tells_tokens_apart_and_means_nothing_to_another_run() {
        let (marker, another) = (Marker::default(), Marker::default());
        let mark = marker.mark(TOKEN.as_bytes());
        assert!(mark.is_some());
        assert_eq!(marker.mark(format!(" {TOKEN}\r").as_bytes()), mark);
        assert_ne!(marker.mark(TOKEN.replace('E', "F").as_bytes()), mark);
        assert_ne!(another.mark(TOKEN.as_bytes()), mark);
        assert_eq!(marker.mark(b"short"), None);
        assert_eq!(marker.mark(b"two words that are together long enough"), None);
    }

    #[test]
    fn a_secret_with_slashes_in_the_place_of_a_role_is_masked_from_its_beginning() {
        for place in ["iam/security-credentials", "tags/instance"] {
            let text = format!("GET /latest/meta-data/{place}/wJalrXUtnFEMI/K7MDENG/bPxRfiCYKEY HTTP/1.1\r\n\r\n");
            let Some(Head::Request(head)) = read(text.as_bytes()) else { panic!("not a request") };
            assert_eq!(head.path, format!("/latest/meta-data/{place}/***/***/***"));
        }
    }

    #[test]
    fn a_role_name_is_kept_and_a_query_is_not() {
        let payload = b"GET /latest/meta-data/iam/security-credentials/Ci-Runner-EXAMPLE0123456789-abcdefghijkl?x=1 HTTP/1.1\r\n\r\n";
        let Some(Head::Request(head)) = read(payload) else { panic!("not a request") };
        assert_eq!(head.path, "/latest/meta-data/iam/security-credentials/Ci-Runner-EXAMPLE0123456789-abcdefghijkl");
    }

    #[test]
    fn a_target_in_absolute_form_is_the_path_in_it() {
        for (target, path) in [
            ("http://169.254.169.254/latest/api/token", "/latest/api/token"),
            ("HTTP://me:pa55word@169.254.169.254:80/latest/meta-data/?x=1", "/latest/meta-data/"),
            ("http://metadata.google.internal/computeMetadata/v1/instance/", "/computeMetadata/v1/instance/"),
            ("http://169.254.169.254", "/"),
            ("http://169.254.169.254?http://x/y", "/"),
            ("/latest/user-data?next=http://x/y", "/latest/user-data"),
            ("/latest/api/token/", "/latest/api/token/"),
        ] {
            let Some(Head::Request(head)) = read(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes()) else {
                panic!("not a request")
            };
            assert_eq!(head.path, path);
        }
    }

    #[test]
    fn what_a_request_wants_besides_is_kept_as_a_yes_or_no() {
        let head = |headers: &str| match read(format!("GET / HTTP/1.1\r\n{headers}\r\n\r\n").as_bytes()) {
            Some(Head::Request(head)) => head,
            other => panic!("{other:?}"),
        };
        assert!(head("x-AWS-ec2-Metadata-TOKEN: \r\nHost: x").empty_token);
        assert!(head("X-aws-ec2-metadata-token:").empty_token);
        assert!(!head("X-aws-ec2-metadata-token: INVALID").empty_token);
        assert!(head("expect: 100-Continue").expects_continue);
        for cloud in ["Metadata-Flavor: Google", "metadata: true", "Authorization: Bearer Oracle"] {
            assert!(head(cloud).other_cloud, "{cloud}");
        }
        assert!(!head("Authorization: Bearer other").other_cloud);
    }

    #[test]
    fn signs_of_a_proxy_are_kept_as_a_yes_or_no_and_their_values_are_not() {
        let Some(Head::Request(head)) =
            read(b"GET http://169.254.169.254/ HTTP/1.1\r\nvia: 1.1 squid\r\nhost: evil.example\r\n")
        else {
            panic!("not a request")
        };
        assert!(head.absolute && head.via && head.foreign_host);
        let kept = serde_json::to_string(&head).unwrap();
        assert!(!kept.contains("evil") && !kept.contains("squid"), "{kept}");
    }

    #[test]
    fn a_head_cut_short_gives_its_whole_lines() {
        let Some(Head::Response(head)) = read(b"HTTP/1.0 404 Not Found\r\nServer: EC2ws\r\nContent-Le") else {
            panic!()
        };
        assert_eq!((head.status, head.server.as_deref(), head.content_length), (404, Some("EC2ws"), None));
    }

    #[test]
    fn what_is_not_http_gives_nothing() {
        for payload in [&b""[..], b"\x16\x03\x01\x02\x00", b"HTTP/1.1 ", b"AccessKeyId"] {
            assert_eq!(read(payload), None);
        }
    }
}
