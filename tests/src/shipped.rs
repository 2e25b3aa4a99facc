//! How do others run the program in a container? As `docs/kubernetes` says: its command and manifests, and the image that they name.
//!
//! The image is packed as `cargo xtask dist` packs it, but around the program under test, with its libraries if it is not static.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::children;
use crate::host::RunnerHost;
use crate::{image, oci, runtimes, tracer};

/// As the manifests name it, and the command.
pub const IMAGE: &str = concat!("imds-trace:", env!("CARGO_PKG_VERSION"));

/// A file of `docs/kubernetes`.
fn document(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kubernetes").join(name);
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// A manifest as a value.
pub fn manifest(name: &str) -> Result<Value> {
    serde_yaml_ng::from_str(&document(name)?).with_context(|| format!("read {name} as YAML"))
}

/// The words of the documented `docker run`, from the first option on up to the image.
pub fn documented() -> Result<Vec<String>> {
    let text = document("README.md")?;
    let (_, command) = text.split_once("\ndocker run ").context("README.md has a docker run")?;
    let (command, _) = command.split_once("\n```").context("a command in a block")?;
    let mut words: Vec<String> = command.split_whitespace().filter(|word| *word != "\\").map(str::to_owned).collect();
    ensure!(words.pop().as_deref() == Some(IMAGE), "the command ends with the image {IMAGE}: {command}");
    Ok(words)
}

/// The image, as `cargo xtask dist` would make it.
pub fn archive() -> Result<Vec<u8>> {
    let program = tracer::program()?;
    let mut files = Vec::new();
    for library in image::libraries_of(&program)? {
        let below = library.strip_prefix("/").unwrap_or(&library).display().to_string();
        files.push((below, 0o755, read(&library)?));
    }
    files.push((oci::PROGRAM.to_owned(), 0o755, read(&program)?));
    oci::archive(&oci::Image {
        name: "imds-trace",
        version: env!("CARGO_PKG_VERSION"),
        architecture: if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        created: "1970-01-01T00:00:00Z",
        labels: Vec::new(),
        files,
    })
}

/// Loads the image into the host's engine.
pub fn load(host: &RunnerHost) -> Result<()> {
    let path = host.dir().join("imds-trace-image.tar");
    std::fs::write(&path, archive()?).with_context(|| format!("write {}", path.display()))?;
    let mut docker = host.docker()?;
    docker.args(["load", "--input"]).arg(&path);
    let said = children::output(docker)?;
    std::fs::remove_file(&path)?;
    ensure!(said.contains(IMAGE), "docker load: {said}");
    Ok(())
}

/// The DaemonSet's pod, with the folders of the host where this lab has them.
pub fn pod(host: &RunnerHost) -> Result<Value> {
    let root = runtimes::root(host)?;
    let mut pod = manifest("daemonset.yaml")?["spec"]["template"]["spec"].take();
    for volume in pod["volumes"].as_array_mut().context("the DaemonSet has volumes")? {
        let path = volume["hostPath"]["path"].as_str().unwrap_or_default().to_owned();
        if path.starts_with("/run/") {
            volume["hostPath"]["path"] = root.join(path.trim_start_matches('/')).display().to_string().into();
        }
    }
    Ok(pod)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// The image, run by the documented command; dropping it removes it.
pub struct Shipped<'a> {
    host: &'a RunnerHost,
    id: String,
}

impl<'a> Shipped<'a> {
    /// Starts it with these words behind the image's name. The engine's data is where the lab has it.
    pub fn run(host: &'a RunnerHost, words: &[&str]) -> Result<Shipped<'a>> {
        let data = format!("{}/containers:/host", host.dir().join(crate::engine::DATA).display());
        let mut options = documented()?;
        options.iter_mut().for_each(|word| *word = word.replace("/var/lib/docker/containers:/host", &data));
        let run = |options: &[String]| {
            let mut docker = host.docker()?;
            docker.arg("run").args(options).arg(IMAGE).args(words);
            children::output(docker)
        };
        let id = run(&options).or_else(|error| {
            if !error.to_string().contains("unknown capability") {
                return Err(error);
            }
            // What is documented for this case.
            let unknown = |word: &&mut String| *word == "BPF" || *word == "PERFMON";
            options.iter_mut().filter(unknown).for_each(|word| *word = "SYS_ADMIN".to_owned());
            run(&options)
        })?;
        Ok(Shipped { host, id: id.trim().to_owned() })
    }

    fn docker(&self, words: &[&str]) -> Result<Command> {
        let mut docker = self.host.docker()?;
        docker.args(words).arg(&self.id);
        Ok(docker)
    }

    /// Each line of its standard output so far that is JSON.
    pub fn events(&self) -> Result<Vec<Value>> {
        let said = children::output(self.docker(&["logs"])?)?;
        Ok(said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Ends it as an engine does, and gives its exit code and all that it said.
    pub fn stop(&self) -> Result<(String, Vec<Value>, String)> {
        children::output(self.docker(&["stop"])?)?;
        let code = children::output(self.docker(&["wait"])?)?.trim().to_owned();
        let stderr = self.docker(&["logs"])?.output()?.stderr;
        Ok((code, self.events()?, String::from_utf8_lossy(&stderr).into_owned()))
    }
}

impl Drop for Shipped<'_> {
    fn drop(&mut self) {
        if let Ok(remove) = self.docker(&["rm", "--force"]) {
            let _ = children::output(remove);
        }
    }
}
