//! Is damage told wherever results go, and does one damaged file among several spoil no other?

use anyhow::Context;
use diagnosis::net::BootTime;
use diagnosis::recording::{Header, Limits};

use crate::Outcome;
use crate::capturing::{ANY, capture};
use crate::evidence::{first_line, inputs, record_with, replay_all};
use crate::program::{Folder, command, finish, recorded, replay, run};

crate::tests![
    what_a_damaged_capture_lacks_stands_in_every_output,
    a_damaged_capture_does_not_silence_the_others,
    what_spoils_a_set_is_named_with_what_to_type,
    a_run_of_which_nothing_can_be_used_spoils_no_other,
];

fn what_a_damaged_capture_lacks_stands_in_every_output() -> Outcome {
    let folder = Folder::new()?;
    let whole = capture(ANY)?;
    let mut bad = capture("two-interfaces-hop-limit-1.pcapng")?;
    // The length of a block in the middle.
    let middle = bad.len() / 2;
    bad[middle - middle % 4..][..64].fill(0xff);
    for (name, content) in [("cut.pcap", &whole[..whole.len() / 2]), ("bad.pcapng", &bad[..])] {
        let file = folder.file(name, content)?;
        for kind in ["text", "html", "markdown", "junit"] {
            let ran = replay(&file, &["--output", &format!("{kind}={}", folder.path().join("out").display())])?;
            ran.expect_code(0)?;
            let told = std::fs::read_to_string(folder.path().join("out"))?;
            if !told.contains("Capture not intact") || !told.contains("Incomplete") || !told.contains(name) {
                return Err(format!("{name}: {kind} does not tell it: {told}").into());
            }
        }
        let ran = replay(&file, &["--output", "json"])?;
        let report = ran.json()?.pop().context("a report")?;
        let why = report["recording"]["why"].as_str().unwrap_or_default();
        let until = report["coverage"]["losses"].as_array().and_then(|losses| losses.last()).map(|loss| &loss["to"]);
        if report["recording"]["intact"] != false || !why.contains(name) || until != Some(&report["at"]) {
            return Err(format!("{name}: {report}").into());
        }
        // What is missing may have been what must not be.
        for asserted in ["blocked", "v2-only", "no-errors"] {
            let ran = replay(&file, &["--expect", asserted, "--endpoint", "192.0.2.1"])?;
            ran.expect_code(1)?;
            if !ran.stdout.contains("NOT HELD") {
                return Err(format!("{name}: {ran:?}").into());
            }
        }
    }
    let cut = folder.file("cut.pcap", &whole[..whole.len() / 2])?;
    let mut generate = command(["generate", "allow"])?;
    generate.stdin(std::fs::File::open(cut)?);
    let ran = finish(generate)?;
    if !ran.stdout.contains("# Capture not intact: ") {
        return Err(format!("an allow-list says nothing: {ran:?}").into());
    }
    Ok(())
}

fn a_damaged_capture_does_not_silence_the_others() -> Outcome {
    let folder = Folder::new()?;
    let (good, other) = (capture(ANY)?, capture("docker0-hop-limit-1.pcap")?);
    let torn = &good[..good.len() / 2];
    for (name, content, why) in
        [("host-b.pcap", torn, "cut short"), ("host-b.pcap", &good[..20], "header"), ("host-b.pcap", &[], "empty")]
    {
        folder.file("host-a.pcap", &other)?;
        folder.file("host-c.pcap", &good)?;
        folder.file(name, content)?;
        let ran = replay_all(&folder, &["--output", "json"])?;
        ran.expect_code(0)?;
        let report = ran.json()?.pop().context("a report")?;
        let told = report["recording"]["why"].as_str().unwrap_or_default();
        if !told.contains(name) || !told.contains(why) || report["lost"] == 0 {
            return Err(format!("{why}: {report}").into());
        }
        if !ran.stdout.contains("hop-limit-too-low") || ran.stderr.lines().count() != 1 {
            return Err(format!("{why}: {ran:?}").into());
        }
    }
    Ok(())
}

fn what_spoils_a_set_is_named_with_what_to_type() -> Outcome {
    let folder = Folder::new()?;
    let path = |name: &str, content: &[u8]| folder.file(name, content).map(|path| path.display().to_string());
    let rubbish = path("rubbish.bin", &[0xa5; 3000])?;
    let recordings =
        ["hop-limit-too-low", "a-fallback-is-served"].map(|name| path(&format!("{name}.jsonl"), &recorded(name)?));
    let [one, two] = recordings;
    let (one, two) = (one?, two?);
    let (first, second) =
        (path("first.pcap", &capture(ANY)?)?, path("second.pcap", &capture("ens5-hop-limit-1.pcap")?)?);
    for (given, commands) in [
        (vec![&one, &rubbish, &two], vec![format!("imds-trace replay {one} {two}")]),
        (vec![&first, &rubbish, &second], vec![format!("imds-trace replay {first} {second}")]),
        (vec![&one, &rubbish, &first], vec![format!("imds-trace replay {one}"), format!("imds-trace replay {first}")]),
    ] {
        let words = given.iter().map(|name| name.as_str());
        let ran = run(std::iter::once("replay").chain(words))?;
        let parts: Vec<&str> = ["rubbish.bin: "].into_iter().chain(commands.iter().map(String::as_str)).collect();
        ran.expect_sentence(&parts)?;
        if ran.stderr.contains(&format!("{rubbish} /")) || ran.stderr.contains(&format!(" {rubbish}  ")) {
            return Err(format!("what spoils it is to be typed again: {ran:?}").into());
        }
    }
    // Two of a link type that is not read: neither is to be typed again.
    let null = |name: &str| {
        let mut bytes = capture("ens5-hop-limit-1.pcap")?;
        bytes[20..24].fill(0);
        path(name, &bytes)
    };
    let (bad, worse) = (null("bad.pcap")?, null("worse.pcap")?);
    let ran = run(["replay", &bad, &first, &worse])?;
    ran.expect_sentence(&["bad.pcap: ", &format!("nor can {worse} be read"), &format!("imds-trace replay {first}")])?;
    if !ran.stderr.trim_end().ends_with(&format!("imds-trace replay {first}")) {
        return Err(format!("what spoils it is to be typed again: {ran:?}").into());
    }
    let ran = run(["replay", &one, &first])?;
    let commands = [format!("imds-trace replay {first}"), format!("imds-trace replay {one}")];
    ran.expect_sentence(&["is a capture", "is a recording", &commands[0], &commands[1]])?;
    // Alone there is nothing else to be typed.
    let ran = run(["replay", &rubbish])?;
    ran.expect_sentence(&["rubbish.bin: line 1"])?;
    if ran.stderr.contains("type  imds-trace") {
        return Err(format!("{ran:?}").into());
    }
    Ok(())
}

fn a_run_of_which_nothing_can_be_used_spoils_no_other() -> Outcome {
    let folder = Folder::new()?;
    const DAY: i64 = 86_400_000_000_000;
    let header = |number: i64| Header {
        boot_time: BootTime(first_line("boot").boot_time.0 + number * DAY),
        ..first_line(&format!("boot-{number}"))
    };
    let at = |number: i64| folder.path().join(format!("host-{number}.jsonl"));
    for bad in 0..3 {
        for number in 0..3 {
            record_with(&at(number), header(number), &inputs(1), Limits::default(), true)?;
        }
        let good = std::fs::read_to_string(at(bad))?;
        let begin: String = good.split_inclusive('\n').take(2).collect();
        std::fs::write(at(bad), format!("{begin}{}", good[begin.len()..].replace("\"at\":", "\"at\":1")))?;
        let ran = replay_all(&folder, &["--output", "json"])?;
        ran.expect_code(0)?;
        let events = ran.json()?;
        let told = &events.last().context("a report")?["recording"];
        if !told["why"].as_str().is_some_and(|why| why.contains(&format!("host-{bad}.jsonl: lines 3 to "))) {
            return Err(format!("{bad}: {told}").into());
        }
        let exchanges = events.iter().filter(|event| event["type"] == "exchange").count();
        if exchanges != 2 || events.last().context("a report")?["lost"] == 0 {
            return Err(format!("{bad}: {exchanges} exchanges: {ran:?}").into());
        }
        for number in 0..3 {
            std::fs::remove_file(at(number))?;
        }
    }
    Ok(())
}
