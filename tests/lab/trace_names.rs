//! Does it say to which job, service and runtime a container belongs, and is nothing shown raw that somebody chose?

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::tracer;
use imds_trace_tests::{Container, ContainerSpec, NetworkSpec};
use serde_json::{Value, json};

use crate::Lab;
use crate::trace::{Seen, client, go, watched};

crate::tests![
    a_gitlab_job_is_named,
    a_compose_service_and_its_networks_are_named,
    a_container_of_a_github_job_is_probably_one,
    hostile_labels_are_escaped_and_bounded,
    a_secret_in_labels_or_a_user_agent_is_told_nowhere,
    a_container_inside_a_container_is_named_beside_it,
    containers_that_no_engine_introduced_are_named_by_their_runtime,
];

type Outcome = anyhow::Result<()>;

/// Never a real one.
const SECRET: &str = "AQAEAEXAMPLE9xQ2vB7tLkR4mZ0sWc3yHd8fJ1gNpU6aEoTiKbXrVw5==";

/// What replay says as text of what was recorded.
fn report(seen: &Seen) -> Result<String> {
    let output = Command::new(tracer::program()?).arg("replay").arg(&seen.outcome.recording).output()?;
    ensure!(output.status.success(), "replay: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One container with these labels asks once, with a token.
fn labelled(lab: &Lab, name: &str, labels: &[(&str, &str)]) -> Result<(Seen, Container)> {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (seen, mut containers) = watched(lab, &[], |_| {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let containers = vec![lab.host.run(ContainerSpec { labels, ..client(name, "v2") })?];
        go(&containers)?;
        Ok(containers)
    })?;
    let container = containers.pop().context("a container")?;
    expect_equal("it has two exchanges", seen.exchanges(&container).len(), 2)?;
    Ok((seen, container))
}

fn a_gitlab_job_is_named(lab: &Lab) -> Outcome {
    let (seen, container) = labelled(
        lab,
        "runner-x7yz12ab-project-17-concurrent-0-build",
        &[
            ("com.gitlab.gitlab-runner.job.id", "4711"),
            ("com.gitlab.gitlab-runner.job.url", "https://gitlab.example/group/project/-/jobs/4711"),
            ("com.gitlab.gitlab-runner.job.ref", "main"),
            ("com.gitlab.gitlab-runner.job.sha", "0123456789abcdef0123456789abcdef01234567"),
            ("com.gitlab.gitlab-runner.project.id", "17"),
            ("com.gitlab.gitlab-runner.pipeline.id", "99"),
            ("com.gitlab.gitlab-runner.type", "build"),
        ],
    )?;
    let told = &seen.exchanges(&container)[0]["container"];
    let expected = json!({
        "system": "gitlab", "id": "4711", "url": "https://gitlab.example/group/project/-/jobs/4711", "project": "17",
        "pipeline": "99", "ref": "main", "sha": "0123456789abcdef0123456789abcdef01234567", "runner": null, "part": "build",
        "by": "labels",
    });
    expect_equal("the job", &told["job"], &expected)?;
    expect_equal("the runtime", &told["runtime"], &json!("docker"))?;
    expect_equal("nothing is in it", &told["inner"], &Value::Null)?;
    expect_equal("the report names it too", &seen.tally(&container)?["container"]["job"], &expected)?;
    let text = report(&seen)?;
    let words = "Job 4711 of gitlab, https://gitlab.example/group/project/-/jobs/4711.";
    expect_that("and people are told", text.contains(words), &text)?;
    Ok(())
}

fn a_compose_service_and_its_networks_are_named(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (seen, (containers, _network)) = watched(lab, &[], |_| {
        let network = lab.host.network_create(NetworkSpec::new("shop_default"))?;
        let spec = client("shop-db-1", "v2").network("shop_default");
        let spec = spec.label("com.docker.compose.project", "shop").label("com.docker.compose.service", "db");
        let containers = vec![lab.host.run(spec)?];
        go(&containers)?;
        Ok((containers, network))
    })?;
    let told = &seen.exchanges(&containers[0]).first().context("an exchange")?["container"];
    expect_equal("the service", &told["compose"], &json!({"project": "shop", "service": "db"}))?;
    expect_equal("the networks", &told["networks"], &json!(["shop_default"]))?;
    expect_equal("no job", &told["job"], &Value::Null)?;
    Ok(())
}

fn a_container_of_a_github_job_is_probably_one(lab: &Lab) -> Outcome {
    let network_name = format!("github_network_{}", "0123456789abcdef".repeat(2));
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (seen, (containers, _network)) = watched(lab, &[], |_| {
        let network = lab.host.network_create(NetworkSpec::new(&network_name))?;
        let containers = vec![lab.host.run(client("node20_1a2b3c", "v2").network(&network_name))?];
        go(&containers)?;
        Ok((containers, network))
    })?;
    let job = &seen.exchanges(&containers[0]).first().context("an exchange")?["container"]["job"];
    expect_equal("the system", &job["system"], &json!("github"))?;
    expect_equal("which job is not known", &job["id"], &Value::Null)?;
    expect_equal("it rests on names", &job["by"], &json!("names"))?;
    let text = report(&seen)?;
    expect_that("people are told so", text.contains("Job probably of github."), &text)?;
    Ok(())
}

fn hostile_labels_are_escaped_and_bounded(lab: &Lab) -> Outcome {
    let evil = "\u{1b}]0;owned\u{7}\u{1b}[2J\nERROR all is well\r\u{202e}\"'\\";
    let long = "x".repeat(100_000);
    let (seen, container) = labelled(
        lab,
        "hostile-labels",
        &[
            ("com.gitlab.gitlab-runner.job.id", evil),
            ("com.gitlab.gitlab-runner.job.url", &format!("https://h/{evil}")),
            ("com.gitlab.gitlab-runner.job.ref", &long),
            ("com.docker.compose.project", evil),
            ("com.example.long", &long),
            ("com.example.evil", evil),
        ],
    )?;
    let job = &seen.exchanges(&container)[0]["container"]["job"];
    expect_that("JSON says it as it is", job["id"].as_str().is_some_and(|id| id.starts_with("\u{1b}]0;owned")), job)?;
    expect_equal("an address with line ends is none", &job["url"], &Value::Null)?;
    expect_that("what is long is cut", job["ref"].as_str().is_some_and(|it| it.len() <= 128), job)?;
    let longest = seen.outcome.stdout.lines().map(str::len).max().unwrap_or(0);
    expect_that("no line is endless", longest < 10_000, longest)?;
    let raw = |text: &str| text.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
    expect_equal("nothing is raw in JSON", raw(&seen.outcome.stdout), None)?;
    let text = report(&seen)?;
    expect_equal("nor in text", raw(&text), None)?;
    expect_that("it is shown, escaped", text.contains("Job \\u{1b}]0;owned"), &text)?;
    expect_that("no line is of its own", !text.lines().any(|line| line.starts_with("ERROR all")), &text)?;
    Ok(())
}

fn a_secret_in_labels_or_a_user_agent_is_told_nowhere(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (seen, _containers) = watched(lab, &[], |_| {
        let agent = format!("x/{SECRET}");
        let spec = ContainerSpec::new("leaky", &["imds-client", "v2", "--user-agent", &agent]).wait_for_go();
        let spec = spec
            .label("com.gitlab.gitlab-runner.job.id", "1")
            .label("com.gitlab.gitlab-runner.job.url", &format!("https://me:{SECRET}@h/j/1?token={SECRET}"))
            .label("com.example.registry-password", SECRET)
            .label("com.example.command", &format!("curl -H 'X-aws-ec2-metadata-token: {SECRET}' h"))
            .label("com.example.bare", SECRET);
        let containers = vec![lab.host.run(spec)?];
        go(&containers)?;
        Ok(containers)
    })?;
    let told = &seen.outcome.exchanges().first().copied().context("an exchange")?["container"];
    expect_equal("where the job is", &told["job"]["url"], &json!("https://***@h/j/1"))?;
    let everything = [
        ("stdout", seen.outcome.stdout.clone()),
        ("stderr", seen.outcome.stderr.clone()),
        ("the recording", std::fs::read_to_string(&seen.outcome.recording)?),
        ("text", report(&seen)?),
    ];
    for (name, text) in &everything {
        let part = SECRET.as_bytes().windows(8).find(|part| text.contains(&*String::from_utf8_lossy(part)));
        expect_equal(&format!("no part of it is in {name}"), part, None)?;
    }
    Ok(())
}

/// A cgroup of a hierarchy that every process is in; removed when dropped, once nobody is in it.
struct Cgroup(PathBuf);

impl Cgroup {
    /// Below the cgroup of a path like those of `/proc/PID/cgroup`.
    fn make(path: &str) -> Result<Cgroup> {
        let root = Path::new("/sys/fs/cgroup");
        let root = if root.join("pids/cgroup.procs").exists() { root.join("pids") } else { root.to_owned() };
        let path = root.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Cgroup(path))
    }

    fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What stands above may be another's as well: then it stays.
        for path in self.0.ancestors().take(3) {
            if std::fs::remove_dir(path).is_err() {
                break;
            }
        }
    }
}

fn a_container_inside_a_container_is_named_beside_it(lab: &Lab) -> Outcome {
    let inner = format!("{:064x}", std::process::id());
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (seen, (containers, _cgroup)) = watched(lab, &[], |_| {
        // Where version 1 hierarchies are mounted it is moved in one of them alone, and only /proc tells of that one: it must be there
        // when it is read.
        let container = lab.host.run(client("dind", "v2 --linger-after 1"))?;
        let cgroup = Cgroup::make(&format!("/docker/{}/docker/{inner}", container.id()))?;
        std::fs::write(cgroup.procs(), container.pid()?.to_string()).context("move the process")?;
        let containers = vec![container];
        go(&containers)?;
        Ok((containers, cgroup))
    })?;
    let told = &seen.exchanges(&containers[0]).first().copied().context("an exchange of the outer one")?["container"];
    expect_equal("by the name of the outer one", &told["name"], &json!("dind"))?;
    expect_equal("and the id of the inner one", &told["inner"], &json!(inner))?;
    let text = report(&seen)?;
    expect_that("people are told", text.contains(&format!("container {} inside it", &inner[..12])), &text)?;
    Ok(())
}

fn containers_that_no_engine_introduced_are_named_by_their_runtime(lab: &Lab) -> Outcome {
    let program = std::env::current_exe()?;
    let client =
        program.ancestors().skip(1).take(2).map(|folder| folder.join("imds-client")).find(|path| path.is_file());
    let client = client.context("imds-client is beside the tests")?.display().to_string();
    let number = std::process::id();
    let (podman, step) = (format!("{number:064x}"), format!("{number:0>25}"));
    let places = [format!("/libpod_parent/libpod-{podman}"), format!("/docker/buildkit/{step}")];
    let (seen, ()) = watched(lab, &[], |_| {
        for place in &places {
            let cgroup = Cgroup::make(place)?;
            let script = format!("echo $$ > {}; exec \"$0\" v2 --comm asks --linger-after 1", cgroup.procs().display());
            let ran = lab.host.in_runner("sh").args(["-c", &script, &client]).output()?;
            expect_equal("it is served", ran.status.code(), Some(0))?;
        }
        Ok(())
    })?;
    for (id, runtime, words) in
        [(&podman, "podman", format!("podman {}", &podman[..12])), (&step, "buildkit", format!("buildkit step {step}"))]
    {
        let exchanges = seen.outcome.exchanges();
        let told = exchanges.iter().map(|exchange| &exchange["container"]).find(|told| told["id"] == id.as_str());
        let told = told.with_context(|| format!("an exchange of {id}: {exchanges:#?}"))?;
        expect_equal("by its runtime", &told["runtime"], &json!(runtime))?;
        expect_equal("without a name", &told["name"], &Value::Null)?;
        let text = report(&seen)?;
        expect_that("people are told", text.contains(&words), &text)?;
    }
    Ok(())
}
