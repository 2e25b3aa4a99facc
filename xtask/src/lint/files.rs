//! Is each file what a reader expects: a question first, a telling name, no sleeping tests?

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Names under which anything could be put, and soon is.
const FORBIDDEN_NAMES: &[&str] = &["utils", "util", "common", "helpers", "types", "misc"];

/// Where tests may sleep, and why. Everything else waits for a condition with a deadline.
const MAY_SLEEP: &[(&str, &str)] = &[
    ("tests/src/bench/load.rs", "asks at a pace"),
    ("tests/src/bench/mod.rs", "watches an idle program for a time"),
    ("tests/src/bench/soak.rs", "kills each run a little later than the one before"),
    ("tests/src/bench/process.rs", "measures how long a start takes, more finely than others wait"),
    ("tests/src/expect.rs", "the one place that polls a condition"),
    ("tests/src/bin/imds-client.rs", "a client that waits between requests is what it plays"),
    ("tests/src/children.rs", "polls for a program's end, which has no wait with a deadline"),
    ("tests/src/house.rs", "polls until what a lab left behind has gone"),
    ("tests/src/imds/mod.rs", "a slow IMDS is what it plays"),
    ("tests/sdk-client/src/main.rs", "waits for a file before it does what is tested"),
    ("tests/src/pieces.rs", "polls for a segment's leaving, of which no socket tells"),
];

/// Words that are ours and nobody else's, and what a kernel engineer would write. Found in sentences only: a text with a space in it.
const DIALECT: &[(&str, &str)] = &[
    ("begins anew", "starts again"),
    ("found no room", "did not fit"),
    ("hang on", "attach to"),
    ("hangs on", "depends on"),
    ("look for yourself", "check"),
    ("made anew", "made again"),
    ("nobody could name", "could not be identified"),
    ("openly", "an error, or whatever is meant: \"fail open\" means to allow"),
    ("or the like", "what is meant"),
    ("put away", "rotated"),
    ("would not say", "did not tell"),
];

/// Longer than this, and a file wants to become several.
const LONG: usize = 500;

/// A Rust file, its path as seen from the workspace's root.
pub struct File {
    pub path: String,
    pub text: String,
}

/// Every Rust file below these folders (or the file itself), in order.
pub fn read(root: &Path, places: &[&str]) -> Result<Vec<File>> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = places.iter().map(|place| root.join(place)).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            for entry in fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
                open.push(entry.with_context(|| format!("list {}", path.display()))?.path());
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let path = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            found.push(File { path, text });
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

/// The first line is the question the file answers.
pub fn first_line(file: &File) -> Option<String> {
    let Some(first) = file.text.lines().next().and_then(|line| line.strip_prefix("//! ")) else {
        return Some(format!("{}:1 does not begin with `//! ` and the question the file answers", file.path));
    };
    let opening = std::iter::once(first)
        .chain(file.text.lines().skip(1).map_while(|line| line.strip_prefix("//! ")))
        .collect::<Vec<_>>()
        .join(" ");
    let asks = sentence_end(&opening) == Some('?');
    (!asks).then(|| format!("{}:1 does not begin with a question: which one does this file answer?", file.path))
}

/// The mark that ends the first sentence.
fn sentence_end(text: &str) -> Option<char> {
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        let ends = rest.peek().is_none_or(|next| next.is_whitespace());
        if matches!(character, '.' | '?' | '!') && ends {
            return Some(character);
        }
    }
    None
}

/// A name that says nothing.
pub fn name(file: &File) -> Option<String> {
    let name =
        file.path.split('/').map(|part| part.trim_end_matches(".rs")).find(|part| FORBIDDEN_NAMES.contains(part))?;
    Some(format!("{}: `{name}` does not say what is in it: name it after the question it answers", file.path))
}

/// A sleep is either too short or too long.
pub fn sleeps(file: &File) -> Result<Vec<String>> {
    if MAY_SLEEP.iter().any(|(path, _)| *path == file.path) {
        return Ok(Vec::new());
    }
    let paths = super::source::read(&file.text).with_context(|| format!("read {}", file.path))?.paths;
    let sleeping = paths.iter().filter(|named| named.called && named.path.last().is_some_and(|last| last == "sleep"));
    Ok(sleeping
        .map(|named| format!("{}:{} sleeps: wait for a condition with a deadline", file.path, named.line))
        .collect())
}

/// Sentences with words of a dialect in them.
pub fn dialect(file: &File) -> Result<Vec<String>> {
    let texts = super::source::read(&file.text).with_context(|| format!("read {}", file.path))?.texts;
    let mut wrong = Vec::new();
    for (line, text) in texts.iter().filter(|(_, text)| text.contains(' ')) {
        // Lines that a backslash joins.
        let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
        let plain = format!(" {} ", words.join(" ").to_lowercase());
        let found = DIALECT.iter().filter(|(word, _)| plain.contains(&format!(" {word} ")));
        wrong.extend(found.map(|(word, better)| format!("{}:{line} says \"{word}\": {better}", file.path)));
    }
    Ok(wrong)
}

/// Only a warning.
pub fn length(file: &File) -> Option<String> {
    let lines = file.text.lines().count();
    (lines > LONG).then(|| format!("{} has {lines} lines: does it answer one question?", file.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn the_first_sentence_asks() {
        assert_eq!(first_line(&file("a.rs", "//! Who is `a.b`? This.\n")), None);
        assert_eq!(first_line(&file("a.rs", "//! Which of the two\n//! is it? Both.\nuse x;")), None);
        assert!(first_line(&file("a.rs", "//! Does things. Why?\n")).is_some());
        assert!(first_line(&file("a.rs", "use x; // why?\n")).is_some());
    }

    #[test]
    fn a_name_must_say_something() {
        assert!(name(&file("imds-trace/src/output/utils.rs", "")).is_some());
        assert!(name(&file("tests/common/mod.rs", "")).is_some());
        assert_eq!(name(&file("imds-trace/src/output/text.rs", "")), None);
    }

    #[test]
    fn sentences_are_in_plain_words() {
        let said =
            |text: &str| dialect(&file("a.rs", &format!("fn f() -> &'static str {{ \"{text}\" }}"))).unwrap().len();
        assert_eq!(said("It hangs on the request, which is put \\\n    away."), 2);
        assert_eq!(said("openly"), 0, "a name, not a sentence");
        assert_eq!(said("Records were input away from it."), 0);
    }

    #[test]
    fn tests_do_not_sleep() {
        assert_eq!(sleeps(&file("tests/lab/a.rs", "//! sleep(\nfn f() { thread::sleep(ONE); }\n")).unwrap().len(), 1);
        assert_eq!(sleeps(&file(MAY_SLEEP[0].0, "sleep(ONE)")).unwrap().len(), 0);
    }
}
