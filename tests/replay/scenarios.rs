//! Do the scenarios come out as they say, and do they cover the rules?

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use diagnosis::finding::RULES;
use diagnosis::pipeline::Host;
use imds_trace_replay_tests::scenario::{self, HOST_NETNS, Scenario, conclude_telling, harm, judge, near};
use libtest_mimic::{Failed, Trial};

/// Where rules are told to people.
const FINDINGS: &str = include_str!("../../docs/findings.md");

/// One for each file, and those about all of them.
pub fn trials() -> Result<Vec<Trial>> {
    let files = scenario::all()?;
    let mut trials: Vec<Trial> = Vec::new();
    for (name, path) in files {
        let (stood, missed) = (path.clone(), path.clone());
        trials.push(Trial::test(format!("scenarios::{name}"), move || {
            judge(&Scenario::read(&path)?).map_err(|error| Failed::from(format!("{error:#}")))
        }));
        trials.push(Trial::test(format!("harm::{name}"), move || {
            harm::stands(&Scenario::read(&stood)?).map_err(|error| Failed::from(format!("{error:#}")))
        }));
        trials.push(Trial::test(format!("near::{name}"), move || {
            near::misses(&Scenario::read(&missed)?).map_err(|error| Failed::from(format!("{error:#}")))
        }));
    }
    trials.push(Trial::test("every_rule_has_a_scenario_that_fires_it_and_one_that_does_not", every_rule_has_both));
    trials.push(Trial::test("the_way_and_the_caution_of_every_rule_are_judged_once_at_least", all_is_judged));
    trials.push(Trial::test("every_rule_has_its_row_in_the_documents", every_rule_has_its_row));
    trials.push(Trial::test("every_scenario_says_its_exchanges_and_a_command_of_each_finding", nothing_is_left_out));
    trials.push(Trial::test("a_word_that_nobody_knows_is_an_error", unknown_words_are_errors));
    Ok(trials)
}

fn every_rule_has_both() -> Result<(), Failed> {
    let scenarios: Vec<Scenario> =
        scenario::all()?.iter().map(|(_, path)| Scenario::read(path)).collect::<Result<_>>().context("read them")?;
    let mut missing = Vec::new();
    for rule in RULES {
        let fires = |scenario: &Scenario| scenario.findings.iter().any(|finding| finding.rule == rule.id);
        let silent = |scenario: &Scenario| scenario.silent.iter().any(|name| name == rule.id);
        if !scenarios.iter().any(fires) {
            missing.push(format!("no scenario in tests/scenarios fires {}", rule.id));
        }
        if !scenarios.iter().any(silent) {
            missing.push(format!("no scenario in tests/scenarios has {} in `silent`: a near miss", rule.id));
        }
        if let Some(scenario) = scenarios.iter().find(|scenario| fires(scenario) && silent(scenario)) {
            missing.push(format!("{:?} says both of {}", scenario.about, rule.id));
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(missing.join("\n").into()) }
}

/// The table of docs/findings.md names the rules that there are, each once and with its severity, and no others.
fn every_rule_has_its_row() -> Result<(), Failed> {
    let table = FINDINGS.split("## Rules").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap_or_default();
    let rows: BTreeSet<String> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .map(|(id, rest)| format!("{id} {}", rest.split(' ').next().unwrap_or_default()))
        .collect();
    let rules: BTreeSet<String> =
        RULES.iter().map(|rule| format!("{} {}", rule.id, format!("{:?}", rule.severity).to_lowercase())).collect();
    let missing = rules.difference(&rows).map(|rule| format!("docs/findings.md has no row for {rule}"));
    let unknown = rows.difference(&rules).map(|row| format!("docs/findings.md has a row for {row}, which is no rule"));
    let wrong: Vec<String> = missing.chain(unknown).collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

fn all_is_judged() -> Result<(), Failed> {
    let (mut shown, mut judged) = (BTreeSet::new(), BTreeSet::new());
    for (_, path) in scenario::all()? {
        let scenario = Scenario::read(&path)?;
        for finding in &scenario.findings {
            judged.extend(finding.path.is_some().then(|| (finding.rule.clone(), "way")));
            judged.extend(finding.caution.is_some().then(|| (finding.rule.clone(), "caution")));
        }
        let host = Host { netns: HOST_NETNS, pid_namespace: None, instance: None };
        for finding in
            conclude_telling(host, &scenario.inputs()?, false, &scenario.telling(Vec::new())?)?.report.findings
        {
            shown.extend(finding.says.path.is_some().then(|| (finding.rule.to_owned(), "way")));
            shown.extend(finding.says.caution.is_some().then(|| (finding.rule.to_owned(), "caution")));
        }
    }
    let missing: Vec<String> =
        shown.difference(&judged).map(|(rule, what)| format!("no scenario judges the {what} of {rule}")).collect();
    if missing.is_empty() { Ok(()) } else { Err(missing.join("\n").into()) }
}

/// A command that nobody thought of when the scenario was written is none to be typed.
fn nothing_is_left_out() -> Result<(), Failed> {
    let mut missing = Vec::new();
    for (name, path) in scenario::all()? {
        let scenario = Scenario::read(&path)?;
        if scenario.exchanges.is_none() {
            missing.push(format!("{name} has no `exchanges`"));
        }
        let host = Host { netns: HOST_NETNS, pid_namespace: None, instance: None };
        for finding in
            conclude_telling(host, &scenario.inputs()?, false, &scenario.telling(Vec::new())?)?.report.findings
        {
            let silent = |expected: &&scenario::Finding| expected.rule == finding.rule && expected.remedy.is_none();
            if !finding.says.remedy.is_empty() && scenario.findings.iter().any(|expected| silent(&expected)) {
                missing.push(format!("{name} has no `remedy` of {}", finding.rule));
            }
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(missing.join("\n").into()) }
}

fn unknown_words_are_errors() -> Result<(), Failed> {
    let packet = "{ ms = 0, to = 'syn', at = ['docker0 ingress 64'] }";
    let good = format!(
        "about = 'x'\nclients = [{{ inside = '172.17.0.2:4' }}]\npackets = [{packet}]\nexchanges = ['172.17.0.2 - -']\n"
    );
    Scenario::parse(&good)?.inputs()?;
    for (what, text) in [
        ("a key of the file", format!("colour = 1\n{good}")),
        ("a key of a packet", good.replace("ms = 0", "ms = 0, hour = 1")),
        ("a key of a finding", format!("{good}[[findings]]\nrule = 'x'\nwho = 'x'\ncount = 1\nx = 1\n")),
        ("a place", good.replace("ingress", "in")),
        ("a packet's words", good.replace("'syn'", "'synch'")),
        ("a client", good.replace("ms = 0", "ms = 0, client = 'nobody'")),
        ("a rule", format!("silent = ['no-such-rule']\n{good}")),
        ("a repetition of nothing", good.replace("ms = 0", "ms = 0, again = true")),
    ] {
        let judged = Scenario::parse(&text).and_then(|scenario| judge(&scenario));
        if judged.is_ok() {
            return Err(format!("{what} that nobody knows is taken").into());
        }
    }
    Ok(())
}
