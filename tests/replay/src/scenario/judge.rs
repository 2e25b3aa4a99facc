//! Does the pipeline conclude what a scenario expects, and nothing else?

use anyhow::{Context, Result, bail};
use diagnosis::config::{Telling, expectation};
use diagnosis::event::{Attached, Event, ExchangeEvent, Report, Via};
use diagnosis::finding::{self, Confidence, RULES};
use diagnosis::identity::{Attribution, Subject};
use diagnosis::input::Input;
use diagnosis::journey::Fate;
use diagnosis::net::{BootTime, Direction, Timestamp};
use diagnosis::observation;
use diagnosis::pipeline::{Host, Pipeline};
use diagnosis::reporter::Reporter;

use super::{END, Finding, HOST_NETNS, INSTANCE, Place, Scenario, header, id_of};

/// What the pipeline made of inputs.
#[derive(Clone, Debug)]
pub struct Conclusions {
    /// The exchanges, by number.
    pub exchanges: Vec<ExchangeEvent>,
    /// The report.
    pub report: Report,
}

/// The live shell looks at the clock this often, ns.
const TICK: u64 = 50_000_000;

/// Gives inputs to a new pipeline. With `ticks` also the time, as often as the live shell would.
pub fn conclude(host: Host, inputs: &[Input], ticks: bool) -> Result<Conclusions> {
    conclude_telling(host, inputs, ticks, &Telling::default())
}

/// The same, with what was asked of it: what is asserted, and who may take credentials.
pub fn conclude_telling(host: Host, inputs: &[Input], ticks: bool, telling: &Telling) -> Result<Conclusions> {
    let mut pipeline = Pipeline::new(host);
    pipeline.allow(telling.allow.clone());
    let mut exchanges: Vec<ExchangeEvent> = Vec::new();
    let mut reporter = Reporter::open(telling, BootTime(0))?;
    let mut hear = |event: &Event| {
        reporter.take(event).expect("there is no output that could fail");
        let Event::Exchange(event) = event else { return };
        // Of several words on one exchange the last one stands.
        match exchanges.iter_mut().find(|known| known.exchange.id == event.exchange.id) {
            Some(known) => *known = (**event).clone(),
            None => exchanges.push((**event).clone()),
        }
    };
    let mut ready = header().ready;
    ready.hooks.push(Attached::Tc { interface: "ens5".into(), direction: Direction::Ingress, via: Via::Tcx });
    hear(&Event::Ready(inputs.first().map_or(Timestamp(0), |first| first.at()), ready));
    for input in inputs {
        while let Some(due) = pipeline.due().filter(|due| ticks && due.0 + TICK < input.at().0) {
            pipeline.push(Input::Tick { at: Timestamp(due.0.next_multiple_of(TICK)) }, &mut hear);
        }
        pipeline.push(input.clone(), &mut hear);
    }
    if ticks {
        pipeline.push(Input::Tick { at: END }, &mut hear);
    }
    pipeline.finish(&mut hear);
    exchanges.sort_by_key(|event| event.exchange.id);
    let (_, report) = reporter.conclude(Vec::new()).context("the pipeline did not end")?;
    Ok(Conclusions { exchanges, report })
}

/// Fails with everything that is not as the scenario expects.
pub fn judge(scenario: &Scenario) -> Result<()> {
    let inputs = scenario.inputs()?;
    let mut wrong = misspelt(scenario);
    for (ticks, when) in [(false, ""), (true, " (with the clock ticking)")] {
        let host = Host { netns: HOST_NETNS, pid_namespace: None, instance: Some(INSTANCE.to_owned()) };
        let asserted = scenario.not_held.iter().map(|text| Ok(expectation(text)?)).collect::<Result<_>>()?;
        let conclusions = conclude_telling(host, &inputs, ticks, &scenario.telling(asserted)?)?;
        let held = conclusions.report.expectations.iter().filter(|asserted| asserted.held);
        wrong.extend(held.map(|held| format!("{} holds, and must not: {}{when}", held.expect, held.why)));
        wrong.extend(compare(scenario, &conclusions)?.into_iter().map(|sentence| format!("{sentence}{when}")));
    }
    if !wrong.is_empty() {
        bail!("{}\n  {}", scenario.about, wrong.join("\n  "));
    }
    Ok(())
}

fn misspelt(scenario: &Scenario) -> Vec<String> {
    let named = scenario.findings.iter().map(|finding| &finding.rule).chain(&scenario.silent);
    let unknown = named.filter(|name| !RULES.iter().any(|rule| rule.id == name.as_str()));
    unknown.map(|name| format!("there is no rule {name}")).collect()
}

fn compare(scenario: &Scenario, conclusions: &Conclusions) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut seen: Vec<&finding::Finding> = conclusions.report.findings.iter().collect();
    for expected in &scenario.findings {
        // Of several about the same subject, that which differs least is meant.
        let mut candidates: Vec<(Vec<String>, usize)> = Vec::new();
        for (number, finding) in seen.iter().enumerate() {
            if finding.rule == expected.rule && is(&expected.who, &finding.who) {
                candidates.push((differences(expected, finding)?, number));
            }
        }
        match candidates.into_iter().min_by_key(|(differences, _)| differences.len()) {
            Some((differences, number)) => {
                wrong.extend(differences);
                seen.remove(number);
            }
            None => wrong.push(format!("{} about {} was not found", expected.rule, expected.who)),
        }
    }
    for finding in seen {
        let silent = if scenario.silent.iter().any(|rule| rule == finding.rule) { " (it must be silent)" } else { "" };
        wrong.push(format!(
            "found, not expected{silent}: {} about {}: {}",
            finding.rule,
            show(&finding.who),
            finding.says.summary
        ));
    }
    if let Some(expected) = &scenario.exchanges {
        let exchanges: Vec<String> = conclusions.exchanges.iter().map(show_exchange).collect();
        if exchanges != *expected {
            wrong.push(format!("exchanges: expected {expected:?}, saw {exchanges:?}"));
        }
    }
    let lost: u64 = scenario.lost.iter().map(|lost| lost.ring_buffer).sum();
    if conclusions.report.lost.sum() != lost {
        wrong.push(format!("lost: expected {lost}, saw {:?}", conclusions.report.lost));
    }
    let difference = conclusions.report.spent.difference();
    let as_expected = match (&scenario.difference, &difference) {
        (None, None) => true,
        (Some(part), Some(sentence)) => sentence.contains(part),
        _ => false,
    };
    if !as_expected {
        wrong.push(format!("difference: expected {:?}, saw {difference:?}", scenario.difference));
    }
    Ok(wrong)
}

fn differences(expected: &Finding, seen: &finding::Finding) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut check = |what: &str, expected: Option<String>, seen: String| {
        if let Some(expected) = expected.filter(|expected| *expected != seen) {
            wrong.push(format!("{what}: expected {expected}, saw {seen}"));
        }
    };
    let number = |number: Option<u8>| number.map_or("none".to_owned(), |number| number.to_string());
    let confidence = match seen.says.confidence {
        Confidence::Certain => "certain",
        Confidence::Likely => "likely",
    };
    check("count", Some(expected.count.to_string()), seen.count.to_string());
    check("confidence", Some(expected.confidence.clone().unwrap_or("certain".into())), confidence.to_owned());
    let process = seen.who.process.as_ref().map_or("none".to_owned(), |process| process.comm.clone());
    check("process", expected.process.clone(), process);
    check("observed", expected.observed.map(|n| n.to_string()), number(seen.hop_limit.observed.map(|ttl| ttl.0)));
    check("needed", expected.needed.map(|n| n.to_string()), number(seen.hop_limit.needed.map(|ttl| ttl.0)));
    let waited = seen.says.waited.map_or("none".to_owned(), |waited| waited.as_millis().to_string());
    check("waited_ms", expected.waited_ms.map(|ms| ms.to_string()), waited);
    if let Some(part) = expected.says.as_ref().filter(|part| !seen.says.summary.contains(*part)) {
        check("says", Some(part.clone()), seen.says.summary.clone());
    }
    let has = |part: &String| seen.says.remedy.iter().any(|command| command.contains(part));
    if !expected.remedy.as_ref().is_none_or(has) {
        check("remedy", expected.remedy.clone(), seen.says.remedy.join("; "));
    }
    if let Some(part) = expected
        .caution
        .as_ref()
        .filter(|part| !seen.says.caution.as_ref().is_some_and(|caution| caution.contains(*part)))
    {
        check("caution", Some(part.clone()), seen.says.caution.clone().unwrap_or_default());
    }
    check("path", expected.path.clone(), seen.says.path.as_ref().map_or("none".to_owned(), show_path));
    let wanted = match expected.drop.as_deref() {
        None => None,
        Some("none") => Some("none".to_owned()),
        Some(words) => {
            let place = Place::parse_drop(&words.split(' ').collect::<Vec<_>>())?;
            let observation::Place::Drop(drop) = &place.place else { bail!("{words:?} is not a drop") };
            Some(format!("{drop:?} with {:?}", place.ttl))
        }
    };
    let dropped = seen.says.drop.as_ref();
    check(
        "drop",
        wanted,
        dropped.map_or("none".to_owned(), |dropped| format!("{:?} with {:?}", dropped.drop, dropped.ttl)),
    );
    Ok(wrong.into_iter().map(|sentence| format!("{} about {}: {sentence}", expected.rule, expected.who)).collect())
}

/// Is this who is meant?
fn is(expected: &str, who: &Attribution) -> bool {
    match (expected.strip_prefix("unnamed "), &who.container) {
        (Some(name), Some(container)) => container.name.is_none() && container.id == id_of(name),
        (Some(_), None) => false,
        (None, _) => show(who) == expected,
    }
}

/// Who it is, as scenarios name them.
pub fn show(who: &Attribution) -> String {
    match (&who.container, who.subject()) {
        (Some(container), _) => container.name.clone().unwrap_or_else(|| format!("unnamed {}", container.id)),
        (None, Subject::Host) => "host".to_owned(),
        (None, _) => who.address.map_or_else(|| "unknown".to_owned(), |address| address.to_string()),
    }
}

/// The way, as scenarios have it.
pub fn show_path(path: &finding::Path) -> String {
    let hop =
        |hop: &diagnosis::journey::Hop| format!("{} {} {}", hop.hook.interface.name, hop.hook.direction, hop.ttl.0);
    let way = |way: &finding::Way| {
        let hops: Vec<String> = way.hops.iter().map(hop).collect();
        let fate = match way.fate {
            Fate::Delivered => "delivered",
            Fate::Dropped(_) => "dropped",
            Fate::Unresolved => "unresolved",
        };
        if hops.is_empty() { fate.to_owned() } else { format!("{}: {fate}", hops.join(", ")) }
    };
    format!("{}; {}", way(&path.outward), way(&path.inward))
}

/// An exchange, as scenarios have it.
pub fn show_exchange(event: &ExchangeEvent) -> String {
    let kind = serde_json::to_value(event.exchange.imds()).unwrap_or_default();
    let status = event.exchange.status().map_or("-".to_owned(), |status| status.to_string());
    format!("{} {} {status}", show(&event.who), kind.as_str().unwrap_or("-"))
}
