//! Does a random secret of any format survive anywhere: in a command line, a path, a User-Agent or a label, whole or in pieces?

use super::formats::{self, Format};
use super::shape::reads_as_words;
use super::tests::{BASE64, BASE64_URL, Random, survives};
use super::{mask, mask_argv, mask_cut_argv, mask_value};

/// Pieces of this length and more are looked at: eight characters in a row are what must not be left.
const LEAST: usize = 8;

/// What is left of a text in each kind of place that others choose: a path, a User-Agent, a query, a label, two command lines.
pub(super) fn everywhere(whole: &str) -> [String; 7] {
    [
        mask(whole),
        mask(&format!("/opt/{whole}/bin")),
        mask(&format!("app/1.0 ({whole}) lang/x")),
        mask(&format!("http://h/p?a=1&b={whole}&c=2")),
        mask_value("com.example.note", whole),
        mask_argv(&["prog", &format!("--x={whole}"), "tail"]).join("|"),
        mask_argv(&["sh", "-c", &format!("prog '{whole}' | tail")]).join("|"),
    ]
}

/// A random secret of a format: what stands before its mark, and what behind.
fn secret(format: &Format, random: &mut Random) -> (String, String) {
    // Signs are in an alphabet because of a few places in the format; letters and digits make most of it.
    let letters: Vec<u8> = format.alphabet().into_iter().filter(u8::is_ascii_alphanumeric).collect();
    (random.word(&letters, format.before), random.word(&letters, format.length))
}

/// Does one of the pieces read as words do? Then it may stay: the price of leaving command lines readable.
fn is_wordy(pieces: &[&str]) -> bool {
    pieces.iter().any(|piece| piece.len() >= LEAST && reads_as_words(piece.as_bytes()))
}

#[test]
fn a_secret_of_every_format_is_masked_everywhere() {
    let mut random = Random(0x5eed);
    for format in formats::all() {
        for _ in 0..4 {
            let (before, behind) = secret(format, &mut random);
            if is_wordy(&[&behind]) {
                continue;
            }
            let whole = format!("{before}{}{behind}", format.mark);
            for text in everywhere(&whole) {
                assert!(!survives(&behind, &text), "{whole} in {text}");
            }
        }
    }
}

#[test]
fn a_secret_of_every_format_split_at_every_place_is_masked() {
    let mut random = Random(0xcafe);
    // A colon ends a name, and such a mark is found in one piece only.
    for format in formats::all().iter().filter(|format| !format.mark.contains(':')) {
        let (before, behind) = secret(format, &mut random);
        let whole = format!("{before}{}{behind}", format.mark);
        // Long ones are cut at some places only: they are base64 of any length there.
        let step = whole.len().div_ceil(48);
        for at in (1..whole.len()).step_by(step) {
            let (first, second) = whole.split_at(at);
            let in_first = behind.len().saturating_sub(second.len());
            if is_wordy(&[&behind[..in_first], &behind[in_first..]]) {
                continue;
            }
            for text in [
                mask_argv(&["prog", first, second, "tail"]).join("|"),
                mask(&format!("{first}\n{second}")),
                mask(&format!("{{\"x\":\"{first}\\n{second}\"}}")),
            ] {
                assert!(!survives(&behind, &text), "{first} {second}: {text}");
            }
        }
    }
}

#[test]
fn a_secret_access_key_split_at_every_place_is_masked() {
    let mut random = Random(0x5ac);
    for _ in 0..200 {
        let key = random.word(BASE64, 40);
        for at in 1..key.len() {
            let (first, second) = key.split_at(at);
            if is_wordy(&[first, second]) || second.starts_with('-') {
                continue;
            }
            for text in [mask_argv(&["prog", first, second, "tail"]).join("|"), mask(&format!("{first}\n{second}"))] {
                assert!(!survives(&key, &text), "{first} {second}: {text}");
            }
        }
    }
}

#[test]
fn a_token_in_pieces_of_every_length_is_masked() {
    let mut random = Random(0xf01d);
    for letters in [BASE64, BASE64_URL] {
        for _ in 0..20 {
            let token = format!("{}==", random.word(letters, 54));
            for width in 8..token.len() {
                let pieces: Vec<&str> =
                    (0..token.len()).step_by(width).map(|at| &token[at..token.len().min(at + width)]).collect();
                // Before a dash that an option could begin with nobody can tell either.
                if is_wordy(&pieces) || pieces.iter().any(|piece| piece.starts_with('-')) {
                    continue;
                }
                let mut argv = vec!["prog"];
                argv.extend(&pieces);
                for text in [
                    mask_argv(&argv).join("|"),
                    mask(&pieces.join("\n")),
                    mask(&pieces.join("\\\n")),
                    mask(&pieces.join("\" \"")),
                ] {
                    assert!(!survives(&token, &text), "{pieces:?}: {text}");
                }
            }
        }
    }
}

#[test]
fn a_key_in_pem_and_credentials_in_base64_are_masked_to_their_last_line() {
    let mut random = Random(0x9e3);
    for _ in 0..50 {
        let body = random.word(BASE64, 64 * 3 + 30);
        let lines: Vec<&str> = (0..body.len()).step_by(64).map(|at| &body[at..body.len().min(at + 64)]).collect();
        for between in ["\n", "\\n", "\r\n"] {
            let pem = format!(
                "-----BEGIN PRIVATE KEY-----{between}{}{between}-----END PRIVATE KEY-----",
                lines.join(between)
            );
            let masked = mask(&pem);
            assert!(!survives(&body, &masked), "{masked}");
        }
    }
}

#[test]
fn half_a_secret_at_the_end_of_a_command_line_that_goes_on_is_masked() {
    let mut random = Random(0xc07);
    for length in 12..40 {
        let half = random.word(BASE64, length);
        let masked = mask_cut_argv(&["prog", &half]).join("|");
        assert!(is_wordy(&[&half]) || !survives(&half, &masked), "{masked}");
    }
    assert_eq!(mask_cut_argv(&["prog", "--x", "MyProject", "build2"]).join("|"), "prog|--x|MyProject|build2");
}

#[test]
fn what_stands_beside_a_secret_stays() {
    let token = Random(0xbe51de).word(BASE64, 56);
    let (first, second) = token.split_at(28);
    for (argv, expected) in [
        (&["prog", first, second, "--region", "eu-central-1"][..], "prog|***|***|--region|eu-central-1"),
        (
            &["git", "clone", &token, "/home/runner/work", "Release2", "main"],
            "git|clone|***|/home/runner/work|Release2|main",
        ),
        (
            &["kubectl", "exec", "web-7d9f8b6c5d-x2x4z", "cache-5d8f7b9c4d-q8w7e", "--", "sh"],
            "kubectl|exec|web-7d9f8b6c5d-x2x4z|cache-5d8f7b9c4d-q8w7e|--|sh",
        ),
        (
            &["gradle", "assembleRelease", "connectedAndroidTest", "publishReleasePublicationToMavenRepository"],
            "gradle|assembleRelease|connectedAndroidTest|publishReleasePublicationToMavenRepository",
        ),
        (
            &["git", "diff", "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"],
            "git|diff|0123456789abcdef0123456789abcdef01234567|89abcdef0123456789abcdef0123456789abcdef",
        ),
        (
            &["pip", "install", "hf_transfer", "torch", "transformers", "accelerate", "datasets"],
            "pip|install|hf_transfer|torch|transformers|accelerate|datasets",
        ),
        (
            &["grep", "glpat-", "the", "prefix", "of", "a", "personal", "token"],
            "grep|glpat-|the|prefix|of|a|personal|token",
        ),
        (&["npm_config_registry=x", "npm", "run", "build"], "npm_config_registry=x|npm|run|build"),
    ] {
        assert_eq!(mask_argv(argv).join("|"), expected);
    }
}
