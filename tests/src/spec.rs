//! What does a test ask of containers and networks, and what does it get to hear?

use serde_json::Value;

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
    /// Append `--wait-file FILE` to the arguments, so that the program begins only at [`Container::go`](crate::Container::go): `imds-client` does,
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

    /// Begins only at [`Container::go`](crate::Container::go).
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

/// What an `imds-client` reported so far: one object per attempt.
pub(crate) fn attempts(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
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
