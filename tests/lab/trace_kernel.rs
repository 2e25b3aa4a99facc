//! Is what is said of kernels true of this one? The same on every kernel that the lab runs on, `cargo xtask vm` above all.

use anyhow::{Context, Result};
use imds_trace_tests::Tracer;
use imds_trace_tests::expect::{expect_equal, expect_that};
use serde_json::Value;

use crate::Lab;

crate::tests![every_claim_about_versions_holds_here];

type Outcome = anyhow::Result<()>;

/// Features, and the first Linux that has them: what `imds-trace` and docs/kernels.md say.
const CLAIMS: [(&str, (u32, u32)); 4] =
    [("sock:inet_sock_set_state", (4, 16)), ("ring buffer", (5, 8)), ("drop reasons", (5, 17)), ("tcx", (6, 6))];

/// `6.12.117+deb12-cloud-amd64` is (6, 12).
fn version() -> Result<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => anyhow::bail!("{release} is no release of Linux"),
    }
}

fn every_claim_about_versions_holds_here(lab: &Lab) -> Outcome {
    let here = version()?;
    let outcome = Tracer::start(&lab.host, &[])?.stop()?;
    let ready = outcome.events.iter().find(|event| event["type"] == "ready").context("no ready")?;
    let features = ready["features"].as_array().context("no features")?;
    for (name, since) in CLAIMS {
        let feature = features.iter().find(|feature| feature["name"] == name).with_context(|| name.to_owned())?;
        let has = if here >= since { "yes" } else { "no" };
        expect_equal(&format!("has Linux {}.{} {name}", here.0, here.1), feature["has"].as_str(), Some(has))?;
        if here < since {
            let says = format!("Linux {}.{}", since.0, since.1);
            let needs = feature["needs"].as_str().unwrap_or_default();
            expect_that(&format!("it says that {name} needs {says}"), needs.contains(&says), needs)?;
        }
    }
    let via = if here >= (6, 6) { "tcx" } else { "clsact" };
    let hooks = ready["hooks"].as_array().context("no hooks")?;
    let on_interfaces: Vec<&Value> = hooks.iter().filter(|hook| hook["kind"] == "tc").collect();
    expect_equal("hooks on two interfaces", on_interfaces.len(), 4)?;
    expect_that("all the same way", on_interfaces.iter().all(|hook| hook["via"] == via), &on_interfaces)?;
    expect_equal("tracepoints and cgroups", hooks.len() - on_interfaces.len(), 5)?;
    // tcx is missing, too, but nothing with it: clsact does its work.
    let expected = if here >= (5, 17) { vec![] } else { vec!["drop reasons"] };
    let missing: Vec<_> = ready["missing"].as_array().into_iter().flatten().map(|it| it["hook"].as_str()).collect();
    expect_equal("what is missing", missing, expected.into_iter().map(Some).collect())?;
    Ok(())
}
