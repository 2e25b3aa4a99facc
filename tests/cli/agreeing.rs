//! Do text, JSON, the page, the summary and the metrics give the same numbers for the same recordings?

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use imds_trace_replay_tests::kept;

use crate::Outcome;
use crate::program::{Folder, json_lines, replay};

crate::tests![
    every_output_gives_the_same_numbers,
    metrics_are_a_file_or_an_address,
    metrics_of_a_recording_are_a_whole_file,
];

/// What an output says of a client: exchanges, unanswered ones, names of findings.
type Clients = Vec<(u64, u64, Vec<String>)>;

/// What it says of all: exchanges, unanswered ones, findings that are errors, warnings, notices.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    exchanges: u64,
    unanswered: u64,
    findings: [u64; 3],
}

const SEVERITIES: [&str; 3] = ["error", "warning", "notice"];

fn every_output_gives_the_same_numbers() -> Outcome {
    let folder = Folder::new()?;
    let at = |name: &str| folder.path().join(name);
    let read = |name: &str| std::fs::read_to_string(at(name)).with_context(|| name.to_owned());
    let mut found = 0;
    for (name, file) in kept::recordings()?.into_iter().chain(kept::captures()?) {
        let kinds = ["text", "json", "markdown", "html", "metrics"];
        let outputs = kinds.map(|kind| format!("{kind}={}", at(&format!("{kind}.prom")).display()));
        let options: Vec<&str> = outputs.iter().flat_map(|output| ["--output", output]).collect();
        replay(&file, &options)?.expect_code(0)?;
        let [text, json, markdown, html, metrics] = kinds.map(|kind| read(&format!("{kind}.prom")));
        let (text, metrics) = (text?, metrics?);
        let of_text = clients_of_text(&text)?;
        for (kind, clients) in [
            ("json", clients_of_json(&json?)?),
            ("markdown", clients_of_markdown(&markdown?)?),
            ("html", clients_of_html(&html?)?),
        ] {
            if clients != of_text {
                return Err(format!("{name}: {kind} says {clients:?}, and text {of_text:?}").into());
            }
        }
        let sum = sum_of_text(&text, &of_text)?;
        let measured = sum_of_metrics(&metrics)?;
        if measured != sum {
            return Err(format!("{name}: metrics say {measured:?}, and text {sum:?}\n{metrics}").into());
        }
        found += sum.findings.iter().sum::<u64>();
    }
    // Nothing agrees with nothing.
    ensure_found(found)?;
    Ok(())
}

fn ensure_found(found: u64) -> Result<()> {
    ensure!(found > 20, "only {found} findings in all recordings");
    Ok(())
}

/// The number that begins a part such as `2 exchanges`.
fn number(text: &str) -> Result<u64> {
    text.trim().split(' ').next().unwrap_or_default().parse().with_context(|| format!("no number: {text:?}"))
}

/// `  job-17 (172.17.0.2): 2 exchanges, 1 unanswered. Hop limit … (hop-limit-too-low, imdsv1-fallback)`
fn clients_of_text(text: &str) -> Result<Clients> {
    let mut clients = Clients::new();
    for line in text.lines().skip_while(|line| *line != "Who asked").skip(1).take_while(|line| line.starts_with("  ")) {
        let (_, said) = line.rsplit_once("): ").or_else(|| line.rsplit_once(": ")).context("a client")?;
        let counts = said.split('.').next().unwrap_or_default();
        let unanswered = counts.split(',').find(|part| part.ends_with(" unanswered"));
        let findings = said.rsplit_once("  (").map_or("", |(_, names)| names.trim_end_matches(')'));
        clients.push((number(counts)?, unanswered.map_or(Ok(0), number)?, names(findings)));
    }
    Ok(clients)
}

fn names(text: &str) -> Vec<String> {
    text.split(", ").filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// `Report: 5 exchanges of 3 clients, 2 errors, 1 warning, 1 notice`
fn sum_of_text(text: &str, clients: &Clients) -> Result<Sum> {
    let line = text.lines().find_map(|line| line.strip_prefix("Report: ")).context("a report")?;
    let of = |severity: &str| line.split(", ").find(|part| part.contains(severity)).map_or(Ok(0), number);
    let [errors, warnings, notices] = SEVERITIES.map(of);
    let unanswered = clients.iter().map(|(_, unanswered, _)| unanswered).sum();
    Ok(Sum { exchanges: number(line).unwrap_or(0), unanswered, findings: [errors?, warnings?, notices?] })
}

fn clients_of_json(text: &str) -> Result<Clients> {
    let lines = json_lines(text)?;
    let report = lines.last().context("a report")?;
    let clients = report["containers"].as_array().context("containers")?;
    let client = |client: &serde_json::Value| {
        let findings = client["findings"].as_array().into_iter().flatten();
        let names = findings.filter_map(|name| name.as_str().map(str::to_owned)).collect();
        Some((client["exchanges"].as_u64()?, client["unanswered"].as_u64()?, names))
    };
    clients.iter().map(|one| client(one).context("a client")).collect()
}

/// Rows of the table whose first column is the client.
fn clients_of_markdown(text: &str) -> Result<Clients> {
    let rows = text.lines().skip_while(|line| !line.starts_with("| Client | Exchanges ")).skip(2);
    rows.take_while(|line| line.starts_with('|'))
        .map(|line| row(&line.trim_matches('|').split(" | ").collect::<Vec<_>>()))
        .collect()
}

fn clients_of_html(text: &str) -> Result<Clients> {
    let Some((_, table)) = text.split_once("<table id=\"clients\">") else { return Ok(Clients::new()) };
    let body = table.split("</tbody>").next().unwrap_or_default();
    body.split("<tr><td>").skip(1).map(|line| row(&line.split("</td><td>").collect::<Vec<_>>())).collect()
}

fn row(cells: &[&str]) -> Result<(u64, u64, Vec<String>)> {
    let [_, exchanges, unanswered, _, findings] = cells else { anyhow::bail!("not five cells: {cells:?}") };
    let findings = findings.split('<').next().unwrap_or_default().trim();
    Ok((number(exchanges)?, number(unanswered)?, names(findings)))
}

/// The samples of a page, each by name and labels.
fn samples(page: &str) -> Result<BTreeMap<&str, f64>> {
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').context("a sample")?;
            Ok((name, value.parse().with_context(|| line.to_owned())?))
        })
        .collect()
}

fn sum_of_metrics(page: &str) -> Result<Sum> {
    let samples = samples(page)?;
    let sum = |name: &str, label: &str| -> u64 {
        let of = samples.iter().filter(|(key, _)| key.starts_with(&format!("{name}{{")) && key.contains(label));
        of.map(|(_, value)| *value as u64).sum()
    };
    let stands = |label: &str| {
        let [all, of_workloads] = ["exchanges", "workload_exchanges"].map(|name| {
            sum(&format!("imds_trace_{name}_total"), label) - sum(&format!("imds_trace_{name}_revised_total"), label)
        });
        ensure!(all == of_workloads, "workloads have {of_workloads} exchanges, not {all}");
        Ok(all)
    };
    let findings = SEVERITIES.map(|severity| sum("imds_trace_findings", &format!("severity=\"{severity}\"")));
    Ok(Sum { exchanges: stands("")?, unanswered: stands("outcome=\"unanswered\"")?, findings })
}

fn metrics_are_a_file_or_an_address() -> Outcome {
    for wrong in ["metrics", "metrics=", "metrics=-", "metrics=localhost:9469", "metrics=9469", "metrics=page.txt"] {
        crate::program::run(["replay", "--output", wrong, "it.jsonl"])?.expect_sentence(&["--output", wrong])?;
    }
    let file = kept::recordings_folder().join("hop-limit-2.jsonl");
    replay(&file, &["--output", "metrics=127.0.0.1:9469"])?.expect_sentence(&["127.0.0.1:9469", ".prom"])?;
    let two = ["--output", "metrics=127.0.0.1:9469", "--output", "metrics=[::1]:9469"];
    replay(&file, &two)?.expect_sentence(&["[::1]:9469", "one address"])?;
    replay(&file, &["--output", "metrics=/nowhere/it.prom"])?.expect_sentence(&["/nowhere/it.prom"])?;
    Ok(())
}

fn metrics_of_a_recording_are_a_whole_file() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.file("it.prom", "what was there before, and longer than nothing")?;
    let file = kept::recordings_folder().join("hop-limit-1-three-containers.jsonl");
    replay(&file, &["--output", &format!("metrics={}", path.display())])?.expect_quiet()?;
    let page = std::fs::read_to_string(&path)?;
    for part in [
        "# TYPE imds_trace_exchanges_total counter\n",
        "imds_trace_exchanges_total{imds=\"token\",outcome=\"unanswered\"} 1\n",
        "imds_trace_workload_exchanges_total{workload=\"imdslab\",imds=\"token\",outcome=\"answered\"} 1\n",
        "imds_trace_findings{rule=\"hop-limit-too-low\",severity=\"error\"} 1\n",
        "imds_trace_findings{rule=\"unanswered\",severity=\"error\"} 0\n",
        "imds_trace_lost_total{what=\"ring_buffer\"} 0\n",
    ] {
        if !page.contains(part) {
            return Err(format!("no {part:?} in {page}").into());
        }
    }
    let left: Vec<_> = std::fs::read_dir(folder.path())?.map(|entry| entry.map(|entry| entry.file_name())).collect();
    if page.contains("# EOF") || left.len() != 1 {
        return Err(format!("{left:?}: {page}").into());
    }
    Ok(())
}
