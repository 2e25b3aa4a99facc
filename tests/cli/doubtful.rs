//! Is nothing said to hold of captures and recordings that show a part of what happened?

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::Outcome;
use crate::program::{Ran, command, finish};

crate::tests![what_was_seen_in_part_holds_nothing, every_file_is_in_the_table];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    file: Vec<File>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    /// Given together with it.
    with: Option<String>,
    about: String,
    not_held: Vec<String>,
    /// Rules that must not find anything.
    #[serde(default)]
    silent: Vec<String>,
    /// Rules that may find something likely, and nothing for certain.
    #[serde(default)]
    not_certain: Vec<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("doubtful")
}

fn table() -> Result<Vec<File>> {
    let text = std::fs::read_to_string(folder().join("claims.toml"))?;
    Ok(toml::from_str::<Table>(&text)?.file)
}

fn replayed(file: &File, options: &[&str]) -> Result<Ran> {
    let mut replay = command([&["replay"], options].concat())?;
    replay.args([Some(&file.name), file.with.as_ref()].into_iter().flatten().map(|name| folder().join(name)));
    finish(replay)
}

fn what_was_seen_in_part_holds_nothing() -> Outcome {
    let mut wrong = Vec::new();
    for file in table()? {
        for claim in &file.not_held {
            let ran = replayed(&file, &["--expect", claim])?;
            // Not judged at all is as wrong as held.
            if ran.code != Some(1) || !ran.stdout.contains("NOT HELD") {
                wrong.push(format!("{}: {}: {claim}: {ran:?}", file.name, file.about));
            }
        }
        let told = replayed(&file, &["--output", "json"])?.json()?;
        // Of a finding the last word stands: it may have been taken back.
        let found = told.iter().filter(|line| line["type"] == "finding");
        let found: HashMap<_, _> =
            found.map(|finding| ((finding["rule"].as_str(), finding["summary"].as_str()), finding)).collect();
        let found = found.into_values().filter(|finding| finding["count"] != 0);
        let accused = found.filter(|finding| {
            let is_of = |rule: &String| finding["rule"] == rule.as_str();
            file.silent.iter().any(is_of) || finding["confidence"] == "certain" && file.not_certain.iter().any(is_of)
        });
        wrong.extend(accused.map(|finding| format!("{}: {}: {}", file.name, file.about, finding["summary"])));
    }
    if !wrong.is_empty() {
        return Err(wrong.join("\n").into());
    }
    Ok(())
}

fn every_file_is_in_the_table() -> Outcome {
    let table = table()?;
    let known: Vec<&String> = table.iter().flat_map(|file| [Some(&file.name), file.with.as_ref()]).flatten().collect();
    for entry in std::fs::read_dir(folder())? {
        let name = entry?.file_name().into_string().ok().context("a name")?;
        if name != "claims.toml" && !known.contains(&&name) {
            return Err(format!("{name} is not in claims.toml").into());
        }
    }
    Ok(())
}
