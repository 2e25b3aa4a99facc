//! What is told to programs? One object for each answer, and a summary.

use std::io::{self, Write};

use diagnosis::output::json::schema_of;
use diagnosis::printable::json_safe;
use schemars::JsonSchema;
use serde::Serialize;

use super::super::{Answer, Status, Subject};

/// One line of `imds-trace doctor --output json`. More fields, and lines of other types, may be added: pass over what you do not know.
#[derive(Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Line<'a> {
    Check(CheckLine<'a>),
    Summary(SummaryLine<'a>),
}

/// What a check found about one thing.
#[derive(Serialize, JsonSchema)]
pub struct CheckLine<'a> {
    /// When.
    at: String,
    /// Name of the check.
    check: &'a str,
    /// What kind of thing it is about.
    kind: Kind,
    /// Its name.
    subject: &'a str,
    /// How it stands.
    status: Status,
    /// One sentence.
    summary: &'a str,
    /// A command to look at it oneself.
    look: Option<&'a str>,
    /// A command that mends it.
    mend: Option<&'a str>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Host,
    Kernel,
    Interface,
    Container,
    Network,
}

/// How many answers there were of each status; the last line.
#[derive(Serialize, JsonSchema)]
pub struct SummaryLine<'a> {
    /// When.
    pub at: String,
    /// Version of imds-trace.
    pub version: &'a str,
    /// As it should be.
    pub ok: usize,
    /// It may break IMDS, or hides something.
    pub warning: usize,
    /// It breaks IMDS for somebody, or tracing.
    pub broken: usize,
    /// It could not be found out.
    pub unknown: usize,
}

/// The JSON schema of a line, as text.
pub fn schema() -> String {
    schema_of::<Line<'_>>("imds-trace doctor --output json")
}

/// An answer's line.
pub fn line<'a>(at: String, check: &'a str, answer: &'a Answer) -> Line<'a> {
    let kind = match &answer.about {
        Subject::Host => Kind::Host,
        Subject::Kernel(_) => Kind::Kernel,
        Subject::Interface(_) => Kind::Interface,
        Subject::Container(_) => Kind::Container,
        Subject::Network(_) => Kind::Network,
    };
    Line::Check(CheckLine {
        at,
        check,
        kind,
        subject: answer.about.name(),
        status: answer.status,
        summary: &answer.summary,
        look: answer.look.as_deref(),
        mend: answer.mend.as_deref(),
    })
}

/// Writes a line.
pub fn write(stream: &mut dyn Write, line: &Line<'_>) -> io::Result<()> {
    let mut text = json_safe(&serde_json::to_string(line)?).into_owned();
    text.push('\n');
    stream.write_all(text.as_bytes())
}
