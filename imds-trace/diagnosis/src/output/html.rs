//! How is it shown? One page that needs nothing else: no network, no script but its own, and nothing that a container chose is markup.

mod ladder;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::{self, Write};

use anstream::adapter::strip_str;
use sha2::{Digest, Sha256};

use super::{Kind, Output, text};
use crate::event::{Event, ExchangeEvent, Groups, Outlook, Report, WhatIf};
use crate::finding::{Finding, HopLimit, Severity};
use crate::net::{BootTime, Timestamp};
use crate::printable::printable;
use crate::words::{self, rfc3339};

/// The kind.
pub const KIND: Kind = Kind {
    name: "html",
    explain: "one page to look at, to be opened from a file",
    needs_path: true,
    packets: false,
    verbatim: false,
    several: false,
    generated: false,
    open: |stream, boot_time| {
        Box::new(Html { stream, boot_time, exchanges: BTreeMap::new(), order: VecDeque::new(), earlier: 0 })
    },
};

const STYLE: &str = include_str!("html/page.css");
const SCRIPT: &str = include_str!("html/page.js");
/// Exchanges that are shown, the latest.
const MAX_EXCHANGES: usize = 2_000;
/// Findings, and rows of other tables.
const MAX_ROWS: usize = 500;
/// Clients in the timeline.
const MAX_LINES: usize = 40;
/// Bytes of a name.
const MAX_NAME: usize = 300;
/// Bytes of a sentence or a command.
const MAX_TEXT: usize = 4_096;

struct Html {
    stream: Box<dyn Write>,
    boot_time: BootTime,
    /// The last word on each, by its number.
    exchanges: BTreeMap<u64, Row>,
    order: VecDeque<u64>,
    /// Those before them.
    earlier: u64,
}

/// What of an exchange is shown.
struct Row {
    at: Timestamp,
    client: String,
    program: String,
    request: String,
    outcome: String,
    well: bool,
}

impl Output for Html {
    fn tell(&mut self, event: &Event) -> io::Result<()> {
        let Event::Exchange(event) = event else { return Ok(()) };
        let id = event.exchange.id.0;
        if self.exchanges.insert(id, row(event)).is_none() {
            self.order.push_back(id);
        }
        while self.order.len() > MAX_EXCHANGES {
            if let Some(oldest) = self.order.pop_front() {
                self.exchanges.remove(&oldest);
                self.earlier += 1;
            }
        }
        Ok(())
    }

    fn report(&mut self, at: Timestamp, report: &Report) -> io::Result<()> {
        let mut page = String::new();
        let (style, script) = (digest(STYLE), digest(SCRIPT));
        let _ = write!(
            page,
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; base-uri 'none'; form-action 'none'\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>imds-trace</title><style>{STYLE}</style></head><body>"
        );
        let _ = write!(page, "<h1>imds-trace: {}</h1>", escaped(&text::overview(report), MAX_TEXT));
        let when = rfc3339(at, self.boot_time);
        let _ = write!(page, "<p>Until {} UTC.</p>", when.get(..19).unwrap_or_default().replace('T', " "));
        for why in &report.broken {
            let what = words::not_intact(report);
            let _ = write!(page, "<p class=\"bad\">{what}: {}</p>", escaped(why, MAX_TEXT));
        }
        if report.lost.sum() > 0 {
            let _ = write!(page, "<p class=\"bad\">Incomplete: {}.</p>", words::lost(report.lost));
        }
        if !report.expectations.is_empty() {
            page.push_str("<h2>What was expected</h2>");
            let rows = report.expectations.iter().map(|asserted| {
                let held = if asserted.held {
                    "<span class=\"good\">held</span>"
                } else {
                    "<span class=\"bad\">not held</span>"
                };
                [escaped(&asserted.expect, MAX_NAME), held.to_owned(), escaped(&asserted.why, MAX_TEXT)]
            });
            table(&mut page, "expected", ["Expected", "Held", "Why"], rows);
        }
        page.push_str("<h2>What was found</h2>");
        match words::verdict(report) {
            Some(verdict) => {
                let _ = write!(page, "<p>{verdict}</p>");
            }
            None if report.subjects.is_empty() => {
                let nothing = words::nothing_shown(report, at, self.boot_time);
                let _ = write!(page, "<p>{}</p>", escaped(&nothing, MAX_TEXT));
            }
            None => {}
        }
        if report.hidden > 0 && !report.subjects.is_empty() {
            let hidden = words::counted_were(report.hidden, "more exchange");
            let _ = write!(page, "<p>Filtered: {hidden} not shown.</p>");
        }
        for finding in report.findings.iter().take(MAX_ROWS) {
            self.finding(&mut page, finding);
        }
        for what_if in &report.what_if {
            tell_what_if(&mut page, what_if);
        }
        page.push_str("<h2>Who asked</h2>");
        let rows = report.subjects.iter().map(|tally| {
            [
                escaped(&plain(&text::subject(&tally.who)), MAX_NAME),
                tally.exchanges.to_string(),
                tally.unanswered.to_string(),
                limits(tally.hop_limit),
                tally.findings.join(", "),
            ]
        });
        table(
            &mut page,
            "clients",
            ["Client", "Exchanges", "Unanswered", "Hop limit observed / needed", "Findings"],
            rows,
        );
        if let Some(groups) = &report.groups {
            self.tell_groups(&mut page, groups);
        }
        self.timeline(&mut page);
        page.push_str("<h2>Exchanges</h2>");
        if self.earlier > 0 {
            let _ = write!(page, "<p>{} earlier ones are not shown.</p>", self.earlier);
        }
        page.push_str(
            "<p><input type=\"search\" data-table=\"exchanges\" placeholder=\"Filter\" aria-label=\"Filter\"></p>",
        );
        let rows = self.exchanges.values().map(|row| {
            let outcome = format!(
                "<span class=\"{}\">{}</span>",
                if row.well { "good" } else { "bad" },
                escaped(&row.outcome, MAX_NAME)
            );
            [
                rfc3339(row.at, self.boot_time).get(11..23).unwrap_or_default().to_owned(),
                escaped(&row.client, MAX_NAME),
                escaped(&row.program, MAX_NAME),
                escaped(&row.request, MAX_NAME),
                outcome,
            ]
        });
        table(&mut page, "exchanges", ["Time (UTC)", "Client", "Program", "Request", "Outcome"], rows);
        let _ = writeln!(
            page,
            "<footer>imds-trace {}</footer><script>{SCRIPT}</script></body></html>",
            env!("CARGO_PKG_VERSION")
        );
        self.stream.write_all(page.as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Html {
    fn tell_groups(&self, page: &mut String, groups: &Groups) {
        let _ = write!(page, "<h2>By {}</h2>", groups.by.name());
        let rows = text::group::rows(groups, self.boot_time).take(MAX_ROWS).map(|(title, details)| {
            let details: Vec<String> = details.iter().map(|line| escaped(&plain(line), MAX_TEXT)).collect();
            [escaped(&plain(&title), MAX_NAME), details.join("<br>")]
        });
        table(page, "groups", ["Group", "Asked"], rows);
        let further = groups.groups.len().saturating_sub(MAX_ROWS) as u64;
        if further > 0 {
            let _ = write!(page, "<p>{} not shown.</p>", words::counted_were(further, "more group"));
        }
        if let Some(over) = text::group::over(groups) {
            let _ = write!(page, "<p>{over}.</p>");
        }
    }

    fn finding(&self, page: &mut String, finding: &Finding) {
        let class = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Notice => "notice",
        };
        let who = plain(&text::subject(&finding.who));
        let _ = write!(
            page,
            "<section class=\"finding {class}\"><h3>{} {}: {}</h3><p>{}</p>",
            text::word(finding.severity),
            finding.rule,
            escaped(&who, MAX_NAME),
            escaped(&finding.says.summary, MAX_TEXT)
        );
        if let Some(path) = &finding.says.path {
            let client = finding.who.container.as_ref().map_or("client".to_owned(), |container| container.title());
            ladder::draw(page, path, &client);
        }
        let when = rfc3339(finding.first, self.boot_time);
        let _ = write!(
            page,
            "<p>Seen {} from {} UTC on, {}. Hop limit observed / needed: {}.</p>",
            if finding.count == 1 { "once".to_owned() } else { format!("{} times", finding.count) },
            when.get(11..19).unwrap_or_default(),
            match finding.says.confidence {
                crate::finding::Confidence::Certain => "certain: seen in the kernel",
                crate::finding::Confidence::Likely => "likely: inferred",
            },
            limits(finding.hop_limit)
        );
        for command in &finding.says.remedy {
            let _ = write!(page, "<div class=\"command\"><pre>{}</pre></div>", escaped(command, MAX_TEXT));
        }
        for (what, said) in [("Persist", &finding.says.lasting), ("Caution", &finding.says.caution)] {
            if let Some(said) = said {
                let _ = write!(page, "<p><b>{what}:</b> {}</p>", escaped(said, MAX_TEXT));
            }
        }
        page.push_str("</section>");
    }

    /// A line for each client, a dot for each exchange.
    fn timeline(&self, page: &mut String) {
        const WIDTH: u64 = 1_000;
        const LABELS: u64 = 260;
        const LINE: usize = 22;
        let times = || self.exchanges.values().map(|row| row.at.0);
        let (Some(first), Some(last)) = (times().min(), times().max()) else { return };
        let mut lines: Vec<&str> = Vec::new();
        for row in self.exchanges.values() {
            if !lines.contains(&row.client.as_str()) && lines.len() < MAX_LINES {
                lines.push(&row.client);
            }
        }
        let height = LINE * (lines.len() + 1);
        let seconds = (last - first) as f64 / 1e9;
        let _ = write!(
            page,
            "<h2>When</h2><p>{seconds:.1} s from left to right.</p><div class=\"wide\"><svg class=\"timeline\" role=\"img\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\"><title>Exchanges by client and time</title>"
        );
        for (number, client) in lines.iter().enumerate() {
            let y = LINE * (number + 1);
            let _ = write!(
                page,
                "<text x=\"0\" y=\"{y}\">{}</text><line class=\"row\" x1=\"{LABELS}\" y1=\"{}\" x2=\"{WIDTH}\" y2=\"{}\"/>",
                escaped(client, 34),
                y - 4,
                y - 4
            );
        }
        for row in self.exchanges.values() {
            let Some(number) = lines.iter().position(|line| *line == row.client) else { continue };
            let x = LABELS
                + 8
                + (u128::from(row.at.0 - first) * u128::from(WIDTH - LABELS - 16) / u128::from((last - first).max(1)))
                    as u64;
            let _ = write!(
                page,
                "<circle class=\"{}\" cx=\"{x}\" cy=\"{}\" r=\"5\"/>",
                if row.well { "ok" } else { "no" },
                LINE * (number + 1) - 4
            );
        }
        page.push_str("</svg></div>");
    }
}

fn tell_what_if(page: &mut String, what_if: &WhatIf) {
    let word = |outlook| match outlook {
        Outlook::Breaks => "<span class=\"bad\">breaks</span>",
        Outlook::CannotBeTold => "<span class=\"warn\">cannot be told</span>",
        Outlook::Works => "<span class=\"good\">works</span>",
    };
    let _ = write!(
        page,
        "<h2>What if {}: {}</h2><p>{}.</p>",
        what_if.settings,
        word(what_if.outlook),
        escaped(&what_if.why, MAX_TEXT)
    );
    let rows = what_if.clients.iter().map(|client| {
        let process = client.who.process.as_ref();
        let program = process.map_or("", |process| process.exe.as_deref().unwrap_or(&process.comm));
        let why: Vec<String> =
            client.reasons.iter().map(|reason| format!("{} ({} times)", reason.text, reason.count)).collect();
        [
            escaped(&plain(&text::subject(&client.who)), MAX_NAME),
            escaped(program, MAX_NAME),
            word(client.outlook).to_owned(),
            escaped(&why.join("; "), MAX_TEXT),
        ]
    });
    table(page, "", ["Client", "Program", "Would", "Why"], rows);
}

fn row(event: &ExchangeEvent) -> Row {
    let exchange = &event.exchange;
    let process = event.who.process.as_ref();
    Row {
        at: exchange.opened,
        client: printable(&plain(&text::subject(&event.who)), MAX_NAME),
        program: process
            .map(|process| printable(process.exe.as_deref().unwrap_or(&process.comm), MAX_NAME))
            .unwrap_or_default(),
        request: match &exchange.request {
            Some(request) => printable(&format!("{} {}", request.method, request.path), MAX_NAME),
            None => "connection".to_owned(),
        },
        outcome: plain(&text::outcome(exchange)),
        well: exchange.status().is_some_and(|status| status < 400) && !exchange.is_late(),
    }
}

fn limits(limit: HopLimit) -> String {
    let number = |limit: Option<crate::net::Ttl>| limit.map_or("?".to_owned(), |limit| limit.0.to_string());
    format!("{} / {}", number(limit.observed), number(limit.needed))
}

/// A table; its cells are markup of ours, or escaped.
fn table<const N: usize>(page: &mut String, id: &str, heads: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let _ = write!(page, "<div class=\"wide\"><table id=\"{id}\"><thead><tr>");
    for head in heads {
        let _ = write!(page, "<th>{head}</th>");
    }
    page.push_str("</tr></thead><tbody>");
    for row in rows.take(MAX_EXCHANGES) {
        page.push_str("<tr>");
        for cell in row {
            let _ = write!(page, "<td>{cell}</td>");
        }
        page.push_str("</tr>");
    }
    page.push_str("</tbody></table></div>");
}

fn plain(text: &str) -> String {
    strip_str(text).to_string()
}

/// Text that others chose, as text in a page.
fn escaped(text: &str, limit: usize) -> String {
    let mut out = String::new();
    for c in printable(text, limit).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// SHA-256 in base64, as a Content-Security-Policy names what it lets run.
fn digest(text: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digest = Sha256::digest(text.as_bytes());
    let mut out = String::new();
    for bytes in digest.chunks(3) {
        let number =
            bytes.iter().fold(0_usize, |number, byte| number << 8 | usize::from(*byte)) << (8 * (3 - bytes.len()));
        for place in 0..4 {
            let letter = LETTERS.get(number >> (18 - 6 * place) & 63).copied().unwrap_or(b'=');
            out.push(if place <= bytes.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_what_browsers_make_of_the_same_text() {
        // printf '' | openssl dgst -sha256 -binary | base64
        assert_eq!(digest(""), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
    }

    #[test]
    fn nothing_that_others_chose_is_markup() {
        let shown = escaped("<script>\"'&\u{202e}\n", 100);
        assert!(!shown.contains(['<', '>', '"', '\'', '\n', '\u{202e}']), "{shown}");
    }
}
