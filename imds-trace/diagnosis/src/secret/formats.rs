//! Which tokens say what they are? Their formats, read once into one automaton that finds all of their marks in one pass.
//!
//! The formats are facts in `formats.tsv`, which names its source; its licence is in `formats.LICENSE`. A few stand here: those that its
//! source knows only by their surroundings.

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;

/// One format: where its mark stands, and what follows it.
#[derive(Debug)]
pub(super) struct Format {
    /// Characters of the secret in front of the mark.
    pub before: usize,
    pub mark: &'static str,
    /// The characters behind the mark, a bit for each of ASCII's.
    letters: u128,
    /// So many follow in a whole token, or more.
    pub length: usize,
    /// So many are enough where the mark is a secret's and nothing else.
    pub least: Option<usize>,
}

/// Behind these marks nothing but a secret stands: ten characters are enough. Sources: docs.gitlab.com "Token overview",
/// docs.github.com "token formats", api.slack.com "token types"; and the pages about tokens of Doppler, New Relic, Heroku, Netlify, Square,
/// Stripe, Cloudflare, Fly.io, Google, Anthropic, Atlassian, Linear, and of the webhooks of Slack, Discord and Teams, whose URL is the secret.
const PLAIN: &[(&str, usize)] = &[
    ("glpat-", 20),
    ("glrt-", 20),
    ("glrtr-", 20),
    ("glcbt-", 20),
    ("glptt-", 40),
    ("gldt-", 20),
    ("glft-", 20),
    ("glsoat-", 20),
    ("glagent-", 50),
    ("glimt-", 25),
    ("gloas-", 64),
    ("glffct-", 20),
    ("ghp_", 36),
    ("gho_", 36),
    ("ghu_", 36),
    ("ghs_", 36),
    ("ghr_", 36),
    ("github_pat_", 22),
    ("xoxa-", 24),
    ("xoxb-", 24),
    ("xoxc-", 24),
    ("xoxd-", 24),
    ("xoxe-", 24),
    ("xoxo-", 24),
    ("xoxp-", 24),
    ("xoxr-", 24),
    ("xoxs-", 24),
    ("xapp-", 24),
    ("dp.st.", 40),
    ("dp.ct.", 40),
    ("dp.sa.", 40),
    ("dp.scim.", 40),
    ("dp.audit.", 40),
    ("NRAK-", 27),
    ("NRII-", 32),
    ("NRJS-", 19),
    ("HRKU-", 36),
    ("nfp_", 36),
    ("sq0csp-", 43),
    ("whsec_", 32),
    ("sntrys_", 80),
    ("glc_eyJ", 40),
    ("cfut_", 40),
    ("cfat_", 40),
    ("fm2_", 100),
    ("fo1_", 43),
    ("ya29.", 40),
    ("GOCSPX-", 28),
    ("sk-ant-", 80),
    ("ATCTT3", 80),
    ("lin_oauth_", 40),
    ("hooks.slack.com/services/", 44),
    ("discord.com/api/webhooks/", 80),
    ("discordapp.com/api/webhooks/", 80),
    ("webhook.office.com/webhookb2/", 80),
];
/// Those that stand behind others of their characters: Telegram's bots have a number of eight to ten digits and a colon before theirs.
/// Source: core.telegram.org/bots/api.
const BEHIND: &[(usize, &str, usize)] = &[(8, ":AA", 33), (9, ":AA", 33), (10, ":AA", 33)];
/// Those that are random behind a mark that is a word elsewhere. Sources: pypi.org/help, developers.notion.com, documentation.mailgun.com,
/// developers.cloudflare.com (Origin CA keys).
const RANDOM: &[(&str, usize)] = &[("pypi-", 150), ("secret_", 43), ("key-", 32), ("v1.0-", 171)];
const LEAST_BEHIND_PLAIN: usize = 10;
/// An access key's id: sixteen, of which twelve are enough. Source: IAM "unique identifiers".
const ACCESS_KEYS: &[&str] = &["AKIA", "ASIA"];

struct Formats {
    formats: Vec<Format>,
    marks: AhoCorasick,
}

static FORMATS: LazyLock<Formats> = LazyLock::new(|| {
    let wide = letters("A-Za-z0-9+/=_%.-");
    let plain = PLAIN.iter().map(|(mark, length)| Format {
        before: 0,
        mark,
        letters: wide,
        length: *length,
        least: Some(LEAST_BEHIND_PLAIN),
    });
    let tokens = || letters("A-Za-z0-9_-");
    let behind = BEHIND.iter().map(move |(before, mark, length)| Format {
        before: *before,
        mark,
        letters: tokens(),
        length: *length,
        least: None,
    });
    let random = RANDOM.iter().map(move |(mark, length)| Format {
        before: 0,
        mark,
        letters: tokens(),
        length: *length,
        least: None,
    });
    let keys = ACCESS_KEYS.iter().map(|mark| Format {
        before: 0,
        mark,
        letters: letters("A-Z0-9"),
        length: 16,
        least: Some(12),
    });
    let formats: Vec<Format> = plain.chain(keys).chain(behind).chain(random).chain(table()).collect();
    let marks = AhoCorasick::new(formats.iter().map(|format| format.mark)).expect("a few hundred short marks");
    Formats { formats, marks }
});

fn table() -> impl Iterator<Item = Format> {
    let rows = include_str!("formats.tsv").lines().filter(|line| !line.starts_with('#'));
    rows.filter_map(|row| {
        let mut columns = row.split('\t');
        let before = columns.next()?.parse().ok()?;
        let (mark, alphabet) = (columns.next()?, columns.next()?);
        let length = columns.next()?.parse().ok()?;
        Some(Format { before, mark, letters: letters(alphabet), length, least: None })
    })
}

/// The characters of a class as in a regular expression: `A-Za-z0-9_-`.
fn letters(class: &str) -> u128 {
    let mut set = 0;
    let mut rest = class.as_bytes();
    while let [first, further @ ..] = rest {
        let (last, behind) = match further {
            [b'-', last, behind @ ..] => (last, behind),
            _ => (first, further),
        };
        for letter in *first..=*last {
            set |= 1_u128 << (letter & 0x7f);
        }
        rest = behind;
    }
    set
}

impl Format {
    fn takes(&self, byte: u8) -> bool {
        byte.is_ascii() && self.letters & (1 << byte) != 0
    }

    /// How many of these characters may follow the mark?
    pub(super) fn fitting(&self, behind: &[u8]) -> usize {
        behind.iter().take_while(|byte| self.takes(**byte)).count()
    }
}

/// Every mark in the text, by where it ends: where it begins, and of what format it is.
pub(super) fn marks(text: &[u8]) -> impl Iterator<Item = (usize, &'static Format)> + '_ {
    let found = FORMATS.marks.find_overlapping_iter(text);
    found.map(|found| (found.start(), &FORMATS.formats[found.pattern().as_usize()]))
}

#[cfg(test)]
pub(super) fn all() -> &'static [Format] {
    &FORMATS.formats
}

#[cfg(test)]
impl Format {
    /// The characters that may follow the mark.
    pub(super) fn alphabet(&self) -> Vec<u8> {
        (0..128).filter(|byte| self.takes(*byte)).collect()
    }
}

#[test]
fn every_row_of_the_table_is_a_format() {
    let rows = include_str!("formats.tsv").lines().filter(|line| !line.starts_with('#'));
    assert_eq!(table().count(), rows.count());
    assert!(table().count() > 150);
    assert_eq!(letters("A-C_-"), 1 << b'A' | 1 << b'B' | 1 << b'C' | 1 << b'_' | 1 << b'-');
}
