//! Does it say of the programs that people really run what these do?

use std::time::Duration;

use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::{ContainerSpec, Tokens};
use serde_json::json;

use crate::Lab;
use crate::trace::{run_all, watched};

crate::tests![
    programs_that_fall_back_are_refused_where_tokens_are_required,
    programs_that_fall_back_are_served_late_where_tokens_are_optional,
    with_enough_hops_every_program_gets_credentials_and_no_error,
];

type Outcome = anyhow::Result<()>;

/// How a program is run in a container of this name, what it is called by its User-Agent, and whether it asks without a token when
/// it gets none.
type Program = (fn(&str) -> ContainerSpec, &'static str, bool);

const PROGRAMS: [Program; 4] = [
    (ContainerSpec::boto3, "boto3", true),
    (ContainerSpec::aws_cli, "aws-cli", true),
    (ContainerSpec::curl, "curl", true),
    (ContainerSpec::sdk_rust, "aws-sdk-rust", false),
];

fn containers() -> Vec<ContainerSpec> {
    PROGRAMS.iter().map(|(spec, name, _)| spec(name).wait_for_go()).collect()
}

/// At hop limit 1 the token is lost; `status` is what those get that ask without one.
fn lost(lab: &Lab, tokens: Tokens, status: u64) -> anyhow::Result<()> {
    // None of them waits longer for an answer than curl does, which is told to wait for two seconds.
    lab.host.imds().set(|behaviour| (behaviour.tokens, behaviour.give_up) = (tokens, Duration::from_millis(2500)));
    let (seen, containers) = watched(lab, &[], |_| run_all(lab, containers()))?;
    for (container, (_, name, falls_back)) in containers.iter().zip(PROGRAMS) {
        let rules: &[&str] =
            if falls_back { &["hop-limit-too-low", "imdsv1-fallback"] } else { &["hop-limit-too-low"] };
        seen.expect_rules(container, rules)?;
        let finding = seen.only(container, "hop-limit-too-low")?;
        expect_equal("two hops are needed", &finding["hop_limit"], &json!({"observed": 1, "needed": 2}))?;
        let summary = finding["summary"].as_str().unwrap_or_default();
        expect_that("it says what the program does then", summary.contains(&format!("{name} ")), summary)?;
        if !falls_back {
            expect_that("that it never falls back", summary.contains("never asks without a token"), summary)?;
            continue;
        }
        let finding = seen.only(container, "imdsv1-fallback")?;
        let waited = finding["waited_ms"].as_f64().unwrap_or_default();
        expect_that("the seconds that were lost", waited >= 1_000.0, finding)?;
        let said = container.logs()?;
        let has = if status == 200 { "credentials: yes" } else { "credentials: no" };
        expect_that("the program says so too", said.starts_with(has), &said)?;
        let exchanges = seen.exchanges(container);
        let v1 = exchanges.iter().filter(|exchange| exchange["imds"] == "v1");
        expect_that("what it got without a token", v1.clone().all(|it| it["status"] == status), &exchanges)?;
        expect_that("it asked without a token", v1.count() > 0, &exchanges)?;
    }
    Ok(())
}

fn programs_that_fall_back_are_refused_where_tokens_are_required(lab: &Lab) -> Outcome {
    lost(lab, Tokens::Required, 401)
}

fn programs_that_fall_back_are_served_late_where_tokens_are_optional(lab: &Lab) -> Outcome {
    lost(lab, Tokens::Optional, 200)
}

fn with_enough_hops_every_program_gets_credentials_and_no_error(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (seen, containers) = watched(lab, &[], |_| run_all(lab, containers()))?;
    for (container, (_, name, _)) in containers.iter().zip(PROGRAMS) {
        seen.expect_rules(container, &["hop-budget-spent"])?;
        let said = container.logs()?;
        expect_that("it has credentials", said.starts_with("credentials: yes"), &said)?;
        for exchange in seen.exchanges(container) {
            expect_equal("its software", exchange["software"]["name"].as_str(), Some(name))?;
            expect_that("with a version", exchange["software"]["version"].is_string(), exchange)?;
        }
    }
    Ok(())
}
