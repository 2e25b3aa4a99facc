//! Did the bytes reach the other end, and what proves it? Decided here and nowhere else.
//!
//! Proofs in their order: the receiving socket counted the bytes, or its side acknowledged them; the packet itself was dropped; it was
//! seen to leave the last place that is watched, and then it was forwarded, which is no delivery.

use serde::Serialize;

use super::{Exchange, Travel};
use crate::journey::Fate;
use crate::net::is_before;

/// What became of one side of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The other end has the bytes.
    Received(Proof),
    /// They left the last place that is watched; whether they arrived was not seen.
    Forwarded,
    /// The kernel dropped them.
    Dropped,
    /// It cannot be told.
    Unknown,
}

/// What proves that bytes were received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// The other side acknowledged them.
    Ack,
    /// The client's own TCP counted them.
    Socket,
}

impl Exchange {
    /// What became of the request, or of the SYN while none was sent.
    pub fn request_delivery(&self) -> Delivery {
        delivery(self.request_proof, self.outward.as_ref())
    }

    /// What became of the head of the response.
    pub fn response_delivery(&self) -> Delivery {
        delivery(self.response_proof, self.response_travel())
    }
}

fn delivery(proof: Option<Proof>, travel: Option<&Travel>) -> Delivery {
    match (proof, travel.map(|travel| &travel.fate)) {
        (Some(proof), _) => Delivery::Received(proof),
        (None, Some(Fate::Delivered)) => Delivery::Forwarded,
        (None, Some(Fate::Dropped(_))) => Delivery::Dropped,
        (None, Some(Fate::Unresolved) | None) => Delivery::Unknown,
    }
}

/// What both ends of a connection are known to have received.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Received {
    /// First sequence number of the payload from IMDS.
    begins: Option<u32>,
    /// What the client acknowledged last: the sequence number behind it.
    by_client: Option<u32>,
    /// What IMDS acknowledged last.
    by_imds: Option<u32>,
    /// Payload bytes that the client's TCP counted, and whether that was its last word.
    counted: Option<(u64, bool)>,
}

impl Received {
    /// A SYN-ACK with this sequence number was seen.
    pub(super) fn answered_from(&mut self, seq: u32) {
        self.begins.get_or_insert(seq.wrapping_add(1));
    }

    /// The client acknowledged everything before `ack`.
    pub(super) fn by_client(&mut self, ack: u32) {
        raise(&mut self.by_client, ack);
    }

    /// IMDS acknowledged everything before `ack`.
    pub(super) fn by_imds(&mut self, ack: u32) {
        raise(&mut self.by_imds, ack);
    }

    /// The client's TCP has counted so many payload bytes; `last`: it will count no more.
    pub(super) fn counted(&mut self, bytes: u64, last: bool) {
        let (known, ended) = self.counted.unwrap_or_default();
        self.counted = Some((known.max(bytes), ended || last));
    }

    /// The sequence number behind the last byte that the client's TCP counted.
    pub(super) fn counted_to(&self) -> Option<u32> {
        let (begins, (bytes, _)) = self.begins.zip(self.counted)?;
        Some(begins.wrapping_add(u32::try_from(bytes).ok()?))
    }

    /// What proves that the client has everything before the sequence number `end`.
    pub(super) fn proves_response(&self, end: u32) -> Option<Proof> {
        if let (Some(begins), Some((bytes, _))) = (self.begins, self.counted)
            && bytes >= u64::from(end.wrapping_sub(begins))
        {
            return Some(Proof::Socket);
        }
        // An acknowledgement that the socket's last word contradicts is somebody else's.
        self.by_client.filter(|acked| !is_before(*acked, end) && !self.refutes_response(end)).map(|_| Proof::Ack)
    }

    /// Is it known that the client never got what ends before the sequence number `end`?
    pub(super) fn refutes_response(&self, end: u32) -> bool {
        match (self.begins, self.counted) {
            (_, Some((0, true))) => true,
            (Some(begins), Some((bytes, true))) => bytes < u64::from(end.wrapping_sub(begins)),
            _ => false,
        }
    }

    /// Is what the client acknowledged less than what ends before the sequence number `end`?
    pub(super) fn is_acked_short_of(&self, end: u32) -> bool {
        self.by_client.is_some_and(|acked| is_before(acked, end))
    }

    /// What proves that IMDS has everything before the sequence number `end`.
    pub(super) fn proves_request(&self, end: u32) -> Option<Proof> {
        self.by_imds.filter(|acked| !is_before(*acked, end)).map(|_| Proof::Ack)
    }
}

/// Remembers the later one of two sequence numbers.
pub(super) fn raise(known: &mut Option<u32>, ack: u32) {
    if known.is_none_or(|known| is_before(known, ack)) {
        *known = Some(ack);
    }
}

/// The later of a sequence number and one that may be known.
pub(super) fn later(seq: u32, known: Option<u32>) -> u32 {
    known.filter(|known| is_before(seq, *known)).unwrap_or(seq)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_own_count_is_the_strongest_word() {
        let mut received = Received::default();
        received.answered_from(u32::MAX);
        assert_eq!(received.proves_response(100), None);
        received.by_client(100);
        assert_eq!(received.proves_response(100), Some(Proof::Ack));
        assert_eq!(received.proves_response(101), None);
        received.counted(99, false);
        assert!(!received.refutes_response(100), "more may come");
        received.counted(100, true);
        assert_eq!(received.proves_response(100), Some(Proof::Socket));
        assert!(!received.refutes_response(100));
        assert!(received.refutes_response(101));
    }

    #[test]
    fn a_socket_that_ended_with_nothing_got_nothing() {
        let mut received = Received::default();
        received.counted(0, true);
        assert!(received.refutes_response(1));
        // Somebody else acknowledged it in its name.
        received.by_client(1);
        assert_eq!(received.proves_response(1), None);
        assert!(!Received::default().refutes_response(1));
    }
}
