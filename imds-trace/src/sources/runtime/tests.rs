//! Is everybody named by his runtime's own file, and by nothing else that lies there?

use std::fs;

use super::*;

const A: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const B: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
const UID: &str = "1c0d7e2a-5a5f-4d8b-9c55-0a1b2c3d4e5f";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// A folder as the root of a host; it goes when this does.
struct Host(PathBuf);

impl Host {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("imds-trace-runtime-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn file(&self, path: &str, text: &str) -> PathBuf {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("its folder");
        fs::write(&path, text).expect("a file");
        path
    }

    /// Files here are ours: root's, when root runs the test.
    fn runtimes(&self) -> Option<Runtimes> {
        nix::unistd::geteuid().is_root().then(|| Runtimes::of_host(&self.0))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn bundle(annotations: &str) -> String {
    format!(
        r#"{{"ociVersion":"1.0.2","process":{{"args":["app","--token","{SECRET}"],"env":["AWS_SECRET_ACCESS_KEY={SECRET}"]}},
            "annotations":{{{annotations}}}}}"#
    )
}

fn cri(pod: &str) -> String {
    bundle(&format!(
        r#""io.kubernetes.cri.container-name":"app","io.kubernetes.cri.image-name":"shop/web:1","io.kubernetes.cri.sandbox-id":"{B}",
           "io.kubernetes.cri.sandbox-name":"{pod}","io.kubernetes.cri.sandbox-namespace":"shop","io.kubernetes.cri.sandbox-uid":"{UID}""#
    ))
}

fn kubepods() -> String {
    format!("/kubepods/burstable/pod{UID}/{A}")
}

const TASKS: &str = "run/containerd/io.containerd.runtime.v2.task";

#[test]
fn a_pod_of_containerd_is_told_once_and_nothing_of_its_variables() {
    let host = Host::new("cri");
    host.file(&format!("{TASKS}/k8s.io/{A}/config.json"), &cri("web-7d4b9"));
    let Some(mut runtimes) = host.runtimes() else { return };
    let told = runtimes.introduce(Timestamp(0), &kubepods()).expect("it is told");
    assert_eq!((told.name.as_deref(), told.image.as_deref()), (Some("app"), Some("shop/web:1")));
    assert_eq!(told.pod, Pod::said(Some(UID), Some("web-7d4b9"), Some("shop"), Some(B)));
    assert_eq!(told.runtime, Some(Runtime::Containerd));
    assert!(!serde_json::to_string(&told).expect("it can be written").contains(SECRET));
    assert_eq!(runtimes.introduce(Timestamp(1), &kubepods()), None, "it was told");
    let network = runtimes.network_of(&format!("1:cpu:/\n0::{}\n", kubepods()));
    assert_eq!(network.as_deref(), Some("pod web-7d4b9 (namespace shop)"));
}

#[test]
fn who_has_no_cgroup_any_more_has_departed() {
    let host = Host::new("departed");
    host.file(&format!("{TASKS}/k8s.io/{A}/config.json"), &cri("web-7d4b9"));
    let Some(mut runtimes) = host.runtimes() else { return };
    assert!(runtimes.introduce(Timestamp(0), &format!("{}/below", kubepods())).is_some());
    assert!(runtimes.departed().is_empty(), "no cgroups are to be seen");
    let cgroup = host.0.join("sys/fs/cgroup/pids").join(kubepods().trim_start_matches('/'));
    fs::create_dir_all(&cgroup).expect("a cgroup");
    assert!(runtimes.departed().is_empty(), "it is there");
    fs::remove_dir(&cgroup).expect("it goes");
    assert_eq!(runtimes.departed(), [(A.to_owned(), 0)]);
    assert!(runtimes.departed().is_empty(), "told once");
    assert!(runtimes.introduce(Timestamp(1), &kubepods()).is_some(), "it may come back");
}

#[test]
fn a_pod_is_named_only_where_kubernetes_drives_the_runtime() {
    let host = Host::new("claims");
    let claims = cri("kube-apiserver");
    host.file(&format!("{TASKS}/default/{A}/config.json"), &claims);
    let Some(runtimes) = host.runtimes() else { return };
    let path = format!("/default/{A}");
    let told = runtimes.describe(&cgroup::read_path(&path).expect("a container")).expect("it is there");
    assert_eq!((told.pod, told.name), (None, None));
    host.file(&format!("var/lib/containers/storage/overlay-containers/{B}/userdata/config.json"), &claims);
    let path = format!("/kubepods/pod{UID}/crio-{B}");
    assert_eq!(runtimes.describe(&cgroup::read_path(&path).expect("a container")), None);
}

#[test]
fn cri_o_podman_nerdctl_and_docker_are_read_from_their_own_files() {
    let host = Host::new("all");
    let storage = "var/lib/containers/storage/overlay-containers";
    let of_cri_o = format!(
        r#""io.container.manager":"cri-o","io.kubernetes.cri-o.SandboxID":"{B}","io.kubernetes.container.name":"app",
           "io.kubernetes.cri-o.ImageName":"shop/web:1","io.kubernetes.pod.name":"db-0","io.kubernetes.pod.namespace":"shop",
           "io.kubernetes.pod.uid":"{UID}""#
    );
    host.file(&format!("{storage}/{A}/userdata/config.json"), &bundle(&of_cri_o));
    let of_pod = r#""io.kubernetes.cri-o.Labels":"{\"app\":\"db\"}",
        "io.kubernetes.cri-o.Annotations":"{\"job.runner.gitlab.com/id\":\"4711\",\"note\":\"x\"}""#;
    host.file(&format!("{storage}/{B}/userdata/config.json"), &bundle(of_pod));
    let list = format!(
        r#"[{{"id":"{B}","names":["other"],"metadata":"{{}}"}},
            {{"id":"{A}","names":["web"],"image":"46ac","metadata":"{{\"image-name\":\"shop/web:1\",\"name\":\"web\"}}"}}]"#
    );
    host.file(&format!("{storage}/containers.json"), &list);
    host.file(&format!("{TASKS}/default/{A}/config.json"), &bundle(r#""nerdctl/name":"web-1""#));
    host.file("etc/docker/daemon.json", r#"{"data-root":"/srv/docker"}"#);
    let of_docker = format!(
        r#"{{"ID":"{A}","Name":"/job-17","Config":{{"Image":"ci:1","Env":["X={SECRET}"],"Cmd":["sh"],
            "Labels":{{"com.gitlab.gitlab-runner.job.id":"4711"}}}}}}"#
    );
    host.file(&format!("srv/docker/containers/{A}/config.v2.json"), &of_docker);
    let Some(runtimes) = host.runtimes() else { return };
    let told = |path: &str| runtimes.describe(&cgroup::read_path(path).expect("a container")).expect("it is told");
    let of_cri_o = told(&format!("/kubepods/pod{UID}/crio-{A}"));
    assert_eq!(of_cri_o.pod, Pod::said(Some(UID), Some("db-0"), Some("shop"), Some(B)));
    let labels: Vec<_> = of_cri_o.labels.keys().map(String::as_str).collect();
    assert_eq!((of_cri_o.name.as_deref(), labels), (Some("app"), vec!["app", "job.runner.gitlab.com/id"]));
    let of_podman = told(&format!("/machine.slice/libpod-{A}.scope"));
    assert_eq!((of_podman.name.as_deref(), of_podman.image.as_deref()), (Some("web"), Some("shop/web:1")));
    assert_eq!(told(&format!("/system.slice/nerdctl-{A}.scope")).name.as_deref(), Some("web-1"));
    let of_docker = told(&format!("/docker/{A}"));
    assert_eq!((of_docker.name.as_deref(), of_docker.image.as_deref()), (Some("job-17"), Some("ci:1")));
    assert!(!serde_json::to_string(&of_docker).expect("it can be written").contains(SECRET));
}

#[test]
fn what_is_no_file_too_large_somebody_elses_or_behind_the_root_is_not_read() {
    let host = Host::new("odd");
    let outside = Host::new("outside");
    let secret = outside.file("config.json", &cri("outside"));
    let path = host.file(&format!("{TASKS}/k8s.io/{A}/config.json"), "");
    let Some(runtimes) = host.runtimes() else { return };
    let within = cgroup::read_path(&kubepods()).expect("a container");
    let told = || runtimes.describe(&within);
    let anew = |make: &dyn Fn()| {
        let _ = fs::remove_file(&path);
        make();
    };
    anew(&|| nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).expect("a FIFO"));
    assert_eq!(told(), None, "a FIFO");
    anew(&|| std::os::unix::fs::symlink(&secret, &path).expect("a link"));
    assert_eq!(told(), None, "a link out of the root");
    anew(&|| std::os::unix::fs::symlink("/dev/zero", &path).expect("a link"));
    assert_eq!(told(), None, "a device");
    anew(&|| fs::write(&path, format!("{}{}", cri("big"), " ".repeat(2 << 20))).expect("a file"));
    assert_eq!(told(), None, "too large");
    anew(&|| fs::write(&path, "[".repeat(100_000)).expect("a file"));
    assert_eq!(told(), None, "too deep");
    anew(&|| fs::write(&path, cri("theirs")).expect("a file"));
    assert!(told().is_some(), "as it should be");
    std::os::unix::fs::chown(&path, Some(12_345), None).expect("another owner");
    assert_eq!(told(), None, "somebody else's");
}

#[test]
fn a_users_containers_are_looked_for_in_that_users_folders_only() {
    let host = Host::new("user");
    let list = |name: &str| format!(r#"[{{"id":"{A}","names":["{name}"]}}]"#);
    host.file("var/lib/containers/storage/overlay-containers/containers.json", &list("of-root"));
    host.file("etc/passwd", "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n");
    let own = host.file("home/me/.local/share/containers/storage/overlay-containers/containers.json", &list("of-me"));
    let Some(runtimes) = host.runtimes() else { return };
    let path = format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope");
    let told = || runtimes.describe(&cgroup::read_path(&path).expect("a container")).and_then(|told| told.name);
    assert_eq!(told(), None, "a file of root in it");
    std::os::unix::fs::chown(&own, Some(1000), None).expect("its owner");
    assert_eq!(told().as_deref(), Some("of-me"));
}

#[test]
fn names_are_bounded_and_secrets_in_them_masked() {
    let long = "x".repeat(100_000);
    let told = said::cri_containerd(cri(&long).as_bytes()).expect("it is read");
    assert!(told.pod.and_then(|pod| pod.name).is_some_and(|name| name.len() <= 253));
    for text in [
        "",
        "null",
        "[]",
        "{}",
        "{\"annotations\":null}",
        "{\"annotations\":7}",
        "{\"annotations\":{\"a\":7}}",
        "\u{0}",
    ] {
        let told = said::cri_containerd(text.as_bytes());
        assert!(told.is_none_or(|told| told.name.is_none() && told.pod.is_none()), "{text}");
    }
}
