//! What holds on a real kernel, with real containers and a hop limit?
//!
//! One runner host, and the tests one after the other on it: each is a function whose name is the claim, listed in the
//! table of its file. A test sets the behaviour it needs; before each, the behaviour is the default again.
//!
//! It needs root and says so; it never skips. `cargo test --test lab -- NAME` runs some; `--list` lists without root.
//! `$IMDS_LAB_TESTS` names a file that lists the tests to choose from, by their whole names.
//! Of a test that failed, what its tracers said and recorded is kept in the folder `$IMDS_LAB_EVIDENCE`, if that is set.
//! `$IMDS_LAB_AGAIN` is how many tests that fail may be run once more. One that then passes is told as flaky, with why it failed.

mod doctor;
mod doctor_and_watch;
mod doctor_elsewhere;
mod doctor_links;
mod doctor_mends;
mod doctor_programs;
mod doctor_scale;
mod doctor_ways;
mod kit;
mod kit_obstacles;
mod kit_programs;
mod kit_wire;
mod samples;
mod trace;
mod trace_answers;
mod trace_capture;
mod trace_causes;
mod trace_cost;
mod trace_drops;
mod trace_engine;
mod trace_fleet;
mod trace_forensics;
mod trace_frames;
mod trace_ground_truth;
mod trace_guest;
mod trace_hop_limit;
mod trace_identity;
mod trace_image;
mod trace_kernel;
mod trace_leftovers;
mod trace_metrics;
mod trace_names;
mod trace_network;
mod trace_page;
mod trace_pcap;
mod trace_pods;
mod trace_probe;
mod trace_programs;
mod trace_record;
mod trace_remedies;
mod trace_run;
mod trace_service;
mod trace_start;
mod trace_tokens;
mod trace_what_if;
mod trace_witness;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use imds_trace_tests::{Behaviour, HostOptions, RunnerHost, house};
use libtest_mimic::{Arguments, Failed, Trial};

/// What every test gets.
pub struct Lab {
    /// The one runner host.
    pub host: RunnerHost,
}

/// A claim and the story that shows it.
pub type Test = (&'static str, fn(&Lab) -> Result<()>);

/// Makes a row of a table from a function: its name is the claim.
#[macro_export]
macro_rules! tests {
    ($($claim:ident),* $(,)?) => {
        /// The tests of this file.
        pub const TESTS: &[$crate::Test] = &[$((stringify!($claim), $claim)),*];
    };
}

/// Removes the folders of a test's tracers; if it failed, keeps a copy where `$IMDS_LAB_EVIDENCE` says.
fn put_away(lab: &Lab, claim: &str, failed: bool) {
    let keep = std::env::var_os("IMDS_LAB_EVIDENCE").filter(|_| failed).map(|folder| Path::new(&folder).join(claim));
    for entry in std::fs::read_dir(lab.host.dir()).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with("tracer-") {
            continue;
        }
        if let Some(keep) = &keep {
            let target = keep.join(entry.file_name());
            let _ = std::fs::create_dir_all(&target);
            for file in std::fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                let _ = std::fs::copy(file.path(), target.join(file.file_name()));
            }
        }
        let _ = std::fs::remove_dir_all(entry.path());
    }
}

/// The tests to choose from: all, or those that the file `$IMDS_LAB_TESTS` lists, one `file::claim` a line.
fn wanted<'a>(tables: &[(&'a str, &[Test])]) -> Result<Vec<(&'a str, Vec<Test>)>> {
    let Some(list) = std::env::var_os("IMDS_LAB_TESTS") else {
        return Ok(tables.iter().map(|(file, tests)| (*file, tests.to_vec())).collect());
    };
    let list =
        std::fs::read_to_string(&list).with_context(|| format!("IMDS_LAB_TESTS {}", Path::new(&list).display()))?;
    let mut left: BTreeSet<&str> = list.lines().collect();
    let mut chosen = Vec::new();
    for (file, tests) in tables {
        let mut listed = |(claim, _): &&Test| left.remove(format!("{file}::{claim}").as_str());
        chosen.push((*file, tests.iter().filter(&mut listed).copied().collect()));
    }
    match left.first() {
        Some(unknown) => bail!("IMDS_LAB_TESTS names {unknown}, which is no test"),
        None => Ok(chosen),
    }
}

/// One turn of a test, from the default behaviour on.
fn turn(lab: &Lab, claim: &str, test: fn(&Lab) -> Result<()>) -> Result<()> {
    lab.host.imds().set(|behaviour| *behaviour = Behaviour::default());
    lab.host.imds().forget_requests();
    let result = test(lab);
    put_away(lab, claim, result.is_err());
    result
}

/// A test, and once more if it fails and there is one left of those that may be.
fn judge(lab: &Lab, (file, claim): (&str, &str), test: fn(&Lab) -> Result<()>, left: &AtomicU32) -> Result<()> {
    let Err(error) = turn(lab, claim, test) else { return Ok(()) };
    if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
        return Err(error);
    }
    turn(lab, claim, test).with_context(|| format!("it failed twice; first with: {error:#}"))?;
    // On a line of its own, which `xtask` reads.
    println!("\nflaky: {file}::{claim}: {}", format!("{error:#}").replace('\n', " "));
    Ok(())
}

/// How many tests may be run once more.
fn again() -> Result<u32> {
    match std::env::var("IMDS_LAB_AGAIN") {
        Ok(count) => count.parse().with_context(|| format!("IMDS_LAB_AGAIN {count}: not a number")),
        Err(_) => Ok(0),
    }
}

fn main() -> ExitCode {
    house::keep();
    let mut arguments = Arguments::from_args();
    // One host, one fake IMDS: the tests take turns.
    arguments.test_threads = Some(1);
    let tables = [
        ("kit", kit::TESTS),
        ("kit_wire", kit_wire::TESTS),
        ("kit_obstacles", kit_obstacles::TESTS),
        ("kit_programs", kit_programs::TESTS),
        ("doctor", doctor::TESTS),
        ("doctor_and_watch", doctor_and_watch::TESTS),
        ("doctor_elsewhere", doctor_elsewhere::TESTS),
        ("doctor_links", doctor_links::TESTS),
        ("doctor_mends", doctor_mends::TESTS),
        ("doctor_programs", doctor_programs::TESTS),
        ("doctor_scale", doctor_scale::TESTS),
        ("doctor_ways", doctor_ways::TESTS),
        ("trace_hop_limit", trace_hop_limit::TESTS),
        ("trace_tokens", trace_tokens::TESTS),
        ("trace_what_if", trace_what_if::TESTS),
        ("trace_witness", trace_witness::TESTS),
        ("trace_identity", trace_identity::TESTS),
        ("trace_image", trace_image::TESTS),
        ("trace_kernel", trace_kernel::TESTS),
        ("trace_metrics", trace_metrics::TESTS),
        ("trace_names", trace_names::TESTS),
        ("trace_pods", trace_pods::TESTS),
        ("trace_fleet", trace_fleet::TESTS),
        ("trace_forensics", trace_forensics::TESTS),
        ("trace_ground_truth", trace_ground_truth::TESTS),
        ("trace_network", trace_network::TESTS),
        ("trace_cost", trace_cost::TESTS),
        ("trace_drops", trace_drops::TESTS),
        ("trace_engine", trace_engine::TESTS),
        ("trace_answers", trace_answers::TESTS),
        ("trace_causes", trace_causes::TESTS),
        ("trace_programs", trace_programs::TESTS),
        ("trace_frames", trace_frames::TESTS),
        ("trace_guest", trace_guest::TESTS),
        ("trace_leftovers", trace_leftovers::TESTS),
        ("trace_page", trace_page::TESTS),
        ("trace_pcap", trace_pcap::TESTS),
        ("trace_capture", trace_capture::TESTS),
        ("trace_remedies", trace_remedies::TESTS),
        ("trace_run", trace_run::TESTS),
        ("trace_probe", trace_probe::TESTS),
        ("trace_record", trace_record::TESTS),
        ("trace_start", trace_start::TESTS),
        ("trace_service", trace_service::TESTS),
        ("samples", samples::TESTS),
    ];
    let (tables, left) = match wanted(&tables).and_then(|tables| Ok((tables, again()?))) {
        Ok((tables, left)) => (tables, Arc::new(AtomicU32::new(left))),
        Err(error) => {
            eprintln!("the lab cannot run: {error:#}");
            return ExitCode::from(2);
        }
    };
    if arguments.list {
        let trials = tables.iter().flat_map(|(file, tests)| tests.iter().map(move |(claim, _)| (file, claim)));
        let trials = trials.map(|(file, claim)| Trial::test(format!("{file}::{claim}"), || Ok(()))).collect();
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    let (options, why_plain) = HostOptions::best();
    if let Some(why) = why_plain {
        eprintln!("no Docker engine: {why}; containers are namespaces made by hand");
    }
    let lab = match RunnerHost::start(options) {
        Ok(host) => Arc::new(Lab { host }),
        Err(error) => {
            eprintln!("the lab cannot run: {error:#}");
            return ExitCode::from(2);
        }
    };
    let trials = tables.iter().flat_map(|(file, tests)| {
        let (lab, left) = (&lab, &left);
        tests.iter().map(move |&(claim, test)| {
            let (lab, left) = (Arc::clone(lab), Arc::clone(left));
            let name = (*file, claim);
            Trial::test(format!("{file}::{claim}"), move || {
                judge(&lab, name, test, &left).map_err(|error| Failed::from(format!("{error:#}")))
            })
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    // The trials, and with them their shares of the lab, are gone: this takes the host down.
    drop(lab);
    conclusion.exit_code()
}
