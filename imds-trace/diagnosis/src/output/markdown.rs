//! How is it told beside a merge request, or on a CI job's page? Markdown: what was asserted, what was found, who asked.
//!
//! Refuses markup, mentions and links that a container chose: whatever anybody else may have named stands in a block or span of code, which
//! ends only where we end it.

use std::fmt::Write as _;
use std::io::{self, Write};

use anstream::adapter::strip_str;

use super::{Kind, Output, text};
use crate::event::{Event, HostSum, Outlook, Report, WhatIf};
use crate::finding::HopLimit;
use crate::net::{BootTime, Timestamp};
use crate::printable::printable;
use crate::words;

/// The kind.
pub const KIND: Kind = Kind {
    name: "markdown",
    explain: "a summary for $GITHUB_STEP_SUMMARY and merge requests",
    needs_path: true,
    packets: false,
    verbatim: false,
    several: true,
    generated: false,
    open: |stream, boot_time| Box::new(Markdown { stream, boot_time, probed: None }),
};

/// Findings that are told in full; the servers take a mebibyte or less.
const MAX_FINDINGS: usize = 50;
/// Rows of a table.
const MAX_ROWS: usize = 200;
/// Bytes of a name or a sentence in a row.
const MAX_CELL: usize = 400;

struct Markdown {
    stream: Box<dyn Write>,
    boot_time: BootTime,
    /// What came of a probe.
    probed: Option<String>,
}

impl Output for Markdown {
    fn tell(&mut self, event: &Event) -> io::Result<()> {
        if let Event::Probed(_, probed) = event {
            self.probed = Some(printable(&probed.summary, MAX_CELL));
        }
        Ok(())
    }

    fn report(&mut self, at: Timestamp, report: &Report) -> io::Result<()> {
        let mut out = format!("## imds-trace: {}\n", text::overview(report));
        let probed = self.probed.take();
        if let Some(probed) = &probed {
            let _ = writeln!(out, "\n{}", block("text", probed));
        }
        for why in &report.broken {
            let _ = writeln!(out, "\n**{}:** {}", words::not_intact(report), span(why));
        }
        if report.lost.sum() > 0 {
            let _ = writeln!(out, "\n**Incomplete:** {}.", words::lost(report.lost));
        }
        if report.subjects.is_empty() {
            let _ = writeln!(out, "\n{}", words::nothing_shown(report, at, self.boot_time));
        } else if let Some(verdict) = words::verdict(report).filter(|_| probed.is_none()) {
            let _ = writeln!(out, "\n{verdict}");
        }
        if !report.expectations.is_empty() {
            let rows = report.expectations.iter().map(|asserted| {
                [
                    span(&asserted.expect),
                    if asserted.held { "yes".into() } else { "**NO**".into() },
                    span(&asserted.why),
                ]
            });
            table(&mut out, ["Expected", "Held", "Why"], rows);
        }
        for finding in report.findings.iter().take(MAX_FINDINGS) {
            let mut told = String::new();
            text::finding(&mut told, finding, self.boot_time, true);
            let told = strip_str(&told).to_string();
            let (word, who) = (text::word(finding.severity), span(&plain(&text::subject(&finding.who))));
            let _ = writeln!(out, "\n### {word} {}: {who}\n\n{}", finding.rule, block("text", told.trim_end()));
            if !finding.says.remedy.is_empty() {
                let commands: Vec<String> =
                    finding.says.remedy.iter().map(|command| printable(command, usize::MAX)).collect();
                let _ = writeln!(out, "\n{}", block("sh", &commands.join("\n")));
            }
        }
        further(&mut out, report.findings.len(), MAX_FINDINGS, "finding");
        for what_if in &report.what_if {
            tell_what_if(&mut out, what_if);
        }
        if !report.subjects.is_empty() {
            let _ = writeln!(out, "\n### Who asked");
            let rows = report.subjects.iter().map(|tally| {
                [
                    span(&plain(&text::subject(&tally.who))),
                    tally.exchanges.to_string(),
                    tally.unanswered.to_string(),
                    limits(tally.hop_limit),
                    tally.findings.join(", "),
                ]
            });
            table(&mut out, ["Client", "Exchanges", "Unanswered", "Hop limit observed / needed", "Findings"], rows);
        }
        if let Some(groups) = &report.groups {
            let _ = writeln!(out, "\n### By {}", groups.by.name());
            let rows = text::group::rows(groups, self.boot_time).map(|(title, details)| {
                let details: Vec<String> = details.iter().map(|line| span(&plain(line))).collect();
                [span(&plain(&title)), details.join("<br>")]
            });
            table(&mut out, ["Group", "Asked"], rows);
            if let Some(over) = text::group::over(groups) {
                let _ = writeln!(out, "\n{over}.");
            }
        }
        self.stream.write_all(out.as_bytes())
    }

    fn host(&mut self, _: Timestamp, name: &str) -> io::Result<()> {
        writeln!(self.stream, "\n# Host {}\n", span(name))
    }

    fn sum(&mut self, hosts: &[HostSum]) -> io::Result<()> {
        let row = |name: String, host: &HostSum| {
            let [errors, warnings, notices] = host.findings;
            let found = format!("{errors} / {warnings} / {notices}");
            [name, host.exchanges.to_string(), host.unanswered.to_string(), limits(host.hop_limit), found]
        };
        let together = HostSum::together(hosts);
        // First: of many rows the last are not shown.
        let mut rows = vec![row("together".to_owned(), &together)];
        rows.extend(hosts.iter().map(|host| row(span(&host.name), host)));
        let mut out = "\n# All hosts\n".to_owned();
        let names = ["Host", "Exchanges", "Unanswered", "Hop limit observed / needed", "Errors / warnings / notices"];
        table(&mut out, names, rows.into_iter());
        self.stream.write_all(out.as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn tell_what_if(out: &mut String, what_if: &WhatIf) {
    let word = |outlook| match outlook {
        Outlook::Breaks => "**breaks**",
        Outlook::CannotBeTold => "cannot be told",
        Outlook::Works => "works",
    };
    let (settings, outlook) = (what_if.settings, word(what_if.outlook));
    let _ =
        writeln!(out, "\n### What if {settings}: {outlook}\n\n{}", block("text", &printable(&what_if.why, usize::MAX)));
    let rows = what_if.clients.iter().map(|client| {
        let process = client.who.process.as_ref();
        let program = process.map(|process| process.exe.as_deref().unwrap_or(&process.comm));
        let why: Vec<String> =
            client.reasons.iter().map(|reason| format!("{} ({} times)", reason.text, reason.count)).collect();
        [
            span(&plain(&text::subject(&client.who))),
            program.map(span).unwrap_or_default(),
            word(client.outlook).to_owned(),
            if why.is_empty() { String::new() } else { span(&why.join("; ")) },
        ]
    });
    table(out, ["Client", "Program", "Would", "Why"], rows);
}

fn limits(limit: HopLimit) -> String {
    let number = |limit: Option<crate::net::Ttl>| limit.map_or("?".to_owned(), |limit| limit.0.to_string());
    format!("{} / {}", number(limit.observed), number(limit.needed))
}

/// A table; its cells are already what may stand in one.
fn table<const N: usize>(out: &mut String, heads: [&str; N], rows: impl ExactSizeIterator<Item = [String; N]>) {
    let count = rows.len();
    let _ = writeln!(out, "\n| {} |\n|{}", heads.join(" | "), " --- |".repeat(N));
    for row in rows.take(MAX_ROWS) {
        let _ = writeln!(out, "| {} |", row.join(" | "));
    }
    further(out, count, MAX_ROWS, "row");
}

fn further(out: &mut String, count: usize, shown: usize, what: &str) {
    if count > shown {
        let _ = writeln!(out, "\n{} more {what}s are not shown.", count - shown);
    }
}

fn plain(text: &str) -> String {
    strip_str(text).to_string()
}

/// Marks of code that no run of them in the text ends.
fn fence(text: &str, least: usize) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    "`".repeat(least.max(longest + 1))
}

/// Text as code on one line, also in a cell of a table, where a bar ends even code.
fn span(text: &str) -> String {
    let text = printable(text, MAX_CELL).replace('|', "¦");
    if text.trim().is_empty() {
        return String::new();
    }
    let fence = fence(&text, 1);
    format!("{fence} {text} {fence}")
}

/// Lines of code.
fn block(language: &str, text: &str) -> String {
    let fence = fence(text, 3);
    format!("{fence}{language}\n{text}\n{fence}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_ends_only_where_we_end_it() {
        for hostile in
            ["`", "```", "a ``` b `` c", "@everyone", "x | y", "<script>alert(1)</script>", "a\n\n# b", "`````` "]
        {
            let span = span(hostile);
            let fence: String = span.chars().take_while(|c| *c == '`').collect();
            let inner = span.strip_prefix(&fence).and_then(|rest| rest.strip_suffix(&fence)).unwrap();
            assert!(inner.starts_with(' ') && inner.ends_with(' '), "{span}");
            assert!(!inner.contains(&fence) && !inner.contains(['|', '\n']), "{span}");
            let block = block("text", hostile);
            let fence: String = block.chars().take_while(|c| *c == '`').collect();
            assert_eq!(block.matches(&fence).count(), 2, "{block}");
        }
    }
}
