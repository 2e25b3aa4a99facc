//! What do the engines say of their containers? Docker and podman: listed once, then followed by their events.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use bollard::Docker;
use bollard::models::{ContainerInspectResponse, EventMessage, EventMessageTypeEnum};
use bollard::query_parameters::{EventsOptions, InspectContainerOptions, ListContainersOptions};
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::labels::labels;
use super::procfs::{Found, Procfs};
use diagnosis::identity::cgroup::Runtime;
use diagnosis::identity::fact::{ContainerDetail, Said};
use diagnosis::net::bounded;
use diagnosis::printable::causes;
use diagnosis::secret;

/// Where an engine listens if nobody says otherwise.
const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
/// Where engines of root listen. A user's engine is not believed unasked: whoever listens on its socket could name the containers of
/// others. Its containers are named by their files, which are believed of that user's own cgroups only.
const OF_ROOT: [&str; 2] = ["run/docker.sock", "run/podman/podman.sock"];

/// Where the engines listen: as asked, else `$DOCKER_HOST`, else every socket of root's that is found below the host's root, else the default.
/// An empty word is none, as the docker command has it.
pub fn hosts(asked: &[String], root: &Path) -> Vec<String> {
    let mut asked: Vec<String> = asked.iter().filter(|host| !host.is_empty()).cloned().collect();
    if asked.is_empty() {
        asked.extend(std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty()));
    }
    if asked.is_empty() {
        asked = found(root);
    }
    if asked.is_empty() {
        asked.push(DEFAULT_HOST.to_owned());
    }
    asked
}

/// The sockets of engines that are there.
fn found(root: &Path) -> Vec<String> {
    let all = OF_ROOT.iter().map(|socket| root.join(socket));
    let is_roots = |path: &Path| {
        std::fs::symlink_metadata(path).is_ok_and(|about| about.file_type().is_socket() && about.uid() == 0)
    };
    let named = |path: &Path| match path.to_str() {
        // What people call it, so that it is not taken for another one.
        Some("/run/docker.sock") => DEFAULT_HOST.to_owned(),
        _ => format!("unix://{}", path.display()),
    };
    all.filter(|path| is_roots(path)).map(|path| named(&path)).collect()
}

/// An engine that went away is tried again this often.
const RETRY: Duration = Duration::from_secs(2);
/// Networks kept of one container, and bytes of each name.
const MAX_NETWORKS: usize = 32;
const MAX_NETWORK: usize = 128;

/// What the source tells the shell.
#[derive(Debug)]
pub enum News {
    /// A fact.
    Said(Box<Said>),
    /// All containers of the engine there have been told.
    Listed {
        /// Where it listens.
        host: String,
        /// Was it told that it cannot be asked?
        again: bool,
    },
    /// The engine cannot be asked; it will be tried again. Told once until it can.
    Unreachable(String),
}

/// Asks the engine at `host` for a container by name, id or the beginning of an id. An error is a sentence.
pub async fn find(host: &str, wanted: &str) -> Result<Found, String> {
    let unreachable = |error| format!("Docker engine at {host}: {}", causes(&error));
    let docker =
        Docker::connect_with_host(host).map_err(unreachable)?.negotiate_version().await.map_err(unreachable)?;
    match docker.inspect_container(wanted, None::<InspectContainerOptions>).await {
        Ok(container) => {
            let id = container.id.clone().unwrap_or_else(|| wanted.to_owned());
            let detail = ContainerDetail { user: user_of(host), ..inspected(&id, container) };
            Ok(Found { name: detail.name.clone().unwrap_or_else(|| wanted.to_owned()), pid: detail.pid, detail })
        }
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => {
            Err("no such container".to_owned())
        }
        Err(error) => Err(unreachable(error)),
    }
}

/// Follows the engine at `host` until the receiver goes away.
pub async fn follow(host: String, news: mpsc::Sender<News>) {
    let mut running = HashSet::new();
    let mut is_told = false;
    loop {
        let mut listed = false;
        let ended = session(&host, &news, &mut running, is_told, &mut listed).await;
        is_told &= !listed;
        if !is_told {
            is_told = true;
            let why = ended.err().map_or_else(|| "it ended the connection".to_owned(), |error| causes(&error));
            if news.send(News::Unreachable(format!("Docker engine at {host}: {why}"))).await.is_err() {
                return;
            }
        }
        if news.is_closed() {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// An engine, what it is, and whose.
struct Engine {
    docker: Docker,
    runtime: Runtime,
    user: Option<u32>,
}

/// Whose engine listens there: the owner of its socket. `None` where that is not a file.
fn user_of(host: &str) -> Option<u32> {
    std::fs::metadata(host.strip_prefix("unix://")?).ok().map(|socket| socket.uid())
}

/// Follows the engine as long as it is there. `running`: its containers, as told so far; those that ended while it was away have
/// ended when it is back. `again`: was it told that it cannot be asked? `listed`: has it answered?
async fn session(
    host: &str,
    news: &mpsc::Sender<News>,
    running: &mut HashSet<String>,
    again: bool,
    listed: &mut bool,
) -> Result<(), bollard::errors::Error> {
    let docker = Docker::connect_with_host(host)?.negotiate_version().await?;
    // podman answers the same questions, and names itself among its components.
    let components = docker.version().await?.components.unwrap_or_default();
    let is_podman = components.iter().any(|component| component.name.contains("Podman"));
    let engine =
        Engine { docker, runtime: if is_podman { Runtime::Podman } else { Runtime::Docker }, user: user_of(host) };
    let docker = &engine.docker;
    let filters = HashMap::from([("type".to_owned(), vec!["container".to_owned(), "network".to_owned()])]);
    // Events first, or a container that starts during the listing would be missed.
    let mut events =
        std::pin::pin!(docker.events(Some(EventsOptions { filters: Some(filters), ..Default::default() })));
    let there = docker.list_containers(None::<ListContainersOptions>).await?;
    let there: HashSet<String> = there.into_iter().filter_map(|container| container.id).collect();
    for id in running.difference(&there) {
        if news.send(News::Said(Box::new(Said::ContainerGone { id: id.clone(), user: engine.user }))).await.is_err() {
            return Ok(());
        }
    }
    *running = there;
    *listed = true;
    for id in running.iter() {
        inspect(&engine, id, news).await;
    }
    if news.send(News::Listed { host: host.to_owned(), again }).await.is_err() {
        return Ok(());
    }
    while let Some(event) = events.next().await {
        if !handle(&engine, event?, news, running).await {
            return Ok(());
        }
    }
    Ok(())
}

/// Says what an event means; `false` if nobody listens any more.
async fn handle(
    engine: &Engine,
    event: EventMessage,
    news: &mpsc::Sender<News>,
    running: &mut HashSet<String>,
) -> bool {
    let Some(actor) = event.actor else { return true };
    let attributes = actor.attributes.unwrap_or_default();
    let action = event.action.unwrap_or_default();
    match (event.typ, action.as_str()) {
        (Some(EventMessageTypeEnum::CONTAINER), "create" | "start" | "rename") => {
            let Some(id) = actor.id else { return true };
            // The event itself introduces the container: one that lives 300 ms may be gone before it can be inspected.
            if news.send(News::Said(Box::new(Said::Container(introduced(engine, &id, attributes))))).await.is_err() {
                return false;
            }
            if action == "start" {
                running.insert(id.clone());
                inspect(engine, &id, news).await;
            }
            true
        }
        (Some(EventMessageTypeEnum::CONTAINER), "die" | "destroy") => match actor.id {
            Some(id) => {
                running.remove(&id);
                news.send(News::Said(Box::new(Said::ContainerGone { id, user: engine.user }))).await.is_ok()
            }
            None => true,
        },
        (Some(EventMessageTypeEnum::NETWORK), "connect") => {
            if let Some(id) = attributes.get("container") {
                inspect(engine, id, news).await;
            }
            true
        }
        _ => !news.is_closed(),
    }
}

/// An event's attributes are the container's labels, and its name and image among them.
fn introduced(engine: &Engine, id: &str, mut attributes: HashMap<String, String>) -> ContainerDetail {
    let name = attributes.remove("name").map(|name| secret::mask_name(&name));
    let image = attributes.remove("image").map(|image| secret::mask(&image));
    for own in ["exitCode", "execDuration", "signal", "oldName"] {
        attributes.remove(own);
    }
    ContainerDetail {
        id: id.to_owned(),
        name,
        image,
        labels: labels(attributes),
        runtime: Some(engine.runtime),
        user: engine.user,
        ..ContainerDetail::default()
    }
}

async fn inspect(engine: &Engine, id: &str, news: &mpsc::Sender<News>) {
    // Gone since: its event said what there is to say.
    let Ok(container) = engine.docker.inspect_container(id, None::<InspectContainerOptions>).await else { return };
    let detail = ContainerDetail { runtime: Some(engine.runtime), user: engine.user, ..inspected(id, container) };
    let _ = news.send(News::Said(Box::new(Said::Container(detail)))).await;
}

/// The same from the engine's JSON; `None` if it is none.
pub fn read_inspected(id: &str, json: &[u8]) -> Option<ContainerDetail> {
    serde_json::from_slice(json).ok().map(|container| inspected(id, container))
}

fn inspected(id: &str, container: ContainerInspectResponse) -> ContainerDetail {
    let pid =
        container.state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
    let config = container.config.unwrap_or_default();
    let networks = container.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let mut names: Vec<_> = networks.keys().map(|name| bounded(&secret::mask(name), MAX_NETWORK).to_owned()).collect();
    names.sort();
    names.truncate(MAX_NETWORKS);
    let mut networks: Vec<_> = networks.into_iter().collect();
    networks.sort_by(|(one, _), (other, _)| one.cmp(other));
    let addresses = networks
        .into_iter()
        .flat_map(|(_, network)| [network.ip_address, network.global_ipv6_address])
        .flatten()
        .filter_map(|address| address.parse().ok())
        .collect();
    ContainerDetail {
        id: id.to_owned(),
        name: container.name.map(|name| secret::mask_name(name.trim_start_matches('/'))),
        image: config.image.map(|image| secret::mask(&image)),
        labels: labels(config.labels.unwrap_or_default()),
        netns: pid.and_then(|pid| Procfs::default().netns(pid)),
        pid,
        addresses,
        networks: names,
        ..ContainerDetail::default()
    }
}
