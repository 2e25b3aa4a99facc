//! Do real programs in containers of the lab behave as is known of them? No tracer is involved here.

use std::time::Duration;

use imds_trace_tests::expect::{assert_no_secret, expect_equal, expect_that};
use imds_trace_tests::imds::Request;
use imds_trace_tests::{ContainerSpec, Tokens};

use crate::Lab;
use crate::kit::{Outcome, SOON};

crate::tests![
    at_hop_limit_two_boto3_gets_credentials,
    at_hop_limit_two_aws_cli_gets_credentials,
    at_hop_limit_two_curl_gets_credentials,
    at_hop_limit_two_the_rust_sdk_gets_credentials,
    at_hop_limit_one_boto3_waits_and_is_refused,
    at_hop_limit_one_aws_cli_waits_and_is_refused,
    at_hop_limit_one_curl_waits_and_is_refused,
    at_hop_limit_one_the_rust_sdk_gives_up_without_asking_again,
    with_tokens_optional_boto3_falls_back_to_v1,
    with_tokens_optional_aws_cli_falls_back_to_v1,
    with_tokens_optional_curl_falls_back_to_v1_unawares,
    with_tokens_optional_the_rust_sdk_fails_all_the_same,
    a_real_program_waits_for_go,
];

/// How it ended, what it said, and what it asked (`PUT 200`, `GET 401`, ...), with no secret told.
fn story(lab: &Lab, spec: ContainerSpec) -> anyhow::Result<(i32, String, Vec<String>)> {
    // Each ends by its own patience.
    lab.host.imds().set(|behaviour| behaviour.give_up = Duration::from_secs(5));
    let container = lab.host.run(spec)?;
    let code = container.wait(SOON)?;
    let said = container.logs()?;
    let secrets = lab.host.imds().secrets();
    if !secrets.is_empty() {
        assert_no_secret(&[("the program's words", said.as_bytes())], &[], &secrets)?;
    }
    let one = |request: Request| {
        let token = if request.token_present { " with token" } else { "" };
        format!("{} {}{token}", request.method, request.status.unwrap_or(0))
    };
    Ok((code, said, lab.host.imds().requests().into_iter().map(one).collect()))
}

/// With enough hops it gets what it wants with a token.
fn expect_credentials(lab: &Lab, spec: ContainerSpec, agent: Option<&str>) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (code, said, asked) = story(lab, spec)?;
    expect_equal(&format!("it succeeds, saying {said}"), code, 0)?;
    expect_that("it says so", said.starts_with("credentials: yes, "), &said)?;
    expect_equal(
        "with a token",
        asked,
        ["PUT 200", "GET 200 with token", "GET 200 with token"].map(str::to_owned).into(),
    )?;
    if let Some(agent) = agent {
        let agents: Vec<_> = lab.host.imds().requests().into_iter().filter_map(|request| request.user_agent).collect();
        expect_that("it calls itself so", agents.len() == 3 && agents.iter().all(|it| it.starts_with(agent)), agents)?;
    }
    Ok(())
}

fn at_hop_limit_two_boto3_gets_credentials(lab: &Lab) -> Outcome {
    expect_credentials(lab, ContainerSpec::boto3("boto3"), Some("Boto3/"))
}

fn at_hop_limit_two_aws_cli_gets_credentials(lab: &Lab) -> Outcome {
    expect_credentials(lab, ContainerSpec::aws_cli("aws-cli"), Some("aws-cli/2"))
}

fn at_hop_limit_two_curl_gets_credentials(lab: &Lab) -> Outcome {
    expect_credentials(lab, ContainerSpec::curl("curl"), Some("curl/"))
}

fn at_hop_limit_two_the_rust_sdk_gets_credentials(lab: &Lab) -> Outcome {
    expect_credentials(lab, ContainerSpec::sdk_rust("rust"), Some("aws-sdk-rust/"))
}

/// It asked these things, said these words, and got no credentials.
fn expect_failure(lab: &Lab, spec: ContainerSpec, asked: &[&str], words: &str) -> Outcome {
    let (code, said, seen) = story(lab, spec)?;
    expect_equal(&format!("it fails, saying {said}"), code, 1)?;
    expect_that("it says so", said.starts_with("credentials: no, ") && said.contains(words), &said)?;
    expect_equal("this is what it asked", seen, asked.iter().map(|one| (*one).to_owned()).collect())?;
    Ok(())
}

fn at_hop_limit_one_boto3_waits_and_is_refused(lab: &Lab) -> Outcome {
    let spec = ContainerSpec::boto3("boto3");
    expect_failure(lab, spec, &["PUT 200", "GET 401"], "Unable to locate credentials")
}

fn at_hop_limit_one_aws_cli_waits_and_is_refused(lab: &Lab) -> Outcome {
    let spec = ContainerSpec::aws_cli("aws-cli");
    let words = "Unable to locate credentials. You can configure credentials by running \"aws configure\".";
    expect_failure(lab, spec, &["PUT 200", "GET 401"], words)
}

fn at_hop_limit_one_curl_waits_and_is_refused(lab: &Lab) -> Outcome {
    let spec = ContainerSpec::curl("curl");
    expect_failure(lab, spec, &["PUT 200", "GET 401", "GET 401"], "curl: (28) Operation timed out")
}

fn at_hop_limit_one_the_rust_sdk_gives_up_without_asking_again(lab: &Lab) -> Outcome {
    let spec = ContainerSpec::sdk_rust("rust");
    expect_failure(lab, spec, &["PUT 200"], "could not communicate with IMDS")
}

/// It got its credentials at hop limit 1, without a token.
fn expect_fallback(lab: &Lab, spec: ContainerSpec) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.tokens = Tokens::Optional);
    let (code, said, asked) = story(lab, spec)?;
    expect_equal(&format!("it succeeds, saying {said}"), code, 0)?;
    expect_equal("by IMDSv1", asked, ["PUT 200", "GET 200", "GET 200"].map(str::to_owned).into())?;
    Ok(())
}

fn with_tokens_optional_boto3_falls_back_to_v1(lab: &Lab) -> Outcome {
    expect_fallback(lab, ContainerSpec::boto3("boto3"))
}

fn with_tokens_optional_aws_cli_falls_back_to_v1(lab: &Lab) -> Outcome {
    expect_fallback(lab, ContainerSpec::aws_cli("aws-cli"))
}

fn with_tokens_optional_curl_falls_back_to_v1_unawares(lab: &Lab) -> Outcome {
    expect_fallback(lab, ContainerSpec::curl("curl"))
}

fn with_tokens_optional_the_rust_sdk_fails_all_the_same(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.tokens = Tokens::Optional);
    expect_failure(lab, ContainerSpec::sdk_rust("rust"), &["PUT 200"], "could not communicate with IMDS")
}

fn a_real_program_waits_for_go(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    for spec in [ContainerSpec::curl("curl"), ContainerSpec::sdk_rust("rust")] {
        lab.host.imds().forget_requests();
        let container = lab.host.run(spec.wait_for_go())?;
        // Its namespace is there, so its first process is; and it stays, although what it asks takes no time.
        expect_equal("it has asked nothing yet", (lab.host.imds().requests().len(), container.pid()? > 0), (0, true))?;
        container.go()?;
        expect_equal("now it asks", container.wait(SOON)?, 0)?;
        expect_equal("for all it wants", lab.host.imds().requests().len(), 3)?;
    }
    Ok(())
}
