//! Is what `dist` made fit for others? Each claim is a test: looked at with the distributions' own tools, never with ours alone.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{NAME, SUMS, VERSION, make};
use crate::{arch::Arch, release::Together, setup, tally::Tally, workspace};

/// What was made, and a folder to work in.
struct Made {
    together: Together,
    dist: PathBuf,
    names: Vec<String>,
    work: PathBuf,
}

type Test = (&'static str, fn(&Made) -> Result<()>);

const TESTS: &[Test] = &[
    ("the_program_needs_no_loader", the_program_needs_no_loader),
    ("alone_in_an_empty_root_it_runs", alone_in_an_empty_root_it_runs),
    ("nothing_says_where_it_was_built", nothing_says_where_it_was_built),
    ("the_sums_are_those_of_the_files", the_sums_are_those_of_the_files),
    ("the_bill_of_materials_names_both_halves", the_bill_of_materials_names_both_halves),
    ("manual_pages_are_read_without_a_warning", manual_pages_are_read_without_a_warning),
    ("shells_accept_the_completions", shells_accept_the_completions),
    ("the_deb_installs_everything_and_goes_again", the_deb_installs_everything_and_goes_again),
    ("the_unit_of_the_deb_is_sound_and_closed", the_unit_of_the_deb_is_sound_and_closed),
    ("rpm_reads_the_rpm", rpm_reads_the_rpm),
    ("the_image_is_read_by_both_of_its_lists", the_image_is_read_by_both_of_its_lists),
    ("the_image_holds_the_program_its_parts_and_terms", the_image_holds_the_program_its_parts_and_terms),
    ("made_again_it_is_the_same", made_again_it_is_the_same),
];

/// systemd's own measure of what a service could do, from 0 to 100, without what tracing takes: `systemd-analyze security`.
const EXPOSURE: &str = "--threshold=21";

/// Makes everything, then tries it. Says what could not be tried, if anything.
pub fn check(together: Together, filters: &[String], tally: &mut Tally) -> Result<Option<String>> {
    if !workspace::is_root() {
        return Ok(Some("needs root: a .deb is installed into a folder, with root's files".to_owned()));
    }
    setup::dist_half()?;
    let (dist, names) = make(together, Arch::own()?)?;
    let work = workspace::built("dist-check", "")?;
    for (name, test) in TESTS {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
        let made = Made { together, dist: dist.clone(), names: names.clone(), work: work.clone() };
        match test(&made) {
            Ok(()) => {
                println!("test dist::{name} ... ok");
                tally.passed += 1;
            }
            Err(error) => {
                println!("test dist::{name} ... FAILED\n    {error:#}");
                tally.failed += 1;
            }
        }
    }
    let _ = fs::remove_dir_all(&work);
    Ok(None)
}

impl Made {
    /// The only file whose name ends so.
    fn file(&self, end: &str) -> Result<PathBuf> {
        let name = self.names.iter().find(|name| name.ends_with(end));
        Ok(self.dist.join(name.with_context(|| format!("no {end} was made"))?))
    }

    /// Installs the .deb below the working folder, with a list of packages of its own.
    fn installed(&self) -> Result<PathBuf> {
        let root = self.work.join("root");
        fs::create_dir_all(root.join("var/lib/dpkg/info"))?;
        fs::write(root.join("var/lib/dpkg/status"), "")?;
        say(dpkg(&root).arg("--install").arg(self.file(".deb")?))?;
        Ok(root)
    }
}

/// dpkg on another root; what it runs there finds no systemd to talk to.
fn dpkg(root: &Path) -> Command {
    let mut dpkg = Command::new("dpkg");
    dpkg.arg(format!("--root={}", root.display())).args(["--force-script-chrootless", "--log=/dev/null"]);
    dpkg
}

/// Runs it; gives what it said on stdout and stderr. Failing is an error with that.
fn say(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {}", workspace::shown(command)))?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if !output.status.success() {
        bail!("{} failed ({}): {}", workspace::shown(command), output.status, said.trim());
    }
    Ok(said)
}

fn the_program_needs_no_loader(made: &Made) -> Result<()> {
    let program = made.dist.join(NAME);
    ensure!(setup::is_static(&program), "it names a loader");
    let headers = say(Command::new("readelf").args(["--program-headers", "--dynamic", "--wide"]).arg(&program))?;
    ensure!(!headers.contains("INTERP") && !headers.contains("NEEDED"), "{headers}");
    Ok(())
}

fn alone_in_an_empty_root_it_runs(made: &Made) -> Result<()> {
    fs::copy(made.dist.join(NAME), made.work.join(NAME))?;
    let run = |word: &str| {
        let mut chroot = Command::new("chroot");
        say(chroot.arg(&made.work).arg(format!("/{NAME}")).arg(word).env_clear().env("PATH", "/usr/sbin:/usr/bin"))
    };
    ensure!(run("--version")?.trim() == format!("{NAME} {VERSION}"), "{}", run("--version")?);
    ensure!(run("--help")?.contains("doctor"), "--help says nothing of doctor");
    let doctor = run("doctor")?;
    ensure!(doctor.contains("BTF") && doctor.contains("Summary:"), "{doctor}");
    Ok(())
}

fn nothing_says_where_it_was_built(made: &Made) -> Result<()> {
    let program = fs::read(made.dist.join(NAME))?;
    let homes = ["HOME", "CARGO_HOME"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let cargo = homes.map(|home| home.join("registry")).chain([PathBuf::from("/.cargo/registry")]);
    for place in cargo.chain([workspace::root()]) {
        let place = place.display().to_string();
        let found = program.windows(place.len()).any(|window| window == place.as_bytes());
        ensure!(!found, "it names {place}");
    }
    Ok(())
}

fn the_sums_are_those_of_the_files(made: &Made) -> Result<()> {
    say(Command::new("sha256sum").args(["--check", "--strict", SUMS]).current_dir(&made.dist))?;
    let sums = fs::read_to_string(made.dist.join(SUMS))?;
    let packages = [".deb", ".rpm", ".tar.gz", "-image.tar", ".cdx.json", ".service"];
    for end in packages {
        ensure!(sums.lines().any(|line| line.ends_with(end)), "no sum of a {end}");
    }
    Ok(())
}

fn the_bill_of_materials_names_both_halves(made: &Made) -> Result<()> {
    let text = fs::read_to_string(made.file(".cdx.json")?)?;
    let bill: Value = serde_json::from_str(&text).context("read it")?;
    // What the format requires, and <https://cyclonedx.org/docs/1.5/json/> says of it.
    ensure!(
        bill["bomFormat"] == "CycloneDX" && bill["specVersion"] == "1.5" && bill["version"] == 1,
        "no CycloneDX 1.5"
    );
    let serial = bill["serialNumber"].as_str().unwrap_or_default();
    ensure!(serial.len() == "urn:uuid:".len() + 36 && serial.starts_with("urn:uuid:"), "serialNumber {serial}");
    let components = bill["components"].as_array().context("no components")?;
    let mut known = vec![bill["metadata"]["component"]["bom-ref"].clone()];
    for component in components {
        let has = |key: &str| component[key].as_str().is_some_and(|text| !text.is_empty());
        let complete = ["type", "name", "version", "purl", "bom-ref"].into_iter().all(has);
        ensure!(complete && component["licenses"][0]["expression"].is_string(), "{component}");
        ensure!(!known.contains(&component["bom-ref"]), "twice: {component}");
        known.push(component["bom-ref"].clone());
    }
    for edge in bill["dependencies"].as_array().context("no dependencies")? {
        let ends = [&edge["ref"]].into_iter().chain(edge["dependsOn"].as_array().into_iter().flatten());
        for end in ends {
            ensure!(known.contains(end), "a dependency on {end}, which is not listed");
        }
    }
    for part in ["aya", "aya-ebpf", "imds-trace-ebpf", "tokio", "zstd-sys", "glibc"] {
        ensure!(components.iter().any(|component| component["name"] == part), "it does not name {part}");
    }
    for tool in ["clap_derive", "libtest-mimic", "rpm", "aya-ebpf-macros"] {
        ensure!(!components.iter().any(|component| component["name"] == tool), "{tool} is not in the program");
    }
    Ok(())
}

fn manual_pages_are_read_without_a_warning(made: &Made) -> Result<()> {
    let pages: Vec<_> = made.names.iter().filter(|name| name.starts_with("man/")).collect();
    ensure!(pages.len() > 5, "only {pages:?}");
    for page in pages {
        let said = say(Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(made.dist.join(page)))?;
        ensure!(said.is_empty(), "{said}");
    }
    Ok(())
}

/// Those of them that are here; bash is.
fn shells_accept_the_completions(made: &Made) -> Result<()> {
    say(Command::new("bash").arg("-n").arg(made.file(".bash")?))?;
    let ask = format!(
        "source {}; COMP_WORDS=({NAME} watch --record-k); COMP_CWORD=2; \
         $(complete -p {NAME} | sed 's/.*-F \\([^ ]*\\).*/\\1/') {NAME} --record-k watch; echo ${{COMPREPLY[@]}}",
        made.file(".bash")?.display()
    );
    let said = say(Command::new("bash").args(["-c", &ask]))?;
    ensure!(said.trim() == "--record-keep", "bash completes --record-k to {said:?}");
    for (shell, end) in [("zsh", "_imds-trace"), ("fish", ".fish")] {
        if setup::program(shell).is_some() {
            say(Command::new(shell).arg("-n").arg(made.file(end)?))?;
        }
    }
    Ok(())
}

fn the_deb_installs_everything_and_goes_again(made: &Made) -> Result<()> {
    let root = made.installed()?;
    let said = say(Command::new(root.join("usr/bin").join(NAME)).arg("--version"))?;
    ensure!(said.contains(VERSION), "{said}");
    let doc = format!("usr/share/doc/{NAME}");
    for path in [
        format!("usr/lib/systemd/system/{NAME}.service"),
        format!("usr/share/bash-completion/completions/{NAME}"),
        format!("usr/share/man/man1/{NAME}.1.gz"),
        format!("usr/share/man/man1/{NAME}-watch.1.gz"),
        format!("{doc}/README.md"),
        format!("{doc}/docs/service.md"),
        format!("{doc}/copyright"),
        format!("{doc}/LICENSE-MIT"),
        format!("{doc}/LICENSE-APACHE"),
        format!("{doc}/THIRD-PARTY.txt"),
    ] {
        let size = fs::metadata(root.join(&path)).with_context(|| path.clone())?.len();
        ensure!(size > 0, "{path} is empty");
    }
    let status =
        say(Command::new("dpkg-query").arg(format!("--admindir={}/var/lib/dpkg", root.display())).arg("--list"))?;
    ensure!(status.lines().any(|line| line.starts_with("ii") && line.contains(NAME)), "{status}");
    say(dpkg(&root).args(["--purge", NAME]))?;
    ensure!(!root.join("usr/bin").join(NAME).exists(), "it is still there after --purge");
    Ok(())
}

fn the_unit_of_the_deb_is_sound_and_closed(made: &Made) -> Result<()> {
    let root = made.installed()?;
    let units = root.join("usr/lib/systemd/system");
    // What every service asks for; in an installed system they are there.
    for target in ["sysinit", "basic", "shutdown", "multi-user"] {
        fs::write(units.join(format!("{target}.target")), "[Unit]\nDefaultDependencies=no\n")?;
    }
    let unit = format!("{NAME}.service");
    let root = format!("--root={}", root.display());
    let said = say(Command::new("systemd-analyze").args(["verify", "--man=no", &root, &unit]))?;
    ensure!(said.trim().is_empty(), "systemd-analyze verify: {said}");
    say(Command::new("systemd-analyze").args(["security", "--no-pager", "--offline=yes", EXPOSURE, &root, &unit]))?;
    Ok(())
}

fn rpm_reads_the_rpm(made: &Made) -> Result<()> {
    let path = made.file(".rpm")?;
    let said = say(Command::new("rpm").args(["--checksig", "--verbose"]).arg(&path))?;
    ensure!(said.contains("Payload SHA256 digest: OK"), "{said}");
    let listed = say(Command::new("rpm").args(["--query", "--package", "--list"]).arg(&path))?;
    for path in
        ["/usr/bin/imds-trace", "/usr/lib/systemd/system/imds-trace.service", "/usr/share/man/man1/imds-trace.1.gz"]
    {
        ensure!(listed.lines().any(|line| line == path), "no {path} in {listed}");
    }
    let read = rpm::Package::open(&path).context("read it with the crate")?;
    ensure!(read.metadata.get_version()? == VERSION, "another version");
    Ok(())
}

/// As containerd and podman read it, and as Docker does.
fn the_image_is_read_by_both_of_its_lists(made: &Made) -> Result<()> {
    let path = made.file("-image.tar")?;
    let inspect = |source: &str, option: &[&str]| -> Result<Value> {
        let source = format!("{source}:{}", path.display());
        let said = say(Command::new("skopeo").arg("inspect").args(option).arg(&source))?;
        serde_json::from_str(&said).with_context(|| format!("{source}: {said}"))
    };
    let architecture = Arch::own()?.debian();
    for source in ["oci-archive", "docker-archive"] {
        let seen = inspect(source, &[])?;
        ensure!(seen["Architecture"] == architecture && seen["Os"] == "linux", "{source}: {seen}");
        let labels = [("title", NAME), ("version", VERSION), ("licenses", "MIT OR Apache-2.0")];
        for (label, value) in labels {
            ensure!(seen["Labels"][format!("org.opencontainers.image.{label}")] == value, "{source}, {label}: {seen}");
        }
        ensure!(seen["Layers"].as_array().is_some_and(|layers| layers.len() == 1), "{source}: {seen}");
        let config = inspect(source, &["--config"])?;
        ensure!(config["config"]["Entrypoint"] == serde_json::json!(["/usr/bin/imds-trace"]), "{source}: {config}");
    }
    let list = |name: &str| -> Result<Value> {
        let said = say(Command::new("tar").args(["--extract", "--to-stdout", "--file"]).arg(&path).arg(name))?;
        serde_json::from_str(&said).with_context(|| format!("{name}: {said}"))
    };
    let tag = format!("{NAME}:{VERSION}");
    ensure!(list("manifest.json")?[0]["RepoTags"] == serde_json::json!([tag]), "{}", list("manifest.json")?);
    let called = &list("index.json")?["manifests"][0]["annotations"]["io.containerd.image.name"];
    ensure!(called == &serde_json::json!(format!("docker.io/library/{tag}")), "{called}");
    Ok(())
}

fn the_image_holds_the_program_its_parts_and_terms(made: &Made) -> Result<()> {
    let (copy, root) = (made.work.join("copy"), made.work.join("root"));
    fs::create_dir_all(&root)?;
    // It compares every digest on the way.
    let from = format!("oci-archive:{}", made.file("-image.tar")?.display());
    say(Command::new("skopeo").args(["copy", "--insecure-policy", &from]).arg(format!("dir:{}", copy.display())))?;
    let manifest: Value = serde_json::from_str(&fs::read_to_string(copy.join("manifest.json"))?)?;
    let layer = manifest["layers"][0]["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
    let layer = copy.join(layer.with_context(|| format!("no layer: {manifest}"))?);
    say(Command::new("tar").args(["--extract", "--gzip", "--file"]).arg(layer).arg("--directory").arg(&root))?;
    let doc = root.join("usr/share/doc").join(NAME);
    for (file, same) in [
        (root.join("usr/bin").join(NAME), made.dist.join(NAME)),
        (doc.join(format!("{NAME}.cdx.json")), made.file(".cdx.json")?),
        (doc.join("THIRD-PARTY.txt"), made.dist.join("doc/THIRD-PARTY.txt")),
        (doc.join("LICENSE-MIT"), made.dist.join("doc/LICENSE-MIT")),
        (doc.join("LICENSE-APACHE"), made.dist.join("doc/LICENSE-APACHE")),
    ] {
        say(Command::new("cmp").arg(file).arg(same))?;
    }
    let mut chroot = Command::new("chroot");
    chroot.arg(&root).arg(format!("/usr/bin/{NAME}")).arg("--version").env_clear().env("PATH", "/usr/sbin:/usr/bin");
    let said = say(&mut chroot)?;
    ensure!(said.trim() == format!("{NAME} {VERSION}"), "{said}");
    Ok(())
}

fn made_again_it_is_the_same(made: &Made) -> Result<()> {
    let before = fs::read_to_string(made.dist.join(SUMS))?;
    make(made.together, Arch::own()?)?;
    let after = fs::read_to_string(made.dist.join(SUMS))?;
    let differ: Vec<_> = before.lines().zip(after.lines()).filter(|(one, other)| one != other).collect();
    ensure!(before == after, "other bytes: {differ:?}");
    Ok(())
}
