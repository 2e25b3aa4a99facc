//! Is what is said of the program's JSON as it is?

use std::fs;

use imds_trace_replay_tests::schema::{DOCTOR, OUTPUT, file};

use crate::Outcome;
use crate::program::run;

crate::tests![the_kept_schemas_are_what_is_generated];

/// Set: what is generated now is kept. `cargo xtask bless` sets it.
const BLESS: &str = "IMDS_TRACE_BLESS";

fn the_kept_schemas_are_what_is_generated() -> Outcome {
    for (kind, name) in [("schema", OUTPUT), ("schema-doctor", DOCTOR)] {
        let ran = run(["generate", kind])?;
        ran.expect_code(0)?;
        if std::env::var_os(BLESS).is_some() {
            fs::write(file(name), &ran.stdout)?;
        }
        let kept = fs::read_to_string(file(name))?;
        let mut lines = kept.lines().zip(ran.stdout.lines()).zip(1..);
        if let Some(((kept, now), line)) = lines.find(|((kept, now), _)| kept != now) {
            return Err(format!(
                "docs/schema/{name} line {line}: was\n{kept}\nand is\n{now}\nIf that is right: cargo xtask bless"
            )
            .into());
        }
        if kept != ran.stdout {
            return Err(format!("docs/schema/{name} is not as long as what is generated: cargo xtask bless").into());
        }
    }
    Ok(())
}
