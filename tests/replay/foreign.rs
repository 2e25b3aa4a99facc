//! Do bytes from others do no harm? Each parser's property over the files of the tests, and over what chance makes of them.
//!
//! `cargo xtask fuzz` looks longer and where this does not come, but takes minutes to build; this is what runs wherever the tests run.

use anyhow::Result;
use imds_trace_replay_tests::foreign::{PROPERTIES, Property, time, try_out};
use imds_trace_replay_tests::kept;
use libtest_mimic::Trial;

/// One for each parser.
pub fn trials() -> Vec<Trial> {
    let trial = |property: &'static Property| {
        Trial::test(format!("foreign::{}_does_no_harm", property.name), move || Ok(holds(property)?))
    };
    PROPERTIES.iter().map(trial).collect()
}

fn holds(property: &Property) -> Result<()> {
    let seeds: Vec<Vec<u8>> = kept::seeds(property.name)?.into_iter().map(|(_, seed)| seed).collect();
    try_out(property, &seeds, time());
    Ok(())
}
