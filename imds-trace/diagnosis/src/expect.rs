//! Does what was asserted hold? Hears every event, shown or not, and gives a sentence about each `--expect`.
//!
//! Refuses to take silence for health: `blocked` and `v2-only` do not hold where records were lost, where nothing was seen of the
//! container they are about, or where a client that nobody could name broke them.

use std::collections::HashMap;

use crate::config::{Claim, Expectation, HOST};
use crate::event::{Attached, Event, ExchangeEvent, Lost, Probed};
use crate::exchange::{Exchange, Imds};
use crate::finding::Severity;
use crate::identity::{Attribution, Key, Subject};
use crate::journey::Dropped;
use crate::net::bounded;
use crate::report::Asserted;

/// Subjects told apart at most; the rest is counted as lost.
const MAX_SUBJECTS: usize = 8_192;
/// Clients or reasons that one sentence names at most.
const MAX_NAMED: usize = 3;
/// Bytes of a name in a sentence; Docker allows any length.
const MAX_NAME: usize = 64;
/// Digits of a container's id in a sentence, as Docker shows.
const SHORT_ID: usize = 12;
/// Longer paths are cut where they are read (`observation::redact`): what stood behind is not known.
const MAX_PATH: usize = 250;

/// What was asserted, and what was seen of everybody.
#[derive(Debug, Default)]
pub struct Expectations {
    asked: Vec<Expectation>,
    subjects: HashMap<Subject, usize>,
    seen: Vec<Seen>,
    over: u64,
    /// There was no interface to listen on when it began.
    deaf: bool,
    /// What a probe was answered, which it knows whether its packets were seen or not.
    probed: Option<Probed>,
}

/// How often, and what it was the first time.
#[derive(Debug, Default)]
struct Noted {
    first: String,
    count: u64,
}

/// What was seen of one subject.
#[derive(Debug)]
struct Seen {
    who: Attribution,
    exchanges: u64,
    /// Did it get what it asked for, once at least?
    served: bool,
    /// It did not.
    refused: Noted,
    /// Was a socket of it seen?
    known: bool,
    /// Findings of severity error.
    errors: Noted,
    /// Those that rest on its address alone: an answer to whoever had the address before may be sent again for two minutes.
    errors_by_address: Noted,
    /// A token or credentials reached it.
    granted: Noted,
    /// Something reached it that may have been a token or credentials.
    unclear: Noted,
    /// It asked for a token or credentials, or did not even get to ask, and neither reached it.
    stopped: Noted,
    /// Other answers with 200 that reached it.
    read: Noted,
    /// It asked without a token.
    v1: Noted,
    /// It was answered, and what it had asked was not seen.
    unread: Noted,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    Token,
    Credentials,
    Other,
    /// The path is not known in full.
    Unclear,
    /// The request was not seen.
    Unseen,
}

impl Expectations {
    /// Nothing seen yet.
    pub fn new(asked: Vec<Expectation>) -> Self {
        Self { asked, ..Self::default() }
    }

    /// Takes in an event.
    pub fn absorb(&mut self, event: &Event) {
        if self.asked.is_empty() {
            return;
        }
        match event {
            Event::Exchange(event) => {
                if let Some(seen) = self.of(&event.who) {
                    seen.note(event);
                }
            }
            Event::Finding(_, finding) if finding.severity == Severity::Error => {
                if let Some(seen) = self.of(&finding.who) {
                    let by_address = finding.who.by == Key::Address;
                    let noted = if by_address { &mut seen.errors_by_address } else { &mut seen.errors };
                    noted.note(|| finding.summary.clone());
                }
            }
            Event::Ready(_, ready) => {
                self.deaf =
                    !ready.hooks.iter().any(|hook| matches!(hook, Attached::Tc { .. } | Attached::Capture { .. }));
            }
            Event::Probed(_, probed) => self.probed = Some((**probed).clone()),
            // What was lost is given to `judge`, whole.
            Event::Packet(_) | Event::Finding(..) | Event::Loss(..) | Event::Report(..) => {}
        }
    }

    /// What came of each, in the order asked.
    pub fn judge(&self, lost: Lost) -> Vec<Asserted> {
        let lost = lost.sum() + self.over;
        let judged = self.asked.iter().map(|asked| {
            let scope = self.scope(asked);
            let verdict = match asked.claim {
                Claim::Reachable => reachable(&scope),
                Claim::Blocked => blocked(&scope, lost),
                Claim::V2Only => v2_only(&scope, lost),
            };
            let (held, why) = match verdict {
                Ok(why) => (true, why),
                Err(why) => (false, why),
            };
            Asserted { expect: asked.text.clone(), held, why: sentence(why) }
        });
        judged.collect()
    }

    fn scope<'a>(&'a self, asked: &'a Expectation) -> Scope<'a> {
        let named = asked.who.as_deref();
        let (within, others): (Vec<&Seen>, Vec<&Seen>) = self.seen.iter().partition(|seen| match (named, &seen.who) {
            (None, _) => true,
            (Some(name), Attribution { container: Some(container), .. }) => container.is_called(name),
            (Some(name), who) => name == HOST && who.subject() == Subject::Host,
        });
        let unknown = others.into_iter().filter(|seen| seen.who.by == Key::Unknown).collect();
        let probed = self.probed.as_ref().filter(|probed| named.is_none_or(|name| name == probed.target));
        Scope { named, within, unknown, deaf: self.deaf, probed }
    }

    fn of(&mut self, who: &Attribution) -> Option<&mut Seen> {
        let subject = who.subject();
        let index = match self.subjects.get(&subject) {
            Some(index) => *index,
            None if self.seen.len() >= MAX_SUBJECTS => {
                self.over += 1;
                return None;
            }
            None => {
                self.subjects.insert(subject, self.seen.len());
                self.seen.push(Seen::new(who));
                self.seen.len() - 1
            }
        };
        let seen = self.seen.get_mut(index)?;
        if let (Some(known), Some(told)) = (&mut seen.who.container, &who.container)
            && known.name.is_none()
        {
            *known = told.clone();
        }
        Some(seen)
    }
}

/// Who is meant by an expectation.
struct Scope<'a> {
    /// `None` is everybody.
    named: Option<&'a str>,
    within: Vec<&'a Seen>,
    /// Whom nobody could name: anybody, perhaps.
    unknown: Vec<&'a Seen>,
    deaf: bool,
    probed: Option<&'a Probed>,
}

impl<'a> Scope<'a> {
    /// Of whom something was noted; of somebody unknown, if of nobody else.
    fn which(&self, noted: fn(&Seen) -> &Noted) -> Option<(String, &'a Noted)> {
        let found = |all: &[&'a Seen]| -> Option<(String, &'a Noted)> {
            let those: Vec<&'a Seen> = all.iter().copied().filter(|seen| noted(seen).count > 0).collect();
            those.first().map(|first| (names(&those), noted(first)))
        };
        let unknown = || found(&self.unknown).map(|(who, noted)| (format!("{who}, whom nobody could name,"), noted));
        found(&self.within).or_else(unknown)
    }

    fn exchanges(&self) -> u64 {
        self.within.iter().map(|seen| seen.exchanges).sum()
    }

    /// Nothing was seen: of whom.
    fn nothing(&self) -> String {
        match self.named {
            None => "no request to IMDS was seen".to_owned(),
            Some(HOST) => "no request of this host's own processes was seen".to_owned(),
            Some(name) => format!("no request of {} was seen", bounded(name, MAX_NAME)),
        }
    }

    /// Of everybody silence is what was asked for; of one it shows nothing.
    fn silence(&self, shows_nothing: &str) -> Verdict {
        match self.named {
            None if self.deaf => Err(format!("{}, but no interface was listened on when it began", self.nothing())),
            None => Ok(self.nothing()),
            Some(_) => Err(format!("{}, so nothing shows that {shows_nothing}", self.nothing())),
        }
    }
}

/// What was seen, as a reason why it held or not.
type Verdict = Result<String, String>;

fn reachable(scope: &Scope<'_>) -> Verdict {
    match scope.probed {
        Some(probed) if scope.exchanges() == 0 && probed.reached => return Ok(probed.summary.clone()),
        Some(probed) if scope.exchanges() == 0 => return Err(probed.summary.clone()),
        None if scope.exchanges() == 0 => return Err(scope.nothing()),
        Some(_) | None => {}
    }
    for seen in &scope.within {
        let errors = seen.errors();
        if errors.count > 0 {
            return Err(format!("{} did not get through: {}", name(&seen.who), errors.first));
        }
        if !seen.served {
            let what = if seen.refused.count > 0 { &seen.refused.first } else { "nothing it asked was answered" };
            return Err(format!("{} did not get through: {what}", name(&seen.who)));
        }
    }
    Ok(format!("{} got what was asked for ({})", names(&scope.within), counted(scope.exchanges(), "exchange")))
}

fn blocked(scope: &Scope<'_>, lost: u64) -> Verdict {
    if let Some((who, granted)) = scope.which(|seen| &seen.granted) {
        return Err(format!("{who} was given a token or credentials: {}{}", granted.first, times(granted.count)));
    }
    if let Some(probed) = scope.probed.filter(|probed| probed.token == Some(200)) {
        return Err(format!("the probe was given a token: {}", probed.summary));
    }
    if let Some((who, unclear)) = scope.which(|seen| &seen.unclear) {
        return Err(format!("{who} was answered, and it cannot be told with what: {}", unclear.first));
    }
    if lost > 0 {
        return Err(format!(
            "{} lost: what is missing may have been a token or credentials that arrived",
            counted_were(lost, "record")
        ));
    }
    match scope.probed {
        // The probe itself got nothing: for that, nothing need have been seen.
        Some(probed) if scope.exchanges() == 0 => return Ok(probed.summary.clone()),
        None if scope.exchanges() == 0 => return scope.silence("it is kept out"),
        Some(_) | None => {}
    }
    let mut reasons: Vec<&str> = Vec::new();
    for seen in &scope.within {
        let stopped = [seen.errors(), &seen.stopped, &seen.refused].into_iter().find(|noted| noted.count > 0);
        let reason = stopped.map(|noted| noted.first.trim_end_matches('.'));
        reasons.extend(reason.filter(|reason| !reasons.contains(reason)));
    }
    let further = reasons.len().saturating_sub(MAX_NAMED);
    reasons.truncate(MAX_NAMED);
    let mut why = match reasons[..] {
        [] => "none was asked for".to_owned(),
        _ => reasons.join("; "),
    };
    if further > 0 {
        why += &format!("; and {further} more reasons");
    }
    let mut sentence = format!(
        "neither a token nor credentials reached {} ({}): {why}",
        names(&scope.within),
        counted(scope.exchanges(), "exchange")
    );
    if let Some((who, read)) = scope.which(|seen| &seen.read) {
        sentence += &format!("; but {who} reaches IMDS: {}", read.first);
    }
    Ok(sentence)
}

fn v2_only(scope: &Scope<'_>, lost: u64) -> Verdict {
    if let Some((who, v1)) = scope.which(|seen| &seen.v1) {
        let sure = scope.within.iter().chain(&scope.unknown).filter(|seen| seen.v1.count > 0).any(|seen| seen.known);
        let hedge = if sure { "" } else { " (known by its address only: no socket of it was seen)" };
        return Err(format!("{who} asked without a token (IMDSv1){hedge}: {}{}", v1.first, times(v1.count)));
    }
    if let Some((who, unread)) = scope.which(|seen| &seen.unread) {
        return Err(format!(
            "{who} was answered, and it was not seen what it had asked, or whether with a token{}",
            times(unread.count)
        ));
    }
    if lost > 0 {
        let lost = counted_were(lost, "record");
        return Err(format!("{lost} lost: what is missing may have been a request without a token"));
    }
    if scope.exchanges() == 0 {
        return scope.silence("it asks with a token only");
    }
    Ok(format!("{} never asked without a token ({})", names(&scope.within), counted(scope.exchanges(), "exchange")))
}

impl Noted {
    fn note(&mut self, what: impl FnOnce() -> String) {
        if self.count == 0 {
            self.first = what();
        }
        self.count += 1;
    }
}

impl Seen {
    fn new(who: &Attribution) -> Self {
        Self {
            who: who.clone(),
            exchanges: 0,
            served: false,
            refused: Noted::default(),
            known: false,
            errors: Noted::default(),
            errors_by_address: Noted::default(),
            granted: Noted::default(),
            unclear: Noted::default(),
            stopped: Noted::default(),
            read: Noted::default(),
            v1: Noted::default(),
            unread: Noted::default(),
        }
    }

    /// Its errors, as sure as its own sockets make them.
    fn errors(&self) -> &Noted {
        if self.known || self.errors.count > 0 { &self.errors } else { &self.errors_by_address }
    }

    fn note(&mut self, event: &ExchangeEvent) {
        let exchange = &event.exchange;
        self.exchanges += 1;
        self.known |= event.who.by != Key::Address;
        let answered = exchange.answered.is_some();
        let status = exchange.status();
        let asks = asks(exchange);
        if serves(exchange) {
            self.served = true;
        } else {
            self.refused.note(|| happened(exchange));
        }
        // An answer whose status was not seen may have been any.
        let delivered = answered && status.is_none_or(|status| status == 200);
        match asks {
            // Whatever the request was: a token was in the answer.
            _ if answered && exchange.issued.is_some() => self.granted.note(|| happened(exchange)),
            Asks::Token | Asks::Credentials if delivered && status.is_some() => {
                self.granted.note(|| happened(exchange));
            }
            Asks::Other if delivered && status.is_some() => self.read.note(|| happened(exchange)),
            Asks::Other => {}
            _ if delivered => self.unclear.note(|| happened(exchange)),
            _ => self.stopped.note(|| happened(exchange)),
        }
        if exchange.imds() == Some(Imds::V1) {
            self.v1.note(|| happened(exchange));
        }
        let unread = exchange.request.as_ref().is_some_and(|request| request.cut && !request.token);
        if (asks == Asks::Unseen || unread) && answered {
            self.unread.note(|| happened(exchange));
        }
    }
}

/// Did the client get an answer of use? A 404 to a read is one: IMDS let it in.
fn serves(exchange: &Exchange) -> bool {
    match exchange.status() {
        _ if exchange.is_late() => false,
        Some(200..=299) => true,
        Some(404) => matches!(exchange.imds(), Some(Imds::V1 | Imds::V2)),
        _ => false,
    }
}

fn asks(exchange: &Exchange) -> Asks {
    let Some(request) = &exchange.request else { return Asks::Unseen };
    if exchange.imds() == Some(Imds::Token) {
        return Asks::Token;
    }
    // `iam/security-credentials/ROLE`, `…-extended/ROLE`, `identity-credentials/ec2/security-credentials/NAME`.
    let mut below = false;
    for segment in request.path.split('/').filter(|segment| !segment.is_empty()) {
        if below {
            return Asks::Credentials;
        }
        below = segment.starts_with("security-credentials");
    }
    // A masked or cut path, or one spelled otherwise, may have been one of them; so may a token's with another method.
    let spelled = request.path.len() < MAX_PATH && !request.path.contains(['%', '*', ';']);
    let plain = spelled && matches!(request.method.as_str(), "GET" | "HEAD");
    if plain { Asks::Other } else { Asks::Unclear }
}

/// What an exchange asked, and what became of it.
fn happened(exchange: &Exchange) -> String {
    let asked = match &exchange.request {
        Some(request) => format!("{} {}", request.method, request.path),
        None => "a connection".to_owned(),
    };
    if let Some(status) = exchange.status() {
        let late = if exchange.is_late() { ", after the client had given up" } else { "" };
        return format!("{asked} was answered with {status}{late}");
    }
    if exchange.answered.is_some() {
        return format!("{asked} was answered");
    }
    let dropped = |what: &str, dropped: &Dropped| {
        let drop = &dropped.drop;
        let on = drop.interface.as_ref().map(|interface| format!(" on {}", interface.name)).unwrap_or_default();
        let reason = drop.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        format!("{what} was dropped in {}{on} with TTL {}{reason}", drop.location, dropped.ttl.0)
    };
    match (exchange.response_drop(), exchange.request_drop()) {
        (Some(drop), _) => dropped(&format!("the answer to {asked}"), drop),
        (None, Some(drop)) => dropped(&asked, drop),
        (None, None) if exchange.refusal.is_some() => format!("{asked} was refused"),
        (None, None) => format!("{asked} got no answer"),
    }
}

fn name(who: &Attribution) -> String {
    match (&who.container, who.subject()) {
        (Some(container), _) => match &container.name {
            Some(name) => format!("container {}", bounded(name, MAX_NAME)),
            None => format!("container {}", bounded(&container.id, SHORT_ID)),
        },
        (None, Subject::Host) => "this host".to_owned(),
        (None, _) => format!("the client at {}", who.address),
    }
}

fn names(those: &[&Seen]) -> String {
    let named: Vec<String> = those.iter().take(MAX_NAMED).map(|seen| name(&seen.who)).collect();
    match those.len().saturating_sub(MAX_NAMED) {
        0 => named.join(", "),
        further => format!("{} and {}", named.join(", "), counted(further as u64, "other")),
    }
}

fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn counted_were(count: u64, what: &str) -> String {
    format!("{} {}", counted(count, what), if count == 1 { "was" } else { "were" })
}

fn times(count: u64) -> String {
    if count == 1 { String::new() } else { format!(" ({count} times)") }
}

/// Begins with a capital letter and ends with a full stop.
fn sentence(text: String) -> String {
    let mut letters = text.trim_end_matches('.').chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters).chain(['.']).collect()
}

#[cfg(test)]
mod tests;
