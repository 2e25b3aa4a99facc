//! What stands in for a container where there is no engine?
//!
//! A namespace on a bridge made by hand, masqueraded, with the program running in it: the packets cannot tell. There is no
//! image, no cgroup and nobody who knows its name.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::children;
use crate::docker::next;
use crate::image;
use crate::netns::Namespace;
use crate::real;
use crate::spec::{ContainerSpec, NetworkSpec, Ran};

/// A bridge with its addresses; dropping it removes it.
pub(crate) struct PlainNetwork {
    runner: Namespace,
    pub(crate) bridge: String,
    /// 17 for docker0's 172.17.0.0/16 and fd00:d0c::/64, 18 and up for the others.
    number: u32,
    ipv6: bool,
    given: Mutex<u32>,
}

impl PlainNetwork {
    pub(crate) fn docker0(runner: &Namespace, ipv6: bool) -> Result<PlainNetwork> {
        PlainNetwork::make(runner, "docker0".into(), 17, ipv6, true)
    }

    pub(crate) fn create(runner: &Namespace, spec: &NetworkSpec) -> Result<PlainNetwork> {
        if !spec.extra.is_empty() {
            bail!("network {}: there is no engine to take the options {:?}", spec.name, spec.extra);
        }
        let number = next();
        PlainNetwork::make(runner, format!("br-{number:012x}"), 17 + number % 200, spec.ipv6, !spec.unmasqueraded)
    }

    fn make(runner: &Namespace, bridge: String, number: u32, ipv6: bool, masqueraded: bool) -> Result<PlainNetwork> {
        let network = PlainNetwork { runner: runner.clone(), bridge, number, ipv6, given: Mutex::new(1) };
        let bridge = &network.bridge;
        runner.ip(&format!("link add {bridge} type bridge"))?;
        runner.ip(&format!("addr add {}/16 dev {bridge}", network.address(1)))?;
        if ipv6 {
            runner.ip(&format!("addr add {}/64 dev {bridge} nodad", network.address6(1)))?;
        }
        runner.ip(&format!("link set {bridge} up"))?;
        if masqueraded {
            network.masquerade("-A")?;
        }
        Ok(network)
    }

    fn masquerade(&self, action: &str) -> Result<()> {
        let (number, bridge) = (self.number, &self.bridge);
        let rule = |subnet: String| {
            ["-w", "-t", "nat", action, "POSTROUTING", "-s"]
                .map(str::to_owned)
                .into_iter()
                .chain([subnet, "!".into(), "-o".into(), bridge.clone(), "-j".into(), "MASQUERADE".into()])
                .collect::<Vec<_>>()
        };
        let mut families = vec![("iptables", rule(format!("172.{number}.0.0/16")))];
        if self.ipv6 {
            families.push(("ip6tables", rule(format!("{}/64", self.address6(0)))));
        }
        for (program, words) in families {
            self.runner.run(program, &words.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    fn address(&self, host: u32) -> Ipv4Addr {
        Ipv4Addr::new(172, self.number as u8, (host >> 8) as u8, host as u8)
    }

    fn address6(&self, host: u32) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0xd0c, self.number as u16 - 17, 0, 0, 0, 0, host as u16)
    }
}

impl Drop for PlainNetwork {
    fn drop(&mut self) {
        let _ = self.masquerade("-D");
        let _ = self.runner.ip(&format!("link del {}", self.bridge));
    }
}

/// A process in a namespace of its own; dropping it ends both.
pub(crate) struct PlainContainer {
    pub(crate) namespace: Namespace,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) address6: Option<Ipv6Addr>,
    child: Mutex<Child>,
    output: PathBuf,
    /// The end of its cable in the runner namespace.
    cable: Option<(Namespace, String)>,
}

/// Where a container's process is to stand.
pub(crate) enum Place<'a> {
    Host(&'a Namespace),
    Alone,
    On(Arc<PlainNetwork>),
}

impl PlainContainer {
    pub(crate) fn run(
        dir: &Path,
        lab: &str,
        place: Place<'_>,
        spec: &ContainerSpec,
        go: &Path,
    ) -> Result<PlainContainer> {
        let ContainerSpec {
            name,
            network: _,
            args,
            labels: _,
            env,
            foreground,
            remove: _,
            userland,
            wait_for_go,
            extra,
        } = spec;
        if !extra.is_empty() {
            bail!("container {name}: there is no engine to take the options {extra:?}");
        }
        let (mut address, mut address6, mut cable) = (None, None, None);
        let namespace = match place {
            Place::Host(runner) => runner.clone(),
            Place::Alone => Namespace::create(&format!("{lab}-c-{name}"))?,
            Place::On(network) => {
                let namespace = Namespace::create(&format!("{lab}-c-{name}"))?;
                let mut given = network.given.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                *given += 1;
                let (own, own6) = (network.address(*given), network.address6(*given));
                let (runner, link) = (&network.runner, format!("veth{:07x}", next()));
                runner.ip(&format!("link add {link} type veth peer name eth0 netns {}", namespace.name()))?;
                cable = Some((runner.clone(), link.clone()));
                runner.ip(&format!("link set {link} master {} up", network.bridge))?;
                namespace.ip(&format!("addr add {own}/16 dev eth0"))?;
                namespace.ip("link set eth0 up")?;
                namespace.ip(&format!("route add default via {}", network.address(1)))?;
                address = Some(own);
                if network.ipv6 {
                    namespace.ip(&format!("addr add {own6}/64 dev eth0 nodad"))?;
                    namespace.ip(&format!("-6 route add default via {}", network.address6(1)))?;
                    address6 = Some(own6);
                }
                namespace
            }
        };
        let output = dir.join(format!("{name}.out"));
        let mut command = if *userland { on_the_machine(&namespace, args)? } else { in_image(&namespace, args)? };
        if *wait_for_go {
            command.arg("--wait-file").arg(go);
        }
        command.envs(env.iter().cloned()).stdin(Stdio::null()).stdout(File::create(&output)?);
        let child = Mutex::new(children::spawn(command).with_context(|| format!("start container {name}"))?);
        let container = PlainContainer { namespace, address, address6, child, output, cable };
        if *foreground {
            container.wait(Duration::from_secs(600))?;
        }
        Ok(container)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).id()
    }

    pub(crate) fn exec(&self, args: &[&str]) -> Result<Ran> {
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        crate::docker::run(in_image(&self.namespace, &args)?)
    }

    pub(crate) fn wait(&self, deadline: Duration) -> Result<i32> {
        use std::os::unix::process::ExitStatusExt;
        let mut child = self.child.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match children::wait(&mut child, deadline) {
            Some(status) => Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))),
            None => bail!("still runs after {:.1} s", deadline.as_secs_f64()),
        }
    }

    pub(crate) fn logs(&self) -> Result<String> {
        std::fs::read_to_string(&self.output).with_context(|| format!("read {}", self.output.display()))
    }
}

impl Drop for PlainContainer {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        children::stop(child, Signal::SIGKILL, Duration::from_secs(5));
        if let Some((runner, link)) = &self.cable {
            let _ = runner.ip(&format!("link del {link}"));
        }
    }
}

/// A command of the machine itself.
fn on_the_machine(namespace: &Namespace, args: &[String]) -> Result<Command> {
    real::check_userland()?;
    let Some((program, rest)) = args.split_first() else { bail!("a container needs a program to run") };
    let mut command = match program.as_str() {
        real::SDK_CLIENT => namespace.command(image::beside("sdk-client", "IMDS_LAB_SDK_CLIENT")?),
        other => namespace.command(other),
    };
    command.args(rest);
    Ok(command)
}

/// A command that means here what it would mean in the image.
fn in_image(namespace: &Namespace, args: &[String]) -> Result<Command> {
    let Some((program, rest)) = args.split_first() else { bail!("a container needs a program to run") };
    let mut command = match program.as_str() {
        "imds-client" => namespace.command(image::beside("imds-client", "IMDS_LAB_CLIENT")?),
        "busybox" => namespace.command("busybox"),
        applet => {
            let mut busybox = namespace.command("busybox");
            busybox.arg(applet);
            busybox
        }
    };
    command.args(rest);
    Ok(command)
}
