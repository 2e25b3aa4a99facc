//! What do others get? `target/dist`: one static file, what belongs to it, packages for Debian and RPM, an image for container
//! engines, sums and the list of parts.
//!
//! The same build and commit give the same bytes: every time in them is the commit's.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{
    arch::Arch,
    release::{self, Together},
    setup, workspace,
};

mod check;
mod deb;
mod image;
mod notices;
mod parts;
mod redhat;
mod sbom;

pub use check::check;

const NAME: &str = "imds-trace";
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
const SUMMARY: &str = "Finds out why containers on EC2 cannot get credentials";
const DESCRIPTION: &str = "\
imds-trace follows every packet to and from the EC2 instance metadata service (IMDS) through this host with eBPF, with its TTL at \
every hop and every drop by the kernel, says which container and process it belonged to, and what to do.";
const MAINTAINER: &str = "The imds-trace developers";
/// Files of the workspace that go along.
const DOCUMENTS: &[&str] = &["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"];
/// The folder of pages that go along, too, where README's links lead.
const PAGES: &str = "docs";
const UNIT: &str = "xtask/dist/imds-trace.service";
const SUMS: &str = "SHA256SUMS";

/// A file of a package: where it goes (below `/`), who may do what with it, what it holds.
pub struct File {
    path: String,
    mode: u32,
    bytes: Vec<u8>,
}

impl File {
    fn new(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), mode: 0o644, bytes: bytes.into() }
    }
}

/// What packages are made of.
struct Contents {
    arch: Arch,
    /// Seconds since 1970: the commit's time.
    date: u64,
    program: Vec<u8>,
    /// As the program names them, `complete-bash`, `man-watch`, and their text.
    generated: Vec<(String, String)>,
    unit: String,
    documents: Vec<File>,
    sbom: String,
}

pub fn dist(arch: Option<Arch>) -> Result<ExitCode> {
    setup::compiler_half()?;
    setup::dist_half()?;
    let (folder, _) = make(Together::Program, arch.map_or_else(Arch::own, Ok)?)?;
    println!("{}", fs::read_to_string(folder.join(SUMS)).context("read the sums")?.trim_end());
    println!("all in {}", folder.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds, and writes everything anew. Gives the folder, and what of it can be copied to other machines.
fn make(together: Together, arch: Arch) -> Result<(PathBuf, Vec<String>)> {
    let build = |arch| Ok::<_, anyhow::Error>(release::build(together, arch)?.join(NAME));
    let built = build(arch)?;
    let is_own = arch == Arch::own()?;
    let folder = workspace::built(if is_own { "dist".to_owned() } else { format!("dist-{}", arch.debian()) }, "")?;
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let program = folder.join(NAME);
    release::strip(&built, &program, arch)?;
    // What the program says of its command line, only one for this machine can be asked.
    let contents = contents(&program, &if is_own { built } else { build(Arch::own()?)? }, arch)?;

    let plain = contents.plain();
    for file in &plain {
        write(&folder.join(&file.path), &file.bytes)?;
    }
    let mut names: Vec<String> = plain.into_iter().map(|file| file.path).chain([NAME.to_owned()]).collect();
    let archive = format!("{NAME}-{VERSION}-{}-linux.tar.gz", arch.rust());
    write(&folder.join(&archive), &tar_gz(&contents)?)?;
    let image = format!("{NAME}-{VERSION}-{}-image.tar", arch.rust());
    write(&folder.join(&image), &oci(&contents)?)?;
    names.extend([archive, image, deb::make(&contents, &folder)?, redhat::make(&contents, &folder)?]);
    names.sort();
    write(&folder.join(SUMS), sums(&folder, &names)?.as_bytes())?;
    Ok((folder, names))
}

fn contents(program: &Path, talks: &Path, arch: Arch) -> Result<Contents> {
    let date = date()?;
    let parts = parts::linked(arch)?;
    let root = workspace::root();
    let read = |path: &str| fs::read_to_string(root.join(path)).with_context(|| format!("read {path}"));
    let mut documents = Vec::new();
    for path in DOCUMENTS.iter().copied().map(str::to_owned).chain(pages(&root)?) {
        documents.push(File::new(path.as_str(), read(&path)?));
    }
    documents.push(File::new("THIRD-PARTY.txt", notices::notices(&parts)?));
    let moment = jiff::Timestamp::from_second(i64::try_from(date)?).context("SOURCE_DATE_EPOCH")?;
    let sbom = sbom::sbom(&parts, moment)?;
    let mut generated = Vec::new();
    let day = moment.strftime("--date=%F").to_string();
    for kind in ask(talks, &["kinds"])?.lines() {
        generated.push((kind.to_owned(), ask(talks, &[kind, &day])?));
    }
    let program = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    Ok(Contents { arch, date, program, generated, unit: read(UNIT)?, documents, sbom })
}

/// The pages in `docs` and what lies beside them, in the order of their names; without what only developers read, and the schemas, which
/// the program itself tells.
fn pages(root: &Path) -> Result<Vec<String>> {
    let (mut pages, mut folders) = (Vec::new(), vec![PAGES.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).with_context(|| format!("list {folder}"))? {
            let entry = entry?;
            let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
            match entry.file_type()?.is_dir() {
                true if ["docs/design", "docs/schema"].contains(&path.as_str()) => {}
                true => folders.push(path),
                false => pages.push(path),
            }
        }
    }
    pages.sort();
    Ok(pages)
}

/// What the program says of its own command line.
fn ask(program: &Path, words: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    let output = command.arg("generate").args(words).env_clear().output();
    let output = output.with_context(|| format!("run {}", workspace::shown(&command)))?;
    if !output.status.success() {
        bail!("{} failed: {}", workspace::shown(&command), String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("read what the program generated")
}

/// When the commit was made, unless `$SOURCE_DATE_EPOCH` says otherwise (reproducible-builds.org).
fn date() -> Result<u64> {
    let text = match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => {
            let mut git = Command::new("git");
            let output = git.args(["log", "-1", "--format=%ct"]).current_dir(workspace::root()).output();
            String::from_utf8_lossy(&output.context("run git log")?.stdout).into_owned()
        }
    };
    text.trim().parse().context("find the commit's time: this is no git clone, so set SOURCE_DATE_EPOCH")
}

impl Contents {
    fn time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.date)
    }

    /// The files as they lie in the folder, and in the archive, but for the program.
    fn plain(&self) -> Vec<File> {
        let mut files = vec![
            File::new(format!("{NAME}.service"), self.unit.as_str()),
            File::new(format!("{NAME}.cdx.json"), self.sbom.as_str()),
        ];
        for (kind, text) in &self.generated {
            let path = match kind.as_str() {
                "complete-bash" => format!("completions/{NAME}.bash"),
                "complete-zsh" => format!("completions/_{NAME}"),
                "complete-fish" => format!("completions/{NAME}.fish"),
                schema if schema.starts_with("schema") => format!("schema/{schema}.json"),
                page => format!("man/{}", manual(page)),
            };
            files.push(File::new(path, text.as_str()));
        }
        files.extend(self.documents.iter().map(|file| File::new(format!("doc/{}", file.path), file.bytes.clone())));
        files
    }

    /// The files as they are installed. `zsh` is where the distribution's shell looks.
    fn installed(&self, zsh: &str) -> Result<Vec<File>> {
        let doc = format!("usr/share/doc/{NAME}");
        let mut files = vec![
            File { mode: 0o755, ..File::new(format!("usr/bin/{NAME}"), self.program.clone()) },
            File::new(format!("usr/lib/systemd/system/{NAME}.service"), self.unit.as_str()),
            File::new(format!("{doc}/{NAME}.cdx.json"), self.sbom.as_str()),
        ];
        for (kind, text) in &self.generated {
            let file = match kind.as_str() {
                "complete-bash" => File::new(format!("usr/share/bash-completion/completions/{NAME}"), text.as_str()),
                "complete-zsh" => File::new(format!("{zsh}/_{NAME}"), text.as_str()),
                "complete-fish" => File::new(format!("usr/share/fish/vendor_completions.d/{NAME}.fish"), text.as_str()),
                schema if schema.starts_with("schema") => {
                    File::new(format!("usr/share/{NAME}/{schema}.json"), text.as_str())
                }
                page => File::new(format!("usr/share/man/man1/{}.gz", manual(page)), image::gzip(text.as_bytes())?),
            };
            files.push(file);
        }
        files.extend(self.documents.iter().map(|file| File::new(format!("{doc}/{}", file.path), file.bytes.clone())));
        files.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(files)
    }
}

/// `man-watch` is `imds-trace-watch.1`.
fn manual(kind: &str) -> String {
    format!("{NAME}{}.1", kind.strip_prefix("man").unwrap_or_default())
}

fn tar_gz(contents: &Contents) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let program = File { mode: 0o755, ..File::new(NAME, contents.program.clone()) };
    let mut files = contents.plain();
    files.push(program);
    files.sort_by(|one, other| one.path.cmp(&other.path));
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(file.bytes.len() as u64);
        header.set_mode(file.mode);
        header.set_mtime(contents.date);
        let path = format!("{NAME}-{VERSION}/{}", file.path);
        archive.append_data(&mut header, path, file.bytes.as_slice()).context("pack the archive")?;
    }
    image::gzip(&archive.into_inner().context("pack the archive")?)
}

/// The image: the program, what it is made of, and under which terms.
fn oci(contents: &Contents) -> Result<Vec<u8>> {
    let doc = format!("usr/share/doc/{NAME}");
    let mut files = vec![
        (image::PROGRAM.to_owned(), 0o755, contents.program.clone()),
        (format!("{doc}/{NAME}.cdx.json"), 0o644, contents.sbom.clone().into_bytes()),
    ];
    let terms = |file: &&File| file.path.starts_with("LICENSE") || file.path == "THIRD-PARTY.txt";
    let terms = contents.documents.iter().filter(terms);
    files.extend(terms.map(|file| (format!("{doc}/{}", file.path), file.mode, file.bytes.clone())));
    let created = jiff::Timestamp::try_from(contents.time()).context("the commit's time")?.to_string();
    image::archive(&image::Image {
        name: NAME,
        version: VERSION,
        architecture: contents.arch.debian(),
        created: &created,
        labels: vec![
            ("description", SUMMARY.to_owned()),
            ("licenses", "MIT OR Apache-2.0".to_owned()),
            ("authors", MAINTAINER.to_owned()),
        ],
        files,
    })
}

/// As `sha256sum --check` reads them.
fn sums(folder: &Path, names: &[String]) -> Result<String> {
    let mut lines = String::new();
    for name in names {
        let bytes = fs::read(folder.join(name)).with_context(|| format!("read {name}"))?;
        lines += &format!("{}  {name}\n", hex(&Sha256::digest(bytes)));
    }
    Ok(lines)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}
