//! What is in the image that containers of the lab run?
//!
//! Nothing can be pulled, so it is built in memory: busybox, the test client, and whatever shared libraries they want.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::AccessFlags;
use sha2::{Digest, Sha256};

use crate::children;
use crate::real;

/// The image's name in the private engine.
pub(crate) const NAME: &str = "imdslab";
/// The name of the image whose programs are the machine's, mounted.
pub(crate) const USERLAND: &str = "imdslab-userland";

/// Applets that get a name of their own in /bin.
const APPLETS: [&str; 12] = ["sh", "cat", "echo", "env", "ip", "kill", "ls", "nc", "ps", "sleep", "touch", "true"];

/// The tar archive of the image's root, for `docker import`.
pub(crate) fn archive() -> Result<Vec<u8>> {
    let client = beside("imds-client", "IMDS_LAB_CLIENT")?;
    let busybox = in_path("busybox").context("busybox is needed inside containers: install busybox-static")?;
    let mut tar = tar::Builder::new(Vec::new());
    let mut folders = BTreeSet::new();
    for folder in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
        folder_and_parents(&mut tar, &mut folders, Path::new(folder))?;
    }
    for (target, source) in [("bin/imds-client", &client), ("bin/busybox", &busybox)] {
        file(&mut tar, Path::new(target), source)?;
    }
    for library in libraries_of(&client)?.into_iter().chain(libraries_of(&busybox)?).collect::<BTreeSet<_>>() {
        let target = library.strip_prefix("/").expect("ldd names absolute paths").to_owned();
        folder_and_parents(&mut tar, &mut folders, target.parent().expect("a library is in a folder"))?;
        file(&mut tar, &target, &library)?;
    }
    for applet in APPLETS {
        link(&mut tar, &format!("bin/{applet}"), "busybox")?;
    }
    Ok(tar.into_inner()?)
}

/// The image as `docker save` writes it, for every other runtime: one layer, a configuration, and the list of both.
pub(crate) fn docker_archive(name: &str) -> Result<Vec<u8>> {
    let layer = archive()?;
    let digest = Sha256::digest(&layer).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        // Also what holds a pod's network: it must not end by itself.
        "config": {"Entrypoint": ["/bin/busybox", "sleep", "1000000"], "Env": ["PATH=/bin"]},
    });
    let list = serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    let mut tar = tar::Builder::new(Vec::new());
    let parts = [
        ("config.json", config.to_string().into_bytes()),
        ("layer.tar", layer),
        ("manifest.json", list.to_string().into_bytes()),
    ];
    for (name, bytes) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes.as_slice())?;
    }
    Ok(tar.into_inner()?)
}

/// The root of the image for the machine's own programs: places for what is mounted, and links into that.
pub(crate) fn userland_archive() -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut folders = BTreeSet::new();
    for folder in ["usr", "etc/alternatives", "etc/ssl", "lab", "proc", "sys", "dev", "tmp", "root", "var"] {
        folder_and_parents(&mut tar, &mut folders, Path::new(folder))?;
    }
    for name in real::LINKS {
        link(&mut tar, name, &format!("usr/{name}"))?;
    }
    Ok(tar.into_inner()?)
}

fn link(tar: &mut tar::Builder<Vec<u8>>, name: &str, target: &str) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, name, target)?;
    Ok(())
}

fn folder_and_parents(tar: &mut tar::Builder<Vec<u8>>, done: &mut BTreeSet<PathBuf>, folder: &Path) -> Result<()> {
    for part in folder.ancestors().collect::<Vec<_>>().into_iter().rev() {
        if part.as_os_str().is_empty() || !done.insert(part.to_owned()) {
            continue;
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if part == Path::new("tmp") { 0o1777 } else { 0o755 });
        header.set_size(0);
        tar.append_data(&mut header, part, std::io::empty())?;
    }
    Ok(())
}

fn file(tar: &mut tar::Builder<Vec<u8>>, target: &Path, source: &Path) -> Result<()> {
    let bytes = std::fs::read(source).with_context(|| format!("read {}", source.display()))?;
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, target, bytes.as_slice())?;
    Ok(())
}

/// The loader and the shared libraries a program wants; none for a static one.
pub(crate) fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    if is_static(program)? {
        return Ok(Vec::new());
    }
    let mut ldd = children::command("ldd");
    ldd.arg(program);
    let output = ldd.output().with_context(|| format!("run ldd {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words = text.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    Ok(words.map(PathBuf::from).collect())
}

/// A dynamic program names its loader (`/lib64/ld-linux-…`) in its first page.
fn is_static(program: &Path) -> Result<bool> {
    const PAGE: u64 = 4096;
    let mut page = Vec::new();
    let file = std::fs::File::open(program).with_context(|| format!("open {}", program.display()))?;
    file.take(PAGE).read_to_end(&mut page).with_context(|| format!("read {}", program.display()))?;
    Ok(!page.windows(4).any(|window| window == b"/ld-"))
}

/// A program of this workspace: where `variable` says, else in the folder cargo put the running one.
pub(crate) fn beside(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let me = std::env::current_exe().context("find out which program runs")?;
    // Tests run from target/debug/deps, programs from target/debug.
    let found = me.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    match found {
        Some(path) => Ok(path),
        None => bail!("{name} is not beside {}: build it, or set {variable} to its path", me.display()),
    }
}

/// Where in PATH (or the usual sbin folders) a program is.
pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"]);
    folders
        .filter(|folder| !folder.is_empty())
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.is_file() && nix::unistd::access(path, AccessFlags::X_OK).is_ok())
}
