//! Which compiler and which bpf-linker can build the kernel half on this machine?
//!
//! `bpfel-unknown-none` has no prebuilt `core`, so the compiler must come with core's source, and the linker's LLVM must
//! be at least as new as the compiler's. Whether the linker on `PATH` has that cannot be asked: `bpf-linker --version`
//! does not say it, so only the linker that `cargo xtask setup` installed is known to fit.
//!
//! Both `build.rs` and `xtask` are compiled from this file, hence nothing but std here.

use std::{
    env,
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Which bpf-linker to install for a compiler with this LLVM: (LLVM, version of bpf-linker), newest first.
/// Each has the cargo feature `llvm-<LLVM>`; an LLVM newer than the first line needs a newer bpf-linker here.
pub const LINKERS: &[(u32, &str)] = &[(22, "0.12.0")];

/// What to type on a machine where `cargo xtask setup` cannot install packages.
pub const RUSTUP_WAY: &str = "rustup toolchain install nightly --component rust-src && cargo install bpf-linker";

/// The oldest compiler this workspace builds with, as `rust-version` in Cargo.toml says it.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// A compiler that has core's source beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiler {
    /// The folder with its `cargo` and `rustc`.
    pub bin: PathBuf,
    /// `rustc --print sysroot`.
    pub sysroot: PathBuf,
    /// The compiler's own version, for messages.
    pub release: String,
    /// Major version of the LLVM it was built with.
    pub llvm: u32,
}

/// A bpf-linker that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linker {
    pub path: PathBuf,
    /// Major version of its LLVM, where we installed it and so know.
    pub llvm: Option<u32>,
}

/// What building the kernel half takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    pub compiler: Compiler,
    pub linker: Linker,
}

/// What this machine lacks. Its `Display` is the sentence a person needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No compiler has core's source; each string says what was looked at and why it will not do.
    Compiler(Vec<String>),
    /// The compilers would do, but no linker does; the strings say which linkers were looked at.
    Linker(Vec<Compiler>, Vec<String>),
}

impl Missing {
    /// What is lacking, without what to do about it.
    pub fn lack(&self) -> String {
        let (what, tried) = match self {
            Self::Compiler(tried) => ("a Rust compiler with core's source".to_owned(), tried),
            Self::Linker(compilers, tried) => {
                let oldest = compilers.iter().map(|compiler| compiler.llvm).min();
                let llvm = oldest.unwrap_or_default();
                (format!("bpf-linker with LLVM {llvm} or newer"), tried)
            }
        };
        format!("the kernel half needs {what}: {}", tried.join(", "))
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lack = self.lack();
        write!(out, "{lack}; type `cargo xtask setup`, or: {RUSTUP_WAY}")
    }
}

/// What the kernel half is built for: little-endian, as x86-64 and arm64 are.
pub const TARGET: &str = "bpfel-unknown-none";

impl Toolchain {
    /// The command that builds the kernel half for hosts of `machine` (as in `std::env::consts::ARCH`) in a target folder of its own,
    /// where it then is at [`TARGET`]`/release/imds-trace`.
    pub fn build(&self, root: &Path, target_dir: &Path, machine: &str) -> Command {
        let flags = [
            // Which machine's registers and system calls the programs will see: aya-ebpf picks `pt_regs` by it.
            format!("--cfg=bpf_target_arch=\"{machine}\""),
            "-Cdebuginfo=2".to_owned(), // BTF is made from it
            "-Clink-arg=--btf".to_owned(),
            format!("-Clinker={}", self.linker.path.display()),
            // Where this was built is in what describes the programs, and so in the file that is copied to others.
            format!("--remap-path-prefix={}=.", root.display()),
            format!("--remap-path-prefix={}=/cargo", cargo_home().display()),
        ];
        let mut cargo = self.compiler.cargo();
        cargo
            .args(["build", "--locked", "--package=imds-trace-ebpf", "--bins", "--release", "-Zbuild-std=core"])
            .arg(format!("--target={TARGET}"))
            .arg("--target-dir")
            .arg(target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            // These are for the user half: what the verifier gets to see does not depend on them.
            .env_remove("CARGO_PROFILE_RELEASE_OPT_LEVEL")
            .env_remove("CARGO_PROFILE_RELEASE_DEBUG")
            // -Z is for nightly; a stable compiler takes it when told so, in this process alone.
            .env("RUSTC_BOOTSTRAP", "1")
            .current_dir(root)
            .stdout(Stdio::null());
        cargo
    }
}

/// Where cargo keeps the sources of crates, among others.
fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo");
    env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

/// The first compiler with a linker that fits it.
pub fn find() -> Result<Toolchain, Missing> {
    let compilers = compilers().map_err(Missing::Compiler)?;
    let mut tried = Vec::new();
    for compiler in &compilers {
        match linker(compiler) {
            Ok(linker) => {
                return Ok(Toolchain { compiler: compiler.clone(), linker });
            }
            Err(mut why) => tried.append(&mut why),
        }
    }
    tried.dedup();
    Err(Missing::Linker(compilers, tried))
}

/// Every compiler here that could build the kernel half, or why each one found cannot.
pub fn compilers() -> Result<Vec<Compiler>, Vec<String>> {
    let mut good = Vec::new();
    let mut tried = Vec::new();
    for (name, bin) in candidates() {
        match bin.and_then(|bin| compiler(&bin)) {
            Ok(compiler) if good.contains(&compiler) => {}
            Ok(compiler) => good.push(compiler),
            Err(why) => tried.push(format!("{name} {why}")),
        }
    }
    if good.is_empty() { Err(tried) } else { Ok(good) }
}

/// Where to look: rustup's nightly, the cargo that runs us, Debian's rustc-web.
fn candidates() -> Vec<(&'static str, Result<PathBuf, String>)> {
    let nightly = say(Command::new("rustup")
        .args(["which", "--toolchain", "nightly", "rustc"])
        // Asking must not start a download.
        .env("RUSTUP_AUTO_INSTALL", "0"));
    let parent = |rustc: &str| Path::new(rustc).parent().map(Path::to_path_buf);
    let nightly = nightly.as_deref().and_then(parent).ok_or_else(|| "is not installed".to_owned());
    let mut found = vec![("rustup's nightly", nightly)];
    if let Some(bin) = env::var_os("CARGO").and_then(|cargo| Path::new(&cargo).parent().map(Path::to_path_buf)) {
        found.push(("the compiler in use", Ok(bin)));
    }
    found.push(("/usr/bin/rustc", Ok(PathBuf::from("/usr/bin"))));
    found
}

/// The compiler in the folder `bin`, or why it will not do.
fn compiler(bin: &Path) -> Result<Compiler, String> {
    let rustc = bin.join("rustc");
    if !rustc.is_file() || !bin.join("cargo").is_file() {
        return Err("is not installed".to_owned());
    }
    let version = say(Command::new(&rustc).arg("-vV")).ok_or("does not run")?;
    let (release, llvm) = versions(&version).ok_or("does not name its LLVM")?;
    if number(release) < number(OLDEST) {
        return Err(format!("is {release}, and {OLDEST} is the oldest that will do"));
    }
    let sysroot = PathBuf::from(say(Command::new(&rustc).args(["--print", "sysroot"])).ok_or("does not run")?);
    if !sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file() {
        return Err(format!("({release}) has no rust-src"));
    }
    Ok(Compiler { bin: bin.to_path_buf(), sysroot, release: release.to_owned(), llvm })
}

/// The linker to use with `compiler`: ours from the cache folder first, because its LLVM is known; then the one on
/// `PATH`. Otherwise what was looked at.
pub fn linker(compiler: &Compiler) -> Result<Linker, Vec<String>> {
    let mut tried = Vec::new();
    for &(llvm, version) in LINKERS {
        let Some(path) = cached_linker(version) else {
            continue;
        };
        if !path.is_file() {
            continue;
        }
        if llvm < compiler.llvm {
            tried.push(format!("{} has LLVM {llvm}, rustc {} has {}", path.display(), compiler.release, compiler.llvm));
        } else if !runs(&path, compiler) {
            tried.push(format!("{} does not run", path.display()));
        } else {
            return Ok(Linker { path, llvm: Some(llvm) });
        }
    }
    match on_path("bpf-linker") {
        Some(path) if runs(&path, compiler) => return Ok(Linker { path, llvm: None }),
        Some(path) => tried.push(format!("{} does not run", path.display())),
        None => tried.push("none on PATH".to_owned()),
    }
    Err(tried)
}

/// Where `cargo xtask setup` keeps a linker: outside the checkout, so that a fresh clone finds it built.
pub fn cached_linker(version: &str) -> Option<PathBuf> {
    Some(cache()?.join(format!("bpf-linker-{version}/bin/bpf-linker")))
}

/// The folder for what outlives a checkout.
pub fn cache() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = cache.or_else(|| env::home_dir().map(|home| home.join(".cache")))?;
    Some(cache.join("imds-trace"))
}

impl Compiler {
    /// This compiler's cargo, with nothing in its environment from a cargo that may be running us.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(self.bin.join("cargo"));
        for (name, _) in env::vars_os() {
            if !stays(&name) {
                command.env_remove(&name);
            }
        }
        command
            .env("RUSTC", self.bin.join("rustc"))
            // A bpf-linker built to borrow rustc's LLVM looks for it here, as under `rustup run`.
            .env("LD_LIBRARY_PATH", self.sysroot.join("lib"))
            .stdin(Stdio::null());
        command
    }
}

/// Whether an inner cargo may see this variable. What the outer one set for its own build (flags, wrappers, the chosen
/// toolchain) would otherwise be applied to the kernel half too; where to fetch from and how is the user's.
fn stays(name: &OsStr) -> bool {
    const USERS: &[&str] =
        &["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_", "CARGO_TERM_"];
    const CARGOS: &[&str] =
        &["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN", "RUST_RECURSION", "CLIPPY_"];
    const MAKES: &[&str] = &["MAKEFLAGS", "MFLAGS", "LD_LIBRARY_PATH"];
    let name = name.to_string_lossy();
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    begins(USERS) || !(begins(CARGOS) || MAKES.contains(&name.as_ref()))
}

/// `release` and the LLVM's major version out of `rustc -vV`.
fn versions(text: &str) -> Option<(&str, u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some((field("release:")?, field("LLVM version:")?.split('.').next()?.parse().ok()?))
}

/// `1.96.0-nightly` as something that compares.
fn number(release: &str) -> (u32, u32) {
    let mut parts = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// A linker whose libLLVM has gone fails here, not in the middle of a build.
fn runs(linker: &Path, compiler: &Compiler) -> bool {
    say(Command::new(linker).arg("--version").env("LD_LIBRARY_PATH", compiler.sysroot.join("lib"))).is_some()
}

/// The program's path, if `PATH` has it.
pub fn on_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// What the command printed, without the line end; nothing if it failed or is not there.
fn say(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_says_its_release_and_its_llvm() {
        let text = "rustc 1.96.0 (ac68faa20)\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8";
        assert_eq!(versions(text), Some(("1.96.0", 22)));
        assert_eq!(versions("rustc 1.0"), None);
    }

    #[test]
    fn releases_compare_as_numbers() {
        assert!(number("1.97.0-nightly") > number("1.95"));
        assert!(number("1.100.0") > number("1.96.0"));
    }

    #[test]
    fn the_outer_cargo_does_not_reach_the_inner_one() {
        let gone =
            ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN", "CARGO_TARGET_DIR", "RUSTC"];
        assert!(gone.iter().all(|name| !stays(OsStr::new(name))));
        let kept = ["CARGO_HOME", "CARGO_NET_OFFLINE", "RUSTUP_HOME", "PATH", "HOME", "https_proxy"];
        assert!(kept.iter().all(|name| stays(OsStr::new(name))));
    }

    #[test]
    fn what_is_missing_is_one_sentence_with_what_to_type() {
        let sentence = Missing::Compiler(vec!["rustup's nightly (1.97.0) has no rust-src".into()]).to_string();
        assert!(sentence.contains("has no rust-src") && sentence.contains("cargo xtask setup"), "{sentence}");
        assert!(!sentence.contains('\n'));
    }
}
