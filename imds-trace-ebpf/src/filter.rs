//! May this packet be one of ours? What every packet on the host pays, so it comes before everything else: two words are compared.

use core::mem::MaybeUninit;

use aya_ebpf::{bindings::__sk_buff, helpers::generated};

use crate::{
    global,
    packet::{
        ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, Kernel, SYN,
        SYN_ACK_RST_FIN,
    },
};

/// Bytes of an Ethernet header, of the shortest frame, and of the fixed part of IP headers.
const ETH_HLEN: usize = 14;
const ETH_ZLEN: u32 = 60;
const V4_HLEN: usize = 20;
const V6_HLEN: usize = 40;
/// Bytes of a TCP header up to its flags, these included; and an IPv4 header's first byte without options.
const TCP_FLAGS: usize = 14;
const V4_PLAIN: u8 = 0x45;

/// May the packet at this tc hook be one for [`crate::packet::parse`]? Says no only where it is certain: what most packets on a host pay is this.
///
/// The packet's own bytes are compared, without a helper. Where its network header begins is not known here: behind an Ethernet
/// header, or at once on a device without link layer. So both places are looked at, and a packet that has a fitting IP header at
/// neither, or not in its linear part, is left to [`crate::packet::parse`], which can ask.
#[inline(always)]
pub fn may_be_ours(skb: *mut __sk_buff, ethertype: u16) -> bool {
    // SAFETY: the kernel hands the program a valid context; the verifier makes packet pointers of the last two.
    let (len, start, end) = unsafe { ((*skb).len, (*skb).data as usize, (*skb).data_end as usize) };
    match ethertype {
        ETH_P_IP => {
            start + ETH_HLEN + V4_HLEN > end || {
                // SAFETY: that many bytes are there.
                let (behind, at_once) = unsafe { (look_v4(start + ETH_HLEN, end), look_v4(start, end)) };
                behind.or(at_once, len)
            }
        }
        ETH_P_IPV6 if !global::watches_v6() => false,
        ETH_P_IPV6 => {
            start + ETH_HLEN + V6_HLEN > end || {
                // SAFETY: that many bytes are there.
                let (behind, at_once) = unsafe { (look_v6(start + ETH_HLEN, end), look_v6(start, end)) };
                behind.or(at_once, len)
            }
        }
        ETH_P_8021Q | ETH_P_8021AD => true,
        _ => false,
    }
}

/// What is found where an IP header may begin.
struct Look {
    /// An address of a watched endpoint.
    is_ours: bool,
    /// The packet's length as the header has it, if it is somebody else's for certain: not of ICMP, which may quote our packets, nor of a SYN, which may be one of ours that was sent elsewhere.
    others: Option<u32>,
}

impl Look {
    /// Is it the header of somebody else's packet?
    #[inline(always)]
    fn is_somebody_elses(&self) -> bool {
        !self.is_ours && self.others.is_some()
    }

    /// What this, found behind an Ethernet header, and `at_once`, found where the frame of `len` bytes begins, come to.
    #[inline(always)]
    fn or(self, at_once: Self, len: u32) -> bool {
        if self.is_ours || at_once.is_ours {
            return true;
        }
        let behind = len.wrapping_sub(ETH_HLEN as u32);
        // A short frame is padded.
        let is_others = match self.others {
            Some(others) => others == behind || (others < behind && len <= ETH_ZLEN),
            None => false,
        };
        !is_others && at_once.others != Some(len)
    }
}

/// # Safety
/// There must be [`V4_HLEN`] bytes at `at`, and those up to `end`.
#[inline(always)]
unsafe fn look_v4(at: usize, end: usize) -> Look {
    // SAFETY: the caller's promise.
    unsafe {
        let is_ours = global::is_endpoint_v4(four(at + 12)) || global::is_endpoint_v4(four(at + 16));
        let may_open = byte(at + 9) == IPPROTO_TCP && (byte(at) != V4_PLAIN || opens(at + V4_HLEN, end));
        let is_others = byte(at) >> 4 == 4 && byte(at + 9) != IPPROTO_ICMP && !may_open;
        Look { is_ours, others: is_others.then(|| u32::from(two(at + 2))) }
    }
}

/// # Safety
/// There must be [`V6_HLEN`] bytes at `at`, and those up to `end`.
#[inline(always)]
unsafe fn look_v6(at: usize, end: usize) -> Look {
    // SAFETY: the caller's promise.
    unsafe {
        let address = |at| [four(at), four(at + 4), four(at + 8), four(at + 12)];
        let is_ours = global::is_endpoint_v6(&address(at + 8)) || global::is_endpoint_v6(&address(at + 24));
        let may_open = byte(at + 6) == IPPROTO_TCP && opens(at + V6_HLEN, end);
        let is_others = byte(at) >> 4 == 6 && byte(at + 6) != IPPROTO_ICMPV6 && !may_open;
        Look { is_ours, others: is_others.then(|| V6_HLEN as u32 + u32::from(two(at + 4))) }
    }
}

/// May the TCP header at `at` be that of a SYN?
///
/// # Safety
/// The bytes from `at` to `end` must lie in the packet.
#[inline(always)]
unsafe fn opens(at: usize, end: usize) -> bool {
    // SAFETY: the caller's promise.
    at + TCP_FLAGS > end || unsafe { byte(at + TCP_FLAGS - 1) } & SYN_ACK_RST_FIN == SYN
}

/// # Safety
/// `at` must lie in the packet.
#[inline(always)]
unsafe fn byte(at: usize) -> u8 {
    // SAFETY: the caller's promise.
    unsafe { *(at as *const u8) }
}

/// In host order.
///
/// # Safety
/// Two bytes must lie in the packet at `at`.
#[inline(always)]
unsafe fn two(at: usize) -> u16 {
    // SAFETY: the caller's promise; as in `four`.
    u16::from_be(unsafe { (at as *const u16).read_unaligned() })
}

/// # Safety
/// Four bytes must lie in the packet at `at`.
#[inline(always)]
unsafe fn four(at: usize) -> u32 {
    // SAFETY: the caller's promise; the kernel lets programs read packets where it reads them itself, unaligned or not.
    unsafe { (at as *const u32).read_unaligned() }
}

/// Is this a protocol that [`crate::packet::parse`] knows?
#[inline(always)]
pub fn may_be_read(ethertype: u16) -> bool {
    matches!(ethertype, ETH_P_IP | ETH_P_IPV6 | ETH_P_8021Q | ETH_P_8021AD)
}

/// May the packet in kernel memory be one for [`crate::packet::parse`]? Where its network header begins is known.
#[inline(always)]
pub fn freed_may_be_ours(bytes: &Kernel, ethertype: u16) -> bool {
    match ethertype {
        ETH_P_IP => {
            let mut head = MaybeUninit::<[u8; V4_HLEN + TCP_FLAGS]>::uninit();
            // SAFETY: the helper writes all of it, zeros where it cannot read.
            read_raw(bytes, head.as_mut_ptr())
                && unsafe {
                    !look_v4(head.as_ptr() as usize, head.as_ptr() as usize + V4_HLEN + TCP_FLAGS).is_somebody_elses()
                }
        }
        ETH_P_IPV6 if !global::watches_v6() => false,
        ETH_P_IPV6 => {
            let mut head = MaybeUninit::<[u8; V6_HLEN + TCP_FLAGS]>::uninit();
            // SAFETY: as above.
            read_raw(bytes, head.as_mut_ptr())
                && unsafe {
                    !look_v6(head.as_ptr() as usize, head.as_ptr() as usize + V6_HLEN + TCP_FLAGS).is_somebody_elses()
                }
        }
        ETH_P_8021Q | ETH_P_8021AD => true,
        _ => false,
    }
}

#[inline(always)]
fn read_raw<const N: usize>(bytes: &Kernel, to: *mut [u8; N]) -> bool {
    // SAFETY: the helper fails on an address that cannot be read, and has then written zeros.
    unsafe { generated::bpf_probe_read_kernel(to.cast(), N as u32, bytes.0.cast()) == 0 }
}
