//! Does each claim hold when it should, fail when it should, and say what was seen?

use std::net::IpAddr;
use std::rc::Rc;

use super::*;
use crate::config::expectation;
use crate::event::{ExchangeEvent, Lost, Ready};
use crate::exchange::{Exchange, ExchangeId, Proof, Travel};
use crate::finding::{Finding, HopLimit, Verdict};
use crate::identity::Container;
use crate::journey::{Connection, ConnectionId, Dropped, Fate, Join};
use crate::net::{Endpoint, Netns, Timestamp, Ttl};
use crate::observation::{Drop, RequestHead, ResponseHead};
use crate::report::LastWords;

const TOKEN: &str = "PUT /latest/api/token";
const READ: &str = "GET /latest/meta-data/instance-id";

fn address(last: u8) -> IpAddr {
    IpAddr::from([172, 17, 0, last])
}

fn container(name: &str) -> Attribution {
    let container = Container {
        id: format!("{:0<64}", name.bytes().map(|byte| format!("{byte:02x}")).collect::<String>()),
        name: Some(name.to_owned()),
        ..Container::default()
    };
    Attribution { container: Some(container), by: Key::Cgroup, ..Attribution::of_nobody(Some(address(2))) }
}

fn host() -> Attribution {
    Attribution { container: None, ..container("host") }
}

fn unknown() -> Attribution {
    Attribution { by: Key::Unknown, address: Some(address(9)), ..host() }
}

/// Each exchange and each finding is another one.
static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);

/// An exchange; `asked` is method and path, `with a token` behind it adds one; no status is no answer.
fn exchange(who: &Attribution, asked: Option<&str>, status: Option<u16>) -> Event {
    let endpoint = |address, port| Endpoint { address, port };
    let request = asked.map(|asked| {
        let mut words = asked.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        RequestHead {
            method: method.into(),
            path: path.into(),
            token: asked.ends_with(" with a token"),
            ..Default::default()
        }
    });
    let connection = Connection {
        id: ConnectionId(1),
        client: endpoint(who.address.expect("it has one"), 40_000),
        endpoint: endpoint(IpAddr::from([169, 254, 169, 254]), 80),
        isn: Some(7),
        since: Timestamp(1),
    };
    let exchange = Exchange {
        asked: request.is_some().then_some(Timestamp(1)),
        answered: status.map(|_| Timestamp(2)),
        response_proof: status.map(|_| Proof::Ack),
        request_proof: status.map(|_| Proof::Ack),
        closed: Some(Timestamp(3)),
        request,
        response: status.map(|status| ResponseHead { status, ..Default::default() }),
        handshake: true,
        responded: status.is_some(),
        ..Exchange::new(ExchangeId(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)), connection, Timestamp(1))
    };
    Event::Exchange(Rc::new(ExchangeEvent {
        exchange,
        who: who.clone(),
        hop_limit: HopLimit::default(),
        token: None,
        fell_back: false,
        unwatched: false,
    }))
}

/// The same, its answer dropped as a spent TTL is.
fn lost(who: &Attribution) -> Event {
    let Event::Exchange(mut event) = exchange(who, Some(TOKEN), None) else { unreachable!() };
    let drop = Drop {
        location: Some("ip_forward".into()),
        reason: Some("IP_INHDR".into()),
        interface: None,
        netns: Netns::default(),
        callers: Vec::new(),
    };
    let client = event.exchange.client().unwrap();
    let fate = Fate::Dropped(Dropped { at: Timestamp(0), drop, ttl: Ttl(1), client });
    let exchange = &mut Rc::make_mut(&mut event).exchange;
    exchange.responded = true;
    exchange.inward = Some(Travel { hops: Vec::new(), fate, copies: 1, last_lost: None, join: Join::Exact });
    Event::Exchange(event)
}

fn error(who: &Attribution, summary: &str) -> Event {
    let finding = Finding {
        id: crate::finding::FindingId(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)),
        rule: "kernel-drop",
        severity: Severity::Error,
        who: who.clone(),
        count: 1,
        first: Timestamp(1),
        last: Timestamp(1),
        hop_limit: HopLimit::default(),
        evidence: Vec::new(),
        says: Verdict::certain("", summary.into()),
    };
    Event::Finding(Timestamp(1), Box::new(finding))
}

fn judged_with(expect: &str, events: &[Event], ring_buffer: u64) -> Asserted {
    let mut expectations = Expectations::new(vec![expectation(expect).unwrap()]);
    let mut last = LastWords::default();
    events.iter().for_each(|event| match event {
        Event::Exchange(_) | Event::Finding(..) => last.hear(event).iter().for_each(|event| expectations.count(event)),
        event => expectations.count(event),
    });
    last.take().iter().for_each(|event| expectations.count(event));
    let lost = Lost { ring_buffer, ..Lost::default() };
    expectations.judge(Timestamp(10), &End { lost, ..End::default() }).remove(0)
}

#[track_caller]
fn holds(expect: &str, events: &[Event], why: &str) {
    let judged = judged_with(expect, events, 0);
    assert!(judged.held && judged.why.contains(why), "{judged:?}");
}

#[track_caller]
fn fails(expect: &str, events: &[Event], why: &str) {
    let judged = judged_with(expect, events, 0);
    assert!(!judged.held && judged.why.contains(why), "{judged:?}");
}

#[test]
fn a_part_of_the_credentials_was_given_and_their_length_alone_was_not() {
    let credentials = "/latest/meta-data/iam/security-credentials/role with a token";
    let part = exchange(&container("job-17"), Some(&format!("GET {credentials}")), Some(206));
    fails("blocked", &[part], "was given a token or credentials");
    let length =
        exchange(&container("job-17"), Some("HEAD /latest/meta-data/iam/security-credentials/role"), Some(200));
    holds("blocked", &[length], "but container job-17 reaches IMDS");
    let held = exchange(&container("job-17"), Some(&format!("HEAD {credentials}")), Some(200));
    fails("blocked", &[held], "with a token that it was not seen to be given");
}

#[test]
fn an_answer_to_nobody_knows_what_without_a_token_is_no_v2_only() {
    fails("v2-only", &[exchange(&container("job-17"), Some("GET /"), Some(200))], "asked without a token");
    holds("v2-only", &[exchange(&container("job-17"), Some("GET /"), Some(401))], "never asked without a token");
    holds("v2-only", &[exchange(&container("job-17"), Some("GET /openstack/"), Some(200))], "never asked");
}

#[test]
fn who_got_an_answer_of_use_is_reachable() {
    let web = container("web");
    holds(
        "reachable:web",
        &[exchange(&web, Some(TOKEN), Some(200))],
        "Container web got what was asked for (1 exchange).",
    );
    let not_there = "GET /latest/meta-data/iam/security-credentials/ with a token";
    holds("reachable", &[exchange(&web, Some(not_there), Some(404))], "web");
    holds("reachable:host", &[exchange(&host(), Some(READ), Some(200))], "This host");
}

#[test]
fn who_got_none_is_not_and_it_says_what_happened() {
    let web = container("web");
    fails("reachable", &[], "No request to IMDS was seen");
    fails("reachable:web", &[exchange(&container("db"), Some(TOKEN), Some(200))], "No request of web was seen");
    fails(
        "reachable",
        &[lost(&web)],
        "the answer to PUT /latest/api/token was dropped in ip_forward with TTL 1 (IP_INHDR)",
    );
    fails(
        "reachable",
        &[exchange(&web, Some(READ), Some(401))],
        "GET /latest/meta-data/instance-id was answered with 401",
    );
    let both = [exchange(&web, Some(TOKEN), Some(200)), exchange(&container("db"), Some(TOKEN), Some(403))];
    fails("reachable", &both, "Container db did not get through: PUT /latest/api/token was answered with 403.");
    holds("reachable:web", &both, "web");
    // One answer does not make an error good.
    let flaky = [exchange(&web, Some(TOKEN), Some(200)), error(&web, "It was dropped in x.")];
    fails("reachable", &flaky, "Container web did not get through: It was dropped in x.");
}

#[test]
fn what_rests_on_an_address_alone_does_not_blame_who_has_it_now() {
    let web = container("web");
    let had_it_before = Attribution { by: Key::Address, ..web.clone() };
    let late = [lost(&had_it_before), error(&had_it_before, "It was dropped in x.")];
    fails("reachable:web", &late, "It was dropped in x.");
    let [first, second] = late;
    holds("reachable:web", &[first, second, exchange(&web, Some(TOKEN), Some(200))], "web");
}

#[test]
fn who_got_neither_token_nor_credentials_is_blocked_and_it_says_by_what() {
    let web = container("web");
    holds("blocked:web", &[lost(&web)], "dropped in ip_forward");
    holds("blocked:web", &[exchange(&web, Some(TOKEN), Some(403))], "was answered with 403");
    holds(
        "blocked",
        &[exchange(&web, None, None), error(&web, "A rule dropped it.")],
        "(1 exchange): A rule dropped it.",
    );
    holds("blocked", &[exchange(&web, Some(READ), Some(401))], "401");
    holds("blocked", &[], "No request to IMDS was seen.");
    fails("blocked:web", &[], "No request of web was seen, so nothing shows that it is kept out.");
}

#[test]
fn a_token_or_credentials_that_arrived_break_blocked_whatever_else_was_stopped() {
    let web = container("web");
    for granted in [
        TOKEN,
        "PUT /2021-03-23/api/token",
        "GET /latest/meta-data/iam/security-credentials/role",
        "GET /latest/meta-data/iam/security-credentials-extended/role",
        "GET /latest//meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
    ] {
        let events = [lost(&web), exchange(&web, Some(granted), Some(200)), error(&web, "Something else.")];
        fails("blocked:web", &events, "Container web was given a token or credentials");
        fails("blocked", &events, granted);
        fails("reachable:db", &events, "No request of db");
    }
}

#[test]
fn what_reads_nothing_secret_holds_and_is_said() {
    let list = "GET /latest/meta-data/iam/security-credentials/";
    holds("blocked", &[exchange(&container("web"), Some(list), Some(200))], "but container web reaches IMDS");
}

#[test]
fn what_cannot_be_told_is_not_blocked() {
    let web = container("web");
    for unclear in
        [None, Some("GET /latest/***"), Some("GET /latest/meta-data/iam/%73ecurity-credentials/role"), Some("*** /")]
    {
        fails("blocked", &[exchange(&web, unclear, Some(200))], "it cannot be told what");
        holds("blocked", &[exchange(&web, unclear, Some(401))], "401");
    }
    // Whom nobody could name may be anybody.
    fails(
        "blocked:web",
        &[lost(&web), exchange(&unknown(), Some(TOKEN), Some(200))],
        "172.17.0.9, who could not be identified,",
    );
    holds("blocked:web", &[lost(&web), exchange(&host(), Some(TOKEN), Some(200))], "web");
}

#[test]
fn who_listens_nowhere_hears_nothing() {
    let ready = Ready { version: None, kernel: None, hooks: Vec::new(), missing: Vec::new(), features: Vec::new() };
    fails("blocked", &[Event::Ready(Timestamp(0), ready)], "no interface was listened on");
}

#[test]
fn a_probe_knows_what_it_was_answered_whether_it_was_seen_or_not() {
    let probed = |token| {
        let probed = Probed {
            target: "web".into(),
            reached: token == Some(200),
            token,
            read: token,
            hop_limit: HopLimit::default(),
            summary: "what came of it".into(),
            path: None,
            initial_ttl: None,
            copies: 0,
        };
        [Event::Probed(Timestamp(1), Box::new(probed))]
    };
    for scope in ["", ":web"] {
        fails(&format!("blocked{scope}"), &probed(Some(200)), "The probe was given a token: what came of it.");
        holds(&format!("blocked{scope}"), &probed(None), "What came of it.");
        holds(&format!("reachable{scope}"), &probed(Some(200)), "What came of it.");
        fails(&format!("reachable{scope}"), &probed(None), "What came of it.");
    }
    fails("blocked:db", &probed(None), "No request of db was seen");
}

#[test]
fn losses_show_nothing() {
    let web = container("web");
    for claim in ["blocked", "blocked:web", "v2-only"] {
        let judged = judged_with(claim, &[lost(&web)], 3);
        assert!(!judged.held && judged.why.contains("3 records were lost"), "{judged:?}");
    }
    assert!(judged_with("reachable", &[exchange(&web, Some(TOKEN), Some(200))], 3).held);
}

#[test]
fn a_request_without_a_token_breaks_v2_only_answered_or_refused() {
    let web = container("web");
    for status in [Some(200), Some(401), None] {
        let events = [exchange(&web, Some(READ), status), exchange(&web, Some(READ), status)];
        fails("v2-only", &events, "Container web asked without a token (IMDSv1): GET /latest/meta-data/instance-id");
        fails("v2-only:web", &events, "(2 times)");
        fails("v2-only:db", &events, "No request of db was seen");
    }
    let with = "GET /latest/meta-data/ with a token";
    let well = [exchange(&web, Some(TOKEN), Some(200)), exchange(&web, Some(with), Some(200))];
    holds("v2-only", &well, "Container web never asked without a token (2 exchanges).");
    holds("v2-only", &[], "No request to IMDS was seen.");
    fails("v2-only", &[exchange(&web, None, Some(200))], "it was not seen what it had asked");
}

#[test]
fn bytes_that_nobody_saw_hold_nothing() {
    let sent = |unheard| {
        let Event::Exchange(mut event) = exchange(&container("web"), None, None) else { unreachable!() };
        Rc::make_mut(&mut event).exchange.unheard = unheard;
        [Event::Exchange(event)]
    };
    fails(
        "blocked",
        &sent(true),
        "sent bytes to IMDS that were seen nowhere or cannot be read, or may have: it cannot be told what came of them",
    );
    fails("v2-only", &sent(true), "it cannot be told what they asked, or whether with a token");
    holds("blocked", &sent(false), "a connection got no answer");
    holds("v2-only", &sent(false), "never asked without a token");
}

#[test]
fn an_answer_of_which_the_status_was_not_seen_may_have_been_an_error() {
    let Event::Exchange(mut event) = exchange(&container("web"), Some(READ), Some(200)) else { unreachable!() };
    Rc::make_mut(&mut event).exchange.response = None;
    fails("no-errors", &[Event::Exchange(event)], "was answered, and it was not seen with what");
}

#[test]
fn a_container_is_named_by_name_id_or_beginning_of_it() {
    let web = container("web");
    let id = web.container.as_ref().map(|container| container.id.clone()).unwrap();
    for name in ["web", &id, &id[..4]] {
        holds(&format!("reachable:{name}"), &[exchange(&web, Some(TOKEN), Some(200))], "web");
    }
    fails(&format!("reachable:{}", &id[..3]), &[exchange(&web, Some(TOKEN), Some(200))], "No request");
}

#[test]
fn a_name_that_comes_late_counts_from_the_beginning() {
    let web = container("web");
    let mut unnamed = web.clone();
    if let Some(container) = &mut unnamed.container {
        container.name = None;
    }
    fails("blocked:web", &[exchange(&unnamed, Some(TOKEN), Some(200)), lost(&web)], "was given a token");
}

#[test]
fn of_several_words_on_one_exchange_the_last_one_counts() {
    let web = container("web");
    let Event::Exchange(unanswered) = exchange(&web, Some(TOKEN), None) else { unreachable!() };
    let Event::Exchange(mut answered) = exchange(&web, Some(TOKEN), Some(200)) else { unreachable!() };
    Rc::make_mut(&mut answered).exchange.id = unanswered.exchange.id;
    let told_again = [Event::Exchange(unanswered), Event::Exchange(answered)];
    assert!(judged_with("reachable", &told_again, 0).held);
    let Event::Finding(at, told) = error(&web, "it was unanswered") else { unreachable!() };
    let withdrawn = Finding { count: 0, ..(*told).clone() };
    let answered = exchange(&web, Some(TOKEN), Some(200));
    assert!(!judged_with("reachable", &[answered.clone(), Event::Finding(at, told.clone())], 0).held);
    let events = [answered, Event::Finding(at, told), Event::Finding(at, Box::new(withdrawn))];
    assert!(judged_with("reachable", &events, 0).held);
}
