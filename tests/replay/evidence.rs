//! Is it noticed when a recording is not what was written, whatever was done to it?

use std::io::Cursor;

use anyhow::{Context, Result, ensure};
use diagnosis::input::Input;
use diagnosis::recording::{Reader, Writer};
use imds_trace_replay_tests::load;
use imds_trace_replay_tests::scenario::{END, header};
use libtest_mimic::{Failed, Trial};

/// What is done to each byte: the smallest change, and upper or lower case.
const FLIPS: [u8; 2] = [0x01, 0x20];

/// A claim and the story that shows it.
type Test = (&'static str, fn() -> Result<()>);

pub fn trials() -> Vec<Trial> {
    let tests: [Test; 5] = [
        ("a_recording_reads_as_it_was_written", a_recording_reads_as_it_was_written),
        ("a_byte_that_is_flipped_is_noticed_wherever_it_is", a_flipped_byte_is_noticed),
        ("a_line_that_is_taken_out_doubled_or_moved_is_noticed", a_line_out_of_place_is_noticed),
        ("a_recording_that_ends_early_is_noticed_wherever_it_does", an_early_end_is_noticed),
        ("what_stands_between_other_seals_is_good_all_the_same", other_seals_are_good),
    ];
    let trial = |(claim, test): Test| {
        Trial::test(format!("evidence::{claim}"), move || test().map_err(|error| Failed::from(format!("{error:#}"))))
    };
    tests.into_iter().map(trial).collect()
}

fn inputs(exchanges: u64) -> Vec<Input> {
    let told = (0..exchanges).flat_map(load::exchange);
    load::introduction().into_iter().chain(told).chain(load::conclusion(exchanges)).collect()
}

fn recorded(inputs: &[Input]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &header())?;
    inputs.iter().try_for_each(|input| writer.write(input))?;
    writer.close(END, false)?;
    Ok(bytes)
}

/// The inputs that are read, and what was wrong.
fn read(bytes: &[u8]) -> (Vec<Input>, Vec<String>) {
    let reader = match Reader::new(Cursor::new(bytes)) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), vec![error.to_string()]),
    };
    let (mut inputs, mut wrong) = (Vec::new(), Vec::new());
    for input in reader {
        match input {
            Ok(input) => inputs.push(input),
            Err(error) => wrong.push(error.to_string()),
        }
    }
    (inputs, wrong)
}

/// Something is wrong with it, and what is read of it was written, in this order.
fn expect_noticed(bytes: &[u8], written: &[Input], what: impl Fn() -> String) -> Result<()> {
    let (inputs, wrong) = read(bytes);
    ensure!(!wrong.is_empty(), "{} was not noticed", what());
    let mut rest = written.iter();
    ensure!(inputs.iter().all(|input| rest.any(|known| known == input)), "{}: what was read was not written", what());
    Ok(())
}

fn a_recording_reads_as_it_was_written() -> Result<()> {
    let written = inputs(20);
    let (read, wrong) = read(&recorded(&written)?);
    ensure!(wrong.is_empty() && read == written, "{wrong:?}");
    Ok(())
}

fn a_flipped_byte_is_noticed() -> Result<()> {
    let written = inputs(1);
    let bytes = recorded(&written)?;
    for at in 0..bytes.len() {
        for flip in FLIPS {
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            expect_noticed(&changed, &written, || format!("byte {at} with {flip:#x}"))?;
        }
    }
    Ok(())
}

fn a_line_out_of_place_is_noticed() -> Result<()> {
    let written = inputs(10);
    let bytes = recorded(&written)?;
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    ensure!(lines.len() > 130, "{} lines: too few seals", lines.len());
    for at in 0..lines.len() {
        let mut without = lines.clone();
        without.remove(at);
        expect_noticed(&without.concat(), &written, || format!("line {} taken out", at + 1))?;
        let mut doubled = lines.clone();
        doubled.insert(at, lines[at]);
        expect_noticed(&doubled.concat(), &written, || format!("line {} doubled", at + 1))?;
        if at > 0 && lines[at] != lines[at - 1] {
            let mut swapped = lines.clone();
            swapped.swap(at - 1, at);
            expect_noticed(&swapped.concat(), &written, || format!("lines {at} and {} swapped", at + 1))?;
        }
    }
    Ok(())
}

fn an_early_end_is_noticed() -> Result<()> {
    let written = inputs(1);
    let bytes = recorded(&written)?;
    for len in 0..bytes.len() {
        expect_noticed(&bytes[..len], &written, || format!("the end at byte {len}"))?;
    }
    // What is whole of it is read: all but what the last line said.
    let last = bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').context("several lines")?;
    let (read, wrong) = read(&bytes[..=last]);
    ensure!(read == written && wrong.len() == 1, "{} inputs of {}: {wrong:?}", read.len(), written.len());
    Ok(())
}

fn other_seals_are_good() -> Result<()> {
    let written = inputs(100);
    let bytes = recorded(&written)?;
    let middle = bytes.len() / 2;
    let mut changed = bytes.clone();
    changed[middle] ^= 1;
    let (read, wrong) = read(&changed);
    ensure!(wrong.len() == 1, "{wrong:?}");
    ensure!(read.len() + 64 >= written.len(), "{} of {} are left", read.len(), written.len());
    Ok(())
}
