//! Which entry of an allow-list would let this client through? None that would let others through, too.

use std::fmt::Write as _;

use crate::identity::{Attribution, Key};
use crate::printable::printable;

/// Bytes of a name in a comment.
const MAX_NAME: usize = 200;

/// The entry, for roles that were asked for; or why there is none.
pub fn entry(who: &Attribution, roles: &[String]) -> Result<String, String> {
    let process = who.process.as_ref();
    let container = who.container.as_ref();
    let mut keys: Vec<(&str, &str)> = Vec::new();
    match (container, who.by) {
        (Some(container), _) => match (&container.image, &container.name) {
            (Some(image), _) => keys.push(("image", image)),
            (None, Some(name)) => keys.push(("container", name)),
            (None, None) => keys.push(("container", &container.id)),
        },
        (None, Key::Cgroup) => {}
        (None, _) => return Err("it could not be identified".to_owned()),
    }
    let exe = process.and_then(|process| process.exe.as_deref());
    match exe {
        Some(exe) => keys.push(("exe", exe)),
        None => return Err("its executable is not known".to_owned()),
    }
    let is_pattern = |text: &str| text.contains(['*', '?']);
    if let Some((key, value)) = keys.iter().find(|(_, value)| is_pattern(value)) {
        return Err(format!("its {key} {} would be a pattern for others", printable(value, MAX_NAME)));
    }
    if let Some(role) = roles.iter().find(|role| is_pattern(role)) {
        return Err(format!("the role {} would be a pattern for others", printable(role, MAX_NAME)));
    }
    let mut text = "[[client]]\n".to_owned();
    for (key, value) in keys {
        let _ = writeln!(text, "{key} = {}", quoted(value));
    }
    if let Some(process) = process {
        let _ = writeln!(text, "uid = {}", process.uid);
    }
    if !roles.is_empty() {
        let roles: Vec<String> = roles.iter().map(|role| quoted(role)).collect();
        let _ = writeln!(text, "role = [{}]", roles.join(", "));
    }
    Ok(text)
}

/// A string of TOML whatever is in it, on one line and without control characters that a terminal would obey.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            c if c.is_ascii() && !c.is_ascii_control() => quoted.push(c),
            c => {
                let _ = write!(quoted, "\\U{:08X}", u32::from(c));
            }
        }
    }
    quoted.push('"');
    quoted
}
