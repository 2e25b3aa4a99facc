//! How is it told to programs? JSON Lines: one object a line, `type` first, `at` an RFC 3339 time with nanoseconds.
//!
//! Unknown values are `null`, never left out and never guessed.

mod what_if;

use std::io::{self, Write};

use serde::Serialize;

use super::coverage::{self, CoverageLine};
use super::{Kind, Output};
use crate::config::GroupBy;
use crate::event::{Asserted, Credentials, Group, Report};
use crate::event::{Event, ExchangeEvent, Lost, Ready};
use crate::exchange::{Delivery, Imds, Refusal, Refused, Software, Travel};
use crate::finding::{Confidence, Finding, HopLimit, Severity, TokenUse};
use crate::identity::pod::Pod;
use crate::identity::{Ancestor, Container, Key, Process};
use crate::journey::{Dropped, Fate, Hop, Join, OtherPackets};
use crate::net::{BootTime, Endpoint, Netns, Timestamp, Ttl};
use crate::printable::json_safe;
use crate::words::rfc3339;
use what_if::{WhatIfLine, WhatIfSum};

/// The kind.
pub const KIND: Kind = Kind {
    name: "json",
    explain: "JSON Lines, for programs",
    needs_path: false,
    packets: false,
    verbatim: true,
    generated: false,
    open: |stream, boot_time| Box::new(Json { stream, boot_time, line: Vec::new() }),
};

struct Json {
    stream: Box<dyn Write>,
    boot_time: BootTime,
    line: Vec<u8>,
}

impl Output for Json {
    fn tell(&mut self, event: &Event) -> io::Result<()> {
        let boot_time = self.boot_time;
        let at = |at: &Timestamp| rfc3339(*at, boot_time);
        let line = match event {
            Event::Ready(when, ready) => Line::Ready { at: at(when), ready },
            Event::Packet(_) => return Ok(()),
            Event::Exchange(event) => Line::Exchange(Box::new(ExchangeLine {
                process: process(&event.who.process, self.boot_time),
                ..exchange(at(&event.exchange.opened), event)
            })),
            Event::Finding(when, finding) => Line::Finding(Box::new(FindingLine {
                first: at(&finding.first),
                last: at(&finding.last),
                process: process(&finding.who.process, self.boot_time),
                ..finding_line(at(when), finding)
            })),
            Event::Unseen(when, unseen) => Line::Unseen {
                at: at(when),
                established: at(&unseen.established),
                endpoint: &unseen.endpoint,
                container: unseen.who.told(),
                process: process(&unseen.who.process, boot_time),
                received: unseen.counted.map(|(received, _)| received),
                acked: unseen.counted.map(|(_, acked)| acked),
            },
            Event::Loss(when, lost) => Line::Loss { at: at(when), lost },
            Event::Probed(when, probed) => Line::Probe {
                at: at(when),
                target: &probed.target,
                reached: probed.reached,
                token: probed.token,
                read: probed.read,
                hop_limit: probed.hop_limit,
                summary: &probed.summary,
            },
            Event::End(..) => return Ok(()),
        };
        self.write(&line)
    }

    fn report(&mut self, when: Timestamp, report: &Report) -> io::Result<()> {
        let boot_time = self.boot_time;
        let at = |time: &Timestamp| rfc3339(*time, boot_time);
        let groups = report.groups.iter().flat_map(|groups| groups.groups.iter().map(|group| (groups.by, group)));
        for (by, group) in groups {
            let (first, last) = (at(&group.first), at(&group.last));
            let taken = [group.credentials.first, group.credentials.last].map(|when| when.map(|when| at(&when)));
            let process = process(&group.who.process, boot_time).filter(|_| by == GroupBy::Process);
            let line = GroupLine { at: at(&when), process, first, last, ..group_line(by, group, taken) };
            self.write(&Line::Group(Box::new(line)))?;
        }
        for what_if in &report.what_if {
            for client in &what_if.clients {
                let (first, last) = (at(&client.first), at(&client.last));
                let process = process(&client.who.process, boot_time);
                let line = what_if::line(at(&when), what_if, client, first, last, process);
                self.write(&Line::WhatIf(Box::new(line)))?;
            }
            self.write(&Line::WhatIfSum(what_if::sum(at(&when), what_if)))?;
        }
        let coverage = coverage::line(&report.coverage, when, boot_time);
        self.write(&Line::Report(report_line(at(&when), report, coverage)))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Json {
    fn write(&mut self, line: &Line<'_>) -> io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, &line)?;
        if !self.line.is_ascii() {
            let safe = json_safe(&String::from_utf8_lossy(&self.line)).into_owned();
            self.line = safe.into_bytes();
        }
        self.line.push(b'\n');
        self.stream.write_all(&self.line)
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    Ready {
        at: String,
        #[serde(flatten)]
        ready: &'a Ready,
    },
    Exchange(Box<ExchangeLine<'a>>),
    Finding(Box<FindingLine<'a>>),
    Unseen {
        at: String,
        established: String,
        endpoint: &'a Endpoint,
        container: Option<&'a Container>,
        process: Option<ProcessLine<'a>>,
        received: Option<u64>,
        acked: Option<u64>,
    },
    Loss {
        at: String,
        lost: &'a Lost,
    },
    Probe {
        at: String,
        target: &'a str,
        reached: bool,
        token: Option<u16>,
        read: Option<u16>,
        hop_limit: HopLimit,
        summary: &'a str,
    },
    Group(Box<GroupLine<'a>>),
    WhatIf(Box<WhatIfLine<'a>>),
    /// One for each `--what-if`, after the lines of its clients.
    WhatIfSum(WhatIfSum<'a>),
    Report(ReportLine<'a>),
}

#[derive(Serialize)]
struct ExchangeLine<'a> {
    at: String,
    id: u64,
    imds: Option<Imds>,
    method: Option<&'a str>,
    path: Option<&'a str>,
    status: Option<u16>,
    answered: bool,
    duration_ms: Option<f64>,
    user_agent: Option<&'a str>,
    /// What the User-Agent hints at; never an identity.
    software: Option<Software>,
    /// Did the answer come after the client had given up?
    late: bool,
    token: Option<TokenLine>,
    refused: Option<RefusalLine>,
    client: Option<&'a Endpoint>,
    endpoint: &'a Endpoint,
    container: Option<&'a Container>,
    process: Option<ProcessLine<'a>>,
    attributed_by: Key,
    request: Option<TravelLine<'a>>,
    response: Option<TravelLine<'a>>,
    hop_limit: HopLimit,
}

/// What [`Process`] says, in the same order.
#[derive(Serialize)]
struct ProcessLine<'a> {
    pid: u32,
    tid: u32,
    uid: u32,
    gid: u32,
    comm: &'a str,
    exe: Option<&'a str>,
    argv: Option<&'a [String]>,
    started: Option<String>,
    pid_in_container: Option<u32>,
    pid_namespace: Option<u32>,
    netns: Option<Netns>,
    cgroup_id: u64,
    cgroup: Option<&'a str>,
    ancestors: &'a [Ancestor],
}

/// The token that a request carried, if it was issued while tracing.
#[derive(Serialize)]
struct TokenLine {
    age_ms: f64,
    lifetime_ms: Option<f64>,
    expired: Option<bool>,
}

#[derive(Serialize)]
struct RefusalLine {
    by: &'static str,
    sender: Option<std::net::IpAddr>,
    icmp_type: Option<u8>,
    icmp_code: Option<u8>,
    from: &'static str,
}

#[derive(Serialize)]
struct TravelLine<'a> {
    fate: &'static str,
    delivery: &'static str,
    proof: Option<&'static str>,
    hops: Vec<HopLine>,
    drop: Option<DropLine<'a>>,
    copies: u64,
    join: Join,
}

#[derive(Serialize)]
struct HopLine {
    hook: String,
    ttl: Ttl,
    client: Endpoint,
}

#[derive(Serialize)]
struct DropLine<'a> {
    location: Option<&'a str>,
    reason: Option<&'a str>,
    ttl: Ttl,
    interface: Option<&'a str>,
    netns: Option<Netns>,
    /// Functions that led there, nearest first.
    callers: &'a [String],
}

#[derive(Serialize)]
struct FindingLine<'a> {
    at: String,
    rule: &'static str,
    severity: Severity,
    confidence: Confidence,
    container: Option<&'a Container>,
    process: Option<ProcessLine<'a>>,
    address: std::net::IpAddr,
    attributed_by: Key,
    count: u64,
    first: String,
    last: String,
    hop_limit: HopLimit,
    drop: Option<DropLine<'a>>,
    waited_ms: Option<f64>,
    summary: &'a str,
    remedy: &'a [String],
    lasting: &'a str,
    caution: &'a str,
    evidence: Vec<u64>,
}

#[derive(Serialize)]
struct ReportLine<'a> {
    at: String,
    containers: Vec<TallyLine<'a>>,
    coverage: CoverageLine<'a>,
    lost: u64,
    spent: SpentLine,
    other_packets: Vec<OtherLine>,
    expectations: &'a [Asserted],
    /// `null` unless something is wrong with it.
    recording: Option<RecordingLine>,
}

#[derive(Serialize)]
struct RecordingLine {
    intact: bool,
    why: String,
}

/// Exchanges counted together. What tells one group from another is there, the rest `null`.
#[derive(Serialize)]
struct GroupLine<'a> {
    at: String,
    by: &'static str,
    container: Option<&'a Container>,
    pod: Option<&'a Pod>,
    namespace: Option<&'a str>,
    workload: Option<&'a str>,
    process: Option<ProcessLine<'a>>,
    image: Option<&'a str>,
    job: Option<&'a str>,
    path: Option<&'a str>,
    address: Option<std::net::IpAddr>,
    exchanges: u64,
    answered: u64,
    token: u64,
    v2: u64,
    v1: u64,
    other: u64,
    credentials: CredentialsLine<'a>,
    first: String,
    last: String,
}

/// Requests for a role's credentials: `taken` were answered with 200 and reached the client, `over_v1` of them without a token.
#[derive(Serialize)]
struct CredentialsLine<'a> {
    asked: u64,
    taken: u64,
    over_v1: u64,
    roles: &'a [String],
    first: Option<String>,
    last: Option<String>,
}

#[derive(Serialize)]
struct TallyLine<'a> {
    container: Option<&'a Container>,
    address: std::net::IpAddr,
    exchanges: u64,
    unanswered: u64,
    hop_limit: HopLimit,
    findings: &'a [&'static str],
}

/// Packets that are no TCP.
#[derive(Serialize)]
struct OtherLine {
    source: Option<std::net::IpAddr>,
    destination: std::net::IpAddr,
    protocol: u8,
    packets: u64,
}

/// Packets lost to a used-up TTL.
#[derive(Serialize)]
struct SpentLine {
    seen: u64,
    inferred: u64,
    counted_by_kernel: Option<u64>,
    difference: Option<String>,
}

fn exchange(at: String, event: &ExchangeEvent) -> ExchangeLine<'_> {
    let exchange = &event.exchange;
    let request = exchange.request.as_ref();
    ExchangeLine {
        at,
        id: exchange.id.0,
        imds: exchange.imds(),
        method: request.map(|request| request.method.as_str()),
        path: request.map(|request| request.path.as_str()),
        status: exchange.status(),
        answered: exchange.response_proof.is_some() || exchange.is_late(),
        duration_ms: exchange.duration().map(milliseconds),
        user_agent: request.and_then(|request| request.user_agent.as_deref()),
        software: exchange.software(),
        late: exchange.is_late(),
        token: event.token.map(token),
        refused: exchange.refusal.map(refusal),
        // Of a connect that failed before its SYN no address is known.
        client: exchange.attempt.is_none().then_some(&exchange.connection.client),
        endpoint: &exchange.connection.endpoint,
        container: event.who.told(),
        process: None,
        attributed_by: event.who.by,
        request: exchange.outward.as_ref().map(|way| travel(way, exchange.request_delivery())),
        response: exchange.response_travel().map(|way| travel(way, exchange.response_delivery())),
        hop_limit: event.hop_limit,
    }
}

fn process(process: &Option<Process>, boot_time: BootTime) -> Option<ProcessLine<'_>> {
    // Taken apart whole: what a process gains must be told here.
    let Process {
        pid,
        tid,
        uid,
        gid,
        comm,
        exe,
        argv,
        started,
        pid_in_container,
        pid_namespace,
        netns,
        cgroup_id,
        cgroup,
        ancestors,
    } = process.as_ref()?;
    Some(ProcessLine {
        pid: *pid,
        tid: *tid,
        uid: *uid,
        gid: *gid,
        comm,
        exe: exe.as_deref(),
        argv: argv.as_deref(),
        started: started.map(|started| rfc3339(started, boot_time)),
        pid_in_container: *pid_in_container,
        pid_namespace: *pid_namespace,
        netns: (*netns != Netns::default()).then_some(*netns),
        cgroup_id: *cgroup_id,
        cgroup: cgroup.as_deref(),
        ancestors,
    })
}

fn token(token: TokenUse) -> TokenLine {
    TokenLine {
        age_ms: milliseconds(token.age),
        lifetime_ms: token.lifetime.map(milliseconds),
        expired: token.lifetime.map(|lifetime| token.age >= lifetime),
    }
}

fn refusal(refusal: Refusal) -> RefusalLine {
    let icmp = match refusal.how {
        Refused::Reset => None,
        Refused::Icmp(icmp) => Some(icmp),
    };
    RefusalLine {
        by: if icmp.is_some() { "icmp" } else { "reset" },
        sender: icmp.map(|icmp| icmp.sender),
        icmp_type: icmp.map(|icmp| icmp.kind),
        icmp_code: icmp.map(|icmp| icmp.code),
        from: if refusal.from_outside { "beyond" } else { "this_host" },
    }
}

fn travel(travel: &Travel, delivery: Delivery) -> TravelLine<'_> {
    let (fate, drop) = match &travel.fate {
        Fate::Delivered => ("delivered", None),
        Fate::Dropped(dropped) => ("dropped", Some(drop_line(dropped))),
        Fate::Unresolved => ("unresolved", None),
    };
    TravelLine {
        fate,
        delivery: delivery.name(),
        proof: delivery.proof(),
        hops: travel.hops.iter().map(hop).collect(),
        drop,
        copies: travel.copies,
        join: travel.join,
    }
}

fn hop(hop: &Hop) -> HopLine {
    HopLine { hook: format!("{} {}", hop.hook.interface.name, hop.hook.direction), ttl: hop.ttl, client: hop.client }
}

fn drop_line(dropped: &Dropped) -> DropLine<'_> {
    let drop = &dropped.drop;
    DropLine {
        location: drop.location.as_deref(),
        reason: drop.reason.as_deref(),
        ttl: dropped.ttl,
        interface: drop.interface.as_ref().map(|interface| &*interface.name),
        netns: (drop.netns != Netns::default()).then_some(drop.netns),
        callers: &drop.callers,
    }
}

fn finding_line(at: String, finding: &Finding) -> FindingLine<'_> {
    FindingLine {
        at,
        rule: finding.rule,
        severity: finding.severity,
        confidence: finding.says.confidence,
        container: finding.who.told(),
        process: None,
        address: finding.who.address,
        attributed_by: finding.who.by,
        count: finding.count,
        first: String::new(),
        last: String::new(),
        hop_limit: finding.hop_limit,
        drop: finding.says.drop.as_ref().map(drop_line),
        waited_ms: finding.says.waited.map(milliseconds),
        summary: &finding.says.summary,
        remedy: &finding.says.remedy,
        lasting: finding.says.lasting.as_deref().unwrap_or_default(),
        caution: finding.says.caution.as_deref().unwrap_or_default(),
        evidence: finding.evidence.iter().map(|id| id.0).collect(),
    }
}

fn group_line(by: GroupBy, group: &Group, [first, last]: [Option<String>; 2]) -> GroupLine<'_> {
    let container = group.who.container.as_ref();
    let pod = container.and_then(|container| container.pod.as_deref());
    let is_one = matches!(by, GroupBy::Container | GroupBy::Process);
    let in_kubernetes = matches!(by, GroupBy::Pod | GroupBy::Namespace | GroupBy::Workload);
    let [token, v2, v1, other] = group.asked;
    let Credentials { asked, taken, over_v1, roles, .. } = &group.credentials;
    GroupLine {
        at: String::new(),
        by: by.name(),
        container: group.who.told().filter(|_| is_one),
        pod: pod.filter(|_| by == GroupBy::Pod),
        namespace: pod.and_then(|pod| pod.namespace.as_deref()).filter(|_| in_kubernetes),
        workload: pod.and_then(|pod| pod.workload()).filter(|_| by == GroupBy::Workload),
        process: None,
        image: container.and_then(|container| container.image.as_deref()).filter(|_| is_one || by == GroupBy::Image),
        job: container.and_then(|container| container.job_id()).filter(|_| is_one || by == GroupBy::Job),
        path: group.path.as_deref(),
        address: is_one.then_some(group.who.address),
        exchanges: group.exchanges,
        answered: group.answered,
        token,
        v2,
        v1,
        other,
        credentials: CredentialsLine { asked: *asked, taken: *taken, over_v1: *over_v1, roles, first, last },
        first: String::new(),
        last: String::new(),
    }
}

fn report_line<'a>(at: String, report: &'a Report, coverage: CoverageLine<'a>) -> ReportLine<'a> {
    ReportLine {
        at,
        containers: report
            .subjects
            .iter()
            .map(|tally| TallyLine {
                container: tally.who.told(),
                address: tally.who.address,
                exchanges: tally.exchanges,
                unanswered: tally.unanswered,
                hop_limit: tally.hop_limit,
                findings: &tally.findings,
            })
            .collect(),
        coverage,
        lost: report.lost.sum(),
        spent: SpentLine {
            seen: report.spent.seen,
            inferred: report.spent.inferred,
            counted_by_kernel: report.spent.counted,
            difference: report.spent.difference(),
        },
        other_packets: report.other.iter().map(other).collect(),
        expectations: &report.expectations,
        recording: (!report.broken.is_empty()).then(|| RecordingLine { intact: false, why: report.broken.join("; ") }),
    }
}

fn other(other: &OtherPackets) -> OtherLine {
    let OtherPackets { source, destination, protocol, packets } = *other;
    OtherLine { source, destination, protocol, packets }
}

/// Milliseconds to a tenth of a microsecond.
fn milliseconds(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 1e7).round() / 1e4
}
