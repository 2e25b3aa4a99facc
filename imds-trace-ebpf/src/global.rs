//! What did the loader tell us before it loaded us, and how do we read it?

use core::ptr::{addr_of, read_volatile};

use imds_trace_ebpf::record::{ABSENT, Endpoints, MAX_ENDPOINTS, Offsets};

#[unsafe(no_mangle)]
static ENDPOINTS: Endpoints =
    Endpoints { v4: [[0; 4]; MAX_ENDPOINTS], v6: [[0; 16]; MAX_ENDPOINTS], v4_len: 0, v6_len: 0 };

#[unsafe(no_mangle)]
pub static OFFSETS: Offsets = Offsets::absent();

/// Reads one offset. Volatile, or the compiler would fold the initial value in; the verifier knows the loaded value and removes
/// what is behind an [`ABSENT`] one.
macro_rules! offset {
    ($field:ident $([$number:ident])?) => {
        $crate::global::read_offset(core::ptr::addr_of!($crate::global::OFFSETS.$field$([$number])?))
    };
}
pub(crate) use offset;

/// The offset, `None` where this kernel has no such field.
#[inline(always)]
pub fn read_offset(field: *const u32) -> Option<usize> {
    // SAFETY: `field` points into OFFSETS, which lives as long as the program and is never written after load.
    let value = unsafe { read_volatile(field) };
    (value != ABSENT).then_some(value as usize)
}

/// Does `skb:kfree_skb` say why?
#[inline(always)]
pub fn kfree_skb_has_reason() -> bool {
    // SAFETY: as in `read_offset`.
    unsafe { read_volatile(addr_of!(OFFSETS.kfree_skb_has_reason)) == 1 }
}

/// Is this IPv4 address one of the watched?
#[inline(always)]
pub fn is_endpoint_v4(address: u32) -> bool {
    // SAFETY: as in `read_offset`.
    let len = unsafe { read_volatile(addr_of!(ENDPOINTS.v4_len)) } as usize;
    for i in 0..MAX_ENDPOINTS {
        if i >= len {
            break;
        }
        // SAFETY: `i` is below MAX_ENDPOINTS; the array is 4-byte aligned because the structure is.
        let watched = unsafe { read_volatile(addr_of!(ENDPOINTS.v4[i]).cast::<u32>()) };
        if watched == address {
            return true;
        }
    }
    false
}

/// Is any IPv6 address watched?
#[inline(always)]
pub fn watches_v6() -> bool {
    // SAFETY: as in `read_offset`.
    unsafe { read_volatile(addr_of!(ENDPOINTS.v6_len)) != 0 }
}

/// Is this IPv6 address one of the watched?
#[inline(always)]
pub fn is_endpoint_v6(address: &[u32; 4]) -> bool {
    // SAFETY: as in `read_offset`.
    let len = unsafe { read_volatile(addr_of!(ENDPOINTS.v6_len)) } as usize;
    for i in 0..MAX_ENDPOINTS {
        if i >= len {
            break;
        }
        // SAFETY: as above; 16 bytes are four words.
        let watched = unsafe { read_volatile(addr_of!(ENDPOINTS.v6[i]).cast::<[u32; 4]>()) };
        if watched[0] == address[0] && watched[1] == address[1] && watched[2] == address[2] && watched[3] == address[3]
        {
            return true;
        }
    }
    false
}
