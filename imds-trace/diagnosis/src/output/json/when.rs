//! How are times and spans of time written?

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::net::{BootTime, Timestamp};
use crate::words::rfc3339;

/// RFC 3339 with nanoseconds, in UTC.
#[derive(Clone, Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend("format" = "date-time"))]
pub struct When(String);

impl When {
    pub fn of(at: Timestamp, boot_time: BootTime) -> Self {
        Self(rfc3339(at, boot_time))
    }
}

/// Milliseconds to a tenth of a microsecond.
pub fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e7).round() / 1e4
}
