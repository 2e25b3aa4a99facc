//! What must be concluded from what was seen? Scenarios written by hand, and recordings and captures made in the lab.
//!
//! No kernel, no root: below the seam everything is a function of the inputs. Each scenario and each recording is a test of its
//! own; a new file is a new test.

mod busy;
mod captures;
mod evidence;
mod foreign;
mod handed_over;
mod model;
mod partial;
mod recordings;
mod scenarios;
mod schema;
mod segments;
mod sweep;
mod variants;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = scenarios::trials().and_then(|mut trials: Vec<Trial>| {
        trials.extend(recordings::trials()?);
        trials.extend(captures::trials()?);
        trials.extend(busy::trials());
        trials.extend(evidence::trials());
        trials.extend(handed_over::trials());
        trials.extend(variants::trials());
        trials.extend(partial::trials());
        trials.extend(sweep::trials());
        trials.extend(schema::trials());
        trials.extend(foreign::trials());
        trials.extend(model::trials());
        trials.extend(segments::trials());
        Ok(trials)
    });
    match trials {
        Ok(trials) => libtest_mimic::run(&arguments, trials).exit_code(),
        Err(error) => {
            eprintln!("replay: {error:#}");
            ExitCode::from(2)
        }
    }
}
