//! What does a drop say of the packet? The one table of functions and reasons that answers it.
//!
//! The kernel frees copies of a packet in the same way as the packet itself, with the packet's own addresses; and a TCP frees what it
//! has received and needs no more. Neither is a loss. Where the kernel gives no reasons (before Linux 5.17), functions alone decide.
//!
//! Cannot know: whether a filter that moves packets or copies them to another interface (tc mirred) had moved this one. It is taken for
//! a copy, which says less.

use crate::observation::{Drop, OTHERHOST};

/// What a drop says of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Nothing: it was a copy of it.
    Copy,
    /// A TCP had it in hand, and needed it no more.
    Received,
    /// A TCP had it in hand, and had no socket for it.
    NoSocket,
    /// A TCP had it in hand; whether for the second or third reason, or because it was broken, is not known.
    Unclear,
    /// It is lost.
    Lost,
}

/// Who makes copies: packet sockets (also one that closes with copies in its queue), raw sockets, the hook before them, netfilter's TEE
/// and dup, tc's mirred, programs that clone. By prefix, among the dropping function and those that led there.
const COPIERS: [&str; 14] = [
    "packet_rcv",
    "tpacket_rcv",
    "packet_release",
    "packet_recvmsg",
    "dev_queue_xmit_nit",
    "raw_rcv",
    "raw_v4_input",
    "raw_local_deliver",
    "rawv6_rcv",
    "ipv6_raw_deliver",
    "raw6_local_deliver",
    "nf_dup_",
    "tcf_mirred",
    "bpf_clone_redirect",
];
/// Reasons that only copies have: those of packet sockets, and those that a bridge flooded to ports that they are not meant for.
const COPIES: [&str; 2] = ["PACKET_SOCK_ERROR", OTHERHOST];
/// Where kernels without reasons drop a flooded copy, and a packet whose IP header is broken, which is rarer.
const FLOODED: [&str; 4] = ["ip_rcv_core", "ip6_rcv_core", "ip_rcv", "ipv6_rcv"];

/// Where a TCP discards what it holds. By prefix, as compilers split functions.
const DISCARDS: [&str; 4] = ["tcp_", "sk_stream_kill_queues", "inet_csk_", "skb_rbtree_purge"];
/// Of those, where it looks for a socket, and for a broken checksum.
const ENTRIES: [&str; 4] = ["tcp_v4_rcv", "tcp_v6_rcv", "tcp_v4_do_rcv", "tcp_v6_do_rcv"];
/// Reasons of a TCP that has the bytes already, or whose socket wants no more of them.
const RECEIVED: [&str; 12] = [
    "TCP_OLD_DATA",
    "TCP_OLD_SEQUENCE",
    "TCP_OLD_ACK",
    "TCP_OFOMERGE",
    "TCP_FLAGS",
    "TCP_FASTOPEN",
    "TCP_INVALID_SYN",
    "TCP_RESET",
    "TCP_CLOSE",
    "TCP_ABORT_ON_DATA",
    "QUEUE_PURGE",
    "SOCKET_CLOSE",
];
/// The reason of a TCP without a socket for it.
const NO_SOCKET: &str = "NO_SOCKET";
/// What kernels say that have reasons, and none for this drop.
const NOT_SPECIFIED: &str = "NOT_SPECIFIED";

/// Reads a drop.
pub(super) fn meaning(drop: &Drop) -> Meaning {
    let reason = drop.reason.as_deref().filter(|reason| *reason != NOT_SPECIFIED);
    let location = drop.location.as_deref().unwrap_or_default();
    let begins = |name: &str, prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    let plain = location.split('.').next().unwrap_or_default();
    let led_by_copier = drop.callers.iter().any(|caller| begins(caller, &COPIERS));
    if begins(location, &COPIERS) || led_by_copier || reason.is_some_and(|reason| COPIES.contains(&reason)) {
        return Meaning::Copy;
    }
    match reason {
        Some(NO_SOCKET) => Meaning::NoSocket,
        Some(reason) if RECEIVED.contains(&reason) => Meaning::Received,
        Some(_) => Meaning::Lost,
        None if drop.reason.is_none() && FLOODED.contains(&plain) => Meaning::Copy,
        None if ENTRIES.contains(&plain) => Meaning::Unclear,
        None if begins(location, &DISCARDS) => Meaning::Received,
        None => Meaning::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Netns;

    fn of(location: &str, reason: Option<&str>, callers: &[&str]) -> Meaning {
        meaning(&Drop {
            location: Some(location.into()),
            reason: reason.map(str::to_owned),
            interface: None,
            netns: Netns(1),
            callers: callers.iter().map(|caller| (*caller).to_owned()).collect(),
        })
    }

    #[test]
    fn what_a_sniffer_has_no_room_for_is_a_copy() {
        for (location, reason) in [
            ("packet_rcv", Some("PACKET_SOCK_ERROR")),
            ("tpacket_rcv", Some("PACKET_SOCK_ERROR")),
            ("packet_rcv", None),
            ("tpacket_rcv.part.0", None),
            ("raw_rcv_skb", Some("SOCKET_RCVBUFF")),
            ("raw_rcv", None),
        ] {
            assert_eq!(of(location, reason, &[]), Meaning::Copy, "{location}");
        }
    }

    #[test]
    fn what_a_sniffer_that_ends_had_in_its_queue_is_a_copy() {
        assert_eq!(of("skb_queue_purge_reason", Some("QUEUE_PURGE"), &["packet_release"]), Meaning::Copy);
        assert_eq!(of("skb_queue_purge", None, &["packet_release.isra.0", "__sock_release"]), Meaning::Copy);
        assert_eq!(of("skb_queue_purge_reason", Some("QUEUE_PURGE"), &["inet_sock_destruct"]), Meaning::Received);
    }

    #[test]
    fn what_was_mirrored_is_a_copy_wherever_it_ends() {
        assert_eq!(of("__dev_queue_xmit", Some("DEV_READY"), &["tcf_mirred_to_dev", "tcf_mirred_act"]), Meaning::Copy);
        assert_eq!(of("ip_finish_output2", Some("NEIGH_CREATEFAIL"), &["ip_output", "nf_dup_ipv4"]), Meaning::Copy);
    }

    #[test]
    fn a_flooded_copy_is_known_by_its_function_where_there_are_no_reasons() {
        assert_eq!(of("ip_rcv_core", Some("OTHERHOST"), &[]), Meaning::Copy);
        assert_eq!(of("ip_rcv_core.constprop.0", None, &[]), Meaning::Copy);
        assert_eq!(of("ip6_rcv_core", None, &[]), Meaning::Copy);
        assert_eq!(of("ip_rcv_core", Some("IP_CSUM"), &[]), Meaning::Lost);
        assert_eq!(of("ip_rcv_finish_core", None, &[]), Meaning::Lost);
    }

    #[test]
    fn a_tcp_tells_what_it_had_from_what_it_could_not_take() {
        assert_eq!(of("tcp_data_queue", Some("TCP_OLD_DATA"), &[]), Meaning::Received);
        assert_eq!(of("tcp_data_queue", None, &[]), Meaning::Received);
        assert_eq!(of("tcp_v4_rcv", Some("NO_SOCKET"), &[]), Meaning::NoSocket);
        assert_eq!(of("tcp_v4_rcv", None, &[]), Meaning::Unclear);
        assert_eq!(of("tcp_v4_rcv", Some("NOT_SPECIFIED"), &[]), Meaning::Unclear);
        for reason in ["TCP_CSUM", "TCP_ZEROWINDOW", "TCP_MINTTL", "TCP_MD5NOTFOUND", "SOCKET_FILTER", "PROTO_MEM"] {
            assert_eq!(of("tcp_v4_rcv", Some(reason), &[]), Meaning::Lost, "{reason}");
        }
    }

    #[test]
    fn any_other_drop_is_a_loss() {
        assert_eq!(of("ip_forward", Some("IP_INHDR"), &["ip_rcv"]), Meaning::Lost);
        assert_eq!(of("nft_do_chain", Some("NETFILTER_DROP"), &["nf_hook_slow", "ip_rcv"]), Meaning::Lost);
        assert_eq!(of("__dev_queue_xmit", Some("TC_EGRESS"), &["packet_sendmsg"]), Meaning::Lost);
    }
}
