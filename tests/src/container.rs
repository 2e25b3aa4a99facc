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
use crate::spec::{Ran, attempts};

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
