//! What must never be written down? Masks what looks like a token or a credential in text that a process chose.
//!
//! The allow-list in `observation::redact` is the first line: only named HTTP facts are kept at all. This is the second, for
//! the free text among them (path, User-Agent) and for command lines. It cannot know a secret that looks like a word.

/// What stands in a secret's place.
pub const MASK: &str = "***";

/// An AWS secret access key has 40 characters, an IMDS token 56, a session token hundreds; nothing shorter is masked by shape.
const MIN_SECRET: usize = 40;

/// Masks every run of base64 characters that is long enough for a secret and mixes upper case, lower case and digits (so that
/// container ids and lower-case paths stay), or ends in `=`.
pub fn mask(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_secret_char) {
        let (before, run_on) = rest.split_at(start);
        out.push_str(before);
        let end = run_on.find(|c| !is_secret_char(c)).unwrap_or(run_on.len());
        let (run, after) = run_on.split_at(end);
        out.push_str(if looks_secret(run) { MASK } else { run });
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Masks a command line's arguments: by shape like [`mask`], and whatever follows a name that announces a secret, in the same
/// argument or the next.
pub fn mask_argv<S: AsRef<str>>(argv: &[S]) -> Vec<String> {
    let mut next_is_secret = false;
    argv.iter()
        .map(|argument| {
            let argument = argument.as_ref();
            if std::mem::take(&mut next_is_secret) {
                return MASK.to_owned();
            }
            match announced(argument) {
                Some(end) if argument[end..].trim_matches([':', '=', ' ', '"', '\'']).is_empty() => {
                    next_is_secret = true;
                    argument.to_owned()
                }
                Some(end) => format!("{}{MASK}", &argument[..end]),
                None => mask(argument),
            }
        })
        .collect()
}

/// Names behind which a secret stands, lower case.
const ANNOUNCE: &[&str] = &[
    "x-aws-ec2-metadata-token:",
    "x-aws-ec2-metadata-token=",
    "authorization:",
    "authorization=",
    "aws_secret_access_key",
    "aws_session_token",
    "aws_security_token",
    "secretaccesskey",
    "x-amz-security-token",
    "x-amz-signature",
    "x-amz-credential",
    "--token",
    "--password",
];

/// Where the announced secret begins.
fn announced(argument: &str) -> Option<usize> {
    let lower = argument.to_ascii_lowercase();
    ANNOUNCE.iter().filter_map(|name| lower.find(name).map(|at| at + name.len())).min()
}

fn is_secret_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | '_' | '-')
}

/// `AKIA` or `ASIA` and sixteen more: the id of a long-lived or of a session's access key.
fn is_access_key(run: &str) -> bool {
    let known = run.starts_with("AKIA") || run.starts_with("ASIA");
    known && run.len() == 20 && run.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
}

fn looks_secret(run: &str) -> bool {
    let has = |class: fn(&u8) -> bool| run.as_bytes().iter().any(class);
    is_access_key(run)
        || run.len() >= MIN_SECRET
            && (run.ends_with('=')
                || (has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_digit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "AQAEAEXAMPLEtokenEXAMPLEtokenEXAMPLEtoken0123456789abc==";

    #[test]
    fn a_token_is_masked_wherever_it_stands() {
        assert_eq!(mask(&format!("a {TOKEN} b")), "a *** b");
        assert_eq!(mask(&format!("({TOKEN})")), "(***)");
        assert_eq!(mask("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY12"), "***");
    }

    #[test]
    fn ordinary_words_container_ids_and_paths_stay() {
        for text in [
            "Boto3/1.40 Python/3.11 Linux/6.12.0 Botocore/1.40",
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "/usr/lib/python3/dist-packages/awscli/bin/aws_completer",
            "",
        ] {
            assert_eq!(mask(text), text);
        }
    }

    #[test]
    fn an_announced_secret_is_masked_however_short() {
        let argv = ["curl", "-H", "X-aws-ec2-metadata-token: abc", "http://169.254.169.254/"];
        assert_eq!(mask_argv(&argv), ["curl", "-H", "X-aws-ec2-metadata-token:***", "http://169.254.169.254/"]);
        assert_eq!(mask_argv(&["x", "--token", "abc", "d"]), ["x", "--token", "***", "d"]);
        assert_eq!(mask_argv(&["AWS_SECRET_ACCESS_KEY=short"]), ["AWS_SECRET_ACCESS_KEY***"]);
    }

    #[test]
    fn the_request_for_a_token_is_not_a_secret() {
        let argv = ["curl", "-X", "PUT", "-H", "X-aws-ec2-metadata-token-ttl-seconds: 21600"];
        assert_eq!(mask_argv(&argv), argv);
    }
}
