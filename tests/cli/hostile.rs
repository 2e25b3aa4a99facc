//! Does what a container chose, or whoever made the recording, reach a terminal raw, or break what programs read?

use anyhow::{Context, Result};
use diagnosis::identity::fact::Said;
use diagnosis::input::Input;
use diagnosis::observation::{Head, Place};
use imds_trace_tests::junit;

use crate::Outcome;
use crate::program::{Folder, Ran, inputs, recording, replay};

crate::tests![
    what_a_container_chooses_reaches_no_terminal_raw,
    what_only_a_forger_of_recordings_could_choose_does_not_either,
    a_hostile_line_is_not_quoted_raw,
    a_hostile_file_name_stays_one_line,
    an_endless_name_does_not_make_an_endless_line,
    a_containers_choice_is_neither_markup_nor_a_mention,
];

/// Clears the screen, sets the title, begins a line of its own, turns the writing direction, ends lines in other ways.
const EVIL: &str =
    "\u{1b}[2J\u{1b}]0;owned\u{7}\nERROR all is well\r\u{202e}\u{9b}31m\u{85}\u{2028}\u{200f}\u{0}\u{7f}";

/// Every string of a lost token response, as the container would have it.
fn chosen_by_a_container() -> Result<Vec<Input>> {
    let mut inputs = inputs("hop-limit-too-low")?;
    for input in &mut inputs {
        match input {
            Input::Fact(fact) => match &mut fact.said {
                Said::Attempting(connecting) | Said::Connecting(connecting) => connecting.comm = EVIL.into(),
                Said::Process(process) => {
                    process.exe = Some(EVIL.into());
                    process.argv = Some(vec![EVIL.into(), EVIL.into()]);
                }
                Said::Container(container) => {
                    container.name = Some(EVIL.into());
                    container.image = Some(EVIL.into());
                    container.labels = std::sync::Arc::new([(EVIL.to_owned(), EVIL.to_owned())].into());
                }
                Said::LinkLocalExceeded { interface, .. } => *interface = EVIL.into(),
                Said::Connected(_)
                | Said::Sending(_)
                | Said::Counted(_)
                | Said::ContainerGone { .. }
                | Said::Uplinks { .. }
                | Said::Forwarding(_)
                | Said::InHdrErrors { .. } => {}
            },
            Input::Observation(observation) => {
                if let Some(Head::Request(head)) = observation.heads.first_mut() {
                    head.path = format!("/{EVIL}");
                    head.user_agent = Some(EVIL.into());
                }
                match &mut observation.place {
                    Place::Hook(hook) => hook.interface.name = format!("{}{EVIL}", hook.interface.name).into(),
                    Place::Drop(drop) => {
                        if let Some(interface) = &mut drop.interface {
                            interface.name = EVIL.into();
                        }
                    }
                }
            }
            Input::Tick { .. } | Input::Lost { .. } => {}
        }
    }
    Ok(inputs)
}

fn replayed(folder: &Folder, inputs: &[Input], kind: &str) -> Result<Ran> {
    let file = folder.file("hostile.jsonl", recording(inputs)?)?;
    let ran = replay(&file, &["--output", kind])?;
    ran.expect_quiet()?;
    Ok(ran)
}

/// What a terminal would take for more than a letter.
fn raw(text: &str) -> Option<char> {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().find(|c| (c.is_control() && *c != '\n') || turns(*c))
}

fn expect_harmless(inputs: &[Input]) -> Outcome {
    let folder = Folder::new()?;
    let text = replayed(&folder, inputs, "text")?.stdout;
    if let Some(raw) = raw(&text) {
        return Err(format!("{raw:?} reaches the terminal in {text:?}").into());
    }
    if let Some(line) = text.lines().find(|line| line.starts_with("ERROR all is well")) {
        return Err(format!("a line of its own: {line:?} in {text:?}").into());
    }
    if !text.contains("owned") {
        return Err(format!("the name is not shown at all, so this shows nothing: {text}").into());
    }
    for event in replayed(&folder, inputs, "json")?.json()? {
        if event["type"].as_str().is_none() {
            return Err(format!("an object without a type: {event}").into());
        }
    }
    let path = folder.path().join("it.xml");
    replayed(&folder, inputs, &format!("junit={}", path.display()))?;
    let cases = junit::read(&path)?;
    if cases.len() != 1 || !cases[0].name.contains("owned") || raw(&std::fs::read_to_string(&path)?).is_some() {
        return Err(format!("{cases:?}").into());
    }
    Ok(())
}

fn what_a_container_chooses_reaches_no_terminal_raw() -> Outcome {
    expect_harmless(&chosen_by_a_container()?)
}

fn what_only_a_forger_of_recordings_could_choose_does_not_either() -> Outcome {
    let mut inputs = chosen_by_a_container()?;
    for input in &mut inputs {
        if let Input::Observation(observation) = input {
            if let Place::Drop(drop) = &mut observation.place {
                // Still a forward that drops for a spent TTL: what stands behind the dot is the compiler's.
                drop.location = Some(format!("ip_forward.{EVIL}"));
                drop.reason = Some(EVIL.into());
            }
            if let Some(Head::Request(head)) = observation.heads.first_mut() {
                head.method = format!("PUT{EVIL}");
            }
        }
    }
    expect_harmless(&inputs)
}

fn a_hostile_line_is_not_quoted_raw() -> Outcome {
    let folder = Folder::new()?;
    let mut bytes = recording(&inputs("hop-limit-too-low")?)?;
    for name in [EVIL, "\u{1b}[31m"] {
        let mut line = serde_json::to_vec(&serde_json::json!({ name: 1 })).context("JSON")?;
        line.push(b'\n');
        let at = bytes.iter().position(|byte| *byte == b'\n').context("a header")? + 1;
        bytes.splice(at..at, line);
        let file = folder.file("hostile.jsonl", &bytes)?;
        let ran = replay(&file, &[])?;
        ran.expect_code(2)?;
        if let Some(raw) = raw(&ran.stderr) {
            return Err(format!("{raw:?} reaches the terminal: {ran:?}").into());
        }
        if ran.stderr.lines().count() != 1 {
            return Err(format!("not one line: {ran:?}").into());
        }
    }
    Ok(())
}

fn a_hostile_file_name_stays_one_line() -> Outcome {
    let folder = Folder::new()?;
    let file = folder.path().join("a\nb\u{1b}[31m");
    let ran = replay(&file, &[])?;
    ran.expect_sentence(&["No such file"])?;
    if let Some(raw) = raw(&ran.stderr) {
        return Err(format!("{raw:?} reaches the terminal: {ran:?}").into());
    }
    Ok(())
}

fn an_endless_name_does_not_make_an_endless_line() -> Outcome {
    let folder = Folder::new()?;
    let mut inputs = inputs("hop-limit-too-low")?;
    let long = "x".repeat(100_000);
    for input in &mut inputs {
        if let Input::Fact(fact) = input {
            match &mut fact.said {
                Said::Connecting(connecting) => connecting.comm.clone_from(&long),
                Said::Container(container) => container.name = Some(long.clone()),
                _ => {}
            }
        }
    }
    let text = replayed(&folder, &inputs, "text")?.stdout;
    let longest = text.lines().map(str::len).max().unwrap_or(0);
    if longest > 2_000 {
        return Err(format!("a line of {longest} bytes").into());
    }
    Ok(())
}

/// Closes whatever is open, mentions everybody, links, and is a script.
const MARKUP: &str = "` `` ``` ```` | --- | @everyone #1 !2 ~x [x](javascript:alert(1)) <img src=x onerror=alert(1)> https://x.example -->\n\n# Owned\n```\n";

fn a_containers_choice_is_neither_markup_nor_a_mention() -> Outcome {
    let folder = Folder::new()?;
    let mut inputs = chosen_by_a_container()?;
    for input in &mut inputs {
        let Input::Fact(fact) = input else { continue };
        match &mut fact.said {
            Said::Attempting(connecting) | Said::Connecting(connecting) => connecting.comm = MARKUP.into(),
            Said::Process(process) => (process.exe, process.argv) = (Some(MARKUP.into()), Some(vec![MARKUP.into()])),
            Said::Container(container) => {
                (container.name, container.image) = (Some(MARKUP.into()), Some(MARKUP.into()));
            }
            _ => {}
        }
    }
    let file = folder.file("hostile.jsonl", recording(&inputs)?)?;
    let page = folder.path().join("page.md");
    let kind = format!("markdown={}", page.display());
    replay(&file, &["--output", &kind, "--what-if", "tokens=required,hop-limit=1"])?.expect_code(0)?;
    let text = std::fs::read_to_string(&page).context("read the page")?;
    if !text.contains("@everyone") {
        return Err(format!("the name is not there: {text}").into());
    }
    let outside = outside_of_code(&text);
    let chosen = ["everyone", "#1", "javascript", "<img", "https:", "Owned", "-->"];
    if let Some(found) = chosen.iter().find(|word| outside.contains(**word)) {
        return Err(format!("{found:?} is not code: {outside}").into());
    }
    let page = folder.path().join("page.html");
    let kind = format!("html={}", page.display());
    replay(&file, &["--output", &kind, "--what-if", "tokens=required,hop-limit=1"])?.expect_code(0)?;
    let text = std::fs::read_to_string(&page).context("read the page")?;
    if text.contains("<img") || !text.contains("&lt;img src=x onerror") || text.matches("<script").count() != 1 {
        return Err(format!("markup that is not ours: {text}").into());
    }
    Ok(())
}

/// What of a page of Markdown is not code, as CommonMark has it: a run of marks begins it and one of the same length ends it; a block begins
/// with three or more on a line, and ends with a line of as many at least.
fn outside_of_code(text: &str) -> String {
    let mut outside = String::new();
    let mut block: Option<usize> = None;
    for line in text.lines() {
        let marks = line.chars().take_while(|c| *c == '`').count();
        match block {
            Some(fence) if marks >= fence && line.trim_matches('`').trim().is_empty() => block = None,
            Some(_) => {}
            None if marks >= 3 && !line[marks..].contains('`') => block = Some(marks),
            None => outside.push_str(&outside_of_spans(line)),
        }
    }
    outside
}

fn outside_of_spans(line: &str) -> String {
    let mut outside = String::new();
    let mut rest = line;
    while let Some(begin) = rest.find('`') {
        outside.push_str(&rest[..begin]);
        let run = rest[begin..].chars().take_while(|c| *c == '`').count();
        let inner = &rest[begin + run..];
        let mut at = 0;
        let end = loop {
            let Some(next) = inner[at..].find('`').map(|next| at + next) else { break None };
            let length = inner[next..].chars().take_while(|c| *c == '`').count();
            if length == run {
                break Some(next + run);
            }
            at = next + length;
        };
        match end {
            Some(end) => rest = &inner[end..],
            None => rest = inner,
        }
    }
    outside + rest + "\n"
}
