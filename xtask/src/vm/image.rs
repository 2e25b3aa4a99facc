//! What does a virtual machine hold when it starts? One archive in memory: programs, the kernel's modules, the tests.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{Programs, kernel::Kernel};
use crate::{
    arch::Arch,
    debian::{self, Apt},
    release, setup, workspace,
};

/// What the lab runs besides busybox and a shell, an engine included; with the libraries that they need.
const MACHINE: [&str; 11] = [
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
/// The packages they come in, where those of this machine are made for another processor.
const PACKAGES: [&str; 7] = ["busybox-static", "dash", "docker.io", "iproute2", "iptables", "nftables", "util-linux"];
/// Where programs are, below a root.
const FOLDERS: [&str; 4] = ["usr/sbin", "usr/bin", "sbin", "bin"];
/// Folders of modules that the lab can need; the kernel loads what it wants of them by itself.
const MODULES: [&str; 7] =
    ["net", "lib", "crypto", "fs/overlayfs", "arch/x86/crypto", "arch/arm64/crypto", "drivers/net"];
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

/// Where the programs of a machine are taken from: this one, or what packages for another processor hold.
pub struct Source {
    arch: Arch,
    root: PathBuf,
}

impl Source {
    pub fn find(arch: Arch) -> Result<Self> {
        if arch == Arch::own()? {
            return Ok(Self { arch, root: PathBuf::from("/") });
        }
        let root = debian::cache("machines")?.join(arch.debian());
        if !root.is_dir() {
            Apt::here(arch)?.unpack_whole(&PACKAGES, &root)?;
        }
        Ok(Self { arch, root: root.canonicalize()? })
    }

    /// Where a program is. What is only unpacked has no alternatives set up: iptables is called by its full name.
    fn program(&self, name: &str) -> Result<PathBuf> {
        let found = match self.root.parent() {
            None => setup::program(name),
            Some(_) => {
                let names = [name.to_owned(), format!("{name}-nft")];
                let mut places = FOLDERS.iter().flat_map(|folder| names.iter().map(move |name| (folder, name)));
                let place = |(folder, name): (&&str, &String)| self.root.join(folder).join(name);
                // A link that begins at the root would lead to this machine's.
                let leads_out = |path: &Path| fs::read_link(path).is_ok_and(|to| to.is_absolute());
                places.find_map(|at| Some(place(at)).filter(|path| !leads_out(path) && path.is_file()))
            }
        };
        found.with_context(|| format!("{name} is not there (cargo xtask setup --lab)"))
    }

    /// Where a file is in the machine: where it is below the root.
    fn place<'a>(&self, file: &'a Path) -> &'a Path {
        file.strip_prefix(&self.root).unwrap_or(file)
    }

    /// Copies a program, by all its names, with the loader and the libraries that it needs.
    fn copy(&self, name: &str, to: &Path) -> Result<PathBuf> {
        let found = self.program(name)?;
        // A program may be a link to another, whose name it goes by.
        let real = fs::canonicalize(&found)?;
        let place = Path::new("/").join(self.place(&real));
        keep(to, &real, &place)?;
        for called in [self.place(&found).with_file_name(name), self.place(&found).to_owned()] {
            if called != self.place(&real) {
                link(to, &called, &place)?;
            }
        }
        self.libraries(&real, to)?;
        Ok(place)
    }

    /// The loader and the shared libraries of a program; a static one has none.
    fn libraries(&self, program: &Path, to: &Path) -> Result<()> {
        let read = |what: &str| workspace::say(Command::new("readelf").args(["--wide", what]).arg(program));
        let between = |line: &str, before: &str| Some(line.split_once(before)?.1.split_once(']')?.0.to_owned());
        let loader = read("--program-headers")?;
        let loader = loader.lines().find_map(|line| between(line, "[Requesting program interpreter: "));
        let needed = read("--dynamic")?;
        let needed = needed.lines().filter(|line| line.contains("(NEEDED)")).filter_map(|line| between(line, "["));
        let folders =
            ["usr/local/lib".to_owned(), format!("lib/{}", self.arch.gnu()), format!("usr/lib/{}", self.arch.gnu())];
        for name in loader.into_iter().chain(needed) {
            // The loader is named with its path, libraries are not.
            let mut places = match name.strip_prefix('/') {
                Some(loader) => vec![PathBuf::from(loader)],
                None => folders.iter().map(|folder| Path::new(folder).join(&name)).collect(),
            }
            .into_iter();
            let place = places.find(|place| self.root.join(place).is_file());
            let place = place.with_context(|| format!("{} needs {name}, which is not there", program.display()))?;
            if !to.join(&place).exists() {
                keep(to, &self.root.join(&place), &place)?;
                self.libraries(&self.root.join(&place), to)?;
            }
        }
        Ok(())
    }
}

/// The programs of a machine.
pub fn common(work: &Path, source: &Source) -> Result<PathBuf> {
    let root = work.join(format!("common-{}", source.arch.debian()));
    for folder in ["bin", "sbin", "proc", "sys", "dev", "tmp", "run", "root", "etc", "var/lib"] {
        fs::create_dir_all(root.join(folder))?;
    }
    for program in MACHINE {
        source.copy(program, &root)?;
    }
    let busybox = source.copy("busybox", &root)?;
    link(&root, Path::new("/bin/busybox"), &busybox)?;
    link(&root, Path::new("/sbin/modprobe"), &busybox)?;
    // busybox's own shell takes its applets for the programs of the same names, tc and setpriv among them.
    link(&root, Path::new("/bin/sh"), &source.copy("dash", &root)?)?;
    let extensions = source.root.join(format!("usr/lib/{}/xtables", source.arch.gnu()));
    for entry in fs::read_dir(&extensions).with_context(|| format!("list {}", extensions.display()))? {
        let path = entry?.path();
        keep(&root, &path, source.place(&path))?;
        source.libraries(&path, &root)?;
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
    let root = work.join(format!("programs-{}", programs.arch.debian()));
    let lab = root.join(LAB);
    fs::create_dir_all(&lab)?;
    for (name, program) in [
        ("imds-trace", programs.folder.join("imds-trace")),
        ("imds-client", programs.folder.join("imds-client")),
        ("lab", programs.lab.clone()),
    ] {
        release::strip(&program, &lab.join(name), programs.arch)?;
    }
    let lines = |words: &mut dyn Iterator<Item = &str>| words.map(|word| format!("{word}\n")).collect::<String>();
    fs::write(lab.join("tests"), lines(&mut arguments.tests.iter().copied()))?;
    fs::write(lab.join("arguments"), lines(&mut arguments.filter.iter().map(String::as_str)))?;
    archive(&root)
}

/// A machine that has nothing but a kernel, its modules, the program, and a shell that starts it.
pub fn bare(work: &Path, programs: &Programs, source: &Source) -> Result<PathBuf> {
    let root = work.join(format!("bare-{}", source.arch.debian()));
    for folder in ["bin", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy(source.program("busybox")?, root.join("bin/busybox"))?;
    link(&root, Path::new("/sbin/modprobe"), Path::new("/bin/busybox"))?;
    release::strip(&programs.folder.join("imds-trace"), &root.join("imds-trace"), programs.arch)?;
    init(&root, include_str!("bare.sh"))?;
    archive(&root)
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
