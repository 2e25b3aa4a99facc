//! How is it told to a tired person? A line per exchange and finding as they come; at the end, what is wrong, shown hop by hop.

mod coverage;
pub(super) mod group;
mod hosts;
mod ladder;
mod what_if;

use std::fmt::Write as _;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

use super::{Kind, Output};
use crate::event::{Asserted, Event, ExchangeEvent, HostSum, Probed, Report, Tally, UnseenConnection};
use crate::exchange::{Delivery, Exchange};
use crate::finding::{Confidence, Finding, HopLimit, Severity};
use crate::identity::job::{Evidence, Job};
use crate::identity::{Attribution, Key};
use crate::journey::{Fate, OtherPackets};
use crate::net::{BootTime, Timestamp};
use crate::printable::printable;
use crate::words::{self, counted, counted_were, rfc3339, times};

/// The kind.
pub const KIND: Kind = Kind {
    name: "text",
    explain: "for people",
    needs_path: false,
    packets: false,
    verbatim: false,
    several: true,
    generated: false,
    open: |stream, boot_time| Box::new(Text { stream, boot_time, probed: false, is_later: false }),
};

const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
const BLUE: Style = AnsiColor::Cyan.on_default().bold();
const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();

/// Bytes of a name that are shown.
const MAX_NAME: usize = 64;
/// Bytes of a container's title, in a pod with three names, or of what stands for one.
const MAX_TITLE: usize = 256;
/// Bytes of a path or User-Agent that are shown.
const MAX_PATH: usize = 100;
/// Columns of a paragraph.
const WIDTH: usize = 100;
/// Bytes of a web address that are shown.
const MAX_URL: usize = 200;

struct Text {
    stream: Box<dyn Write>,
    boot_time: BootTime,
    /// What came of a probe has been told: what follows only says why, and what to do.
    probed: bool,
    /// Another host was told before.
    is_later: bool,
}

impl Output for Text {
    fn tell(&mut self, event: &Event) -> io::Result<()> {
        match event {
            // stderr says what is attached; packets are for others.
            Event::Ready(..) | Event::Packet(_) => Ok(()),
            Event::Exchange(_) | Event::Finding(..) if self.probed => Ok(()),
            Event::Exchange(event) => {
                let line = self.exchange(event);
                writeln!(self.stream, "{line}")
            }
            Event::Finding(at, finding) => {
                let style = style(finding.severity);
                let (time, word) = (self.time(*at), word(finding.severity));
                if finding.count == 0 {
                    let (rule, whom) = (finding.rule, who(&finding.who));
                    return writeln!(self.stream, "{time}  withdrawn {rule} of {whom}: the outcome has changed since");
                }
                writeln!(
                    self.stream,
                    "{time}  {style}{word} {}{style:#}: {}{}",
                    finding.rule,
                    printable(&finding.says.summary, usize::MAX),
                    times(finding.count)
                )
            }
            Event::Unseen(at, unseen) => {
                let time = self.time(*at);
                writeln!(self.stream, "{time}  {}  {}", who(&unseen.who), unseen_sentence(unseen))
            }
            Event::Loss(at, lost) => {
                writeln!(self.stream, "{}  {RED}lost{RED:#}: {}", self.time(*at), words::lost(*lost))
            }
            Event::Probed(_, probed) => {
                self.probed = true;
                self.stream.write_all(tell_probed(probed).as_bytes())
            }
            Event::Settled(_) | Event::End(..) => Ok(()),
        }
    }

    fn report(&mut self, at: Timestamp, report: &Report) -> io::Result<()> {
        let text = self.whole(at, report);
        self.stream.write_all(text.as_bytes())
    }

    fn host(&mut self, _: Timestamp, name: &str) -> io::Result<()> {
        let blank = if std::mem::replace(&mut self.is_later, true) { "\n" } else { "" };
        writeln!(self.stream, "{blank}{BOLD}Host {}{BOLD:#}", printable(name, MAX_PATH))
    }

    fn sum(&mut self, hosts: &[HostSum]) -> io::Result<()> {
        self.stream.write_all(hosts::sum(hosts).as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Text {
    fn time(&self, at: Timestamp) -> String {
        time(at, self.boot_time)
    }

    fn exchange(&self, event: &ExchangeEvent) -> String {
        let exchange = &event.exchange;
        let what = match &exchange.request {
            Some(request) => format!("{} {}", printable(&request.method, 16), printable(&request.path, MAX_PATH)),
            None => "connection".to_owned(),
        };
        format!("{}  {}  {what}  {}", self.time(exchange.opened), who(&event.who), outcome(exchange))
    }

    fn whole(&self, end: Timestamp, report: &Report) -> String {
        let mut out = String::new();
        if !self.probed {
            let _ = writeln!(out, "\n{BOLD}Report{BOLD:#}: {}", overview(report));
        }
        for why in &report.broken {
            let text = format!("{RED}{}{RED:#}: {}", words::not_intact(report), printable(why, usize::MAX));
            let _ = writeln!(out, "{}", paragraph("", "  ", &text));
        }
        if report.lost.sum() > 0 {
            let _ = writeln!(out, "{RED}Incomplete{RED:#}: {}", words::lost(report.lost));
        }
        if report.subjects.is_empty() && !self.probed {
            let _ = writeln!(out, "{}", words::nothing_shown(report, end, self.boot_time));
        } else if report.hidden > 0 {
            let _ = writeln!(out, "Filtered: {} not shown.", counted_were(report.hidden, "more exchange"));
        }
        for found in &report.findings {
            let _ = writeln!(out);
            finding(&mut out, found, self.boot_time, !self.probed);
        }
        if !report.subjects.is_empty() && !self.probed {
            let _ = writeln!(out, "\n{BOLD}Who asked{BOLD:#}");
            for tally in &report.subjects {
                let _ = writeln!(out, "  {}", tally_line(tally));
            }
            if let Some(verdict) = words::verdict(report) {
                let _ = writeln!(out, "{verdict}");
            }
        }
        for sentence in coverage::sentences(report, self.boot_time) {
            let _ = writeln!(out, "{}", paragraph("", "  ", &sentence));
        }
        for other in &report.other {
            let _ = writeln!(out, "\nNote: {}.", other_packets(other));
        }
        if let Some(groups) = &report.groups {
            group::tell(&mut out, groups, self.boot_time);
        }
        for what_if in &report.what_if {
            what_if::tell(&mut out, what_if, self.boot_time);
        }
        if let Some(difference) = report.spent.difference() {
            let _ = writeln!(out, "\nNote: {difference}.");
        }
        if !report.expectations.is_empty() {
            let _ = writeln!(out);
        }
        for asserted in &report.expectations {
            let _ = writeln!(out, "{}", expectation(asserted));
        }
        out
    }
}

/// Wall-clock time of day to the millisecond, UTC.
pub(super) fn time(at: Timestamp, boot_time: BootTime) -> String {
    // 2026-01-31T12:34:56.123456789Z
    rfc3339(at, boot_time).get(11..23).unwrap_or("--:--:--.---").to_owned()
}

/// What came of a probe: the sentence, then the way.
fn tell_probed(probed: &Probed) -> String {
    let style = if probed.reached { BOLD } else { RED };
    let summary = printable(&probed.summary, usize::MAX);
    let mut out = paragraph("", "  ", &format!("{style}{summary}{style:#}")) + "\n";
    if let Some(path) = &probed.path {
        out.push('\n');
        ladder::draw(&mut out, path, probed.initial_ttl, probed.copies);
    }
    out
}

/// A finding in full: what, where (if the way is to be drawn), how sure, and what to do.
pub(super) fn finding(out: &mut String, finding: &Finding, boot_time: BootTime, draws: bool) {
    let style = style(finding.severity);
    let _ = writeln!(out, "{style}{} {}{style:#}   {}", word(finding.severity), finding.rule, who(&finding.who));
    let _ = writeln!(out, "{}", paragraph("  ", "  ", &printable(&finding.says.summary, usize::MAX)));
    if let Some(path) = finding.says.path.as_ref().filter(|_| draws) {
        let _ = writeln!(out);
        ladder::draw(out, path, finding.who.initial_ttl, finding.count);
        let _ = writeln!(out);
    }
    let basis = match finding.says.confidence {
        Confidence::Certain => "certain: seen in the kernel",
        Confidence::Likely => "likely: inferred",
    };
    let (first, last) = (time(finding.first, boot_time), time(finding.last, boot_time));
    let when = if finding.count == 1 {
        format!("once, at {first}")
    } else {
        format!("{} times, {first} to {last}", finding.count)
    };
    let _ = writeln!(out, "  {}Seen {when} UTC ({basis}).", hop_limit(finding.hop_limit));
    for (number, command) in finding.says.remedy.iter().enumerate() {
        let label = if number == 0 { "Run    " } else { "       " };
        let _ = writeln!(out, "  {BOLD}{label}{BOLD:#}  {}", printable(command, usize::MAX));
    }
    if let Some(lasting) = &finding.says.lasting {
        let first = format!("  {DIM}Persist{DIM:#}  ");
        let _ = writeln!(out, "{}", paragraph(&first, "           ", &printable(lasting, usize::MAX)));
    }
    if let Some(caution) = &finding.says.caution {
        let first = format!("  {DIM}Caution{DIM:#}  ");
        let _ = writeln!(out, "{}", paragraph(&first, "           ", &printable(caution, usize::MAX)));
    }
}

fn expectation(asserted: &Asserted) -> String {
    let held = if asserted.held { "held".to_owned() } else { format!("{RED}NOT HELD{RED:#}") };
    let (expect, why) = (printable(&asserted.expect, MAX_PATH), printable(&asserted.why, usize::MAX));
    paragraph("", "  ", &format!("Expected {BOLD}{expect}{BOLD:#}: {held}. {why}"))
}

fn other_packets(other: &OtherPackets) -> String {
    // Numbers of IANA's list of protocols.
    let protocol = match other.protocol {
        1 | 58 => "ICMP".to_owned(),
        17 => "UDP".to_owned(),
        other => format!("protocol {other}"),
    };
    let packets = counted(other.packets, &format!("{protocol} packet"));
    let source = other.source.map_or("elsewhere".to_owned(), |source| source.to_string());
    format!("{packets} from {source} to {}: no connect, not HTTP", other.destination)
}

/// Text in lines that fit a terminal. Commands are not broken: they are to be copied.
fn paragraph(first: &str, further: &str, text: &str) -> String {
    textwrap::fill(
        text,
        textwrap::Options::new(WIDTH).initial_indent(first).subsequent_indent(further).break_words(false),
    )
}

/// How much there was, and how much of it is wrong.
pub(super) fn overview(report: &Report) -> String {
    let exchanges: u64 = report.subjects.iter().map(|tally| tally.exchanges).sum();
    let mut parts =
        vec![format!("{} of {}", counted(exchanges, "exchange"), counted(report.subjects.len() as u64, "client"))];
    for severity in [Severity::Error, Severity::Warning, Severity::Notice] {
        let found = report.findings.iter().filter(|finding| finding.severity == severity).count() as u64;
        if found > 0 {
            parts.push(counted(found, &word(severity).to_lowercase()));
        }
    }
    parts.join(", ")
}

fn hop_limit(limit: HopLimit) -> String {
    match (limit.observed, limit.needed) {
        (Some(observed), Some(needed)) => format!("Hop limit observed {}, needed {}. ", observed.0, needed.0),
        (Some(observed), None) => format!("Hop limit observed {}. ", observed.0),
        (None, Some(needed)) => format!("Hop limit needed {}. ", needed.0),
        (None, None) => String::new(),
    }
}

fn tally_line(tally: &Tally) -> String {
    let mut asked = counted(tally.exchanges, "exchange");
    if tally.unanswered > 0 {
        let _ = write!(asked, ", {RED}{} unanswered{RED:#}", tally.unanswered);
    }
    let limit = hop_limit(tally.hop_limit);
    let findings = if tally.findings.is_empty() { String::new() } else { format!(" ({})", tally.findings.join(", ")) };
    let job = tally.who.container.as_ref().and_then(|container| container.job.as_deref());
    let job = job.map(|job| format!("{}. ", job_words(job))).unwrap_or_default();
    format!("{}: {asked}. {limit}{job}{findings}", subject(&tally.who)).trim_end().to_owned()
}

/// The job a container belongs to, and where it can be looked at.
fn job_words(job: &Job) -> String {
    let of = match job.by {
        Evidence::Labels => format!("of {}", job.system),
        Evidence::Names => format!("probably of {}", job.system),
    };
    let what = match job.system {
        "ecs" => "Task",
        "kubernetes" => "Pod",
        _ => "Job",
    };
    let id = job.id.as_deref().map(|id| format!(" {}", printable(id, MAX_PATH))).unwrap_or_default();
    let url = job.url.as_deref().map(|url| format!(", {}", printable(url, MAX_URL))).unwrap_or_default();
    format!("{what}{id} {of}{url}")
}

pub(super) fn outcome(exchange: &Exchange) -> String {
    let took = exchange.duration().map(|duration| milliseconds(duration.as_secs_f64())).unwrap_or_default();
    if exchange.is_attempt() {
        return format!("{RED}never left{RED:#}: no SYN followed its connect()");
    }
    if let Some(status) = exchange.status() {
        let style = if status < 400 { Style::new() } else { YELLOW };
        let but = match exchange.is_late() {
            true => format!(", {YELLOW}too late{YELLOW:#}"),
            false if exchange.incomplete => {
                format!(", {RED}not whole{RED:#}: a part of the response was not seen to arrive")
            }
            false => String::new(),
        };
        return format!("{style}{status}{style:#} in {took}{but}");
    }
    let status = exchange.response.as_ref().map(|response| format!(" ({})", response.status)).unwrap_or_default();
    if exchange.answered.is_some() {
        return match exchange.response_delivery() {
            Delivery::Received(_) => format!("answered in {took}"),
            _ => format!("response{status} {YELLOW}forwarded{YELLOW:#} in {took}, not acknowledged"),
        };
    }
    let lost = |what: &str, drop: &crate::journey::Dropped, copies: u64| {
        let at = &drop.drop;
        let on = at
            .interface
            .as_ref()
            .map(|interface| format!(" on {}", printable(&interface.name, 16)))
            .unwrap_or_default();
        format!(
            "{RED}{what} LOST{RED:#} in {}{on}, ttl {}{} (gave up after {took})",
            printable(at.function(), MAX_NAME),
            drop.ttl.0,
            words::copies(copies)
        )
    };
    match (exchange.response_drop(), exchange.request_drop(), &exchange.inward) {
        (Some(drop), _, inward) => lost("response", drop, inward.as_ref().map_or(1, |travel| travel.copies)),
        (None, Some(drop), _) => lost("request", drop, exchange.outward.as_ref().map_or(1, |travel| travel.copies)),
        (None, None, Some(travel)) if !exchange.responded && travel.fate == Fate::Unresolved && travel.copies > 0 => {
            format!(
                "{RED}not connected{RED:#}: the answer to its SYN was not seen again after it came in (gave up after {took})"
            )
        }
        (None, None, Some(travel)) if exchange.responded && travel.fate == Fate::Unresolved => {
            format!("{RED}response not seen again{RED:#} after it came in (gave up after {took})")
        }
        _ if exchange.refusal.is_some() => format!("{RED}refused{RED:#} after {took}"),
        // Its begin was not seen: nobody knows what it had asked, and got, before.
        (None, None, _) if exchange.asked.is_none() && exchange.begins_unseen() => {
            "part of a connection whose begin was not seen".to_owned()
        }
        (None, None, _) if exchange.asked.is_none() && exchange.unheard => "what it asked was not seen".to_owned(),
        (None, None, _) if exchange.is_unacknowledged() => {
            format!(
                "{RED}not seen to connect{RED:#}: nothing acknowledged the answer to its SYN, as far as was seen (gave up after {took})"
            )
        }
        (None, None, _) if exchange.asked.is_none() && exchange.handshake => "closed without a request".to_owned(),
        _ if exchange.responded && exchange.response.is_some() => {
            let what = if exchange.response_refuted { "did not reach the client" } else { "was not seen to arrive" };
            format!("{RED}response{status} {what}{RED:#}")
        }
        _ if exchange.responded => "what came back was not seen".to_owned(),
        _ => format!("{RED}no answer{RED:#} in {took}"),
    }
}

/// What is known of a connection that no hook saw.
fn unseen_sentence(unseen: &UnseenConnection) -> String {
    let counted = match unseen.counted {
        Some((received, acked)) => format!("its socket received {received} bytes and sent {acked}"),
        None => "how much its socket received is not known".to_owned(),
    };
    format!(
        "{YELLOW}unseen{YELLOW:#}: a connection to {} passed no interface that is watched; {counted}",
        unseen.endpoint
    )
}

fn milliseconds(seconds: f64) -> String {
    if seconds >= 1.0 { format!("{seconds:.1} s") } else { format!("{:.1} ms", seconds * 1e3) }
}

/// Container and process, as far as known.
fn who(who: &Attribution) -> String {
    let process = match &who.process {
        Some(process) => format!(" {}[{}]", printable(&process.comm, MAX_NAME), process.pid),
        None => String::new(),
    };
    format!("{}{process}", subject(who))
}

pub(super) fn subject(who: &Attribution) -> String {
    let address = who.address.map_or_else(|| "address not known".to_owned(), |address| address.to_string());
    match (&who.container, who.by) {
        (Some(container), by) => {
            let inner = match container.short_inner() {
                Some(inner) => format!(", container {} inside it", printable(inner, MAX_NAME)),
                None => String::new(),
            };
            let unsure = if by == Key::Address { ", by its address" } else { "" };
            format!("{BOLD}{}{BOLD:#} ({address}{inner}{unsure})", printable(&container.title(), MAX_TITLE))
        }
        (None, Key::Cgroup) => format!("{BOLD}host{BOLD:#} ({address})"),
        (None, _) => match who.place() {
            Some(place) => format!("{BOLD}{}{BOLD:#} ({address})", printable(&place, MAX_TITLE)),
            None => format!("{BOLD}unknown{BOLD:#} ({address})"),
        },
    }
}

fn style(severity: Severity) -> Style {
    match severity {
        Severity::Error => RED,
        Severity::Warning => YELLOW,
        Severity::Notice => BLUE,
    }
}

pub(super) fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "ERROR",
        Severity::Warning => "WARNING",
        Severity::Notice => "NOTICE",
    }
}
