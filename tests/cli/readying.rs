//! Does it say who would break if the instance were set otherwise, and who is not on the allow-list?

use anyhow::{Context, Result};
use imds_trace_replay_tests::kept;
use serde_json::Value;

use crate::Outcome;
use crate::program::{Folder, Ran, replay, run};

crate::tests![
    those_who_would_break_are_named_and_why,
    what_works_is_held_and_what_breaks_is_not,
    what_is_lost_is_never_called_working,
    only_those_who_are_shown_are_told_of,
    settings_that_are_none_are_one_sentence,
    whoever_is_not_on_the_list_is_found,
    a_list_made_of_a_recording_lets_all_of_it_through,
    a_list_that_is_none_is_one_sentence,
    a_summary_for_merge_requests_says_what_the_report_says,
];

/// The kept recording of this name.
pub fn kept_at(recording: &str) -> Result<std::path::PathBuf> {
    let all = kept::recordings()?;
    let found = all.into_iter().find(|(name, _)| name == recording);
    found.map(|(_, file)| file).with_context(|| format!("no {recording}"))
}

fn told(recording: &str, options: &[&str]) -> Result<(Ran, Vec<Value>)> {
    let ran = replay(&kept_at(recording)?, &[&["--output", "json"], options].concat())?;
    let lines = ran.json()?;
    Ok((ran, lines))
}

/// Who comes out how, sorted, e.g. `agent works`.
fn outlooks(lines: &[Value]) -> Vec<String> {
    let of_clients = lines.iter().filter(|line| line["type"] == "what_if");
    let mut outlooks: Vec<String> = of_clients
        .map(|line| {
            let name = line["container"]["name"].as_str().unwrap_or("host");
            format!("{name} {}", line["outlook"].as_str().unwrap_or_default())
        })
        .collect();
    outlooks.sort();
    outlooks
}

fn expect_outlooks(recording: &str, settings: &str, expected: &[&str]) -> Outcome {
    let (_, lines) = told(recording, &["--what-if", settings])?;
    let seen = outlooks(&lines);
    if seen != expected {
        return Err(format!("{recording} at {settings}: {seen:?}, not {expected:?}").into());
    }
    Ok(())
}

const STRICT: &str = "tokens=required,hop-limit=1";

fn those_who_would_break_are_named_and_why() -> Outcome {
    let three = "hop-limit-1-three-containers";
    expect_outlooks(three, STRICT, &["agent works", "job-17 breaks", "legacy-cron breaks"])?;
    expect_outlooks(three, "hop-limit=2", &["agent works", "job-17 works", "legacy-cron breaks"])?;
    expect_outlooks("hop-limit-2", STRICT, &["agent-2 works", "job-18 breaks"])?;
    expect_outlooks("hop-limit-2", "tokens=required,hop-limit=2", &["agent-2 works", "job-18 works"])?;
    let text = replay(&kept_at(three)?, &["--what-if", STRICT])?;
    for part in [
        "What if tokens=required,hop-limit=1: BREAKS: 2 of 3 clients would break",
        "needs a hop limit of 2",
        "asked without a token",
        "The least hop limit at which tokens reach all that asked for one is 2: job-17",
    ] {
        let told = text.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        if !told.contains(part) {
            return Err(format!("no {part:?} in {}", text.stdout).into());
        }
    }
    Ok(())
}

fn what_works_is_held_and_what_breaks_is_not() -> Outcome {
    for (recording, expectation, code) in [
        ("hop-limit-2", "works-at:tokens=required,hop-limit=2", 0),
        ("hop-limit-2", "works-at:tokens=required,hop-limit=1", 1),
        ("hop-limit-1-three-containers", "works-at:tokens=required,hop-limit=2", 1),
        ("hop-limit-1-three-containers", "works-at:tokens=required,hop-limit=1:agent", 0),
        ("hop-limit-1-three-containers", "works-at:tokens=required,hop-limit=1:job-17", 1),
        ("hop-limit-1-three-containers", "works-at:hop-limit=2:job-17", 0),
        // It fell back: whether it uses a token that arrives was not seen.
        ("hop-limit-1-three-containers", "works-at:tokens=required,hop-limit=2:job-17", 1),
        ("hop-limit-1-three-containers", "works-at:tokens=required,hop-limit=2:nobody", 1),
    ] {
        let (ran, _) = told(recording, &["--expect", expectation])?;
        ran.expect_code(code).with_context(|| format!("{recording}: {expectation}"))?;
    }
    Ok(())
}

fn what_is_lost_is_never_called_working() -> Outcome {
    let folder = Folder::new()?;
    let whole = std::fs::read_to_string(kept_at("hop-limit-2")?).context("read it")?;
    let settings = "works-at:tokens=required,hop-limit=2";
    let lines: Vec<&str> = whole.lines().collect();
    // Its end is cut off at each place.
    for end in (2..lines.len()).step_by(3) {
        let cut = folder.file("cut.jsonl", lines[..end].join("\n"))?;
        let ran = replay(&cut, &["--output", "json", "--expect", settings])?;
        if ran.code != Some(1) && ran.code != Some(2) {
            return Err(format!("the first {end} lines: {:?}: {}", ran.code, ran.stdout).into());
        }
    }
    Ok(())
}

fn only_those_who_are_shown_are_told_of() -> Outcome {
    let (_, lines) = told("hop-limit-1-three-containers", &["--what-if", STRICT, "--container", "agent"])?;
    let seen = outlooks(&lines);
    if seen != ["agent works"] {
        return Err(format!("{seen:?}").into());
    }
    Ok(())
}

fn settings_that_are_none_are_one_sentence() -> Outcome {
    for words in [
        ["replay", "--what-if", "hop-limit=0", "-"],
        ["replay", "--what-if", "tokens=maybe", "-"],
        ["replay", "--expect", "works-at:web", "-"],
    ] {
        let ran = run(words)?;
        ran.expect_code(2)?;
        ran.expect_sentence(&["not tokens=required, hop-limit=N"])?;
    }
    Ok(())
}

/// Whoever the list `text` does not let through, by name.
fn unexpected(recording: &str, text: &str) -> Result<Vec<String>> {
    let folder = Folder::new()?;
    let list = folder.file("allow.toml", text)?;
    let (ran, lines) = told(recording, &["--allow", &list.display().to_string(), "--exit-code"])?;
    let mut found: Vec<String> = lines
        .iter()
        .filter(|line| line["type"] == "finding" && line["rule"] == "unexpected-client")
        .map(|line| line["container"]["name"].as_str().unwrap_or("host").to_owned())
        .collect();
    found.sort();
    found.dedup();
    if !found.is_empty() {
        ran.expect_code(1)?;
    }
    Ok(found)
}

fn whoever_is_not_on_the_list_is_found() -> Outcome {
    for (list, expected) in [
        ("", &["agent", "job-17"][..]),
        ("[[client]]\ncontainer = \"job-*\"\n", &["agent"]),
        ("[[client]]\ncontainer = [\"job-17\", \"agent\"]\n", &[]),
        ("[[client]]\ncontainer = \"*\"\nexe = \"/nowhere\"\n", &["agent", "job-17"]),
        ("[[client]]\ncontainer = \"*\"\nuid = 12345\n", &["agent", "job-17"]),
    ] {
        let found = unexpected("hop-limit-1-three-containers", list)?;
        if found != expected {
            return Err(format!("{list:?}: {found:?}, not {expected:?}").into());
        }
    }
    Ok(())
}

fn a_list_made_of_a_recording_lets_all_of_it_through() -> Outcome {
    use std::process::Stdio;
    for recording in ["hop-limit-1-three-containers", "hop-limit-2"] {
        let mut command = crate::program::command(["generate", "allow"])?;
        command.stdin(Stdio::from(std::fs::File::open(kept_at(recording)?)?));
        let made = crate::program::finish(command)?;
        made.expect_code(0)?;
        let found = unexpected(recording, &made.stdout)?;
        if !found.is_empty() || !made.stdout.contains("[[client]]") {
            return Err(format!("{recording}: {found:?} with {}", made.stdout).into());
        }
    }
    Ok(())
}

fn a_list_that_is_none_is_one_sentence() -> Outcome {
    let folder = Folder::new()?;
    for (text, part) in
        [("[[client]]\nimagee = \"x\"\n", "line 2: unknown field `imagee`"), ("[[client]]\n", "names nobody")]
    {
        let list = folder.file("allow.toml", text)?;
        let ran = run(["replay", "--allow", &list.display().to_string(), "-"])?;
        ran.expect_code(2)?;
        ran.expect_sentence(&["--allow", part])?;
    }
    let ran = run(["replay", "--allow", "/nowhere/allow.toml", "-"])?;
    ran.expect_code(2)?;
    ran.expect_sentence(&["/nowhere/allow.toml"])?;
    Ok(())
}

fn a_summary_for_merge_requests_says_what_the_report_says() -> Outcome {
    let folder = Folder::new()?;
    let page = folder.path().join("summary.md");
    let kind = format!("markdown={}", page.display());
    let file = kept_at("hop-limit-1-three-containers")?;
    let options = ["--output", &kind, "--what-if", STRICT, "--expect", "reachable", "--expect", "v2-only:agent"];
    replay(&file, &options)?.expect_code(1)?;
    let text = std::fs::read_to_string(&page).context("read the summary")?;
    for part in [
        "## imds-trace: ",
        "| ` reachable ` | **NO** | ` ",
        "| ` v2-only:agent ` | yes | ` ",
        "### ERROR hop-limit-too-low: ` job-17 (172.17.0.",
        "ttl 1",
        "```sh\naws ec2 modify-instance-metadata-options",
        "### What if tokens=required,hop-limit=1: **breaks**",
        "| 1 / 2 | hop-limit-too-low",
    ] {
        if !text.contains(part) {
            return Err(format!("no {part:?} in {text}").into());
        }
    }
    if text.contains('\u{1b}') {
        return Err(format!("colours in {text}").into());
    }
    Ok(())
}
