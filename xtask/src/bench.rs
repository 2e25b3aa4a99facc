//! What does tracing cost on this machine, is anything lost, and is it worse than it was?

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{arch::Arch, release, setup, workspace};

/// The figures that others are compared with; of a quiet machine.
const KEPT: &str = "docs/design/bench.json";

/// By how much a ratio may be worse than the kept one: as much as rounds of one run differ.
const CHANCE: f64 = 0.25;

/// What is to be measured.
#[derive(clap::Args)]
pub struct Asked {
    /// Parts, e.g. `storm`, `start`; without any, all
    parts: Vec<String>,
    /// How often each part is run
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Compare what does not depend on the machine with docs/design/bench.json; worse by more than chance fails
    #[arg(long)]
    check: bool,
    /// Keep the figures in docs/design/bench.json
    #[arg(long, conflicts_with_all = ["check", "parts"])]
    keep: bool,
}

/// Something that other machines should measure alike.
struct Ratio {
    name: &'static str,
    figure: &'static str,
    /// What it is divided by; nothing where it is a count or bytes.
    by: Option<&'static str>,
    better: Better,
}

/// When is a ratio better?
enum Better {
    More,
    Less,
    /// Anything but zero is worse.
    Zero,
}

const fn ratio(name: &'static str, figure: &'static str, by: Option<&'static str>, better: Better) -> Ratio {
    Ratio { name, figure, by, better }
}

const RATIOS: &[Ratio] = &[
    ratio("records lost in a storm", "storm: records lost", None, Better::Zero),
    ratio("answered in a storm, and not told so", "storm: answered, and not told so", None, Better::Zero),
    ratio("false findings in a storm", "storm: findings, of which none is true", None, Better::Zero),
    ratio("records lost in a storm that is recorded", "storm with --record: records lost", None, Better::Zero),
    ratio("client's speed kept", "storm: speed kept", None, Better::More),
    ratio(
        "processor time an exchange, by that of tcpdump",
        "storm: processor time an exchange",
        Some("storm: processor time an exchange of tcpdump -w"),
        Better::Less,
    ),
    ratio(
        "added to a stranger's packet, by what tcpdump adds",
        "... added to it by the tracer",
        Some("... added to it by tcpdump -w"),
        Better::Less,
    ),
    ratio("MB resident at rest", "resident at rest", None, Better::Less),
    ratio("MB resident at most while starting", "resident at most while starting", None, Better::Less),
    ratio("MB resident at most in a storm", "storm: resident at most", None, Better::Less),
    ratio("MB resident after a storm", "storm: resident afterwards", None, Better::Less),
    ratio("MB resident after a million exchanges", "1000000 exchanges: resident 90 s later", None, Better::Less),
    ratio("packets that the kernel refused, and not told", "... of which it says nothing", None, Better::Zero),
    ratio("a stranger's throughput kept", "... kept beside the tracer", None, Better::More),
];

/// Measures the optimised program in the lab; leaves a table and JSON in target/bench.
pub fn bench(asked: &Asked) -> Result<ExitCode> {
    if !workspace::is_root() {
        bail!("the bench sets up network namespaces: run it as root");
    }
    setup::compiler_half()?;
    setup::lab_half()?;
    let kept = workspace::root().join(KEPT);
    let before = asked.check.then(|| read(&kept)).transpose()?;
    eprintln!("building imds-trace and the lab …");
    let programs = release::build(release::Together::Lab, Arch::own()?)?;
    let folder = workspace::built("bench", "")?;
    let mut lab = Command::new(programs.join("lab"));
    lab.arg("bench").arg(&folder).arg(asked.rounds.to_string()).args(&asked.parts);
    lab.env("IMDS_TRACE_BIN", programs.join("imds-trace"));
    workspace::run(lab.current_dir(workspace::root()))?;
    let measured = folder.join("bench.json");
    if asked.keep {
        fs::copy(&measured, &kept).with_context(|| kept.display().to_string())?;
        println!("kept in {KEPT}");
    }
    let Some(before) = before else { return Ok(ExitCode::SUCCESS) };
    let worse = compared(&before, &read(&measured)?)?;
    Ok(ExitCode::from(u8::from(worse > 0)))
}

fn read(path: &Path) -> Result<Value> {
    let read = || anyhow::Ok(serde_json::from_str(&fs::read_to_string(path)?)?);
    read().with_context(|| path.display().to_string())
}

/// Shows each ratio that was measured beside the kept one; gives how many are worse.
fn compared(before: &Value, now: &Value) -> Result<usize> {
    let mut worse = 0;
    let mut any = false;
    for ratio in RATIOS {
        let (Some(now), Some(before)) = (ratio.of(now), ratio.of(before)) else { continue };
        any = true;
        let is_worse = ratio.is_worse(before, now);
        worse += usize::from(is_worse);
        println!("{}{}: {now:.2}, was {before:.2}", if is_worse { "WORSE " } else { "" }, ratio.name);
    }
    if !any {
        bail!("nothing was measured that {KEPT} has, too");
    }
    Ok(worse)
}

impl Ratio {
    fn of(&self, figures: &Value) -> Option<f64> {
        let median = |name: &str| {
            let all = figures["figures"].as_array()?;
            all.iter().find(|figure| figure["figure"] == name)?["median"].as_f64()
        };
        Some(median(self.figure)? / self.by.map_or(Some(1.0), median)?)
    }

    fn is_worse(&self, before: f64, now: f64) -> bool {
        match self.better {
            Better::More => now < before * (1.0 - CHANCE),
            Better::Less => now > before * (1.0 + CHANCE),
            Better::Zero => now > 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn figures(lost: f64, kept: f64, ours: f64, tcpdump: f64) -> Value {
        let figure = |name: &str, median: f64| json!({"figure": name, "median": median});
        json!({"figures": [
            figure("storm: records lost", lost),
            figure("storm: speed kept", kept),
            figure("storm: processor time an exchange", ours),
            figure("storm: processor time an exchange of tcpdump -w", tcpdump),
        ]})
    }

    #[test]
    fn worse_is_what_chance_does_not_explain() {
        let kept = figures(0.0, 0.6, 60.0, 2.0);
        let worse = |now: Value| compared(&kept, &now).unwrap();
        assert_eq!(worse(figures(0.0, 0.5, 70.0, 2.0)), 0);
        assert_eq!(worse(figures(1.0, 0.6, 60.0, 2.0)), 1, "nothing may be lost");
        assert_eq!(worse(figures(0.0, 0.4, 60.0, 2.0)), 1, "less speed is kept");
        assert_eq!(worse(figures(0.0, 0.6, 60.0, 1.0)), 1, "this machine is faster, and the ratio is twice as bad");
        assert!(compared(&kept, &json!({"figures": []})).is_err(), "nothing to compare");
    }
}
