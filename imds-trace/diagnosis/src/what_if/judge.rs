//! Would it go on to work if the instance were set so?

use super::client::{Client, Count};
use super::{Needs, way};
use crate::config::Settings;
use crate::event::{Basis, ClientOutlook, Lost, Needed, Outlook, Reason, WhatIf};
use crate::identity::{Attribution, Key, Subject};
use crate::net::{Timestamp, bounded};
use crate::words::{counted, counted_were};

/// Clients that one sentence names at most.
const MAX_NAMED: usize = 3;
/// Bytes of a name in a sentence.
const MAX_NAME: usize = 64;

/// What decides about a client: the settings, and what was seen of the instance where they say nothing.
#[derive(Clone, Copy)]
struct Set {
    tokens_required: bool,
    /// `None` if it is not named and was not seen.
    hop_limit: Option<u8>,
    /// It is how it was seen, and not named.
    as_it_is: bool,
}

impl Needs {
    /// What would come of those whom `about` lets through, and of whom nobody could name. The run ended `at`, and lost so much.
    pub fn judge(&self, settings: Settings, at: Timestamp, lost: Lost, about: &dyn Fn(&Attribution) -> bool) -> WhatIf {
        let observed = self.observed.map(|(_, limit)| limit);
        let set = Set {
            tokens_required: settings.tokens_required,
            hop_limit: settings.hop_limit.or(observed),
            as_it_is: settings.hop_limit.is_none(),
        };
        let within = |client: &&Client| about(&client.who);
        let unknown = |client: &&Client| !about(&client.who) && client.who.by == Key::Unknown;
        let seen = self.clients.iter().filter(within).count();
        let chosen = self.clients.iter().filter(within).chain(self.clients.iter().filter(unknown));
        let mut clients: Vec<ClientOutlook> = chosen.clone().map(|client| self.of_client(client, set)).collect();
        clients.sort_by(|a, b| a.outlook.cmp(&b.outlook).then(a.first.cmp(&b.first)));
        let basis = Basis {
            traced: self.listened.from.map(|from| at.since(from)).unwrap_or_default(),
            lost,
            unseen: self.unseen,
            gaps: self.gaps(lost),
        };
        let asked_for_tokens = chosen.filter(|client| client.tokens.count + client.reads.count > 0);
        let (mut least, mut least_for) = (None, None);
        for client in asked_for_tokens.filter(|client| !self.is_stood_in(client)) {
            let needed = client.needed();
            let both = least.map_or(needed, |least| way::both(least, needed));
            let rank = |needed: Needed| (needed.at_least, needed.enough.unwrap_or(u8::MAX));
            if least.is_none_or(|least| rank(needed) > rank(least)) {
                least_for = Some(client.who.clone());
            }
            least = Some(both);
        }
        let (outlook, why) = whole(&clients, seen, &basis);
        WhatIf { settings, outlook, why, clients, least: least.unwrap_or_default(), least_for, basis }
    }

    /// Why even what nobody was seen doing may have been done.
    fn gaps(&self, lost: Lost) -> Vec<String> {
        let mut gaps = Vec::new();
        if self.listened.from.is_none() || self.listened.nowhere {
            gaps.push("no interface was listened on when it began".to_owned());
        }
        if self.listened.in_capture {
            gaps.push("a capture shows only what passed where it was taken".to_owned());
        }
        if lost.sum() > 0 {
            gaps.push(format!("{} lost", counted_were(lost.sum(), "record")));
        }
        gaps.extend(self.listened.missing.clone());
        if self.over > 0 {
            gaps.push(format!("{} had no room", counted(self.over, "exchange")));
        }
        gaps
    }

    fn is_stood_in(&self, client: &Client) -> bool {
        self.stood_in.contains(&client.who.subject())
    }

    fn of_client(&self, client: &Client, set: Set) -> ClientOutlook {
        let needed = client.needed();
        let told = |outlook, reasons| ClientOutlook {
            who: client.who.clone(),
            outlook,
            reasons,
            exchanges: client.exchanges,
            without_token: client.bare.count + client.fell_back.count,
            needed,
            first: client.first,
            last: client.last,
        };
        if self.is_stood_in(client) {
            let all = Count { count: client.exchanges, last: client.last };
            let text = "something on this host answers it in the place of IMDS, and settings of the instance are not about that";
            return told(Outlook::CannotBeTold, vec![reason(text, all)]);
        }
        let breaks = breaks(client, set, needed);
        if !breaks.is_empty() {
            return told(Outlook::Breaks, breaks);
        }
        let unclear = unclear(client, set, needed);
        if !unclear.is_empty() {
            return told(Outlook::CannotBeTold, unclear);
        }
        told(Outlook::Works, Vec::new())
    }
}

/// What it was seen doing and would fail.
fn breaks(client: &Client, set: Set, needed: Needed) -> Vec<Reason> {
    let mut reasons = Vec::new();
    // Refused already: tokens are required, whatever was asked about.
    if client.bare.count > 0 && (set.tokens_required || client.refused > 0) {
        let already = match client.refused {
            0 => String::new(),
            all if all == client.bare.count => " and was refused with 401 already".to_owned(),
            some => format!(" and was refused with 401 already ({some} of them)"),
        };
        let way = client.way.filter(|way| way.at_least > 1 && client.tokens.count == 0);
        let with_one =
            way.map(|way| format!("; with one it needs a hop limit of {}", way.at_least)).unwrap_or_default();
        reasons.push(reason(&format!("asked without a token{already}{with_one}"), client.bare));
    }
    if let Some(limit) = set.hop_limit.filter(|limit| client.tokens.count > 0 && needed.at_least > *limit) {
        let at_least = if needed.enough == Some(needed.at_least) { "" } else { "at least " };
        let present = if set.as_it_is { format!(", and the hop limit is {limit}") } else { String::new() };
        let text =
            format!("asked for a token, which needs a hop limit of {at_least}{} to arrive{present}", needed.at_least);
        reasons.push(reason(&text, client.tokens));
    }
    reasons
}

/// Why it cannot be told of it.
fn unclear(client: &Client, set: Set, needed: Needed) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let reaches = set.hop_limit.is_some_and(|limit| needed.enough.is_some_and(|enough| enough <= limit));
    if set.tokens_required && client.fell_back.count > 0 {
        let text = "asked without a token after its token request had come to nothing, and whether it uses one that arrives was not seen";
        reasons.push(reason(text, client.fell_back));
    }
    if client.asks_in_vain() {
        reasons.push(reason("asked for nothing that is known to work", client.vain));
    }
    if client.unread.count > 0 {
        reasons.push(reason(
            "had a connection of which it was not seen what it asked, or whether with a token",
            client.unread,
        ));
    }
    let asked = Count {
        count: client.reads.count + client.bare.count + client.fell_back.count,
        last: client.reads.last.max(client.bare.last).max(client.fell_back.last),
    };
    if asked.count > 0 && client.served == 0 && client.tokens.count == 0 {
        reasons
            .push(reason("got nothing that it asked for, for a reason that is not shown to be these settings", asked));
    } else if client.failed.count > 0 {
        let text = "did not get all that it asked for, for a reason that is not shown to be these settings";
        reasons.push(reason(text, client.failed));
    }
    if client.unseen.count > 0 {
        let text = "had a connection that passed no interface that is watched, and what it asked there is not known";
        reasons.push(reason(text, client.unseen));
    }
    if client.denied.count > 0 {
        reasons.push(reason("asked for a token, and was answered with none", client.denied));
    } else if client.tokens.count > 0 && !reaches {
        let text = match set.hop_limit {
            None => "asked for a token, and the hop limit was not seen".to_owned(),
            Some(limit) => {
                format!(
                    "asked for a token, and nothing that was seen shows that one arrives with a hop limit of {limit}"
                )
            }
        };
        reasons.push(reason(&text, client.tokens));
    } else if client.tokens.count == 0 && client.reads.count > 0 && !reaches {
        let text = "asked with a token that it was not seen asking for, and nothing that was seen shows that one would reach it";
        reasons.push(reason(text, client.reads));
    }
    reasons
}

/// Of all together: `seen` is how many there are of those it is about.
fn whole(clients: &[ClientOutlook], seen: usize, basis: &Basis) -> (Outlook, String) {
    let those = |outlook| clients.iter().filter(move |client: &&ClientOutlook| client.outlook == outlook);
    let breaking: Vec<&ClientOutlook> = those(Outlook::Breaks).collect();
    if !breaking.is_empty() {
        let who = named(&breaking);
        return (
            Outlook::Breaks,
            format!("{} of {} would break: {who}", breaking.len(), counted(clients.len() as u64, "client")),
        );
    }
    if seen == 0 {
        return (Outlook::CannotBeTold, "no request was seen, so nothing shows that it would work".to_owned());
    }
    let unclear: Vec<&ClientOutlook> = those(Outlook::CannotBeTold).collect();
    if !unclear.is_empty() {
        return (Outlook::CannotBeTold, format!("it cannot be told of {}", named(&unclear)));
    }
    if !basis.gaps.is_empty() {
        let gaps = basis.gaps.join(", and ");
        return (
            Outlook::CannotBeTold,
            format!("whoever was seen would go on to work, but {gaps}: somebody else may not"),
        );
    }
    let exchanges: u64 = clients.iter().map(|client| client.exchanges).sum();
    let seen = counted(clients.len() as u64, "client");
    (
        Outlook::Works,
        format!(
            "all that {seen} did in {:.0} s would work ({})",
            basis.traced.as_secs_f64(),
            counted(exchanges, "exchange")
        ),
    )
}

/// Some clients, each with its first reason.
fn named(clients: &[&ClientOutlook]) -> String {
    let mut named: Vec<String> = Vec::new();
    for client in clients.iter().take(MAX_NAMED) {
        let reason = client.reasons.first().map_or("", |reason| reason.text.as_str());
        named.push(format!("{}, which {reason}", title(&client.who)));
    }
    let further = clients.len().saturating_sub(MAX_NAMED);
    if further > 0 {
        named.push(format!("and {further} more"));
    }
    named.join("; ")
}

/// A client in a sentence.
fn title(who: &Attribution) -> String {
    let process = who.process.as_ref().map(|process| bounded(&process.comm, MAX_NAME));
    let behind = process.map(|comm| format!(" ({comm})")).unwrap_or_default();
    let title = match (&who.container, who.subject()) {
        (Some(container), _) => {
            let title = container.title();
            let word = if container.name.is_some() { "container " } else { "" };
            format!("{word}{}", bounded(&title, MAX_NAME))
        }
        (None, Subject::Host) => "this host".to_owned(),
        (None, _) => format!("{}, which could not be identified", who.unnamed()),
    };
    format!("{title}{behind}")
}

fn reason(text: &str, count: Count) -> Reason {
    Reason { text: text.to_owned(), count: count.count, last: count.last }
}
