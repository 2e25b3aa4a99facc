//! Which IMDS packet passes this tc hook? Never changes a packet, never decides its fate.

use core::ptr::addr_of_mut;

use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use imds_trace_ebpf::record::{IcmpError, Packet, SNAP, kind};

use crate::{
    emit, filter,
    packet::{self, Parsed, SYN, Skb},
    redirect,
};

/// `TCX_NEXT` and `TC_ACT_UNSPEC` are the same number: the next program decides.
const NEXT: i32 = -1;

/// Payload bytes that most requests for a token and most answers stay below: those take half of the room.
const FEW: usize = 448;
/// TCP flags.
const SYN_ACK: u8 = 0x12;

/// A packet with its first payload bytes.
#[repr(C)]
struct PacketWithPayload<const N: usize> {
    packet: Packet,
    payload: [u8; N],
}

/// Looks at one packet at one hook.
#[inline(always)]
pub fn observe(ctx: &TcContext, direction: u8) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel hands the program a valid context.
    let ethertype = unsafe { u16::from_be((*skb).protocol as u16) };
    if !filter::may_be_ours(skb, ethertype) {
        return NEXT;
    }
    // SAFETY: as above.
    let ifindex = unsafe { (*skb).ifindex };
    let mut parsed = Parsed::default();
    if packet::parse(&Skb(skb), ethertype, &mut parsed).is_none() {
        return NEXT;
    }
    debug!(
        ctx,
        "ifindex {} direction {} ttl {} flags {:x} payload {}",
        ifindex,
        direction,
        parsed.network.ttl,
        parsed.network.tcp_flags,
        parsed.network.payload_len
    );
    if parsed.icmp_type != 0 {
        icmp_error(&parsed, ifindex, direction);
    } else if parsed.network.payload_len == 0 {
        // Of a connection whose socket nobody sees (a virtual machine's), this is where it is known first.
        if parsed.network.tcp_flags & SYN_ACK == SYN && parsed.network.redirected == 0 {
            redirect::note(parsed.network.seq, parsed.network.source_port);
        }
        plain(&parsed, ifindex, direction);
    } else if parsed.network.payload_len as usize <= FEW {
        with_payload::<FEW>(&Skb(skb), &parsed, ifindex, direction);
    } else {
        with_payload::<SNAP>(&Skb(skb), &parsed, ifindex, direction);
    }
    NEXT
}

#[inline(always)]
fn plain(parsed: &Parsed, ifindex: u32, direction: u8) {
    let Some(mut entry) = emit::reserve::<Packet>() else {
        return;
    };
    // SAFETY: the entry has room for one `Packet`.
    unsafe { write(emit::place(&mut entry), parsed, kind::PACKET, 0, ifindex, direction) };
    entry.submit(0);
}

#[inline(always)]
fn icmp_error(parsed: &Parsed, ifindex: u32, direction: u8) {
    let Some(mut entry) = emit::reserve::<IcmpError>() else {
        return;
    };
    let to = emit::place(&mut entry);
    // SAFETY: the entry has room for one `IcmpError`.
    unsafe {
        addr_of_mut!((*to).header).write(emit::header(kind::ICMP_ERROR, size_of::<IcmpError>()));
        addr_of_mut!((*to).network).write(parsed.network);
        addr_of_mut!((*to).sender).write(parsed.sender);
        addr_of_mut!((*to).ifindex).write(ifindex);
        addr_of_mut!((*to).direction).write(direction);
        addr_of_mut!((*to).icmp_type).write(parsed.icmp_type);
        addr_of_mut!((*to).icmp_code).write(parsed.icmp_code);
        addr_of_mut!((*to).reserved).write(0);
    }
    entry.submit(0);
}

#[inline(always)]
fn with_payload<const N: usize>(skb: &Skb, parsed: &Parsed, ifindex: u32, direction: u8) {
    let Some(mut entry) = emit::reserve::<PacketWithPayload<N>>() else {
        return;
    };
    let place = emit::place(&mut entry);
    // SAFETY: inside the reserved entry.
    let snapped = unsafe { snap::<N>(skb, parsed, addr_of_mut!((*place).payload).cast()) };
    // SAFETY: the entry begins with a `Packet`.
    unsafe { write(addr_of_mut!((*place).packet), parsed, kind::PACKET_WITH_PAYLOAD, snapped, ifindex, direction) };
    entry.submit(0);
}

/// Field by field, straight into the ring buffer: a `Packet` on the stack would not fit beside what the parser needs.
///
/// # Safety
/// `to` must have room for one `Packet`.
#[inline(always)]
unsafe fn write(to: *mut Packet, parsed: &Parsed, kind: u32, snapped: u32, ifindex: u32, direction: u8) {
    // SAFETY: the caller's promise.
    unsafe {
        addr_of_mut!((*to).header).write(emit::header(kind, size_of::<Packet>() + snapped as usize));
        addr_of_mut!((*to).network).write(parsed.network);
        addr_of_mut!((*to).ifindex).write(ifindex);
        addr_of_mut!((*to).snapped).write(snapped as u16);
        addr_of_mut!((*to).direction).write(direction);
        addr_of_mut!((*to).reserved).write(0);
    }
}

/// Copies the payload's beginning and says how many bytes that were.
#[inline(always)]
fn snap<const N: usize>(skb: &Skb, parsed: &Parsed, to: *mut u8) -> u32 {
    // The black box makes LLVM compare the very register that goes to the helper: the verifier tracks registers, and LLVM
    // would otherwise derive the length anew behind a comparison of something else. One less than the length is compared, because
    // verifiers before Linux 6.8 learn nothing from "not 0", and the helper takes no length of 0.
    let last = core::hint::black_box(parsed.network.payload_len.min(N as u32).wrapping_sub(1));
    if last >= N as u32 {
        return 0;
    }
    let len = last + 1;
    if skb.read_payload(parsed, to, len) { len } else { 0 }
}
