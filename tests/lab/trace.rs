//! How does a test put the tracer beside a few containers and read what it concluded?

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use imds_trace_tests::attached::{self, OURS};
use imds_trace_tests::expect::{assert_no_secret, expect_equal, expect_that};
use imds_trace_tests::{Container, ContainerSpec, Engine, Namespace, Outcome, Tracer};
use serde_json::{Value, json};

use crate::Lab;

/// The longest a test waits for anything.
pub const SOON: Duration = Duration::from_secs(30);

/// A container with `imds-client` and these words, which waits for [`go`].
pub fn client(name: &str, words: &str) -> ContainerSpec {
    let args: Vec<_> = std::iter::once("imds-client").chain(words.split_whitespace()).collect();
    ContainerSpec::new(name, &args).wait_for_go()
}

/// Runs these containers, lets all go at once, and waits for all to end.
pub fn run_all(lab: &Lab, specs: Vec<ContainerSpec>) -> Result<Vec<Container>> {
    let containers = start_all(lab, specs)?;
    go(&containers)?;
    Ok(containers)
}

/// Starts these containers at once; which one has which address is the engine's affair.
pub fn start_all(lab: &Lab, specs: Vec<ContainerSpec>) -> Result<Vec<Container>> {
    std::thread::scope(|scope| {
        let starting: Vec<_> = specs.into_iter().map(|spec| scope.spawn(|| lab.host.run(spec))).collect();
        let started =
            starting.into_iter().map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        // All are waited for, so that those which did start are removed if one did not.
        started.collect::<Vec<_>>().into_iter().collect()
    })
}

/// Lets these containers go at once, and waits for all to end.
pub fn go(containers: &[Container]) -> Result<()> {
    for container in containers {
        container.go()?;
    }
    for container in containers {
        container.wait(SOON)?;
    }
    Ok(())
}

/// What a tracer said while a story was told.
pub struct Seen {
    /// Its words.
    pub outcome: Outcome,
    /// By how much the runner's `InHdrErrors` rose.
    pub header_errors: u64,
    /// By how much its `Ip6InHdrErrors` rose.
    pub header_errors6: u64,
    /// Inode number of the runner's namespace.
    pub runner: u64,
    engine: Engine,
}

/// Traces while `story` runs and until all it began has come to rest. Whatever the story: the tracer ends well, has lost
/// nothing, tells no secret and leaves nothing behind. Containers that the story returns live until the tracer has ended.
pub fn watched<T>(lab: &Lab, args: &[&str], story: impl FnOnce(&Tracer) -> Result<T>) -> Result<(Seen, T)> {
    lab.host.settle(SOON)?;
    let before = (lab.host.ip_in_hdr_errors()?, lab.host.ip6_in_hdr_errors()?);
    let tracer = Tracer::start(&lab.host, args)?;
    let told = story(&tracer)?;
    lab.host.settle(SOON)?;
    let outcome = tracer.stop()?;
    let seen = Seen {
        outcome,
        header_errors: lab.host.ip_in_hdr_errors()? - before.0,
        header_errors6: lab.host.ip6_in_hdr_errors()? - before.1,
        runner: lab.host.runner().inum(),
        engine: lab.host.engine(),
    };
    expect_that("the tracer ends well", seen.outcome.status.success(), &seen.outcome)?;
    expect_equal("nothing was lost", &seen.outcome.report()?["lost"], &json!(0))?;
    expect_equal("nothing of the tracer is left", ours_on(lab.host.runner())?, Vec::new())?;
    let secrets = lab.host.imds().secrets();
    if !secrets.is_empty() {
        let outputs = [("stdout", seen.outcome.stdout.as_bytes()), ("stderr", seen.outcome.stderr.as_bytes())];
        assert_no_secret(&outputs, &[&seen.outcome.dir], &secrets)?;
    }
    Ok((seen, told))
}

/// The tracer's programs on a namespace's interfaces.
pub fn ours_on(namespace: &Namespace) -> Result<Vec<attached::Attached>> {
    let mut found = attached::attached(namespace)?;
    found.retain(|one| OURS.iter().any(|name| one.program.contains(&name[..name.len().min(15)])));
    Ok(found)
}

impl Seen {
    /// The findings that stand: of several about the same thing the last.
    pub fn findings(&self) -> Vec<&Value> {
        let mut standing: BTreeMap<String, (usize, &Value)> = BTreeMap::new();
        for (at, finding) in self.outcome.of_type("finding").into_iter().enumerate() {
            let owner = (&finding["container"]["id"], &finding["address"], &finding["evidence"][0]);
            let key = format!("{} {owner:?} {}", finding["rule"], finding["drop"]["netns"]);
            standing.insert(key, (at, finding));
        }
        let mut standing: Vec<_> = standing.into_values().collect();
        standing.sort_by_key(|(at, _)| *at);
        standing.into_iter().map(|(_, finding)| finding).collect()
    }

    /// Is this exchange or finding attributed to this container? Without an engine its address must do.
    pub fn is_about(&self, event: &Value, container: &Container) -> bool {
        match self.engine {
            Engine::Docker => event["container"]["id"] == container.id(),
            Engine::Plain => {
                let (address, address6) = (container.address().map(|it| it.to_string()), container.address6());
                let seen = event["address"].as_str().or_else(|| event["client"]["address"].as_str()).map(str::to_owned);
                seen.is_some() && (seen == address || seen == address6.map(|it| it.to_string()))
            }
        }
    }

    /// The standing findings of a rule about a container.
    pub fn about(&self, container: &Container, rule: &str) -> Vec<&Value> {
        let findings = self.findings().into_iter();
        findings.filter(|finding| finding["rule"] == rule && self.is_about(finding, container)).collect()
    }

    /// The one standing finding of a rule about a container.
    pub fn only(&self, container: &Container, rule: &str) -> Result<&Value> {
        match self.about(container, rule)[..] {
            [one] => Ok(one),
            ref found => {
                let all = self.outcome.of_type("finding");
                bail!("{} has {} findings {rule}, not one; findings: {all:#?}", container.name(), found.len())
            }
        }
    }

    /// The rules that found something about a container, sorted.
    pub fn rules(&self, container: &Container) -> Vec<&str> {
        let findings = self.findings().into_iter().filter(|finding| self.is_about(finding, container));
        findings.filter_map(|finding| finding["rule"].as_str()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Exactly these rules (sorted) found something about a container.
    pub fn expect_rules(&self, container: &Container, rules: &[&str]) -> Result<()> {
        let found = self.rules(container);
        expect_equal(&format!("the rules about {}", container.name()), &found[..], rules)
            .with_context(|| format!("findings: {:#?}", self.outcome.of_type("finding")))
    }

    /// No finding about anybody is an error.
    pub fn expect_no_error(&self) -> Result<()> {
        let errors: Vec<_> = self.findings().into_iter().filter(|finding| finding["severity"] == "error").collect();
        expect_that("no finding is an error", errors.is_empty(), &errors)
    }

    /// The exchanges of a container.
    pub fn exchanges(&self, container: &Container) -> Vec<&Value> {
        self.outcome.exchanges().into_iter().filter(|exchange| self.is_about(exchange, container)).collect()
    }

    /// A container's line in the report at the end.
    pub fn tally(&self, container: &Container) -> Result<&Value> {
        let lines = self.outcome.report()?["containers"].as_array().context("containers in the report")?;
        let line = lines.iter().find(|line| self.is_about(line, container));
        line.with_context(|| format!("{} is not in the report", container.name()))
    }

    /// All of these exchanges were answered, and seen at these hooks (`docker0 ingress`, ...) on their way out and back.
    pub fn expect_answered(&self, container: &Container, count: usize, out: &[&str], back: &[&str]) -> Result<()> {
        let exchanges = self.exchanges(container);
        expect_equal(&format!("the exchanges of {}", container.name()), exchanges.len(), count)
            .with_context(|| format!("exchanges: {:#?}", self.outcome.exchanges()))?;
        for exchange in exchanges {
            expect_that("it was answered", exchange["answered"] == true, exchange)?;
            for (travel, hooks) in [(&exchange["request"], out), (&exchange["response"], back)] {
                expect_that("it was delivered", travel["fate"] == "delivered", exchange)?;
                expect_that(&format!("it was seen at {hooks:?}"), hops(travel) == hooks, exchange)?;
            }
        }
        Ok(())
    }

    /// The one `hop-limit-too-low` about a container says everything it should about an answer dropped on this host, and no
    /// other error is found about it. Gives its count.
    pub fn expect_too_low(&self, container: &Container, location: &str, needed: u8) -> Result<u64> {
        let finding = self.only(container, "hop-limit-too-low")?;
        let reason = self.reason("IP_INHDR")?;
        let expected_drop =
            json!({"location": location, "reason": reason, "ttl": 1, "interface": "ens5", "netns": self.runner});
        let mut drop = finding["drop"].clone();
        // Which functions led there is the kernel's affair.
        drop.as_object_mut().map(|drop| drop.remove("callers"));
        expect_equal("where it was dropped", &drop, &expected_drop)?;
        expect_equal("what it says of the limit", &finding["hop_limit"], &json!({"observed": 1, "needed": needed}))?;
        expect_equal("how sure it is", finding["confidence"].as_str(), Some("certain"))?;
        expect_equal("how bad it is", finding["severity"].as_str(), Some("error"))?;
        let command = format!("--http-put-response-hop-limit {needed}");
        let remedy = finding["remedy"][0].as_str().unwrap_or_default();
        expect_that("what mends it", remedy.split("  ").any(|words| words.contains(&command)), finding)?;
        let others = self.findings().into_iter().filter(|other| {
            self.is_about(other, container) && other["severity"] == "error" && other["rule"] != "hop-limit-too-low"
        });
        expect_equal("no other error is found", others.collect::<Vec<_>>(), Vec::new())?;
        let tally = self.tally(container)?;
        expect_equal("the report says the same", &tally["hop_limit"], &finding["hop_limit"])?;
        finding["count"].as_u64().context("a count")
    }

    /// A drop's reason as it must be told: null where the kernel gives none. `trace_kernel` sees to it that a kernel which
    /// gives reasons is known to.
    pub fn reason(&self, reason: &'static str) -> Result<Option<&'static str>> {
        let ready = self.outcome.of_type("ready");
        let features = ready.first().and_then(|ready| ready["features"].as_array()).context("no features")?;
        let reasons = features.iter().find(|feature| feature["name"] == "drop reasons").context("drop reasons")?;
        Ok((reasons["has"] == "yes").then_some(reason))
    }

    /// The tracer's counts agree with the kernel's.
    pub fn expect_reconciled(&self) -> Result<()> {
        let spent = &self.outcome.report()?["spent"];
        expect_equal("the report finds no difference to the kernel's count", &spent["difference"], &Value::Null)?;
        let counted = json!(self.header_errors + self.header_errors6);
        expect_equal("the report has the kernel's count", &spent["counted_by_kernel"], &counted)
    }
}

/// Where a request or a response was seen, in order.
pub fn hops(travel: &Value) -> Vec<&str> {
    travel["hops"].as_array().into_iter().flatten().filter_map(|hop| hop["hook"].as_str()).collect()
}
