//! Do this machine's own words do no harm, whoever chose them? Each parser's property over seeds, and over what chance makes of them.

use imds_trace_replay_tests::foreign::{Property, time, try_out};
use imds_trace_tests::machine::{PROPERTIES, seeds};
use libtest_mimic::Trial;

/// One for each parser.
pub fn trials() -> impl Iterator<Item = Trial> {
    let trial = |property: &'static Property| {
        Trial::test(format!("foreign::{}_does_no_harm", property.name), move || {
            let seeds: Vec<Vec<u8>> = seeds(property.name)?.into_iter().map(|(_, seed)| seed).collect();
            try_out(property, &seeds, time());
            Ok(())
        })
    };
    PROPERTIES.iter().map(trial)
}
