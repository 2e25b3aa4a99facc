//! Is a file valid JUnit XML, and which cases does it tell of?

use std::path::Path;

use anyhow::{Context, Result, bail};
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

/// A test case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Case {
    /// Its class.
    pub class: String,
    /// Its name.
    pub name: String,
    /// Type and message of its failure.
    pub failure: Option<(String, String)>,
}

/// Reads the cases. An error if it is not well-formed, holds a character that XML 1.0 does not allow, or counts wrong.
pub fn read(path: &Path) -> Result<Vec<Case>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    cases(&text).with_context(|| format!("{}:\n{text}", path.display()))
}

fn cases(text: &str) -> Result<Vec<Case>> {
    // XML 1.0, section 2.2.
    if let Some(bad) = text.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        bail!("XML does not allow {bad:?}");
    }
    let mut reader = Reader::from_str(text);
    let (mut cases, mut open) = (Vec::<Case>::new(), Vec::new());
    let mut counted = None;
    loop {
        let event = reader.read_event()?;
        match &event {
            Event::Start(tag) | Event::Empty(tag) => {
                match tag.name().as_ref() {
                    b"testsuites" => counted = Some((attribute(tag, "tests")?, attribute(tag, "failures")?)),
                    b"testcase" => cases.push(Case {
                        class: attribute(tag, "classname")?,
                        name: attribute(tag, "name")?,
                        failure: None,
                    }),
                    b"failure" => {
                        let case = cases.last_mut().context("a failure outside a case")?;
                        case.failure = Some((attribute(tag, "type")?, attribute(tag, "message")?));
                    }
                    b"testsuite" | b"system-out" | b"system-err" => {}
                    other => bail!("JUnit has no <{}>", String::from_utf8_lossy(other)),
                }
                if matches!(event, Event::Start(_)) {
                    open.push(tag.name().as_ref().to_vec());
                }
            }
            // The reader checks that it closes what was opened last.
            Event::End(_) => drop(open.pop()),
            Event::Text(text) => drop(text.decode()?),
            Event::Eof => break,
            _ => {}
        }
    }
    let failures = cases.iter().filter(|case| case.failure.is_some()).count();
    if !open.is_empty() || counted != Some((cases.len().to_string(), failures.to_string())) {
        bail!("{} cases, {failures} failures, counted {counted:?}; open: {}", cases.len(), open.len());
    }
    Ok(cases)
}

fn attribute(tag: &BytesStart<'_>, name: &str) -> Result<String> {
    let found = tag.try_get_attribute(name)?.with_context(|| format!("no attribute {name}"))?;
    Ok(found.normalized_value(XmlVersion::Implicit1_0)?.into_owned())
}
