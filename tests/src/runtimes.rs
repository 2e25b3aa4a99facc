//! How do a containerd with pods and a podman run beside the lab's Docker, with all their files below one root directory?
//!
//! `--host-root` names that directory: the program finds there what it finds below `/` on a host.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::children::{self, MARK};
use crate::docker::{GO, next};
use crate::engine;
use crate::expect::wait_until;
use crate::host::RunnerHost;
use crate::image;

/// What both call the image.
const IMAGE: &str = "localhost/imdslab:1";
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(20);
/// The client of the kubelet's interface.
const CRI: &str = include_str!("cri.py");
/// Debian's own, which finds its grpc.
const PYTHON: &str = "/usr/bin/python3";

/// The root directory that the runtimes of this host have, Docker's too: what `--host-root` is to name.
pub fn root(host: &RunnerHost) -> Result<PathBuf> {
    let root = host.dir().to_owned();
    std::fs::create_dir_all(root.join("etc/docker"))?;
    std::fs::write(root.join("etc/docker/daemon.json"), format!("{{\"data-root\":\"/{}\"}}", engine::DATA))?;
    Ok(root)
}

/// How a pod gets its network, as a node's configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cni {
    /// A bridge with masquerading: one hop more.
    Bridge,
    /// A veth pair and a route to it, as the VPC CNI does: one hop more, and no bridge.
    Routed,
    /// An interface beside the host's uplink, in its network: no hop more.
    Macvlan,
    /// The host's card [`OWN_CARD`] itself, as a task of ECS gets an ENI: it is in the pod's network namespace, and no more in the host's.
    Card,
}

/// The card that a pod with one of its own is given.
pub const OWN_CARD: &str = "ens6";

impl Cni {
    fn config(self, dir: &Path) -> String {
        let plugin = match self {
            Self::Bridge => r#""type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true"#,
            Self::Routed => r#""type":"ptp","ipMasq":true"#,
            Self::Macvlan => r#""type":"macvlan","master":"ens5","mode":"bridge""#,
            Self::Card => &format!(r#""type":"host-device","device":"{OWN_CARD}""#),
        };
        let (subnet, range) = match self {
            Self::Bridge => ("10.88.7.0/24", ""),
            Self::Routed => ("10.88.8.0/24", ""),
            // Of the uplink's own network, beside the host.
            Self::Macvlan => {
                ("10.77.0.0/24", r#","rangeStart":"10.77.0.100","rangeEnd":"10.77.0.200","gateway":"10.77.0.1""#)
            }
            Self::Card => ("10.89.0.0/24", r#","rangeStart":"10.89.0.100","gateway":"10.89.0.1""#),
        };
        format!(
            r#"{{"cniVersion":"0.4.0","name":"lab","plugins":[{{{plugin},"ipam":{{"type":"host-local",
                "ranges":[[{{"subnet":"{subnet}"{range}}}]],"routes":[{{"dst":"0.0.0.0/0"}}],"dataDir":"{}"}}}}]}}"#,
            dir.join("ipam").display()
        )
    }
}

/// A containerd that runs pods, as on a node of Kubernetes; dropping it stops it. Its pods must be gone by then.
pub struct Node {
    dir: PathBuf,
    containerd: Child,
}

impl Node {
    /// Starts it on the runner host, with this network for its pods.
    pub fn start(host: &RunnerHost, cni: Cni) -> Result<Node> {
        let dir = host.dir().join(format!("node-{}", next()));
        let root = root(host)?;
        for folder in [dir.join("cni"), dir.join("logs"), root.clone()] {
            std::fs::create_dir_all(folder)?;
        }
        let config = format!(
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{IMAGE}\"\ndisable_apparmor = true\n\
             restrict_oom_score_adj = true\nmax_concurrent_downloads = 1\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
             bin_dir = \"/usr/lib/cni\"\nconf_dir = \"{}\"\n",
            dir.join("cni").display()
        );
        std::fs::write(dir.join("containerd.toml"), config)?;
        std::fs::write(dir.join("cni/10-lab.conflist"), cni.config(&dir))?;
        std::fs::write(dir.join("cri.py"), CRI)?;
        let log = File::create(dir.join("containerd.log"))?;
        let mut command = host.runner().command("containerd");
        command.arg("--config").arg(dir.join("containerd.toml")).arg("--address").arg(dir.join("c.sock"));
        command.arg("--root").arg(root.join("var/lib/containerd")).arg("--state").arg(root.join("run/containerd"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let containerd = children::spawn(command).context("start containerd")?;
        let node = Node { dir, containerd };
        wait_until("containerd to answer", START, || children::output(node.ctr(&["version"])).ok())?;
        node.import(&image::docker_archive(IMAGE)?)?;
        Ok(node)
    }

    fn ctr(&self, args: &[&str]) -> Command {
        let mut command = children::command("ctr");
        command.arg("--address").arg(self.dir.join("c.sock")).args(["--namespace", "k8s.io"]).args(args);
        command
    }

    fn cri(&self, args: &[&str]) -> Result<String> {
        let mut command = children::command(PYTHON);
        command.arg(self.dir.join("cri.py")).arg(self.dir.join("c.sock")).args(args);
        children::output(command)
    }

    /// Takes in an image.
    pub fn import(&self, archive: &[u8]) -> Result<()> {
        let path = self.dir.join("image.tar");
        std::fs::write(&path, archive)?;
        children::output(self.ctr(&["images", "import", &path.display().to_string()]))?;
        Ok(())
    }

    /// Runs the pod of a manifest, as the kubelet would: its privileges, its mounts. These words are the arguments of its container.
    pub fn run_manifest(&self, pod: &str, spec: &Value, args: &[&str]) -> Result<PodContainer<'_>> {
        let (uid, parent) = new_pod();
        let (logs, mark) = (self.dir.join("logs").display().to_string(), format!("{MARK}={}", std::process::id()));
        let (spec, words) = (spec.to_string(), ["node", pod, "imds-trace", &uid, &parent, &logs, &mark]);
        let told = self.cri(&[&words[..], &[&spec], args].concat())?;
        self.made(uid, &told)
    }

    /// What the container of [`run_manifest`](Self::run_manifest) wrote on its standard output or standard error.
    pub fn logged(&self, pod: &str, stream: &str) -> Result<String> {
        let text = std::fs::read_to_string(self.dir.join("logs").join(format!("{pod}.log")))?;
        // TIME STREAM F|P TEXT, where P goes on in the next line.
        let parts = text.lines().filter_map(|line| line.split_once(' ')?.1.split_once(' '));
        let of = parts.filter(|(of, _)| *of == stream).filter_map(|(_, rest)| rest.split_once(' '));
        Ok(of.map(|(tag, text)| if tag == "P" { text.to_owned() } else { format!("{text}\n") }).collect())
    }

    fn made(&self, uid: String, told: &str) -> Result<PodContainer<'_>> {
        let mut ids = told.lines().map(str::to_owned);
        let (Some(sandbox), Some(id)) = (ids.next(), ids.next()) else { bail!("cri.py said {told:?}") };
        Ok(PodContainer { node: self, uid, sandbox, id })
    }

    /// Runs a pod with one container in it; `on_node`: in the host's own network.
    pub fn run(
        &self,
        pod: &str,
        namespace: &str,
        container: &str,
        on_node: bool,
        args: &[&str],
    ) -> Result<PodContainer<'_>> {
        let (uid, parent) = new_pod();
        let (network, logs) = (if on_node { "node" } else { "pod" }, self.dir.join("logs").display().to_string());
        let mark = format!("{MARK}={}", std::process::id());
        let words = ["run", pod, namespace, &uid, &parent, network, &logs, IMAGE, &mark, container];
        let told = self.cri(&[&words[..], args].concat())?;
        self.made(uid, &told)
    }
}

/// The uid of a new pod, and its cgroup.
fn new_pod() -> (String, String) {
    let uid = format!("1c0d7e2a-5a5f-4d8b-9c55-{:012x}", u64::from(std::process::id()) << 16 | u64::from(next()));
    let parent = format!("/kubepods/burstable/pod{uid}");
    (uid, parent)
}

impl Drop for Node {
    fn drop(&mut self) {
        children::stop(&mut self.containerd, Signal::SIGTERM, STOP);
    }
}

/// A container in a pod; dropping it removes the pod.
pub struct PodContainer<'a> {
    node: &'a Node,
    /// The pod's uid.
    pub uid: String,
    /// The id of the container that holds the pod's network.
    pub sandbox: String,
    /// Its id.
    pub id: String,
}

impl PodContainer<'_> {
    /// Lets a client that waits for `/go` begin.
    pub fn go(&self) -> Result<()> {
        go(&self.id)
    }

    /// Ends it with SIGTERM, as when its pod is deleted.
    pub fn stop(&self) -> Result<()> {
        self.node.cri(&["stop", &self.id]).map(drop)
    }
}

impl Drop for PodContainer<'_> {
    fn drop(&mut self) {
        let _ = self.node.cri(&["remove", &self.sandbox]);
    }
}

/// What makes podman's networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// podman's own.
    Netavark,
    /// CNI plugins, as podman 3 has them, and 4 where it was updated from there.
    Cni,
}

/// A podman with storage of its own, and containers on its own network.
pub struct Podman<'a> {
    host: &'a RunnerHost,
    dir: PathBuf,
    root: PathBuf,
    backend: Backend,
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // CNI's bridge stays behind its containers, and has the addresses that netavark's would have.
        if self.backend == Backend::Cni {
            let _ = self.host.runner().ip("link del cni-podman0");
        }
    }
}

impl<'a> Podman<'a> {
    /// Loads its image.
    pub fn start(host: &'a RunnerHost, backend: Backend) -> Result<Podman<'a>> {
        let dir = host.dir().join(format!("podman-{}", next()));
        let podman = Podman { host, dir, root: root(host)?, backend };
        std::fs::create_dir_all(&podman.dir)?;
        // Limits that root without CAP_SYS_RESOURCE may set, too.
        let backend = match backend {
            Backend::Netavark => "netavark",
            Backend::Cni => "cni",
        };
        let config = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n[engine]\nruntime = \"runc\"\n\
             [network]\nnetwork_backend = \"{backend}\"\n"
        );
        std::fs::write(podman.dir.join("containers.conf"), config)?;
        let archive = podman.dir.join("image.tar");
        std::fs::write(&archive, image::docker_archive(IMAGE)?)?;
        podman.podman(&["load", "--quiet", "--input", &archive.display().to_string()])?;
        Ok(podman)
    }

    /// The command, speaking to this storage only.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.host.runner().command("podman");
        command.env("CONTAINERS_CONF", self.dir.join("containers.conf"));
        command.arg("--root").arg(self.root.join("var/lib/containers/storage"));
        command.arg("--runroot").arg(self.root.join("run/containers/storage"));
        command.arg("--tmpdir").arg(self.dir.join("tmp")).arg("--network-config-dir").arg(self.dir.join("networks"));
        command.args(["--cgroup-manager", "cgroupfs"]).args(args);
        command
    }

    fn podman(&self, args: &[&str]) -> Result<String> {
        children::output(self.command(args))
    }

    /// Runs a container with this name, and these options before the image; gives its id.
    pub fn run(&self, name: &str, options: &[&str], args: &[&str]) -> Result<PodmanContainer<'_>> {
        let mark = format!("{MARK}={}", std::process::id());
        let begin = ["run", "--detach", "--name", name, "--env", &mark, "--entrypoint", ""];
        let told = self.podman(&[&begin[..], options, &[IMAGE], args].concat())?;
        Ok(PodmanContainer { podman: self, id: told.trim().to_owned() })
    }
}

/// A container of podman; dropping it removes it.
pub struct PodmanContainer<'a> {
    podman: &'a Podman<'a>,
    /// Its id.
    pub id: String,
}

impl PodmanContainer<'_> {
    /// Lets a client that waits for `/go` begin.
    pub fn go(&self) -> Result<()> {
        go(&self.id)
    }
}

impl Drop for PodmanContainer<'_> {
    fn drop(&mut self) {
        let _ = self.podman.podman(&["rm", "--force", "--time", "0", &self.id]);
    }
}

/// Puts the file that a client waits for where its container with this id sees it.
fn go(id: &str) -> Result<()> {
    let pid = std::fs::read_dir("/proc")?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        std::fs::read_to_string(entry.path().join("cgroup")).ok()?.contains(id).then_some(pid)
    });
    let pid = pid.with_context(|| format!("no process is in container {id}"))?;
    std::fs::write(format!("/proc/{pid}/root{GO}"), "go").with_context(|| format!("let container {id} go"))
}
