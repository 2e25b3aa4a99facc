//! Which IMDS packet did the kernel just drop, where and why? In any network namespace, with a socket or without.

use core::ptr::addr_of_mut;

use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_probe_read_kernel,
        generated::{self, bpf_get_stack},
    },
    programs::RawTracePointContext,
};
use imds_trace_ebpf::record::{CALLERS, Drop, kind};
use zerocopy::FromZeros;

use crate::{
    emit, filter,
    global::{self, offset},
    packet::{self, Kernel, Parsed},
};

/// `SKB_DROP_REASON_NOT_SPECIFIED` is not 0; 0 is what a kernel without reasons says.
const NO_REASON: u32 = 0;

/// Looks at one freed packet.
#[inline(always)]
pub fn observe(ctx: &RawTracePointContext) -> i32 {
    let _ = record(ctx);
    0
}

#[inline(always)]
fn record(ctx: &RawTracePointContext) -> Option<()> {
    let skb: *const u8 = ctx.arg(0);
    let (ethertype, network_header) = protocol_and_start(skb)?;
    if !filter::may_be_read(ethertype) {
        return None;
    }
    let head: *const u8 = read(skb, offset!(skb_head)?)?;
    let bytes = Kernel(head.wrapping_add(network_header as usize));
    if !filter::freed_may_be_ours(&bytes, ethertype) {
        return None;
    }
    let mut parsed = Parsed::default();
    packet::parse(&bytes, ethertype, &mut parsed)?;
    // That an error about a packet was lost says nothing of the packet.
    if parsed.icmp_type != 0 {
        return None;
    }

    let dev = device(skb);
    let mut entry = emit::reserve::<Drop>()?;
    let to = emit::place(&mut entry);
    let reason = if global::kfree_skb_has_reason() { ctx.arg(2) } else { NO_REASON };
    // SAFETY: the entry has room for one `Drop`.
    unsafe {
        addr_of_mut!((*to).header).write(emit::header(kind::DROP, size_of::<Drop>()));
        addr_of_mut!((*to).network).write(parsed.network);
        addr_of_mut!((*to).location).write(ctx.arg(1));
        addr_of_mut!((*to).reason).write(reason);
        addr_of_mut!((*to).netns).write(netns(skb, dev).unwrap_or(0));
        addr_of_mut!((*to).ifindex).write(dev.and_then(|dev| read(dev, offset!(dev_ifindex)?)).unwrap_or(0));
        addr_of_mut!((*to).reserved).write(0);
        addr_of_mut!((*to).ifname).write(dev.and_then(|dev| read(dev, offset!(dev_name)?)).unwrap_or([0; 16]));
        addr_of_mut!((*to).callers).write([0; CALLERS]);
        // Without callers where the kernel cannot unwind its stack: they stay 0.
        bpf_get_stack(ctx.as_ptr(), addr_of_mut!((*to).callers).cast(), size_of::<[u64; CALLERS]>() as u32, 0);
    }
    entry.submit(0);
    Some(())
}

/// Its protocol in host order, and where its network header begins: with one read, as far as they lie together.
#[inline(always)]
fn protocol_and_start(skb: *const u8) -> Option<(u16, u16)> {
    let (protocol, start) = (offset!(skb_protocol)?, offset!(skb_network_header)?);
    // Between them stands `transport_header` alone, on every kernel so far.
    if start.wrapping_sub(protocol) == 4 {
        let [protocol, _, start]: [u16; 3] = read(skb, protocol)?;
        return Some((u16::from_be(protocol), start));
    }
    Some((u16::from_be(read(skb, protocol)?), read(skb, start)?))
}

/// The interface the packet is on, or the one it was routed to.
#[inline(always)]
fn device(skb: *const u8) -> Option<*const u8> {
    let dev: *const u8 = read(skb, offset!(skb_dev)?)?;
    if !dev.is_null() {
        return Some(dev);
    }
    let dst: usize = read(skb, offset!(skb_dst)?)?;
    // The lowest bits are flags (SKB_DST_NOREF).
    let dst = (dst & !3) as *const u8;
    if dst.is_null() {
        return None;
    }
    let dev: *const u8 = read(dst, offset!(dst_dev)?)?;
    (!dev.is_null()).then_some(dev)
}

#[inline(always)]
fn netns(skb: *const u8, dev: Option<*const u8>) -> Option<u32> {
    let net: *const u8 = match dev {
        Some(dev) => read(dev, offset!(dev_net)?)?,
        None => {
            let sk: *const u8 = read(skb, offset!(skb_sk)?)?;
            if sk.is_null() {
                return None;
            }
            read(sk, offset!(skc_net)?)?
        }
    };
    read(net, offset!(net_inum)?)
}

/// A `T` at `offset` of the kernel structure at `base`, or zeros where nothing can be read: then what is read from there is zeros
/// as well. Without a branch: the verifier follows each, and a chain of reads with one in each link takes it seconds.
#[inline(always)]
pub fn follow<T: FromZeros>(base: *const u8, offset: usize) -> T {
    let mut found = T::new_zeroed();
    // SAFETY: the helper fails on an address that cannot be read, and has then written zeros.
    unsafe {
        generated::bpf_probe_read_kernel(
            (&raw mut found).cast(),
            size_of::<T>() as u32,
            base.wrapping_add(offset).cast(),
        );
    }
    found
}

/// A `T` at `offset` of the kernel structure at `base`.
#[inline(always)]
pub fn read<T>(base: *const u8, offset: usize) -> Option<T> {
    // SAFETY: the helper fails on an address that cannot be read; `T` is an integer, a pointer or an array of bytes.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(offset).cast::<T>()) }.ok()
}
