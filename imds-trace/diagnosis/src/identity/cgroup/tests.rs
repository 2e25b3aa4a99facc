//! Does every layout of cgroups name its container, and does nothing else?

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
        format!("{} {}", short(&named.id), named.runtime.map_or("?".to_owned(), |runtime| runtime.noun().to_owned()))
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
        (format!("/kubepods.slice/kubepods-pod{}.slice/crio-{A}.scope/container", UID.replace('-', "_")), "A cri-o"),
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
fn what_a_user_or_a_service_may_name_is_not_taken_for_roots() {
    let user = |path: &str| read(&format!("0::{path}\n")).map(|cgroup| cgroup.user);
    let own = "/user.slice/user-1000.slice/user@1000.service";
    assert_eq!(user(&format!("/system.slice/docker-{A}.scope")), Some(0));
    assert_eq!(user(&format!("{own}/docker-{A}.scope")), Some(1000));
    assert_eq!(user(&format!("{own}/app.slice/docker/{A}")), Some(1000));
    assert_eq!(user(&format!("{own}/kubepods/pod{UID}/{A}")), Some(1000));
    assert_eq!(user(&format!("{own}/runner.service/user@0.service/docker/{A}")), Some(1000));
    assert_eq!(user(&format!("/user.slice/user-1000.slice/docker-{A}.scope")), Some(0), "root's, below a slice");
    assert_eq!(user(&format!("/system.slice/web.service/libpod-payload-{A}")), Some(0));
    // What is inside a container is its own affair.
    assert_eq!(user(&format!("/docker/{A}/system.slice/x.service/docker-{B}.scope")), Some(0));
    for path in [
        format!("/system.slice/runner.service/docker-{A}.scope"),
        format!("/system.slice/runner.service/system.slice/docker-{A}.scope"),
        format!("/system.slice/runner.service/docker/{A}"),
        format!("/system.slice/runner.service/{A}"),
        "/system.slice/runner.service/lxc.payload.web".to_owned(),
        format!("/system.slice/runner.service/user@0.service/docker-{A}.scope"),
        format!("/system.slice/runner.service/user.slice/user-0.slice/user@0.service/docker-{A}.scope"),
        format!("/user.slice/user-1000.slice/user@0.service/docker-{A}.scope"),
        format!("/system.slice/user@me.service/docker/{A}"),
    ] {
        assert_eq!(who(&format!("0::{path}\n")), "nobody", "{path}");
    }
    let both = format!("1:name=systemd:{own}/docker-{A}.scope\n0::/system.slice/docker-{A}.scope\n");
    assert_eq!(who(&both), "nobody", "one of the two is no container");
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
    let pieces =
        ["/", ":", "docker", "-", A, STEP, ".scope", "lxc.payload.", "machine.slice", "\\x2d", "\n", "é", "pod", ".."];
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
