//! Does a client of the lab refuse to ask from the machine's own network, where a real IMDS may answer?

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use anyhow::Context;
use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::own_network::refused;

use crate::Outcome;

crate::tests![the_first_namespace_is_known_by_its_inode, a_client_of_the_lab_does_not_ask_from_there,];

fn the_first_namespace_is_known_by_its_inode() -> Outcome {
    expect_that("it is refused", refused(4_026_531_833).is_some(), ())?;
    expect_equal("one of the lab's is not", refused(4_026_532_200), None)?;
    Ok(())
}

/// Were it to ask all the same, it would ask the loopback interface, where nobody listens: nothing leaves.
fn a_client_of_the_lab_does_not_ask_from_there() -> Outcome {
    let own = std::fs::metadata("/proc/self/ns/net").context("look at the own namespace")?.ino();
    let client = env!("CARGO_BIN_EXE_imds-client");
    let ran = Command::new(client).args(["put-only", "--timeout-ms", "1", "--endpoint", "127.0.0.1"]).output()?;
    match refused(own) {
        Some(why) => {
            expect_equal("its exit code", ran.status.code(), Some(2))?;
            expect_equal("what it says", String::from_utf8_lossy(&ran.stderr).trim(), &format!("imds-client: {why}"))?;
            expect_that("it tried nothing", ran.stdout.is_empty(), &ran)?;
        }
        None => expect_equal("elsewhere it asks", ran.status.code(), Some(1))?,
    }
    Ok(())
}
