//! Do the scenarios come out as they say, and do they cover the rules?

use anyhow::{Context, Result};
use diagnosis::finding::RULES;
use imds_trace_replay_tests::scenario::{self, Scenario, judge};
use libtest_mimic::{Failed, Trial};

/// One for each file, and those about all of them.
pub fn trials() -> Result<Vec<Trial>> {
    let files = scenario::all()?;
    let mut trials: Vec<Trial> = files
        .into_iter()
        .map(|(name, path)| {
            Trial::test(format!("scenarios::{name}"), move || {
                judge(&Scenario::read(&path)?).map_err(|error| Failed::from(format!("{error:#}")))
            })
        })
        .collect();
    trials.push(Trial::test("every_rule_has_a_scenario_that_fires_it_and_one_that_does_not", every_rule_has_both));
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

fn unknown_words_are_errors() -> Result<(), Failed> {
    let packet = "{ ms = 0, to = 'syn', at = ['docker0 ingress 64'] }";
    let good = format!("about = 'x'\nclients = [{{ inside = '172.17.0.2:4' }}]\npackets = [{packet}]\n");
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
