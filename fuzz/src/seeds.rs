//! Where does fuzzing begin? Writes the seeds of every target to `corpus/TARGET`, from the files of the tests.

use std::fs;
use std::path::Path;

use imds_trace_replay_tests::foreign::PROPERTIES;
use imds_trace_replay_tests::kept;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for property in PROPERTIES {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(property.name);
        fs::create_dir_all(&folder)?;
        for (name, bytes) in kept::seeds(property.name)? {
            fs::write(folder.join(name), &bytes[..bytes.len().min(property.most)])?;
        }
    }
    Ok(())
}
