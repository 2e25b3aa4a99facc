//! Which CI job does a container belong to? What its labels say; where a runner sets none, what its names suggest.
//!
//! Refuses to guess from names alone that people choose too. Whoever starts a container chooses its labels: what they say is a
//! claim, bounded and masked here, and never decides to whom an exchange is attributed. Jenkins sets nothing that tells.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::pod::Pod;
use crate::net::bounded;
use crate::secret::mask;

/// Bytes kept of one fact about a job.
const MAX_WORD: usize = 128;
/// Bytes kept of its address.
const MAX_URL: usize = 256;

/// Labels that the GitLab runner sets: `executors/docker/internal/labels` of gitlab-org/gitlab-runner.
const GITLAB: &str = "com.gitlab.gitlab-runner.";
/// Labels that Buildkite's docker plugin sets, the job's id under one name or the other.
const BUILDKITE: &str = "com.buildkite.";
/// Labels that the ECS agent sets.
const ECS: &str = "com.amazonaws.ecs.";
/// Labels that cri-dockerd sets.
const KUBERNETES: &str = "io.kubernetes.";
/// Labels that Compose sets.
const COMPOSE: &str = "com.docker.compose.";
/// In labels and annotations that runners on Kubernetes set on their pods.
const POD_MARKS: [&str; 2] = ["runner.gitlab.com/", "actions.github.com/"];
/// How the GitHub Actions runner names the network of a job with containers; 32 hexadecimal digits follow.
const GITHUB_NETWORK: &str = "github_network_";

type Labels = BTreeMap<String, String>;

/// A job of a CI system, or what comes nearest to one elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Job {
    /// `gitlab`, `buildkite`, `github`, `ecs`, `kubernetes`.
    pub system: &'static str,
    /// What it calls the job: GitLab's and Buildkite's job id, the ARN of an ECS task, the name of a pod.
    pub id: Option<String>,
    /// Where it can be looked at; without query.
    pub url: Option<String>,
    /// The project it is of: GitLab's project id, Buildkite's pipeline, the task's family, the pod's namespace.
    pub project: Option<String>,
    /// The run of several jobs that it belongs to: GitLab's pipeline id, Buildkite's build number.
    pub pipeline: Option<String>,
    /// Branch or tag.
    #[serde(rename = "ref")]
    pub reference: Option<String>,
    /// Commit.
    pub sha: Option<String>,
    /// The runner, as the system names it to people.
    pub runner: Option<String>,
    /// What the container is in the job: GitLab's `build`, `predefined`, `service`.
    pub part: Option<String>,
    /// What that rests on.
    pub by: Evidence,
}

/// What the naming of a job rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// Labels that say so.
    Labels,
    /// Names like those that the system gives: probably.
    Names,
}

/// The Compose service that a container belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Compose {
    /// The project.
    pub project: String,
    /// The service.
    pub service: Option<String>,
}

/// Is a label one of those that are read here?
pub fn reads(label: &str) -> bool {
    [GITLAB, BUILDKITE, ECS, KUBERNETES, COMPOSE].iter().any(|prefix| label.starts_with(prefix))
        || POD_MARKS.iter().any(|mark| label.contains(mark))
}

/// The job of a container with these labels, this name and these networks.
pub fn of(labels: &Labels, name: Option<&str>, networks: &[String]) -> Option<Job> {
    gitlab(labels)
        .or_else(|| gitlab_pod(labels))
        .or_else(|| arc_pod(labels))
        .or_else(|| buildkite(labels))
        .or_else(|| ecs(labels))
        .or_else(|| kubernetes(labels))
        .or_else(|| github(labels, name, networks))
}

/// The job of a container in a pod that a CI system named. Of what runs there the containers' files tell no labels.
pub fn of_pod(pod: &Pod, container: Option<&str>) -> Option<Job> {
    let name = pod.name.as_deref()?;
    // `runner-<token>-project-<id>-concurrent-<n>-<random>`: executors/kubernetes of gitlab-org/gitlab-runner.
    if let Some((_, behind)) = name.strip_prefix("runner-").and_then(|name| name.split_once("-project-")) {
        let (project, concurrent) = behind.split_once("-concurrent-")?;
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let slot = concurrent.split('-').next().unwrap_or_default();
        return (is_number(project) && is_number(slot)).then(|| Job {
            project: Some(bounded(project, MAX_WORD).to_owned()),
            part: container.map(|part| bounded(&mask(part), MAX_WORD).to_owned()),
            ..Job::new("gitlab", Evidence::Names)
        });
    }
    // `<scale set>-<random>-runner-<random>` with a container `runner`: actions/actions-runner-controller.
    let (_, end) = name.rsplit_once("-runner-")?;
    let is_random = end.len() == 5 && end.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    (is_random && container == Some("runner")).then(|| Job::new("github", Evidence::Names))
}

/// The Compose service of a container with these labels.
pub fn compose(labels: &Labels) -> Option<Compose> {
    let project = word(labels, COMPOSE, "project")?;
    Some(Compose { project, service: word(labels, COMPOSE, "service") })
}

impl Job {
    fn new(system: &'static str, by: Evidence) -> Self {
        Self {
            system,
            id: None,
            url: None,
            project: None,
            pipeline: None,
            reference: None,
            sha: None,
            runner: None,
            part: None,
            by,
        }
    }
}

fn gitlab(labels: &Labels) -> Option<Job> {
    let said = |name: &str| word(labels, GITLAB, name);
    Some(Job {
        id: Some(said("job.id")?),
        url: labels.get(&format!("{GITLAB}job.url")).and_then(|url| address(url)),
        project: said("project.id"),
        pipeline: said("pipeline.id"),
        reference: said("job.ref"),
        sha: said("job.sha"),
        runner: said("runner.id"),
        part: said("type"),
        ..Job::new("gitlab", Evidence::Labels)
    })
}

/// What GitLab's runner writes on its pods: labels and annotations, `executors/kubernetes` of gitlab-org/gitlab-runner.
fn gitlab_pod(labels: &Labels) -> Option<Job> {
    let said = |name: &str| word(labels, "", name);
    Some(Job {
        id: Some(said("job.runner.gitlab.com/id")?),
        url: labels.get("job.runner.gitlab.com/url").and_then(|url| address(url)),
        project: said("project.runner.gitlab.com/id"),
        pipeline: said("pipeline.runner.gitlab.com/id").or_else(|| said("job.runner.gitlab.com/pipeline-id")),
        reference: said("job.runner.gitlab.com/ref"),
        sha: said("job.runner.gitlab.com/sha"),
        runner: said("manager.runner.gitlab.com/id-short"),
        ..Job::new("gitlab", Evidence::Labels)
    })
}

/// What ARC writes on its pods: labels of actions/actions-runner-controller.
fn arc_pod(labels: &Labels) -> Option<Job> {
    let project = word(labels, "", "actions.github.com/repository");
    let runner = word(labels, "", "actions.github.com/scale-set-name")?;
    Some(Job { project, runner: Some(runner), ..Job::new("github", Evidence::Labels) })
}

fn buildkite(labels: &Labels) -> Option<Job> {
    let said = |name: &str| word(labels, BUILDKITE, name);
    Some(Job {
        id: Some(said("job_id").or_else(|| said("job-id"))?),
        project: said("pipeline_slug").or_else(|| said("pipeline_name")),
        pipeline: said("build_number"),
        runner: said("agent_name"),
        part: said("step_key"),
        ..Job::new("buildkite", Evidence::Labels)
    })
}

fn ecs(labels: &Labels) -> Option<Job> {
    let said = |name: &str| word(labels, ECS, name);
    Some(Job {
        id: Some(said("task-arn")?),
        project: said("task-definition-family"),
        part: said("container-name"),
        ..Job::new("ecs", Evidence::Labels)
    })
}

fn kubernetes(labels: &Labels) -> Option<Job> {
    let said = |name: &str| word(labels, KUBERNETES, name);
    Some(Job {
        id: Some(said("pod.name")?),
        project: said("pod.namespace"),
        part: said("container.name"),
        ..Job::new("kubernetes", Evidence::Labels)
    })
}

/// The runner tells nothing of the job. It names the network of a job; without one it ends the container's name with six digits
/// and sets a label of six digits without a value.
fn github(labels: &Labels, name: Option<&str>, networks: &[String]) -> Option<Job> {
    let on_its_network = networks
        .iter()
        .any(|network| network.strip_prefix(GITHUB_NETWORK).is_some_and(|id| id.len() == 32 && is_hex(id)));
    let six = |text: &str| text.len() == 6 && is_hex(text);
    let named = name.and_then(|name| name.rsplit_once('_')).is_some_and(|(_, end)| six(end));
    let labelled = labels.iter().any(|(name, value)| value.is_empty() && six(name));
    (on_its_network || (named && labelled)).then(|| Job::new("github", Evidence::Names))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn word(labels: &Labels, prefix: &str, name: &str) -> Option<String> {
    let value = labels.get(&format!("{prefix}{name}"))?.trim();
    (!value.is_empty()).then(|| bounded(&mask(value), MAX_WORD).to_owned())
}

/// A web address without what may hold a secret: user, query and fragment.
fn address(url: &str) -> Option<String> {
    let url = url.trim();
    let is_web = url.starts_with("https://") || url.starts_with("http://");
    if !is_web || url.contains(char::is_whitespace) {
        return None;
    }
    let url = url.split(['?', '#']).next()?;
    Some(bounded(&mask(url), MAX_URL).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn gitlab_job(pairs: &[(&str, &str)]) -> Option<Job> {
        let pairs: Vec<_> =
            pairs.iter().map(|(name, value)| (format!("{GITLAB}{name}"), (*value).to_owned())).collect();
        of(&pairs.into_iter().collect(), None, &[])
    }

    #[test]
    fn a_gitlab_job_is_told_by_its_labels() {
        let job = gitlab_job(&[
            ("job.id", "4711"),
            ("job.url", "https://gitlab.example/group/project/-/jobs/4711"),
            ("project.id", "17"),
            ("pipeline.id", "99"),
            ("job.ref", "main"),
            ("job.sha", "0123456789abcdef0123456789abcdef01234567"),
            ("runner.id", "x7Yz12Ab"),
            ("type", "build"),
        ]);
        assert_eq!(
            serde_json::to_value(job).unwrap(),
            serde_json::json!({
                "system": "gitlab", "id": "4711", "url": "https://gitlab.example/group/project/-/jobs/4711", "project": "17",
                "pipeline": "99", "ref": "main", "sha": "0123456789abcdef0123456789abcdef01234567", "runner": "x7Yz12Ab",
                "part": "build", "by": "labels"
            })
        );
    }

    #[test]
    fn no_secret_in_an_address_is_kept_and_no_address_that_is_none() {
        let url = |url: &str| gitlab_job(&[("job.id", "1"), ("job.url", url)]).and_then(|job| job.url);
        assert_eq!(
            url("https://user:pa55word@gitlab.example/j/1?private_token=abc#x").as_deref(),
            Some("https://***@gitlab.example/j/1")
        );
        assert_eq!(url("https://gitlab.example/j/1?x=https://u:p@h").as_deref(), Some("https://gitlab.example/j/1"));
        for odd in ["javascript:alert(1)", "file:///etc/shadow", "https://a b", "", "gitlab.example/j/1"] {
            assert_eq!(url(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_a_label_says_is_bounded() {
        let long = "é".repeat(100_000);
        let job = gitlab_job(&[("job.id", &long), ("job.url", &format!("https://h/{long}"))]).unwrap();
        assert!(job.id.unwrap().len() <= MAX_WORD && job.url.unwrap().len() <= MAX_URL);
        assert_eq!(gitlab_job(&[("job.id", " ")]), None);
        assert_eq!(gitlab_job(&[("project.id", "17")]), None, "a volume or a cache has no job");
    }

    #[test]
    fn other_systems_are_told_by_theirs() {
        let job =
            of(&labels(&[("com.buildkite.job-id", "018f"), ("com.buildkite.build_number", "7")]), None, &[]).unwrap();
        assert_eq!((job.system, job.id.as_deref(), job.pipeline.as_deref()), ("buildkite", Some("018f"), Some("7")));
        let arn = "arn:aws:ecs:eu-central-1:123456789012:task/ci/0123456789abcdef0123456789abcdef";
        let family = ("com.amazonaws.ecs.task-definition-family", "web");
        let job = of(&labels(&[("com.amazonaws.ecs.task-arn", arn), family]), None, &[]).unwrap();
        assert_eq!((job.system, job.id.as_deref(), job.project.as_deref()), ("ecs", Some(arn), Some("web")));
        let pod = [("io.kubernetes.pod.name", "web-0"), ("io.kubernetes.pod.namespace", "ci")];
        let job = of(&labels(&pod), None, &[]).unwrap();
        assert_eq!((job.system, job.id.as_deref(), job.project.as_deref()), ("kubernetes", Some("web-0"), Some("ci")));
    }

    #[test]
    fn a_github_job_is_probable_by_its_network_or_by_name_and_label() {
        let network = format!("github_network_{}", "0123456789abcdef".repeat(2));
        let by_network = of(&Labels::new(), Some("postgres16_1a2b3c"), &["bridge".into(), network]).unwrap();
        assert_eq!((by_network.system, by_network.id, by_network.by), ("github", None, Evidence::Names));
        let bare = labels(&[("9f8e7d", "")]);
        assert!(of(&bare, Some("ghcrioactionx_1a2b3c"), &[]).is_some());
        assert_eq!(of(&bare, Some("ghcrioactionx"), &[]), None);
        assert_eq!(of(&Labels::new(), Some("web_1a2b3c"), &["github_network_mine".into()]), None);
    }

    #[test]
    fn a_job_on_kubernetes_is_told_by_its_pod() {
        let of_name =
            |name: &str, container: &str| of_pod(&Pod { name: Some(name.into()), ..Pod::default() }, Some(container));
        let job = of_name("runner-x7yz12ab-project-17-concurrent-0-1h2j3k4l", "build").unwrap();
        assert_eq!(
            (job.system, job.project.as_deref(), job.part.as_deref(), job.by),
            ("gitlab", Some("17"), Some("build"), Evidence::Names)
        );
        assert_eq!(of_name("arc-set-x2k4p-runner-7h2kq", "runner").map(|job| job.system), Some("github"));
        for (name, container) in [
            ("arc-set-x2k4p-runner-7h2kq", "istio-proxy"),
            ("runner-x-project-me-concurrent-0", "build"),
            ("runner-x-project-17", "build"),
            ("task-runner-service", "runner"),
            ("web-7d4b9c6f5d-x2k4p", "app"),
        ] {
            assert_eq!(of_name(name, container), None, "{name}");
        }
        let said = [("job.runner.gitlab.com/id", "4711"), ("job.runner.gitlab.com/url", "https://u:p@h/j/4711?t=1")];
        let job = of(&labels(&said), None, &[]).unwrap();
        assert_eq!((job.id.as_deref(), job.url.as_deref()), (Some("4711"), Some("https://***@h/j/4711")));
        let job = of(&labels(&[("actions.github.com/scale-set-name", "arc-set")]), None, &[]).unwrap();
        assert_eq!((job.system, job.runner.as_deref(), job.by), ("github", Some("arc-set"), Evidence::Labels));
    }

    #[test]
    fn a_container_without_such_labels_has_no_job() {
        assert_eq!(of(&labels(&[("maintainer", "me"), ("job.id", "4711")]), Some("jenkins-agent"), &[]), None);
        assert_eq!(compose(&labels(&[("com.docker.compose.service", "db")])), None);
        let both = labels(&[("com.docker.compose.service", "db"), ("com.docker.compose.project", "shop")]);
        assert_eq!(compose(&both), Some(Compose { project: "shop".into(), service: Some("db".into()) }));
    }
}
