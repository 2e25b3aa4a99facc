//! What looks like a secret, whatever stands before it? Tokens that say what they are, long base64, user and password in a URL.

use super::{MASK, formats};
use crate::net::bounded;

/// An AWS secret access key has 40 characters, an IMDS token 56, a session token hundreds; nothing shorter is masked by shape.
pub(super) const MIN_SECRET: usize = 40;
/// Of a token that says what it is, and is cut short, this many characters must be there.
const MIN_CUT: usize = 8;
/// Behind a mark of so many characters so many others, of which so many without a break are random, are a token: formats change.
const MIN_MARK: usize = 3;
const MIN_BEHIND: usize = 16;
const MIN_RANDOM: usize = 12;
/// The same of the two parts of a JSON Web Token.
const MIN_WEB_TOKEN: usize = 10;
/// Bytes of a URL in which a user and password are looked for.
const MAX_AUTHORITY: usize = 1024;

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
    let mut done = 0;
    for token in known(text) {
        if token.start < done {
            continue;
        }
        let before = &text[done..token.start];
        // A path or the like before it, which may be a secret itself.
        let glued = before.len() - before.trim_end_matches(is_secret_char).len();
        let (apart, glued) = before.split_at(before.len() - glued);
        runs(apart, out);
        let end = token.start + text[token.start..].find(|c| !is_secret_char(c)).unwrap_or(text.len() - token.start);
        if !glued.is_empty() && looks_secret(last_run(&text[done + apart.len()..end], glued.len())) {
            out.push_str(MASK);
        } else {
            runs(glued, out);
        }
        out.push_str(token.kept);
        out.push_str(MASK);
        done = token.end;
    }
    runs(&text[done..], out);
}

/// Of what goes up to a token without a break, the run that the token is in.
fn last_run(text: &str, token: usize) -> &str {
    let begin = text[..token].rfind('=').map_or(0, |sign| sign + 1);
    &text[begin..]
}

/// Masks every run of base64 characters that is long and mixed enough.
fn runs(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(start) = rest.find(is_secret_char) {
        let (before, run_on) = rest.split_at(start);
        out.push_str(before);
        let (run, after) = run_on.split_at(end_of_run(run_on));
        out.push_str(if looks_secret(run) { MASK } else { run });
        rest = after;
    }
    out.push_str(rest);
}

pub(super) fn is_secret_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | '_' | '-' | '%')
}

/// What a token that says what it is may be made of.
pub(super) fn is_token_char(c: char) -> bool {
    is_secret_char(c) || matches!(c, '.' | '~')
}

/// Where a run ends. A `=` ends it: base64 has none before its end, and what stands before one is a name.
fn end_of_run(text: &str) -> usize {
    let end = text.find(|c| !is_secret_char(c)).unwrap_or(text.len());
    match text[..end].find('=') {
        Some(sign) => sign + text[sign..end].bytes().take_while(|byte| *byte == b'=').count(),
        None => end,
    }
}

/// A token that says what it is.
struct Known {
    start: usize,
    end: usize,
    /// Of its beginning, what may be shown.
    kept: &'static str,
}

/// All of them, in order. Not in the middle of a word; each goes on as far as one could.
fn known(text: &str) -> Vec<Known> {
    let bytes = text.as_bytes();
    let mut ends = Ends { text, end: 0 };
    let mut found: Vec<Known> = formats::marks(bytes)
        .filter_map(|(mark, format)| {
            let start = mark.checked_sub(format.before)?;
            let behind = mark + format.mark.len();
            let leads = bytes[start..mark].iter().all(|byte| is_token_char(char::from(*byte)));
            if !leads || !begins(bytes, start) {
                return None;
            }
            let end = ends.of(behind);
            let rest = &bytes[behind..end.min(behind + format.length)];
            let fitting = format.fitting(rest);
            let is_cut =
                || fitting >= MIN_CUT && fitting == rest.len() && format.mark.len() >= 4 && !reads_as_words(rest);
            let kept = if format.before == 0 { format.mark } else { "" };
            let is_random = || format.mark.len() >= MIN_MARK && has_random(&bytes[behind..end]);
            let is_token = fitting >= format.least.unwrap_or(format.length) || is_cut() || is_random();
            is_token.then_some(Known { start, end, kept })
        })
        .collect();
    // A JSON Web Token: base64url of `{"`, a dot, and more.
    let mut ends = Ends { text, end: 0 };
    found.extend(text.match_indices("ey").filter_map(|(start, _)| {
        let end = ends.of(start);
        let (header, payload) = text[start..end].split_once('.')?;
        let is_token = begins(bytes, start) && header.len() >= MIN_WEB_TOKEN && payload.len() >= MIN_WEB_TOKEN;
        is_token.then_some(Known { start, end, kept: "" })
    }));
    // Of several at one place the shortest mark shows least.
    found.sort_by_key(|known| (known.start, known.kept.len()));
    found
}

/// Does a whole token that says what it is stand in this text? Half of one, or what is random behind a mark, is not asked for.
pub(super) fn is_token(text: &str) -> bool {
    let bytes = text.as_bytes();
    let has_format = formats::marks(bytes).any(|(mark, format)| {
        let is_behind = mark.checked_sub(format.before).is_some_and(|start| begins(bytes, start));
        is_behind && format.fitting(&bytes[mark + format.mark.len()..]) >= format.least.unwrap_or(format.length)
    });
    let is_web_token = || {
        let (header, payload) = text.split_once('.').unwrap_or_default();
        header.starts_with("eyJ") && header.len() >= MIN_WEB_TOKEN && payload.len() >= MIN_WEB_TOKEN
    };
    has_format || is_web_token()
}

/// Does it look like a secret access key? 40 letters of base64, of which in names two neighbours in five are not of different kinds.
pub(super) fn is_secret_key(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (mixed, changes, pairs) = mixture(bytes);
    let is_base64 = bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'));
    let has_digit = bytes.iter().any(u8::is_ascii_digit);
    bytes.len() == MIN_SECRET && is_base64 && mixed && has_digit && changes * 5 >= pairs * 2
}

/// Where runs of a token's characters end. Asked from left to right, it goes through each run once.
struct Ends<'a> {
    text: &'a str,
    end: usize,
}

impl Ends<'_> {
    /// The end of the run that begins here, or in which this is.
    fn of(&mut self, at: usize) -> usize {
        if at >= self.end {
            let length = self.text[at..].find(|c| !is_token_char(c));
            self.end = length.map_or(self.text.len(), |length| at + length);
        }
        self.end
    }
}

/// Is there a run of letters and digits that does not read as words do?
fn has_random(text: &[u8]) -> bool {
    let mut runs = text.split(|byte| !byte.is_ascii_alphanumeric());
    text.len() >= MIN_BEHIND && runs.any(|run| run.len() >= MIN_RANDOM && !reads_as_words(run))
}

fn begins(bytes: &[u8], at: usize) -> bool {
    at == 0 || !bytes[at - 1].is_ascii_alphanumeric()
}

/// Does a text read as words do: `Release`, `build2`, `MAX_SIZE`, `a/b-c`?
pub(super) fn reads_as_words(text: &[u8]) -> bool {
    text.split(|byte| !byte.is_ascii_alphanumeric()).all(|word| {
        let letters = word.iter().rposition(|byte| !byte.is_ascii_digit()).map_or(0, |last| last + 1);
        let (first, further) = word[..letters].split_at(letters.min(1));
        let is_upper = || word[..letters].iter().all(u8::is_ascii_uppercase);
        (first.iter().all(u8::is_ascii_alphabetic) && further.iter().all(u8::is_ascii_lowercase)) || is_upper()
    })
}

/// Base64's three kinds of letters and its signs: does a text have small and capital ones, and how many of its neighbours are of
/// different kinds, how many of each other? In base64 two times in three, in words one time in five.
pub(super) fn mixture(text: &[u8]) -> (bool, usize, usize) {
    let kind = |byte: u8| match byte {
        b'a'..=b'z' => 0,
        b'A'..=b'Z' => 1,
        b'0'..=b'9' => 2,
        _ => 3,
    };
    let mixed = text.iter().any(u8::is_ascii_uppercase) && text.iter().any(u8::is_ascii_lowercase);
    let pairs = || text.windows(2).filter(|pair| !pair.contains(&b'/'));
    let changes = pairs().filter(|pair| kind(pair[0]) != kind(pair[1])).count();
    (mixed, changes, pairs().count())
}

pub(super) fn looks_secret(run: &str) -> bool {
    if run.len() < MIN_SECRET {
        return false;
    }
    let bytes = run.as_bytes();
    let (mixed, changes, pairs) = mixture(bytes);
    let is_random = changes * 10 >= pairs * 3;
    let is_path = run.contains('/') && !is_random;
    let has_digit = bytes.iter().any(u8::is_ascii_digit);
    let mut words = run.split(|c: char| !c.is_ascii_alphanumeric());
    run.ends_with('=') || (mixed && (has_digit && !is_path || is_random)) || words.any(is_base32)
}

/// Base32 and the like: small letters and digits without a break, more of them than hex has. Every third neighbour is of another kind;
/// words have digits at their end.
fn is_base32(part: &str) -> bool {
    let bytes = part.as_bytes();
    let (_, changes, pairs) = mixture(bytes);
    let has_letters = bytes.iter().any(|byte| matches!(byte, b'g'..=b'z' | b'G'..=b'Z'));
    let has_digits = bytes.iter().any(u8::is_ascii_digit);
    part.len() >= MIN_SECRET && has_letters && has_digits && changes * 10 >= pairs
}
