//! Is what cannot be meant refused in one sentence?

use crate::Outcome;
use crate::program::{Folder, recorded, replay, run};

crate::tests![
    help_and_version_go_to_stdout,
    help_names_every_output,
    no_command_and_an_unknown_one_are_errors,
    an_endpoint_is_an_address,
    there_are_at_most_eight_endpoints_of_a_family,
    a_duration_has_a_unit_and_is_not_zero,
    an_output_is_one_that_there_is,
    two_outputs_do_not_go_to_the_same_place,
    an_output_goes_to_a_path_that_has_a_name,
    an_interface_has_a_name_that_the_kernel_would_take,
    a_pid_is_a_number,
    what_is_shown_is_not_chosen_by_nothing,
    a_run_has_a_command,
    a_probe_has_a_target_and_a_patience,
];

fn help_and_version_go_to_stdout() -> Outcome {
    for words in [
        &["--help"][..],
        &["-h"],
        &["help"],
        &["watch", "--help"],
        &["run", "--help"],
        &["probe", "--help"],
        &["replay", "--help"],
        &["doctor", "--help"],
    ] {
        let ran = run(words)?;
        ran.expect_quiet()?;
        if !ran.stdout.contains("Usage: imds-trace") {
            return Err(format!("{words:?} does not show the usage: {ran:?}").into());
        }
    }
    for words in ["--version", "-V"] {
        let ran = run([words])?;
        ran.expect_quiet()?;
        if ran.stdout.trim() != format!("imds-trace {}", env!("CARGO_PKG_VERSION")) {
            return Err(format!("{words} does not say the version: {ran:?}").into());
        }
    }
    Ok(())
}

fn help_names_every_output() -> Outcome {
    let help = run(["replay", "--help"])?.stdout;
    for kind in diagnosis::output::OUTPUTS {
        if !help.contains(kind.name) {
            return Err(format!("--help does not name the output {}: {help}", kind.name).into());
        }
    }
    Ok(())
}

fn no_command_and_an_unknown_one_are_errors() -> Outcome {
    for words in [&[][..], &["wacth"], &["watch", "--no-such-option"], &["replay"], &["replay", "a", "b"]] {
        let ran = run(words)?;
        ran.expect_code(2)?;
        if !ran.stdout.is_empty() || ran.stderr.is_empty() {
            return Err(format!("{words:?}: {ran:?}").into());
        }
    }
    Ok(())
}

fn an_endpoint_is_an_address() -> Outcome {
    for wrong in ["imds", "169.254.169", "169.254.169.254:80", "169.254.169.254/32", "", "fd00:ec2::254%eth0"] {
        run(["watch", "--endpoint", wrong])?.expect_sentence(&["--endpoint", wrong])?;
    }
    Ok(())
}

fn there_are_at_most_eight_endpoints_of_a_family() -> Outcome {
    let words = (1..10).flat_map(|number| ["--endpoint".to_owned(), format!("10.0.0.{number}")]);
    run(std::iter::once("watch".to_owned()).chain(words))?.expect_sentence(&["--endpoint", "8"])?;
    Ok(())
}

fn a_duration_has_a_unit_and_is_not_zero() -> Outcome {
    for wrong in ["30", "0s", "soon", "-1s", "", "1month", "99999999999999999999h"] {
        run(["watch".to_owned(), format!("--for={wrong}")])?.expect_sentence(&["--for", wrong])?;
    }
    Ok(())
}

fn an_output_is_one_that_there_is() -> Outcome {
    for command in [&["watch"][..], &["replay", "-"]] {
        let words = [command, &["--output", "yaml"]].concat();
        run(words)?.expect_sentence(&["--output", "yaml", "text", "json"])?;
    }
    Ok(())
}

fn two_outputs_do_not_go_to_the_same_place() -> Outcome {
    for two in [["text", "json"], ["text", "text"], ["json=-", "text"], ["json=/tmp/x", "text=/tmp/x"]] {
        run(["replay", "-", "--output", two[0], "--output", two[1]])?.expect_sentence(&["--output"])?;
    }
    Ok(())
}

fn an_output_goes_to_a_path_that_has_a_name() -> Outcome {
    run(["replay", "-", "--output", "json="])?.expect_sentence(&["--output", "json="])?;
    for junit in ["junit", "junit=-"] {
        run(["replay", "-", "--output", junit])?.expect_sentence(&["--output", junit, "junit=PATH"])?;
    }
    let folder = Folder::new()?;
    let file = folder.file("it.jsonl", recorded("hop-limit-too-low")?)?;
    for path in ["/no/such/folder/x", "/", folder.path().to_str().unwrap_or_default()] {
        let output = format!("json={path}");
        let ran = replay(&file, &["--output", &output])?;
        ran.expect_sentence(&["--output", path])?;
    }
    Ok(())
}

fn an_interface_has_a_name_that_the_kernel_would_take() -> Outcome {
    for wrong in ["", "a b", "a/b", "0123456789abcdef", "a\nb", "\u{1b}[31m"] {
        let ran = run(["watch", "--interface", wrong])?;
        ran.expect_sentence(&["--interface"])?;
        if ran.stderr.contains('\u{1b}') {
            return Err(format!("a name reaches the terminal raw: {ran:?}").into());
        }
    }
    Ok(())
}

fn a_pid_is_a_number() -> Outcome {
    let ran = run(["replay", "-", "--pid", "init"])?;
    ran.expect_code(2)?;
    if !ran.stdout.is_empty() || !ran.stderr.contains("--pid") {
        return Err(format!("{ran:?}").into());
    }
    Ok(())
}

fn a_run_has_a_command() -> Outcome {
    for words in
        [&["run"][..], &["run", "--"], &["run", "--no-such-option", "--", "true"], &["run", "--for", "1s", "true"]]
    {
        let ran = run(words)?;
        ran.expect_code(2)?;
        if !ran.stdout.is_empty() || ran.stderr.is_empty() {
            return Err(format!("{words:?}: {ran:?}").into());
        }
    }
    Ok(())
}

fn a_probe_has_a_target_and_a_patience() -> Outcome {
    for wrong in ["", "pid:", "pid:zero", "pid:-1", "pid:99999999999"] {
        run(["probe", wrong])?.expect_sentence(&["probe", wrong])?;
    }
    for wrong in ["0s", "soon", "2"] {
        run(["probe", "web", "--timeout", wrong])?.expect_sentence(&["--timeout", wrong])?;
    }
    run(["probe", "web", "--endpoint", "imds"])?.expect_sentence(&["--endpoint", "imds"])?;
    run(["probe"])?.expect_code(2)?;
    Ok(())
}

fn what_is_shown_is_not_chosen_by_nothing() -> Outcome {
    // As with `--container "$JOB"` where JOB is not set: it would match nothing, and `--exit-code` would find no error.
    for option in ["--container", "--image", "--comm", "--path"] {
        run(["watch", option, ""])?.expect_sentence(&[option, "empty"])?;
    }
    Ok(())
}
