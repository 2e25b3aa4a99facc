//! Where was a capture taken, as the packets in it show?
//!
//! Cannot know: which of the places before any forward it was. A container, its bridge, and a host that asks itself look alike.

use crate::exchange::Exchange;
use crate::net::has_fallen;

/// The words behind what is concluded from a capture.
pub(super) fn told(exchange: &Exchange) -> String {
    format!(" (Inferred from a capture{}, which shows neither drops nor processes.)", taken(exchange))
}

fn taken(exchange: &Exchange) -> &'static str {
    let hops = exchange.outward.iter().flat_map(|travel| &travel.hops);
    let (mut whole, mut fallen) = (false, false);
    for hop in hops {
        whole |= !has_fallen(hop.ttl);
        fallen |= has_fallen(hop.ttl);
    }
    let fell = exchange.decrements.fell();
    match (whole, fallen) {
        _ if fell => " taken on both sides of a forward",
        (true, true) => " taken on both sides of a forward",
        (false, true) => " taken behind the forward, towards IMDS",
        (true, false) => {
            " taken before any forward (in the client's container, on its bridge, or on the host that it runs on)"
        }
        (false, false) => "",
    }
}
