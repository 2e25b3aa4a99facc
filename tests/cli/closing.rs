//! Does what nobody reads, or what cannot be written, leave everything else as it should be?

use std::fs::{self, File};
use std::process::Stdio;

use anyhow::Context;

use crate::Outcome;
use crate::capturing::capture;
use crate::program::{Folder, command, replaying, run};
use crate::readying::kept_at;

crate::tests![
    what_was_asserted_is_judged_though_nobody_reads,
    a_full_stderr_keeps_nothing_from_being_told,
    two_names_of_one_file_are_one_output,
    no_file_is_emptied_before_all_can_be_written,
    an_output_that_cannot_be_written_is_named,
    a_filter_that_matches_nothing_is_said_in_every_output,
    where_nothing_was_found_every_output_says_how_far_it_looked,
    a_time_that_ends_before_it_begins_is_refused,
    an_empty_file_beside_others_is_said_and_they_are_told,
];

const LOST: &str = "hop-limit-1-three-containers";

fn what_was_asserted_is_judged_though_nobody_reads() -> Outcome {
    for (options, code) in [(&["--expect", "no-errors"][..], 1), (&["--exit-code", "--output", "json"], 1), (&[], 0)] {
        let mut child = replaying(&kept_at(LOST)?, options)?.spawn().context("start")?;
        drop(child.stdout.take());
        let ended = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        let found = ended.status.code();
        if found != Some(code) {
            return Err(format!("{options:?}: {found:?}, not {code}: {said}").into());
        }
    }
    Ok(())
}

fn a_full_stderr_keeps_nothing_from_being_told() -> Outcome {
    let folder = Folder::new()?;
    let text = fs::read_to_string(kept_at(LOST)?)?;
    let cut = folder.file("cut.jsonl", &text[..text.len() * 2 / 3])?;
    let full = || File::options().write(true).open("/dev/full").context("/dev/full");
    let ended = replaying(&cut, &[])?.stderr(full()?).output()?;
    let told = String::from_utf8_lossy(&ended.stdout).into_owned();
    if ended.status.code() != Some(0) || !told.contains("Report: ") {
        return Err(format!("{:?}: {told}", ended.status).into());
    }
    let ended = command(["replay", "/nowhere.jsonl"])?.stderr(full()?).stdout(Stdio::null()).status()?;
    expect(ended.code() == Some(2), &format!("{:?}", ended.code()))
}

fn expect(holds: bool, saw: &str) -> Outcome {
    if holds { Ok(()) } else { Err(saw.into()) }
}

fn two_names_of_one_file_are_one_output() -> Outcome {
    let folder = Folder::new()?;
    let first = folder.path().join("it").display().to_string();
    let link = folder.path().join("link").display().to_string();
    std::os::unix::fs::symlink(&first, &link)?;
    fs::create_dir(folder.path().join("sub"))?;
    let dotted = folder.path().join("sub/../it").display().to_string();
    let name = kept_at(LOST)?.display().to_string();
    for second in [&link, &dotted] {
        let (one, other) = (format!("json={first}"), format!("text={second}"));
        let ran = run(["replay", &name, "--output", &one, "--output", &other])?;
        ran.expect_sentence(&["one file", &one, &other])?;
        expect(!folder.path().join("it").exists(), &format!("{first} was left behind"))?;
    }
    Ok(())
}

fn no_file_is_emptied_before_all_can_be_written() -> Outcome {
    let folder = Folder::new()?;
    let precious = folder.file("page.html", "precious")?;
    let (name, page) = (kept_at(LOST)?.display().to_string(), format!("html={}", precious.display()));
    run(["replay", &name, "--output", &page, "--output", "json=/nowhere/x"])?.expect_sentence(&["/nowhere/x"])?;
    if fs::read_to_string(&precious)? != "precious" {
        return Err("it was emptied".into());
    }
    Ok(())
}

fn an_output_that_cannot_be_written_is_named() -> Outcome {
    let name = kept_at(LOST)?.display().to_string();
    let ran = run(["replay", &name, "--output", "json=/dev/full"])?;
    Ok(ran.expect_sentence(&["json=/dev/full", "No space left"])?)
}

fn a_filter_that_matches_nothing_is_said_in_every_output() -> Outcome {
    let folder = Folder::new()?;
    let name = kept_at(LOST)?.display().to_string();
    for kind in ["text", "markdown", "html"] {
        let path = folder.path().join(kind);
        let output = format!("{kind}={}", path.display());
        run(["replay", &name, "--container", "nobody", "--output", &output])?.expect_code(0)?;
        let told = fs::read_to_string(&path)?;
        let says = told.contains("matches the filter") && told.contains("5 exchanges were not shown");
        expect(says && !told.contains("No packet to or from IMDS"), &told)?;
        // Of another time than was asked about, perhaps.
        expect(
            kind == "html" || told.contains("Recorded was from 2026-11-22T09:42:15Z to 2026-11-22T09:42:19Z."),
            &told,
        )?;
        run(["replay", &name, "--container", "agent", "--output", "text"])?.expect_code(0)?;
    }
    let some = run(["replay", &name, "--container", "agent", "--output", "text"])?;
    expect(some.stdout.contains("Filtered: 3 more exchanges were not shown."), &some.stdout)
}

fn where_nothing_was_found_every_output_says_how_far_it_looked() -> Outcome {
    let folder = Folder::new()?;
    let whole = capture("ens5-hop-limit-2.pcap")?;
    // Without what came back from IMDS nobody knows what it was.
    let (head, packets) = (&whole[..24], packets(&whole));
    let asked: Vec<&[u8]> =
        packets.into_iter().filter(|packet| packet[16 + 26..16 + 30] != [169, 254, 169, 254]).collect();
    for (name, bytes, verdict) in [
        ("whole.pcap", whole.clone(), "Nothing wrong was seen."),
        (
            "asked.pcap",
            [head, &asked.concat()].concat(),
            "Nothing wrong was seen, but not every request or status was.",
        ),
    ] {
        let file = folder.file(name, bytes)?.display().to_string();
        for kind in ["text", "markdown", "html"] {
            let path = folder.path().join(kind);
            run(["replay", &file, "--output", &format!("{kind}={}", path.display())])?.expect_code(0)?;
            let told = fs::read_to_string(&path)?;
            expect(told.contains(verdict), &format!("{name}, {kind}: {told}"))?;
        }
    }
    Ok(())
}

/// The packets of a pcap, each with its header.
fn packets(pcap: &[u8]) -> Vec<&[u8]> {
    let mut packets = Vec::new();
    let mut rest = &pcap[24..];
    while let Some(length) = rest.get(8..12).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes) {
        let (packet, behind) = rest.split_at(16 + length as usize);
        packets.push(packet);
        rest = behind;
    }
    packets
}

fn a_time_that_ends_before_it_begins_is_refused() -> Outcome {
    let name = kept_at(LOST)?.display().to_string();
    let ran = run(["replay", &name, "--since", "2026-11-23", "--until", "2026-11-22"])?;
    Ok(ran.expect_sentence(&["--since", "--until"])?)
}

fn an_empty_file_beside_others_is_said_and_they_are_told() -> Outcome {
    let folder = Folder::new()?;
    let (name, empty) = (kept_at(LOST)?.display().to_string(), folder.file("empty.jsonl", "")?.display().to_string());
    let ran = run(["replay", &name, &empty])?;
    ran.expect_code(0)?;
    let sentence = "empty.jsonl: it is empty";
    expect(ran.stderr.contains(sentence) && ran.stdout.contains("Report: 5 exchanges"), &format!("{ran:?}"))?;
    expect(ran.stdout.contains("Recording not intact") && ran.stdout.contains("Incomplete"), &ran.stdout)?;
    // What it was to tell of may have been what must not be: nobody of a name that was not seen is blocked because of that.
    let ran = run(["replay", &name, &empty, "--expect", "blocked:job-17"])?;
    expect(ran.code == Some(1) && ran.stdout.contains("1 record was lost"), &format!("{ran:?}"))?;
    Ok(run(["replay", &empty, &empty])?.expect_sentence(&["empty"])?)
}
