//! What does the Docker engine say of its containers? Listed once, then followed by its events.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use bollard::models::{ContainerInspectResponse, EventMessage, EventMessageTypeEnum};
use bollard::query_parameters::{EventsOptions, InspectContainerOptions, ListContainersOptions};
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::fact::{ContainerDetail, Said};
use super::procfs::Procfs;
use crate::net::bounded;
use crate::printable::causes;

/// Where the engine listens if nobody says otherwise.
pub const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
/// An engine that went away is tried again this often.
const RETRY: Duration = Duration::from_secs(2);
/// Labels kept of one container, and bytes of each; whoever starts a container chooses them.
const MAX_LABELS: usize = 64;
const MAX_LABEL: usize = 512;

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

async fn session(host: &str, news: &mpsc::Sender<News>) -> Result<(), bollard::errors::Error> {
    let docker = Docker::connect_with_host(host)?.negotiate_version().await?;
    let filters = HashMap::from([("type".to_owned(), vec!["container".to_owned(), "network".to_owned()])]);
    // Events first, or a container that starts during the listing would be missed.
    let mut events =
        std::pin::pin!(docker.events(Some(EventsOptions { filters: Some(filters), ..Default::default() })));
    let running = docker.list_containers(None::<ListContainersOptions>).await?;
    for id in running.into_iter().filter_map(|container| container.id) {
        inspect(&docker, &id, news).await;
    }
    if news.send(News::Listed).await.is_err() {
        return Ok(());
    }
    while let Some(event) = events.next().await {
        if !handle(&docker, event?, news).await {
            return Ok(());
        }
    }
    Ok(())
}

/// Says what an event means; `false` if nobody listens any more.
async fn handle(docker: &Docker, event: EventMessage, news: &mpsc::Sender<News>) -> bool {
    let Some(actor) = event.actor else { return true };
    let attributes = actor.attributes.unwrap_or_default();
    let action = event.action.unwrap_or_default();
    match (event.typ, action.as_str()) {
        (Some(EventMessageTypeEnum::CONTAINER), "create" | "start" | "rename") => {
            let Some(id) = actor.id else { return true };
            // The event itself introduces the container: one that lives 300 ms may be gone before it can be inspected.
            if news.send(News::Said(Said::Container(introduced(&id, attributes)))).await.is_err() {
                return false;
            }
            if action == "start" {
                inspect(docker, &id, news).await;
            }
            true
        }
        (Some(EventMessageTypeEnum::CONTAINER), "die" | "destroy") => match actor.id {
            Some(id) => news.send(News::Said(Said::ContainerGone { id })).await.is_ok(),
            None => true,
        },
        (Some(EventMessageTypeEnum::NETWORK), "connect") => {
            if let Some(id) = attributes.get("container") {
                inspect(docker, id, news).await;
            }
            true
        }
        _ => !news.is_closed(),
    }
}

/// An event's attributes are the container's labels, and its name and image among them.
fn introduced(id: &str, mut attributes: HashMap<String, String>) -> ContainerDetail {
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
        netns: None,
        pid: None,
        addresses: Vec::new(),
    }
}

async fn inspect(docker: &Docker, id: &str, news: &mpsc::Sender<News>) {
    // Gone since: its event said what there is to say.
    let Ok(container) = docker.inspect_container(id, None::<InspectContainerOptions>).await else { return };
    let _ = news.send(News::Said(Said::Container(inspected(id, container)))).await;
}

fn inspected(id: &str, container: ContainerInspectResponse) -> ContainerDetail {
    let pid =
        container.state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
    let config = container.config.unwrap_or_default();
    let networks = container.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
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
    }
}

fn labels(labels: HashMap<String, String>) -> Arc<std::collections::BTreeMap<String, String>> {
    let sorted: std::collections::BTreeMap<String, String> = labels.into_iter().collect();
    Arc::new(
        sorted
            .into_iter()
            .take(MAX_LABELS)
            .map(|(name, value)| {
                (bounded(&name, MAX_LABEL).to_owned(), bounded(&crate::secret::mask(&value), MAX_LABEL).to_owned())
            })
            .collect(),
    )
}
