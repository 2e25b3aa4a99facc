//! What do tests below the seam need? The language of the scenarios, and the recordings and captures that are kept.
//!
//! Names neither the kernel half nor the program: stable Rust builds it anywhere.

pub mod foreign;
pub mod kept;
pub mod load;
pub mod random;
pub mod scenario;
#[cfg(feature = "schema")]
pub mod schema;
pub mod wire;

use anyhow::{Result, bail};

/// Fails with `claim` and what was seen instead.
pub fn expect_equal<T: PartialEq + std::fmt::Debug>(claim: &str, seen: T, expected: T) -> Result<()> {
    if seen != expected {
        bail!("{claim}: expected {expected:?}, saw {seen:?}");
    }
    Ok(())
}
