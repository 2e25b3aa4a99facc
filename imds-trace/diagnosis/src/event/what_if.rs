//! What would be if the instance were set otherwise?

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::Lost;
use crate::config::Settings;
use crate::identity::Attribution;
use crate::net::Timestamp;

/// What would come of all that was seen if the instance were set so.
#[derive(Clone, Debug)]
pub struct WhatIf {
    /// How it would be set.
    pub settings: Settings,
    /// Of all together.
    pub outlook: Outlook,
    /// One sentence that says why.
    pub why: String,
    /// Whoever was seen, the worst first.
    pub clients: Vec<ClientOutlook>,
    /// The hop limit that all of them together need.
    pub least: Needed,
    /// Who needs it; `None` if nobody was seen asking for a token.
    pub least_for: Option<Attribution>,
    /// What it rests on.
    pub basis: Basis,
}

/// What would come of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outlook {
    /// Something that it was seen doing would fail.
    Breaks,
    /// Nobody can tell.
    CannotBeTold,
    /// All that it was seen doing would work.
    Works,
}

/// What would come of one client.
#[derive(Clone, Debug)]
pub struct ClientOutlook {
    /// Who.
    pub who: Attribution,
    /// What would come of it.
    pub outlook: Outlook,
    /// Why; empty if it works.
    pub reasons: Vec<Reason>,
    /// Exchanges in all.
    pub exchanges: u64,
    /// Requests without a token.
    pub without_token: u64,
    /// The hop limit that it needs.
    pub needed: Needed,
    /// When it was first seen.
    pub first: Timestamp,
    /// When it was last seen.
    pub last: Timestamp,
}

/// A reason, and how often there was one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// A part of a sentence.
    pub text: String,
    /// Exchanges.
    pub count: u64,
    /// When the last one was.
    pub last: Timestamp,
}

/// What is known of the least hop limit with which a token arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needed {
    /// With less none would arrive; 0 if that is not known.
    pub at_least: u8,
    /// With so much every one would; `None` if that is not known.
    pub enough: Option<u8>,
}

/// What a conclusion about settings rests on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Basis {
    /// For how long was traced.
    pub traced: Duration,
    /// What could not be kept.
    pub lost: Lost,
    /// Connections that no hook saw.
    pub unseen: u64,
    /// Why even what nobody was seen doing may have been done, a part of a sentence each.
    pub gaps: Vec<String>,
}
