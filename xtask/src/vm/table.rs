//! What does the table of kernels and scenarios say?

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{
    Outcome,
    kernel::numbers,
    scenarios::{self, Scenario},
};
use crate::tally::Tally;

/// What stands around the table in docs/kernels.md.
const BEGIN: &str = "<!-- made by cargo xtask vm --page -->";
const END: &str = "<!-- up to here -->";

/// A cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    Passed,
    Failed,
    NotRun,
}

impl Cell {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::NotRun => "not run",
        }
    }
}

/// A claim, and what came of it on each kernel.
pub type Row = (String, Vec<Cell>);

/// A row for each scenario.
pub fn by_scenario(scenarios: &[&Scenario], outcomes: &[Outcome]) -> Vec<Row> {
    let cell = |outcome: &Outcome, tests: &[&str]| {
        let results: Vec<_> = tests.iter().map(|test| outcome.tests.get(*test)).collect();
        if results.contains(&Some(&false)) {
            Cell::Failed
        } else if results.contains(&None) {
            Cell::NotRun
        } else {
            Cell::Passed
        }
    };
    let row =
        |claim: &str, tests: &[&str]| (claim.to_owned(), outcomes.iter().map(|outcome| cell(outcome, tests)).collect());
    scenarios.iter().map(|scenario| row(scenario.claim, scenario.tests)).collect()
}

/// A row for each test that ran anywhere.
pub fn by_test(outcomes: &[Outcome]) -> Vec<Row> {
    let names: BTreeSet<&String> = outcomes.iter().flat_map(|outcome| outcome.tests.keys()).collect();
    let cell = |tests: &BTreeMap<String, bool>, name: &String| match tests.get(name) {
        Some(true) => Cell::Passed,
        Some(false) => Cell::Failed,
        None => Cell::NotRun,
    };
    let row = |name: &String| (name.clone(), outcomes.iter().map(|outcome| cell(&outcome.tests, name)).collect());
    names.into_iter().map(row).collect()
}

/// The table as Markdown.
pub fn shown(outcomes: &[Outcome], rows: &[Row]) -> String {
    let mut table = String::from("|");
    for outcome in outcomes {
        let release = if outcome.release.is_empty() { &outcome.name } else { &outcome.release };
        let _ = write!(table, " | {release}");
    }
    let _ = writeln!(table, " |\n|{}", "---|".repeat(outcomes.len() + 1));
    for (claim, cells) in rows {
        let _ = write!(table, "| {claim}");
        for cell in cells {
            let _ = write!(table, " | {}", cell.word());
        }
        table.push_str(" |\n");
    }
    table
}

/// How many tests of a kernel passed. Those of `wanted` that did not run have failed.
pub fn count(outcome: &Outcome, wanted: &[&str]) -> Tally {
    let passed = outcome.tests.values().filter(|passed| **passed).count();
    let missing = wanted.iter().filter(|test| !outcome.tests.contains_key(**test)).count();
    let mut failed = outcome.tests.len() - passed + missing;
    if outcome.broken.is_some() || outcome.tests.is_empty() {
        failed = failed.max(1);
    }
    Tally { passed, failed, ignored: 0 }
}

/// Keeps what came of a kernel, for the table in docs/kernels.md.
pub fn keep(folder: &Path, outcome: &Outcome) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let kept = json!({ "name": outcome.name, "release": outcome.release, "tests": outcome.tests });
    let path = folder.join(format!("{}.json", outcome.name));
    fs::write(&path, kept.to_string()).with_context(|| format!("write {}", path.display()))
}

/// What came of each kernel when all was run on it last, this machine's processor and the oldest kernel first.
fn kept(folder: &Path) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let kept: Value = serde_json::from_str(&fs::read_to_string(entry?.path())?)?;
        let text = |field: &str| kept[field].as_str().unwrap_or_default().to_owned();
        let tests = kept["tests"].as_object().into_iter().flatten();
        let tests = tests.map(|(name, passed)| (name.clone(), passed == true)).collect();
        outcomes.push(Outcome { name: text("name"), release: text("release"), tests, broken: None });
    }
    let is_of_other = |outcome: &Outcome| outcome.name.contains(':');
    outcomes.sort_by_key(|outcome: &Outcome| (is_of_other(outcome), numbers(&outcome.name)));
    Ok(outcomes)
}

/// Puts the table of what is kept where docs/kernels.md has it. A table with a cell that is not `ok` is not put there.
pub fn write(page: &Path, folder: &Path) -> Result<()> {
    let outcomes = kept(folder)?;
    let rows = by_scenario(&scenarios::chosen(true), &outcomes);
    if rows.iter().any(|(_, cells)| cells.iter().any(|cell| *cell != Cell::Passed)) {
        bail!("not all is well: the table in {} stays as it is", page.display());
    }
    let text = fs::read_to_string(page).with_context(|| format!("read {}", page.display()))?;
    let text = replaced(&text, &shown(&outcomes, &rows))
        .with_context(|| format!("{BEGIN} and {END} in {}", page.display()))?;
    fs::write(page, text).with_context(|| format!("write {}", page.display()))
}

fn replaced(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(tests: &[(&str, bool)]) -> Outcome {
        let tests = tests.iter().map(|(name, passed)| ((*name).to_owned(), *passed)).collect();
        Outcome { tests, ..Outcome::default() }
    }

    #[test]
    fn what_was_wanted_and_did_not_run_has_failed() {
        let some = outcome(&[("a", true), ("b", false)]);
        assert_eq!(count(&some, &["a", "b", "c"]), Tally { passed: 1, failed: 2, ignored: 0 });
        assert_eq!(count(&Outcome::default(), &[]), Tally { passed: 0, failed: 1, ignored: 0 });
        let broken = Outcome { broken: Some("panic".to_owned()), ..outcome(&[("a", true)]) };
        assert_eq!(count(&broken, &["a"]).failed, 1);
    }

    #[test]
    fn a_cell_is_as_good_as_the_worst_of_its_tests() {
        let rows = scenarios::chosen(true);
        let (_, cells) = by_scenario(&rows, &[outcome(&[(rows[0].tests[0], false)]), outcome(&[])]).remove(0);
        assert_eq!(cells, [Cell::Failed, Cell::NotRun]);
    }

    #[test]
    fn the_table_takes_the_old_ones_place() {
        let text = format!("before\n{BEGIN}\nold\n{END}\nafter");
        assert_eq!(replaced(&text, "| new |\n").unwrap(), format!("before\n{BEGIN}\n\n| new |\n\n{END}\nafter"));
        assert_eq!(replaced("nothing", ""), None);
    }
}
