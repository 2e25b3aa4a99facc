//! What of a runtime's file is kept? Names, image, pod and labels: bounded, and with secrets masked.
//!
//! Annotations of a pod count only where the runtime writes them itself: in containerd's namespace of Kubernetes, and in CRI-O.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use diagnosis::identity::cgroup::Runtime;
use diagnosis::identity::fact::ContainerDetail;
use diagnosis::identity::job;
use diagnosis::identity::pod::Pod;
use diagnosis::net::bounded;
use diagnosis::secret;
use serde::Deserialize;

use crate::sources::labels::labels;

/// Bytes of a container's name: a DNS label of Kubernetes has 63, a name in Docker seldom more than 100.
const MAX_NAME: usize = 253;
/// Bytes of an image's name.
const MAX_IMAGE: usize = 512;

type Annotations<'a> = HashMap<Cow<'a, str>, Cow<'a, str>>;

/// An OCI runtime's `config.json`: everything but the annotations is passed over.
#[derive(Deserialize)]
struct Bundle<'a> {
    #[serde(borrow, default)]
    annotations: Option<Annotations<'a>>,
}

fn annotations(text: &[u8]) -> Option<Annotations<'_>> {
    let bundle: Bundle<'_> = serde_json::from_slice(text).ok()?;
    Some(bundle.annotations.unwrap_or_default())
}

fn name(text: Option<&str>) -> Option<String> {
    kept(text, MAX_NAME)
}

fn image(text: Option<&str>) -> Option<String> {
    kept(text, MAX_IMAGE)
}

fn kept(text: Option<&str>, most: usize) -> Option<String> {
    text.filter(|text| !text.is_empty()).map(|text| bounded(&secret::mask(text), most).to_owned())
}

fn get<'a>(annotations: &'a Annotations<'_>, name: &str) -> Option<&'a str> {
    annotations.get(name).map(AsRef::as_ref)
}

/// What containerd's CRI plugin says.
pub fn cri_containerd(text: &[u8]) -> Option<ContainerDetail> {
    let all = annotations(text)?;
    let said = |name: &str| get(&all, &format!("io.kubernetes.cri.{name}"));
    Some(ContainerDetail {
        name: name(said("container-name")),
        image: image(said("image-name")),
        pod: Pod::said(said("sandbox-uid"), said("sandbox-name"), said("sandbox-namespace"), said("sandbox-id")),
        runtime: Some(Runtime::Containerd),
        ..ContainerDetail::default()
    })
}

/// What nerdctl says; nothing but the runtime of a container of another client of containerd.
pub fn nerdctl(text: &[u8]) -> Option<ContainerDetail> {
    let all = annotations(text)?;
    Some(ContainerDetail {
        name: name(get(&all, "nerdctl/name")),
        runtime: Some(Runtime::Containerd),
        ..ContainerDetail::default()
    })
}

/// What CRI-O says, and which container is the pod's sandbox; `None` where another runtime uses the same storage.
pub fn cri_o(text: &[u8]) -> Option<(ContainerDetail, Option<String>)> {
    let all = annotations(text)?;
    if get(&all, "io.container.manager") != Some("cri-o") {
        return None;
    }
    let said = |name: &str| get(&all, &format!("io.kubernetes.{name}"));
    let sandbox = said("cri-o.SandboxID");
    let is_sandbox = said("cri-o.ContainerType") == Some("sandbox");
    let detail = ContainerDetail {
        name: name(said("container.name").filter(|_| !is_sandbox)),
        image: image(said("cri-o.ImageName").or_else(|| said("cri-o.Image"))),
        pod: Pod::said(said("pod.uid"), said("pod.name"), said("pod.namespace"), sandbox),
        runtime: Some(Runtime::CriO),
        ..ContainerDetail::default()
    };
    let is_id = |id: &&str| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    Some((detail, sandbox.filter(is_id).map(str::to_owned)))
}

/// Labels of a pod, and those of its annotations that tell of a CI job, by its sandbox in CRI-O.
pub fn cri_o_labels(text: &[u8]) -> Option<Arc<BTreeMap<String, String>>> {
    let all = annotations(text)?;
    let listed = |name: &str| -> HashMap<String, String> {
        get(&all, name).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    };
    let telling = listed("io.kubernetes.cri-o.Annotations").into_iter().filter(|(name, _)| job::reads(name));
    Some(labels(listed("io.kubernetes.cri-o.Labels").into_iter().chain(telling).collect()))
}

/// One container in the list of a storage.
#[derive(Deserialize)]
struct Stored<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow, default)]
    names: Option<Vec<Cow<'a, str>>>,
    #[serde(borrow, default)]
    metadata: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow, default, rename = "image-name")]
    image: Option<Cow<'a, str>>,
}

/// What podman's list says of one container.
pub fn podman(text: &[u8], id: &str) -> Option<ContainerDetail> {
    let all: Vec<Stored<'_>> = serde_json::from_slice(text).ok()?;
    let stored = all.into_iter().find(|stored| stored.id == id)?;
    let metadata: Option<Metadata<'_>> = stored.metadata.as_deref().and_then(|text| serde_json::from_str(text).ok());
    Some(ContainerDetail {
        name: name(stored.names.iter().flatten().next().map(AsRef::as_ref)),
        image: image(metadata.as_ref().and_then(|metadata| metadata.image.as_deref())),
        runtime: Some(Runtime::Podman),
        ..ContainerDetail::default()
    })
}

/// Docker's `config.v2.json`: of its variables, arguments and mounts nothing.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    config: Option<Configured>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Configured {
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    labels: Option<HashMap<String, String>>,
}

/// What Docker says of a container.
pub fn docker(text: &[u8]) -> Option<ContainerDetail> {
    let described: Described = serde_json::from_slice(text).ok()?;
    let config = described.config.unwrap_or_default();
    Some(ContainerDetail {
        name: name(described.name.as_deref().map(|name| name.trim_start_matches('/'))),
        image: image(config.image.as_deref()),
        labels: labels(config.labels.unwrap_or_default()),
        runtime: Some(Runtime::Docker),
        ..ContainerDetail::default()
    })
}

/// Where Docker was told to keep its data.
pub fn data_root(text: &[u8]) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Daemon {
        #[serde(rename = "data-root")]
        data_root: PathBuf,
    }
    serde_json::from_slice::<Daemon>(text).ok().map(|daemon| daemon.data_root)
}
