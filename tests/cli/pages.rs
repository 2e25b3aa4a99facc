//! Do the pages lead where they say, and does the program take what they tell people to type?

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use imds_trace_replay_tests::kept;

use crate::Outcome;
use crate::program::run;

crate::tests![the_front_page_is_short, links_lead_somewhere, commands_are_taken, samples_are_what_is_told];

/// More would not be read.
const FRONT_PAGE: usize = 200;

/// What stands in a page as the program's own words, in which report of tests/ it stands, and from where to where.
const SAMPLES: [(&str, &str, &str, &str); 2] = [
    ("README.md", "recordings/hop-limit-1-three-containers.report.txt", "Report: ", "\n"),
    ("docs/use.md", "captures/any-hop-limit-1.pcap.report.txt", "ERROR hop-limit-too-low   ", "\n\nWARNING "),
];

/// The pages for users and contributors: where they are, and what stands there.
fn pages() -> Result<Vec<(PathBuf, String)>, std::io::Error> {
    let root = kept::tests().join("..").canonicalize()?;
    let mut pages = Vec::new();
    let mut folders = vec![root.join("docs")];
    for name in ["README.md", "CONTRIBUTING.md", "SECURITY.md"] {
        pages.push(root.join(name));
    }
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                pages.push(path);
            }
        }
    }
    pages.into_iter().map(|path| Ok((path.clone(), fs::read_to_string(path)?))).collect()
}

fn the_front_page_is_short() -> Outcome {
    let pages = pages()?;
    let lines = pages[0].1.lines().count();
    if lines < FRONT_PAGE { Ok(()) } else { Err(format!("README.md has {lines} lines: move some to docs/").into()) }
}

/// `bless` writes the reports anew; the pages are changed by hand then.
fn samples_are_what_is_told() -> Outcome {
    for (page, report, from, to) in SAMPLES {
        let text = fs::read_to_string(kept::tests().join("..").join(page))?;
        let report = fs::read_to_string(kept::tests().join(report))?;
        let told = report.find(from).and_then(|at| report.get(at..)).ok_or("the report has no such place")?;
        let told = told.rfind(to).and_then(|end| told.get(..end)).ok_or("it has no such end")?;
        if !text.contains(told) {
            return Err(format!("{page} does not have this as it stands:\n{told}").into());
        }
    }
    Ok(())
}

/// The name of a heading in a link, as forges make it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn links_lead_somewhere() -> Outcome {
    let mut broken = Vec::new();
    for (page, text) in pages()? {
        let folder = page.parent().unwrap_or(Path::new("/"));
        for (_, rest) in text.match_indices("](").map(|(at, found)| text.split_at(at + found.len())) {
            let target = rest.split(')').next().unwrap_or_default();
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { page.clone() } else { folder.join(file) };
            let has_heading = || {
                let text = fs::read_to_string(&path).unwrap_or_default();
                text.lines().any(|line| line.starts_with('#') && anchor(line) == heading)
            };
            if !path.exists() || !(heading.is_empty() || has_heading()) {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(format!("links that lead nowhere: {broken:#?}").into()) }
}

/// Everything in a page that is to be typed: lines of its blocks, and what stands between back ticks.
fn typed(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for (number, part) in text.split("```").enumerate() {
        if number % 2 == 1 {
            lines.extend(part.lines().map(str::to_owned));
        } else {
            let one_line = part.split_whitespace().collect::<Vec<_>>().join(" ");
            lines.extend(one_line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    lines
}

/// The words of a command of ours, as a shell reads them: up to what begins another one, or goes elsewhere. `None` for anything else.
fn words(line: &str) -> Option<Vec<String>> {
    let line = line.trim().trim_start_matches("$ ").trim_start_matches("sudo ");
    let line = line.strip_prefix("imds-trace ")?;
    let (mut words, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
    for c in line.chars().chain([' ']) {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.push(c),
            (None, '\'' | '"') => (quote, begun) = (Some(c), true),
            (None, ' ') if begun || !word.is_empty() => {
                if matches!(word.as_str(), "|" | "<" | ">" | "&&" | "#" | "\\") {
                    return Some(words);
                }
                words.push(std::mem::take(&mut word));
                begun = false;
            }
            (None, ' ') => {}
            (None, c) => word.push(c),
        }
    }
    Some(words)
}

fn commands_are_taken() -> Outcome {
    let mut commands = BTreeSet::new();
    for (page, text) in pages()? {
        let page = page.file_name().unwrap_or_default().to_string_lossy().into_owned();
        commands.extend(typed(&text).iter().filter_map(|line| Some((words(line)?, page.clone()))));
    }
    if commands.len() < 20 {
        return Err(format!("only {} commands were found: {commands:#?}", commands.len()).into());
    }
    let mut refused = Vec::new();
    for (mut words, page) in commands {
        // With --help all that is before it is read, and nothing is done.
        let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
        words.truncate(end);
        words.retain(|word| word != "\u{2026}");
        words.push("--help".to_owned());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let ran = run(&words)?;
        if ran.stdout.is_empty() {
            refused.push(format!("{page}: imds-trace {}: {}", words.join(" "), ran.stderr.trim()));
        }
    }
    if refused.is_empty() { Ok(()) } else { Err(format!("not taken: {refused:#?}").into()) }
}
