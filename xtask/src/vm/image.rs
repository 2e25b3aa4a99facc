//! What does a virtual machine hold when it starts? One archive in memory: programs of this machine, the kernel's modules, the tests.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{Programs, kernel::Kernel};
use crate::{setup, workspace};

/// What the lab runs, an engine included; with the libraries that they need.
const MACHINE: [&str; 13] = [
    "busybox",
    "dash",
    "ip",
    "tc",
    "nft",
    "iptables",
    "ip6tables",
    "dockerd",
    "containerd",
    "containerd-shim-runc-v2",
    "runc",
    "docker",
    "setpriv",
];
/// Folders of modules that the lab can need; the kernel loads what it wants of them by itself.
const MODULES: [&str; 6] = ["net", "lib", "crypto", "fs/overlayfs", "arch/x86/crypto", "drivers/net"];
/// Below those, what no virtual machine has.
const NOT: [&str; 3] = ["drivers/net/ethernet", "drivers/net/wireless", "drivers/net/usb"];
/// Where the tests are in the machine.
const LAB: &str = "opt/lab";

/// What the tests are told.
pub struct Arguments<'a> {
    /// Names of tests; empty for all.
    pub tests: &'a [&'a str],
    /// Words for the test program itself.
    pub filter: &'a [String],
}

/// The programs of this machine.
pub fn common(work: &Path) -> Result<PathBuf> {
    let root = work.join("common");
    for folder in ["bin", "sbin", "proc", "sys", "dev", "tmp", "run", "root", "etc", "var/lib"] {
        fs::create_dir_all(root.join(folder))?;
    }
    for program in MACHINE {
        let found = setup::program(program);
        let found = found.with_context(|| format!("{program} is not there (cargo xtask setup --lab)"))?;
        // A program may be a link to another, whose name it goes by.
        let real = fs::canonicalize(&found)?;
        keep(&root, &real, &real)?;
        if real != found {
            link(&root, &found, &real)?;
        }
        libraries(&root, &real)?;
    }
    let busybox = fs::canonicalize(setup::program("busybox").context("busybox")?)?;
    link(&root, Path::new("/bin/busybox"), &busybox)?;
    link(&root, Path::new("/sbin/modprobe"), &busybox)?;
    // busybox's own shell takes its applets for the programs of the same names, tc and setpriv among them.
    let dash = fs::canonicalize(setup::program("dash").context("dash")?)?;
    link(&root, Path::new("/bin/sh"), &dash)?;
    let extensions = PathBuf::from(format!("/usr/lib/{}-linux-gnu/xtables", std::env::consts::ARCH));
    for entry in fs::read_dir(&extensions).with_context(|| format!("list {}", extensions.display()))? {
        let path = entry?.path();
        keep(&root, &path, &path)?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    init(&root, include_str!("init.sh"))?;
    archive(&root)
}

/// A kernel's modules.
pub fn modules(work: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let root = work.join(format!("modules-{}", kernel.name));
    let release = kernel.release();
    let target = root.join("lib/modules").join(&release);
    fs::create_dir_all(&target)?;
    for folder in MODULES {
        copy_modules(&kernel.modules.join("kernel"), Path::new(folder), &target.join("kernel"))?;
    }
    for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        let _ = fs::copy(kernel.modules.join(list), target.join(list));
    }
    // The package has no list of what depends on what: installing it makes one.
    workspace::run(Command::new("busybox").args(["depmod", "-b"]).arg(&root).arg(&release))?;
    archive(&root)
}

fn copy_modules(from: &Path, folder: &Path, to: &Path) -> Result<()> {
    if NOT.iter().any(|not| folder == Path::new(not)) || !from.join(folder).is_dir() {
        return Ok(());
    }
    fs::create_dir_all(to.join(folder))?;
    for entry in fs::read_dir(from.join(folder))? {
        let entry = entry?;
        let below = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_modules(from, &below, to)?;
        } else if below.extension().is_some_and(|kind| kind == "xz") {
            // busybox's modprobe reads none that are compressed.
            let module = File::create(to.join(below.with_extension("")))?;
            workspace::run(Command::new("busybox").args(["xzcat"]).arg(entry.path()).stdout(module))?;
        } else {
            fs::copy(entry.path(), to.join(&below))?;
        }
    }
    Ok(())
}

/// The programs under test, and what they are told.
pub fn programs(work: &Path, programs: &Programs, arguments: &Arguments<'_>) -> Result<PathBuf> {
    let root = work.join("programs");
    let lab = root.join(LAB);
    fs::create_dir_all(&lab)?;
    for (name, program) in [
        ("imds-trace", programs.folder.join("imds-trace")),
        ("imds-client", programs.folder.join("imds-client")),
        ("lab", programs.lab.clone()),
    ] {
        stripped(&program, &lab.join(name))?;
    }
    let lines = |words: &mut dyn Iterator<Item = &str>| words.map(|word| format!("{word}\n")).collect::<String>();
    fs::write(lab.join("tests"), lines(&mut arguments.tests.iter().copied()))?;
    fs::write(lab.join("arguments"), lines(&mut arguments.filter.iter().map(String::as_str)))?;
    archive(&root)
}

/// A machine that has nothing but a kernel, its modules, the program, and a shell that starts it.
pub fn bare(work: &Path, programs: &Programs) -> Result<PathBuf> {
    let root = work.join("bare");
    for folder in ["bin", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy(setup::program("busybox").context("busybox")?, root.join("bin/busybox"))?;
    link(&root, Path::new("/sbin/modprobe"), Path::new("/bin/busybox"))?;
    stripped(&programs.folder.join("imds-trace"), &root.join("imds-trace"))?;
    init(&root, include_str!("bare.sh"))?;
    archive(&root)
}

/// Without what a debugger wants, which would be half of all that the machine holds.
fn stripped(program: &Path, to: &Path) -> Result<()> {
    workspace::run(Command::new("strip").arg("--strip-all").arg("-o").arg(to).arg(program))
}

/// The first process.
fn init(root: &Path, script: &str) -> Result<()> {
    let init = root.join("init");
    fs::write(&init, script)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("make init executable")
}

/// Archives one behind the other are one archive to the kernel.
pub fn join(work: &Path, name: &str, archives: &[&PathBuf]) -> Result<PathBuf> {
    let path = work.join(format!("{name}.cpio"));
    let mut joined = File::create(&path)?;
    for archive in archives {
        io::copy(&mut File::open(archive)?, &mut joined)?;
    }
    Ok(path)
}

/// Copies a file to the same place below `root`.
fn keep(root: &Path, file: &Path, place: &Path) -> Result<()> {
    let target = root.join(place.strip_prefix("/").unwrap_or(place));
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(file, &target).with_context(|| format!("copy {}", file.display()))?;
    Ok(())
}

fn link(root: &Path, place: &Path, target: &Path) -> Result<()> {
    let place = root.join(place.strip_prefix("/").unwrap_or(place));
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder)?;
    }
    if !place.exists() {
        std::os::unix::fs::symlink(target, &place).with_context(|| format!("link {}", place.display()))?;
    }
    Ok(())
}

/// The loader and the shared libraries of a program; a static one has none.
fn libraries(root: &Path, program: &Path) -> Result<()> {
    let output = Command::new("ldd").arg(program).stdin(Stdio::null()).output().context("run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths: BTreeSet<&Path> = text.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new).collect();
    for path in paths {
        keep(root, path, path)?;
    }
    Ok(())
}

/// Everything below the folder as the archive that kernels unpack at their start (cpio, `newc`).
fn archive(root: &Path) -> Result<PathBuf> {
    let path = PathBuf::from(format!("{}.cpio", root.display()));
    let mut list =
        Command::new("find").arg(".").current_dir(root).stdout(Stdio::piped()).spawn().context("run find")?;
    let names = list.stdout.take().context("find's output")?;
    let archive = File::create(&path)?;
    let mut cpio = Command::new("busybox");
    cpio.args(["cpio", "-o", "-H", "newc"]).current_dir(root).stdin(names).stdout(archive).stderr(Stdio::null());
    let status = cpio.status().context("run busybox cpio")?;
    if !list.wait()?.success() || !status.success() {
        bail!("{} could not be packed", root.display());
    }
    fs::remove_dir_all(root)?;
    Ok(path)
}
