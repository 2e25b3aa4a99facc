//! How is it told to programs who would break?

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Serialize;

use super::process::{self, ProcessLine};
use super::when::{When, milliseconds};
use crate::config::Settings;
use crate::event::{ClientOutlook, Needed, Outlook, WhatIf};
use crate::identity::{Attribution, Container, Key};
use crate::net::{BootTime, Timestamp};

/// What would come of one client if the instance were set so (`--what-if`).
#[derive(Serialize, JsonSchema)]
pub struct WhatIfLine<'a> {
    /// When the run was over.
    at: When,
    /// The settings.
    settings: SettingsLine,
    /// What would come of it.
    outlook: Outlook,
    /// Why, with how often.
    reasons: Vec<ReasonLine<'a>>,
    /// Who; `null` for the host's own processes only.
    container: Option<&'a Container>,
    /// Who; `null` if its connect was not seen.
    process: Option<ProcessLine<'a>>,
    /// The client's address; `null` where no packet of it was seen and nobody told it.
    address: Option<IpAddr>,
    /// What the naming of the container rests on.
    attributed_by: Key,
    /// Exchanges in all.
    exchanges: u64,
    /// Those without a token.
    without_token: u64,
    /// The hop limit that it needs.
    hop_limit: NeededLine,
    /// When its first exchange began.
    first: When,
    /// When its last one began.
    last: When,
}

/// What would come of all if the instance were set so: one for each `--what-if`, after the lines of its clients.
#[derive(Serialize, JsonSchema)]
pub struct WhatIfSum<'a> {
    /// When the run was over.
    at: When,
    /// The settings.
    settings: SettingsLine,
    /// What would come of it.
    outlook: Outlook,
    /// One sentence.
    why: &'a str,
    /// Clients that would break.
    breaks: usize,
    /// Clients of whom it cannot be told.
    cannot_be_told: usize,
    /// Clients that would work.
    works: usize,
    /// With which hop limit all work that were seen asking for tokens.
    hop_limit: NeededLine,
    /// Who needs it.
    hop_limit_for: Option<&'a Container>,
    /// How long it was traced.
    traced_ms: f64,
    /// What could not be kept.
    lost: u64,
    /// Connections that no hook saw.
    unseen: u64,
    /// What else was not covered, a sentence each.
    gaps: &'a [String],
}

/// `null`: as it was seen.
#[derive(Serialize, JsonSchema)]
struct SettingsLine {
    /// `HttpTokens`.
    tokens: Option<TokensWord>,
    /// `HttpPutResponseHopLimit`.
    hop_limit: Option<u8>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum TokensWord {
    Required,
}

#[derive(Serialize, JsonSchema)]
struct ReasonLine<'a> {
    /// One sentence.
    why: &'a str,
    /// How often.
    count: u64,
}

/// Often both are the same.
#[derive(Serialize, JsonSchema)]
struct NeededLine {
    /// With less no token arrives.
    at_least: Option<u8>,
    /// With so much every one does.
    enough: Option<u8>,
}

pub fn line<'a>(at: Timestamp, what_if: &WhatIf, client: &'a ClientOutlook, boot_time: BootTime) -> WhatIfLine<'a> {
    WhatIfLine {
        at: When::of(at, boot_time),
        settings: settings(what_if.settings),
        outlook: client.outlook,
        reasons: client.reasons.iter().map(|reason| ReasonLine { why: &reason.text, count: reason.count }).collect(),
        container: client.who.told(),
        process: process::line(client.who.process.as_deref(), boot_time),
        address: client.who.address,
        attributed_by: client.who.by,
        exchanges: client.exchanges,
        without_token: client.without_token,
        hop_limit: needed(client.needed),
        first: When::of(client.first, boot_time),
        last: When::of(client.last, boot_time),
    }
}

/// All together.
pub fn sum(at: Timestamp, what_if: &WhatIf, boot_time: BootTime) -> WhatIfSum<'_> {
    let those = |outlook| what_if.clients.iter().filter(|client| client.outlook == outlook).count();
    WhatIfSum {
        at: When::of(at, boot_time),
        settings: settings(what_if.settings),
        outlook: what_if.outlook,
        why: &what_if.why,
        breaks: those(Outlook::Breaks),
        cannot_be_told: those(Outlook::CannotBeTold),
        works: those(Outlook::Works),
        hop_limit: needed(what_if.least),
        hop_limit_for: what_if.least_for.as_ref().and_then(Attribution::told),
        traced_ms: milliseconds(what_if.basis.traced),
        lost: what_if.basis.lost.sum(),
        unseen: what_if.basis.unseen,
        gaps: &what_if.basis.gaps,
    }
}

fn settings(settings: Settings) -> SettingsLine {
    let tokens = settings.tokens_required.then_some(TokensWord::Required);
    SettingsLine { tokens, hop_limit: settings.hop_limit }
}

fn needed(needed: Needed) -> NeededLine {
    NeededLine { at_least: (needed.at_least > 0).then_some(needed.at_least), enough: needed.enough }
}
