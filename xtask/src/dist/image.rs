//! How does it become an image for container engines? One layer and nothing below it, laid out as OCI says, and as Docker reads it.
//!
//! An archive holds the blobs once and two lists of them: `index.json` is what containerd, podman and skopeo read, `manifest.json` what
//! `docker load` reads. The lab packs the program that it tries with this file, too, so it knows nothing of the rest of `dist`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Where the program is in the image.
pub const PROGRAM: &str = "usr/bin/imds-trace";
/// What it does if nothing else is typed behind the image's name: the host's root is looked for where the documented command mounts it.
pub const COMMAND: [&str; 3] = ["watch", "--host-root", "/host"];

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What an image is made of.
pub struct Image<'a> {
    /// What it is called, without a registry.
    pub name: &'a str,
    /// Its tag.
    pub version: &'a str,
    /// `amd64` or `arm64`.
    pub architecture: &'a str,
    /// When, as RFC 3339 writes it.
    pub created: &'a str,
    /// Further ones, without the `org.opencontainers.image.` that stands before each.
    pub labels: Vec<(&'a str, String)>,
    /// Path below the root, mode, bytes.
    pub files: Vec<(String, u32, Vec<u8>)>,
}

/// The archive. The same image gives the same bytes.
pub fn archive(image: &Image<'_>) -> Result<Vec<u8>> {
    let Image { name, version, architecture, created, .. } = *image;
    let layer = layer(image)?;
    let diff_id = digest(&layer);
    let mut labels: serde_json::Map<String, Value> = serde_json::Map::new();
    let always = [("title", name.to_owned()), ("version", version.to_owned()), ("created", created.to_owned())];
    for (label, value) in always.iter().chain(&image.labels) {
        labels.insert(format!("org.opencontainers.image.{label}"), json!(value));
    }
    let config = json!({
        "created": created, "architecture": architecture, "os": "linux",
        "config": {"Entrypoint": [format!("/{PROGRAM}")], "Cmd": COMMAND, "Env": ["PATH=/usr/bin"], "WorkingDir": "/", "Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": created, "created_by": "cargo xtask dist"}],
    });
    let mut blobs = Blobs::default();
    let config = blobs.add(CONFIG, config.to_string().into_bytes());
    let layer = blobs.add(LAYER, gzip(&layer)?);
    let paths = json!([{"Config": blob(&config), "RepoTags": [format!("{name}:{version}")], "Layers": [blob(&layer)]}]);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer], "annotations": labels,
    });
    let mut manifest = blobs.add(MANIFEST, manifest.to_string().into_bytes());
    manifest["platform"] = json!({"architecture": architecture, "os": "linux"});
    manifest["annotations"] = json!({
        // What containerd calls the image; others take the tag alone.
        "io.containerd.image.name": format!("docker.io/library/{name}:{version}"),
        "org.opencontainers.image.ref.name": version,
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest]});

    let mut archive = tar::Builder::new(Vec::new());
    put(&mut archive, "oci-layout", 0o644, json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes())?;
    put(&mut archive, "index.json", 0o644, index.to_string().as_bytes())?;
    put(&mut archive, "manifest.json", 0o644, paths.to_string().as_bytes())?;
    for (path, bytes) in &blobs.0 {
        put(&mut archive, path, 0o644, bytes)?;
    }
    archive.into_inner().context("pack the image")
}

/// What an image holds, by digest.
#[derive(Default)]
struct Blobs(Vec<(String, Vec<u8>)>);

impl Blobs {
    /// Keeps it, and gives its descriptor.
    fn add(&mut self, kind: &str, bytes: Vec<u8>) -> Value {
        let descriptor = json!({"mediaType": kind, "digest": digest(&bytes), "size": bytes.len()});
        self.0.push((blob(&descriptor), bytes));
        descriptor
    }
}

/// Where a descriptor's bytes are.
fn blob(descriptor: &Value) -> String {
    format!("blobs/{}", descriptor["digest"].as_str().unwrap_or_default().replace(':', "/"))
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// The files as root's, with the folders that they are in. Times are 0: the image says itself when it was made.
fn layer(image: &Image<'_>) -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    let parents = image.files.iter().flat_map(|(path, ..)| Path::new(path).ancestors().skip(1));
    let folders: BTreeSet<&Path> = parents.filter(|folder| !folder.as_os_str().is_empty()).collect();
    for folder in folders {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        layer.append_data(&mut header, folder, std::io::empty()).context("pack the layer")?;
    }
    for (path, mode, bytes) in &image.files {
        put(&mut layer, path, *mode, bytes)?;
    }
    layer.into_inner().context("pack the layer")
}

fn put(archive: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    archive.append_data(&mut header, path, bytes).with_context(|| format!("pack {path}"))
}

/// Without a name and a time in it.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::best());
    std::io::Write::write_all(&mut encoder, bytes).context("compress")?;
    encoder.finish().context("compress")
}
