//! How do tests speak to the private engine? By its own command line client.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, atomic::AtomicU32, atomic::Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::children::{self, MARK};
use crate::engine::DockerEngine;
use crate::image;
use crate::real;
use crate::spec::{ContainerSpec, NetworkSpec, Ran};

/// Where a container looks for the file that lets it begin.
pub(crate) const GO: &str = "/go";

pub(crate) struct DockerContainer {
    engine: Arc<DockerEngine>,
    pub(crate) id: String,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) address6: Option<Ipv6Addr>,
    /// Its first process when it was started.
    first: Option<u32>,
    ended: Option<Ran>,
}

impl DockerContainer {
    pub(crate) fn run(engine: &Arc<DockerEngine>, spec: &ContainerSpec) -> Result<DockerContainer> {
        let ContainerSpec { name, network, args, labels, env, foreground, remove, userland, wait_for_go, extra } = spec;
        let mut command = engine.docker();
        // The client as the container's first process would ignore SIGTERM, and stopping would take ten seconds.
        command.args(["run", "--stop-signal", "SIGKILL", "--name", name]);
        command.arg("--env").arg(format!("{MARK}={}", std::process::id()));
        if let Some(network) = network {
            command.args(["--network", network]);
        }
        for (key, value) in labels {
            command.arg("--label").arg(format!("{key}={value}"));
        }
        for (key, value) in env {
            command.arg("--env").arg(format!("{key}={value}"));
        }
        if *remove {
            command.arg("--rm");
        }
        let cidfile = engine.dir().join(format!("cid-{}", next()));
        if *foreground {
            command.arg("--cidfile").arg(&cidfile);
        } else {
            command.arg("--detach");
        }
        command.args(extra);
        if *userland {
            engine.import_userland()?;
            for folder in real::MOUNTS.into_iter().filter(|folder| Path::new(folder).exists()) {
                command.args(["--volume", &format!("{folder}:{folder}:ro")]);
            }
            if args.first().is_some_and(|program| program == real::SDK_CLIENT) {
                let program = image::beside("sdk-client", "IMDS_LAB_SDK_CLIENT")?;
                command.args(["--volume", &format!("{}:{}:ro", program.display(), real::SDK_CLIENT)]);
            }
            command.arg(image::USERLAND);
        } else {
            command.arg(image::NAME);
        }
        command.args(args);
        if *wait_for_go {
            command.args(["--wait-file", GO]);
        }
        if *foreground {
            let ran = run(command)?;
            let id = std::fs::read_to_string(&cidfile).with_context(|| format!("docker run {name}: {}", ran.stderr));
            let _ = std::fs::remove_file(&cidfile);
            return Ok(DockerContainer {
                engine: Arc::clone(engine),
                id: id?,
                address: None,
                address6: None,
                first: None,
                ended: Some(ran),
            });
        }
        let id = children::output(command)?.trim().to_owned();
        let mut container =
            DockerContainer { engine: Arc::clone(engine), id, address: None, address6: None, first: None, ended: None };
        if let Ok(inspected) = container.inspect() {
            container.first = pid_in(&inspected);
            let networks = inspected["NetworkSettings"]["Networks"].as_object().cloned().unwrap_or_default();
            for network in networks.values() {
                container.address = network["IPAddress"].as_str().and_then(|text| text.parse().ok());
                container.address6 = network["GlobalIPv6Address"].as_str().and_then(|text| text.parse().ok());
            }
        }
        Ok(container)
    }

    fn inspect(&self) -> Result<Value> {
        let mut command = self.engine.docker();
        command.args(["container", "inspect", &self.id]);
        let all: Value = serde_json::from_str(&children::output(command)?)?;
        Ok(all[0].clone())
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        // Its cgroup bears the container's id: while that is so the process is not another one with the same number.
        let is_its = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(&self.id))
        };
        if let Some(pid) = self.first.filter(is_its) {
            return Ok(pid);
        }
        pid_in(&self.inspect()?).with_context(|| format!("container {} does not run", self.id))
    }

    pub(crate) fn exec(&self, args: &[&str]) -> Result<Ran> {
        let mut command = self.engine.docker();
        command.args(["exec", &self.id]).args(args);
        run(command)
    }

    pub(crate) fn wait(&self, deadline: Duration) -> Result<i32> {
        if let Some(Ran { code: Some(code), .. }) = self.ended {
            return Ok(code);
        }
        let mut command = self.engine.docker();
        command.args(["wait", &self.id]).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        if children::wait(&mut child, deadline).is_none() {
            let _ = child.kill();
            let _ = child.wait();
            bail!("still runs after {:.1} s", deadline.as_secs_f64());
        }
        let output = child.wait_with_output()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().context("docker wait prints an exit code")
    }

    pub(crate) fn logs(&self) -> Result<String> {
        if let Some(ran) = &self.ended {
            return Ok(ran.stdout.clone());
        }
        let mut command = self.engine.docker();
        command.args(["logs", &self.id]);
        children::output(command)
    }
}

impl Drop for DockerContainer {
    fn drop(&mut self) {
        let mut command = self.engine.docker();
        command.args(["rm", "--force", "--volumes", &self.id]);
        let _ = children::output(command);
    }
}

pub(crate) struct DockerNetwork {
    engine: Arc<DockerEngine>,
    pub(crate) id: String,
}

impl DockerNetwork {
    pub(crate) fn create(engine: &Arc<DockerEngine>, spec: &NetworkSpec) -> Result<DockerNetwork> {
        let NetworkSpec { name, ipv6, unmasqueraded, extra } = spec;
        let mut command = engine.docker();
        command.args(["network", "create"]);
        if *ipv6 {
            command.args(["--ipv6", "--subnet"]).arg(format!("fd00:d0c:{:x}::/64", next()));
        }
        if *unmasqueraded {
            command.args(["--opt", "com.docker.network.bridge.enable_ip_masquerade=false"]);
        }
        command.args(extra).arg(name);
        let id = children::output(command)?.trim().to_owned();
        Ok(DockerNetwork { engine: Arc::clone(engine), id })
    }
}

impl Drop for DockerNetwork {
    fn drop(&mut self) {
        let mut command = self.engine.docker();
        command.args(["network", "rm", &self.id]);
        let _ = children::output(command);
    }
}

/// The first process of a container that was inspected; `None` when it has ended.
fn pid_in(inspected: &Value) -> Option<u32> {
    inspected["State"]["Pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0)
}

/// Runs a command to its end, whatever its exit code.
pub(crate) fn run(mut command: Command) -> Result<Ran> {
    let shown = children::show(&command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {shown}"))?;
    Ok(Ran {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A number not given before in this process.
pub(crate) fn next() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
