//! How are the answers told? As text for people, or as JSON Lines for programs: one object for each answer, and a summary.

mod json;

use std::fs::File;
use std::io::{self, BufWriter, Write};

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use anyhow::Context;

use super::{Answer, Status, Subject};
use diagnosis::config::OutputSpec;
use diagnosis::printable::printable;
use diagnosis::words::counted;
pub use json::schema;
use json::{Line, SummaryLine};

const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
const GREEN: Style = AnsiColor::Green.on_default();
const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
/// Columns of a paragraph.
const WIDTH: usize = 100;
/// Bytes of a name that are shown.
const MAX_NAME: usize = 64;
/// Bytes of several names that are shown.
const MAX_NAMES: usize = 256;
/// Bytes of a sentence or command that are shown: a firewall's rule may be long.
const MAX_SENTENCE: usize = 4096;

/// So many containers that fare alike are told together.
const MANY: usize = 4;

/// All statuses, the worst first.
const STATUSES: [Status; 4] = [Status::Broken, Status::Warning, Status::Unknown, Status::Ok];

/// Tells answers to all outputs.
pub struct Teller {
    outputs: Vec<(bool, Box<dyn Write>)>,
    told: Vec<Status>,
}

impl Teller {
    /// Opens what was asked for.
    pub fn open(specs: &[OutputSpec]) -> anyhow::Result<Self> {
        let mut outputs = Vec::new();
        for spec in specs {
            let stream: Box<dyn Write> = match &spec.path {
                // Colour only on a terminal and never with NO_COLOR: anstream looks.
                None => Box::new(BufWriter::new(AutoStream::auto(io::stdout()))),
                Some(path) => {
                    let file =
                        File::create(path).with_context(|| format!("--output {}={}", spec.kind, path.display()))?;
                    Box::new(BufWriter::new(AutoStream::never(file)))
                }
            };
            outputs.push((spec.kind == "json", stream));
        }
        Ok(Self { outputs, told: Vec::new() })
    }

    /// Tells the answers of a check. In text, containers that fare alike are one answer.
    pub fn tell(&mut self, at: jiff::Timestamp, check: &str, answers: &[Answer]) -> io::Result<()> {
        self.told.extend(answers.iter().map(|answer| answer.status));
        for (is_json, stream) in &mut self.outputs {
            if *is_json {
                for answer in answers {
                    json::write(stream, &json::line(rfc3339(at), check, answer))?;
                }
            } else if !answers.is_empty() {
                stream.write_all(format!("{BOLD}{check}{BOLD:#}\n").as_bytes())?;
                for answer in grouped(answers) {
                    stream.write_all(text(&answer).as_bytes())?;
                }
            }
        }
        Ok(())
    }

    /// Tells the summary and hands everything to the system.
    pub fn finish(&mut self, at: jiff::Timestamp) -> io::Result<()> {
        let count = |status| self.told.iter().filter(|told| **told == status).count();
        let summary = Line::Summary(SummaryLine {
            at: rfc3339(at),
            version: env!("CARGO_PKG_VERSION"),
            ok: count(Status::Ok),
            warning: count(Status::Warning),
            broken: count(Status::Broken),
            unknown: count(Status::Unknown),
        });
        let parts: Vec<String> = STATUSES
            .into_iter()
            .filter(|status| count(*status) > 0)
            .map(|status| {
                let (style, word) = shown(status);
                let (count, word) = (count(status), word.trim().to_lowercase());
                let many = if status == Status::Warning && count > 1 { "s" } else { "" };
                format!("{style}{count} {word}{many}{style:#}")
            })
            .collect();
        let whole = counted(self.told.len() as u64, "answer");
        for (is_json, stream) in &mut self.outputs {
            if *is_json {
                json::write(stream, &summary)?;
            } else {
                writeln!(stream, "\n{BOLD}Summary{BOLD:#}: {whole}: {}.", parts.join(", "))?;
            }
            stream.flush()?;
        }
        Ok(())
    }
}

fn rfc3339(at: jiff::Timestamp) -> String {
    format!("{at:.9}")
}

fn shown(status: Status) -> (Style, &'static str) {
    match status {
        Status::Ok => (GREEN, "ok     "),
        Status::Warning => (YELLOW, "WARNING"),
        Status::Broken => (RED, "BROKEN "),
        Status::Unknown => (DIM, "unknown"),
    }
}

/// The same answers, and one for all containers of which the same is said, where there are several.
fn grouped(answers: &[Answer]) -> Vec<Answer> {
    let mut groups: Vec<(Answer, Vec<String>)> = Vec::new();
    for answer in answers {
        let name = answer.about.name().to_owned();
        let alike = |(first, _): &&mut (Answer, Vec<String>)| {
            let containers = [&first.about, &answer.about].map(|about| matches!(about, Subject::Container(_)));
            // A command that mends is one container's own.
            containers == [true, true]
                && (first.status, &first.summary) == (answer.status, &answer.summary)
                && first.mend.is_none()
                && answer.mend.is_none()
        };
        match groups.iter_mut().find(alike) {
            Some((_, names)) => names.push(name),
            None => groups.push((answer.clone(), vec![name])),
        }
    }
    let group = |(answer, names): (Answer, Vec<String>)| match names.len() {
        0..MANY => {
            let each = names.into_iter().map(|name| match &answer.about {
                Subject::Container(_) => Answer { about: Subject::Container(name), ..answer.clone() },
                _ => answer.clone(),
            });
            each.collect::<Vec<_>>()
        }
        many => {
            let names = format!("{many} containers ({})", super::some_of(&names));
            vec![Answer { about: Subject::Interface(names), ..answer }]
        }
    };
    groups.into_iter().flat_map(group).collect()
}

fn text(answer: &Answer) -> String {
    let (style, word) = shown(answer.status);
    let about = match &answer.about {
        Subject::Container(name) => format!("container {}", printable(name, MAX_NAME)),
        Subject::Network(name) => format!("network {}", printable(name, MAX_NAME)),
        about => printable(about.name(), MAX_NAMES),
    };
    // Wrapped without the colours, whose letters take no room.
    let plain = format!("{about}: {}", printable(&answer.summary, MAX_SENTENCE));
    let options = textwrap::Options::new(WIDTH).initial_indent("           ").subsequent_indent("           ");
    let wrapped = textwrap::fill(&plain, options);
    let mut text = format!("  {style}{word}{style:#}  {}\n", wrapped.trim_start());
    if answer.status != Status::Ok {
        for (label, command) in [("check", &answer.look), ("fix", &answer.mend)] {
            if let Some(command) = command {
                text += &format!("           {DIM}{label:5}{DIM:#}  {}\n", printable(command, MAX_SENTENCE));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_that_fare_alike_are_told_together_and_what_mends_one_is_told_alone() {
        let job = |number: u32| Answer::new(Subject::Container(format!("job-{number}")), Status::Ok, "It has a way.");
        let host = Answer::new(Subject::Host, Status::Ok, "It has a way.");
        let answers: Vec<Answer> = std::iter::once(host).chain((0..12).map(job)).collect();
        let told: String = grouped(&answers).iter().map(text).collect();
        assert!(told.contains("12 containers (job-0, job-1, job-2, job-3 and 8 more): It has a way."), "{told}");
        assert_eq!((grouped(&answers).len(), grouped(&answers[..4]).len()), (2, 4), "three are told one by one");
        let mended: Vec<Answer> = (0..12).map(|number| job(number).mend(format!("nsenter -t {number} true"))).collect();
        assert_eq!(grouped(&mended).len(), 12);
    }
}
