//! Whose code is in the program, and under what terms? The licence texts that its parts ask to be passed on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result};

use super::{
    NAME,
    parts::{Id, Parts},
};

/// How files with such texts begin.
const TEXTS: &[&str] = &["LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT", "UNLICENSE"];

const HEAD: &str = "\
imds-trace is one static file. It holds code of these parts, each under its own licence; their texts follow.

The GNU C library (LGPL-2.1-or-later) is linked statically. The source of imds-trace and `cargo xtask dist` are what section 6 of
that licence asks for: with them the program can be linked to another glibc.
";

/// The list of parts, and each text once with the parts it came with.
pub fn notices(parts: &Parts) -> Result<String> {
    let mut list = HEAD.to_owned() + "\n";
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (id, part) in parts.iter().filter(|(id, _)| !id.name.starts_with(NAME)) {
        list += &format!("  {}: {}\n", shown(id), part.license.as_deref().unwrap_or("see its text"));
        for text in part.folder.iter().map(|folder| texts_in(folder)).collect::<Result<Vec<_>>>()?.into_iter().flatten()
        {
            texts.entry(text).or_default().insert(shown(id));
        }
    }
    for (text, of) in texts {
        let of = of.into_iter().collect::<Vec<_>>().join(", ");
        list += &format!("\n{}\n{of}\n{}\n\n{}\n", "=".repeat(80), "-".repeat(80), text.trim_end());
    }
    Ok(list)
}

fn shown(id: &Id) -> String {
    format!("{} {}", id.name, id.version)
}

/// The texts beside a crate's Cargo.toml.
fn texts_in(folder: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if path.is_file() && TEXTS.iter().any(|begin| name.starts_with(begin)) {
            paths.push(path);
        }
    }
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        fs::read(path)
            .map(|bytes| String::from_utf8_lossy(&bytes).replace("\r\n", "\n"))
            .with_context(|| format!("read {}", path.display()))
    };
    paths.iter().map(read).collect()
}
