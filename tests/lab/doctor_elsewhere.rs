//! Does `doctor` work where it is not a person's shell on the host: in a container with the host's namespaces, and without an engine?

use anyhow::Context;
use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::obstacle::{self, Family, Traffic, Verdict};
use imds_trace_tests::{ContainerSpec, Engine, tracer};
use serde_json::Value;

use crate::Lab;
use crate::doctor::{doctor, expect, waiting};

crate::tests![in_a_container_with_the_hosts_namespaces_it_sees_the_host, containers_are_found_without_asking_an_engine,];

type Outcome = anyhow::Result<()>;

/// As a DaemonSet runs it: the host's processes and network, no tools, no engine's socket, and cgroups of its own.
fn in_a_container_with_the_hosts_namespaces_it_sees_the_host(lab: &Lab) -> Outcome {
    if lab.host.engine() != Engine::Docker {
        return Ok(());
    }
    let job = waiting(lab, "job-17")?;
    let _rule = obstacle::docker_user(&lab.host, Family::V4, Traffic::ToImds, Verdict::Drop)?;
    let program = tracer::program()?;
    let agent = |name: &str, words: &[&str]| {
        let mut extra = ["--pid", "host", "--cgroupns", "private"].map(str::to_owned).to_vec();
        for option in ["seccomp=unconfined", "apparmor=unconfined"] {
            extra.extend(["--security-opt", option].map(str::to_owned));
        }
        for capability in ["SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN"] {
            extra.extend(["--cap-add", capability].map(str::to_owned));
        }
        for volume in [format!("{}:/imds-trace:ro", program.display())].into_iter().chain(libraries()) {
            extra.extend(["--volume".to_owned(), volume]);
        }
        let spec = ContainerSpec::new(name, words).network("host").foreground();
        lab.host.run(ContainerSpec { extra, ..spec })?.logs()
    };
    // Some first processes let nobody look.
    let sees_files = agent("looks", &["sh", "-c", "test -e /proc/1/root/usr && echo yes || echo no"])?.trim() == "yes";
    let said = agent("agent", &["/imds-trace", "doctor", "--output", "json"])?;
    let answers = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<Value>>();
    let short = &job.id()[..12];
    let subject = |answer: &Value| answer["subject"].as_str().filter(|name| name.ends_with(short)).map(str::to_owned);
    let name = answers.iter().find_map(subject).with_context(|| format!("{short} is seen: {said}"))?;
    expect(&answers, "route", &name, "ok", &["169.254.169.254 is reached by eth0", "from the host by ens5"])?;
    if sees_files {
        expect(&answers, "firewall", "host", "broken", &["DOCKER-USER", "-j DROP", &name])?;
        expect(&answers, "masquerade", "docker0", "ok", &["172.17.0.0/16"])?;
        expect(&answers, "bpf", "host", "ok", &["No BPF program"])?;
    } else {
        expect(&answers, "firewall", "host", "unknown", &["nft is not there"])?;
        expect(&answers, "masquerade", "docker0", "unknown", &["172.17.0.0/16", "nft is not there"])?;
        expect(&answers, "bpf", "host", "unknown", &["cgroup"])?;
    }
    let ok = answers
        .iter()
        .filter(|answer| answer["check"] == "firewall" && answer["subject"] == "host" && answer["status"] == "ok");
    expect_equal("the rules are not called harmless", ok.count(), 0)
}

/// Where the program finds the libraries that it was linked with, and nothing that could read rules.
fn libraries() -> impl Iterator<Item = String> {
    let folders = ["/lib64", "/usr/lib64", "/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu"];
    folders
        .into_iter()
        .filter(|folder| std::path::Path::new(folder).exists())
        .map(|folder| format!("{folder}:{folder}:ro"))
}

fn containers_are_found_without_asking_an_engine(lab: &Lab) -> Outcome {
    if lab.host.engine() != Engine::Docker {
        return Ok(());
    }
    let jobs = ["job-1", "job-2", "job-3", "job-4", "job-5"].map(|name| waiting(lab, name));
    let nobody = format!("unix://{}", lab.host.dir().join("no-engine.sock").display());
    let answers = doctor(lab, &["--docker-host", &nobody])?;
    let jobs = jobs.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    for job in &jobs {
        let name = format!("docker {}", job.id().get(..12).context("an id")?);
        expect(&answers, "route", &name, "ok", &["169.254.169.254 is reached by eth0"])?;
        expect(&answers, "firewall", &name, "ok", &[])?;
    }
    let program = tracer::program()?;
    let mut command = lab.host.in_runner(&program.to_string_lossy());
    let text = command.args(["doctor", "--docker-host", &nobody]).output()?;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    expect_that("those that fare alike are told together", text.contains("5 containers (docker "), &text)
}
