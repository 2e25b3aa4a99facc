//! Is there colour where somebody looks, and none elsewhere? And what if nobody reads any more?

use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use anyhow::{Context, Result};
use diagnosis::input::Input;
use nix::pty::openpty;

use crate::Outcome;
use crate::program::{Folder, Ran, inputs, recorded, recording, replaying};

crate::tests![
    there_is_colour_on_a_terminal,
    there_is_none_with_no_color,
    there_is_none_in_a_pipe_or_a_file,
    a_reader_that_leaves_ends_the_program_quietly,
    nobody_to_read_is_no_error,
];

/// What a pipe holds, bytes (pipe(7)).
const PIPE: usize = 1 << 16;
const ESC: char = '\u{1b}';

/// What `replay` writes to a terminal.
fn on_a_terminal(folder: &Folder, environment: &[(&str, &str)]) -> Result<String> {
    let file = folder.file("it.jsonl", recorded("hop-limit-too-low")?)?;
    let terminal = openpty(None, None).context("open a terminal")?;
    let mut command = replaying(&file, &[])?;
    // In CI, a terminal that says nothing of itself is taken for one with colour.
    command.env_remove("CI").env("TERM", "xterm-256color").envs(environment.iter().copied());
    let mut child = command.stdout(Stdio::from(terminal.slave)).spawn()?;
    // The terminal's other end is ours alone once the command is gone.
    drop(command);
    let mut bytes = Vec::new();
    // Reading ends with an error (EIO) when the last writer has gone.
    let _ = std::fs::File::from(terminal.master).read_to_end(&mut bytes);
    child.wait()?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn there_is_colour_on_a_terminal() -> Outcome {
    let folder = Folder::new()?;
    let text = on_a_terminal(&folder, &[])?;
    if !text.contains(ESC) || !text.contains("hop-limit-too-low") {
        return Err(format!("no colour: {text:?}").into());
    }
    Ok(())
}

fn there_is_none_with_no_color() -> Outcome {
    let folder = Folder::new()?;
    for environment in [&[("NO_COLOR", "1")][..], &[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")], &[("TERM", "dumb")]] {
        let text = on_a_terminal(&folder, environment)?;
        if text.contains(ESC) || !text.contains("hop-limit-too-low") {
            return Err(format!("{environment:?}: {text:?}").into());
        }
    }
    Ok(())
}

fn there_is_none_in_a_pipe_or_a_file() -> Outcome {
    let folder = Folder::new()?;
    let file = folder.file("it.jsonl", recorded("hop-limit-too-low")?)?;
    let report = folder.path().join("report.txt");
    let output = format!("text={}", report.display());
    let mut piped = replaying(&file, &[])?;
    let ran = Ran::from(piped.env("TERM", "xterm-256color").output()?);
    ran.expect_quiet()?;
    let mut written = replaying(&file, &["--output", &output])?;
    Ran::from(written.env("TERM", "xterm-256color").output()?).expect_quiet()?;
    for text in [ran.stdout, std::fs::read_to_string(report)?] {
        if text.contains(ESC) || !text.contains("hop-limit-too-low") {
            return Err(format!("{text:?}").into());
        }
    }
    Ok(())
}

/// Many times the same situation, each with connections of its own: more than any pipe holds.
fn large() -> Result<Vec<u8>> {
    const TIMES: u32 = 2_000;
    let once = inputs("imdsv1-used")?;
    let mut all = Vec::new();
    for time in 0..TIMES {
        all.extend(once.iter().filter_map(|input| match input {
            Input::Observation(observation) => {
                let mut observation = observation.clone();
                observation.at.0 += u64::from(time) * 10_000_000_000;
                if let Some(tcp) = &mut observation.tcp {
                    tcp.seq = tcp.seq.wrapping_add(time * 10_000);
                    tcp.ack = tcp.ack.wrapping_add(time * 10_000);
                }
                Some(Input::Observation(observation))
            }
            _ => None,
        }));
    }
    recording(&all)
}

fn a_reader_that_leaves_ends_the_program_quietly() -> Outcome {
    let folder = Folder::new()?;
    let file = folder.file("large.jsonl", large()?)?;
    for kind in diagnosis::output::OUTPUTS.iter().filter(|kind| !kind.needs_path && !kind.generated) {
        let options = ["--output", kind.name];
        let all = Ran::from(replaying(&file, &options)?.output()?);
        if all.stdout.len() < 2 * PIPE {
            return Err(format!("{} bytes would fit into a pipe", all.stdout.len()).into());
        }
        let mut child = replaying(&file, &options)?.spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        // The reader is gone here, as `head -1` would be.
        let ran = Ran::from(child.wait_with_output()?);
        ran.expect_quiet()?;
        if line.is_empty() {
            return Err(format!("{}: no line: {ran:?}", kind.name).into());
        }
    }
    Ok(())
}

fn nobody_to_read_is_no_error() -> Outcome {
    let folder = Folder::new()?;
    let file = folder.file("it.jsonl", recorded("hop-limit-too-low")?)?;
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let mut child = replaying(&file, &[])?.stdout(Stdio::from(OwnedFd::from(writer))).spawn()?;
    let mut stderr = String::new();
    child.stderr.take().context("piped")?.read_to_string(&mut stderr)?;
    let code = child.wait()?.code();
    // What was asserted is another matter: see `closing`.
    Ok(Ran { code, stdout: String::new(), stderr }.expect_quiet()?)
}
