//! How does a record reach the user half, and what if there is no room?

use core::mem::MaybeUninit;

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_boot_ns,
    macros::map,
    maps::{PerCpuArray, RingBuf, ring_buf::RingBufEntry},
};
use imds_trace_ebpf::record::Header;

/// 2 MiB hold some 20,000 records without payload, or 350 exchanges: a hundredth of a second of the fastest client, and its reader comes
/// three hundred times a second. They are taken for good, and aya maps them twice. The loader may set another size.
const RING_BYTES: u32 = 2 << 20;

#[map]
static RECORDS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Room for one `T`, or nothing, which is counted.
#[inline(always)]
pub fn reserve<T: 'static>() -> Option<RingBufEntry<T>> {
    let entry = RECORDS.reserve::<T>(0);
    if entry.is_none() {
        lost();
    }
    entry
}

/// One record that could not be sent, or not be read.
#[inline(always)]
pub fn lost() {
    if let Some(count) = LOST.get_ptr_mut(0) {
        // SAFETY: the slot of this CPU. A program that interrupts this one may write it as well: then one loss too few is counted.
        unsafe { *count += 1 }
    }
}

/// Where `entry` is written. Every byte the reader will look at must be written before `submit`.
#[inline(always)]
pub fn place<T>(entry: &mut MaybeUninit<T>) -> *mut T {
    entry.as_mut_ptr()
}

/// A record's beginning: now, what it is, how many bytes count.
#[inline(always)]
pub fn header(kind: u32, len: usize) -> Header {
    Header {
        // SAFETY: the helper takes nothing and only reads the clock.
        at: unsafe { bpf_ktime_get_boot_ns() },
        kind,
        len: len as u32,
    }
}
