//! What?
use anyhow::Result;
use libtest_mimic::Trial;
pub fn trials() -> Result<Vec<Trial>> {
    Ok(Vec::new())
}
