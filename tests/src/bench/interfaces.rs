//! How long do start, end and catching up take where there are many bridges?

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::process::Watch;
use super::{Lab, Sheet, milliseconds};
use crate::attached;
use crate::expect::wait_until;
use crate::netns::Namespace;

/// Bridges that are there before the tracer, each with two ports, and those that are made beside it.
const BRIDGES: usize = 200;
const LATE: usize = 180;
const PATIENCE: Duration = Duration::from_secs(60);

/// Bridges in a namespace; gone with this.
struct Bridges<'a> {
    runner: &'a Namespace,
    names: Vec<String>,
}

impl<'a> Bridges<'a> {
    fn make(lab: &'a Lab, prefix: &str, count: usize, ports: usize) -> Result<Self> {
        let names: Vec<String> = (0..count).map(|number| format!("{prefix}{number}")).collect();
        let mut lines = String::new();
        for name in &names {
            writeln!(lines, "link add {name} type bridge\nlink set {name} up")?;
            for port in 0..ports {
                writeln!(lines, "link add {name}p{port} type veth peer name {name}q{port}")?;
                writeln!(lines, "link set {name}p{port} master {name} up")?;
            }
        }
        let bridges = Self { runner: lab.host.runner(), names };
        bridges.batch(lab, &lines)?;
        Ok(bridges)
    }

    fn batch(&self, lab: &Lab, lines: &str) -> Result<()> {
        let file = lab.host.dir().join("bench.ip");
        fs::write(&file, lines)?;
        self.runner.run("ip", &["-batch", file.to_str().context("a path of the lab's")?]).map(drop)
    }
}

impl Drop for Bridges<'_> {
    fn drop(&mut self) {
        for name in &self.names {
            for link in [format!("{name}p0"), format!("{name}p1"), name.clone()] {
                let _ = self.runner.ip(&format!("link del {link}"));
            }
        }
    }
}

/// Many are there, and then many come.
pub fn interfaces(lab: &Lab, sheet: &mut Sheet) -> Result<()> {
    let many = Bridges::make(lab, "br-a", BRIDGES, 2)?;
    let watch = Watch::start(&lab.host, false)?;
    sheet.note("201 bridges and 400 veths: exec to ready", "ms", milliseconds(watch.start));
    sheet.note("... resident", "MB", watch.memory("VmRSS")?);
    let began = Instant::now();
    watch.stop()?;
    sheet.note("... SIGTERM to end", "ms", milliseconds(began.elapsed()));
    drop(many);
    let watch = Watch::start(&lab.host, false)?;
    let began = Instant::now();
    let late = Bridges::make(lab, "br-b", LATE, 0)?;
    sheet.note("180 bridges: made in", "ms", milliseconds(began.elapsed()));
    let mut bare = late.names.clone();
    wait_until("the tracer to be on all of them", PATIENCE, || {
        attached::keep_bare(lab.host.runner(), &mut bare).ok()?;
        bare.is_empty().then_some(())
    })?;
    sheet.note("... the last is watched after", "ms", milliseconds(began.elapsed()));
    watch.stop()?;
    Ok(())
}
