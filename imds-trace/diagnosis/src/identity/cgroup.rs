//! Which container does a cgroup path name? The outermost, which the host's engine knows, and the innermost.
//!
//! Refuses to guess: a path that no engine is known to make names nobody, and a runtime that the path does not tell is `None`.
//! Who may make cgroups may choose their names: root everywhere, a user below `user@<uid>.service`, a service below its own, a
//! container below its own cgroup. So the outermost name is the word of whoever owns what is above it, told as [`Cgroup::user`], and
//! everything below it the container's own. Below a service only those are containers that a runtime is known to put there.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Length of the ids that Docker, containerd, podman and CRI-O give: 32 bytes in lower-case hexadecimal digits.
const ID_LENGTH: usize = 64;
/// Length of BuildKit's ids, in base 36: `identity.NewID` of moby/buildkit.
const STEP_LENGTH: usize = 25;
/// Longest name of a machine or of an LXC container: a host name, RFC 1123.
const MAX_NAME: usize = 64;

/// What made a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    /// The Docker engine, rootless too, and what drives it: ECS, cri-dockerd.
    Docker,
    /// BuildKit, in the Docker engine or in a builder of its own: a step of a build, which no engine lists.
    Buildkit,
    /// podman, rootless too.
    Podman,
    /// containerd without Docker: nerdctl, or the CRI of Kubernetes.
    Containerd,
    /// CRI-O.
    CriO,
    /// systemd-nspawn.
    Nspawn,
    /// LXC, LXD or Incus.
    Lxc,
}

impl Runtime {
    /// What a report calls one of its containers, before the id.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Buildkit => "buildkit step",
            Self::Podman => "podman",
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Nspawn => "nspawn",
            Self::Lxc => "lxc",
        }
    }
}

/// A container, as a path names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its id; its name where the runtime gives none (nspawn, LXC).
    pub id: String,
    /// What made it; `None` where the path does not tell.
    pub runtime: Option<Runtime>,
}

/// What the cgroup of a process says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// The outermost container.
    pub outer: Named,
    /// The innermost, if there is a container in the container.
    pub inner: Option<Named>,
    /// The pod it is in: Kubernetes' uid, podman's id.
    pub pod: Option<String>,
    /// The id of its ECS task.
    pub task: Option<String>,
    /// The user who made it, and who may call his cgroups what he likes; 0 for root.
    pub user: u32,
}

/// Reads `/proc/<pid>/cgroup`: a line per hierarchy, `<number>:<controllers>:<path>`, on version 2 only one. `None` if no container
/// is named, or if the lines do not agree who it is.
pub fn read(text: &str) -> Option<Cgroup> {
    let mut said: Option<Cgroup> = None;
    for line in text.lines() {
        let Some(path) = line.splitn(3, ':').nth(2).filter(|path| path.starts_with('/')) else { continue };
        let Some(other) = read_path(path) else { continue };
        let Some(known) = &mut said else {
            said = Some(other);
            continue;
        };
        if known.outer.id != other.outer.id || known.user != other.user {
            return None;
        }
        known.outer.runtime = known.outer.runtime.or(other.outer.runtime);
        match (&known.inner, other.inner) {
            (Some(one), Some(another)) if one.id != another.id => known.inner = None,
            (None, another) => known.inner = another,
            (Some(_), _) => {}
        }
        known.pod = known.pod.take().or(other.pod);
        known.task = known.task.take().or(other.task);
    }
    said
}

/// Reads one path.
pub fn read_path(path: &str) -> Option<Cgroup> {
    // The kernel says so of a cgroup that was removed while a zombie is left in it.
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty() && *segment != "..").collect();
    let mut named = (0..segments.len()).filter_map(|at| Some((at, container(&segments, at)?)));
    let (at, outer) = named.next()?;
    let user = maker(&segments[..at], segments[at])?;
    let mut named = named.map(|(_, named)| named);
    let inner = named.next_back().filter(|inner| inner.id != outer.id);
    let below_ecs = segments.iter().skip_while(|segment| **segment != "ecs");
    let task = segments.iter().find_map(|segment| segment.strip_prefix("ecstasks-")?.strip_suffix(".slice"));
    Some(Cgroup {
        outer,
        inner,
        pod: (0..segments.len()).rev().find_map(|at| pod_at(&segments, at)),
        task: below_ecs.copied().chain(task).find(|segment| is_task(segment)).map(str::to_owned),
        user,
    })
}

/// The user who made a container's cgroup, by what is above it; `None` if that is a service that no runtime makes containers in: it may
/// have been given its cgroup (`Delegate=`), and then whoever it runs as chose the name.
fn maker(above: &[&str], segment: &str) -> Option<u32> {
    let Some(at) = above.iter().position(|segment| segment.ends_with(".service")) else { return Some(0) };
    // Where systemd puts a user's own, and nobody else can.
    if let ["user.slice", _, own, ..] = above
        && at == 2
        && let Some(uid) = own.strip_prefix("user@").and_then(|name| name.strip_suffix(".service"))
        && above[1].strip_prefix("user-").and_then(|name| name.strip_suffix(".slice")) == Some(uid)
    {
        return uid.parse().ok();
    }
    // podman in a unit of its own, and engines that were told a cgroup by systemd's rules and make it by their own.
    (segment.starts_with("libpod-payload-") || segment.contains(':')).then_some(0)
}

/// The container that one segment of a path begins.
fn container(segments: &[&str], at: usize) -> Option<Named> {
    let (segment, before, next) = (segments[at], &segments[..at], segments.get(at + 1).copied());
    let parent = before.last().copied();
    unit(segment)
        .or_else(|| machine(segment, parent, next))
        .or_else(|| lxc(segment, parent, at == 1))
        .or_else(|| bare(segment, before))
}

fn named(id: &str, runtime: impl Into<Option<Runtime>>) -> Option<Named> {
    Some(Named { id: id.to_owned(), runtime: runtime.into() })
}

/// `<prefix>-<id>.scope`, systemd's; without `.scope` where a cgroupfs driver writes the prefix too. An id behind another prefix is
/// no container's: `libpod-conmon-<id>.scope` holds its monitor, a process of the host.
fn unit(segment: &str) -> Option<Named> {
    // An engine that asks for a systemd path and gets a plain one: `<slice>:<prefix>:<id>`.
    let mut parts = segment.split(':');
    if let (Some(_), Some(prefix), Some(id), None) = (parts.next(), parts.next(), parts.next(), parts.next()) {
        return is_id(id).then(|| made_by(prefix)).flatten().and_then(|runtime| named(id, runtime));
    }
    let scope = segment.strip_suffix(".scope");
    let (prefix, id) = scope.unwrap_or(segment).rsplit_once('-')?;
    if prefix == "docker" && scope.is_some() && is_step(id) {
        return named(id, Runtime::Buildkit);
    }
    let runtime = made_by(prefix)?;
    let may_be_bare = matches!(runtime, Runtime::Podman | Runtime::CriO);
    (is_id(id) && (scope.is_some() || may_be_bare)).then(|| named(id, runtime)).flatten()
}

fn made_by(prefix: &str) -> Option<Runtime> {
    match prefix {
        "docker" => Some(Runtime::Docker),
        "cri-containerd" | "nerdctl" => Some(Runtime::Containerd),
        "crio" => Some(Runtime::CriO),
        "libpod" | "libpod-payload" => Some(Runtime::Podman),
        _ => None,
    }
}

/// systemd-nspawn puts the container below `payload`, and itself beside it. A `machine-….scope` without that may be a virtual
/// machine's.
fn machine(segment: &str, parent: Option<&str>, next: Option<&str>) -> Option<Named> {
    let name = segment
        .strip_prefix("systemd-nspawn@")
        .and_then(|name| name.strip_suffix(".service"))
        .or_else(|| segment.strip_prefix("machine-").and_then(|name| name.strip_suffix(".scope")))?;
    // systemd writes a dash in a name of a unit as `\x2d`.
    let name = name.replace("\\x2d", "-");
    (parent == Some("machine.slice") && next == Some("payload") && is_name(&name))
        .then(|| named(&name, Runtime::Nspawn))
        .flatten()
}

/// `lxc.payload.<name>`, before LXC 4 `lxc.payload/<name>` and `/lxc/<name>`. `lxc.monitor` is a process of the host.
fn lxc(segment: &str, parent: Option<&str>, is_second: bool) -> Option<Named> {
    let below = (parent == Some("lxc.payload") || (parent == Some("lxc") && is_second)).then_some(segment);
    let name = segment.strip_prefix("lxc.payload.").or(below)?;
    is_name(name).then(|| named(name, Runtime::Lxc)).flatten()
}

/// A segment that is an id and nothing else: cgroupfs drivers. What stands before it may tell who made it.
fn bare(segment: &str, before: &[&str]) -> Option<Named> {
    let parent = before.last().copied();
    if parent == Some("buildkit") && is_step(segment) {
        return named(segment, Runtime::Buildkit);
    }
    let runtime = match parent {
        Some("docker") => Some(Runtime::Docker),
        // Builders of buildx.
        Some("buildx") if before.len() >= 2 && before[before.len() - 2] == "docker" => Some(Runtime::Docker),
        Some(task) if is_task(task) && before.contains(&"ecs") => Some(Runtime::Docker),
        // containerd's namespaces: that of its own clients, and that of Kubernetes.
        Some("default" | "k8s.io") if before.len() == 1 => Some(Runtime::Containerd),
        _ => None,
    };
    // podman's pods where no systemd makes the cgroups: `/libpod_parent/<pod>/libpod-<id>`.
    (is_id(segment) && parent != Some(LIBPOD_PARENT)).then(|| named(segment, runtime)).flatten()
}

/// Where podman puts its containers and pods by itself.
const LIBPOD_PARENT: &str = "libpod_parent";

/// The pod that one segment of a path begins.
fn pod_at(segments: &[&str], at: usize) -> Option<String> {
    let is_libpod = at > 0 && segments[at - 1] == LIBPOD_PARENT && is_id(segments[at]);
    if is_libpod { Some(segments[at].to_owned()) } else { pod(segments[at]) }
}

/// `pod<uid>`, `kubepods-…-pod<uid, its dashes written as _>.slice`, or podman's `…-libpod_pod_<id>.slice`.
fn pod(segment: &str) -> Option<String> {
    let slice = segment.split(':').next().unwrap_or(segment).strip_suffix(".slice");
    let uid = match slice {
        Some(slice) => match slice.split_once("libpod_pod_") {
            Some((_, id)) => return is_id(id).then(|| id.to_owned()),
            None if slice.contains("kubepods") => slice.rsplit_once("-pod")?.1.replace('_', "-"),
            None => return None,
        },
        None => segment.strip_prefix("pod")?.to_owned(),
    };
    // Of a static pod it is a hash of 32 digits.
    (is_uuid(&uid) || is_hex(&uid, 32)).then_some(uid)
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_id(text: &str) -> bool {
    is_hex(text, ID_LENGTH)
}

fn is_step(text: &str) -> bool {
    text.len() == STEP_LENGTH && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'z'))
}

fn is_uuid(text: &str) -> bool {
    let mut lengths = [8, 4, 4, 4, 12].into_iter();
    text.split('-').all(|part| lengths.next().is_some_and(|length| is_hex(part, length))) && lengths.next().is_none()
}

/// Tasks have 32 digits, those of before 2018 a UUID.
fn is_task(text: &str) -> bool {
    is_hex(text, 32) || is_uuid(text)
}

fn is_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(fits)
}

#[cfg(test)]
mod tests;
