//! How is it told to Prometheus? How it stands at this moment, as one page of its text format.
//!
//! Counters only rise. Of an exchange whose outcome changes the new one is counted, too, and the old one as revised: what stands is the
//! difference. Labels are few whatever containers are called: see [`workload`].

mod families;
mod workload;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::{self, Write};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use super::{Kind, Output, Own};
use crate::event::{Event, ExchangeEvent, Lost, Ready, Report};
use crate::exchange::{ExchangeId, Imds};
use crate::finding::{Finding, FindingId, HopLimit, Severity};
use crate::net::{BootTime, Timestamp};
use crate::printable::printable;
use families::{Alone, Came, CameOf, Families, Found, FoundOf, Info, Level, What, Workload};
use workload::Workloads;

/// The kind.
pub const KIND: Kind = Kind {
    name: "metrics",
    explain: "Prometheus; a PATH that ends in .prom, for node_exporter's textfile collector, or ADDR:PORT, to be asked over HTTP while live",
    needs_path: true,
    packets: false,
    verbatim: true,
    several: false,
    generated: false,
    open: |stream, boot_time| Box::new(Metrics::new(stream, boot_time)),
};

/// Exchanges whose outcome may still change at most, as the report has it: older ones are settled.
const MAX_EXCHANGES: usize = 2_048;
/// Findings that may still change at most.
const MAX_FINDINGS: usize = 8_192;
/// Bytes of a version.
const MAX_VERSION: usize = 64;

struct Metrics {
    stream: Box<dyn Write>,
    boot_time: BootTime,
    registry: Registry,
    families: Families,
    workloads: Workloads,
    exchanges: HashMap<ExchangeId, CameOf>,
    in_order: VecDeque<ExchangeId>,
    findings: HashMap<FindingId, FoundOf>,
    hop_limit: HopLimit,
    /// Of the runs before this one, and of this one.
    lost: [Lost; 2],
}

impl Output for Metrics {
    fn tell(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Ready(at, ready) => self.ready(*at, ready),
            Event::Exchange(event) => self.exchange(event),
            Event::Finding(_, finding) => self.finding(finding),
            Event::Unseen(..) => {
                self.families.unseen.inc();
            }
            Event::Loss(_, lost) => self.loss(*lost),
            Event::Settled(_) | Event::Packet(_) | Event::Probed(..) | Event::End(..) => {}
        }
        Ok(())
    }

    fn report(&mut self, _: Timestamp, report: &Report) -> io::Result<()> {
        self.set_lost(report.lost);
        let watched = report.coverage.watched.iter().map(|span| span.to.since(span.from).as_secs_f64());
        self.families.watched.get_or_create(&Alone {}).set(watched.sum());
        let page = self.page()?;
        self.stream.write_all(page.as_bytes())
    }

    fn publish(&mut self, own: fn() -> Own) -> io::Result<Option<String>> {
        let own = own();
        let cpu = self.families.cpu.get_or_create_owned(&Alone {});
        cpu.inc_by((own.cpu.as_secs_f64() - cpu.get()).max(0.0));
        set(&self.families.memory, own.memory);
        let page = self.page()?;
        self.stream.write_all(page.as_bytes())?;
        self.stream.flush()?;
        Ok(Some(page))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Metrics {
    fn new(stream: Box<dyn Write>, boot_time: BootTime) -> Self {
        let (families, registry) = Families::registered();
        Self {
            stream,
            boot_time,
            registry,
            families,
            workloads: Workloads::default(),
            exchanges: HashMap::new(),
            in_order: VecDeque::new(),
            findings: HashMap::new(),
            hop_limit: HopLimit::default(),
            lost: [Lost::default(); 2],
        }
    }

    fn ready(&mut self, at: Timestamp, ready: &Ready) {
        let number = |many: usize| u64::try_from(many).unwrap_or(u64::MAX);
        set(&self.families.hooks, number(ready.hooks.len()));
        set(&self.families.missing, number(ready.missing.len()));
        let since = i128::from(self.boot_time.0) + i128::from(at.0);
        self.families.since.get_or_create(&Alone {}).set(since as f64 / 1e9);
        let text = |text: &Option<String>| printable(text.as_deref().unwrap_or_default(), MAX_VERSION);
        let info = Info { version: text(&ready.version), kernel: text(&ready.kernel) };
        self.families.info.clear();
        self.families.info.get_or_create(&info).set(1);
    }

    fn exchange(&mut self, event: &ExchangeEvent) {
        let (imds, outcome) = (imds(event), outcome(event));
        let workload = self.workloads.of(&event.who);
        self.hop_limit(event.hop_limit, &workload);
        let now = CameOf { workload, imds, outcome };
        let id = event.exchange.id;
        match self.exchanges.insert(id, now.clone()) {
            Some(before) if before == now => return,
            Some(before) => {
                self.families.revised.get_or_create(&came(&before)).inc();
                self.families.revised_of.get_or_create(&before).inc();
            }
            None => self.in_order.push_back(id),
        }
        self.families.exchanges.get_or_create(&came(&now)).inc();
        self.families.exchanges_of.get_or_create(&now).inc();
        if self.in_order.len() > MAX_EXCHANGES
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.exchanges.remove(&oldest);
        }
    }

    /// Withdrawn with a count of 0, and perhaps found again.
    fn finding(&mut self, finding: &Finding) {
        let workload = self.workloads.of(&finding.who);
        self.hop_limit(finding.hop_limit, &workload);
        let now = FoundOf { workload, rule: finding.rule, severity: severity(finding.severity) };
        let before = self.findings.remove(&finding.id);
        let stands = finding.count > 0 && self.findings.len() < MAX_FINDINGS;
        if let Some(before) = before {
            self.families.findings.get_or_create(&found(&before)).dec();
            self.families.findings_of.get_or_create(&before).dec();
        }
        if stands {
            self.families.findings.get_or_create(&found(&now)).inc();
            self.families.findings_of.get_or_create(&now).inc();
            self.findings.insert(finding.id, now);
        }
    }

    fn hop_limit(&mut self, seen: HopLimit, workload: &str) {
        self.hop_limit = self.hop_limit.and(seen);
        if let Some(observed) = self.hop_limit.observed {
            set(&self.families.observed, observed.0.into());
        }
        if let Some(needed) = self.hop_limit.needed {
            set(&self.families.needed, needed.0.into());
        }
        if let Some(needed) = seen.needed {
            let known = self.families.needed_of.get_or_create_owned(&Workload { workload: workload.to_owned() });
            known.set(known.get().max(needed.0.into()));
        }
    }

    /// Each run begins to count anew.
    fn loss(&mut self, lost: Lost) {
        let [before, known] = &mut self.lost;
        if lost.sum() < known.sum() {
            before.add(*known);
        }
        *known = lost;
        let mut all = *before;
        all.add(lost);
        self.set_lost(all);
    }

    fn set_lost(&mut self, lost: Lost) {
        let Lost { ring_buffer, unreadable, state_evicted } = lost;
        for (what, count) in families::LOSSES.into_iter().zip([ring_buffer, unreadable, state_evicted]) {
            let counter = self.families.lost.get_or_create_owned(&What { what });
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }

    fn page(&self) -> io::Result<String> {
        let mut text = String::new();
        encode(&mut text, &self.registry).map_err(io::Error::other)?;
        Ok(plain(&text))
    }
}

fn set(level: &Level, value: u64) {
    level.get_or_create(&Alone {}).set(i64::try_from(value).unwrap_or(i64::MAX));
}

fn came(of: &CameOf) -> Came {
    Came { imds: of.imds, outcome: of.outcome }
}

fn found(of: &FoundOf) -> Found {
    Found { rule: of.rule, severity: of.severity }
}

fn imds(event: &ExchangeEvent) -> &'static str {
    match event.exchange.imds() {
        Some(Imds::Token) => "token",
        Some(Imds::V2) => "v2",
        Some(Imds::V1) => "v1",
        Some(Imds::Other) | None => "other",
    }
}

/// What came of an exchange, as the report counts it: no answer; one of which nothing shows that it arrived; an error; an answer.
fn outcome(event: &ExchangeEvent) -> &'static str {
    let exchange = &event.exchange;
    match exchange.status() {
        _ if exchange.answered.is_none() => "unanswered",
        _ if exchange.response_proof.is_none() => "unproved",
        Some(400..) => "error",
        _ => "answered",
    }
}

/// As JSON Lines have it.
fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Notice => "notice",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

/// OpenMetrics as Prometheus' own text format, which the textfile collector reads: there a counter is described by the name that it has.
fn plain(open_metrics: &str) -> String {
    let described = |line: &str| -> Option<(&'static str, String)> {
        let keyword = ["# HELP ", "# TYPE "].into_iter().find(|keyword| line.starts_with(keyword))?;
        Some((keyword, line[keyword.len()..].split(' ').next()?.to_owned()))
    };
    let is_counter = |line: &&str| line.starts_with("# TYPE ") && line.ends_with(" counter");
    let counters: BTreeSet<String> =
        open_metrics.lines().filter(is_counter).filter_map(|line| Some(described(line)?.1)).collect();
    // In an order of their own, so that two pages can be compared.
    let mut samples: Vec<&str> = Vec::new();
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let Some((keyword, name)) = described(line) else {
            samples.push(line);
            continue;
        };
        write_all(&mut text, &mut samples);
        let total = if counters.contains(&name) { "_total" } else { "" };
        text += &format!("{keyword}{name}{total}{}\n", &line[keyword.len() + name.len()..]);
    }
    write_all(&mut text, &mut samples);
    text
}

fn write_all(text: &mut String, samples: &mut Vec<&str>) {
    samples.sort_unstable();
    for sample in samples.drain(..) {
        *text += sample;
        text.push('\n');
    }
}
