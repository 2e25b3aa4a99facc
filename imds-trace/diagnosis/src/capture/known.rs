//! Was exactly this packet read before? What is appended to a capture twice comes again with the times that it had.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::order::Sighted;
use crate::net::Timestamp;

/// A clock that goes back by so much shows that something was appended.
const BACK: u64 = 1_000_000_000;
/// Packets remembered at most, twice: then the older half is forgotten.
const MAX_PACKETS: usize = 1 << 17;

/// Packets that were read.
#[derive(Debug, Default)]
pub struct Known {
    latest: Timestamp,
    newer: HashSet<u64>,
    older: HashSet<u64>,
}

impl Known {
    /// Remembers it; says whether it was known, and comes from an earlier time than those before it.
    pub fn is_again(&mut self, packet: &Sighted) -> bool {
        let mut hasher = DefaultHasher::new();
        let headers = &packet.headers;
        (packet.at, &packet.spot, packet.direction).hash(&mut hasher);
        (headers.ttl, headers.ip_id, headers.tcp, headers.icmp, headers.flow).hash(&mut hasher);
        let hash = hasher.finish();
        if packet.at.0.saturating_add(BACK) < self.latest.0
            && (self.newer.contains(&hash) || self.older.contains(&hash))
        {
            return true;
        }
        self.latest = self.latest.max(packet.at);
        if self.newer.len() >= MAX_PACKETS {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(hash);
        false
    }
}
