//! Where does fuzzing begin? Writes the seeds of every target to `corpus/TARGET`, from the files of the tests.

use std::fs;
use std::path::Path;

use imds_trace_replay_tests::foreign::{PROPERTIES, Property};
use imds_trace_replay_tests::kept;
// What is built here counts which ways it takes, and libFuzzer has what counts.
use libfuzzer_sys as _;

type Seeds = Vec<(String, Vec<u8>)>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for property in PROPERTIES {
        write(property, kept::seeds(property.name)?)?;
    }
    #[cfg(feature = "machine")]
    for property in imds_trace_tests::machine::PROPERTIES {
        write(property, imds_trace_tests::machine::seeds(property.name)?)?;
    }
    Ok(())
}

fn write(property: &Property, seeds: Seeds) -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(property.name);
    fs::create_dir_all(&folder)?;
    seeds.iter().try_for_each(|(name, bytes)| fs::write(folder.join(name), &bytes[..bytes.len().min(property.most)]))
}
