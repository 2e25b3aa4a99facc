//! What is told of a run, and what came of it? The one place between the events and the outputs, which only write.
//!
//! What is shown is told at once, and counted when the last word on it was said: exchanges and findings are told again when their
//! outcome changes. What was asserted is judged by all that happened, shown or not.

mod sieve;

use crate::config::{Settings, Telling};
use crate::event::{End, Event, HostSum, Report};
use crate::exchange::ExchangeId;
use crate::expect::Expectations;
use crate::finding::Severity;
use crate::net::{BootTime, Timestamp};
use crate::output::{Error, Outputs, Own};
use crate::printable::printable;
use crate::report::{Grouping, LastWords, Tallies};
use crate::what_if::Needs;
use sieve::Sieve;

/// Bytes of a sentence on stderr.
const MAX_SHOWN: usize = 2048;
/// Senders of packets that are no TCP told at most, of several runs together.
const MAX_OTHER: usize = 64;

/// What came of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Something that was asserted (`--expect`) did not hold.
    pub broken: bool,
    /// An error was found, and that is a failure (`--exit-code`).
    pub erred: bool,
}

impl Judged {
    /// Of two hosts together.
    pub fn and(self, other: Self) -> Self {
        Self { broken: self.broken || other.broken, erred: self.erred || other.erred }
    }

    /// The exit code, if nothing else is to be said.
    pub fn code(self) -> u8 {
        u8::from(self.broken || self.erred)
    }
}

/// Takes the events of a run, or of several of one host, or of several hosts one after the other.
pub struct Reporter {
    outputs: Outputs,
    telling: Telling,
    boot_time: BootTime,
    /// What the host is called, if there is one.
    host: Option<String>,
    /// Those that are over, where there are several.
    hosts: Option<Vec<HostSum>>,
    sieve: Sieve,
    exit_code: bool,
    /// All that happened, where only a part of it is shown.
    heard: LastWords,
    exchanges: u64,
    errors: u64,
    expectations: Expectations,
    /// What is shown.
    shown: LastWords,
    shown_exchanges: u64,
    tallies: Tallies,
    groups: Option<Grouping>,
    /// How the instance might be set, and what those who are shown need.
    what_if: Vec<Settings>,
    needs: Needs,
    end: Option<(Timestamp, End)>,
}

impl Reporter {
    /// Opens the outputs that were asked for.
    pub fn open(telling: &Telling, boot_time: BootTime) -> Result<Self, Error> {
        Ok(Self::of(Outputs::open(&telling.outputs, boot_time)?, telling.clone(), boot_time))
    }

    fn of(outputs: Outputs, telling: Telling, boot_time: BootTime) -> Self {
        Self {
            outputs,
            host: None,
            hosts: None,
            sieve: Sieve::new(telling.filter.clone(), boot_time),
            exit_code: telling.exit_code,
            heard: LastWords::default(),
            exchanges: 0,
            errors: 0,
            expectations: Expectations::new(telling.expectations.clone()),
            shown: LastWords::default(),
            shown_exchanges: 0,
            tallies: Tallies::default(),
            groups: telling.group_by.map(Grouping::new),
            what_if: telling.what_if.clone(),
            needs: Needs::default(),
            end: None,
            telling,
            boot_time,
        }
    }

    /// From now on it is about this host, and nothing that was before counts for it. Is it one of several?
    pub fn begin_host(&mut self, at: Timestamp, name: &str, is_one_of_several: bool) -> Result<(), Error> {
        let (outputs, hosts) = (std::mem::take(&mut self.outputs), self.hosts.take());
        *self = Self::of(outputs, self.telling.clone(), self.boot_time);
        self.host = Some(name.to_owned());
        if is_one_of_several {
            self.hosts = Some(hosts.unwrap_or_default());
            self.outputs.host(at, name)?;
        }
        Ok(())
    }

    /// Tells the sum of several hosts.
    pub fn finish_hosts(&mut self) -> Result<(), Error> {
        if let Some(hosts) = self.hosts.take() {
            self.outputs.sum(&hosts)?;
            self.outputs.flush()?;
        }
        Ok(())
    }

    /// Does any output tell packets?
    pub fn wants_packets(&self) -> bool {
        self.outputs.want_packets()
    }

    /// From now on, that nobody reads stdout any more ends only what went there.
    pub fn outlive_reader(&mut self) {
        self.outputs.outlive_reader();
    }

    /// Takes an event; tells what of it is to be shown.
    pub fn take(&mut self, event: &Event) -> Result<(), Error> {
        match event {
            Event::End(at, end) => {
                self.end(*at, end);
                return Ok(());
            }
            Event::Settled(exchanges) => {
                self.settle(exchanges);
                return Ok(());
            }
            Event::Exchange(_) | Event::Finding(..) => {}
            event => {
                self.expectations.count(event);
                self.count_needs(event);
            }
        }
        if self.sieve.is_open() {
            return self.show(event);
        }
        if let Some(settled) = self.heard.hear(event) {
            self.count(&settled);
        }
        self.sieve.sift(event).iter().try_for_each(|event| self.show(event))
    }

    /// Takes what `run` says, until something cannot be told.
    pub fn take_all(&mut self, run: impl FnOnce(&mut dyn FnMut(&Event))) -> Result<(), Error> {
        let mut result = Ok(());
        run(&mut |event| {
            if result.is_ok() {
                result = self.take(event);
            }
        });
        result
    }

    /// Tells how it stands now, where somebody looks at that. Gives the page, if there is one.
    pub fn publish(&mut self, own: fn() -> Own) -> Result<Option<String>, Error> {
        self.outputs.publish(own)
    }

    /// Hands everything told so far to the system.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.outputs.flush()
    }

    /// Tells the report. `not_intact` is what is wrong with the recording behind it, a sentence each.
    pub fn finish(&mut self, not_intact: Vec<String>) -> Result<Judged, Error> {
        let Some((at, report)) = self.conclude(not_intact) else {
            return Ok(Judged { broken: false, erred: false });
        };
        let broken = self.say_broken(&report);
        self.say_hidden(&report);
        self.outputs.report(at, &report)?;
        if let (Some(hosts), Some(host)) = (&mut self.hosts, &self.host) {
            hosts.push(HostSum::of(host, at, &report));
        }
        self.outputs.flush()?;
        Ok(Judged { broken, erred: self.exit_code && self.errors > 0 })
    }

    /// When it all ended and what came of it; nothing if no run came to its end.
    pub fn conclude(&mut self, not_intact: Vec<String>) -> Option<(Timestamp, Report)> {
        let (at, end) = self.end.take()?;
        for event in self.heard.take() {
            self.count(&event);
        }
        for event in self.shown.take() {
            self.count_shown(&event);
        }
        let expectations = self.expectations.judge(at, &end);
        let what_if =
            self.what_if.iter().map(|settings| self.needs.judge(*settings, at, end.lost, &|_| true)).collect();
        let report = Report {
            hidden: self.exchanges.saturating_sub(self.shown_exchanges),
            broken: not_intact,
            groups: self.groups.take().map(|groups| groups.finish(self.host.clone())),
            expectations,
            what_if,
            ..self.tallies.finish(end)
        };
        Some((at, report))
    }

    /// Counts the last words on these exchanges.
    fn settle(&mut self, exchanges: &[ExchangeId]) {
        for event in self.heard.settle(exchanges) {
            self.count(&event);
        }
        for event in self.shown.settle(exchanges) {
            self.count_shown(&event);
        }
    }

    /// Several runs end with what they lost together.
    fn end(&mut self, at: Timestamp, end: &End) {
        let Some((last, known)) = &mut self.end else {
            self.end = Some((at, end.clone()));
            return;
        };
        *last = at.max(*last);
        known.lost.add(end.lost);
        known.watched.extend(&end.watched);
        known.losses.extend(&end.losses);
        known.unwatched = end.unwatched.or(known.unwatched);
        known.spent = end.spent.and(known.spent);
        let room = MAX_OTHER.saturating_sub(known.other.len());
        known.other.extend(end.other.iter().take(room).cloned());
    }

    /// Counts the last word on something.
    fn count(&mut self, event: &Event) {
        match event {
            Event::Exchange(_) => self.exchanges += 1,
            Event::Finding(_, finding) if finding.severity == Severity::Error && finding.count > 0 => self.errors += 1,
            _ => {}
        }
        self.expectations.count(event);
    }

    fn show(&mut self, event: &Event) -> Result<(), Error> {
        match event {
            Event::Exchange(_) | Event::Finding(..) => {
                if let Some(settled) = self.shown.hear(event) {
                    self.count_shown(&settled);
                }
            }
            event => self.tallies.count(event),
        }
        self.outputs.tell(event)
    }

    fn count_shown(&mut self, event: &Event) {
        if self.sieve.is_open() {
            self.count(event);
        }
        self.tallies.count(event);
        self.count_needs(event);
        if let Event::Exchange(_) = event {
            self.shown_exchanges += 1;
            if let Some(groups) = &mut self.groups {
                groups.count(event);
            }
        }
    }

    /// Says on stderr that the filter fits nothing of what there was, if nobody would read it on stdout: it may be misspelt.
    fn say_hidden(&self, report: &Report) {
        let is_nothing = report.subjects.is_empty() && report.findings.is_empty();
        if is_nothing && report.hidden > 0 && !self.outputs.are_read() {
            crate::say!(
                "imds-trace: nothing that was seen fits the filter; exchanges that are not shown: {}",
                report.hidden
            );
        }
    }

    /// Of those who are shown, as everything else of the report.
    fn count_needs(&mut self, event: &Event) {
        let shown = match event {
            Event::Unseen(_, unseen) => self.sieve.shows_one(&unseen.who),
            _ => true,
        };
        if shown && !self.what_if.is_empty() {
            self.needs.count(event);
        }
    }

    /// Did something that was asserted not hold? Says so on stderr if nobody would read it on stdout.
    fn say_broken(&self, report: &Report) -> bool {
        let mut broken = false;
        for asserted in report.expectations.iter().filter(|asserted| !asserted.held) {
            broken = true;
            if !self.outputs.are_read() {
                let (expect, why) = (printable(&asserted.expect, MAX_SHOWN), printable(&asserted.why, MAX_SHOWN));
                crate::say!("imds-trace: expected {expect}: NOT HELD. {why}");
            }
        }
        broken
    }
}
