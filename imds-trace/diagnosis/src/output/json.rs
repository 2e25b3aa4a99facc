//! How is it told to programs? JSON Lines: one object a line, `type` first, `at` an RFC 3339 time with nanoseconds.
//!
//! Unknown values are `null`, never left out and never guessed. What a line may hold is said once, by the types that are written: the
//! schema is derived from them.

mod coverage;
mod exchange;
mod finding;
mod group;
mod host;
mod process;
mod report;
mod run;
mod what_if;
mod when;

use std::io::{self, Write};

use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::Value;

use super::{Kind, Output};
use crate::event::{Event, HostSum, Report};
use crate::net::{BootTime, Timestamp};
use crate::printable::json_safe;
use exchange::ExchangeLine;
use finding::FindingLine;
use group::GroupLine;
use host::{HostLine, SumLine};
use report::ReportLine;
use run::{LossLine, ProbeLine, ReadyLine, UnseenLine, VERSION};
use what_if::{WhatIfLine, WhatIfSum};
use when::When;

/// The kind.
pub const KIND: Kind = Kind {
    name: "json",
    explain: "JSON Lines, for programs",
    needs_path: false,
    packets: false,
    verbatim: true,
    several: true,
    generated: false,
    open: |stream, boot_time| Box::new(Json { stream, boot_time, line: Vec::new() }),
};

struct Json {
    stream: Box<dyn Write>,
    boot_time: BootTime,
    line: Vec<u8>,
}

impl Output for Json {
    fn tell(&mut self, event: &Event) -> io::Result<()> {
        let boot_time = self.boot_time;
        let line = match event {
            Event::Ready(at, ready) => Line::Ready(run::ready(*at, ready, boot_time)),
            Event::Settled(_) | Event::Packet(_) | Event::End(..) => return Ok(()),
            Event::Exchange(event) => Line::Exchange(Box::new(exchange::line(event, boot_time))),
            Event::Finding(at, finding) => Line::Finding(Box::new(finding::line(*at, finding, boot_time))),
            Event::Unseen(at, unseen) => Line::Unseen(Box::new(run::unseen(*at, unseen, boot_time))),
            Event::Loss(at, lost) => Line::Loss(run::loss(*at, lost, boot_time)),
            Event::Probed(at, probed) => Line::Probe(run::probe(*at, probed, boot_time)),
        };
        self.write(&line)
    }

    fn report(&mut self, at: Timestamp, report: &Report) -> io::Result<()> {
        let boot_time = self.boot_time;
        if let Some(groups) = &report.groups {
            for group in &groups.groups {
                self.write(&Line::Group(Box::new(group::line(at, groups, group, boot_time))))?;
            }
        }
        for what_if in &report.what_if {
            for client in &what_if.clients {
                self.write(&Line::WhatIf(Box::new(what_if::line(at, what_if, client, boot_time))))?;
            }
            self.write(&Line::WhatIfSum(what_if::sum(at, what_if, boot_time)))?;
        }
        self.write(&Line::Report(Box::new(report::line(at, report, boot_time))))
    }

    fn host(&mut self, at: Timestamp, name: &str) -> io::Result<()> {
        self.write(&Line::Host(HostLine { at: When::of(at, self.boot_time), name }))
    }

    fn sum(&mut self, hosts: &[HostSum]) -> io::Result<()> {
        let line = host::sum(hosts, self.boot_time);
        self.write(&Line::Sum(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Json {
    fn write(&mut self, line: &Line<'_>) -> io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, line)?;
        if !self.line.is_ascii() {
            let safe = json_safe(&String::from_utf8_lossy(&self.line)).into_owned();
            self.line = safe.into_bytes();
        }
        self.line.push(b'\n');
        self.stream.write_all(&self.line)
    }
}

/// One line of `imds-trace --output json`. More fields, and lines of other types, may be added: pass over what you do not know.
#[derive(Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    Ready(ReadyLine<'a>),
    Exchange(Box<ExchangeLine<'a>>),
    Finding(Box<FindingLine<'a>>),
    Unseen(Box<UnseenLine<'a>>),
    Loss(LossLine<'a>),
    Probe(ProbeLine<'a>),
    Group(Box<GroupLine<'a>>),
    WhatIf(Box<WhatIfLine<'a>>),
    WhatIfSum(WhatIfSum<'a>),
    Report(Box<ReportLine<'a>>),
    Host(HostLine<'a>),
    Sum(SumLine<'a>),
}

/// The JSON schema of a line, as text.
pub fn schema() -> String {
    schema_of::<Line<'_>>("imds-trace --output json")
}

/// The JSON schema of what is serialised as a `T`, as text.
pub fn schema_of<T: JsonSchema>(title: &str) -> String {
    let settings = SchemaSettings::draft2020_12().for_serialize().with_transform(RecursiveTransform(in_words_of_json));
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.insert("title".to_owned(), format!("{title}, version {VERSION}").into());
    format!("{:#}\n", schema.to_value())
}

/// Descriptions are what the types say of their fields; a reader of JSON knows no `None`.
fn in_words_of_json(schema: &mut Schema) {
    if let Some(Value::String(said)) = schema.get_mut("description") {
        *said = said.replace("`None`", "`null`").replace("[`Key::Unknown`]", "`unknown`");
    }
}
