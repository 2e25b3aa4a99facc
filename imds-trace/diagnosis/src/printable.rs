//! How is text that others chose shown on a terminal, and an error in one sentence?

use std::borrow::Cow;

use crate::net::bounded;

/// Text that a container may have chosen, safe for a terminal: no control characters, nothing that turns the writing direction or
/// takes no room, at most `limit` bytes of it.
pub fn printable(text: &str, limit: usize) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    for c in bounded(text, limit).chars() {
        if is_unsafe(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    if text.len() > limit {
        out.push('…');
    }
    out
}

/// JSON text with the characters escaped that [`printable`] escapes and JSON allows to stand raw.
pub fn json_safe(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Moves the cursor, turns the writing direction or takes no room. All are below U+10000. A line's own end is not in a line.
fn is_unsafe(c: char) -> bool {
    let invisible = matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    // Tags, and what is no character at all, which XML forbids.
    let none = matches!(c, '\u{e0000}'..='\u{e0fff}' | '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe;
    c.is_control() || invisible || none
}

/// An error with all its causes, each said once.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// A name as one word of a command: who owns a container's namespace chooses the names in it.
pub fn shell_word(name: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "./:,_-@".contains(c);
    if !name.is_empty() && name.chars().all(harmless) {
        name.to_owned()
    } else {
        format!("'{}'", name.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_xml_forbids_and_what_nobody_sees_is_escaped() {
        assert_eq!(printable("a\u{fffe}b\u{ffff}c\u{e0041}d", 64), r"a\u{fffe}b\u{ffff}c\u{e0041}d");
        let json: String = serde_json::from_str(&format!("\"{}\"", json_safe("a\u{e0041}b"))).unwrap();
        assert_eq!(json, "a\u{e0041}b");
    }

    #[test]
    fn no_control_character_reaches_a_terminal() {
        let hostile = "\x1b]0;pwned\x07\u{202e}evil\r\nline\u{9b}31m";
        let shown = printable(hostile, 200);
        assert!(shown.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{shown:?}");
        assert!(shown.contains("\\u{1b}") && shown.contains("evil"));
    }

    #[test]
    fn a_long_name_is_cut_and_says_so() {
        assert_eq!(printable("abcdef", 3), "abc…");
        assert_eq!(printable("abc", 3), "abc");
    }

    #[test]
    fn a_name_in_a_command_is_one_word_and_nothing_else() {
        assert_eq!(shell_word("br-0123456789ab"), "br-0123456789ab");
        assert_eq!(shell_word("x;reboot"), "'x;reboot'");
        assert_eq!(shell_word("it's $(x)"), r"'it'\''s $(x)'");
        assert_eq!(shell_word(""), "''");
    }
}
