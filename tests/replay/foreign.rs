//! Do bytes from others do no harm? Each parser's property over the files of the tests, and over what chance makes of them.
//!
//! `fuzz/` looks longer and where this does not come, but needs nightly Rust; this is what runs wherever the tests run.

use std::time::Duration;

use anyhow::Result;
use imds_trace_replay_tests::foreign::{PROPERTIES, Property, try_out};
use imds_trace_replay_tests::kept;
use libtest_mimic::Trial;

/// So long each property is tried, once all seeds were.
const TIME: Duration = Duration::from_secs(2);

/// One for each parser.
pub fn trials() -> Vec<Trial> {
    let trial = |property: &'static Property| {
        Trial::test(format!("foreign::{}_does_no_harm", property.name), move || Ok(holds(property)?))
    };
    PROPERTIES.iter().map(trial).collect()
}

fn holds(property: &Property) -> Result<()> {
    let seeds: Vec<Vec<u8>> = kept::seeds(property.name)?.into_iter().map(|(_, seed)| seed).collect();
    try_out(property, &seeds, TIME);
    Ok(())
}
