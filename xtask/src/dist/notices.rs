//! Whose code is in the program, and under what terms? The licence texts that its parts ask to be passed on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail};

use super::{
    NAME,
    parts::{Id, Part, Parts},
};
use crate::workspace;

/// How files with such texts begin.
const TEXTS: &[&str] = &["LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT", "UNLICENSE"];

/// Texts that packages leave out because they are everywhere: a part of which one choice is this licence goes under it.
const COMMON: (&str, &str) = ("Apache-2.0", "LICENSE-APACHE");
/// Data of others that is no crate: what it is, and where its licence lies.
const DATA: &[(&str, &str)] = &[("token formats of Betterleaks", "imds-trace/diagnosis/src/secret/formats.LICENSE")];
/// Where Debian keeps the text of glibc's licence.
const GLIBC: (&str, &str) = ("glibc", "/usr/share/common-licenses/LGPL-2.1");

const HEAD: &str = "\
imds-trace is one static file. It holds code of these parts, each under its own licence; their texts follow.

The GNU C library (LGPL-2.1-or-later) is linked statically. The source of imds-trace and `cargo xtask dist` are what section 6 of
that licence asks for: with them the program can be linked to another glibc.
";

/// The list of parts, and each text once with the parts it came with. An error, if a part has none.
pub fn notices(parts: &Parts) -> Result<String> {
    let mut list = HEAD.to_owned() + "\n";
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (id, part) in parts.iter().filter(|(id, _)| !id.name.starts_with(NAME)) {
        list += &format!("  {}: {}\n", shown(id), part.license.as_deref().unwrap_or("see its text"));
        for text in texts_of(id, part)? {
            texts.entry(text).or_default().insert(shown(id));
        }
    }
    for (what, file) in DATA {
        list += &format!("  {what}: see its text\n");
        texts.entry(read(&workspace::root().join(file))?).or_default().insert((*what).to_owned());
    }
    for (text, of) in texts {
        let of = of.into_iter().collect::<Vec<_>>().join(", ");
        list += &format!("\n{}\n{of}\n{}\n\n{}\n", "=".repeat(80), "-".repeat(80), text.trim_end());
    }
    Ok(list)
}

/// A part's texts: those beside it, or the common one that it leaves out.
fn texts_of(id: &Id, part: &Part) -> Result<Vec<String>> {
    let beside = part.folder.as_deref().map(texts_in).transpose()?.unwrap_or_default();
    if !beside.is_empty() {
        return Ok(beside);
    }
    if id.name == GLIBC.0 {
        return Ok(vec![read(Path::new(GLIBC.1))?]);
    }
    let license = part.license.as_deref().unwrap_or_default();
    if license.split(" OR ").any(|choice| choice == COMMON.0) {
        return Ok(vec![read(&workspace::root().join(COMMON.1))?]);
    }
    // The exception of GCC's run-time library leaves the terms to whoever links it.
    if license.ends_with("WITH GCC-exception-3.1") {
        return Ok(Vec::new());
    }
    bail!("{} ({license}): no licence text beside it, and none of ours would do: give it one in notices.rs", shown(id))
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
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).replace("\r\n", "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(license: &str) -> (Id, Part) {
        let id = Id { name: "x".to_owned(), version: "1.0.0".to_owned(), is_crate: true };
        (id, Part { license: Some(license.to_owned()), ..Part::default() })
    }

    #[test]
    fn a_part_without_a_text_is_an_error_unless_a_common_one_does() {
        for (license, texts) in
            [("MIT OR Apache-2.0", 1), ("Apache-2.0", 1), ("GPL-3.0-or-later WITH GCC-exception-3.1", 0)]
        {
            let (id, part) = part(license);
            assert_eq!(texts_of(&id, &part).unwrap().len(), texts, "{license}");
        }
        for license in ["MIT", "Apache-2.0 AND MIT", ""] {
            let (id, part) = part(license);
            assert!(texts_of(&id, &part).unwrap_err().to_string().contains("x 1.0.0"), "{license}");
        }
    }

    #[test]
    fn data_of_others_has_its_licence() {
        for (what, file) in DATA {
            assert!(read(&workspace::root().join(file)).unwrap().contains("Permission is hereby granted"), "{what}");
        }
    }
}
