//! How is it told to programs who would break?

use serde::Serialize;

use super::ProcessLine;
use crate::config::Settings;
use crate::event::{ClientOutlook, Needed, Outlook, WhatIf};
use crate::identity::{Attribution, Container, Key};

/// What would come of one client.
#[derive(Serialize)]
pub struct WhatIfLine<'a> {
    at: String,
    settings: SettingsLine,
    outlook: &'static str,
    reasons: Vec<ReasonLine<'a>>,
    container: Option<&'a Container>,
    process: Option<ProcessLine<'a>>,
    address: std::net::IpAddr,
    attributed_by: Key,
    exchanges: u64,
    without_token: u64,
    hop_limit: NeededLine,
    first: String,
    last: String,
}

/// What would come of all.
#[derive(Serialize)]
pub struct WhatIfSum<'a> {
    at: String,
    settings: SettingsLine,
    outlook: &'static str,
    why: &'a str,
    breaks: usize,
    cannot_be_told: usize,
    works: usize,
    /// With which hop limit all work that were seen asking for tokens.
    hop_limit: NeededLine,
    /// Who needs it.
    hop_limit_for: Option<&'a Container>,
    traced_ms: f64,
    lost: u64,
    unseen: u64,
    gaps: &'a [String],
}

/// `null`: as it was seen.
#[derive(Serialize)]
struct SettingsLine {
    tokens: Option<&'static str>,
    hop_limit: Option<u8>,
}

#[derive(Serialize)]
struct ReasonLine<'a> {
    why: &'a str,
    count: u64,
}

/// `at_least`: with less no token arrives; `enough`: with so much every one does. Often the same.
#[derive(Serialize)]
struct NeededLine {
    at_least: Option<u8>,
    enough: Option<u8>,
}

/// One client's line.
pub fn line<'a>(
    at: String,
    what_if: &WhatIf,
    client: &'a ClientOutlook,
    first: String,
    last: String,
    process: Option<ProcessLine<'a>>,
) -> WhatIfLine<'a> {
    WhatIfLine {
        at,
        settings: settings(what_if.settings),
        outlook: client.outlook.name(),
        reasons: client.reasons.iter().map(|reason| ReasonLine { why: &reason.text, count: reason.count }).collect(),
        container: client.who.told(),
        process,
        address: client.who.address,
        attributed_by: client.who.by,
        exchanges: client.exchanges,
        without_token: client.without_token,
        hop_limit: needed(client.needed),
        first,
        last,
    }
}

/// All together.
pub fn sum(at: String, what_if: &WhatIf) -> WhatIfSum<'_> {
    let those = |outlook| what_if.clients.iter().filter(|client| client.outlook == outlook).count();
    WhatIfSum {
        at,
        settings: settings(what_if.settings),
        outlook: what_if.outlook.name(),
        why: &what_if.why,
        breaks: those(Outlook::Breaks),
        cannot_be_told: those(Outlook::CannotBeTold),
        works: those(Outlook::Works),
        hop_limit: needed(what_if.least),
        hop_limit_for: what_if.least_for.as_ref().and_then(Attribution::told),
        traced_ms: super::milliseconds(what_if.basis.traced),
        lost: what_if.basis.lost.sum(),
        unseen: what_if.basis.unseen,
        gaps: &what_if.basis.gaps,
    }
}

fn settings(settings: Settings) -> SettingsLine {
    SettingsLine { tokens: settings.tokens_required.then_some("required"), hop_limit: settings.hop_limit }
}

fn needed(needed: Needed) -> NeededLine {
    NeededLine { at_least: (needed.at_least > 0).then_some(needed.at_least), enough: needed.enough }
}
