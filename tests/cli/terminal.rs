//! Is there colour where somebody looks, and none elsewhere? And what if nobody reads any more?

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use diagnosis::input::Input;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;

use crate::Outcome;
use crate::program::{Folder, Ran, command, inputs, recorded, recording, replaying};

crate::tests![
    there_is_colour_on_a_terminal,
    there_is_none_with_no_color,
    there_is_none_in_a_pipe_or_a_file,
    a_reader_that_leaves_ends_the_program_quietly,
    nobody_to_read_is_no_error,
    a_long_replay_shows_how_far_it_is_on_a_terminal,
    a_replay_of_a_pipe_shows_how_much_it_has_read,
    nobody_is_shown_a_bar_who_does_not_look,
];

/// What a pipe holds, bytes (pipe(7)).
const PIPE: usize = 1 << 16;
/// How long a line of a recording waits for what is on the screen, milliseconds.
const STEP: u8 = 10;
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
    repeated(TIMES)
}

fn repeated(times: u32) -> Result<Vec<u8>> {
    let once = inputs("imdsv1-used")?;
    let mut all = Vec::new();
    for time in 0..times {
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

/// What a command writes to a terminal that is its stderr, and its stdout too if asked for.
fn watched(mut command: Command, has_stdout: bool) -> Result<(Option<i32>, String)> {
    let terminal = openpty(None, None).context("open a terminal")?;
    command.env("TERM", "xterm-256color");
    if has_stdout {
        command.stdout(Stdio::from(terminal.slave.try_clone()?));
    } else {
        command.stdout(Stdio::null());
    }
    let mut child = command.stderr(Stdio::from(terminal.slave)).spawn()?;
    drop(command);
    let mut bytes = Vec::new();
    let _ = std::fs::File::from(terminal.master).read_to_end(&mut bytes);
    Ok((child.wait()?.code(), String::from_utf8_lossy(&bytes).into_owned()))
}

/// What stands on a terminal in the end: a line that is cleared, or begun again, is gone.
fn left(written: &str) -> Vec<String> {
    let lines = written.split('\n').map(|line| {
        let rest = line.rsplit("\u{1b}[2K").next().unwrap_or_default();
        rest.rsplit('\r').find(|part| !part.is_empty()).unwrap_or_default().to_owned()
    });
    lines.filter(|line| !line.trim().is_empty()).collect()
}

fn a_long_replay_shows_how_far_it_is_on_a_terminal() -> Outcome {
    let folder = Folder::new()?;
    // How long is long depends on the machine.
    for times in [2_000, 8_000, 32_000] {
        let file = folder.file("large.jsonl", repeated(times)?)?;
        let (code, bar) = watched(replaying(&file, &["--path", "/none", "--output", "json"])?, false)?;
        if !bar.contains(" left") {
            continue;
        }
        let expected = Ran::from(replaying(&file, &["--path", "/none", "--output", "json"])?.output()?).stderr;
        let said = bar.matches("nothing that was seen fits").count();
        if code != Some(0) || !bar.contains(" % of ") || said != 1 || left(&bar) != [expected.trim()] {
            return Err(format!("{code:?}: {bar:?} leaves {:?}, not {expected:?}", left(&bar)).into());
        }
        // On the same terminal as the report, no line of it is broken.
        let (code, both) = watched(replaying(&file, &["--group-by", "path"])?, true)?;
        let alone = Ran::from(replaying(&file, &["--group-by", "path"])?.output()?).stdout;
        let shown: Vec<String> = left(&both).iter().map(|line| plain(line).trim_end().to_owned()).collect();
        let whole: Vec<&str> = alone.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        if code != Some(0) || shown != whole {
            let odd = shown.iter().zip(&whole).find(|(shown, whole)| shown != whole);
            return Err(format!("{code:?}: {} lines, not {}: {odd:?}", shown.len(), whole.len()).into());
        }
        return Ok(());
    }
    Err("no replay was so long that a bar was shown".into())
}

/// A text without what colours it.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut parts = text.split(ESC);
    plain.push_str(parts.next().unwrap_or_default());
    for part in parts {
        plain.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    plain
}

/// The pipe is fed until the bar is there: how long a recording takes depends on the machine.
fn a_replay_of_a_pipe_shows_how_much_it_has_read() -> Outcome {
    let recording = repeated(2_000)?;
    let terminal = openpty(None, None).context("open a terminal")?;
    let mut command = command(["replay", "-", "--path", "/none"])?;
    command.env("TERM", "xterm-256color").stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::from(terminal.slave)).spawn()?;
    drop(command);
    let mut pipe = child.stdin.take().context("piped")?;
    let mut screen = std::fs::File::from(terminal.master);
    let mut bar = Vec::new();
    for line in recording.split_inclusive(|byte| *byte == b'\n') {
        pipe.write_all(line)?;
        let mut written = [PollFd::new(screen.as_fd(), PollFlags::POLLIN)];
        if poll(&mut written, PollTimeout::from(STEP))? > 0 {
            let mut some = [0; 4096];
            let read = screen.read(&mut some)?;
            bar.extend_from_slice(&some[..read]);
        }
        if String::from_utf8_lossy(&bar).contains("reading ") {
            break;
        }
    }
    drop(pipe);
    let _ = screen.read_to_end(&mut bar);
    let (code, bar) = (child.wait()?.code(), String::from_utf8_lossy(&bar));
    if code != Some(0) || !bar.contains("reading ") || bar.contains('%') {
        return Err(format!("{code:?}: {bar:?}").into());
    }
    Ok(())
}

fn nobody_is_shown_a_bar_who_does_not_look() -> Outcome {
    let folder = Folder::new()?;
    let file = folder.file("large.jsonl", repeated(8_000)?)?;
    let mut piped = replaying(&file, &["--output", "json"])?;
    Ran::from(piped.env("TERM", "xterm-256color").output()?).expect_quiet()?;
    let mut dumb = replaying(&file, &["--path", "/none"])?;
    let terminal = openpty(None, None).context("open a terminal")?;
    dumb.env("TERM", "dumb").stdout(Stdio::null()).stderr(Stdio::from(terminal.slave));
    let mut child = dumb.spawn()?;
    drop(dumb);
    let mut bytes = Vec::new();
    let _ = std::fs::File::from(terminal.master).read_to_end(&mut bytes);
    child.wait()?;
    let said = String::from_utf8_lossy(&bytes);
    if said.contains("reading") || said.contains(ESC) {
        return Err(format!("{said:?}").into());
    }
    Ok(())
}
