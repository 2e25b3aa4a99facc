//! What does the Docker engine say of its containers? Listed once, then followed by its events.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use bollard::models::{ContainerInspectResponse, EventMessage, EventMessageTypeEnum};
use bollard::query_parameters::{EventsOptions, InspectContainerOptions, ListContainersOptions};
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::procfs::Procfs;
use diagnosis::identity::cgroup::Runtime;
use diagnosis::identity::fact::{ContainerDetail, Said};
use diagnosis::identity::job;
use diagnosis::net::bounded;
use diagnosis::printable::causes;
use diagnosis::secret;

/// Where the engine listens if nobody says otherwise.
const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// Where the engine listens: as asked, else `$DOCKER_HOST`, else the default; an empty word is none, as the docker command has it.
pub fn host(asked: Option<&str>) -> String {
    let host = asked.map(str::to_owned).or_else(|| std::env::var("DOCKER_HOST").ok());
    host.filter(|host| !host.is_empty()).unwrap_or_else(|| DEFAULT_HOST.to_owned())
}
/// An engine that went away is tried again this often.
const RETRY: Duration = Duration::from_secs(2);
/// Labels kept of one container, and bytes of each; whoever starts a container chooses them.
const MAX_LABELS: usize = 64;
const MAX_LABEL: usize = 512;
/// Networks kept of one container, and bytes of each name.
const MAX_NETWORKS: usize = 32;
const MAX_NETWORK: usize = 128;

/// What the source tells the shell.
#[derive(Debug)]
pub enum News {
    /// A fact.
    Said(Said),
    /// All containers that were there have been told.
    Listed,
    /// The engine cannot be asked; it will be tried again.
    Unreachable(String),
}

/// A container that was asked for by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Full id.
    pub id: String,
    /// Name, or what was asked for.
    pub name: String,
    /// Its first process; `None` if it is not running.
    pub pid: Option<u32>,
}

/// Asks the engine at `host` for a container by name, id or the beginning of an id. An error is a sentence.
pub async fn find(host: &str, wanted: &str) -> Result<Found, String> {
    let unreachable = |error| format!("Docker engine at {host}: {}", causes(&error));
    let docker =
        Docker::connect_with_host(host).map_err(unreachable)?.negotiate_version().await.map_err(unreachable)?;
    match docker.inspect_container(wanted, None::<InspectContainerOptions>).await {
        Ok(container) => {
            let id = container.id.clone().unwrap_or_else(|| wanted.to_owned());
            let detail = inspected(&id, container);
            Ok(Found { name: detail.name.unwrap_or_else(|| wanted.to_owned()), id, pid: detail.pid })
        }
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => {
            Err("no such container".to_owned())
        }
        Err(error) => Err(unreachable(error)),
    }
}

/// Follows the engine at `host` until the receiver goes away.
pub async fn follow(host: String, news: mpsc::Sender<News>) {
    loop {
        if let Err(error) = session(&host, &news).await {
            let sentence = format!("Docker engine at {host}: {}", causes(&error));
            if news.send(News::Unreachable(sentence)).await.is_err() {
                return;
            }
        }
        if news.is_closed() {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// An engine, and what it is.
struct Engine {
    docker: Docker,
    runtime: Runtime,
}

async fn session(host: &str, news: &mpsc::Sender<News>) -> Result<(), bollard::errors::Error> {
    let docker = Docker::connect_with_host(host)?.negotiate_version().await?;
    // podman answers the same questions, and names itself among its components.
    let components = docker.version().await?.components.unwrap_or_default();
    let is_podman = components.iter().any(|component| component.name.contains("Podman"));
    let engine = Engine { docker, runtime: if is_podman { Runtime::Podman } else { Runtime::Docker } };
    let docker = &engine.docker;
    let filters = HashMap::from([("type".to_owned(), vec!["container".to_owned(), "network".to_owned()])]);
    // Events first, or a container that starts during the listing would be missed.
    let mut events =
        std::pin::pin!(docker.events(Some(EventsOptions { filters: Some(filters), ..Default::default() })));
    let running = docker.list_containers(None::<ListContainersOptions>).await?;
    for id in running.into_iter().filter_map(|container| container.id) {
        inspect(&engine, &id, news).await;
    }
    if news.send(News::Listed).await.is_err() {
        return Ok(());
    }
    while let Some(event) = events.next().await {
        if !handle(&engine, event?, news).await {
            return Ok(());
        }
    }
    Ok(())
}

/// Says what an event means; `false` if nobody listens any more.
async fn handle(engine: &Engine, event: EventMessage, news: &mpsc::Sender<News>) -> bool {
    let Some(actor) = event.actor else { return true };
    let attributes = actor.attributes.unwrap_or_default();
    let action = event.action.unwrap_or_default();
    match (event.typ, action.as_str()) {
        (Some(EventMessageTypeEnum::CONTAINER), "create" | "start" | "rename") => {
            let Some(id) = actor.id else { return true };
            // The event itself introduces the container: one that lives 300 ms may be gone before it can be inspected.
            if news.send(News::Said(Said::Container(introduced(engine, &id, attributes)))).await.is_err() {
                return false;
            }
            if action == "start" {
                inspect(engine, &id, news).await;
            }
            true
        }
        (Some(EventMessageTypeEnum::CONTAINER), "die" | "destroy") => match actor.id {
            Some(id) => news.send(News::Said(Said::ContainerGone { id })).await.is_ok(),
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
    let name = attributes.remove("name");
    let image = attributes.remove("image");
    for own in ["exitCode", "execDuration", "signal", "oldName"] {
        attributes.remove(own);
    }
    ContainerDetail {
        id: id.to_owned(),
        name,
        image,
        labels: labels(attributes),
        runtime: Some(engine.runtime),
        ..ContainerDetail::default()
    }
}

async fn inspect(engine: &Engine, id: &str, news: &mpsc::Sender<News>) {
    // Gone since: its event said what there is to say.
    let Ok(container) = engine.docker.inspect_container(id, None::<InspectContainerOptions>).await else { return };
    let detail = ContainerDetail { runtime: Some(engine.runtime), ..inspected(id, container) };
    let _ = news.send(News::Said(Said::Container(detail))).await;
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
    let addresses = networks
        .into_values()
        .flat_map(|network| [network.ip_address, network.global_ipv6_address])
        .flatten()
        .filter_map(|address| address.parse().ok())
        .collect();
    ContainerDetail {
        id: id.to_owned(),
        name: container.name.map(|name| name.trim_start_matches('/').to_owned()),
        image: config.image,
        labels: labels(config.labels.unwrap_or_default()),
        netns: pid.and_then(|pid| Procfs::default().netns(pid)),
        pid,
        addresses,
        networks: names,
        runtime: None,
    }
}

/// Labels as they are kept: bounded in number and length, secrets masked. Those that tell of a job stay when there are too many.
fn labels(labels: HashMap<String, String>) -> Arc<BTreeMap<String, String>> {
    let mut named: Vec<_> = labels.into_iter().collect();
    named.sort_by_cached_key(|(name, _)| (!job::reads(name), name.clone()));
    named.truncate(MAX_LABELS);
    let kept = |text: &str| bounded(text, MAX_LABEL).to_owned();
    let pairs = named.iter().map(|(name, value)| (kept(&secret::mask(name)), kept(&secret::mask_value(name, value))));
    Arc::new(pairs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded_masked_and_those_of_a_job_stay() {
        let mut many: HashMap<_, _> = (0..1_000).map(|n| (format!("a{n}"), "x".repeat(100_000))).collect();
        many.insert("com.gitlab.gitlab-runner.job.id".into(), "4711".into());
        many.insert("com.example.registry-password".into(), "hunter2".into());
        let few = HashMap::from([("registry-password".to_owned(), "hunter2".to_owned())]);
        let kept = labels(many);
        assert_eq!(kept.len(), MAX_LABELS);
        assert_eq!(kept.get("com.gitlab.gitlab-runner.job.id").map(String::as_str), Some("4711"));
        assert!(kept.values().all(|value| value.len() <= MAX_LABEL));
        assert_eq!(labels(few).get("registry-password").map(String::as_str), Some("***"));
    }
}
