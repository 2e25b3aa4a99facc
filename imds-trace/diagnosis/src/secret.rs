//! What must never be written down? Masks what looks like a token or a credential in text that a process chose.
//!
//! The allow-list in `observation::redact` is the first line: only named HTTP facts are kept at all. This is the second, for
//! the free text among them (path, User-Agent), for command lines and for labels. docs/masking.md has the list,
//! `secret/tests.rs` holds it to that. It cannot know a secret that looks like a word and that nothing announces.

#[cfg(test)]
mod sweep;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod well_known;

mod formats;
mod shape;
mod wrapped;

/// What stands in a secret's place.
pub const MASK: &str = "***";

/// Longest name that is looked at.
const MAX_NAME: usize = 128;
/// Scripts in scripts are read as such so deep.
const MAX_DEPTH: usize = 4;

/// Endings of names behind which a secret stands, lower case, without dashes, dots and underscores: `X-aws-ec2-metadata-token`,
/// `Authorization`, `AWS_SECRET_ACCESS_KEY`, `SecretAccessKey`, `--registry-password`, `CI_JOB_TOKEN`, `X-Amz-Signature`.
const ANNOUNCE: &[&str] = &[
    "token",
    "authorization",
    "cookie",
    "password",
    "passwd",
    "passphrase",
    "secret",
    "signature",
    "credential",
    "secretkey",
    "accesskey",
    "accesskeyid",
    "apikey",
    "privatekey",
    "accountkey",
    "authkey",
    "encryptionkey",
    "fastlykey",
    "licensekey",
    "masterkey",
    "signingkey",
    "subscriptionkey",
    "oauth2bearer",
    // Where the credentials of an ECS task are: whoever knows it may have them.
    "credentialsrelativeuri",
    "credentialsfulluri",
];
/// The same for whole names: as endings they would be ordinary words.
const ANNOUNCE_WHOLE: &[&str] = &["sig", "pass"];

/// How an `Authorization` begins; the secret comes after it.
const SCHEMES: &[&str] = &["bearer", "basic", "digest", "negotiate", "token", "aws4-hmac-sha256"];

/// Programs whose `-c` takes a script.
const SHELLS: &[&str] = &["sh", "bash", "dash", "ash", "zsh", "ksh", "su", "runuser"];

/// A program of which an option is known to take a secret.
#[derive(Debug)]
struct Tool {
    names: &'static [&'static str],
    /// Letters whose value is a secret.
    secret: &'static str,
    /// Other letters that take a value, so that what follows in the same word is none.
    valued: &'static str,
    long: &'static [&'static str],
    /// Only behind the word `login`: elsewhere the letter means something else.
    behind_login: bool,
    /// Only in the same word; alone it asks.
    attached: bool,
}

const TOOLS: &[Tool] = &[
    Tool {
        names: &["curl"],
        secret: "uUb",
        valued: "AcCdDeEFHhKmoPQrtTwxXyYz",
        long: &["user", "proxy-user", "pass", "proxy-pass"],
        behind_login: false,
        attached: false,
    },
    Tool { names: &["http", "https"], secret: "a", valued: "", long: &["auth"], behind_login: false, attached: false },
    Tool { names: &["sshpass"], secret: "p", valued: "", long: &[], behind_login: false, attached: false },
    Tool { names: &["redis-cli"], secret: "a", valued: "", long: &["pass"], behind_login: false, attached: false },
    Tool {
        names: &["docker", "podman", "nerdctl", "buildah", "skopeo", "helm", "oras", "crane"],
        secret: "p",
        valued: "",
        long: &[],
        behind_login: true,
        attached: false,
    },
    Tool {
        names: &["mysql", "mysqldump", "mysqladmin", "mariadb", "mariadb-dump", "mariadb-admin"],
        secret: "p",
        valued: "",
        long: &[],
        behind_login: false,
        attached: true,
    },
];

/// Masks text: what stands behind a name that announces a secret, and what looks like one.
pub fn mask(text: &str) -> String {
    let text = &encoded(text);
    let text = &wrapped::mask(&[text], false)[0];
    let mut out = String::with_capacity(text.len());
    Reader::default().argument(text, false, &mut out);
    out
}

/// Masks words that are a token once their percent-encoding is undone (RFC 3986 section 2.1): its mark may be encoded.
fn encoded(text: &str) -> String {
    let words = text.split(' ').map(|word| match word.contains('%') && shape::is_token(&decoded(word)) {
        true => MASK,
        false => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

fn decoded(word: &str) -> String {
    let mut parts = word.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => bytes.push(byte),
            None => bytes.push(b'%'),
        }
        bytes.extend(part[digits.map_or(0, str::len)..].bytes());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Masks a value that has a name of its own, like a label.
pub fn mask_value(name: &str, value: &str) -> String {
    if announces(name) && !value.is_empty() { MASK.to_owned() } else { mask(value) }
}

/// Masks a name that an engine gave a container, if it cannot be one. Such names look random (`runner-t1_Xy-project-12-concurrent-0-…`): of
/// what their letters allow (`[a-zA-Z0-9_.-]`) only what is no name counts.
pub fn mask_name(name: &str) -> String {
    let is_word = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    match is_word {
        true if is_no_name(name) => MASK.to_owned(),
        true => name.to_owned(),
        false => mask(name),
    }
}

/// Is this where a role's name or a tag's key should stand a secret? Names may look random, so only a whole token that says what it is
/// counts, and what looks like a secret access key and nothing else.
pub fn is_no_name(text: &str) -> bool {
    shape::is_token(text) || shape::is_secret_key(text)
}

/// Masks a command line's arguments: like [`mask`], and what options take.
pub fn mask_argv<S: AsRef<str>>(argv: &[S]) -> Vec<String> {
    masked_argv(argv, false)
}

/// The same for the beginning of a command line. What may be half of a secret at its end is masked, too.
pub fn mask_cut_argv<S: AsRef<str>>(argv: &[S]) -> Vec<String> {
    masked_argv(argv, true)
}

fn masked_argv<S: AsRef<str>>(argv: &[S], cut: bool) -> Vec<String> {
    let mut reader = Reader::default();
    let (mut is_script, mut in_shell) = (false, false);
    let argv = wrapped::mask(argv, cut);
    let masked = argv.iter().map(|argument| {
        let mut out = String::with_capacity(argument.len());
        reader.argument(argument, is_script, &mut out);
        // `sh -c SCRIPT`, `bash -euxc SCRIPT`.
        in_shell |= SHELLS.contains(&argument.rsplit('/').next().unwrap_or(argument));
        is_script =
            in_shell && argument.strip_prefix('-').is_some_and(|flags| flags.ends_with('c') && !flags.starts_with('-'));
        out
    });
    masked.collect()
}

/// What was announced and has not come yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Awaited {
    #[default]
    Nothing,
    /// The next word.
    Word,
    /// What stands behind a header's name: the next word, and the one after it if that was a scheme.
    Header,
}

/// Reads words one after the other.
#[derive(Default)]
struct Reader {
    awaited: Awaited,
    tool: Option<&'static Tool>,
    login: bool,
    /// Was the last word `set`? `aws configure set aws_secret_access_key VALUE`, `npm config set _authToken VALUE`.
    set: bool,
}

impl Reader {
    /// One argument. In a script a secret ends with its word; elsewhere nobody knows, and all that follows is masked.
    fn argument(&mut self, text: &str, is_script: bool, out: &mut String) {
        if self.awaited != Awaited::Nothing {
            self.swallow(text, out);
            return;
        }
        let rest =
            if is_script { None } else { announced(text).find(|value| !value.is_query).map(|value| value.start) };
        let (head, rest) = text.split_at(rest.unwrap_or(text.len()));
        if head.contains(char::is_whitespace) {
            self.script(head, out, 0);
        } else {
            self.word(head, out);
        }
        if !is_empty_value(rest) {
            out.push_str(MASK);
            self.awaited = Awaited::Nothing;
        } else {
            out.push_str(rest);
        }
    }

    /// What was awaited.
    fn swallow(&mut self, word: &str, out: &mut String) {
        let bare = word.trim_matches(['"', '\'']);
        let is_scheme = SCHEMES.iter().any(|scheme| scheme.eq_ignore_ascii_case(bare));
        if self.awaited == Awaited::Header && is_scheme {
            out.push_str(word);
            self.awaited = Awaited::Word;
        } else {
            out.push_str(MASK);
            self.awaited = Awaited::Nothing;
        }
    }

    /// Words between white space, quoted ones as the shell reads them.
    fn script(&mut self, text: &str, out: &mut String, depth: usize) {
        let mut rest = text;
        loop {
            let behind = rest.trim_start();
            let (space, _) = rest.split_at(rest.len() - behind.len());
            if self.awaited == Awaited::Header && !behind.is_empty() {
                // `name: value` in lines of text: nobody knows where the value ends, but it ends with the line.
                out.push_str(MASK);
                self.awaited = Awaited::Nothing;
                rest = behind.find('\n').map_or("", |end| &behind[end..]);
                continue;
            }
            out.push_str(space);
            if behind.is_empty() {
                return;
            }
            let end = end_of_word(behind);
            let (word, further) = behind.split_at(end);
            rest = further;
            if self.awaited != Awaited::Nothing {
                self.swallow(word, out);
                continue;
            }
            match quoted(word) {
                Some((quote, inner)) if depth < MAX_DEPTH => {
                    out.push(quote);
                    self.script(inner, out, depth + 1);
                    out.push(quote);
                }
                _ => self.word(word, out),
            }
        }
    }

    /// One word.
    fn word(&mut self, word: &str, out: &mut String) {
        self.notice(word);
        if std::mem::replace(&mut self.set, word == "set") && !word.starts_with('-') && announces(word) {
            out.push_str(word);
            self.awaited = Awaited::Word;
            return;
        }
        if let Some(start) = self.option(word) {
            let (option, value) = word.split_at(start);
            out.push_str(option);
            if value.is_empty() {
                self.awaited = Awaited::Word;
            } else {
                out.push_str(MASK);
            }
            return;
        }
        let mut done = 0;
        for value in announced(word) {
            if value.start < done {
                continue;
            }
            shape::mask(&word[done..value.start], out);
            let text = &word[value.start..value.end];
            if !is_empty_value(text) {
                out.push_str(MASK);
            } else {
                out.push_str(text);
                if value.end == word.len() {
                    self.awaited = if value.is_header { Awaited::Header } else { Awaited::Word };
                }
            }
            done = value.end;
        }
        shape::mask(&word[done..], out);
    }

    /// Which program are the options for?
    fn notice(&mut self, word: &str) {
        let bare = word.trim_start_matches(['"', '\'', '$', '(', '`', '{']).trim_end_matches(['"', '\'']);
        let name = bare.rsplit('/').next().unwrap_or(bare);
        if let Some(tool) = TOOLS.iter().find(|tool| tool.names.contains(&name)) {
            self.tool = Some(tool);
            self.login = false;
        } else if name == "login" {
            self.login = true;
        } else if matches!(word, "|" | "||" | "&&" | "&") || word.ends_with(';') {
            self.tool = None;
        }
    }

    /// Where in the word the secret begins that an option takes; its end if the next word is the secret. `--name=` is left to
    /// [`announced`], unless only this program means a secret by it.
    fn option(&self, word: &str) -> Option<usize> {
        let flags = word.strip_prefix('-')?;
        let tool = self.tool.filter(|tool| self.login || !tool.behind_login);
        let name = flags.strip_prefix('-').unwrap_or(flags);
        let (name, value) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
        let is_long = flags.starts_with('-') && tool.is_some_and(|tool| tool.long.contains(&name));
        if is_long {
            return Some(word.len() - value.map_or(0, str::len));
        }
        if value.is_none() && name.len() > 2 && announces(name) {
            return Some(word.len());
        }
        let tool = tool.filter(|_| !flags.starts_with('-'))?;
        for (at, letter) in flags.char_indices() {
            if tool.secret.contains(letter) {
                let start = 1 + at + letter.len_utf8();
                return (start < word.len() || !tool.attached).then_some(start);
            }
            // Of programs whose letters are not all known only the first is read.
            if tool.valued.is_empty() || tool.valued.contains(letter) || !letter.is_ascii_alphanumeric() {
                return None;
            }
        }
        None
    }
}

/// A value behind a name that announces a secret.
struct Value {
    start: usize,
    end: usize,
    /// In a URL's query, where the next parameter ends it.
    is_query: bool,
    /// Behind a colon.
    is_header: bool,
}

/// All such values, in order. `name=`, `name:`, `"name": `, and with either sign percent-encoded.
fn announced(text: &str) -> impl Iterator<Item = Value> + '_ {
    let bytes = text.as_bytes();
    (0..bytes.len()).filter_map(move |at| {
        let (is_header, length) = match bytes[at] {
            b'=' => (false, 1),
            b':' => (true, 1),
            b'%' if bytes.get(at + 1) == Some(&b'3') => match bytes.get(at + 2)? {
                b'd' | b'D' => (false, 3),
                b'a' | b'A' => (true, 3),
                _ => return None,
            },
            _ => return None,
        };
        let before = text[..at].trim_end_matches(['"', '\'', '\\', ' ']);
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let length_of_name = before.bytes().rev().take(MAX_NAME).take_while(is_part).count();
        let (ahead, name) = before.split_at(before.len() - length_of_name);
        // `arn:aws:secretsmanager:…:secret:<name>` announces nothing.
        if !announces(name) || (is_header && ahead.ends_with(':')) {
            return None;
        }
        let is_query = ahead.ends_with(['?', '&']);
        let start = at + length;
        let end = if is_query { text[start..].find(ends_parameter).map(|end| start + end) } else { None };
        Some(Value { start, end: end.unwrap_or(text.len()), is_query, is_header })
    })
}

fn ends_parameter(c: char) -> bool {
    matches!(c, '&' | '#' | '"' | '\'' | '<' | '>') || c.is_whitespace()
}

fn is_empty_value(value: &str) -> bool {
    value.trim_matches([':', '=', ' ', '"', '\'', '\\']).is_empty()
}

/// Does a name announce a secret?
fn announces(name: &str) -> bool {
    let is_part = |c: &char| c.is_ascii_alphanumeric();
    let plain: String = name.chars().filter(is_part).map(|c| c.to_ascii_lowercase()).collect();
    ANNOUNCE_WHOLE.contains(&plain.as_str()) || ANNOUNCE.iter().any(|ending| plain.ends_with(ending))
}

/// Where a word of a script ends. A quote that nothing closes is a letter.
fn end_of_word(text: &str) -> usize {
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        if c.is_whitespace() {
            return at;
        }
        at += c.len_utf8();
        if c == '\\' {
            at += text[at..].chars().next().map_or(0, char::len_utf8);
        } else if matches!(c, '"' | '\'')
            && let Some(close) = text[at..].find(c)
        {
            at += close + 1;
        }
    }
    at
}

/// The inside of a word that is one quoted text.
fn quoted(word: &str) -> Option<(char, &str)> {
    let quote = word.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let inner = word.strip_prefix(quote)?.strip_suffix(quote)?;
    (!inner.contains(quote)).then_some((quote, inner))
}
