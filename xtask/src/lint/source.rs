//! What does a Rust file name, apart from comments, strings and test code?
//!
//! A scanner, not a parser: it knows tokens, brackets and `use` trees. Names made by macros it does not see.

/// A file of imds-trace/src.
pub struct Source {
    /// Below imds-trace/src.
    pub path: String,
    /// The text with comments, strings and test code blanked; line ends stay where they were.
    pub code: String,
}

/// A path that starts at the crate's root.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    pub line: usize,
    /// Without the leading `crate`; never empty.
    pub path: Vec<String>,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        // `#[cfg(test)] mod tests;` has its code in a file of that name.
        let is_test = path.ends_with("/tests.rs") || path.contains("/tests/");
        let code = if is_test { String::new() } else { without_tests(&without_prose(text)) };
        Self { path: path.to_owned(), code }
    }

    /// The module at the top of the crate that this file belongs to.
    pub fn room(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// How many `super::` lead from this file's module to the crate's root.
    fn depth(&self) -> usize {
        let path = self.path.trim_end_matches(".rs").trim_end_matches("/mod");
        if path == "main" || path == "lib" { 0 } else { path.split('/').count() }
    }

    /// Every path from the crate's root, however it is written.
    pub fn crate_paths(&self) -> Vec<Named> {
        let up = "super::".repeat(self.depth());
        let mut found = Vec::new();
        for prefix in ["crate::", "imds_trace::", up.as_str()].into_iter().filter(|prefix| !prefix.is_empty()) {
            for at in starts(&self.code, prefix) {
                let mut paths = Vec::new();
                tree(&self.code[at + prefix.len()..], &mut Vec::new(), &mut paths);
                let line = line_of(&self.code, at);
                found.extend(paths.into_iter().filter(|path| !path.is_empty()).map(|path| Named { line, path }));
            }
        }
        found.sort_by_key(|named| named.line);
        found
    }
}

/// The lines on which the code names `path` (`aya` as a crate: `aya::…`; `Instant::now` as it stands).
pub fn lines_naming(code: &str, path: &str) -> Vec<usize> {
    let whole = path.contains("::");
    let named = |&at: &usize| {
        let rest = &code[at + path.len()..];
        let ends = !rest.starts_with(is_word);
        let crate_named = rest.trim_start().starts_with("::") && !rest.trim_start().starts_with("::<");
        let used_bare = code[..at].ends_with("use ") && rest.trim_start().starts_with([';', ' ']);
        ends && (whole || ((crate_named || used_bare) && !follows_path(code, at)))
    };
    starts(code, path).into_iter().filter(named).map(|at| line_of(code, at)).collect()
}

/// Whether what starts at `at` is a later part of a path: `a::b`, but `::b` alone starts one.
fn follows_path(code: &str, at: usize) -> bool {
    let before = code[..at].strip_suffix("::");
    before.is_some_and(|before| before.ends_with(|last| is_word(last) || last == '>')) || code[..at].ends_with('.')
}

/// Where `word` stands without being the end of a longer word or, for `crate::` and `super::`, of a longer path.
fn starts(code: &str, word: &str) -> Vec<usize> {
    let inside = |at: usize| code[..at].ends_with(is_word) || (word.ends_with("::") && follows_path(code, at));
    code.match_indices(word).map(|(at, _)| at).filter(|&at| !inside(at)).collect()
}

/// Reads a use tree (`a::{b, c::D}`) or a plain path into the paths it stands for; gives back what comes after.
fn tree<'a>(code: &'a str, base: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> &'a str {
    let code = code.trim_start();
    if let Some(mut rest) = code.strip_prefix('{') {
        while !rest.trim_start().starts_with('}') && !rest.trim_start().is_empty() {
            rest = tree(rest, base, found);
            // `as name` and the comma
            rest = rest.trim_start_matches(|other| other != ',' && other != '}');
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        return rest.trim_start().strip_prefix('}').unwrap_or("");
    }
    let length = code.find(|other| !is_word(other)).unwrap_or(code.len());
    let (name, rest) = code.split_at(length);
    let pushed = !name.is_empty() && name != "self";
    if pushed {
        base.push(name.to_owned());
    }
    let rest = match rest.strip_prefix("::") {
        Some(rest) if rest.starts_with(|first| is_word(first) || first == '{' || first == '*') => {
            tree(rest, base, found)
        }
        _ => {
            found.push(base.clone());
            rest
        }
    };
    if pushed {
        base.pop();
    }
    rest
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn line_of(code: &str, at: usize) -> usize {
    1 + code[..at].matches('\n').count()
}

/// Blanks comments, strings and character literals.
pub fn without_prose(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let after_word = code.ends_with(is_word);
        let length = prose(rest, after_word);
        if length == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.extend(rest[..length].chars().map(|blanked| if blanked == '\n' { '\n' } else { ' ' }));
            rest = &rest[length..];
        }
    }
    code
}

/// How long the comment, string or character literal is that starts here; 0 if none does.
fn prose(text: &str, after_word: bool) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment(text);
    }
    if let Some(inside) = text.strip_prefix('\'') {
        return match inside.chars().next() {
            Some('\\') => {
                2 + inside[1..].char_indices().skip(1).find(|(_, next)| *next == '\'').map_or(0, |(at, _)| at + 1)
            }
            // A lifetime has no closing quote.
            Some(first) if inside[first.len_utf8()..].starts_with('\'') => 2 + first.len_utf8(),
            _ => 0,
        };
    }
    let raw = ["r", "br", "cr"].into_iter().find_map(|prefix| text.strip_prefix(prefix)).filter(|_| !after_word);
    if let Some(raw) = raw {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let closing = format!("\"{}", "#".repeat(hashes));
            let start = text.len() - raw.len() + hashes + 1;
            return text[start..].find(&closing).map_or(text.len(), |at| start + at + closing.len());
        }
    }
    if text.starts_with('"') {
        let mut escaped = false;
        for (at, next) in text.char_indices().skip(1) {
            match next {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => return at + 1,
                _ => {}
            }
        }
        return text.len();
    }
    0
}

/// They nest.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// Blanks each item under `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find(MARK) {
        kept.push_str(&rest[..at]);
        let item = &rest[at + MARK.len()..];
        let length = MARK.len() + item_length(item);
        kept.extend(rest[at..at + length].chars().map(|blanked| if blanked == '\n' { '\n' } else { ' ' }));
        rest = &rest[at + length..];
    }
    kept + rest
}

/// Up to the item's `;` or closing brace.
fn item_length(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, character) in code.char_indices() {
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 && character == '}' {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_blanked_and_lines_stay() {
        let text = "a /* x /* y */ z\n */ b // c\n'\\'' 'x' &'a str r#\"q\"#\n\"\\\"\" d";
        let code = without_prose(text);
        assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["a", "b", "&'a", "str", "d"]);
        assert_eq!(code.lines().count(), text.lines().count());
    }

    #[test]
    fn a_use_tree_stands_for_its_paths() {
        let file = Source::new("a.rs", "use crate::{net::{self, Ttl as T}, report, output::*};\n");
        let paths: Vec<_> = file.crate_paths().into_iter().map(|named| named.path.join("::")).collect();
        assert_eq!(paths, ["net", "net::Ttl", "report", "output"]);
    }

    #[test]
    fn a_test_item_ends_where_its_brace_closes() {
        let code =
            "#[cfg(test)]\n#[allow(x)]\nfn f(a: [u8; 3]) { if x { y } }\nfn g() {}\n#[cfg(test)] use a::b; fn h() {}";
        let kept = without_tests(code);
        assert!(!kept.contains('f') || !kept.contains("fn f"), "{kept}");
        assert!(kept.contains("fn g") && kept.contains("fn h") && !kept.contains("a::b"), "{kept}");
    }
}
