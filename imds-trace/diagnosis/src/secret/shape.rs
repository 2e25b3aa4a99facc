//! What looks like a secret, whatever stands before it? Tokens that say what they are, long base64, user and password in a URL.

use super::MASK;
use crate::net::bounded;

/// An AWS secret access key has 40 characters, an IMDS token 56, a session token hundreds; nothing shorter is masked by shape.
const MIN_SECRET: usize = 40;
/// What follows a public prefix is a secret from this length on: `glpat-` alone is a word.
const MIN_BEHIND_PREFIX: usize = 10;
/// Bytes of a URL in which a user and password are looked for.
const MAX_AUTHORITY: usize = 1024;

/// How tokens begin that say what they are. Sources: docs.gitlab.com "Token overview", docs.github.com "token formats",
/// api.slack.com "token types", IAM "unique identifiers" (`AKIA`, `ASIA`: access keys).
const PREFIXES: &[&str] = &[
    "glpat-",
    "glrt-",
    "glrtr-",
    "glcbt-",
    "glptt-",
    "gldt-",
    "glft-",
    "glsoat-",
    "glagent-",
    "glimt-",
    "gloas-",
    "glffct-",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "xoxa-",
    "xoxb-",
    "xoxc-",
    "xoxd-",
    "xoxe-",
    "xoxo-",
    "xoxp-",
    "xoxr-",
    "xoxs-",
    "xapp-",
    "AKIA",
    "ASIA",
];

/// Masks what looks like a secret: user and password in a URL, and tokens.
pub fn mask(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some((start, end)) = user_info(rest) {
        tokens(&rest[..start], out);
        out.push_str(MASK);
        rest = &rest[end..];
    }
    tokens(rest, out);
}

/// Where `user:password` stands in `scheme://user:password@host`. A password may hold what should have been encoded.
fn user_info(text: &str) -> Option<(usize, usize)> {
    let mut from = 0;
    while let Some(found) = text[from..].find("://") {
        let start = from + found + 3;
        let rest = bounded(&text[start..], MAX_AUTHORITY);
        let rest = rest.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'')).next().unwrap_or(rest);
        let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        let end = match (authority.rsplit_once('@'), authority.rsplit_once(':')) {
            (Some((user, _)), _) => Some(user.len()),
            // What looks like a port and a path may be half a password; `host:80/@scope` is none.
            (None, Some((_, port))) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
                let path = rest.split(['?', '#']).next().unwrap_or(rest);
                path.rsplit_once('@').map(|(user, _)| user).filter(|user| !user.ends_with('/')).map(str::len)
            }
            (None, Some(_)) => rest.rsplit_once('@').map(|(user, _)| user.len()),
            (None, None) => None,
        };
        if let Some(end) = end.filter(|end| *end > 0) {
            return Some((start, start + end));
        }
        from = start;
    }
    None
}

/// Masks tokens: those that say what they are, and every run of base64 characters that is long and mixed enough.
fn tokens(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(start) = rest.find(is_secret_char) {
        let (before, run_on) = rest.split_at(start);
        out.push_str(before);
        if let Some((kept, length)) = known_token(run_on) {
            out.push_str(kept);
            out.push_str(MASK);
            rest = &run_on[length..];
            continue;
        }
        let end = end_of_run(run_on);
        let (run, after) = run_on.split_at(end);
        match known_inside(run) {
            // A path or the like before it.
            Some(at) => {
                out.push_str(if looks_secret(run) { MASK } else { &run[..at] });
                rest = &run_on[at..];
            }
            None => {
                out.push_str(if looks_secret(run) { MASK } else { run });
                rest = after;
            }
        }
    }
    out.push_str(rest);
}

fn is_secret_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | '_' | '-' | '%')
}

/// Where a run ends. A `=` ends it: base64 has none before its end, and what stands before one is a name.
fn end_of_run(text: &str) -> usize {
    let end = text.find(|c| !is_secret_char(c)).unwrap_or(text.len());
    match text[..end].find('=') {
        Some(sign) => sign + text[sign..end].bytes().take_while(|byte| *byte == b'=').count(),
        None => end,
    }
}

/// A token that says what it is, at the beginning of the text: the part that may be shown, and the length of all.
fn known_token(text: &str) -> Option<(&'static str, usize)> {
    let is_part = |c: char| is_secret_char(c) || c == '.';
    let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
    let run = &text[..end];
    if let Some(prefix) = PREFIXES.iter().find(|prefix| run.starts_with(**prefix)) {
        let behind = &run[prefix.len()..];
        let fits = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
        let is_token = if prefix.len() == 4 && prefix.bytes().all(fits) {
            // An access key's sixteen.
            behind.len() >= 12 && behind.bytes().take(12).all(fits)
        } else {
            behind.len() >= MIN_BEHIND_PREFIX
        };
        return is_token.then_some((*prefix, end));
    }
    // A JSON Web Token: base64url of `{"`, a dot, and more.
    let (header, payload) = run.split_once('.')?;
    (header.starts_with("ey") && header.len() >= MIN_BEHIND_PREFIX && payload.len() >= MIN_BEHIND_PREFIX)
        .then_some(("", end))
}

/// Where in a run a token begins that says what it is. Not in the middle of a word.
fn known_inside(run: &str) -> Option<usize> {
    let begins = |at: &usize| *at > 0 && !run.as_bytes()[at - 1].is_ascii_alphanumeric();
    let known = PREFIXES.iter().flat_map(|prefix| run.match_indices(prefix).map(|(at, _)| at));
    known.filter(begins).filter(|at| known_token(&run[*at..]).is_some()).min()
}

fn looks_secret(run: &str) -> bool {
    if run.len() < MIN_SECRET {
        return false;
    }
    let has = |class: fn(&u8) -> bool| run.as_bytes().iter().any(class);
    let mixed = has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase);
    // In base64 two neighbours are of different kinds two times in three, in words one time in five.
    let kind = |byte: u8| match byte {
        b'a'..=b'z' => 0,
        b'A'..=b'Z' => 1,
        b'0'..=b'9' => 2,
        _ => 3,
    };
    let pairs = || run.as_bytes().windows(2).filter(|pair| !pair.contains(&b'/'));
    let changes = pairs().filter(|pair| kind(pair[0]) != kind(pair[1])).count();
    let is_random = changes * 10 >= pairs().count() * 3;
    let is_path = run.contains('/') && !is_random;
    run.ends_with('=') || (mixed && has(u8::is_ascii_digit) && !is_path) || (mixed && is_random)
}
