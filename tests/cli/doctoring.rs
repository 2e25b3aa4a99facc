//! Does `doctor` run for everybody, and refuse what cannot be meant? Whatever this machine is like.

use std::process::Stdio;

use crate::Outcome;
use crate::program::{Folder, command, json_lines, run};

crate::tests![
    what_cannot_be_meant_is_refused,
    a_file_that_cannot_be_made_is_one_sentence,
    it_runs_without_an_engine_and_each_line_is_an_object,
    text_and_json_say_the_same_number_of_things,
    nobody_to_read_is_no_error,
];

const NO_ENGINE: [&str; 2] = ["--docker-host", "unix:///no/such/engine.sock"];

fn what_cannot_be_meant_is_refused() -> Outcome {
    for (words, parts) in [
        (&["--output", "pcapng=x"][..], &["--output pcapng=x", "text, json"][..]),
        (&["--output", "json="], &["--output json=", "empty"]),
        (&["--output", "json", "--output", "text"], &["stdout"]),
        (&["--endpoint", "imds"], &["--endpoint imds"]),
    ] {
        run([&["doctor"], words].concat())?.expect_sentence(parts)?;
    }
    run(["doctor", "--clean", "--output", "json"])?.expect_code(2)?;
    run(["doctor", "--no-such-option"])?.expect_code(2)?;
    run(["doctor", "job-17"])?.expect_code(2)?;
    Ok(())
}

fn a_file_that_cannot_be_made_is_one_sentence() -> Outcome {
    let ran = run([&["doctor", "--output", "json=/no/such/folder/x"], &NO_ENGINE[..]].concat())?;
    ran.expect_sentence(&["--output", "/no/such/folder/x"])?;
    Ok(())
}

fn it_runs_without_an_engine_and_each_line_is_an_object() -> Outcome {
    let ran = run([&["doctor", "--output", "json", "--endpoint", "169.254.169.254"], &NO_ENGINE[..]].concat())?;
    ran.expect_quiet()?;
    let lines = ran.json()?;
    let Some((last, answers)) = lines.split_last() else { return Err("nothing was said".into()) };
    let whole = answers.iter().all(|line| {
        let text = |field: &str| line[field].as_str().is_some_and(|text| !text.is_empty());
        line["type"] == "check" && ["at", "check", "kind", "subject", "status", "summary"].into_iter().all(text)
    });
    if last["type"] != "summary" || !whole {
        return Err(format!("{lines:#?}").into());
    }
    let engine = answers.iter().find(|line| line["check"] == "engine").map(|line| &line["status"]);
    if engine.is_none_or(|status| status != "unknown") {
        return Err(format!("no engine is not unknown: {engine:?}").into());
    }
    Ok(())
}

fn text_and_json_say_the_same_number_of_things() -> Outcome {
    let folder = Folder::new()?;
    let file = folder.path().join("answers.jsonl");
    let to_file = format!("json={}", file.display());
    let ran = run([&["doctor", "--output", "text", "--output", &to_file], &NO_ENGINE[..]].concat())?;
    ran.expect_quiet()?;
    let count = json_lines(&std::fs::read_to_string(&file)?)?.len() - 1;
    if !ran.stdout.contains(&format!("Summary: {count} answers")) || ran.stdout.contains('\u{1b}') {
        return Err(format!("{count} in JSON: {ran:?}").into());
    }
    Ok(())
}

fn nobody_to_read_is_no_error() -> Outcome {
    let mut child = command([&["doctor"], &NO_ENGINE[..]].concat())?.stdout(Stdio::piped()).spawn()?;
    drop(child.stdout.take());
    let output = child.wait_with_output()?;
    if output.status.code() != Some(0) || !output.stderr.is_empty() {
        return Err(format!("{output:?}").into());
    }
    Ok(())
}
