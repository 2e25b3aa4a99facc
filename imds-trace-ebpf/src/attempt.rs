//! Who is about to connect to a watched endpoint? Asked before the kernel looks for a route: a connect that finds none never
//! changes its socket's state, so nothing else would see it. Always lets the connect go on, and changes nothing.

use core::ptr::addr_of_mut;

use aya_ebpf::{bindings::bpf_sock_addr, programs::SockAddrContext};
use imds_trace_ebpf::record::kind;

use crate::{
    drop::read,
    emit, global,
    global::offset,
    socket::{address, initial_ttl},
    task::{self, ConnectWithTask},
};

/// The connect goes on.
const PROCEED: i32 = 1;

const IPPROTO_TCP: u32 = 6;

/// Looks at one connect() to an IPv4 address.
#[inline(always)]
pub fn observe_v4(ctx: &SockAddrContext) -> i32 {
    let to = ctx.sock_addr;
    // SAFETY: the kernel hands the program a valid context.
    let address = unsafe { (*to).user_ip4 };
    // The address first: almost every connect goes elsewhere.
    if !global::is_endpoint_v4(address) {
        return PROCEED;
    }
    // SAFETY: as above.
    let (port, protocol) = unsafe { ((*to).user_port, (*to).protocol) };
    if protocol == IPPROTO_TCP {
        record(to, 4, [address, 0, 0, 0], port);
    }
    PROCEED
}

/// Looks at one connect() to an IPv6 address.
#[inline(always)]
pub fn observe_v6(ctx: &SockAddrContext) -> i32 {
    let to = ctx.sock_addr;
    let address = address_v6(to);
    // An IPv6 socket that speaks IPv4 (::ffff:a.b.c.d).
    let mapped = address[0] == 0 && address[1] == 0 && address[2] == u32::to_be(0xffff);
    let (version, address) = if mapped { (4, [address[3], 0, 0, 0]) } else { (6, address) };
    let is_watched = if mapped { global::is_endpoint_v4(address[0]) } else { global::is_endpoint_v6(&address) };
    if !is_watched {
        return PROCEED;
    }
    // SAFETY: the kernel hands the program a valid context.
    let (port, protocol) = unsafe { ((*to).user_port, (*to).protocol) };
    // In one place: `record` is inlined, and would cost the verifier twice.
    if protocol == IPPROTO_TCP {
        record(to, version, address, port);
    }
    PROCEED
}

/// Word by word: the verifier refuses wider reads of this context.
#[inline(always)]
fn address_v6(to: *mut bpf_sock_addr) -> [u32; 4] {
    // SAFETY: as above; volatile, or the compiler would make one wide read of four.
    unsafe {
        let words = core::ptr::addr_of!((*to).user_ip6).cast::<u32>();
        [
            core::ptr::read_volatile(words),
            core::ptr::read_volatile(words.add(1)),
            core::ptr::read_volatile(words.add(2)),
            core::ptr::read_volatile(words.add(3)),
        ]
    }
}

#[inline(always)]
fn record(ctx: *mut bpf_sock_addr, version: u8, destination: [u32; 4], port: u32) {
    let Some(mut entry) = emit::reserve::<ConnectWithTask>() else {
        return;
    };
    let mut bytes = [0u8; 16];
    for (to, word) in bytes.chunks_exact_mut(4).zip(destination) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    let to = emit::place(&mut entry);
    // SAFETY: the entry has room for one `ConnectWithTask`.
    unsafe {
        let connect = addr_of_mut!((*to).connect);
        addr_of_mut!((*connect).header).write(emit::header(kind::ATTEMPT, size_of::<ConnectWithTask>()));
        let sk = address((*ctx).__bindgen_anon_1.sk.cast(), addr_of_mut!((*connect).socket));
        let net: *const u8 = offset!(skc_net).and_then(|at| read(sk, at)).unwrap_or(core::ptr::null());
        addr_of_mut!((*connect).destination).write(bytes);
        addr_of_mut!((*connect).netns).write(offset!(net_inum).and_then(|at| read(net, at)).unwrap_or(0));
        addr_of_mut!((*connect).destination_port).write(u16::from_be(port as u16));
        addr_of_mut!((*connect).version).write(version);
        addr_of_mut!((*connect).ttl).write(initial_ttl(sk, net, version).unwrap_or(0));
        task::name(connect);
        task::describe(addr_of_mut!((*to).task));
    }
    entry.submit(0);
    task::told();
}
