//! Which container does a cgroup path name? The outermost, which the host's engine knows, and the innermost.
//!
//! Refuses to guess: a path that no engine is known to make names nobody, and a runtime that the path does not tell is `None`.
//! Who may make cgroups may choose their names: root everywhere, a user below `user@<uid>.service`, a container below its own
//! cgroup. So the outermost name is the host's word, and everything below it the container's own.

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
        if known.outer.id != other.outer.id {
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
    let mut named = (0..segments.len()).filter_map(|at| container(&segments, at));
    let outer = named.next()?;
    let inner = named.next_back().filter(|inner| inner.id != outer.id);
    let below_ecs = segments.iter().skip_while(|segment| **segment != "ecs");
    let task = segments.iter().find_map(|segment| segment.strip_prefix("ecstasks-")?.strip_suffix(".slice"));
    Some(Cgroup {
        outer,
        inner,
        pod: (0..segments.len()).rev().find_map(|at| pod_at(&segments, at)),
        task: below_ecs.copied().chain(task).find(|segment| is_task(segment)).map(str::to_owned),
    })
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
mod tests {
    use super::*;

    const A: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const B: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
    const STEP: &str = "k3j4h5g6f7d8s9a0q1w2e3r4t";
    const UID: &str = "1c0d7e2a-5a5f-4d8b-9c55-0a1b2c3d4e5f";
    const TASK: &str = "0123456789abcdef0123456789abcdef";

    /// `outer runtime [> inner runtime]`, with A and B for the ids.
    fn who(text: &str) -> String {
        let short = |id: &str| id.replace(A, "A").replace(B, "B").replace(STEP, "step");
        let told = |named: &Named| {
            format!(
                "{} {}",
                short(&named.id),
                named.runtime.map_or("?".to_owned(), |runtime| runtime.noun().to_owned())
            )
        };
        match read(text) {
            Some(Cgroup { outer, inner: Some(inner), .. }) => format!("{} > {}", told(&outer), told(&inner)),
            Some(Cgroup { outer, .. }) => told(&outer),
            None => "nobody".to_owned(),
        }
    }

    #[test]
    fn every_layout_names_its_container_and_runtime() {
        let user = "/user.slice/user-1000.slice/user@1000.service/user.slice";
        for (path, expected) in [
            // Docker: systemd and cgroupfs, rootless, with a parent of one's own, Kubernetes' and ECS's among them.
            (format!("/system.slice/docker-{A}.scope"), "A docker"),
            (format!("/docker/{A}"), "A docker"),
            (format!("{user}/docker-{A}.scope"), "A docker"),
            (format!("/ci.slice/ci-heavy.slice/docker-{A}.scope"), "A docker"),
            (format!("/ci/heavy/{A}"), "A ?"),
            (format!("/{A}"), "A ?"),
            (format!("/ecstasks.slice/ecstasks-{TASK}.slice/docker-{A}.scope"), "A docker"),
            (format!("/ecs/{TASK}/{A}"), "A docker"),
            (format!("/ecs/my-cluster/{TASK}/{A}"), "A docker"),
            // BuildKit: in the engine, and in a builder that is a container.
            (format!("/system.slice/docker-{STEP}.scope"), "step buildkit step"),
            (format!("/docker/buildkit/{STEP}"), "step buildkit step"),
            (format!("/docker/{A}/buildkit/{STEP}"), "A docker > step buildkit step"),
            (format!("/docker/buildx/{A}/buildkit/{STEP}"), "A docker > step buildkit step"),
            (format!("/system.slice/docker-{A}.scope/docker/buildkit/{STEP}"), "A docker > step buildkit step"),
            // Docker in Docker, and a container's own cgroups below its cgroup.
            (format!("/system.slice/docker-{A}.scope/docker/{B}"), "A docker > B docker"),
            (format!("/docker/{A}/docker/{B}"), "A docker > B docker"),
            (format!("/docker/{A}/docker/{B}/docker/{STEP}"), "A docker > B docker"),
            (format!("/system.slice/docker-{A}.scope/init"), "A docker"),
            (format!("/system.slice/docker-{A}.scope/system.slice/docker-{B}.scope/x.service"), "A docker > B docker"),
            // Kubernetes: by containerd, CRI-O, cri-dockerd; and a node that is a container (kind).
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/cri-containerd-{A}.scope",
                    UID.replace('-', "_")
                ),
                "A containerd",
            ),
            (
                format!("/kubepods.slice/kubepods-pod{}.slice/crio-{A}.scope/container", UID.replace('-', "_")),
                "A cri-o",
            ),
            (format!("/kubepods.slice/kubepods-pod{}.slice/docker-{A}.scope", UID.replace('-', "_")), "A docker"),
            (format!("/kubepods/burstable/pod{UID}/{A}"), "A ?"),
            (format!("/kubepods/pod{UID}/crio-{A}"), "A cri-o"),
            (
                format!(
                    "/system.slice/containerd.service/kubepods-burstable-pod{}.slice:cri-containerd:{A}",
                    UID.replace('-', "_")
                ),
                "A containerd",
            ),
            (
                format!(
                    "/docker/{A}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{}.slice/cri-containerd-{B}.scope",
                    UID.replace('-', "_")
                ),
                "A docker > B containerd",
            ),
            // containerd by itself.
            (format!("/system.slice/nerdctl-{A}.scope"), "A containerd"),
            (format!("{user}/nerdctl-{A}.scope"), "A containerd"),
            (format!("/default/{A}"), "A containerd"),
            // podman: with root, without, in a pod, in a unit of its own (quadlet), cgroupfs.
            (format!("/machine.slice/libpod-{A}.scope"), "A podman"),
            (format!("/machine.slice/libpod-{A}.scope/container"), "A podman"),
            (format!("/libpod_parent/libpod-{A}"), "A podman"),
            (format!("/libpod_parent/{B}/libpod-{A}"), "A podman"),
            (format!("{user}/libpod-{A}.scope/container"), "A podman"),
            (format!("{user}/user-libpod_pod_{B}.slice/libpod-{A}.scope"), "A podman"),
            (format!("/system.slice/web.service/libpod-payload-{A}"), "A podman"),
            (format!("/machine.slice/libpod-{A}.scope/container/docker/{B}"), "A podman > B docker"),
            // Containers of whole systems.
            ("/machine.slice/systemd-nspawn@web\\x2d1.service/payload/init.scope".into(), "web-1 nspawn"),
            ("/machine.slice/machine-web.scope/payload".into(), "web nspawn"),
            ("/lxc.payload.web-1/system.slice/cron.service".into(), "web-1 lxc"),
            ("/lxc.payload/web".into(), "web lxc"),
            ("/lxc/web/init.scope".into(), "web lxc"),
            (format!("/lxc.payload.web/system.slice/docker-{A}.scope"), "web lxc > A docker"),
            // As seen from a cgroup namespace beside it, and after it was removed.
            (format!("/../docker-{A}.scope"), "A docker"),
            (format!("/docker/{A} (deleted)"), "A docker"),
        ] {
            assert_eq!(who(&format!("0::{path}\n")), expected, "version 2: {path}");
            let hybrid =
                format!("13:misc:/\n12:cpu,cpuacct:{path}\n1:name=systemd:{path}\n0::/system.slice/docker.service\n");
            assert_eq!(who(&hybrid), expected, "hybrid: {path}");
        }
    }

    #[test]
    fn hostile_odd_and_host_paths_name_nobody() {
        let upper = A.to_uppercase();
        for path in [
            "/user.slice/user-0.slice/session-1.scope".to_owned(),
            "/".into(),
            "/init.scope".into(),
            String::new(),
            // The monitors of containers are processes of the host.
            format!("/machine.slice/libpod-conmon-{A}.scope"),
            format!("/kubepods.slice/crio-conmon-{A}.scope"),
            "/lxc.monitor.web".into(),
            "/lxc.monitor/web".into(),
            "/machine.slice/systemd-nspawn@web.service/supervisor".into(),
            // A virtual machine, and mounts.
            "/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt/emulator".into(),
            format!("/system.slice/var-lib-docker-overlay2-{A}-merged.mount"),
            format!("/system.slice/run-docker-runtime\\x2drunc-moby-{A}.mount"),
            // Ids that are none.
            format!("/docker/{}", &A[1..]),
            format!("/docker/{A}0"),
            format!("/docker/{upper}"),
            format!("/system.slice/docker-{A}"),
            format!("/system.slice/docker-{A}.scope.d"),
            format!("/system.slice/evil-docker-{A}.scope"),
            format!("/system.slice/{A}.scope"),
            format!("/system.slice/docker-{}.scope", &STEP[1..]),
            format!("/docker/{STEP}"),
            format!("/a:b:docker:{A}"),
            "/docker/é".repeat(40),
            format!("/lxc.payload.{}", "x".repeat(65)),
            "/lxc.payload.\u{1b}[2J".into(),
            "/lxc.payload.".into(),
            "/machine.slice/systemd-nspawn@.service/payload".into(),
        ] {
            assert_eq!(who(&format!("0::{path}\n")), "nobody", "{path:?}");
        }
        for text in
            ["", "garbage", "::", "0:", "0::docker", &format!("docker/{A}"), &format!("0::docker/{A}"), "\0\n:\n::/"]
        {
            assert_eq!(who(text), "nobody", "{text:?}");
        }
    }

    #[test]
    fn lines_that_contradict_each_other_name_nobody() {
        assert_eq!(who(&format!("2:cpu:/docker/{A}\n1:name=systemd:/docker/{B}\n")), "nobody");
        assert_eq!(who(&format!("2:cpu:/docker/{A}/docker/{B}\n1:name=systemd:/docker/{A}\n")), "A docker > B docker");
        assert_eq!(who(&format!("2:cpu:/ci/{A}\n1:name=systemd:/system.slice/docker-{A}.scope\n")), "A docker");
    }

    #[test]
    fn pods_and_tasks_are_told() {
        let pod = |path: &str| read(&format!("0::{path}")).and_then(|cgroup| cgroup.pod);
        let dashes = UID.replace('-', "_");
        assert_eq!(pod(&format!("/kubepods/besteffort/pod{UID}/{A}")).as_deref(), Some(UID));
        assert_eq!(pod(&format!("/kubepods.slice/kubepods-pod{dashes}.slice/crio-{A}.scope")).as_deref(), Some(UID));
        assert_eq!(pod(&format!("/kubepods/pod{TASK}/{A}")).as_deref(), Some(TASK), "a static pod");
        assert_eq!(pod(&format!("/x/kubepods-pod{dashes}.slice:cri-containerd:{A}")).as_deref(), Some(UID));
        assert_eq!(pod(&format!("/user.slice/user-libpod_pod_{B}.slice/libpod-{A}.scope")).as_deref(), Some(B));
        assert_eq!(pod(&format!("/libpod_parent/{B}/libpod-{A}")).as_deref(), Some(B));
        assert_eq!(pod(&format!("/kubepods/podesta/{A}")), None);
        assert_eq!(pod(&format!("/docker/{A}")), None);
        let task = |path: &str| read(&format!("0::{path}")).and_then(|cgroup| cgroup.task);
        assert_eq!(task(&format!("/ecs/{TASK}/{A}")).as_deref(), Some(TASK));
        assert_eq!(task(&format!("/ecs/{UID}/{A}")).as_deref(), Some(UID));
        assert_eq!(task(&format!("/ecstasks.slice/ecstasks-{TASK}.slice/docker-{A}.scope")).as_deref(), Some(TASK));
        assert_eq!(task(&format!("/docker/{TASK}/{A}")), None);
    }

    #[test]
    fn no_text_makes_it_panic() {
        let pieces = [
            "/",
            ":",
            "docker",
            "-",
            A,
            STEP,
            ".scope",
            "lxc.payload.",
            "machine.slice",
            "\\x2d",
            "\n",
            "é",
            "pod",
            "..",
        ];
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..4_000 {
            let mut text = String::from("0::/");
            for _ in 0..12 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                text.push_str(pieces[(seed % pieces.len() as u64) as usize]);
            }
            if let Some(cgroup) = read(&text) {
                assert!(text.contains(&cgroup.outer.id) || text.contains("\\x2d"), "{text:?}");
            }
        }
    }
}
