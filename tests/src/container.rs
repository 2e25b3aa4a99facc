//! What is a container to a test, whether an engine made it or a few `ip` commands did?

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::docker::{DockerContainer, DockerNetwork};
use crate::netns::Namespace;
use crate::plain::{PlainContainer, PlainNetwork};

/// What to run, and where. `ContainerSpec::new("job-17", &["imds-client", "v2"])` and then the fields that differ.
#[derive(Clone, Debug, Default)]
pub struct ContainerSpec {
    /// Its name. Unique among the host's containers.
    pub name: String,
    /// `None` is docker0; else the name of a network, or `host`, `none`, or (with an engine) `container:NAME`.
    pub network: Option<String>,
    /// Program and arguments. The image has `imds-client` and busybox (`sh`, `cat`, `nc`, `sleep`, ...).
    pub args: Vec<String>,
    /// Labels; without an engine there are none.
    pub labels: Vec<(String, String)>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Wait for it to end before `run` returns.
    pub foreground: bool,
    /// The engine forgets it as soon as it ends (`--rm`).
    pub remove: bool,
    /// The machine's own programs, read-only, in place of the image's: see [`real`](crate::real).
    pub userland: bool,
    /// Append `--wait-file FILE` to the arguments, so that the program begins only at [`Container::go`]: `imds-client` does,
    /// and those of [`real`](crate::real).
    pub wait_for_go: bool,
    /// More options for `docker run`; without an engine they are an error.
    pub extra: Vec<String>,
}

impl ContainerSpec {
    /// A detached container on docker0.
    pub fn new(name: &str, args: &[&str]) -> ContainerSpec {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        ContainerSpec { name: name.to_owned(), args, ..ContainerSpec::default() }
    }

    /// On this network: `host`, `none`, or a name.
    pub fn network(mut self, network: &str) -> ContainerSpec {
        self.network = Some(network.to_owned());
        self
    }

    /// With one more label.
    pub fn label(mut self, key: &str, value: &str) -> ContainerSpec {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Waits for it to end.
    pub fn foreground(mut self) -> ContainerSpec {
        self.foreground = true;
        self
    }

    /// Begins only at [`Container::go`].
    pub fn wait_for_go(mut self) -> ContainerSpec {
        self.wait_for_go = true;
        self
    }
}

/// What a program said and how it ended; `code` is `None` when a signal ended it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Exit code.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// What an `imds-client` reported: one object per attempt.
    pub fn attempts(&self) -> Vec<Value> {
        attempts(&self.stdout)
    }
}

fn attempts(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// A container; dropping it removes it.
pub struct Container {
    pub(crate) name: String,
    pub(crate) go: Option<PathBuf>,
    pub(crate) backend: Backend,
}

pub(crate) enum Backend {
    Docker(DockerContainer),
    Plain(PlainContainer),
}

impl Container {
    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// 64 hex digits; without an engine the name.
    pub fn id(&self) -> &str {
        match &self.backend {
            Backend::Docker(docker) => &docker.id,
            Backend::Plain(_) => &self.name,
        }
    }

    /// The pid of its first process as the host sees it. An error when it has ended.
    pub fn pid(&self) -> Result<u32> {
        match &self.backend {
            Backend::Docker(docker) => docker.pid(),
            Backend::Plain(plain) => Ok(plain.pid()),
        }
    }

    /// The inode number of its network namespace. An error when it has ended.
    pub fn netns_inum(&self) -> Result<u64> {
        Ok(self.namespace()?.inum())
    }

    /// Its network namespace, to run something else inside.
    pub fn namespace(&self) -> Result<Namespace> {
        match &self.backend {
            Backend::Docker(docker) => Namespace::of_process(docker.pid()?),
            Backend::Plain(plain) => Ok(plain.namespace.clone()),
        }
    }

    /// Its IPv4 address; `None` on `host` and `none`. For a foreground container, too late to ask.
    pub fn address(&self) -> Option<Ipv4Addr> {
        match &self.backend {
            Backend::Docker(docker) => docker.address,
            Backend::Plain(plain) => plain.address,
        }
    }

    /// Its IPv6 address, where its network has IPv6.
    pub fn address6(&self) -> Option<Ipv6Addr> {
        match &self.backend {
            Backend::Docker(docker) => docker.address6,
            Backend::Plain(plain) => plain.address6,
        }
    }

    /// Runs one more program in it, to its end.
    pub fn exec(&self, args: &[&str]) -> Result<Ran> {
        match &self.backend {
            Backend::Docker(docker) => docker.exec(args),
            Backend::Plain(plain) => plain.exec(args),
        }
    }

    /// Runs one more `imds-client` in it with these words, e.g. `fallback --timeout-ms 300`, to its end; what it reported.
    pub fn asks(&self, words: &str) -> Result<Vec<Value>> {
        let args: Vec<_> = std::iter::once("imds-client").chain(words.split_whitespace()).collect();
        Ok(self.exec(&args)?.attempts())
    }

    /// Lets an `imds-client` started with `wait_for_go` begin.
    pub fn go(&self) -> Result<()> {
        let Some(file) = &self.go else { bail!("container {} was not told to wait", self.name) };
        // A container's root is reached through its process, which is quicker than `docker exec`.
        let path = match &self.backend {
            Backend::Docker(docker) => PathBuf::from(format!("/proc/{}/root{}", docker.pid()?, file.display())),
            Backend::Plain(_) => file.clone(),
        };
        std::fs::write(&path, "go").with_context(|| format!("let container {} go", self.name))
    }

    /// Waits for it to end and returns its exit code (128 + n after signal n).
    pub fn wait(&self, deadline: Duration) -> Result<i32> {
        match &self.backend {
            Backend::Docker(docker) => docker.wait(deadline),
            Backend::Plain(plain) => plain.wait(deadline),
        }
        .with_context(|| format!("wait for container {}", self.name))
    }

    /// Its standard output so far.
    pub fn logs(&self) -> Result<String> {
        match &self.backend {
            Backend::Docker(docker) => docker.logs(),
            Backend::Plain(plain) => plain.logs(),
        }
    }

    /// What its `imds-client` reported so far: one object per attempt.
    pub fn attempts(&self) -> Result<Vec<Value>> {
        Ok(attempts(&self.logs()?))
    }
}

/// A network to make.
#[derive(Clone, Debug, Default)]
pub struct NetworkSpec {
    /// Its name; containers name it in [`ContainerSpec::network`].
    pub name: String,
    /// Give it IPv6 too.
    pub ipv6: bool,
    /// Leave its containers' addresses as they are on packets that leave the host.
    pub unmasqueraded: bool,
    /// More options for `docker network create`; without an engine they are an error.
    pub extra: Vec<String>,
}

impl NetworkSpec {
    /// A bridge network with masquerading.
    pub fn new(name: &str) -> NetworkSpec {
        NetworkSpec { name: name.to_owned(), ..NetworkSpec::default() }
    }

    /// Without masquerading.
    pub fn unmasqueraded(mut self) -> NetworkSpec {
        self.unmasqueraded = true;
        self
    }
}

/// A network with a bridge of its own; dropping it removes it (its containers must be gone by then).
pub struct Network {
    pub(crate) name: String,
    pub(crate) bridge: String,
    pub(crate) _backend: NetworkBackend,
}

pub(crate) enum NetworkBackend {
    Docker(#[expect(dead_code, reason = "held to be dropped")] DockerNetwork),
    Plain(#[expect(dead_code, reason = "held to be dropped")] Arc<PlainNetwork>),
}

impl Network {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its bridge in the runner namespace, `br-<12 hex digits>`.
    pub fn bridge(&self) -> &str {
        &self.bridge
    }
}
