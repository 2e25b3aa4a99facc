//! Does what must hold of the parser `nft` hold of any bytes?

#![no_main]

use imds_trace_tests::machine;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| machine::nft(bytes));
