//! Which metrics are there?

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::finding::RULES;

/// What every name of ours begins with.
const PREFIX: &str = "imds_trace";

/// What is asked for, as JSON Lines have it.
pub const ASKED: [&str; 4] = ["token", "v2", "v1", "other"];
/// What came of it; see [`super::outcome`].
pub const OUTCOMES: [&str; 4] = ["answered", "error", "unproved", "unanswered"];
/// What could not be kept, as JSON Lines have it.
pub const LOSSES: [&str; 3] = ["ring_buffer", "unreadable", "state_evicted"];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Came {
    pub imds: &'static str,
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CameOf {
    pub workload: String,
    pub imds: &'static str,
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Found {
    pub rule: &'static str,
    pub severity: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FoundOf {
    pub workload: String,
    pub rule: &'static str,
    pub severity: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Workload {
    pub workload: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct What {
    pub what: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Info {
    pub version: String,
    pub kernel: String,
}

/// No label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Alone {}

/// A level that is not there until it is known.
pub type Level = Family<Alone, Gauge>;
/// The same, of seconds.
pub type Seconds = Family<Alone, Gauge<f64, AtomicU64>>;

/// All metrics. Those without a workload are there from the start, with 0: a rise from nothing is none to Prometheus.
#[derive(Debug, Default)]
pub struct Families {
    pub exchanges: Family<Came, Counter>,
    pub revised: Family<Came, Counter>,
    pub exchanges_of: Family<CameOf, Counter>,
    pub revised_of: Family<CameOf, Counter>,
    pub findings: Family<Found, Gauge>,
    pub findings_of: Family<FoundOf, Gauge>,
    pub observed: Level,
    pub needed: Level,
    pub needed_of: Family<Workload, Gauge>,
    pub lost: Family<What, Counter>,
    pub unseen: Counter,
    pub hooks: Level,
    pub missing: Level,
    pub watched: Seconds,
    pub since: Seconds,
    pub info: Family<Info, Gauge>,
    pub cpu: Family<Alone, Counter<f64, AtomicU64>>,
    pub memory: Level,
}

impl Families {
    /// With a registry that encodes them.
    pub fn registered() -> (Self, Registry) {
        let families = Self::default();
        let mut registry = Registry::default();
        families.register(registry.sub_registry_with_prefix(PREFIX));
        // As Prometheus' own clients call them.
        registry.register("process_cpu_seconds", "CPU time that imds-trace has used", families.cpu.clone());
        registry.register("process_resident_memory_bytes", "Memory of imds-trace", families.memory.clone());
        families.begin();
        (families, registry)
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "exchanges",
            "Requests to IMDS, by what was asked for and what came of them",
            self.exchanges.clone(),
        );
        registry.register(
            "exchanges_revised",
            "Of these, those of which something else became known later: not to be counted",
            self.revised.clone(),
        );
        registry.register("workload_exchanges", "Requests to IMDS of a workload", self.exchanges_of.clone());
        registry.register(
            "workload_exchanges_revised",
            "Of these, those of which something else became known later",
            self.revised_of.clone(),
        );
        registry.register("findings", "Findings that hold, by rule", self.findings.clone());
        registry.register("workload_findings", "Findings about a workload that hold", self.findings_of.clone());
        registry.register("hop_limit_observed", "HttpPutResponseHopLimit, as read off the wire", self.observed.clone());
        registry.register(
            "hop_limit_needed",
            "HttpPutResponseHopLimit with which every client seen works",
            self.needed.clone(),
        );
        registry.register(
            "workload_hop_limit_needed",
            "HttpPutResponseHopLimit that a workload needs",
            self.needed_of.clone(),
        );
        registry.register(
            "lost",
            "What could not be kept: unless it is 0, the rest may be incomplete",
            self.lost.clone(),
        );
        registry.register(
            "unseen_connections",
            "Connections to IMDS that sockets told of and no hook saw",
            self.unseen.clone(),
        );
        registry.register("hooks", "Places where something is attached", self.hooks.clone());
        registry.register("hooks_missing", "Places where nothing could be attached", self.missing.clone());
        registry.register(
            "watched_seconds",
            "How long every interface towards IMDS was watched; known at the end",
            self.watched.clone(),
        );
        registry.register("ready_timestamp_seconds", "When everything was attached", self.since.clone());
        registry.register("info", "Which imds-trace watches which kernel", self.info.clone());
    }

    fn begin(&self) {
        for imds in ASKED {
            for outcome in OUTCOMES {
                let came = Came { imds, outcome };
                drop(self.exchanges.get_or_create(&came));
                drop(self.revised.get_or_create(&came));
            }
        }
        for rule in RULES {
            drop(self.findings.get_or_create(&Found { rule: rule.id, severity: super::severity(rule.severity) }));
        }
        for what in LOSSES {
            drop(self.lost.get_or_create(&What { what }));
        }
    }
}
