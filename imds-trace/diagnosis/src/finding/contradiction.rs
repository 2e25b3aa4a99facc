//! Does an answer contradict what was said of the instance before?
//!
//! What the rules say of the instance is what its answers said then. Another answer a little later shows that it was something else: a
//! proxy, a setting that had not reached every part of EC2 yet, a role that was just being given.

use std::time::Duration;

use super::{Case, imds_disabled, no_role};

/// Settings of an instance reach its IMDS within seconds; what is further apart may both have been true.
pub const WITHIN: Duration = Duration::from_secs(60);

/// What is contradicted: a rule and, where it has several, a cause.
pub type Contradicted = (&'static str, String);

/// What the case's answer contradicts.
pub fn contradicted(case: &Case<'_>) -> Vec<Contradicted> {
    let Some(exchange) = case.closed() else { return Vec::new() };
    let Some(status) = exchange.came_status().filter(|_| !case.is_answered_in_place()) else { return Vec::new() };
    let mut all = Vec::new();
    if imds_disabled::shows_open(status) {
        all.push((imds_disabled::RULE.id, imds_disabled::CAUSE.to_owned()));
    }
    if let Some(role) = no_role::shown(exchange) {
        // Whoever has a role has one to list.
        all.push((no_role::RULE.id, no_role::ANY.to_owned()));
        all.extend((!role.is_empty()).then(|| (no_role::RULE.id, role.to_owned())));
    }
    all
}
