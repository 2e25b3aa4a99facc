//! Are observations joined as the kernel moved the packets?

use std::net::IpAddr;

use super::*;
use crate::net::{Endpoint, Flow, Ifindex, Interface, Netns, Ttl};
use crate::observation::Hook;

const CLIENT: &str = "172.17.0.2:40000";
const HOST: &str = "10.0.0.10:40000";
const IMDS: &str = "169.254.169.254:80";

fn end(text: &str) -> Endpoint {
    let socket: std::net::SocketAddr = text.parse().unwrap();
    Endpoint { address: socket.ip(), port: socket.port() }
}

fn hook(name: &str, direction: Direction) -> Place {
    let index = name.bytes().map(u32::from).sum();
    let interface = Interface { netns: Netns(1), index: Ifindex(index), name: name.into() };
    Place::Hook(Hook { interface, direction })
}

fn drop_at(location: &str, reason: &str) -> Place {
    drop_in(1, location, reason)
}

fn drop_in(netns: u32, location: &str, reason: &str) -> Place {
    Place::Drop(Drop {
        location: Some(location.into()),
        reason: Some(reason.into()),
        interface: None,
        netns: Netns(netns),
        callers: Vec::new(),
    })
}

struct Packet {
    heading: Heading,
    seq: u32,
    ack: u32,
    flags: u8,
    len: u32,
}

fn observe(ms: u64, place: Place, client: &str, ttl: u8, packet: &Packet) -> Observation {
    let (client, imds) = (end(client), end(IMDS));
    let flow = match packet.heading {
        Heading::ToImds => Flow { source: client, destination: imds },
        Heading::FromImds => Flow { source: imds, destination: client },
    };
    Observation {
        at: Timestamp(ms * 1_000_000),
        place,
        heading: packet.heading,
        flow,
        ttl: Ttl(ttl),
        ip_id: 0,
        protocol: 6,
        tcp: Some(Tcp { seq: packet.seq, ack: packet.ack, flags: TcpFlags(packet.flags), len: packet.len }),
        heads: Vec::new(),
        icmp: None,
        redirected: false,
    }
}

fn syn() -> Packet {
    Packet { heading: Heading::ToImds, seq: 1000, ack: 0, flags: TcpFlags::SYN, len: 0 }
}

fn data() -> Packet {
    Packet { heading: Heading::FromImds, seq: 5001, ack: 1100, flags: TcpFlags::ACK, len: 300 }
}

fn run(observations: Vec<Observation>) -> Vec<Journey> {
    let mut joiner = Joiner::new(Netns(1));
    let mut journeys = Vec::new();
    for observation in observations {
        joiner.advance(observation.at, &mut |journey| journeys.push(journey));
        joiner.push(observation);
    }
    joiner.advance(Timestamp(u64::MAX), &mut |journey| journeys.push(journey));
    journeys
}

use Direction::{Egress, Ingress};

fn syn_through(host: &str) -> Vec<Observation> {
    vec![observe(0, hook("docker0", Ingress), CLIENT, 64, &syn()), observe(0, hook("ens5", Egress), host, 63, &syn())]
}

#[test]
fn a_packet_is_one_journey_through_a_masquerade_that_changes_the_port() {
    let mut observations = syn_through("10.0.0.10:1024");
    observations.push(observe(1, hook("ens5", Ingress), "10.0.0.10:1024", 2, &data()));
    observations.push(observe(1, hook("docker0", Egress), CLIENT, 1, &data()));
    let journeys = run(observations);
    assert_eq!(journeys.len(), 2, "{journeys:#?}");
    for journey in &journeys {
        assert_eq!((journey.hops.len(), &journey.fate, journey.join), (2, &Fate::Delivered, Join::Rewritten));
        assert_eq!(journey.connection.client, end(CLIENT));
        assert_eq!(journey.connection.isn, Some(1000));
    }
}

#[test]
fn a_drop_after_translation_belongs_to_the_packet_that_came_in() {
    let mut observations = syn_through(HOST);
    observations.push(observe(1, hook("ens5", Ingress), HOST, 1, &data()));
    observations.push(observe(1, drop_at("ip_forward", "IP_INHDR"), CLIENT, 1, &data()));
    let journeys = run(observations);
    let lost = &journeys[1];
    assert!(
        matches!(&lost.fate, Fate::Dropped(dropped) if dropped.ttl == Ttl(1) && dropped.drop.function() == "ip_forward")
    );
    assert_eq!(lost.hops.len(), 1);
}

#[test]
fn each_retransmission_is_a_journey_of_its_own_even_within_the_quiet_time() {
    let mut observations = syn_through(HOST);
    for ms in [10, 20, 500] {
        observations.push(observe(ms, hook("ens5", Ingress), HOST, 1, &data()));
        observations.push(observe(ms, drop_at("ip_forward", "IP_INHDR"), CLIENT, 1, &data()));
    }
    let lost = run(observations).into_iter().filter(|journey| matches!(journey.fate, Fate::Dropped(_))).count();
    assert_eq!(lost, 3);
}

#[test]
fn a_response_that_came_in_and_never_went_on_is_unresolved_behind_a_bridge_and_delivered_to_the_host() {
    let mut behind = syn_through(HOST);
    behind.push(observe(1, hook("ens5", Ingress), HOST, 1, &data()));
    assert_eq!(run(behind)[1].fate, Fate::Unresolved);

    let own =
        vec![observe(0, hook("ens5", Egress), HOST, 64, &syn()), observe(1, hook("ens5", Ingress), HOST, 1, &data())];
    assert_eq!(run(own)[1].fate, Fate::Delivered);
}

#[test]
fn what_the_other_side_acknowledged_was_delivered_although_a_hop_is_missing() {
    let mut observations = syn_through(HOST);
    observations.push(observe(1, hook("ens5", Ingress), HOST, 1, &data()));
    let ack = Packet { heading: Heading::ToImds, seq: 1100, ack: 5301, flags: TcpFlags::ACK, len: 0 };
    observations.push(observe(2, hook("docker0", Ingress), CLIENT, 64, &ack));
    let journeys = run(observations);
    let response = journeys.iter().find(|journey| journey.heading == Heading::FromImds).unwrap();
    assert_eq!(response.fate, Fate::Delivered);
}

#[test]
fn a_trace_that_begins_in_mid_connection_joins_by_numbers_and_says_so() {
    let observations = vec![
        observe(1, hook("ens5", Ingress), HOST, 2, &data()),
        observe(1, hook("docker0", Egress), CLIENT, 1, &data()),
    ];
    let journeys = run(observations);
    assert_eq!(journeys.len(), 1);
    assert_eq!((journeys[0].join, &journeys[0].fate), (Join::Guessed, &Fate::Delivered));
    assert_eq!(journeys[0].connection.client, end(CLIENT));
}

#[test]
fn what_the_receiving_tcp_discards_and_flooded_copies_are_no_losses() {
    let mut observations = syn_through(HOST);
    observations.push(observe(1, hook("ens5", Ingress), HOST, 2, &data()));
    observations.push(observe(1, drop_at("ip_rcv_core", "OTHERHOST"), CLIENT, 1, &data()));
    observations.push(observe(1, hook("docker0", Egress), CLIENT, 1, &data()));
    observations.push(observe(1, drop_in(20, "tcp_data_queue", "TCP_OLD_DATA"), CLIENT, 1, &data()));
    let journeys = run(observations);
    assert_eq!(journeys.len(), 2);
    assert!(journeys.iter().all(|journey| journey.fate == Fate::Delivered), "{journeys:#?}");
}

#[test]
fn an_answer_that_another_tcp_than_the_clients_had_in_hand_is_lost() {
    for reason in ["NO_SOCKET", "NOT_SPECIFIED", "TCP_OLD_DATA"] {
        let mut observations = syn_through(HOST);
        observations.push(observe(1, hook("ens5", Ingress), HOST, 2, &data()));
        observations.push(observe(1, drop_at("tcp_v4_rcv", reason), HOST, 2, &data()));
        let journeys = run(observations);
        assert!(matches!(&journeys[1].fate, Fate::Dropped(dropped) if dropped.drop.netns == Netns(1)), "{reason}");
    }
    // The host's own client is told apart by where its packets were first seen.
    let own = vec![
        observe(0, hook("ens5", Egress), HOST, 64, &syn()),
        observe(1, hook("ens5", Ingress), HOST, 1, &data()),
        observe(1, drop_at("tcp_v4_rcv", "NO_SOCKET"), HOST, 1, &data()),
    ];
    assert_eq!(run(own)[1].fate, Fate::Delivered);
}

#[test]
fn whose_tcp_it_was_is_known_from_the_socket() {
    // A pod whose own link has no hook: its request is seen first where it leaves.
    let mut joiner = Joiner::new(Netns(1));
    joiner.socket(1000, Netns(20), end(CLIENT), end(IMDS));
    let mut journeys = Vec::new();
    joiner.push(observe(0, hook("ens5", Egress), HOST, 64, &syn()));
    joiner.push(observe(1, hook("ens5", Ingress), HOST, 2, &data()));
    joiner.push(observe(1, drop_at("tcp_v4_rcv", "NO_SOCKET"), HOST, 2, &data()));
    joiner.advance(END, &mut |journey| journeys.push(journey));
    assert!(matches!(journeys[1].fate, Fate::Dropped(_)), "{:?}", journeys[1].fate);
}

#[test]
fn what_is_seen_again_right_behind_its_drop_was_not_dropped() {
    let mut observations = syn_through(HOST);
    observations.push(observe(1, hook("ens5", Ingress), HOST, 2, &data()));
    // Somebody's copy, dropped where no table knows it.
    observations.push(observe(1, drop_at("monitor_xmit", "FULL_RING"), HOST, 2, &data()));
    observations.push(observe(1, hook("docker0", Egress), CLIENT, 1, &data()));
    let journeys = run(observations);
    assert_eq!((journeys.len(), &journeys[1].fate, journeys[1].hops.len()), (2, &Fate::Delivered, 2));
}

#[test]
fn a_drop_that_is_told_before_the_hook_that_the_packet_passed_first_is_its_end_all_the_same() {
    let mut observations = syn_through(HOST);
    observations.push(observe(2, drop_at("ip_forward", "IP_INHDR"), CLIENT, 1, &data()));
    observations.push(observe(1, hook("ens5", Ingress), HOST, 1, &data()));
    let journeys = run(observations);
    assert_eq!(journeys.len(), 2, "{journeys:#?}");
    assert!(matches!(journeys[1].fate, Fate::Dropped(_)));
    assert_eq!(journeys[1].hops.len(), 1);
}

#[test]
fn two_clients_with_the_same_ports_and_numbers_but_their_own_first_sequence_number_stay_apart() {
    let other = Packet { seq: 2000, ..syn() };
    let mut observations = syn_through(HOST);
    observations.push(observe(0, hook("docker0", Ingress), "172.17.0.3:40000", 64, &other));
    observations.push(observe(0, hook("ens5", Egress), "10.0.0.10:1025", 63, &other));
    let journeys = run(observations);
    assert_eq!(journeys.len(), 2);
    let clients: Vec<IpAddr> = journeys.iter().map(|journey| journey.connection.client.address).collect();
    assert_eq!(clients, ["172.17.0.2".parse::<IpAddr>().unwrap(), "172.17.0.3".parse().unwrap()]);
}

#[test]
fn a_flood_of_connections_stays_bounded_and_is_counted() {
    let mut joiner = Joiner::new(Netns(1));
    for n in 0..100_000u32 {
        let packet = Packet { seq: n, ..syn() };
        let client = format!("172.17.{}.{}:{}", n >> 16, (n >> 8) & 255, 1 + (n & 255));
        joiner.push(observe(0, hook("docker0", Ingress), &client, 64, &packet));
    }
    assert_eq!(joiner.take_evicted(), 100_000 - 65_536);
}

#[test]
fn one_forged_number_under_many_addresses_is_many_connections_and_costs_no_more() {
    let mut joiner = Joiner::new(Netns(1));
    let mut ended = 0;
    for n in 0..60_000u64 {
        let client = format!("172.17.0.2:{}", 1 + n);
        let observation = observe(n / 10, hook("docker0", Ingress), &client, 64, &syn());
        joiner.advance(observation.at, &mut |_| ended += 1);
        joiner.push(observation);
        assert!(joiner.due.len() < 10_000, "one entry a connection that is under way");
    }
    joiner.advance(Timestamp(u64::MAX), &mut |_| ended += 1);
    assert_eq!((ended, joiner.take_evicted()), (60_000, 0));
}

#[test]
fn an_answer_that_comes_in_from_the_clients_side_is_none() {
    let mut joiner = Joiner::new(Netns(1));
    let uplink = "ens5".bytes().map(u32::from).sum();
    joiner.uplinks(&[Ifindex(uplink)], &[]);
    joiner.push(observe(1, hook("docker0", Ingress), CLIENT, 1, &data()));
    joiner.push(observe(1, drop_at("ip_forward", "IP_INHDR"), CLIENT, 1, &data()));
    let mut journeys = Vec::new();
    joiner.advance(Timestamp(u64::MAX), &mut |journey| journeys.push(journey));
    assert_eq!(journeys, []);
}

/// The journeys of answers, where the host's route to IMDS is by ens5.
fn answers(inward: &[&str], observations: Vec<Observation>) -> Vec<Journey> {
    let index = |name: &str| Ifindex(name.bytes().map(u32::from).sum());
    let inward: Vec<Ifindex> = inward.iter().map(|name| index(name)).collect();
    let mut joiner = Joiner::new(Netns(1));
    joiner.uplinks(&[index("ens5")], &inward);
    let mut journeys = Vec::new();
    for observation in observations {
        joiner.push(observation);
    }
    joiner.advance(END, &mut |journey| journeys.push(journey));
    journeys.into_iter().filter(|journey| journey.heading == Heading::FromImds).collect()
}

#[test]
fn an_answer_comes_in_where_its_request_left_whatever_the_hosts_own_route() {
    let other = |name: &str| {
        vec![
            observe(0, hook("docker0", Ingress), CLIENT, 64, &syn()),
            observe(0, hook("ens6", Egress), HOST, 63, &syn()),
            observe(1, hook(name, Ingress), HOST, 2, &data()),
            observe(1, hook("docker0", Egress), CLIENT, 1, &data()),
        ]
    };
    assert_eq!(answers(&[], other("ens6")).len(), 1);
    assert_eq!(answers(&[], other("ens7")), []);
    // Told which interfaces containers are behind, any other leads up.
    assert_eq!(answers(&["docker0"], other("ens7")).len(), 1);
    assert_eq!(answers(&["docker0", "ens7"], other("ens7")), []);
}

#[test]
fn the_real_answer_counts_whenever_its_forged_double_comes() {
    let real = [(1, hook("ens5", Ingress), HOST, 2), (1, hook("docker0", Egress), CLIENT, 1)];
    let forged = (1, hook("docker0", Ingress), CLIENT, 64);
    for before in 0..=real.len() {
        let mut sightings = real.to_vec();
        sightings.insert(before, forged.clone());
        let packets = sightings.into_iter().map(|(ms, place, client, ttl)| observe(ms, place, client, ttl, &data()));
        let observations: Vec<_> = syn_through(HOST).into_iter().chain(packets).collect();
        let journeys = answers(&["docker0"], observations);
        assert_eq!(journeys.len(), 1, "{before}: {journeys:#?}");
        assert_eq!((journeys[0].hops.len(), &journeys[0].fate), (2, &Fate::Delivered), "{before}");
    }
}

/// A whole connection through docker0 and ens5 that begins at `ms`; its answer is acknowledged, or is not.
fn whole(ms: u64, isn: u32, client: &str, acknowledged: bool) -> Vec<Observation> {
    let to = |seq, ack, flags, len| Packet { heading: Heading::ToImds, seq: isn + seq, ack, flags, len };
    let from = |seq, ack, flags, len| Packet { heading: Heading::FromImds, seq, ack: isn + ack, flags, len };
    let (fin_ack, ack) = (TcpFlags::FIN | TcpFlags::ACK, TcpFlags::ACK);
    let has = if acknowledged { 5302 } else { 5001 };
    let packets = [
        to(0, 0, TcpFlags::SYN, 0),
        from(5000, 1, TcpFlags::SYN | TcpFlags::ACK, 0),
        to(1, 5001, ack, 100),
        from(5001, 101, ack, 300),
        from(5301, 101, fin_ack, 0),
        to(101, has, fin_ack, 0),
        from(5302, 102, ack, 0),
    ];
    packets.iter().map(|packet| observe(ms, hook("docker0", Ingress), client, 64, packet)).collect()
}

#[test]
fn what_is_over_is_forgotten_soon_and_is_no_loss() {
    let mut joiner = Joiner::new(Netns(1));
    for n in 0..67_000u32 {
        // 100 a millisecond: all within the time in which a connection that is over is remembered.
        let client = format!("172.17.{}.{}:{}", n >> 16, (n >> 8) & 255, 1 + (n & 255));
        joiner.advance(Timestamp(u64::from(n / 100) * 1_000_000), &mut |_| {});
        for observation in whole(u64::from(n / 100), n * 1_000, &client, true) {
            joiner.push(observation);
        }
    }
    assert_eq!((joiner.take_forgotten().len(), joiner.take_evicted()), (67_000 - 65_536, 0));
    let mut joiner = Joiner::new(Netns(1));
    whole(0, 1_000, CLIENT, true).into_iter().for_each(|observation| joiner.push(observation));
    joiner.advance(Timestamp(1_999_000_000), &mut |_| {});
    assert!(joiner.has_seen(1_000) && joiner.take_forgotten().is_empty());
    joiner.advance(Timestamp(2_000_000_000), &mut |_| {});
    assert!(!joiner.has_seen(1_000));
    assert_eq!((joiner.take_forgotten().len(), joiner.due()), (1, Some(Timestamp(130_000_000_000))));
    joiner.advance(Timestamp(130_000_000_000), &mut |_| {});
    assert_eq!(joiner.due(), None);
}

#[test]
fn an_answer_that_nobody_acknowledged_is_waited_for_when_its_client_has_left() {
    let mut joiner = Joiner::new(Netns(1));
    whole(0, 1_000, CLIENT, false).into_iter().for_each(|observation| joiner.push(observation));
    joiner.closed(1_000);
    joiner.advance(Timestamp(129_000_000_000), &mut |_| {});
    assert!(joiner.has_seen(1_000));
    joiner.advance(Timestamp(130_000_000_000), &mut |_| {});
    assert!(!joiner.has_seen(1_000));
}

#[test]
fn a_connect_that_was_given_up_is_over() {
    let mut joiner = Joiner::new(Netns(1));
    syn_through(HOST).into_iter().for_each(|observation| joiner.push(observation));
    joiner.closed(1_000);
    joiner.advance(Timestamp(3_000_000_000), &mut |_| {});
    assert!(!joiner.has_seen(1_000));
}

#[test]
fn at_the_end_of_time_nothing_is_due_that_cannot_be_done() {
    let mut joiner = Joiner::new(Netns(1));
    let last = u64::MAX / 1_000_000;
    whole(last, 1_000, CLIENT, true).into_iter().for_each(|observation| joiner.push(observation));
    // What is due must be done then, or it is due for ever.
    while let Some(due) = joiner.due().filter(|due| *due < END) {
        joiner.advance(due, &mut |_| {});
        assert!(joiner.due().is_none_or(|next| next > due));
    }
    joiner.advance(END, &mut |_| {});
    assert_eq!(joiner.due(), None);
}
