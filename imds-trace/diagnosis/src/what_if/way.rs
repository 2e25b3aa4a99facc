//! With which hop limit does a token reach this client? A lower bound and an upper one, each from something that was seen.

use super::Needed;
use crate::event::ExchangeEvent;
use crate::journey::Fate;
use crate::net::has_fallen;

/// What one exchange says of its client's way.
pub fn of(event: &ExchangeEvent) -> Needed {
    let exchange = &event.exchange;
    // Where neither the socket nor the first place shows the TTL that its packets started with, it may have fallen before that place.
    let from_start =
        event.who.initial_ttl.is_some() || exchange.decrements.first.is_some_and(|(first, _)| !has_fallen(first));
    let Some(needed) = event.hop_limit.needed.filter(|_| from_start) else { return Needed::default() };
    match back(event) {
        Back::NotSeen => Needed { at_least: needed.0, enough: Some(needed.0) },
        // A request whose TTL is set anew on the way shows less than what its answer loses.
        Back::Fell(fell) => {
            let before = event.who.initial_ttl.zip(exchange.decrements.first);
            let before = before.map_or(0, |(initial, (first, _))| initial.0.saturating_sub(first.0));
            let back = fell.saturating_add(before).saturating_add(1);
            Needed { at_least: needed.0.min(back), enough: Some(needed.0.max(back)) }
        }
        Back::Otherwise => Needed { at_least: 0, enough: None },
    }
}

/// What the answer's TTL shows of the way back.
enum Back {
    /// None arrived.
    NotSeen,
    /// It fell so often between its first place and the request's first.
    Fell(u8),
    /// It came by another way than the request went, or not all of it was seen.
    Otherwise,
}

fn back(event: &ExchangeEvent) -> Back {
    let Some(inward) = event.exchange.inward.as_ref().filter(|travel| travel.fate == Fate::Delivered) else {
        return Back::NotSeen;
    };
    let (Some(came), Some(last)) = (inward.hops.first(), inward.hops.last()) else { return Back::NotSeen };
    let asked_at = event.exchange.outward.as_ref().and_then(|travel| travel.hops.first());
    if asked_at.is_some_and(|first| first.hook.interface == last.hook.interface) {
        came.ttl.0.checked_sub(last.ttl.0).map_or(Back::Otherwise, Back::Fell)
    } else {
        Back::Otherwise
    }
}

/// What a token request says of it, which shows the way of a token itself.
pub fn of_token(event: &ExchangeEvent) -> Needed {
    let way = of(event);
    let exchange = &event.exchange;
    let observed = event.hop_limit.observed.map(|limit| limit.0);
    // Of one that arrived unseen it is not known with what TTL it came.
    let arrived = exchange.inward.as_ref().is_none_or(|travel| travel.fate == Fate::Delivered);
    match (exchange.brought() && !exchange.is_late(), observed) {
        (true, Some(_)) if !arrived => way,
        // It arrived: no more than this is needed, whatever the request's TTL says.
        (true, Some(observed)) => Needed {
            at_least: if way.at_least <= observed { way.at_least } else { 0 },
            enough: Some(way.enough.map_or(observed, |enough| enough.min(observed))),
        },
        (true, None) => way,
        // It did not, and its TTL is why.
        (false, Some(observed)) if way.at_least > observed => way,
        // It did not for another reason: with which hop limit it would arrive is not shown.
        (false, _) => Needed { enough: None, ..way },
    }
}

/// What both together need.
pub fn both(one: Needed, other: Needed) -> Needed {
    Needed {
        at_least: one.at_least.max(other.at_least),
        enough: one.enough.zip(other.enough).map(|(one, other)| one.max(other)),
    }
}
