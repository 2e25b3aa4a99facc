//! Is this the SYN of a connection to a watched endpoint, which something on this host sent elsewhere? Known by its first sequence
//! number and its port, which a redirect (DNAT) leaves alone. The addresses are not looked at: those are what was changed.
//!
//! Cannot know: what follows the SYN. Its answers come back under the endpoint's address, and are seen then.

use aya_ebpf::{macros::map, maps::LruHashMap};

/// Connections remembered at most, the latest: a SYN crosses the host within microseconds, and is repeated for minutes at most.
const MAX_SYNS: u32 = 16_384;

/// What no redirect changes of a SYN.
#[repr(C)]
#[derive(Clone, Copy)]
struct Syn {
    isn: u32,
    source_port: u32,
}

#[map]
static SYNS: LruHashMap<Syn, u8> = LruHashMap::with_max_entries(MAX_SYNS, 0);

/// A socket is about to send, or has sent, this SYN to a watched endpoint.
#[inline(always)]
pub fn note(isn: u32, source_port: u16) {
    let _ = SYNS.insert(Syn { isn, source_port: source_port.into() }, 1, 0);
}

/// Was there a SYN with these numbers to a watched endpoint?
#[inline(always)]
pub fn is_known(isn: u32, source_port: u16) -> bool {
    SYNS.get_ptr(Syn { isn, source_port: source_port.into() }).is_some()
}
