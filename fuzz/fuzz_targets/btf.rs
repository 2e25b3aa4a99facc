//! Does what must hold of the parser `btf` hold of any bytes?

#![no_main]

use imds_trace_tests::machine;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| machine::btf(bytes));
