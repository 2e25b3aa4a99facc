//! Which facts of an HTTP message may be kept? An allow-list: everything that is not named here is never copied.
//!
//! Refuses bodies and header values other than those listed. Of a token a keyed hash is made, which tells within one run that two
//! tokens are the same and nothing else; its key is made at start and never written. A request that sends its token in a place where none belongs (the
//! path, the User-Agent) is masked by shape, see [`crate::secret`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::host;
use crate::net::bounded;
use crate::secret::{MASK, is_no_name, mask};

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
/// Masked texts that are remembered at most.
const MAX_MASKED: usize = 256;
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

impl Head {
    /// Enters where it begins and ends, in bytes from the begin of the payload in which it is told.
    pub fn lies(&mut self, at: i64, to: Option<u64>) {
        let at = i32::try_from(at).ok();
        match self {
            Self::Request(head) => (head.begins, head.ends) = (at, to),
            Self::Response(head) => (head.begins, head.ends) = (at, to),
            Self::Token(_) => {}
        }
    }
}

/// Tells within one run that two tokens are the same: a keyed hash of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenMark(pub u64);

/// Makes [`TokenMark`]s. Its key is made with it, at random, and is never written. It remembers what texts were masked to, not the texts: a
/// client sends the same ones again and again.
#[derive(Debug, Default)]
pub struct Marker {
    key: RandomState,
    masked: RefCell<HashMap<u64, String>>,
}

impl Marker {
    /// A number that is the same for the same bytes, within this run.
    pub fn tell_apart(&self, bytes: &[u8]) -> u64 {
        self.key.hash_one(bytes)
    }

    /// What `mask` makes of a text, or made of it before. `kind` tells kinds of text apart.
    fn masked(&self, kind: &'static str, text: &[u8], mask: impl FnOnce() -> String) -> String {
        let mut masked = self.masked.borrow_mut();
        let key = self.key.hash_one((kind, text));
        if masked.len() >= MAX_MASKED && !masked.contains_key(&key) {
            masked.clear();
        }
        masked.entry(key).or_insert_with(mask).clone()
    }

    /// The mark of what may be a token, one word of the letters that tokens are made of; `None` if it is no such word.
    pub fn mark(&self, token: &[u8]) -> Option<TokenMark> {
        let token = token.trim_ascii();
        let fits = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'_' | b'-');
        let is_word = TOKEN_LENGTH.contains(&(token.len() as u64)) && token.iter().all(fits);
        is_word.then(|| TokenMark(self.key.hash_one(token)))
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
    /// Bytes from the begin of the payload in which this was told to its first byte, which may lie in an earlier packet; `None` in
    /// recordings before that was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begins: Option<i32>,
    /// Bytes from there to the end of the whole request, its body too, which may lie in later packets; `None` if its body has no length
    /// of its own, and in recordings before that was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<u64>,
}

impl RequestHead {
    /// Is it the same as another, or the begin of it that was seen alone?
    pub fn is_begin_of(&self, whole: &Self) -> bool {
        let alike = || (&self.method, &self.path) == (&whole.method, &whole.path) && (!self.token || whole.token);
        self == whole || self.cut && alike()
    }

    /// What it says, wherever it was told.
    pub fn said(&self) -> Self {
        Self { begins: None, ends: None, ..self.clone() }
    }
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
    /// Bytes from the begin of the payload in which this was told to the end of the whole response, which may lie in later packets; `None`
    /// if its body has no length of its own, and in recordings before that was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<u64>,
    /// Bytes from the begin of that payload to its first byte, which may lie in an earlier packet; `None` in recordings before that was
    /// written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begins: Option<i32>,
}

impl ResponseHead {
    /// What it says, with its end told from its own first byte.
    pub fn said(&self) -> Self {
        let ends = self.ends.and_then(|ends| ends.checked_add_signed(-i64::from(self.begins.unwrap_or_default())));
        Self { begins: None, ends, ..self.clone() }
    }

    /// May its body be a token, by what it says of itself? IMDS says for how long the token is good; who does not has at least its length.
    pub fn may_hold_token(&self) -> bool {
        self.token_ttl.is_some() || self.content_length.is_none_or(|length| TOKEN_LENGTH.contains(&length))
    }

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

/// May a message begin here, as far as there are bytes?
pub fn may_begin(bytes: &[u8]) -> bool {
    let fits = |begin: &[u8]| bytes.starts_with(begin) || begin.starts_with(bytes);
    fits(b"HTTP/1.") || METHODS.iter().any(|method| fits(method.as_bytes()))
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
    let path = marker.masked("path", target.as_bytes(), || path(target));
    let mut head = RequestHead { method: method(parsed.method?), path, ..RequestHead::default() };
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
            head.user_agent = Some(marker.masked("user-agent", header.value, || text(header.value, MAX_USER_AGENT)));
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
                    !segment.ends_with('=') && number >= last && !is_no_name(segment)
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
mod tests;
