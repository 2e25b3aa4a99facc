//! Which name, image and pod did its runtime give a container? Told by the runtime's own files, read when the container connects.
//!
//! The cgroup path gives runtime and id; the id a file: the OCI bundle of containerd and CRI-O, the storage list of podman, the
//! description of Docker. That takes neither a socket nor an engine that answers in time, so a container that lives 5 ms has its name.
//!
//! Refuses: what lies in a user's folders about containers of others; a pod's name from a runtime that Kubernetes does not drive;
//! whatever is no regular file, too large, or not owned by whoever runs the runtime. Of a file only what is named here is kept: a
//! container's variables and arguments are passed over, and the text is wiped.
//!
//! Cannot know: runtimes whose folders an administrator moved, but for Docker's `data-root`; containers inside containers.

mod read;
mod said;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use diagnosis::identity::cgroup::{self, Cgroup, Runtime};
use diagnosis::identity::fact::ContainerDetail;
use diagnosis::identity::pod::Pod;
use diagnosis::net::Timestamp;
use read::Root;

/// Where containerd keeps bundles, as `NAMESPACE/ID/config.json`: its own, that of k3s and RKE2, that of MicroK8s.
const CONTAINERD: [&str; 3] = [
    "run/containerd/io.containerd.runtime.v2.task",
    "run/k3s/containerd/io.containerd.runtime.v2.task",
    "var/snap/microk8s/common/run/containerd/io.containerd.runtime.v2.task",
];
/// The namespace of containerd that only the kubelet's side uses.
const KUBERNETES: &str = "k8s.io";
/// Namespaces of containerd looked into at most.
const MAX_NAMESPACES: usize = 32;
/// Where CRI-O and podman keep what belongs to a container while it runs, and for good.
const STORAGE: [&str; 2] = ["var/lib/containers/storage", "run/containers/storage"];
/// Storage drivers, which name the folders.
const DRIVERS: [&str; 3] = ["overlay", "vfs", "btrfs"];
/// Lists of a storage: of containers that stay, and of those that go with the machine.
const LISTS: [&str; 2] = ["containers.json", "volatile-containers.json"];
/// Where users keep what they run without root: podman's containers, and Docker's.
const OF_USER: [&str; 2] = [".local/share/containers/storage", ".local/share/docker"];
/// Where Docker keeps its data, from the distribution and from a snap.
const DOCKER: [&str; 2] = ["var/lib/docker", "var/snap/docker/common/var-lib-docker"];
/// The configuration that may say otherwise.
const DOCKER_CONFIG: &str = "etc/docker/daemon.json";
/// Where the hierarchies of cgroups are, that of version 2 or several.
const CGROUPS: &str = "sys/fs/cgroup";
const MAX_HIERARCHIES: usize = 32;
/// Bytes of a container's file at most: variables and mounts of a large pod have some hundred kilobytes.
const MAX_FILE: u64 = 1 << 20;
/// Bytes of a storage's list, some 600 for a container.
const MAX_LIST: u64 = 8 << 20;
/// Containers remembered at most, so that each is read once.
const MAX_KNOWN: usize = 8_192;
/// A container of which no file was found is looked for again after this time, and so often: its engine may write it late.
const AGAIN: Duration = Duration::from_secs(1);
const MAX_TRIES: u8 = 5;

/// Reads the files of all runtimes below one root.
#[derive(Debug)]
pub struct Runtimes {
    root: Root,
    docker: Vec<PathBuf>,
    /// By id, and by the user who made the cgroup.
    known: HashMap<(String, u32), Known>,
}

/// A container that was seen.
#[derive(Clone, Debug)]
struct Known {
    /// Its own cgroup, which goes with it; `None` where its path was told from another cgroup on.
    own: Option<PathBuf>,
    told: bool,
    /// When it was looked for last, and how often.
    last: Timestamp,
    tries: u8,
}

/// Whose folders to look into: those of root, or those of a user who runs an engine without root.
struct Owner {
    uid: u32,
    home: Option<PathBuf>,
}

impl Runtimes {
    /// Of the host whose root directory is there.
    pub fn of_host(root: &Path) -> Self {
        let root = Root::open(root);
        let moved = root.read(Path::new(DOCKER_CONFIG), MAX_FILE, 0).and_then(|text| said::data_root(&text));
        let docker = moved.into_iter().chain(DOCKER.map(PathBuf::from)).collect();
        Self { root, docker, known: HashMap::new() }
    }

    /// What is said of the container that this cgroup path names, once; `None` if it was said before, or nothing is known.
    pub fn introduce(&mut self, at: Timestamp, path: &str) -> Option<ContainerDetail> {
        let within = cgroup::read_path(path)?;
        let key = (within.outer.id.clone(), within.user);
        let tries = match self.known.get(&key) {
            Some(known) if known.told || at.since(known.last) < AGAIN || known.tries >= MAX_TRIES => return None,
            Some(known) => known.tries,
            None => 0,
        };
        let told = self.describe(&within);
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        let own = own_cgroup(path, &within.outer.id);
        let known = Known { own, told: told.is_some(), last: at, tries: tries + 1 };
        self.known.insert(key, known);
        told
    }

    /// The ids of those that were seen and have no cgroup any more, and the users who made them: they have ended, and the numbers of their namespaces are given to
    /// others. None where the host's cgroups are not to be seen.
    pub fn departed(&mut self) -> Vec<(String, u32)> {
        let mut roots = vec![PathBuf::from(CGROUPS)];
        let hierarchies = self.root.folders(Path::new(CGROUPS), MAX_HIERARCHIES);
        roots.extend(hierarchies.iter().map(|hierarchy| Path::new(CGROUPS).join(hierarchy)));
        let root = &self.root;
        let is_there = |own: &Path| roots.iter().any(|root_of| root.has(&root_of.join(own)));
        let mut departed = Vec::new();
        if hierarchies.is_empty() {
            return departed;
        }
        self.known.retain(|key, known| {
            let stays = known.own.as_deref().is_none_or(is_there);
            if !stays {
                departed.push(key.clone());
            }
            stays
        });
        departed
    }

    /// What its runtime's files say of a container that a cgroup path names.
    pub fn describe(&self, within: &Cgroup) -> Option<ContainerDetail> {
        let owner = match within.user {
            0 => Owner { uid: 0, home: None },
            uid => Owner { uid, home: self.home_of(uid) },
        };
        let id = within.outer.id.as_str();
        // Ids that are none could lead elsewhere.
        if id.len() != 64 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let detail = match within.outer.runtime {
            Some(Runtime::Docker) => self.docker(&owner, id),
            Some(Runtime::Podman) => self.podman(&owner, id),
            Some(Runtime::Containerd) if owner.uid == 0 => self.containerd(id),
            Some(Runtime::CriO) if owner.uid == 0 => self.cri_o(id),
            // A path that does not tell: the id is random, so whoever has it is meant.
            None if owner.uid == 0 => {
                self.containerd(id).or_else(|| self.cri_o(id)).or_else(|| self.docker(&owner, id))
            }
            _ => None,
        };
        detail.map(|detail| ContainerDetail { id: id.to_owned(), user: Some(owner.uid), ..detail })
    }

    /// What a process's network is called, by its `/proc/PID/cgroup`: the pod, or else the container.
    pub fn network_of(&self, cgroups: &str) -> Option<String> {
        let paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        let within = paths.filter_map(cgroup::read_path).next()?;
        let said = self.describe(&within).filter(|_| within.inner.is_none())?;
        match said.pod {
            Some(Pod { name: Some(pod), namespace: Some(namespace), .. }) => {
                Some(format!("pod {pod} (namespace {namespace})"))
            }
            Some(Pod { name: Some(pod), .. }) => Some(format!("pod {pod}")),
            _ => said.name,
        }
    }

    fn containerd(&self, id: &str) -> Option<ContainerDetail> {
        CONTAINERD.iter().map(Path::new).find_map(|tasks| {
            let namespaces = self.root.folders(tasks, MAX_NAMESPACES);
            namespaces.into_iter().find_map(|namespace| {
                let text = self.root.read(&tasks.join(&namespace).join(id).join("config.json"), MAX_FILE, 0)?;
                match namespace.to_str() {
                    Some(KUBERNETES) => said::cri_containerd(&text),
                    // What Docker has there names nothing.
                    Some("moby") => None,
                    _ => said::nerdctl(&text),
                }
            })
        })
    }

    fn cri_o(&self, id: &str) -> Option<ContainerDetail> {
        let bundle = |id: &str| {
            STORAGE.iter().flat_map(|storage| DRIVERS.map(|driver| (storage, driver))).find_map(|(storage, driver)| {
                let path = format!("{storage}/{driver}-containers/{id}/userdata/config.json");
                self.root.read(Path::new(&path), MAX_FILE, 0)
            })
        };
        let (mut detail, sandbox) = said::cri_o(&bundle(id)?)?;
        // Labels and annotations of the pod stand with its sandbox.
        if let Some(labels) =
            sandbox.filter(|sandbox| sandbox != id).and_then(|sandbox| said::cri_o_labels(&bundle(&sandbox)?))
        {
            detail.labels = labels;
        }
        Some(detail)
    }

    fn podman(&self, owner: &Owner, id: &str) -> Option<ContainerDetail> {
        let storages = match &owner.home {
            Some(home) => vec![home.join(OF_USER[0])],
            None if owner.uid == 0 => STORAGE.iter().map(PathBuf::from).collect(),
            None => Vec::new(),
        };
        storages.iter().flat_map(|storage| DRIVERS.map(|driver| (storage, driver))).find_map(|(storage, driver)| {
            let folder = storage.join(format!("{driver}-containers"));
            LISTS.iter().find_map(|list| said::podman(&self.root.read(&folder.join(list), MAX_LIST, owner.uid)?, id))
        })
    }

    fn docker(&self, owner: &Owner, id: &str) -> Option<ContainerDetail> {
        let of_user = owner.home.as_ref().map(|home| home.join(OF_USER[1]));
        let roots = if owner.uid == 0 { self.docker.clone() } else { of_user.into_iter().collect() };
        roots.iter().find_map(|root| {
            let path = root.join("containers").join(id).join("config.v2.json");
            said::docker(&self.root.read(&path, MAX_FILE, owner.uid)?)
        })
    }

    /// The folders that are there and are to be read: those of root's runtimes, and those of users who run containers without root.
    pub fn folders(&self) -> Vec<PathBuf> {
        let users = self.root.read(Path::new("etc/passwd"), MAX_FILE, 0);
        let users = users.as_deref().and_then(|users| std::str::from_utf8(users).ok()).unwrap_or_default();
        let homes = users.lines().filter_map(|line| {
            let mut fields = line.split(':').skip(2);
            let uid: u32 = fields.next()?.parse().ok()?;
            fields.nth(2).filter(|_| uid != 0)
        });
        let of_users = homes.flat_map(|home| OF_USER.map(|folder| Path::new(home).join(folder)));
        let storages =
            STORAGE.iter().flat_map(|storage| DRIVERS.map(|driver| format!("{storage}/{driver}-containers")));
        let of_root = CONTAINERD.iter().map(PathBuf::from).chain(storages.map(PathBuf::from));
        let all = of_root.chain(self.docker.iter().map(|docker| docker.join("containers"))).chain(of_users);
        all.filter(|folder| self.root.has(folder)).map(|folder| self.root.path_of(&folder)).collect()
    }

    fn home_of(&self, uid: u32) -> Option<PathBuf> {
        let users = self.root.read(Path::new("etc/passwd"), MAX_FILE, 0)?;
        let users = std::str::from_utf8(&users).ok()?;
        users.lines().find_map(|line| {
            let mut fields = line.split(':').skip(2);
            (fields.next()?.parse() == Ok(uid)).then(|| fields.nth(2)).flatten().map(PathBuf::from)
        })
    }
}

/// The cgroup of the container itself, below the root of a hierarchy: the path up to its id. None of a path that begins in the cgroup of
/// the container that we are in.
fn own_cgroup(path: &str, id: &str) -> Option<PathBuf> {
    let mut own = PathBuf::new();
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        if segment == ".." {
            return None;
        }
        own.push(segment);
        if segment.contains(id) {
            break;
        }
    }
    Some(own)
}

#[cfg(test)]
mod tests;
