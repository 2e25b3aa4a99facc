//! Is a scenario that says `silent` of a rule a near miss of it? One thing changed, and the rule fires: else the silence shows nothing.

use anyhow::{Result, bail};
use diagnosis::observation::TcpFlags;
use diagnosis::pipeline::Host;

use super::{HOST_NETNS, INSTANCE, Packet, Place, Scenario, Uplinks, conclude_telling};

/// Answers that are tried in place of one.
const ANSWERS: [&str; 7] = ["200", "401", "403", "404", "400", "503", "rst"];
/// Requests that are tried in place of one.
const REQUESTS: [&str; 4] = [
    "PUT /latest/api/token",
    "GET /latest/api/token",
    "GET /latest/meta-data/",
    "GET /latest/meta-data/iam/security-credentials/",
];
/// Drops that are tried at the end of a packet's way, and in place of one.
const DROPS: [&str; 8] = [
    "drop ip_forward IP_INHDR ens5 1",
    "drop nf_hook_slow NETFILTER_DROP ens5 64",
    "drop ip_rcv_finish_core IP_RPFILTER ens5 64",
    "drop ip_error IP_INNOROUTES docker0 64",
    "drop ip_error IP_INADDRERRORS docker0 64",
    "drop __dev_queue_xmit TC_EGRESS ens5 64",
    "drop tcp_v4_rcv TCP_CSUM eth0 2 in 20",
    "drop some_function SOME_REASON ens5 64",
];
/// Later or earlier, ms.
const SHIFTS: [i64; 4] = [700, 3_000, 7_000, -1_500];

/// Fails with every rule that no single change fires.
pub fn misses(scenario: &Scenario) -> Result<()> {
    let mut open: Vec<&String> = scenario.silent.iter().collect();
    let changes = changes(scenario);
    // With the clock ticking it takes longer, and shows more.
    for (ticks, changed) in
        [false, true].into_iter().flat_map(|ticks| changes.iter().map(move |changed| (ticks, changed)))
    {
        if open.is_empty() {
            return Ok(());
        }
        // What makes no sense (a packet that is sent again, without the first) is no change.
        let Ok(inputs) = changed.inputs() else { continue };
        let host = Host { netns: HOST_NETNS, pid_namespace: None, instance: Some(INSTANCE.to_owned()) };
        let found = conclude_telling(host, &inputs, ticks, &changed.telling(Vec::new())?)?.report.findings;
        open.retain(|rule| !found.iter().any(|finding| finding.rule == rule.as_str()));
    }
    if !open.is_empty() {
        bail!("{}\n  no near miss of {open:?}: nothing that is changed about it fires them", scenario.about);
    }
    Ok(())
}

/// The scenario with one thing changed, in every way that is tried.
fn changes(scenario: &Scenario) -> Vec<Scenario> {
    let mut all: Vec<Scenario> = Vec::new();
    let mut with = |change: &dyn Fn(&mut Scenario)| {
        let mut changed = scenario.clone();
        change(&mut changed);
        all.push(changed);
    };
    for number in 0..scenario.packets.len() {
        with(&|changed| drop(changed.packets.remove(number)));
        for change in packet_changes(&scenario.packets[number]) {
            with(&|changed| changed.packets[number] = change.clone());
        }
        // Nothing more comes of it from here on, or from this side.
        with(&|changed| changed.packets.truncate(number));
        let client = scenario.packets[number].client.clone();
        with(&|changed| {
            let mut at = 0..;
            changed
                .packets
                .retain(|packet| at.next() < Some(number) || packet.from.is_none() || packet.client != client);
        });
        for shift in SHIFTS {
            with(&|changed| changed.packets.iter_mut().skip(number).for_each(|packet| packet.ms += shift));
        }
    }
    for (number, connect) in scenario.connects.iter().enumerate() {
        with(&|changed| drop(changed.connects.remove(number)));
        with(&|changed| changed.connects[number].error = None);
        with(&|changed| changed.connects[number].ttl = Some(255));
        with(&|changed| changed.connects[number].sending_ms = None);
        for known in [Some(connect.ms + 3_000), None] {
            with(&|changed| changed.connects[number].known_ms = known);
        }
        with(&|changed| changed.connects[number].no_port = !connect.no_port);
        for error in [99, 101, 110, 111] {
            with(&|changed| changed.connects[number].error = Some(error));
        }
        for other in scenario.connects.iter().filter(|other| other.pid != connect.pid) {
            with(&|changed| (changed.connects[number].pid, changed.connects[number].netns) = (other.pid, other.netns));
        }
        with(&|changed| changed.connects[number].pid += 1);
    }
    for number in 0..scenario.attempts.len() {
        with(&|changed| drop(changed.attempts.remove(number)));
    }
    for number in 0..scenario.processes.len() {
        with(&|changed| drop(changed.processes.remove(number)));
        with(&|changed| changed.processes[number].ancestors.clear());
        with(&|changed| changed.processes[number].ancestors = vec!["4000 bash".to_owned()]);
        with(&|changed| changed.processes[number].ancestors = vec!["1 systemd".to_owned()]);
    }
    // Nobody is on the list.
    with(&|changed| changed.allow = Some(String::new()));
    with(&|changed| changed.lost.clear());
    // Of what nobody received no sighting was lost either.
    with(&|changed| {
        changed.lost.clear();
        changed.counted.iter_mut().for_each(|counted| counted.received = 0);
    });
    with(&|changed| changed.exceeded.clear());
    with(&|changed| changed.forwarding = None);
    with(&|changed| {
        let off = vec!["docker0".to_owned(), "ens5".to_owned()];
        changed.forwarding = toml::from_str("v4 = false\nv6 = false").ok();
        changed.forwarding.iter_mut().for_each(|forwarding| forwarding.off.clone_from(&off));
    });
    with(&|changed| changed.uplinks = None);
    with(&|changed| changed.uplinks = Some(uplinks()));
    if scenario.uplinks.is_some() {
        let mut of_uplinks = |change: &dyn Fn(&mut Uplinks)| {
            with(&|changed| changed.uplinks.iter_mut().for_each(change));
        };
        of_uplinks(&|uplinks| uplinks.watched = Some(uplinks.watched == Some(false)));
        of_uplinks(&|uplinks| uplinks.inward.clear());
        of_uplinks(&|uplinks| uplinks.inward = vec!["docker0".to_owned()]);
        of_uplinks(&|uplinks| uplinks.addresses.clear());
        of_uplinks(&|uplinks| uplinks.networks.clear());
        of_uplinks(&|uplinks| uplinks.networks = vec!["docker0 172.17.0.1/16".to_owned()]);
        of_uplinks(&|uplinks| uplinks.interfaces = vec!["eth9".to_owned()]);
    }
    for number in 0..scenario.clients.len() {
        with(&|changed| changed.clients[number].outside = None);
    }
    all
}

fn uplinks() -> Uplinks {
    Uplinks {
        interfaces: vec!["ens5".to_owned()],
        inward: vec!["docker0".to_owned()],
        addresses: vec!["10.0.0.10".to_owned(), "172.17.0.1".to_owned()],
        networks: vec!["ens5 10.0.0.10/24".to_owned(), "docker0 172.17.0.1/16".to_owned()],
        watched: Some(true),
    }
}

fn packet_changes(packet: &Packet) -> Vec<Packet> {
    let mut all: Vec<Packet> = Vec::new();
    let mut with = |change: &dyn Fn(&mut Packet)| {
        let mut changed = packet.clone();
        change(&mut changed);
        all.push(changed);
    };
    let other = |words: &Option<String>, tried: &[&str]| -> Vec<String> {
        let has_head = words.as_ref().is_some_and(|words| words.contains(' ') || words.parse::<u16>().is_ok());
        tried.iter().filter(|_| has_head).map(|words| (*words).to_owned()).collect()
    };
    for words in other(&packet.from, &ANSWERS) {
        with(&|changed| changed.from = Some(words.clone()));
    }
    for words in other(&packet.to, &REQUESTS) {
        with(&|changed| changed.to = Some(words.clone()));
    }
    if packet.to.as_deref().is_some_and(|words| matches!(words, "ack" | "fin")) {
        with(&|changed| changed.to = Some("rst".to_owned()));
        // Without ACK, as a host without the socket sends it.
        with(&|changed| (changed.to, changed.flags) = (Some("rst".to_owned()), Some(TcpFlags::RST)));
    }
    with(&|changed| changed.lost = Some(packet.lost != Some(true)));
    with(&|changed| changed.again = false);
    with(&|changed| changed.token = !packet.token);
    with(&|changed| (changed.token, changed.empty_token, changed.mark) = (false, false, None));
    with(&|changed| changed.empty_token = true);
    with(&|changed| changed.other_cloud = !packet.other_cloud);
    with(&|changed| changed.lifetime = Some(-1));
    with(&|changed| changed.lifetime = None);
    with(&|changed| changed.mark = Some(99));
    with(&|changed| changed.forwarded_for = false);
    with(&|changed| changed.via = !packet.via);
    with(&|changed| changed.server = None);
    for shift in SHIFTS {
        with(&|changed| changed.ms += shift);
    }
    for drop in DROPS.iter().filter_map(|words| Place::try_from((*words).to_owned()).ok()) {
        with(&|changed| changed.at.push(drop.clone()));
        with(&|changed| *changed.at.last_mut().unwrap_or(&mut drop.clone()) = drop.clone());
    }
    for number in 0..packet.at.len() {
        with(&|changed| std::mem::drop(changed.at.remove(number)));
        with(&|changed| changed.at.truncate(number + 1));
        for ttl in [1, 2, 64, 255] {
            with(&|changed| changed.at[number].ttl.0 = ttl);
        }
        with(&|changed| changed.at[number].redirected = None);
        // It came in with its TTL used up, and died there.
        with(&|changed| {
            changed.at.truncate(number + 1);
            changed.at.iter_mut().for_each(|place| place.ttl.0 = 1);
            changed.at.extend(Place::try_from(DROPS[0].to_owned()).ok());
        });
    }
    // It came by the uplink, or left by it, after all.
    for place in ["ens5 ingress 64", "ens5 egress 63"] {
        let place = Place::try_from(place.to_owned()).ok();
        with(&|changed| changed.at.splice(0..0, place.clone()).for_each(std::mem::drop));
        with(&|changed| changed.at.extend(place.clone()));
    }
    with(&|changed| changed.at.extend(Place::try_from("docker0 egress 1".to_owned()).ok()));
    all
}
