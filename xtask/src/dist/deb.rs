//! How does it become a Debian package? A staged folder, and `dpkg-deb`.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{Contents, DESCRIPTION, File, MAINTAINER, NAME, SUMMARY, VERSION, write};
use crate::workspace;

/// Where Debian's zsh looks for completions of packages.
const ZSH: &str = "usr/share/zsh/vendor-completions";

/// Nothing is started by installing it: tracing is the administrator's decision. One that runs goes on with the new program.
const AFTER_INSTALLING: &str = "\
#!/bin/sh
set -e
if [ \"$1\" = configure ] && [ -z \"$DPKG_ROOT\" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
    [ -z \"$2\" ] || systemctl try-restart imds-trace.service || true
fi
";
const BEFORE_REMOVING: &str = "\
#!/bin/sh
set -e
if [ \"$1\" = remove ] && [ -z \"$DPKG_ROOT\" ] && [ -d /run/systemd/system ]; then
    systemctl disable --now imds-trace.service || true
fi
";
const AFTER_REMOVING: &str = "\
#!/bin/sh
set -e
if [ -z \"$DPKG_ROOT\" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
";

/// Writes the package into the folder and gives its name.
pub(super) fn make(contents: &Contents, folder: &Path) -> Result<String> {
    let arch = contents.arch.debian();
    let name = format!("{NAME}_{VERSION}_{arch}.deb");
    let stage = workspace::built("dist-deb", "")?;
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| format!("empty {}", stage.display()))?;
    }
    let mut files = contents.installed(ZSH)?;
    files.push(File::new(format!("usr/share/doc/{NAME}/copyright"), COPYRIGHT));
    let size = files.iter().map(|file| file.bytes.len().div_ceil(1024)).sum::<usize>();
    files.push(File::new("DEBIAN/control", control(arch, size)));
    for (script, text) in [("postinst", AFTER_INSTALLING), ("prerm", BEFORE_REMOVING), ("postrm", AFTER_REMOVING)] {
        files.push(File { mode: 0o755, ..File::new(format!("DEBIAN/{script}"), text) });
    }
    for file in &files {
        let path = stage.join(&file.path);
        write(&path, &file.bytes)?;
        settle(&path, file.mode, contents)?;
    }
    for below in folders(&stage)? {
        settle(&below, 0o755, contents)?;
    }
    workspace::run(
        Command::new("dpkg-deb")
            // One thread: how many there are must not show in the file.
            .args(["--build", "--root-owner-group", "-Zxz", "--threads-max=1"])
            .arg(&stage)
            .arg(folder.join(&name))
            .env("SOURCE_DATE_EPOCH", contents.date.to_string())
            .stdout(std::process::Stdio::null()),
    )?;
    fs::remove_dir_all(&stage).with_context(|| format!("remove {}", stage.display()))?;
    Ok(name)
}

/// What neither umask nor clock decides.
fn settle(path: &Path, mode: u32, contents: &Contents) -> Result<()> {
    let about = || format!("set mode and time of {}", path.display());
    fs::set_permissions(path, Permissions::from_mode(mode)).with_context(about)?;
    fs::File::open(path).and_then(|file| file.set_modified(contents.time())).with_context(about)
}

/// The folder and those below it, the deepest first.
fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
        if path.is_dir() {
            found.extend(folders(&path)?);
        }
    }
    found.push(folder.to_owned());
    Ok(found)
}

fn control(arch: &str, size: usize) -> String {
    format!(
        "Package: {NAME}\nVersion: {VERSION}\nArchitecture: {arch}\nMaintainer: {MAINTAINER} <imds-trace@localhost>\n\
         Section: net\nPriority: optional\nInstalled-Size: {size}\nDescription: {SUMMARY}\n {DESCRIPTION}\n"
    )
}

const COPYRIGHT: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: imds-trace

Files: *
Copyright: The imds-trace developers
License: MIT or Apache-2.0
Comment: The texts are LICENSE-MIT and LICENSE-APACHE in this folder. The program is one static file: THIRD-PARTY.txt has the
 licences of everything that is linked into it, imds-trace.cdx.json the list. The part that is loaded into the kernel is offered
 under `Dual MIT/GPL`.
";
