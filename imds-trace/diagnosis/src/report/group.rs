//! Who asked for what, counted together by container, pod, namespace, workload, process, image, CI job, path or host?

use std::collections::HashMap;

use crate::config::GroupBy;
use crate::event::{Credentials, Event, Group, Groups};
use crate::exchange::{Imds, imds::role};
use crate::identity::{Attribution, Container};
use crate::net::Timestamp;

/// Groups counted apart at most; what comes after goes into one that says so.
const MAX_GROUPS: usize = 8_192;
/// Roles named of one group at most.
const MAX_ROLES: usize = 16;

/// Makes the groups of the exchanges that are shown.
#[derive(Debug)]
pub struct Grouping {
    groups: Groups,
    index: HashMap<String, usize>,
}

impl Grouping {
    /// Nothing counted yet.
    pub fn new(by: GroupBy) -> Self {
        Self { groups: Groups { by, host: None, groups: Vec::new(), over: 0 }, index: HashMap::new() }
    }

    /// The groups, and the host that they are on.
    pub fn finish(self, host: Option<String>) -> Groups {
        Groups { host, ..self.groups }
    }

    /// Counts the last word on an exchange.
    pub fn count(&mut self, event: &Event) {
        let Event::Exchange(event) = event else { return };
        let Self { groups, index, .. } = self;
        let exchange = &event.exchange;
        let path = exchange.request.as_ref().map(|request| request.path.as_str());
        let key = key(groups.by, &event.who, path);
        let number = match index.get(&key) {
            Some(number) => *number,
            None if groups.groups.len() >= MAX_GROUPS => {
                groups.over += 1;
                return;
            }
            None => {
                index.insert(key, groups.groups.len());
                groups.groups.push(Group {
                    who: event.who.clone(),
                    path: path.filter(|_| groups.by == GroupBy::Path).map(str::to_owned),
                    exchanges: 0,
                    answered: 0,
                    asked: [0; 4],
                    credentials: Credentials::default(),
                    first: exchange.opened,
                    last: exchange.opened,
                });
                groups.groups.len() - 1
            }
        };
        let Some(group) = groups.groups.get_mut(number) else { return };
        group.exchanges += 1;
        group.answered += u64::from(exchange.is_answered());
        group.first = group.first.min(exchange.opened);
        group.last = group.last.max(exchange.opened);
        let imds = exchange.imds();
        if let Some(imds) = imds {
            let place = match imds {
                Imds::Token => 0,
                Imds::V2 => 1,
                Imds::V1 => 2,
                Imds::Other => 3,
            };
            group.asked[place] += 1;
        }
        if let Some(role) = path.and_then(role) {
            note(&mut group.credentials, role, exchange.brought(), imds == Some(Imds::V1), exchange.opened);
        }
        if let (Some(known), Some(seen)) = (&mut group.who.container, &event.who.container)
            && known.name.is_none()
        {
            *known = seen.clone();
        }
    }
}

/// Notes a request for a role's credentials.
fn note(credentials: &mut Credentials, role: &str, taken: bool, without_token: bool, at: Timestamp) {
    credentials.asked += 1;
    if !taken {
        return;
    }
    credentials.taken += 1;
    credentials.over_v1 += u64::from(without_token);
    credentials.first = credentials.first.min(Some(at)).or(Some(at));
    credentials.last = credentials.last.max(Some(at));
    if credentials.roles.len() < MAX_ROLES && !credentials.roles.iter().any(|known| known == role) {
        credentials.roles.push(role.to_owned());
    }
}

/// What is the same for all exchanges of a group.
fn key(by: GroupBy, who: &Attribution, path: Option<&str>) -> String {
    let container = who.container.as_ref();
    let pod = container.and_then(|container| container.pod.as_deref());
    match by {
        GroupBy::Container => format!("{:?}", who.subject()),
        GroupBy::Pod => {
            let pod = pod.filter(|pod| pod.is_known());
            format!("{:?}", pod.map(|pod| (&pod.uid, pod.name.as_ref().filter(|_| pod.uid.is_none()))))
        }
        GroupBy::Namespace => format!("{:?}", pod.map(|pod| &pod.namespace)),
        GroupBy::Workload => format!("{:?}", pod.map(|pod| (&pod.namespace, pod.workload()))),
        GroupBy::Process => match &who.process {
            // A number is used again; a program's name and words are seldom the same then.
            Some(process) => {
                let id = container.map(|container| container.id.as_str());
                format!(
                    "{id:?} {} {:?} {} {:?} {:?}",
                    process.pid, process.started, process.comm, process.exe, process.argv
                )
            }
            None => format!("{:?}", who.subject()),
        },
        GroupBy::Image => format!("{:?}", container.map(|container| &container.image)),
        GroupBy::Job => format!("{:?}", container.and_then(Container::job_id)),
        GroupBy::Path => path.unwrap_or_default().to_owned(),
        GroupBy::Host => String::new(),
    }
}
