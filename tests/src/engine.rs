//! How does a private Docker engine start inside the runner's namespace, and end?
//!
//! It has a containerd of its own: a dockerd that finds the machine's containerd would use it, and its containers would
//! then start in the machine's namespace, among somebody else's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

use crate::children;
use crate::expect::wait_until;
use crate::image::{self, in_path};
use crate::netns::Namespace;
use crate::real;

/// dockerd is up in a third of a second here; an emulated machine is slower.
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(20);

/// Where dockerd and containerd keep what is to outlive them, in the lab's folder.
pub(crate) const DATA: &str = "data";
const CONTAINERD: &str = "containerd";

/// The private engine; dropping it stops it with all its containers.
pub(crate) struct DockerEngine {
    dir: PathBuf,
    processes: Mutex<Processes>,
    /// Whether the image for the machine's own programs is there.
    userland: Mutex<bool>,
}

/// What it consists of.
struct Processes {
    containerd: Child,
    dockerd: Child,
}

/// In one sentence why no engine can be started here.
pub(crate) fn available() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("a private Docker engine needs root".into());
    }
    for (program, package) in [
        ("dockerd", "docker.io"),
        ("containerd", "containerd"),
        ("runc", "runc"),
        ("docker", "docker.io"),
        ("busybox", "busybox-static"),
    ] {
        if in_path(program).is_none() {
            return Err(format!("a private Docker engine needs {program} (package {package} on Debian)"));
        }
    }
    Ok(())
}

impl DockerEngine {
    pub(crate) fn start(dir: &Path, runner: &Namespace, ipv6: bool) -> Result<DockerEngine> {
        let containerd_config = dir.join("containerd.toml");
        std::fs::write(&containerd_config, "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n")?;
        for folder in [dir.join(DATA), dir.join(CONTAINERD)] {
            std::fs::create_dir(&folder)?;
            // Both wait for the disk at every step of a container's life. Where there is no tmpfs they do, and all is as well.
            let _ = mount(Some("tmpfs"), &folder, Some("tmpfs"), MsFlags::empty(), Some("mode=711"));
        }
        // An empty configuration, so that the machine's own is not read.
        std::fs::write(dir.join("daemon.json"), "{}")?;
        let mut command = with_log(runner.command("containerd"), &dir.join("containerd.log"))?;
        command.arg("--config").arg(&containerd_config);
        command.arg("--root").arg(dir.join(CONTAINERD)).arg("--state").arg(dir.join("containerd-run"));
        command.arg("--address").arg(dir.join("containerd.sock"));
        let mut containerd = children::spawn(command).context("start containerd")?;
        let dockerd = match start_dockerd(dir, runner, ipv6, &mut containerd) {
            Ok(dockerd) => dockerd,
            Err(error) => {
                children::stop(&mut containerd, Signal::SIGTERM, STOP);
                return Err(error);
            }
        };
        let processes = Mutex::new(Processes { containerd, dockerd });
        let engine = DockerEngine { dir: dir.to_owned(), processes, userland: Mutex::default() };
        engine.import(image::NAME, &image::archive()?)?;
        Ok(engine)
    }

    /// The lab's folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// `unix://…`
    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.dir.join("docker.sock").display())
    }

    /// The `docker` command speaking to this engine only.
    pub(crate) fn docker(&self) -> Command {
        let mut command = children::command("docker");
        command.env("DOCKER_HOST", self.url()).env("DOCKER_CONFIG", self.dir.join("docker-config"));
        command.env("PATH", path()).stdin(Stdio::null());
        command
    }

    /// Kills dockerd, so that nobody hears of what becomes of its containers, and starts it again: then it ends them.
    pub(crate) fn restart(&self, runner: &Namespace, ipv6: bool) -> Result<()> {
        let mut processes = self.processes.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Processes { containerd, dockerd } = &mut *processes;
        children::stop(dockerd, Signal::SIGKILL, STOP);
        *dockerd = start_dockerd(&self.dir, runner, ipv6, containerd)?;
        Ok(())
    }

    fn import(&self, name: &str, archive: &[u8]) -> Result<()> {
        let file = self.dir.join("image.tar");
        std::fs::write(&file, archive)?;
        let mut command = self.docker();
        command.args(["import", "--change", "ENV PATH=/bin"]).arg(&file).arg(name);
        children::output(command)?;
        std::fs::remove_file(file)?;
        Ok(())
    }

    /// Imports the image for the machine's own programs when it is first wanted.
    pub(crate) fn import_userland(&self) -> Result<()> {
        let mut imported = self.userland.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !*imported {
            real::check_userland()?;
            self.import(image::USERLAND, &image::userland_archive()?)?;
            *imported = true;
        }
        Ok(())
    }
}

impl Drop for DockerEngine {
    fn drop(&mut self) {
        let mut list = self.docker();
        list.args(["ps", "--all", "--quiet"]);
        let left = children::output(list).unwrap_or_default();
        if !left.trim().is_empty() {
            let mut remove = self.docker();
            remove.args(["rm", "--force", "--volumes"]).args(left.split_whitespace());
            let _ = children::output(remove);
        }
        let processes = self.processes.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        children::stop(&mut processes.dockerd, Signal::SIGTERM, STOP);
        children::stop(&mut processes.containerd, Signal::SIGTERM, STOP);
    }
}

fn start_dockerd(dir: &Path, runner: &Namespace, ipv6: bool, containerd: &mut Child) -> Result<Child> {
    wait_for(dir, "containerd", containerd, || UnixStream::connect(dir.join("containerd.sock")).is_ok())?;
    // SIGTERM on our death: dockerd then puts its containers away.
    let command = children::command_dying_by("dockerd", Signal::SIGTERM);
    let mut command = with_log(runner.entering(command), &dir.join("dockerd.log"))?;
    command.arg("--config-file").arg(dir.join("daemon.json")).arg("--containerd").arg(dir.join("containerd.sock"));
    command.arg("--data-root").arg(dir.join(DATA)).arg("--exec-root").arg(dir.join("exec"));
    command.arg("--pidfile").arg(dir.join("docker.pid")).arg("--host");
    command.arg(format!("unix://{}", dir.join("docker.sock").display()));
    if ipv6 {
        // ip6tables was experimental before Docker 27.
        command.args(["--ipv6", "--fixed-cidr-v6", "fd00:d0c::/64", "--ip6tables", "--experimental"]);
    }
    let mut dockerd = children::spawn(command).context("start dockerd")?;
    if let Err(error) = wait_for(dir, "dockerd", &mut dockerd, || answers_ping(&dir.join("docker.sock"))) {
        children::stop(&mut dockerd, Signal::SIGTERM, STOP);
        return Err(error);
    }
    Ok(dockerd)
}

fn wait_for(dir: &Path, name: &str, child: &mut Child, ready: impl Fn() -> bool) -> Result<()> {
    let up = wait_until(&format!("{name} to answer"), START, || match child.try_wait() {
        Ok(None) => ready().then_some(None),
        ended => Some(ended.ok().flatten()),
    });
    let log = std::fs::read_to_string(dir.join(format!("{name}.log"))).unwrap_or_default();
    let tail: Vec<_> = log.lines().rev().take(5).collect();
    let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
    match up.with_context(|| format!("last words of {name}:\n{tail}"))? {
        None => Ok(()),
        Some(status) => bail!("{name} ended at once ({status}); its last words:\n{tail}"),
    }
}

fn with_log(mut command: Command, log: &Path) -> Result<Command> {
    let log = File::create(log).with_context(|| format!("create {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).env("PATH", path());
    Ok(command)
}

/// dockerd looks for containerd-shim, runc and iptables in PATH; a user's may lack the sbin folders.
fn path() -> String {
    format!("{}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin", std::env::var("PATH").unwrap_or_default())
}

fn answers_ping(socket: &Path) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.split(' ').nth(1) == Some("200"))
}
