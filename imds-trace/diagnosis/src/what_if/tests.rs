//! Is what each client needs read off what was seen, and is nothing called "works" that was not shown to?

use std::net::IpAddr;
use std::rc::Rc;

use super::*;
use crate::config::Settings;
use crate::event::{Directions, ExchangeEvent, Lost, Outlook, Ready, UnseenConnection, Via, WhatIf};
use crate::exchange::{Decrements, Exchange, ExchangeId, Proof, Travel};
use crate::finding::HopLimit;
use crate::identity::{Container, Key};
use crate::journey::{Connection, ConnectionId, Fate, Hop, Join};
use crate::net::{Direction, Endpoint, Ifindex, Interface, Netns, Ttl};
use crate::observation::{Hook, RequestHead, ResponseHead};

const END: Timestamp = Timestamp(10_000_000_000);
const STRICT: Settings = Settings { tokens_required: true, hop_limit: Some(1) };
const TOKENS: Settings = Settings { tokens_required: true, hop_limit: None };

fn limit(hop_limit: u8) -> Settings {
    Settings { tokens_required: false, hop_limit: Some(hop_limit) }
}

fn both(hop_limit: u8) -> Settings {
    Settings { tokens_required: true, hop_limit: Some(hop_limit) }
}

/// A request of `name`: whose packets' TTL falls `falls` times, asked when the instance's hop limit is `at`.
#[derive(Clone)]
struct Seen {
    name: &'static str,
    asked: &'static str,
    status: Option<u16>,
    at: Option<u8>,
    falls: u8,
    fell_back: bool,
    initial: Option<u8>,
    /// The TTL of its answer at the way in, and at the client's bridge.
    back: Option<(u8, u8)>,
}

fn seen(name: &'static str, asked: &'static str, status: Option<u16>) -> Seen {
    Seen { name, asked, status, at: Some(2), falls: 1, fell_back: false, initial: Some(64), back: None }
}

fn who(name: &str) -> Attribution {
    let container = Container { id: name.to_owned(), name: Some(name.to_owned()), ..Container::default() };
    let address = IpAddr::from([172, 17, 0, 2]);
    Attribution {
        container: (!matches!(name, "host" | "?")).then_some(container),
        by: if name == "?" { Key::Unknown } else { Key::Cgroup },
        socket_address: None,
        initial_ttl: Some(Ttl(64)),
        ..Attribution::of_nobody(Some(address))
    }
}

fn travel(places: &[(&str, Direction, u8)]) -> Travel {
    let hop = |(name, direction, ttl): &(&str, Direction, u8)| Hop {
        at: Timestamp(1),
        hook: Hook {
            interface: Interface { index: Ifindex(name.len() as u32), name: (*name).into(), netns: Netns(1) },
            direction: *direction,
        },
        ttl: Ttl(*ttl),
        client: Endpoint { address: IpAddr::from([172, 17, 0, 2]), port: 40_000 },
    };
    Travel {
        hops: places.iter().map(hop).collect(),
        fate: Fate::Delivered,
        copies: 0,
        last_lost: None,
        join: Join::Exact,
    }
}

impl Seen {
    fn event(&self) -> Event {
        let Self { name, asked, status, at, falls, fell_back, initial, back } = self.clone();
        let mut words = asked.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let request = (!asked.is_empty()).then(|| RequestHead {
            method: method.to_owned(),
            path: path.to_owned(),
            token: asked.ends_with(" T"),
            ..RequestHead::default()
        });
        let endpoint = |address: [u8; 4], port| Endpoint { address: IpAddr::from(address), port };
        let first = Ttl(64 - if initial.is_some() { 0 } else { 1 });
        let connection = Connection {
            id: ConnectionId(1),
            client: endpoint([172, 17, 0, 2], 40_000),
            endpoint: endpoint([169, 254, 169, 254], 80),
            isn: Some(7),
            since: Timestamp(1),
        };
        let exchange = Exchange {
            asked: request.is_some().then_some(Timestamp(1)),
            answered: status.map(|_| Timestamp(2)),
            response_proof: status.map(|_| Proof::Ack),
            closed: Some(Timestamp(3)),
            request,
            response: status.map(|status| ResponseHead { status, ..ResponseHead::default() }),
            outward: back
                .map(|_| travel(&[("docker0", Direction::Ingress, 64), ("ens5", Direction::Egress, 64 - falls)])),
            inward: back.map(|(first, last)| {
                travel(&[("ens5", Direction::Ingress, first), ("docker0", Direction::Egress, last)])
            }),
            handshake: true,
            responded: status.is_some(),
            decrements: Decrements {
                seen: Some(falls),
                first: Some((first, Direction::Ingress)),
                last: None,
                hops: 2,
                forwards: 1,
                ..Decrements::default()
            },
            ..Exchange::new(ExchangeId(1), connection, Timestamp(1))
        };
        let hop_limit = HopLimit { observed: at.map(Ttl), needed: Some(Ttl(falls + 1)) };
        let who = Attribution { initial_ttl: initial.map(Ttl), ..who(name) };
        Event::Exchange(Rc::new(ExchangeEvent { exchange, who, hop_limit, token: None, fell_back, unwatched: false }))
    }
}

fn ready(hook: Attached) -> Event {
    let ready = Ready { version: None, kernel: None, hooks: vec![hook], missing: Vec::new(), features: Vec::new() };
    Event::Ready(Timestamp(0), ready)
}

fn listening() -> Event {
    ready(Attached::Tc { interface: "ens5".into(), direction: Direction::Ingress, via: Via::Tcx })
}

fn judge_events(events: &[Event], settings: Settings, lost: Lost) -> WhatIf {
    let mut needs = Needs::default();
    events.iter().for_each(|event| needs.count(event));
    needs.judge(settings, END, lost, &|_| true)
}

fn judge(all: &[Seen], settings: Settings) -> WhatIf {
    let events: Vec<Event> = [listening()].into_iter().chain(all.iter().map(Seen::event)).collect();
    judge_events(&events, settings, Lost::default())
}

/// Who comes out how, e.g. `web breaks`.
fn outlooks(what_if: &WhatIf) -> Vec<String> {
    let name = |client: &crate::event::ClientOutlook| {
        client.who.container.as_ref().map_or("host".to_owned(), |container| container.id.clone())
    };
    let told = |outlook: Outlook| match outlook {
        Outlook::Breaks => "breaks",
        Outlook::CannotBeTold => "cannot_be_told",
        Outlook::Works => "works",
    };
    what_if.clients.iter().map(|client| format!("{} {}", name(client), told(client.outlook))).collect()
}

const PUT: &str = "PUT /latest/api/token";
const V2: &str = "GET /latest/meta-data/instance-id T";
const V1: &str = "GET /latest/meta-data/instance-id";

#[test]
fn who_asks_without_a_token_breaks_where_one_is_required_and_who_is_too_far_away_where_the_limit_is_low() {
    let agent = Seen { falls: 0, ..seen("host", PUT, Some(200)) };
    let all = [agent, seen("web", PUT, Some(200)), seen("web", V2, Some(200)), seen("old", V1, Some(200))];
    let strict = judge(&all, STRICT);
    assert_eq!(outlooks(&strict), ["web breaks", "old breaks", "host works"]);
    assert!(strict.clients[0].reasons[0].text.contains("needs a hop limit of 2"), "{:?}", strict.clients[0]);
    assert!(strict.clients[1].reasons[0].text.contains("without a token"), "{:?}", strict.clients[1]);
    assert!(strict.why.contains("2 of 3 clients would break: container web"), "{}", strict.why);
    assert_eq!(outlooks(&judge(&all, both(2))), ["old breaks", "host works", "web works"]);
    assert_eq!(outlooks(&judge(&all, TOKENS)), ["old breaks", "host works", "web works"]);
    let low = judge(&all, limit(1));
    assert_eq!(outlooks(&low), ["web breaks", "host works", "old works"]);
    assert_eq!((low.least, low.outlook), (crate::event::Needed { at_least: 2, enough: Some(2) }, Outlook::Breaks));
    assert_eq!(low.least_for.unwrap().container.unwrap().id, "web");
    assert_eq!(judge(&all, limit(2)).outlook, Outlook::Works);
}

#[test]
fn a_client_whose_token_is_lost_breaks_until_the_limit_is_what_it_needs_and_then_nobody_knows() {
    let lost = Seen { at: Some(1), ..seen("job", PUT, None) };
    let fell_back = Seen { fell_back: true, at: Some(1), ..seen("job", V1, Some(200)) };
    let all = [lost.clone(), fell_back];
    assert_eq!(outlooks(&judge(&all, STRICT)), ["job breaks"]);
    assert_eq!(outlooks(&judge(&all, TOKENS)), ["job breaks"], "the limit is as it is");
    assert_eq!(outlooks(&judge(&all, both(2))), ["job cannot_be_told"]);
    assert_eq!(outlooks(&judge(&[lost], both(2))), ["job works"]);
}

#[test]
fn what_was_not_shown_does_not_work() {
    let told = |all: &[Seen], settings| outlooks(&judge(all, settings)).join(", ");
    let web = seen("web", PUT, Some(200));
    let unread = seen("web", "", Some(200));
    assert_eq!(told(&[web.clone(), unread], both(2)), "web cannot_be_told");
    let refused = seen("web", PUT, Some(403));
    assert_eq!(told(&[refused], both(2)), "web cannot_be_told");
    // Dropped by something else than its TTL.
    let stopped = seen("web", PUT, None);
    assert_eq!(told(std::slice::from_ref(&stopped), both(2)), "web cannot_be_told");
    assert_eq!(told(&[stopped], STRICT), "web breaks");
    // The way before the first place is not known.
    let nested = Seen { initial: None, at: None, ..web.clone() };
    assert_eq!(told(std::slice::from_ref(&nested), both(2)), "web cannot_be_told");
    assert_eq!(told(&[Seen { at: Some(3), ..nested.clone() }], both(3)), "web works", "it arrived with 3");
    assert_eq!(told(&[Seen { at: Some(3), ..nested }], both(2)), "web cannot_be_told");
    // A token from somebody else.
    let borrowed = seen("web", V2, Some(200));
    assert_eq!(told(std::slice::from_ref(&borrowed), STRICT), "web cannot_be_told");
    assert_eq!(told(&[borrowed], both(2)), "web works");
    // The hop limit stays as it is, and that was not seen.
    let silent = Seen { at: None, ..web };
    assert_eq!(told(&[silent], TOKENS), "web cannot_be_told");
}

#[test]
fn nothing_works_without_coverage() {
    let web = seen("web", PUT, Some(200)).event();
    let none = Lost::default();
    assert_eq!(judge_events(&[listening(), web.clone()], both(2), none).outlook, Outlook::Works);
    let lost = Lost { ring_buffer: 1, ..none };
    let what_if = judge_events(&[listening(), web.clone()], both(2), lost);
    assert_eq!((what_if.outlook, outlooks(&what_if)), (Outlook::CannotBeTold, vec!["web works".to_owned()]));
    assert!(what_if.why.contains("1 record was lost"), "{}", what_if.why);
    for hook in [
        Attached::Tracepoint { name: "skb:kfree_skb".into() },
        Attached::Capture { interface: None, link: "raw".into(), directions: Directions::Inferred },
    ] {
        assert_eq!(judge_events(&[ready(hook), web.clone()], both(2), none).outlook, Outlook::CannotBeTold);
    }
    assert_eq!(
        judge_events(std::slice::from_ref(&web), both(2), none).outlook,
        Outlook::CannotBeTold,
        "nothing is attached"
    );
    assert_eq!(judge_events(&[listening()], both(2), none).outlook, Outlook::CannotBeTold, "nobody was seen");
    let unseen = |counted| {
        let endpoint = Endpoint { address: IpAddr::from([169, 254, 169, 254]), port: 80 };
        let unseen = UnseenConnection { who: who("cron"), endpoint, established: Timestamp(5), counted };
        judge_events(&[listening(), web.clone(), Event::Unseen(END, Box::new(unseen))], both(2), none).outlook
    };
    assert_eq!(unseen(None), Outlook::CannotBeTold);
    assert_eq!(unseen(Some((7, 7))), Outlook::CannotBeTold);
    assert_eq!(unseen(Some((0, 0))), Outlook::Works, "it asked for nothing");
}

#[test]
fn a_request_whose_ttl_is_set_anew_does_not_show_less_than_its_answer_loses() {
    // The request shows no hop; the answer lost one of five.
    let rewritten = Seen { at: Some(5), falls: 0, back: Some((5, 4)), ..seen("web", PUT, Some(200)) };
    assert_eq!(outlooks(&judge(std::slice::from_ref(&rewritten), limit(1))), ["web cannot_be_told"]);
    assert_eq!(outlooks(&judge(&[rewritten], limit(2))), ["web works"]);
    let plain = Seen { at: Some(5), back: Some((5, 4)), ..seen("web", PUT, Some(200)) };
    assert_eq!(outlooks(&judge(std::slice::from_ref(&plain), limit(1))), ["web breaks"]);
    assert_eq!(outlooks(&judge(&[plain], limit(2))), ["web works"]);
}

#[test]
fn who_gets_nothing_for_another_reason_is_not_called_working() {
    for asked in [V1, V2] {
        assert_eq!(outlooks(&judge(&[seen("web", asked, None)], limit(2))), ["web cannot_be_told"], "{asked}");
        assert_eq!(outlooks(&judge(&[seen("web", asked, Some(404))], limit(2))), ["web works"], "{asked}");
    }
}

#[test]
fn what_does_not_show_who_asks_is_a_gap_and_what_only_tells_more_is_none() {
    let outlook = |hook: &str| {
        let Event::Ready(at, mut ready) = listening() else { unreachable!() };
        ready.missing.push(crate::event::Missing { hook: hook.into(), why: "busy".into() });
        judge_events(&[Event::Ready(at, ready), seen("web", PUT, Some(200)).event()], both(2), Lost::default()).outlook
    };
    assert_eq!(outlook("drop reasons"), Outlook::Works);
    assert_eq!(outlook("sock:inet_sock_set_state"), Outlook::CannotBeTold);
    assert_eq!(outlook("docker0"), Outlook::CannotBeTold);
}

#[test]
fn somebody_unknown_counts_as_the_one_who_is_asked_about() {
    let mut needs = Needs::default();
    for event in [listening(), seen("web", PUT, Some(200)).event(), seen("?", V1, Some(200)).event()] {
        needs.count(&event);
    }
    let is_web = |who: &Attribution| who.container.as_ref().is_some_and(|container| container.id == "web");
    let what_if = needs.judge(both(2), END, Lost::default(), &is_web);
    assert_eq!(what_if.outlook, Outlook::Breaks);
    assert!(what_if.why.contains("which could not be identified"), "{}", what_if.why);
    let is_other = |who: &Attribution| who.container.as_ref().is_some_and(|container| container.id == "other");
    let nobody = needs.judge(limit(2), END, Lost::default(), &is_other);
    assert_eq!(nobody.outlook, Outlook::CannotBeTold, "silence about one shows nothing");
}

#[test]
fn what_is_refused_already_is_said() {
    let refused = judge(&[seen("old", V1, Some(401))], limit(2));
    assert_eq!(outlooks(&refused), ["old breaks"]);
    assert!(refused.why.contains("401 already"), "{}", refused.why);
    let detection = judge(&[seen("web", "GET /conf", Some(404)), seen("web", PUT, Some(200))], both(2));
    assert_eq!(outlooks(&detection), ["web works"]);
    let other = judge(&[seen("web", "GET /", Some(200))], both(2));
    assert_eq!(outlooks(&other), ["web breaks"]);
}
