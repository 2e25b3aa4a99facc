//! Does the queue at a link (its root qdisc) drop whatever it is to send? Only what is certain by its numbers alone. Pure.

use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use rtnetlink::packet_core::Nla;

use diagnosis::net::Ifindex;

/// A link whose queue drops all, and what the queue is, as `tc` words it.
pub fn drops_all(message: &TcMessage) -> Option<(Ifindex, &'static str)> {
    if message.header.parent != TcHandle::ROOT {
        return None;
    }
    let link = Ifindex(u32::try_from(message.header.index).ok()?);
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })?;
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.iter().find_map(|option| match option {
            TcOption::Other(bytes) => {
                let mut value = vec![0; bytes.value_len()];
                bytes.emit_value(&mut value);
                Some(value)
            }
            _ => None,
        }),
        _ => None,
    });
    let options = options.unwrap_or_default();
    Some((link, by_numbers(kind, &options)?))
}

/// `struct tc_fifo_qopt` and `struct tc_netem_qopt` (`include/uapi/linux/pkt_sched.h`).
fn by_numbers(kind: &str, options: &[u8]) -> Option<&'static str> {
    let word = |place: usize| {
        let bytes = options.get(place * 4..place * 4 + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    match kind {
        "pfifo" if word(0)? == 0 => Some("pfifo limit 0"),
        "bfifo" if word(0)? == 0 => Some("bfifo limit 0"),
        // What is sent twice and lost once is sent.
        "netem" if word(2)? == u32::MAX && word(4)? == 0 => Some("netem loss 100%"),
        "netem" if word(1)? == 0 => Some("netem limit 0"),
        "blackhole" => Some("blackhole"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_queue_that_passes_nothing_by_its_numbers_drops_all() {
        let of = |kind: &str, words: &[u32]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            by_numbers(kind, &bytes)
        };
        assert_eq!(of("pfifo", &[0]), Some("pfifo limit 0"));
        assert_eq!(of("pfifo", &[1]), None);
        assert_eq!(of("bfifo", &[0]), Some("bfifo limit 0"));
        assert_eq!(of("netem", &[0, 1000, u32::MAX, 0, 0, 0]), Some("netem loss 100%"));
        assert_eq!(of("netem", &[0, 1000, u32::MAX - 1, 0, 0, 0]), None);
        assert_eq!(of("netem", &[0, 1000, u32::MAX, 0, 7, 0]), None, "it may be sent twice");
        assert_eq!(of("netem", &[0, 0, 0, 0, 0, 0]), Some("netem limit 0"));
        assert_eq!(of("tbf", &[0]), None);
        assert_eq!(of("pfifo", &[]), None);
    }
}
