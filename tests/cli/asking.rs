//! Are questions about recordings answered: who, when, by which way, and did they get it?

use anyhow::{Context, Result};
use diagnosis::recording::Writer;
use imds_trace_replay_tests::load;
use imds_trace_replay_tests::scenario::{END, header};
use serde_json::{Value, json};

use crate::Outcome;
use crate::program::{Folder, Ran, recorded, replay, run};

crate::tests![
    exchanges_are_picked_by_who_asked_and_how,
    exchanges_are_picked_by_time,
    a_finding_is_shown_with_what_shows_it,
    groups_count_who_took_credentials,
    groups_stand_in_every_output_for_people,
    groups_are_told_to_people_too,
    a_question_that_is_none_is_one_sentence,
    a_pattern_that_fits_no_file_is_one_sentence,
];

/// A recording of 50 exchanges: five containers, ten each.
fn file(folder: &Folder) -> Result<std::path::PathBuf> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &header())?;
    let told = (0..50).flat_map(load::exchange);
    for input in load::introduction().into_iter().chain(told).chain(load::conclusion(50)) {
        writer.write(&input)?;
    }
    writer.close(END, false)?;
    folder.file("it.jsonl", bytes)
}

fn asked(options: &[&str]) -> Result<Ran> {
    let folder = Folder::new()?;
    let ran = replay(&file(&folder)?, &[&["--output", "json"], options].concat())?;
    ran.expect_quiet()?;
    Ok(ran)
}

fn exchanges(options: &[&str]) -> Result<usize> {
    let folder = Folder::new()?;
    let ran = replay(&file(&folder)?, &[&["--output", "json"], options].concat())?;
    let count = ran.json()?.iter().filter(|event| event["type"] == "exchange").count();
    ran.expect_filtered(count > 0)?;
    Ok(count)
}

fn expect(expected: &[(&[&str], usize)]) -> Outcome {
    for (options, count) in expected {
        let seen = exchanges(options)?;
        if seen != *count {
            return Err(format!("{options:?}: {seen} exchanges, not {count}").into());
        }
    }
    Ok(())
}

fn exchanges_are_picked_by_who_asked_and_how() -> Outcome {
    expect(&[
        (&[], 50),
        (&["--comm", "curl"], 10),
        (&["--comm", "py*"], 40),
        (&["--comm", "curl", "--comm", "python3"], 50),
        (&["--uid", "1004"], 10),
        (&["--image", "*/job-2:*"], 10),
        (&["--image", "job-2"], 0),
        (&["--imds", "v1"], 10),
        (&["--imds", "v2"], 20),
        (&["--imds", "token", "--imds", "v1"], 30),
        (&["--path", "/latest/api/token"], 20),
        (&["--path", "*/security-credentials/*"], 30),
        (&["--path", "*/security-credentials/*", "--container", "job-1"], 5),
        (&["--path", "/nowhere"], 0),
    ])
}

fn exchanges_are_picked_by_time() -> Outcome {
    // An exchange each 10 ms, from 00:16:40 on.
    expect(&[
        (&["--since", "2026-01-01"], 50),
        (&["--since", "2026-01-02"], 0),
        (&["--until", "2026-01-01 00:16:40"], 0),
        (&["--since", "2026-01-01T00:16:40.1Z", "--until", "2026-01-01T00:16:40.2Z"], 10),
        (&["--since", "2026-01-01T02:16:40.1+02:00"], 40),
        (&["--until", "100000h ago"], 0),
        (&["--since", "-100000h", "--until=-1h"], 50),
    ])
}

/// The rules of the findings that are told.
fn rules(events: &[Value]) -> Vec<&str> {
    let mut rules: Vec<&str> =
        events.iter().filter(|event| event["type"] == "finding").filter_map(|event| event["rule"].as_str()).collect();
    rules.sort_unstable();
    rules.dedup();
    rules
}

fn a_finding_is_shown_with_what_shows_it() -> Outcome {
    let folder = Folder::new()?;
    let file = folder.file("fallback.jsonl", recorded("a-fallback-is-refused")?)?;
    for (options, expected) in [
        (&[][..], &["hop-limit-too-low", "imdsv1-fallback"][..]),
        (&["--imds", "token"], &["hop-limit-too-low"]),
        (&["--imds", "v1"], &["imdsv1-fallback"]),
        (&["--path", "/latest/api/*"], &["hop-limit-too-low"]),
        (&["--imds", "v2"], &[]),
        (&["--comm", "nobody"], &[]),
        (&["--since", "2026-01-02"], &[]),
    ] {
        let ran = replay(&file, &[&["--output", "json"], options].concat())?;
        let events = ran.json()?;
        ran.expect_filtered(events.iter().any(|event| event["type"] == "exchange"))?;
        if rules(&events) != expected {
            return Err(format!("{options:?}: {:?} and not {expected:?}", rules(&events)).into());
        }
    }
    Ok(())
}

fn groups(by: &str) -> Result<Vec<Value>> {
    let events = asked(&["--group-by", by])?.json()?;
    let report = events.last().context("a report")?;
    anyhow::ensure!(report["type"] == "report", "the report comes last: {report}");
    Ok(events.into_iter().filter(|event| event["type"] == "group").collect())
}

fn groups_stand_in_every_output_for_people() -> Outcome {
    let folder = Folder::new()?;
    let file = file(&folder)?;
    for kind in ["text", "markdown", "html"] {
        let path = folder.path().join(kind);
        let output = format!("{kind}={}", path.display());
        replay(&file, &["--group-by", "job", "--output", &output])?.expect_code(0)?;
        let told = std::fs::read_to_string(&path)?;
        for words in ["By job", "421", "took credentials of role ci-runner 5 times"] {
            if !told.contains(words) {
                return Err(format!("{kind} lacks {words}: {told}").into());
            }
        }
        replay(&file, &["--group-by", "pod", "--output", &output])?.expect_code(0)?;
        let told = std::fs::read_to_string(&path)?;
        if told.matches("no pod known").count() != 1 {
            return Err(format!("{kind} does not have one group of what is in no pod: {told}").into());
        }
    }
    Ok(())
}

fn groups_count_who_took_credentials() -> Outcome {
    for (by, count) in [("container", 5), ("process", 5), ("image", 5), ("job", 5), ("path", 2), ("pod", 1)] {
        let groups = groups(by)?;
        let exchanges: u64 = groups.iter().filter_map(|group| group["exchanges"].as_u64()).sum();
        if groups.len() != count || exchanges != 50 || !groups.iter().all(|group| group["by"] == by) {
            return Err(format!("{by}: {groups:?}").into());
        }
    }
    let groups = groups("process")?;
    let job = groups.iter().find(|group| group["container"]["name"] == "job-2").context("job-2")?;
    let legacy = groups.iter().find(|group| group["container"]["name"] == "legacy").context("legacy")?;
    for (group, expected) in [
        (job, json!([10, 10, 5, 5, 0, 5, 5, 0, ["ci-runner"], "421", "python3", "sh"])),
        (legacy, json!([10, 10, 0, 0, 10, 10, 10, 10, ["ci-runner"], "424", "curl", "sh"])),
    ] {
        let credentials = &group["credentials"];
        let told = json!([
            group["exchanges"],
            group["answered"],
            group["token"],
            group["v2"],
            group["v1"],
            credentials["asked"],
            credentials["taken"],
            credentials["over_v1"],
            credentials["roles"],
            group["job"],
            group["process"]["comm"],
            group["process"]["ancestors"][0]["comm"],
        ]);
        if told != expected {
            return Err(format!("{told} and not {expected}: {group}").into());
        }
    }
    let times = [&job["credentials"]["first"], &job["credentials"]["last"], &job["first"], &job["last"]];
    let times: Vec<&str> = times.iter().filter_map(|time| time.as_str()).collect();
    if times.len() != 4 || times[0] >= times[1] || times[2] >= times[0] || times[1] != times[3] {
        return Err(format!("{times:?}").into());
    }
    Ok(())
}

fn groups_are_told_to_people_too() -> Outcome {
    let folder = Folder::new()?;
    let ran = replay(&file(&folder)?, &["--path", "*/security-credentials/*", "--group-by", "process"])?;
    ran.expect_quiet()?;
    for part in [
        "By process (5 groups)",
        "curl[4704] of legacy (172.17.0.6)",
        "image registry.example/legacy:1, CI job 424",
        "uid 1004, /usr/bin/curl: curl fetch",
        "started by sh[4600], by init[1]",
        "10 exchanges (10 v1), 10 answered",
        "took credentials of role ci-runner 10 times (10 asked for), over IMDSv1",
        "took credentials of role ci-runner 5 times (5 asked for), over IMDSv2",
    ] {
        if !ran.stdout.contains(part) {
            return Err(format!("no {part:?} in {}", ran.stdout).into());
        }
    }
    Ok(())
}

fn a_question_that_is_none_is_one_sentence() -> Outcome {
    for (option, wrong) in [
        ("--since", "tuesday"),
        ("--since", ""),
        ("--until", "2026-13-01"),
        ("--until", "2h"),
        ("--imds", "v3"),
        ("--group-by", "colour"),
    ] {
        run(["replay".to_owned(), "x.jsonl".to_owned(), format!("{option}={wrong}")])?
            .expect_sentence(&[option, wrong])?;
    }
    for (words, parts) in [
        (&["--record-rotate", "1MB"][..], &["--record-rotate", "--record PATH"][..]),
        (&["--record", "x", "--record-rotate", "64M"], &["--record-rotate", "64M"]),
        (&["--record", "x", "--record-rotate", "1kB"], &["--record-rotate", "1kB", "64KiB"]),
        (&["--record", "x", "--record-rotate", "1h", "--record-rotate", "2h"], &["--record-rotate", "second age"]),
        (&["--record", "x", "--record-keep", "0"], &["--record-keep", "0"]),
        (&["--record-keep", "3"], &["--record-keep", "--record PATH"]),
    ] {
        run([&["watch"], words].concat())?.expect_sentence(parts)?;
    }
    Ok(())
}

fn a_pattern_that_fits_no_file_is_one_sentence() -> Outcome {
    let folder = Folder::new()?;
    let pattern = folder.path().join("host*.jsonl").display().to_string();
    run(["replay", &pattern])?.expect_sentence(&["host*.jsonl", "no file"])?;
    run(["replay", "-", &pattern])?.expect_sentence(&["replay -", "alone"])?;
    Ok(())
}
