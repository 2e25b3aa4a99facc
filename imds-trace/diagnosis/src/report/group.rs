//! Who asked for what, counted together by container, process, image, CI job or path?

use std::collections::HashMap;

use crate::config::GroupBy;
use crate::event::ExchangeEvent;
use crate::exchange::Imds;
use crate::identity::{Attribution, Container};
use crate::net::Timestamp;

/// Groups counted apart at most; what comes after goes into one that says so.
const MAX_GROUPS: usize = 8_192;
/// Roles named of one group at most.
const MAX_ROLES: usize = 16;
/// Where credentials are, below any version and `meta-data`, and what follows is the role.
const CREDENTIALS: [&str; 2] = ["/iam/security-credentials/", "/identity-credentials/ec2/security-credentials/"];
/// The status of an answer that brought something.
const OK: u16 = 200;

/// The groups of a run.
#[derive(Clone, Debug)]
pub struct Groups {
    /// What they are made by.
    pub by: GroupBy,
    /// In the order in which they were first seen.
    pub groups: Vec<Group>,
    /// Exchanges that found no room in a group.
    pub over: u64,
    index: HashMap<String, usize>,
}

/// What is counted together.
#[derive(Clone, Debug)]
pub struct Group {
    /// To whom the first exchange belongs. With [`GroupBy::Image`], [`GroupBy::Job`] and [`GroupBy::Path`] only one of several.
    pub who: Attribution,
    /// The path; `None` where groups are not made by it, or the request was not seen.
    pub path: Option<String>,
    /// Exchanges in all.
    pub exchanges: u64,
    /// Exchanges that were answered.
    pub answered: u64,
    /// Requests for a token, with one, without one, and others.
    pub asked: [u64; 4],
    /// What became of requests for credentials.
    pub credentials: Credentials,
    /// When the first exchange began.
    pub first: Timestamp,
    /// When the last one began.
    pub last: Timestamp,
}

/// What became of requests for a role's credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Requests for them.
    pub asked: u64,
    /// Answers with status 200 that reached the client.
    pub taken: u64,
    /// Those among them that were taken without a token.
    pub over_v1: u64,
    /// Roles whose credentials were taken.
    pub roles: Vec<String>,
    /// When they were taken first.
    pub first: Option<Timestamp>,
    /// When they were taken last.
    pub last: Option<Timestamp>,
}

impl Groups {
    /// Nothing counted yet.
    pub fn new(by: GroupBy) -> Self {
        Self { by, groups: Vec::new(), over: 0, index: HashMap::new() }
    }

    /// Counts an exchange.
    pub fn absorb(&mut self, event: &ExchangeEvent) {
        let exchange = &event.exchange;
        let path = exchange.request.as_ref().map(|request| request.path.as_str());
        let key = key(self.by, &event.who, path);
        let number = match self.index.get(&key) {
            Some(number) => *number,
            None if self.groups.len() >= MAX_GROUPS => {
                self.over += 1;
                return;
            }
            None => {
                self.index.insert(key, self.groups.len());
                self.groups.push(Group {
                    who: event.who.clone(),
                    path: path.filter(|_| self.by == GroupBy::Path).map(str::to_owned),
                    exchanges: 0,
                    answered: 0,
                    asked: [0; 4],
                    credentials: Credentials::default(),
                    first: exchange.opened,
                    last: exchange.opened,
                });
                self.groups.len() - 1
            }
        };
        let Some(group) = self.groups.get_mut(number) else { return };
        group.exchanges += 1;
        group.answered += u64::from(exchange.answered.is_some());
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
            group.credentials.note(role, exchange.status() == Some(OK), imds == Some(Imds::V1), exchange.opened);
        }
        if let (Some(known), Some(seen)) = (&mut group.who.container, &event.who.container)
            && known.name.is_none()
        {
            *known = seen.clone();
        }
    }
}

impl Credentials {
    fn note(&mut self, role: &str, taken: bool, without_token: bool, at: Timestamp) {
        self.asked += 1;
        if !taken {
            return;
        }
        self.taken += 1;
        self.over_v1 += u64::from(without_token);
        self.first = self.first.min(Some(at)).or(Some(at));
        self.last = self.last.max(Some(at));
        if self.roles.len() < MAX_ROLES && !self.roles.iter().any(|known| known == role) {
            self.roles.push(role.to_owned());
        }
    }
}

/// The role whose credentials a path asks for.
fn role(path: &str) -> Option<&str> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let role = CREDENTIALS.iter().find_map(|place| path.split_once(place)).map(|(_, role)| role)?;
    let role = role.strip_suffix('/').unwrap_or(role);
    (!role.is_empty()).then_some(role)
}

/// The CI job that a container is of.
pub fn job(container: &Container) -> Option<&str> {
    container.job.as_ref()?.id.as_deref()
}

/// What is the same for all exchanges of a group.
fn key(by: GroupBy, who: &Attribution, path: Option<&str>) -> String {
    let container = who.container.as_ref();
    match by {
        GroupBy::Container => format!("{:?}", who.subject()),
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
        GroupBy::Job => format!("{:?}", container.and_then(job)),
        GroupBy::Path => path.unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_stands_behind_the_place_of_credentials() {
        for (path, expected) in [
            ("/latest/meta-data/iam/security-credentials/ci-runner", Some("ci-runner")),
            ("/2021-03-23/meta-data/iam/security-credentials/ci-runner?x", Some("ci-runner")),
            ("/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance", Some("ec2-instance")),
            ("/latest/meta-data/iam/security-credentials/", None),
            ("/latest/meta-data/iam/info", None),
        ] {
            assert_eq!(role(path), expected, "{path}");
        }
    }
}
