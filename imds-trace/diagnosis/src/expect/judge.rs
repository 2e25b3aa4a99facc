//! Does a claim hold for those whom it is about? One function for each.

use super::Listened;
use super::seen::{Noted, Seen};
use crate::config::{Expectation, HOST};
use crate::event::Asserted;
use crate::event::{Outlook, Probed, WhatIf};
use crate::identity::{Attribution, Key, Subject};
use crate::net::bounded;
use crate::words::{counted, counted_were, times};

/// Clients or reasons that one sentence names at most.
const MAX_NAMED: usize = 3;
/// Bytes of a name in a sentence; Docker allows any length.
const MAX_NAME: usize = 64;

/// Who is meant by an expectation.
pub(super) struct Scope<'a> {
    /// `None` is everybody.
    named: Option<&'a str>,
    within: Vec<&'a Seen>,
    /// Whom nobody could name: anybody, perhaps.
    unknown: Vec<&'a Seen>,
    /// Whom it is not about.
    others: Vec<&'a Seen>,
    listened: Listened,
    probed: Option<&'a Probed>,
}

impl<'a> Scope<'a> {
    /// Of all that was seen, what this one is about.
    pub(super) fn of(asked: &'a Expectation, all: &'a [Seen], probed: Option<&'a Probed>, listened: Listened) -> Self {
        let named = asked.who.as_deref();
        let (within, others): (Vec<&Seen>, Vec<&Seen>) = all.iter().partition(|seen| is_about(asked, &seen.who));
        let (unknown, others) = others.into_iter().partition(|seen| seen.who.by == Key::Unknown);
        let probed = probed.filter(|probed| named.is_none_or(|name| name == probed.target));
        Self { named, within, unknown, others, listened, probed }
    }

    /// Of whom something was noted; of somebody unknown, if of nobody else.
    fn which(&self, noted: fn(&Seen) -> &Noted) -> Option<(String, &'a Noted)> {
        let found = |all: &[&'a Seen]| -> Option<(String, &'a Noted)> {
            let those: Vec<&'a Seen> = all.iter().copied().filter(|seen| noted(seen).count > 0).collect();
            those.first().map(|first| (names(&those), noted(first)))
        };
        let unknown =
            || found(&self.unknown).map(|(who, noted)| (format!("{who}, who could not be identified,"), noted));
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
            Some(name) => {
                let who = if self.others.is_empty() {
                    String::new()
                } else {
                    format!(" (a name or an id is meant; others asked: {})", names(&self.others))
                };
                format!("no request of {} was seen{who}", bounded(name, MAX_NAME))
            }
        }
    }

    /// Of everybody silence is what was asked for; of one it shows nothing.
    fn silence(&self, shows_nothing: &str) -> Held {
        match (self.named, self.listened) {
            (None, Listened::Nowhere) => {
                Err(format!("{}, but no interface was listened on when it began", self.nothing()))
            }
            (None, Listened::InCapture) => {
                Err(format!("{}, but a capture shows only what passed where it was taken", self.nothing()))
            }
            (None, Listened::Here) => Ok(self.nothing()),
            (Some(_), _) => Err(format!("{}, so nothing shows that {shows_nothing}", self.nothing())),
        }
    }
}

/// Is an expectation about this one?
pub(super) fn is_about(asked: &Expectation, who: &Attribution) -> bool {
    match (asked.who.as_deref(), who) {
        (None, _) => true,
        (Some(name), Attribution { container: Some(container), .. }) => container.is_called(name),
        (Some(name), who) => name == HOST && who.subject() == Subject::Host,
    }
}

/// What was seen, as a reason why it held or not.
pub(super) type Held = Result<String, String>;

/// What came of an expectation.
pub(super) fn asserted(asked: &Expectation, held: Held) -> Asserted {
    let (held, why) = match held {
        Ok(why) => (true, why),
        Err(why) => (false, why),
    };
    Asserted { expect: asked.text.clone(), held, why: sentence(why) }
}

/// Would all go on to work with these settings? Only what is known to holds.
pub(super) fn works_at(what_if: WhatIf) -> Held {
    if what_if.outlook == Outlook::Works { Ok(what_if.why) } else { Err(what_if.why) }
}

pub(super) fn reachable(scope: &Scope<'_>) -> Held {
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
        if !seen.is_served() && seen.unknown.count > 0 {
            return Err(format!(
                "of {} it cannot be told whether it got through: {}, and it was not seen with what",
                name(&seen.who),
                seen.unknown.first
            ));
        }
        if !seen.is_served() {
            let what = if seen.refused.count > 0 { &seen.last_refused } else { "nothing it asked was answered" };
            return Err(format!("{} did not get through: {what}", name(&seen.who)));
        }
    }
    let refused: u64 = scope.within.iter().map(|seen| seen.refused.count).sum();
    let before = if refused > 0 { format!(", {refused} of them in vain before") } else { String::new() };
    let exchanges = counted(scope.exchanges(), "exchange");
    Ok(format!("{} got what was asked for ({exchanges}{before})", names(&scope.within)))
}

pub(super) fn blocked(scope: &Scope<'_>, lost: u64) -> Held {
    if let Some((who, granted)) = scope.which(|seen| &seen.granted) {
        return Err(format!("{who} was given a token or credentials: {}{}", granted.first, times(granted.count)));
    }
    if let Some(probed) = scope.probed.filter(|probed| probed.token == Some(200)) {
        return Err(format!("the probe was given a token: {}", probed.summary));
    }
    if let Some((who, unclear)) = scope.which(|seen| &seen.unclear) {
        return Err(format!("of {who} it cannot be told what it was given: {}", unclear.first));
    }
    if let Some((who, unheard)) = scope.which(|seen| &seen.unheard) {
        return Err(format!(
            "{who} sent bytes to IMDS that were seen nowhere or cannot be read, or may have{}: it cannot be told what came of them",
            times(unheard.count)
        ));
    }
    if let Some((who, unseen)) = scope.which(|seen| &seen.unseen) {
        return Err(format!(
            "{who} had a connection that passed no interface that is watched: {}{}, and it cannot be told whether that was a token or \
             credentials",
            unseen.first,
            times(unseen.count)
        ));
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

pub(super) fn v2_only(scope: &Scope<'_>, lost: u64) -> Held {
    if let Some((who, v1)) = scope.which(|seen| &seen.v1) {
        let sure = scope.within.iter().chain(&scope.unknown).filter(|seen| seen.v1.count > 0).any(|seen| seen.known);
        let hedge = if sure { "" } else { " (known by its address only: no socket of it was seen)" };
        return Err(format!("{who} asked without a token (IMDSv1){hedge}: {}{}", v1.first, times(v1.count)));
    }
    if let Some((who, unread)) = scope.which(|seen| &seen.unread) {
        return Err(format!(
            "{who} was answered, or seen in part, and it was not seen what it had asked, or whether with a token{}",
            times(unread.count)
        ));
    }
    if let Some((who, unheard)) = scope.which(|seen| &seen.unheard) {
        return Err(format!(
            "{who} sent bytes to IMDS that were seen nowhere or cannot be read, or may have{}: it cannot be told what they asked, or whether with a token",
            times(unheard.count)
        ));
    }
    if let Some((who, unseen)) = scope.which(|seen| &seen.asked_unseen) {
        return Err(format!(
            "{who} had a connection that passed no interface that is watched: {}{}, and it was not seen whether it asked without a token",
            unseen.first,
            times(unseen.count)
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

pub(super) fn no_errors(scope: &Scope<'_>, lost: u64) -> Held {
    let all = || scope.within.iter().chain(&scope.unknown).copied();
    let mut found = all().filter(|seen| seen.errors.count > 0);
    let mut by_address = all().filter(|seen| seen.errors.count == 0 && seen.errors_by_address.count > 0);
    if let Some(seen) = found.next().or_else(|| by_address.next()) {
        let error = if seen.errors.count > 0 { &seen.errors } else { &seen.errors_by_address };
        let others: Vec<&Seen> = found.chain(by_address).collect();
        let others = if others.is_empty() { String::new() } else { format!("; and something of {}", names(&others)) };
        let (what, times) = (error.first.trim_end_matches('.'), times(error.count));
        return Err(format!("of {} it was found: {what}{times}{others}", name(&seen.who)));
    }
    if lost > 0 {
        return Err(format!("{} lost: what is missing may have shown an error", counted_were(lost, "record")));
    }
    if let Some((who, unanswered)) = scope.which(|seen| &seen.unanswered) {
        return Err(format!("of {who} no error was found, but {}{}", unanswered.first, times(unanswered.count)));
    }
    if let Some((who, denied)) = scope.which(|seen| &seen.denied) {
        return Err(format!("of {who} no error was found, but {}{}", denied.first, times(denied.count)));
    }
    if let Some(seen) = scope.within.iter().chain(&scope.unknown).find(|seen| seen.is_turned_away()) {
        return Err(format!("of {} no error was found, but {}", name(&seen.who), seen.last_refused));
    }
    if let Some((who, unseen)) = scope.which(|seen| &seen.unseen) {
        let (first, times) = (&unseen.first, times(unseen.count));
        return Err(format!(
            "of {who} no error was found, but it had a connection that passed no interface that is watched: {first}{times}"
        ));
    }
    if let Some((who, unheard)) = scope.which(|seen| &seen.unheard) {
        return Err(format!(
            "of {who} no error was found, but it sent bytes to IMDS that were seen nowhere or cannot be read, or may have{}: it cannot be \
             told what came of them",
            times(unheard.count)
        ));
    }
    if let Some((who, unknown)) = scope.which(|seen| &seen.unknown) {
        let (first, times) = (&unknown.first, times(unknown.count));
        return Err(format!("of {who} no error was found, but {first}{times}, and it was not seen with what"));
    }
    match scope.probed {
        Some(probed) if scope.exchanges() == 0 && probed.reached => return Ok(probed.summary.clone()),
        Some(probed) if scope.exchanges() == 0 => return Err(probed.summary.clone()),
        None if scope.exchanges() == 0 => return scope.silence("nothing is wrong with it"),
        Some(_) | None => {}
    }
    Ok(format!("no error was found of {} ({})", names(&scope.within), counted(scope.exchanges(), "exchange")))
}

fn name(who: &Attribution) -> String {
    match (&who.container, who.subject()) {
        (Some(container), _) => container.phrase(MAX_NAME),
        (None, Subject::Host) => "this host".to_owned(),
        (None, _) => who.unnamed(),
    }
}

fn names(those: &[&Seen]) -> String {
    let named: Vec<String> = those.iter().take(MAX_NAMED).map(|seen| name(&seen.who)).collect();
    match those.len().saturating_sub(MAX_NAMED) {
        0 => named.join(", "),
        further => format!("{} and {}", named.join(", "), counted(further as u64, "other")),
    }
}

/// Begins with a capital letter and ends with a full stop.
fn sentence(text: String) -> String {
    let mut letters = text.trim_end_matches('.').chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters).chain(['.']).collect()
}
