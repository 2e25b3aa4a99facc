//! Does it name exactly those who break when the instance is really set so? Clients work while everything is allowed; what is said of
//! them is held against what becomes of the same clients once the instance is set so.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result};
use imds_trace_tests::Tokens;
use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::topology::Nested;
use imds_trace_tests::tracer::program;
use serde_json::{Value, json};

use crate::Lab;
use crate::trace::{client, run_all, watched};

crate::tests![those_who_are_said_to_break_are_those_who_then_do];

type Outcome = anyhow::Result<()>;

/// The clients that ask from containers of their own: name, words, network.
const CLIENTS: [(&str, &str, &str); 5] = [
    ("modern", "v2 --count 2 --timeout-ms 400", "bridge"),
    ("old", "v1", "bridge"),
    ("falls-back", "fallback --timeout-ms 400", "bridge"),
    ("agent", "v2", "host"),
    ("old-agent", "v1 --count 3", "host"),
];
/// The one that asks from a network namespace inside its container.
const NESTED: &str = "nested";

/// Lets all clients ask; whose name begins with what, and did it get all that it asked for?
fn ask(lab: &Lab, round: &str) -> Result<BTreeMap<String, bool>> {
    let name = |client: &str| format!("{client}-{round}");
    let specs = CLIENTS.map(|(one, words, network)| match network {
        "host" => client(&name(one), words).network("host"),
        _ => client(&name(one), words),
    });
    let mut worked = BTreeMap::new();
    for container in run_all(lab, specs.into())? {
        // One that falls back gets it in the end, or not.
        let last = container.attempts()?.pop().context("no attempt")?;
        worked.insert(container.name().trim_end_matches(&format!("-{round}")).to_owned(), last["status"] == 200);
    }
    let nested = Nested::start(&lab.host, &name(NESTED))?;
    let last = nested.asks("v2 --timeout-ms 400")?.pop().context("no attempt")?;
    worked.insert(NESTED.to_owned(), last["status"] == 200);
    Ok(worked)
}

fn those_who_are_said_to_break_are_those_who_then_do(lab: &Lab) -> Outcome {
    const SETTINGS: [(&str, Tokens, u8); 5] = [
        ("tokens=required,hop-limit=1", Tokens::Required, 1),
        ("tokens=required,hop-limit=2", Tokens::Required, 2),
        ("tokens=required,hop-limit=3", Tokens::Required, 3),
        ("hop-limit=2", Tokens::Optional, 2),
        ("hop-limit=64", Tokens::Optional, 64),
    ];
    lab.host.imds().set(|behaviour| (behaviour.tokens, behaviour.hop_limit) = (Tokens::Optional, 5));
    let args: Vec<&str> = SETTINGS.iter().flat_map(|(settings, ..)| ["--what-if", settings]).collect();
    let (seen, worked) = watched(lab, &args, |_| ask(lab, "now"))?;
    expect_that("everybody works while all is allowed", worked.values().all(|worked| *worked), &worked)?;
    let sums = seen.outcome.of_type("what_if_sum");
    for (number, (settings, tokens, hop_limit)) in SETTINGS.into_iter().enumerate() {
        let sum = sums.get(number).context("no sum")?;
        let said: BTreeMap<String, bool> = seen
            .outcome
            .of_type("what_if")
            .into_iter()
            .filter(|line| line["settings"] == sum["settings"])
            .map(|line| {
                let name = line["container"]["name"].as_str().unwrap_or_default().trim_end_matches("-now");
                (name.to_owned(), line["outlook"] == "works")
            })
            .collect();
        lab.host.imds().set(|behaviour| (behaviour.tokens, behaviour.hop_limit) = (tokens, hop_limit));
        let works = ask(lab, &format!("then-{number}"))?;
        expect_equal(&format!("who works at {settings}"), &said, &works)
            .with_context(|| format!("{:#?}", seen.outcome.of_type("what_if")))?;
        let all = works.values().all(|works| *works);
        expect_equal("of all together", &sum["outlook"], &json!(if all { "works" } else { "breaks" }))?;
        let broken = works.values().filter(|works| !**works).count();
        expect_equal("how many break", &sum["breaks"], &json!(broken))?;
        expect_equal("nobody is left in doubt", &sum["cannot_be_told"], &json!(0))?;
        expect_equal("and the limit for all", &sum["hop_limit"], &json!({"at_least": 3, "enough": 3}))?;
        expect_equal("for whom", sum["hop_limit_for"]["name"].as_str(), Some("nested-now"))?;
        let expectation = format!("works-at:{settings}");
        expect_equal(&expectation, judged(&seen.outcome.recording, &expectation)?, !all)?;
    }
    Ok(())
}

/// Does this expectation fail, held against a recording?
fn judged(recording: &std::path::Path, expectation: &str) -> Result<bool> {
    let output = Command::new(program()?).args(["replay", "--expect", expectation]).arg(recording).output()?;
    let report = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<Value> = vec![json!(report), json!(String::from_utf8_lossy(&output.stderr))];
    match output.status.code() {
        Some(0) => Ok(false),
        Some(1) => Ok(true),
        _ => anyhow::bail!("{lines:#?}"),
    }
}
