//! Are recordings of several hosts told host by host, each with its report, and one sum?

use std::collections::BTreeSet;

use diagnosis::net::BootTime;
use diagnosis::recording::{Header, Limits};
use serde_json::{Value, json};

use crate::Outcome;
use crate::evidence::{first_line, inputs, record, record_with, replay_all};
use crate::program::{Folder, run};

crate::tests![two_hosts_are_not_told_as_one, several_hosts_have_a_report_each_and_one_sum];

fn two_hosts_are_not_told_as_one() -> Outcome {
    let folder = Folder::new()?;
    let [one, other] = ["host-a.jsonl", "host-b.jsonl"].map(|name| folder.path().join(name));
    record(&one, &inputs(5), Limits::default())?;
    record_with(&other, first_line("boot-b"), &inputs(5), Limits::default(), true)?;
    let both: Vec<String> = [&one, &other].map(|path| path.display().to_string()).to_vec();
    for kind in ["html", "pcapng", "metrics"] {
        let output = format!("{kind}={}", folder.path().join("it.prom").display());
        let ran = run([&["replay".to_owned(), "--output".to_owned(), output], &both[..]].concat())?;
        ran.expect_sentence(&["host-a.jsonl", "host-b.jsonl", kind, "one host"])?;
    }
    // The same file given twice is one.
    let twice = ["replay", &both[0], &both[0], "--output", "json"];
    let ran = run(twice)?;
    ran.expect_quiet()?;
    if ran.json()?.iter().filter(|event| event["type"] == "exchange").count() != 5 {
        return Err(format!("{ran:?}").into());
    }
    Ok(())
}

fn several_hosts_have_a_report_each_and_one_sum() -> Outcome {
    let folder = Folder::new()?;
    let at = |name: &str| folder.path().join(name);
    let of = |boot: &str, instance: &str| Header { instance: Some(instance.into()), ..first_line(boot) };
    let nameless = Header { instance: None, ..first_line("boot-a") };
    record_with(&at("host-a.jsonl"), nameless, &inputs(5), Limits::default(), true)?;
    record_with(&at("host-b.jsonl"), of("boot-b", "i-0b"), &inputs(7), Limits::default(), true)?;
    // The second again, which was started again the next day.
    let BootTime(boot) = of("boot-c", "i-0b").boot_time;
    let next_day = Header { boot_time: BootTime(boot + 86_400_000_000_000), ..of("boot-c", "i-0b") };
    record_with(&at("host-c.jsonl"), next_day, &inputs(2), Limits::default(), true)?;
    let ran = replay_all(&folder, &["--output", "json", "--group-by", "host"])?;
    ran.expect_quiet()?;
    let lines = ran.json()?;
    let told: Vec<&Value> = lines
        .iter()
        .filter(|line| ["host", "group", "report", "sum"].iter().any(|kind| line["type"] == *kind))
        .collect();
    let kinds: Vec<&str> = told.iter().filter_map(|line| line["type"].as_str()).collect();
    if kinds != ["host", "group", "report", "host", "group", "report", "sum"] {
        return Err(format!("{kinds:?}: {ran:?}").into());
    }
    let ids: BTreeSet<_> =
        lines.iter().filter(|line| line["type"] == "exchange").filter_map(|line| line["id"].as_u64()).collect();
    let sum = told[6];
    for (claim, seen, expected) in [
        ("the first", &told[1]["host"], json!("host-a")),
        ("the second", &told[4]["host"], json!("i-0b")),
        ("exchanges of the first", &told[1]["exchanges"], 5.into()),
        ("exchanges of the second", &told[4]["exchanges"], 9.into()),
        ("of the sum", &sum["exchanges"], 14.into()),
        ("of its second host", &sum["hosts"][1]["exchanges"], 9.into()),
        ("its name", &sum["hosts"][1]["name"], json!("i-0b")),
        ("numbers of exchanges", &json!(ids.len()), 14.into()),
    ] {
        if *seen != expected {
            return Err(format!("{claim}: {seen}, not {expected}: {ran:?}").into());
        }
    }
    let text = replay_all(&folder, &[])?;
    text.expect_quiet()?;
    for part in ["Host host-a\n", "\nHost i-0b\n", "\nAll hosts (2)\n", "  together: 14 exchanges of "] {
        if !text.stdout.contains(part) {
            return Err(format!("no {part:?}: {text:?}").into());
        }
    }
    // What is asserted is asserted of each.
    let ran = replay_all(&folder, &["--expect", "blocked"])?;
    ran.expect_code(1)?;
    let one = run(["replay", &at("host-b.jsonl").display().to_string(), "--group-by", "host"])?;
    if one.stdout.contains("All hosts") || !one.stdout.contains("By host (1 group)\n  i-0b\n") {
        return Err(format!("{one:?}").into());
    }
    Ok(())
}
