//! Is the recording evidence: whole after a kill, on a full disk and in many files, and who asked for credentials is found in it?

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use diagnosis::recording::digest_of;
use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::tracer::program;
use imds_trace_tests::{ContainerSpec, Tokens, Tracer, children};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use crate::Lab;
use crate::trace::{SOON, client, run_all, watched};

crate::tests![
    a_tracer_killed_under_load_leaves_what_it_had_written,
    a_full_disk_ends_the_run_and_leaves_what_is_whole,
    files_under_load_stay_within_their_limits_and_are_one_chain,
    who_took_credentials_is_found_in_a_recording,
];

type Outcome = anyhow::Result<()>;

/// What `replay` leaves.
struct Told {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Told {
    fn count(&self, kind: &str) -> usize {
        self.stdout.matches(&format!("{{\"type\":\"{kind}\"")).count()
    }

    fn report(&self) -> Result<Value> {
        serde_json::from_str(self.stdout.lines().last().context("a report")?).context("the report is JSON")
    }
}

fn replay(file: &Path, options: &[&str]) -> Result<Told> {
    let mut command = children::command(program()?);
    command.arg("replay").arg(file).args(options);
    let ran = command.output().context("start imds-trace")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Told { code: ran.status.code(), stdout: text(&ran.stdout), stderr: text(&ran.stderr) })
}

fn exchanges(events: &[Value]) -> usize {
    events.iter().filter(|event| event["type"] == "exchange").count()
}

/// Recordings in a folder, by name.
fn recordings(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let is_one = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("recording."));
    let mut found: Vec<_> = entries.into_iter().filter(is_one).collect();
    found.sort();
    Ok(found)
}

fn a_tracer_killed_under_load_leaves_what_it_had_written(lab: &Lab) -> Outcome {
    // Nobody acknowledges what is on its way to a container that is removed.
    lab.host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.give_up) = (2, Duration::from_millis(500)));
    let tracer = Tracer::start(&lab.host, &[])?;
    let busy = lab.host.run(client("busy", "v2 --count 2000 --parallel 4"))?;
    busy.go()?;
    let seen = tracer.wait_for("many exchanges", SOON, |events| {
        let seen = exchanges(events);
        (seen > 200).then_some(seen)
    })?;
    let left = tracer.killed()?;
    drop(busy);
    let written = fs::read(&left.recording)?;
    let told = replay(&left.recording, &["--output", "json"])?;
    expect_equal("it can be replayed", told.code, Some(0))?;
    expect_that("what was told is in it", told.count("exchange") >= seen, told.count("exchange"))?;
    let missing = told.stderr.contains("not closed") || told.stderr.contains("cut short");
    expect_that(
        "one sentence says that its end is missing",
        missing && told.stderr.lines().count() == 1,
        &told.stderr,
    )?;
    expect_equal("so does the report", &told.report()?["recording"]["intact"], &Value::Bool(false))?;

    let path = left.recording.display().to_string();
    let next = Tracer::start(&lab.host, &["--record", &path])?;
    run_all(lab, vec![client("after", "v2 --count 2")])?;
    lab.host.settle(SOON)?;
    let next = next.stop()?;
    expect_that("the next start says so", next.stderr.contains("was not closed: it reaches from"), &next.stderr)?;
    let folder = left.recording.parent().context("a folder")?;
    let found = recordings(folder)?;
    expect_equal("both are there", found.len(), 2)?;
    expect_that("the first is kept as it was", fs::read(&found[0])? == written, &found)?;
    expect_that("the next start names it", next.stderr.contains(&found[0].display().to_string()), &next.stderr)?;
    let both = replay(&folder.join("recording.*"), &["--output", "json"])?;
    expect_equal("both are one chain, but for the missing end", both.stderr.lines().count(), 1)?;
    expect_that("of which all is told", both.count("exchange") >= told.count("exchange") + 4, both.count("exchange"))?;
    Ok(())
}

/// A disk of a few bytes; dropping it takes it away.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(path: PathBuf, kilobytes: u32) -> Result<Self> {
        fs::create_dir(&path)?;
        let options = format!("size={kilobytes}k,mode=700");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .context("mount a tmpfs")?;
        Ok(Self(path))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}

fn a_full_disk_ends_the_run_and_leaves_what_is_whole(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.give_up) = (2, Duration::from_millis(500)));
    let disk = SmallDisk::new(lab.host.dir().join("small-disk"), 256)?;
    let path = disk.0.join("recording.jsonl");
    let tracer = Tracer::start(&lab.host, &["--record", &path.display().to_string()])?;
    let busy = lab.host.run(client("filler", "v2 --count 500 --parallel 2"))?;
    busy.go()?;
    let ended = tracer.finish(SOON)?;
    drop(busy);
    expect_equal("it ends as one that could not do its work", ended.status.code(), Some(2))?;
    let says = ended.stderr.contains("--record") && ended.stderr.contains("No space left");
    expect_that("and says why", says, &ended.stderr)?;
    expect_that("what it saw is reported", ended.report().is_ok(), &ended.stdout)?;
    let told = replay(&path, &["--output", "json"])?;
    expect_equal("what it wrote can be replayed", told.code, Some(0))?;
    expect_that("up to its last whole line", told.count("exchange") > 10, told.count("exchange"))?;
    expect_equal("and the end is said to be missing", told.stderr.lines().count(), 1)?;
    Ok(())
}

fn files_under_load_stay_within_their_limits_and_are_one_chain(lab: &Lab) -> Outcome {
    const SIZE: u64 = 256 << 10;
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let limits = ["--record-rotate", "256KiB", "--record-keep", "3"];
    let (seen, _busy) = watched(lab, &limits, |_| run_all(lab, vec![client("busy", "v2 --count 150 --parallel 4")]))?;
    let recording = &seen.outcome.recording;
    let found = recordings(&seen.outcome.dir)?;
    expect_equal("as many files as are to be kept, and the current one", found.len(), 4)?;
    for file in &found {
        let size = fs::metadata(file)?.len();
        expect_that("each stays within its size", size <= SIZE, (file, size))?;
        let told = replay(file, &["--output", "json"])?;
        expect_equal("each can be replayed on its own", (told.code, told.stderr.as_str()), (Some(0), ""))?;
        let nameless = told.stdout.lines().filter(|line| line.starts_with("{\"type\":\"exchange\""));
        let nameless: Vec<_> = nameless.filter(|line| !line.contains("\"name\":\"busy\"")).collect();
        expect_that("and says who it was", nameless.len() <= 4, &nameless)?;
    }
    let digest = digest_of(recording)?;
    expect_that("the last digest is told", seen.outcome.stderr.contains(&digest), &seen.outcome.stderr)?;
    let pattern = seen.outcome.dir.join("recording.*");
    let all = replay(&pattern, &["--output", "json"])?;
    expect_equal("together they are one whole chain", (all.code, all.stderr.as_str()), (Some(0), ""))?;
    expect_equal("with nothing amiss", &all.report()?["recording"], &Value::Null)?;
    fs::remove_file(&found[1])?;
    let less = replay(&pattern, &["--output", "json"])?;
    expect_equal("one that was taken out of the middle does not stop it", less.code, Some(0))?;
    let name = found[1].file_name().unwrap_or_default().to_string_lossy().into_owned();
    expect_that("but is missed by its name", less.stderr.contains(&format!("{name}, is missing")), &less.stderr)?;
    Ok(())
}

/// A container of a CI job, with words for `imds-client`.
fn job(name: &str, number: u32, words: &str) -> ContainerSpec {
    client(name, words).label("com.gitlab.gitlab-runner.job.id", &number.to_string())
}

fn who_took_credentials_is_found_in_a_recording(lab: &Lab) -> Outcome {
    const ROLE: &str = "/latest/meta-data/iam/security-credentials/lab-runner-role";
    lab.host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.tokens) = (2, Tokens::Optional));
    let (seen, containers) = watched(lab, &[], |_| {
        let jobs = vec![
            job("job-17", 4217, &format!("v2 --comm python3 --path {ROLE} --linger-after 1")),
            job("job-18", 4218, &format!("v1 --comm curl --path {ROLE} --count 3 --linger-after 1")),
            job("job-19", 4219, "v2 --comm agent --linger-after 1"),
        ];
        run_all(lab, jobs)
    })?;
    let question = ["--path", "*/security-credentials/*", "--group-by", "process"];
    let told = replay(&seen.outcome.recording, &question)?;
    expect_equal("it is answered", (told.code, told.stderr.as_str()), (Some(0), ""))?;
    for part in [
        "By process (2 groups)",
        "of job-17 (172.17.0.",
        "CI job 4217",
        "imds-client v2 --comm python3",
        "started by containerd-shim",
        "took credentials of role lab-runner-role 1 time (1 asked for), over IMDSv2",
        "CI job 4218",
        "took credentials of role lab-runner-role 3 times (3 asked for), over IMDSv1",
    ] {
        expect_that(&format!("{part:?} is told"), told.stdout.contains(part), &told.stdout)?;
    }
    expect_that("who did not ask is not named", !told.stdout.contains("job-19"), &told.stdout)?;
    let events = replay(&seen.outcome.recording, &[&["--output", "json"], &question[..]].concat())?;
    let groups: Vec<Value> = events
        .stdout
        .lines()
        .filter(|line| line.starts_with("{\"type\":\"group\""))
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect::<Result<_>>()?;
    for (container, number) in containers.iter().zip(["4217", "4218"]) {
        let is_its = |group: &&Value| group["container"]["id"] == container.id();
        let group = groups.iter().find(is_its).with_context(|| format!("{}: {groups:?}", container.name()))?;
        expect_equal("its job", group["job"].as_str(), Some(number))?;
        expect_that("its parents", group["process"]["ancestors"][0]["comm"].is_string(), group)?;
    }
    // What is not asked for is not shown: an hour ago nothing was.
    let before = replay(&seen.outcome.recording, &["--until", "1h ago"])?;
    expect_that("nothing was there before", before.stdout.contains("Nothing matches the filter"), &before.stdout)?;
    Ok(())
}
