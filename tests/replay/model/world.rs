//! Which small hosts are there, what would the hooks see on each, and what is true of it?

use std::fmt::Write as _;
use std::ops::Range;

use anyhow::{Context, Result};
use imds_trace_replay_tests::scenario::Scenario;
use proptest::prelude::*;

/// Fewer records than this are lost.
const MOST_LOST: usize = 12;
/// Payload of a request and of a response, bytes, as scenarios have it.
const REQUEST: u32 = 150;
const RESPONSE: u32 = 300;
/// A client waits so long for an answer, ms.
const PATIENCE: u32 = 1_000;
/// Where the first client connects from; each further connection has the next port.
const FIRST_PORT: u16 = 40_000;

/// A host and what happens on it.
#[derive(Clone, Debug)]
pub struct World {
    /// Is IMDS asked by its IPv6 address?
    pub v6: bool,
    /// With what TTL token responses come.
    pub hop_limit: u8,
    pub tokens_required: bool,
    pub has_role: bool,
    /// IMDS is switched off.
    pub disabled: bool,
    /// Does anybody say which interfaces lead to IMDS?
    pub uplinks_known: bool,
    /// Do the clients' sockets say what their TCP counted?
    pub witnesses: bool,
    pub asks: Vec<Ask>,
    pub order: u64,
    /// Which of the kernel's records are lost, of a thousand, and is each told?
    pub lost: Vec<(u16, bool)>,
}

/// A client makes a connection and asks something.
#[derive(Clone, Debug)]
pub struct Ask {
    /// 0 is a process of the host; the others are containers.
    client: u8,
    what: What,
    fate: Fate,
    /// Once it is answered, its client asks for a role on the same connection.
    goes_on: bool,
    /// Since the one before began, ms.
    after: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Token,
    V1,
    V2,
    Role,
}

/// What becomes of it on its way. Where the TTL of an answer is used up, that comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Answered,
    /// After its client had gone.
    AnsweredLate,
    Throttled,
    /// The first copy of the answer is lost to a firewall, and the second arrives.
    SecondCopy,
    /// A packet socket with a full buffer drops its copy of an answer that arrives.
    CopyDropped,
    /// A redirect leads to a proxy on this host, which answers.
    Proxied,
    FirewallOnConnect,
    FirewallOnAnswer,
    Rejected,
    RefusedBeyond,
    UnansweredConnect,
    UnansweredRequest,
    ReversePath,
    NoRoute,
}

/// What is true of one connection.
#[derive(Clone, Debug)]
pub struct Truth {
    pub client: u8,
    pub what: What,
    pub port: u16,
    /// What the client got.
    pub status: Option<u16>,
    /// What came after it had gone.
    pub late: Option<u16>,
    /// Was the request itself sent?
    pub asked: bool,
    /// Rules that may speak of it.
    pub rules: Vec<&'static str>,
}

pub fn world() -> impl Strategy<Value = World> {
    let what = prop_oneof![Just(What::Token), Just(What::V1), Just(What::V2), Just(What::Role)];
    let fate = prop_oneof![
        6 => Just(Fate::Answered),
        1 => Just(Fate::AnsweredLate),
        1 => Just(Fate::Throttled),
        1 => Just(Fate::SecondCopy),
        1 => Just(Fate::CopyDropped),
        1 => Just(Fate::Proxied),
        1 => Just(Fate::FirewallOnConnect),
        1 => Just(Fate::FirewallOnAnswer),
        1 => Just(Fate::Rejected),
        1 => Just(Fate::RefusedBeyond),
        1 => Just(Fate::UnansweredConnect),
        1 => Just(Fate::UnansweredRequest),
        1 => Just(Fate::ReversePath),
        1 => Just(Fate::NoRoute),
    ];
    let after = prop_oneof![Just(40u32), Just(400), Just(1_300), Just(8_000), Just(70_000)];
    let ask = (0..4u8, what, fate, proptest::bool::weighted(0.3), after);
    let ask = ask.prop_map(|(client, what, fate, goes_on, after)| Ask { client, what, fate, goes_on, after });
    let lost = |how_many: Range<usize>| proptest::collection::vec((0..1_000u16, any::<bool>()), how_many);
    let lost = prop_oneof![2 => lost(0..1), 1 => lost(1..2), 1 => lost(2..MOST_LOST)];
    let often = proptest::bool::weighted(0.8);
    let settings = (1..4u8, any::<bool>(), any::<bool>(), proptest::bool::weighted(0.1), often);
    ((settings, any::<bool>(), any::<bool>()), proptest::collection::vec(ask, 1..6), any::<u64>(), lost).prop_map(
        |((settings, v6, witnesses), asks, order, lost)| {
            let (hop_limit, tokens_required, has_role, disabled, uplinks_known) = settings;
            World { v6, witnesses, hop_limit, tokens_required, has_role, disabled, uplinks_known, asks, order, lost }
        },
    )
}

/// Where a client is; 0 is the host.
pub fn address(v6: bool, client: u8) -> String {
    match (v6, client) {
        (true, 0) => "2001:db8::10".to_owned(),
        (false, 0) => "10.0.0.10".to_owned(),
        (true, client) => format!("fd00:d0c::{}", 1 + client),
        (false, client) => format!("172.17.0.{}", 1 + client),
    }
}

/// What one connection's packets are written with.
struct Writer {
    text: String,
    /// What its socket counts, once it changes its state.
    counted: String,
    received: u32,
    acked: u32,
    name: String,
    /// Where a packet to IMDS is seen, and one from it with this TTL at the uplink.
    is_host: bool,
}

impl Writer {
    fn to(&mut self, ms: u32, words: &str, more: &str) {
        let at = if self.is_host { "\"ens5 egress 64\"" } else { "\"docker0 ingress 64\", \"ens5 egress 63\"" };
        self.packet(ms, &format!("to = \"{words}\""), at, more);
    }

    fn from(&mut self, ms: u32, words: &str, ttl: u8, more: &str) {
        let at = match self.is_host {
            true => format!("\"ens5 ingress {ttl}\""),
            false => format!("\"ens5 ingress {ttl}\", \"docker0 egress {}\"", ttl - 1),
        };
        self.packet(ms, &format!("from = \"{words}\""), &at, more);
    }

    /// The socket enters a state.
    fn enters(&mut self, ms: u32, state: &str) {
        let Self { name, received, acked, .. } = self;
        let numbers = format!("received = {received}, acked = {acked}");
        let _ = writeln!(self.counted, "    {{ ms = {ms}, client = \"{name}\", state = \"{state}\", {numbers} }},");
    }

    /// The client ends it, and nobody holds it any longer.
    fn leaves(&mut self, ms: u32) {
        self.to(ms, "fin", "");
        self.enters(ms, "fin_wait");
        self.enters(ms + 1, "closed");
    }

    fn packet(&mut self, ms: u32, what: &str, at: &str, more: &str) {
        let name = &self.name;
        let _ = writeln!(self.text, "    {{ ms = {ms}, client = \"{name}\", {what}, at = [{at}]{more} }},");
    }
}

impl World {
    /// A client's end of a connection.
    fn end(&self, client: u8, port: u16) -> String {
        let address = address(self.v6, client);
        if self.v6 { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
    }

    /// What IMDS would answer.
    fn status(&self, what: What) -> u16 {
        match what {
            _ if self.disabled => 403,
            What::Token => 200,
            What::V1 if self.tokens_required => 401,
            What::V1 | What::V2 => 200,
            What::Role if self.has_role => 200,
            What::Role => 404,
        }
    }

    /// The scenario, and what is true of each of its connections.
    pub fn told(&self) -> Result<(Scenario, Vec<Truth>)> {
        let [mut clients, mut connects, mut packets, mut counted] = [const { String::new() }; 4];
        let (mut truths, mut at) = (Vec::new(), 0);
        for (ask, number) in self.asks.iter().zip(0u16..) {
            at += ask.after;
            let port = FIRST_PORT + number;
            let name = format!("c{number}");
            let is_host = ask.client == 0;
            let inside = self.end(ask.client, port);
            let outside = if is_host { String::new() } else { format!(", outside = \"{}\"", self.end(0, port)) };
            let _ = writeln!(clients, "    {{ name = \"{name}\", inside = \"{inside}\"{outside} }},");
            let (text, counts) = (String::new(), String::new());
            let mut writer = Writer { text, counted: counts, received: 0, acked: 0, name: name.clone(), is_host };
            let (its, error, known) = self.connection(ask, at, port, &mut writer);
            packets += &writer.text;
            if self.witnesses {
                counted += &writer.counted;
            }
            let pid = 4_000 + u32::from(ask.client);
            let netns = if is_host { String::new() } else { format!(", netns = {}", 20 + ask.client) };
            let error = error.map(|error| format!(", error = {error}")).unwrap_or_default();
            let _ = writeln!(
                connects,
                "    {{ ms = {at}, client = \"{name}\", pid = {pid}, comm = \"c{}\"{netns}{error}, known_ms = {known} }},",
                ask.client
            );
            truths.extend(its);
        }
        let (host, bridge) = (address(self.v6, 0), if self.v6 { "fd00:d0c::1" } else { "172.17.0.1" });
        let (at_host, at_bridge) = if self.v6 { (64, 64) } else { (24, 16) };
        let uplinks = match self.uplinks_known {
            true => format!(
                "uplinks = {{ interfaces = [\"ens5\"], inward = [\"docker0\"], addresses = [\"{host}\", \"{bridge}\"], networks = \
                 [\"ens5 {host}/{at_host}\", \"docker0 {bridge}/{at_bridge}\"] }}\n"
            ),
            false => String::new(),
        };
        let (mut containers, mut processes) = (String::new(), String::new());
        for client in 1..4 {
            let (netns, address) = (20 + client, address(self.v6, client));
            let _ = writeln!(
                containers,
                "    {{ name = \"job-{client}\", netns = {netns}, addresses = [\"{address}\"] }},"
            );
            let _ = writeln!(
                processes,
                "    {{ ms = -900, pid = {}, container = \"job-{client}\" }},",
                4_000 + u32::from(client)
            );
        }
        let text = format!(
            "about = \"a model\"\nexchanges = []\n{uplinks}clients = [\n{clients}]\ncontainers = [\n{containers}]\nprocesses = [\n\
             {processes}]\nconnects = [\n{connects}]\ncounted = [\n{counted}]\npackets = [\n{packets}]\n"
        );
        Ok((Scenario::parse(&text).with_context(|| text.clone())?, truths))
    }

    /// The packets of one connection; with what error its connect fails, and when that is known.
    fn connection(&self, ask: &Ask, at: u32, port: u16, writer: &mut Writer) -> (Vec<Truth>, Option<u16>, u32) {
        let mut truth = Truth {
            client: ask.client,
            what: ask.what,
            port,
            status: None,
            late: None,
            asked: false,
            rules: Vec::new(),
        };
        let is_host = writer.is_host;
        let fate = if is_host && ask.fate == Fate::Proxied { Fate::Answered } else { ask.fate };
        let (first, hook) = if is_host { ("", "OUTPUT") } else { ("\"docker0 ingress 64\", ", "FORWARD") };
        let ip = if self.v6 { "ip6" } else { "ip" };
        let by = if hook == "FORWARD" { format!("{ip}_forward") } else { format!("{ip}_local_out") };
        let dropped =
            |what: &str, interface: &str, ttl: u8| format!("{first}\"drop {what} {interface} {ttl} by {by}\"");
        let firewall = dropped(
            "nf_hook_slow NETFILTER_DROP",
            if is_host { "-" } else { "docker0" },
            if is_host { 64 } else { 63 },
        );
        let repeats = [0, 1_000];
        let gives_up = (Some(110), at + 2_000);
        match fate {
            Fate::FirewallOnConnect => {
                for (again, later) in repeats.iter().enumerate() {
                    writer.packet(at + later, "to = \"syn\"", &firewall, if again > 0 { ", again = true" } else { "" });
                }
                truth.rules = vec!["firewall-drop"];
                return (vec![truth], gives_up.0, gives_up.1);
            }
            Fate::Rejected => {
                writer.packet(at, "to = \"syn\"", &firewall, "");
                if !is_host {
                    writer.packet(at, "from = \"rst\"", "\"docker0 egress 64\"", "");
                }
                truth.rules = vec!["refused", "firewall-drop"];
                return (vec![truth], Some(111), at + 1);
            }
            Fate::NoRoute if !is_host && !self.v6 => {
                writer.packet(at, "to = \"syn\"", &dropped("ip_error IP_INNOROUTES", "docker0", 64), "");
                writer.packet(at, "from = \"icmp 3 0 172.17.0.1\"", "\"docker0 egress 64\"", "");
                truth.rules = vec!["no-route", "refused"];
                return (vec![truth], Some(101), at + 1);
            }
            Fate::RefusedBeyond => {
                writer.to(at, "syn", "");
                writer.from(at + 1, "rst", 64, "");
                truth.rules = vec!["refused"];
                return (vec![truth], Some(111), at + 1);
            }
            Fate::UnansweredConnect => {
                for (again, later) in repeats.iter().enumerate() {
                    writer.to(at + later, "syn", if again > 0 { ", again = true" } else { "" });
                }
                truth.rules = vec!["unanswered"];
                return (vec![truth], gives_up.0, gives_up.1);
            }
            Fate::ReversePath if !self.v6 => {
                for (again, later) in repeats.iter().enumerate() {
                    let again = if again > 0 { ", again = true" } else { "" };
                    writer.to(at + later, "syn", again);
                    let at_uplink = "\"ens5 ingress 64\", \"drop ip_rcv_finish_core IP_RPFILTER ens5 64\"";
                    writer.packet(at + later + 1, "from = \"syn-ack\"", at_uplink, again);
                }
                truth.rules = vec!["reverse-path"];
                return (vec![truth], gives_up.0, gives_up.1);
            }
            _ => {}
        }
        if fate == Fate::Proxied {
            // Packets are seen at a bridge before they are redirected, and their answers after that was taken back.
            writer.packet(at, "to = \"syn\"", "\"docker0 ingress 64\"", "");
            writer.packet(at + 1, "from = \"syn-ack\"", "\"docker0 egress 64\"", "");
            writer.packet(at + 2, "to = \"ack\"", "\"docker0 ingress 64\"", "");
        } else {
            writer.to(at, "syn", "");
            writer.from(at + 1, "syn-ack", 64, "");
            writer.to(at + 2, "ack", "");
        }
        let mut truths = vec![truth];
        self.request((ask.what, fate), at + 3, &mut truths[0], writer);
        let end = at + 7;
        match (truths[0].status, ask.goes_on) {
            (Some(_), true) => {
                let mut next = Truth { what: What::Role, ..truths[0].clone() };
                (next.status, next.asked, next.rules) = (None, false, Vec::new());
                let fate = if fate == Fate::Proxied { fate } else { Fate::Answered };
                self.request((What::Role, fate), end, &mut next, writer);
                writer.leaves(end + 4);
                truths.push(next);
            }
            (Some(_), false) => writer.leaves(end),
            (None, _) => {}
        }
        (truths, None, at + 2)
    }

    /// A request on an open connection, and what becomes of it; the client leaves if no answer comes.
    fn request(&self, (what, fate): (What, Fate), at: u32, truth: &mut Truth, writer: &mut Writer) {
        let is_host = writer.is_host;
        let ip = if self.v6 { "ip6" } else { "ip" };
        let (words, more) = match what {
            What::Token => ("PUT /latest/api/token", ""),
            What::V1 => ("GET /latest/meta-data/", ""),
            What::V2 => ("GET /latest/meta-data/", ", token = true"),
            What::Role => ("GET /latest/meta-data/iam/security-credentials/ci", ", token = true"),
        };
        truth.asked = true;
        if fate == Fate::Proxied {
            writer.packet(at, &format!("to = \"{words}\""), "\"docker0 ingress 64\"", more);
            writer.packet(at + 2, "from = \"200\"", "\"docker0 egress 64\"", ", server = \"kube2iam\"");
            writer.packet(at + 3, "to = \"ack\"", "\"docker0 ingress 64\"", "");
            (writer.received, writer.acked) = (writer.received + RESPONSE, writer.acked + REQUEST);
            (truth.status, truth.rules) = (Some(200), vec!["answered-locally"]);
            return;
        }
        writer.to(at, words, more);
        let status = if fate == Fate::Throttled { 503 } else { self.status(what) };
        let ttl = if what == What::Token && status == 200 { self.hop_limit } else { 64 };
        let left = at + PATIENCE;
        let answer = format!("from = \"{status}\"");
        let spent = !is_host && ttl == 1;
        let copies = [(at + 2, ""), (at + 202, ", again = true"), (at + 602, ", again = true")];
        let firewall = format!("\"ens5 ingress {ttl}\", \"drop nf_hook_slow NETFILTER_DROP ens5 {}\"", ttl.max(2) - 1);
        match fate {
            Fate::UnansweredRequest => {
                writer.to(at + 200, words, &format!("{more}, again = true"));
                writer.leaves(left);
                truth.rules = vec!["unanswered"];
            }
            _ if spent && fate != Fate::AnsweredLate => {
                for (ms, again) in copies {
                    let way = format!("\"ens5 ingress 1\", \"drop {ip}_forward IP_INHDR ens5 1\"");
                    writer.packet(ms, &answer, &way, again);
                }
                writer.leaves(left);
                truth.rules = vec!["hop-limit-too-low"];
            }
            Fate::FirewallOnAnswer => {
                for (ms, again) in copies {
                    writer.packet(ms, &answer, &firewall, again);
                }
                writer.leaves(left);
                truth.rules = vec!["firewall-drop"];
                if ttl <= 2 {
                    // It would not have come far anyway: both are true.
                    truth.rules.push("hop-limit-too-low");
                }
            }
            Fate::AnsweredLate => {
                writer.leaves(left);
                writer.from(left + 300, &status.to_string(), ttl.max(3), "");
                writer.packet(
                    left + 301,
                    "to = \"rst\"",
                    if is_host { "\"ens5 egress 64\"" } else { "\"docker0 ingress 64\", \"ens5 egress 63\"" },
                    // Without ACK, as a host without the socket sends it.
                    ", flags = 4",
                );
                (truth.late, truth.rules) = (Some(status), self.rules(what, status, 64, is_host));
                truth.rules.push("slow-answer");
            }
            _ => {
                truth.rules = self.rules(what, status, ttl, is_host);
                match fate {
                    Fate::SecondCopy => {
                        writer.packet(at + 2, &answer, &firewall, "");
                        writer.from(at + 3, &status.to_string(), ttl, ", again = true");
                        truth.rules.extend(["firewall-drop", "slow-answer"]);
                    }
                    Fate::CopyDropped if !is_host => {
                        let copy = format!("\"drop packet_rcv PACKET_SOCK_ERROR docker0 {}\"", ttl - 1);
                        let way = format!("\"ens5 ingress {ttl}\", \"docker0 egress {}\", {copy}", ttl - 1);
                        writer.packet(at + 2, &answer, &way, ", lost = false");
                    }
                    _ => writer.from(at + 2, &status.to_string(), ttl, ""),
                }
                writer.to(at + 3, "ack", "");
                (writer.received, writer.acked) = (writer.received + RESPONSE, writer.acked + REQUEST);
                truth.status = Some(status);
            }
        }
    }

    /// Rules that may speak of an answer that arrived.
    fn rules(&self, what: What, status: u16, ttl: u8, is_host: bool) -> Vec<&'static str> {
        let mut rules = match (what, status) {
            (_, 503) => vec!["throttled"],
            (What::Token, 403) => vec!["imds-disabled", "token-request-refused"],
            (_, 403) => vec!["imds-disabled"],
            (What::V1, 401) => vec!["imdsv1-refused"],
            (What::V1, 200) => vec!["imdsv1-used"],
            (What::Role, 404) => vec!["no-role"],
            _ => Vec::new(),
        };
        if ttl == if is_host { 1 } else { 2 } {
            rules.push("hop-budget-spent");
        }
        rules
    }
}
