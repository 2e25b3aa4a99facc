//! Are there any tables of nf_tables in this network namespace? Asked of the kernel, so that its tools need not be run where there are none.

use std::io;

use rtnetlink::sys::{Socket, SocketAddr};

/// `NETLINK_NETFILTER` of `include/uapi/linux/netlink.h`.
const NETLINK_NETFILTER: isize = 12;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE`, of `include/uapi/linux/netfilter`.
const GET_TABLE: u16 = 10 << 8 | 1;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETSET`
const GET_SET: u16 = 10 << 8 | 10;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const DUMP: u16 = 0x301;
/// `NLMSG_DONE`: the end of a list.
const DONE: u16 = 3;
/// Bytes of `struct nlmsghdr` and of `struct nfgenmsg`.
const LENGTH: u32 = 16 + 4;

/// Certainly none? An error, as without CAP_NET_ADMIN, is no answer, and so is everything else.
pub fn none() -> bool {
    ask(GET_TABLE).is_ok_and(|kind| kind == DONE)
}

/// Certainly no sets in them, not even such as have no name?
pub fn no_sets() -> bool {
    ask(GET_SET).is_ok_and(|kind| kind == DONE)
}

/// The kind of the first message of the list.
fn ask(what: u16) -> io::Result<u16> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut asked = Vec::new();
    asked.extend(LENGTH.to_ne_bytes());
    asked.extend(what.to_ne_bytes());
    asked.extend(DUMP.to_ne_bytes());
    // Sequence number, sender, and a family of 0: all of them.
    asked.resize(LENGTH as usize, 0);
    socket.send(&asked, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    match answer.get(4..6) {
        Some(&[low, high]) => Ok(u16::from_ne_bytes([low, high])),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
