//! How is it told to a CI server? JUnit XML, which GitLab and others show beside the tests: a case per expectation and per client.
//!
//! A client's errors are one failure, because the servers show one a case; its warnings and notices are what the case printed. Of a
//! client that was to be kept out, and is, the errors are no failure.

use std::io::{self, Write};

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use super::{Kind, Output, text};
use crate::event::Event;
use crate::event::{Asserted, Report, Tally};
use crate::finding::{Finding, Severity};
use crate::identity::Subject;
use crate::net::{BootTime, Timestamp};
use crate::printable::printable;
use crate::words;

/// The kind.
pub const KIND: Kind = Kind {
    name: "junit",
    explain: "JUnit XML, for CI servers",
    needs_path: true,
    packets: false,
    verbatim: false,
    several: false,
    generated: false,
    open: |stream, boot_time| Box::new(Junit { stream, boot_time, probed: None }),
};

/// What the suite is called, and the class names of its cases begin with.
const SUITE: &str = "imds-trace";

struct Junit {
    stream: Box<dyn Write>,
    boot_time: BootTime,
    /// What came of a probe.
    probed: Option<String>,
}

impl Output for Junit {
    fn tell(&mut self, event: &Event) -> io::Result<()> {
        if let Event::Probed(_, probed) = event {
            self.probed = Some(printable(&probed.summary, usize::MAX));
        }
        Ok(())
    }

    fn report(&mut self, _: Timestamp, report: &Report) -> io::Result<()> {
        let mut suite = suite(report, self.boot_time);
        let lost = (report.lost.sum() > 0).then(|| format!("Incomplete: {}", words::lost(report.lost)));
        let what = words::not_intact(report);
        let broken = report.broken.iter().map(|why| format!("{what}: {}", printable(why, usize::MAX)));
        let said: Vec<String> = self.probed.take().into_iter().chain(broken).chain(lost).collect();
        if !said.is_empty() {
            suite.set_system_out(said.join("\n"));
        }
        let mut whole = quick_junit::Report::new(SUITE);
        whole.add_test_suite(suite);
        whole.serialize(&mut self.stream).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn suite(report: &Report, boot_time: BootTime) -> TestSuite {
    let mut suite = TestSuite::new(SUITE);
    suite.add_test_cases(report.expectations.iter().map(expectation));
    suite.add_test_cases(report.subjects.iter().map(|tally| client(tally, report, boot_time)));
    suite
}

fn expectation(asserted: &Asserted) -> TestCase {
    let why = printable(&asserted.why, usize::MAX);
    let status = if asserted.held { TestCaseStatus::success() } else { failure("expectation", &why, &why) };
    let mut case = TestCase::new(printable(&asserted.expect, usize::MAX), status);
    case.set_classname(format!("{SUITE}.expect"));
    if asserted.held {
        case.set_system_out(why);
    }
    case
}

fn client(tally: &Tally, report: &Report, boot_time: BootTime) -> TestCase {
    let subject = tally.who.subject();
    let (errors, others): (Vec<&Finding>, Vec<&Finding>) = report
        .findings
        .iter()
        .filter(|finding| finding.who.subject() == subject)
        .partition(|finding| finding.severity == Severity::Error && !is_kept_out(tally, report));
    let told = |findings: &[&Finding]| {
        let mut text = String::new();
        for finding in findings {
            text::finding(&mut text, finding, boot_time, true);
            let exchanges: Vec<String> = finding.evidence.iter().map(|id| id.0.to_string()).collect();
            text += &format!("  Evidence: exchange {}\n\n", exchanges.join(", "));
        }
        text
    };
    let status = match errors[..] {
        [] => TestCaseStatus::success(),
        [first, ..] => {
            let more = if errors.len() > 1 { format!(" (and {} more)", errors.len() - 1) } else { String::new() };
            let message = format!("{}{more}", printable(&first.says.summary, usize::MAX));
            failure(first.rule, &message, &told(&errors))
        }
    };
    let mut case = TestCase::new(text::subject(&tally.who), status);
    case.set_classname(format!("{SUITE}.client"));
    if !others.is_empty() {
        case.set_system_out(told(&others));
    }
    case
}

/// Was it asserted that this client gets nothing, and did that hold?
fn is_kept_out(tally: &Tally, report: &Report) -> bool {
    let held = report.expectations.iter().filter(|asserted| asserted.held);
    let mut scopes = held.filter_map(|asserted| asserted.expect.strip_prefix("blocked"));
    scopes.any(|scope| match (scope.strip_prefix(':'), &tally.who.container) {
        (None, _) => true,
        (Some(wanted), Some(container)) => container.is_called(wanted),
        (Some(wanted), None) => wanted == "host" && tally.who.subject() == Subject::Host,
    })
}

fn failure(kind: &str, message: &str, body: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
    status.set_type(kind).set_message(message).set_description(body);
    status
}
