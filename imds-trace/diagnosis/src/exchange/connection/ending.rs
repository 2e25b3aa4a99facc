//! How did the other side end a connection, or refuse it?

use super::Entry;
use crate::exchange::{Icmp, Refusal, Refused};
use crate::journey::{Fate, Journey};
use crate::net::{Direction, has_fallen, is_before};

impl Entry {
    /// The other side has sent nothing from this number on.
    fn sends_no_more(&mut self, from: u32) {
        let answered = self.live.iter_mut().rev().find(|live| live.response_at.is_some());
        if let Some(live) = answered.filter(|live| live.response_at.is_some_and(|(seq, _)| !is_before(from, seq))) {
            live.ends_at = Some(from);
        }
    }

    /// The other side has sent all that it will: a FIN.
    pub(super) fn ends(&mut self, journey: &Journey) {
        self.sends_no_more(journey.tcp.end().wrapping_sub(1));
        if journey.fate != Fate::Delivered {
            return;
        }
        self.hung_up = self.hung_up.or(Some(journey.hops.first().map_or(journey.at, |hop| hop.at)));
        for (number, live) in self.live.iter_mut().enumerate() {
            let is_open = live.waits();
            let exchange = &mut live.exchange;
            if exchange.answered.is_some() || exchange.responded {
                continue;
            }
            // `Connection: close`, or a connection kept alive for long enough: its client asks again on another one.
            exchange.cut_off |= number > 0;
            // Where the client ended first, the other side only answers that.
            exchange.hung_up |= exchange.asked.is_some() && is_open && !live.client_ended;
        }
    }

    /// Somebody said no. A no that was dropped on its way told the client nothing.
    pub(in crate::exchange) fn refused(&mut self, journey: &Journey) {
        // What says that a packet was too big is no refusal: a smaller one comes.
        if journey.icmp.is_some_and(|icmp| is_too_big(&icmp)) {
            return;
        }
        let how = journey.icmp.map_or(Refused::Reset, Refused::Icmp);
        if matches!(journey.fate, Fate::Dropped(_)) {
            for exchange in self.live.iter_mut().map(|live| &mut live.exchange) {
                exchange.lost_refusal = exchange.lost_refusal.or(Some(how));
            }
            return;
        }
        if how == Refused::Reset {
            self.sends_no_more(journey.tcp.seq);
        }
        let first = journey.hops.first();
        let came_in = first.is_some_and(|hop| hop.hook.direction == Direction::Ingress);
        let was_forwarded = first.is_some_and(|hop| !came_in && has_fallen(hop.ttl));
        let at = first.map_or(journey.at, |hop| hop.at);
        for live in &mut self.live {
            let exchange = &mut live.exchange;
            // Nor is an error about a packet that IMDS has.
            let is_received = journey.icmp.is_some() && exchange.request_proof.is_some();
            if exchange.answered.is_none() && !exchange.responded && exchange.refusal.is_none() && !is_received {
                live.told |= journey.icmp.is_some();
                exchange.refusal = Some(Refusal { at, how, from_outside: came_in, was_forwarded });
            }
        }
    }
}

/// "Fragmentation needed" (RFC 1191) or "packet too big" (RFC 8201)?
fn is_too_big(icmp: &Icmp) -> bool {
    matches!((icmp.sender.is_ipv4(), icmp.kind, icmp.code), (true, 3, 4) | (false, 2, _))
}
