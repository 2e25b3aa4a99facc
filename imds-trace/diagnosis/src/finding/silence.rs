//! Did a request leave this host without an answer, and from which address?
//!
//! Cannot know why: the rules that ask say what they make of it.

use std::net::IpAddr;
use std::time::Duration;

use super::Case;
use super::socket_error::is_refused;
use crate::coverage::Absent;
use crate::exchange::Exchange;
use crate::journey::{Fate, Hop};
use crate::net::Direction;

/// A client that waits less has not waited for an answer: IMDS takes some milliseconds, no SDK gives up before 250 ms.
const LEAST_WAIT: Duration = Duration::from_millis(100);

/// A request that left and to which nothing came back.
pub(super) struct Unanswered<'a> {
    pub exchange: &'a Exchange,
    /// Where it was last seen.
    pub last: &'a Hop,
    /// How long the client waited.
    pub waited: Duration,
    /// Why something may be concluded from that.
    pub absent: Absent,
    /// `The GET /latest/ of …`.
    pub what: String,
}

/// The case's exchange, if it is one.
pub(super) fn unanswered<'a>(case: &Case<'a>) -> Option<Unanswered<'a>> {
    // That nothing came is inferred from not seeing it: where records were lost, nothing follows from that.
    let exchange = case.settled()?;
    let absent = case.absent().ok()?;
    let outward = exchange.outward.as_ref().filter(|travel| travel.fate == Fate::Delivered)?;
    if exchange.answered.is_some() || exchange.responded || exchange.redirected.is_some() {
        return None;
    }
    // Nobody was to answer it there, or not yet.
    if exchange.cut_off || exchange.queued {
        return None;
    }
    // Opened and closed without a question; or refused, which is an answer.
    let has_left = exchange.refusal.is_some_and(|refusal| exchange.left.is_some_and(|left| left < refusal.at));
    if exchange.handshake && exchange.asked.is_none() || exchange.refusal.is_some() && !has_left || is_refused(case) {
        return None;
    }
    // A capture may be the client's own, where the answer may be lost on the way to it; or hold one direction only: then requests
    // follow handshakes that it does not show.
    if case.rests_on_capture() && (exchange.is_one_way() || !exchange.decrements.forwarded()) {
        return None;
    }
    let last = outward.hops.last()?;
    // Before it left nothing could come back: copies of it may have been dropped until then.
    let sent = exchange.asked.unwrap_or(exchange.opened).max(last.at);
    let mut waited = exchange.left.or(exchange.closed)?.since(sent);
    if case.rests_on_capture() {
        // It may have ended there, while one elsewhere went on: it was there as long as it shows something.
        waited = waited.min(exchange.last_leaving?.since(sent));
    }
    let subject = case.subject();
    let what = match (exchange.handshake || exchange.begins_unseen(), &exchange.request) {
        (true, Some(request)) => format!("The {} {} of {subject}", request.method, request.path),
        _ => case.connection_attempt(),
    };
    (waited >= LEAST_WAIT).then_some(Unanswered { exchange, last, waited, absent, what })
}

/// Whose the source address is with which a packet left by an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// This host's, or one that was answered before, or nobody said which addresses this host has.
    Known,
    /// No interface of this host has it. Whether EC2 knows it as the instance's cannot be told here.
    Elsewhere(IpAddr),
    /// One of a network that ends on this host: no network interface of EC2 has it.
    Inner(IpAddr),
}

/// Whose the source address of the packet at this hop is.
pub(super) fn source(case: &Case<'_>, last: &Hop) -> Source {
    let address = last.client.address;
    if !case.host.is_uplink(last, Direction::Egress) || case.host.addresses.is_empty() {
        return Source::Known;
    }
    match case.host.addresses.contains(&address) || case.host.is_known_to_ec2(address) {
        true => Source::Known,
        false if case.host.is_inner(address) => Source::Inner(address),
        false => Source::Elsewhere(address),
    }
}

impl Case<'_> {
    /// With which source address the request left this host, if an answer came in to it.
    pub fn source_of_answered(&self) -> Option<IpAddr> {
        let exchange = self.exchange;
        let last = exchange.outward.as_ref()?.hops.last()?;
        let came_in = |hop: &Hop| self.host.is_uplink(hop, Direction::Ingress);
        let answered = exchange.inward.iter().flat_map(|travel| &travel.hops).any(came_in);
        (answered && self.host.is_uplink(last, Direction::Egress)).then_some(last.client.address)
    }
}
