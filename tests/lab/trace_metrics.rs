//! Does Prometheus itself understand how it stands, and does an alert fire when a token is lost?

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use imds_trace_tests::children;
use imds_trace_tests::expect::{assert_no_secret, expect_equal, expect_that, wait_until};
use serde_json::Value;

use crate::Lab;
use crate::trace::{client, run_all, watched};

crate::tests![prometheus_scrapes_it_and_an_alert_fires_on_a_lost_token];

type Outcome = anyhow::Result<()>;

/// Where imds-trace is asked, on the runner host's loopback.
const METRICS: &str = "127.0.0.1:9469";
/// Where Prometheus is asked, there.
const PROMETHEUS: &str = "127.0.0.1:9470";
/// Prometheus looks and judges every half second here.
const PATIENCE: Duration = Duration::from_secs(60);

/// The real Prometheus in the runner host's network; it goes with this.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn alerts() -> PathBuf {
    tracer_tests().join("../docs/fleet/alerts.yml")
}

fn tracer_tests() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Prometheus {
    fn start(lab: &Lab, dir: &Path) -> Result<Self> {
        let config = dir.join("prometheus.yml");
        let text = format!(
            "global: {{ scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms }}\n\
             rule_files: [{}]\n\
             scrape_configs:\n  - job_name: imds-trace\n    static_configs: [{{ targets: [\"{METRICS}\"] }}]\n",
            alerts().display()
        );
        std::fs::write(&config, text)?;
        let mut command = lab.host.in_runner("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("prometheus").display()));
        command.arg(format!("--web.listen-address={PROMETHEUS}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(children::spawn(command).context("start prometheus (`cargo xtask setup --lab` installs it)")?))
    }
}

/// What an address in the runner host's network answers; nothing if it does not.
fn get(lab: &Lab, url: &str) -> Option<String> {
    let mut curl = lab.host.in_runner("/usr/bin/curl");
    curl.args(["--silent", "--fail", "--max-time", "5", url]);
    children::output(curl).ok()
}

/// What Prometheus answers to a question.
fn ask(lab: &Lab, what: &str) -> Option<Value> {
    serde_json::from_str(&get(lab, &format!("http://{PROMETHEUS}/api/v1/{what}"))?).ok()
}

/// Does a program of Prometheus accept this file on its standard input?
fn accepts(words: &[&str], input: &Path) -> Outcome {
    let mut promtool = children::command("promtool");
    promtool.args(words).stdin(std::fs::File::open(input)?).stdout(Stdio::piped()).stderr(Stdio::piped());
    let said = promtool.output().context("start promtool (`cargo xtask setup --lab` installs it)")?;
    let complaint = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    expect_that(&format!("promtool {words:?} accepts {}", input.display()), said.status.success(), complaint)
}

fn prometheus_scrapes_it_and_an_alert_fires_on_a_lost_token(lab: &Lab) -> Outcome {
    let rules = alerts();
    accepts(&["check", "rules", &rules.to_string_lossy()], &rules)?;
    let args = ["--output", &format!("metrics={METRICS}"), "--output", "metrics={dir}/it.prom"];
    let (seen, page) = watched(lab, &args, |tracer| {
        let prometheus = Prometheus::start(lab, tracer.dir())?;
        // A rise is one only for who has seen what was before.
        let zero = "query?query=imds_trace_exchanges_total%7Bimds=%22token%22,outcome=%22unanswered%22%7D";
        wait_until("Prometheus to see that nothing is lost", PATIENCE, || {
            let answer = ask(lab, zero)?;
            (answer["data"]["result"][0]["value"][1] == "0").then_some(())
        })?;
        let names = |answer: &Value| -> Vec<String> {
            let alerts = answer["data"]["alerts"].as_array().into_iter().flatten();
            let firing = alerts.filter(|alert| alert["state"] == "firing");
            firing.filter_map(|alert| alert["labels"]["alertname"].as_str().map(str::to_owned)).collect()
        };
        let quiet = ask(lab, "alerts").context("the alerts")?;
        expect_equal("nothing fires yet", names(&quiet), Vec::<String>::new())?;
        run_all(lab, vec![client("loses", "put-only --timeout-ms 400")])?;
        let mut last = Value::Null;
        let fires = wait_until("the alerts to fire", PATIENCE, || {
            last = ask(lab, "alerts")?;
            let firing = names(&last);
            ["ImdsTokenLost", "ImdsHopLimitTooLow", "ImdsError"]
                .iter()
                .all(|name| firing.iter().any(|other| other == name))
                .then_some(firing)
        });
        let firing = fires.with_context(|| last.to_string())?;
        let unasked = |name: &&String| ["ImdsTraceIncomplete", "ImdsTraceGone", "ImdsV1Used"].contains(&name.as_str());
        expect_equal("and no other", firing.iter().find(unasked), None)?;
        drop(prometheus);
        let page = get(lab, &format!("http://{METRICS}/metrics")).context("the page")?;
        expect_equal("nothing else is there", get(lab, &format!("http://{METRICS}/other")), None)?;
        Ok(page)
    })?;
    let asked = seen.outcome.dir.join("asked.prom");
    std::fs::write(&asked, &page)?;
    let written = seen.outcome.dir.join("it.prom");
    for file in [&asked, &written] {
        accepts(&["check", "metrics"], file)?;
    }
    let text = std::fs::read_to_string(&written)?;
    let secrets = lab.host.imds().secrets();
    assert_no_secret(&[("the page", page.as_bytes()), ("the file", text.as_bytes())], &[], &secrets)?;
    for part in [
        "imds_trace_exchanges_total{imds=\"token\",outcome=\"unanswered\"} 1\n",
        "imds_trace_hop_limit_observed 1\n",
        "imds_trace_hop_limit_needed 2\n",
        "imds_trace_hooks_missing 0\n",
    ] {
        expect_that(
            &format!("both say {part}"),
            [&page, &text].iter().all(|told| told.contains(part)),
            (&page, &text),
        )?;
    }
    for part in ["process_cpu_seconds_total ", "process_resident_memory_bytes "] {
        let value = page.lines().find_map(|line| line.strip_prefix(part)).and_then(|value| value.parse::<f64>().ok());
        expect_that(&format!("it says what it uses: {part}"), value.is_some_and(|value| value > 0.0), &page)?;
    }
    Ok(())
}
