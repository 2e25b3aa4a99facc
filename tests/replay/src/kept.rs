//! Which recordings and captures are kept, and what stands beside them?

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folder `tests`.
pub fn tests() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("tests"))
}

/// The folder with the recordings.
pub fn recordings_folder() -> PathBuf {
    tests().join("recordings")
}

/// Every recording in the folder, by name.
pub fn recordings() -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(recordings_folder()).context("list tests/recordings")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(stem) = name.strip_suffix(".jsonl").filter(|stem| !stem.ends_with(".events")) {
            found.push((stem.to_owned(), path));
        }
    }
    found.sort();
    Ok(found)
}

/// What the program says of a recording, in the files beside it: kind of output and end of the name.
pub const TOLD: [(&str, &str); 2] = [("text", "report.txt"), ("json", "events.jsonl")];

/// The folder with the captures.
pub fn captures_folder() -> PathBuf {
    tests().join("captures")
}

/// Every capture in the folder, by name.
pub fn captures() -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(captures_folder()).context("list tests/captures")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".pcap") || name.ends_with(".pcapng") {
            found.push((name, path));
        }
    }
    found.sort();
    Ok(found)
}
