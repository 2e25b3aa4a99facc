//! Do this machine's own words do no harm, whoever chose them? Each parser's property over seeds, and over what chance makes of them.

use std::time::Duration;

use imds_trace_replay_tests::foreign::{Property, try_out};
use imds_trace_tests::machine::{PROPERTIES, seeds};
use libtest_mimic::Trial;

/// So long each property is tried, once all seeds were.
const TIME: Duration = Duration::from_secs(1);

/// One for each parser.
pub fn trials() -> impl Iterator<Item = Trial> {
    let trial = |property: &'static Property| {
        Trial::test(format!("foreign::{}_does_no_harm", property.name), move || {
            let seeds: Vec<Vec<u8>> = seeds(property.name)?.into_iter().map(|(_, seed)| seed).collect();
            try_out(property, &seeds, TIME);
            Ok(())
        })
    };
    PROPERTIES.iter().map(trial)
}
