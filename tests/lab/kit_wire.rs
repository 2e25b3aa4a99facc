//! Can the fake IMDS and its client put on the wire whatever a real pair might? No tracer is involved here.

use std::collections::BTreeSet;
use std::time::Duration;

use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::{ContainerSpec, ForcedOn, Tokens};
use serde_json::Value;

use crate::Lab;
use crate::kit::{Outcome, SOON, client, client_on, expect_told};

crate::tests![
    a_split_answer_is_an_answer_in_many_segments,
    a_split_token_answer_is_hop_limited_to_the_last_piece,
    an_answer_in_http_1_0_is_understood,
    pipelined_requests_are_answered_in_order,
    several_requests_share_a_kept_connection,
    a_connection_is_kept_only_if_both_sides_want_it,
    a_status_can_be_forced_on_one_kind_of_request,
    a_server_that_does_not_listen_refuses,
    a_request_can_be_answered_with_a_reset,
    a_split_request_is_understood,
    a_request_that_was_forwarded_gets_no_token,
    a_token_is_only_for_those_who_put,
    a_made_up_token_is_refused,
    a_token_can_expire_between_getting_and_using_it,
    what_makes_no_sense_to_the_client_is_said,
];

/// TCP segments that the fake IMDS's host has sent.
fn segments_sent(lab: &Lab) -> anyhow::Result<u64> {
    lab.host.imds_ns().counter("Tcp", "OutSegs")
}

fn a_split_answer_is_an_answer_in_many_segments(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.tokens = Tokens::Optional);
    let before = segments_sent(lab)?;
    client(lab, "v1")?;
    lab.host.settle(SOON)?;
    let whole = segments_sent(lab)? - before;
    lab.host.imds().set(|behaviour| behaviour.split = Some(7));
    let before = segments_sent(lab)?;
    let (_container, _, attempts) = client(lab, "v1")?;
    expect_told("it is understood", &attempts, &["get 200"])?;
    lab.host.settle(SOON)?;
    let split = segments_sent(lab)? - before;
    // The answer is more than 200 bytes.
    expect_that("it took a segment for every seven bytes", split > whole + 25, (whole, split))?;
    Ok(())
}

fn a_split_token_answer_is_hop_limited_to_the_last_piece(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| {
        behaviour.split = Some(20);
        behaviour.give_up = Duration::from_millis(500);
    });
    let (_container, _, attempts) = client(lab, "put-only --timeout-ms 5000")?;
    expect_told("at hop limit 1 none of it arrives", &attempts, &["put read reset"])?;
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (_container, _, attempts) = client(lab, "v2")?;
    expect_told("at 2 all of it", &attempts, &["put 200", "get 200"])?;
    Ok(())
}

fn an_answer_in_http_1_0_is_understood(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.http10, behaviour.keep_alive) = (2, true, true));
    let ask = "printf 'GET / HTTP/1.1\\r\\nConnection: keep-alive\\r\\n\\r\\n' | nc 169.254.169.254 80";
    let container = lab.host.run(ContainerSpec::new("reader", &["sh", "-c", ask]))?;
    container.wait(SOON)?;
    let answer = container.logs()?;
    expect_that("it says so, and closes", answer.starts_with("HTTP/1.0 401 Unauthorized\r\n"), &answer)?;
    let (_container, _, attempts) = client(lab, "v2 --keep-alive")?;
    expect_told("the client understands it", &attempts, &["put 200", "get 200"])?;
    expect_equal("each request had its own connection", ports(&attempts).len(), 2)?;
    lab.host.imds().set(|behaviour| behaviour.http10 = false);
    let (_container, _, attempts) = client(lab, "v2 --http10")?;
    expect_told("and may ask so", &attempts, &["put 200", "get 200"])?;
    Ok(())
}

/// The ports that were used.
fn ports(attempts: &[Value]) -> BTreeSet<u64> {
    attempts.iter().filter_map(|attempt| attempt["port"].as_u64()).collect()
}

fn pipelined_requests_are_answered_in_order(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.keep_alive) = (2, true));
    let (_container, code, attempts) = client(lab, "v2 --pipeline 4")?;
    expect_told("each is answered", &attempts, &["put 200", "get 200", "get 200", "get 200", "get 200"])?;
    expect_equal("the client succeeds", code, 0)?;
    expect_equal("on one connection, after the token's", ports(&attempts).len(), 2)?;
    let paths = ["ami-id", "nothing", "instance-id", "instance-type"];
    lab.host.imds().set(|behaviour| behaviour.tokens = Tokens::Optional);
    let requests = paths.map(|path| format!("GET /latest/meta-data/{path} HTTP/1.1\\r\\n\\r\\n")).concat();
    // nc ends its side when it has sent all; the server answers all the same, and closes then.
    let ask = format!("printf '{requests}' | nc 169.254.169.254 80");
    let container = lab.host.run(ContainerSpec::new("piper", &["sh", "-c", &ask]))?;
    container.wait(SOON)?;
    let answer = container.logs()?;
    let places: Vec<_> =
        ["ami-0", "404 Not Found", "\r\n\r\ni-0", "m7i.large"].iter().map(|part| answer.find(part)).collect();
    expect_that("in the order of asking", places.is_sorted() && !places.contains(&None), (places, &answer))?;
    Ok(())
}

fn several_requests_share_a_kept_connection(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| (behaviour.hop_limit, behaviour.keep_alive) = (2, true));
    let (_container, code, attempts) = client(lab, "v2 --keep-alive --count 3")?;
    let expected = ["put 200", "get 200", "put 200", "get 200", "put 200", "get 200"];
    expect_told("each is answered", &attempts, &expected)?;
    expect_equal("the client succeeds", code, 0)?;
    expect_equal("on one connection", ports(&attempts).len(), 1)?;
    Ok(())
}

fn a_connection_is_kept_only_if_both_sides_want_it(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (_container, _, attempts) = client(lab, "v2 --keep-alive")?;
    expect_told("the server closes, the client comes again", &attempts, &["put 200", "get 200"])?;
    expect_equal("by another connection", ports(&attempts).len(), 2)?;
    lab.host.imds().set(|behaviour| behaviour.keep_alive = true);
    let (_container, _, attempts) = client(lab, "v2 --http10")?;
    expect_equal("nor is one kept for a client that wants none", ports(&attempts).len(), 2)?;
    let (_container, _, attempts) = client(lab, "v2 --http10 --keep-alive")?;
    expect_equal("but for one that asks", ports(&attempts).len(), 1)?;
    Ok(())
}

fn a_status_can_be_forced_on_one_kind_of_request(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| {
        behaviour.tokens = Tokens::Optional;
        behaviour.forced_status = Some(429);
        behaviour.forced_on = ForcedOn::Token;
    });
    let (_container, _, attempts) = client_on(lab, Some("host"), "fallback")?;
    expect_told("on token requests", &attempts, &["put 429", "get 200"])?;
    lab.host.imds().set(|behaviour| (behaviour.forced_status, behaviour.forced_on) = (Some(503), ForcedOn::Reads));
    let (_container, _, attempts) = client_on(lab, Some("host"), "v2")?;
    expect_told("on reads", &attempts, &["put 200", "get 503"])?;
    Ok(())
}

fn a_server_that_does_not_listen_refuses(lab: &Lab) -> Outcome {
    let refusing = lab.host.imds().stop_listening();
    for endpoint in ["169.254.169.254", "fd00:ec2::254"] {
        let (_container, _, attempts) = client(lab, &format!("put-only --endpoint {endpoint}"))?;
        expect_told("the connection is refused", &attempts, &["put connect refused"])?;
    }
    drop(refusing);
    let (_container, _, attempts) = client(lab, "v1")?;
    expect_told("until it listens again", &attempts, &["get 401"])?;
    Ok(())
}

fn a_request_can_be_answered_with_a_reset(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.reset_after_request = true);
    let (_container, _, attempts) = client(lab, "fallback")?;
    expect_told("both are reset", &attempts, &["put read reset", "get read reset"])?;
    let requests = lab.host.imds().requests();
    let unanswered = requests.iter().filter(|request| request.status.is_none()).count();
    expect_equal("the server has read both and answered none", (requests.len(), unanswered), (2, 2))?;
    Ok(())
}

fn a_split_request_is_understood(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let before = lab.host.runner().counter("Ip", "ForwDatagrams")?;
    let (_container, _, attempts) = client(lab, "v2 --split-request 3")?;
    expect_told("both are answered", &attempts, &["put 200", "get 200"])?;
    let forwarded = lab.host.runner().counter("Ip", "ForwDatagrams")? - before;
    // Two requests of more than 150 bytes.
    expect_that("they came in very many packets", forwarded > 100, forwarded)?;
    Ok(())
}

fn a_request_that_was_forwarded_gets_no_token(lab: &Lab) -> Outcome {
    let (_container, _, attempts) = client_on(lab, Some("host"), "put-only --forwarded-for 10.9.8.7")?;
    expect_told("the PUT is refused", &attempts, &["put 403"])?;
    Ok(())
}

fn a_token_is_only_for_those_who_put(lab: &Lab) -> Outcome {
    for method in ["GET", "POST"] {
        let (_container, _, attempts) = client_on(lab, Some("host"), &format!("put-only --method-token {method}"))?;
        expect_told("another method is not allowed", &attempts, &["put 405"])?;
    }
    Ok(())
}

fn a_made_up_token_is_refused(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.tokens = Tokens::Optional);
    let (_container, _, attempts) = client(lab, "garbage-token")?;
    expect_told("even where none is needed", &attempts, &["get 401"])?;
    expect_that("it was one", lab.host.imds().requests()[0].token_present, lab.host.imds().requests())?;
    Ok(())
}

fn a_token_can_expire_between_getting_and_using_it(lab: &Lab) -> Outcome {
    lab.host.imds().set(|behaviour| behaviour.hop_limit = 2);
    let (_container, _, attempts) = client(lab, "v2 --token-ttl 1 --wait-ms 1100")?;
    expect_told("it was good once", &attempts, &["put 200", "get 401"])?;
    Ok(())
}

fn what_makes_no_sense_to_the_client_is_said(lab: &Lab) -> Outcome {
    for (words, reason) in [
        ("--pipeline 0", "--pipeline 0: not a number from 1 up"),
        ("--split-request x", "--split-request x: not a number from 1 up"),
        ("--method-token put", "--method-token put: not a method"),
        ("--comm", "--comm wants a value"),
        ("--what 1", "unknown option --what"),
    ] {
        let args: Vec<_> = ["imds-client", "v2"].into_iter().chain(words.split(' ')).collect();
        let container = lab.host.run(ContainerSpec::new("confused", &["sleep", "600"]))?;
        let ran = container.exec(&args)?;
        expect_equal("it does not begin", ran.code, Some(2))?;
        expect_that("and says why", ran.stderr.contains(reason), &ran)?;
    }
    Ok(())
}
