//! Does what must hold of the parser `argv` hold of any bytes?

#![no_main]

use imds_trace_replay_tests::foreign;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| foreign::argv(bytes));
