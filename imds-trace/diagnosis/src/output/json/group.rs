//! What is said of exchanges that are counted together?

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Serialize;

use super::process::{self, ProcessLine};
use super::when::When;
use crate::config::GroupBy;
use crate::event::{Credentials, Group, Groups};
use crate::identity::Container;
use crate::identity::pod::Pod;
use crate::net::{BootTime, Timestamp};

/// Exchanges counted together (`--group-by`). What tells one group from another is there, the rest `null`.
#[derive(Serialize, JsonSchema)]
pub struct GroupLine<'a> {
    /// When the run was over.
    at: When,
    /// What was typed behind `--group-by`.
    by: &'static str,
    /// The host; `null` also where nobody said what it is called.
    host: Option<&'a str>,
    /// The container.
    container: Option<&'a Container>,
    /// The pod.
    pod: Option<&'a Pod>,
    /// The Kubernetes namespace.
    namespace: Option<&'a str>,
    /// What made the pod.
    workload: Option<&'a str>,
    /// The process.
    process: Option<ProcessLine<'a>>,
    /// The image.
    image: Option<&'a str>,
    /// The job's id.
    job: Option<&'a str>,
    /// The path of the requests.
    path: Option<&'a str>,
    /// The client's address.
    address: Option<IpAddr>,
    /// Exchanges in all.
    exchanges: u64,
    /// Exchanges that were answered.
    answered: u64,
    /// Requests for a token.
    token: u64,
    /// Requests with one.
    v2: u64,
    /// Requests without one.
    v1: u64,
    /// Other exchanges.
    other: u64,
    /// What became of requests for credentials.
    credentials: CredentialsLine<'a>,
    /// When the first exchange began.
    first: When,
    /// When the last one began.
    last: When,
}

/// Requests for a role's credentials.
#[derive(Serialize, JsonSchema)]
struct CredentialsLine<'a> {
    /// Requests for them.
    asked: u64,
    /// Answers of 200 with them that reached the client.
    taken: u64,
    /// Those among them that were taken without a token.
    over_v1: u64,
    /// Roles whose credentials were taken.
    roles: &'a [String],
    /// When they were taken first.
    first: Option<When>,
    /// When they were taken last.
    last: Option<When>,
}

pub fn line<'a>(at: Timestamp, groups: &'a Groups, group: &'a Group, boot_time: BootTime) -> GroupLine<'a> {
    let by = groups.by;
    let when = |at| When::of(at, boot_time);
    let container = group.who.container.as_ref();
    let pod = container.and_then(|container| container.pod.as_deref());
    let is_one = matches!(by, GroupBy::Container | GroupBy::Process);
    let in_kubernetes = matches!(by, GroupBy::Pod | GroupBy::Namespace | GroupBy::Workload);
    let [token, v2, v1, other] = group.asked;
    let Credentials { asked, taken, over_v1, roles, first, last } = &group.credentials;
    GroupLine {
        at: when(at),
        by: by.name(),
        host: groups.host.as_deref().filter(|_| by == GroupBy::Host),
        container: group.who.told().filter(|_| is_one),
        pod: pod.filter(|pod| by == GroupBy::Pod && pod.is_known()),
        namespace: pod.and_then(|pod| pod.namespace.as_deref()).filter(|_| in_kubernetes),
        workload: pod.and_then(|pod| pod.workload()).filter(|_| by == GroupBy::Workload),
        process: process::line(group.who.process.as_deref(), boot_time).filter(|_| by == GroupBy::Process),
        image: container.and_then(|container| container.image.as_deref()).filter(|_| is_one || by == GroupBy::Image),
        job: container.and_then(|container| container.job_id()).filter(|_| is_one || by == GroupBy::Job),
        path: group.path.as_deref(),
        address: group.who.address.filter(|_| is_one),
        exchanges: group.exchanges,
        answered: group.answered,
        token,
        v2,
        v1,
        other,
        credentials: CredentialsLine {
            asked: *asked,
            taken: *taken,
            over_v1: *over_v1,
            roles,
            first: first.map(when),
            last: last.map(when),
        },
        first: when(group.first),
        last: when(group.last),
    }
}
