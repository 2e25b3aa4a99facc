//! Does this machine have what building and trying imds-trace takes, and if not, what is to be installed?

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, anyhow, bail};

use crate::{
    arch::Arch,
    toolchain::{self, Compiler, LINKERS, Missing, RUSTUP_WAY},
    workspace,
};

/// Debian's compiler that is new enough, with core's source.
const COMPILER_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];

/// What the demo runs, and the Debian package it comes in.
const DEMO_PROGRAMS: &[(&str, &str)] =
    &[("dockerd", "docker.io"), ("busybox", "busybox-static"), ("iptables", "iptables"), ("ip", "iproute2")];

/// What the lab runs besides.
const LAB_PROGRAMS: &[(&str, &str)] = &[
    ("nft", "nftables"),
    ("tcpdump", "tcpdump"),
    // It brings capinfos, in wireshark-common, with it; and dumpcap.
    ("tshark", "tshark"),
    // Debian's own, which containers get to see with the rest of /usr: others of the same name in PATH will not do.
    ("/usr/bin/python3", "python3"),
    ("/usr/lib/python3/dist-packages/boto3/__init__.py", "python3-boto3"),
    ("/usr/bin/aws", "awscli"),
    ("/usr/bin/curl", "curl"),
    // Other runtimes than Docker: pods, with the client that speaks to them, and podman with its network.
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/lib/python3/dist-packages/grpc/__init__.py", "python3-grpcio"),
    ("podman", "podman"),
    ("/usr/lib/podman/netavark", "netavark"),
    // In which `--output html` is looked at.
    ("chromium", "chromium"),
    // Which scrapes and judges what `--output metrics` says; it brings promtool with it.
    ("/usr/bin/prometheus", "prometheus"),
    // The service manager that the unit is tried with.
    ("/lib/systemd/systemd", "systemd"),
    // Makes the folder that ClickHouse is installed in.
    ("/usr/lib/python3.11/ensurepip/__init__.py", "python3-venv"),
];

/// ClickHouse in a process, from PyPI: the lab asks it the questions of docs/fleet/clickhouse.
const CLICKHOUSE: &str = "chdb-core==26.9.0";

/// Services of those packages that would listen on this machine: program, unit. They run in the lab's network alone.
const LAB_SERVICES: &[(&str, &str)] = &[("/usr/bin/prometheus", "prometheus.service")];

/// Where an administrator's units are.
const UNITS: &str = "/etc/systemd/system";

/// What makes packages and looks at them, and the Debian package it comes in.
const DIST_PROGRAMS: &[(&str, &str)] = &[
    ("strip", "binutils"),
    ("readelf", "binutils"),
    ("dpkg-deb", "dpkg"),
    ("rpm", "rpm"),
    ("mandoc", "mandoc"),
    ("systemd-analyze", "systemd"),
    ("skopeo", "skopeo"),
];

pub fn setup(lab: bool) -> Result<ExitCode> {
    let toolchain = compiler_half()?;
    println!("kernel half: {toolchain}");
    if lab {
        lab_half()?;
        dist_half()?;
        println!("lab and packages: all there");
    }
    Ok(ExitCode::SUCCESS)
}

/// What building the kernel half takes: found, or installed. Says in words what it found.
pub fn compiler_half() -> Result<String> {
    let found = match toolchain::find() {
        Ok(found) => found,
        Err(missing) => {
            let compiler = installed_compiler(&missing)?;
            install_linker(&compiler)?;
            toolchain::find().map_err(anyhow::Error::msg)?
        }
    };
    let toolchain::Toolchain { compiler, linker } = found;
    Ok(format!("rustc {} ({}), {}", compiler.release, compiler.bin.display(), linker.path.display()))
}

/// A compiler for which we know how to build a linker, and the LLVM that takes: installed if need be.
fn installed_compiler(missing: &Missing) -> Result<Compiler> {
    let fitting = |compilers: &[Compiler]| compilers.iter().find(|compiler| linker_for(compiler).is_some()).cloned();
    let mut packages = Vec::new();
    let here = match missing {
        Missing::Compiler(_) => None,
        Missing::Linker(compilers, _) => fitting(compilers),
    };
    if here.is_none() {
        packages.extend(COMPILER_PACKAGES.iter().map(|&name| name.to_owned()));
    }
    let llvm = here.as_ref().and_then(linker_for).unwrap_or(LINKERS[0]).0;
    if !llvm_folder(llvm).join("include/llvm-c").is_dir() {
        packages.push(format!("llvm-{llvm}-dev"));
    }
    if !packages.is_empty() {
        apt_install(&packages).map_err(|error| anyhow!("{}; {error:#}; or: {RUSTUP_WAY}", missing.lack()))?;
    }
    let found = || fitting(&toolchain::compilers().unwrap_or_default());
    here.or_else(found)
        .with_context(|| format!("no compiler with core's source was found after that; type: {RUSTUP_WAY}"))
}

/// The bpf-linker whose LLVM can read what this compiler writes.
fn linker_for(compiler: &Compiler) -> Option<(u32, &'static str)> {
    LINKERS.iter().rev().copied().find(|&(llvm, _)| llvm >= compiler.llvm)
}

fn llvm_folder(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

/// Builds bpf-linker into the user's cache folder.
fn install_linker(compiler: &Compiler) -> Result<()> {
    let (llvm, version) = linker_for(compiler)
        .with_context(|| format!("no bpf-linker is known for LLVM {}: add it to LINKERS", compiler.llvm))?;
    let path = toolchain::cached_linker(version).context("find the home folder to keep bpf-linker in")?;
    let folder = path.ancestors().nth(2).context("find the folder of bpf-linker")?;
    println!("building bpf-linker {version} into {} (about a minute) …", folder.display());
    workspace::run(
        compiler
            .cargo()
            .args(["install", "bpf-linker", "--quiet", "--locked", "--force", "--no-default-features"])
            .arg(format!("--version={version}"))
            .arg(format!("--features=llvm-{llvm}"))
            .arg("--root")
            .arg(folder)
            // Without it, the linker is built against nothing and then misses libLLVM.
            .env("LLVM_PREFIX", llvm_folder(llvm))
            .current_dir("/"),
    )
}

/// What the demo runs: found, or installed.
pub fn demo_half() -> Result<()> {
    programs(DEMO_PROGRAMS)
}

/// What the lab runs: found, or installed.
pub fn lab_half() -> Result<()> {
    let missing = LAB_SERVICES.iter().filter(|(program, _)| !has(program));
    missing.filter(|_| workspace::is_root()).try_for_each(|(_, unit)| mask(unit))?;
    programs(&[DEMO_PROGRAMS, LAB_PROGRAMS].concat())?;
    clickhouse()
}

/// ClickHouse in `target/chdb`: found, or installed.
fn clickhouse() -> Result<()> {
    let folder = workspace::built("", "chdb")?;
    let python = folder.join("bin/python");
    let works = || Command::new(&python).args(["-c", "import chdb"]).output().is_ok_and(|said| said.status.success());
    if works() {
        return Ok(());
    }
    println!("installing {CLICKHOUSE} in {}", folder.display());
    workspace::run(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&folder))?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", CLICKHOUSE];
    workspace::run(Command::new(&python).args(install))?;
    if works() { Ok(()) } else { bail!("{CLICKHOUSE} was installed in {}, and cannot be used", folder.display()) }
}

/// Lets nothing start a service that is about to be installed, as `systemctl mask` does; also where systemd does not run now.
fn mask(unit: &str) -> Result<()> {
    let path = Path::new(UNITS).join(unit);
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    println!(
        "masking {unit}, which is about to be installed: the lab starts its own (`systemctl unmask {unit}` undoes it)"
    );
    fs::create_dir_all(UNITS)?;
    std::os::unix::fs::symlink("/dev/null", &path).with_context(|| format!("mask {unit}"))
}

/// What packages are made and looked at with: found, or installed.
pub fn dist_half() -> Result<()> {
    programs(DIST_PROGRAMS)
}

/// What links programs for another processor: found, or installed.
pub fn cross_half(arch: Arch) -> Result<()> {
    let gnu = arch.gnu();
    let compiler = (format!("{gnu}-gcc"), format!("gcc-{}", gnu.replace('_', "-")));
    let library = (format!("/usr/{gnu}/lib/libc.a"), format!("libc6-dev-{}-cross", arch.debian()));
    programs(&[(&compiler.0, &compiler.1), (&library.0, &library.1)])
}

fn programs(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = wanted.iter().filter(|(program, _)| !has(program)).map(|&(_, package)| package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt_install(&missing)?;
    match wanted.iter().find(|(program, _)| !has(program)) {
        Some((program, package)) => {
            bail!("{program} is still not there after installing {package}")
        }
        None => Ok(()),
    }
}

/// Where a program is, if it is there.
pub fn program(name: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&folders).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Whether the program is there. The lab copies busybox into images, so a dynamic one will not do.
fn has(name: &str) -> bool {
    program(name).is_some_and(|path| name != "busybox" || is_static(&path))
}

/// A dynamic program names its loader (`/lib64/ld-linux-…`) in the first page.
pub fn is_static(program: &Path) -> bool {
    let bytes = fs::read(program).unwrap_or_default();
    !bytes.is_empty() && !bytes[..bytes.len().min(4096)].windows(4).any(|window| window == b"/ld-")
}

/// Installs Debian packages, saying which; one sentence where that cannot be done.
fn apt_install(packages: &[impl AsRef<str>]) -> Result<()> {
    let packages: Vec<&str> = packages.iter().map(AsRef::as_ref).collect();
    let names = packages.join(" ");
    if toolchain::on_path("apt-get").is_none() {
        bail!("there is no apt-get here to install Debian's {names}");
    }
    if !workspace::is_root() {
        bail!("not root, so type `sudo apt-get install {names}`, then this again");
    }
    println!("installing Debian packages: {names}");
    let mut fresh = false;
    if !unknown(&packages)?.is_empty() {
        apt(&["update"])?;
        fresh = true;
        let unknown = unknown(&packages)?;
        if !unknown.is_empty() {
            let unknown = Vec::from_iter(unknown).join(" ");
            bail!("this release's package sources have no {unknown} (Debian 12 with its security updates has)");
        }
    }
    let install = [&["install", "--yes", "--no-install-recommends"], packages.as_slice()].concat();
    match apt(&install) {
        // An old list names versions the mirror no longer has.
        Err(_) if !fresh => apt(&["update"]).and_then(|()| apt(&install)),
        done => done,
    }
}

fn apt(arguments: &[&str]) -> Result<()> {
    workspace::run(
        Command::new("apt-get")
            .args(["-qq", "-o", "Dpkg::Use-Pty=0"])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null()),
    )
}

/// Those packages of which apt knows no version to install.
fn unknown<'a>(packages: &[&'a str]) -> Result<BTreeSet<&'a str>> {
    let output = Command::new("apt-cache")
        .arg("policy")
        .args(packages)
        .env("LC_ALL", "C")
        .output()
        .context("run apt-cache policy")?;
    let known = known(&String::from_utf8_lossy(&output.stdout));
    Ok(packages.iter().copied().filter(|&name| !known.contains(name)).collect())
}

/// The packages with a candidate in what `apt-cache policy` prints.
fn known(policy: &str) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    let mut name = "";
    for line in policy.lines() {
        if let Some(header) = line.strip_suffix(':').filter(|header| !header.starts_with(' ')) {
            name = header;
        } else if line.trim().strip_prefix("Candidate:").is_some_and(|version| version.trim() != "(none)") {
            known.insert(name.to_owned());
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_without_a_candidate_is_not_known() {
        let policy = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0\n  Version table:\n     1.96.0 500\n\
                      llvm-22-dev:\n  Installed: (none)\n  Candidate: (none)\n";
        assert_eq!(Vec::from_iter(known(policy)), ["rustc-web"]);
    }

    #[test]
    fn an_older_compiler_takes_the_same_linker_and_a_newer_one_none() {
        let compiler = |llvm| Compiler { bin: "/".into(), sysroot: "/".into(), release: "1.96.0".into(), llvm };
        assert_eq!(linker_for(&compiler(21)), Some((22, "0.12.0")));
        assert_eq!(linker_for(&compiler(99)), None);
    }
}
