//! Who connects to a watched endpoint? The task is read where it is certain, the port where it is chosen.
//!
//! The tracepoint alone does not do: since Linux 7.0 a task can be preempted in it, and until that task goes on no other one on its
//! processor gets this program run (`recursion_misses` in its fdinfo). Programs of cgroups know no such thing. So the socket is
//! named in the attempt already, and what its SYN will say is told from there, too; the tracepoint then repeats it.

use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::{
    bindings::{BPF_RB_NO_WAKEUP, bpf_sock_ops},
    programs::{RawTracePointContext, SockOpsContext},
};
use imds_trace_ebpf::record::{Connect, Connected, Counted, kind, state};

use crate::{
    drop::read,
    emit, global,
    global::offset,
    redirect,
    task::{self, ConnectWithTask},
};

/// What a socket of a cgroup does, `include/uapi/linux/bpf.h`: it is about to send its SYN.
const BPF_SOCK_OPS_TCP_CONNECT_CB: u32 = 3;
/// What such a program gives; with its answer left alone, the kernel goes on as without it.
const DONE: u32 = 1;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;

/// `ipv6_pinfo.hop_limit` is 9 signed bits on older kernels, 16 on newer; all ones is "not set" in both.
const V6_HOP_LIMIT_UNSET: u16 = 0x1ff;

/// Looks at one state change.
#[inline(always)]
pub fn observe(ctx: &RawTracePointContext) -> i32 {
    let sk: *const u8 = ctx.arg(0);
    let old: u32 = ctx.arg(1);
    let new: u32 = ctx.arg(2);
    if old == state::CLOSE && new == state::SYN_SENT {
        let _ = connect(sk);
    } else if old == state::SYN_SENT && (new == state::ESTABLISHED || new == state::CLOSE) {
        let _ = connected(sk, new);
    } else if matches!(new, state::CLOSE_WAIT | state::FIN_WAIT1 | state::LAST_ACK | state::CLOSE) {
        let _ = counted(sk, old, new);
    }
    0
}

/// The two ends of a socket that goes to a watched endpoint.
struct Ends {
    version: u8,
    source: [u8; 16],
    destination: [u8; 16],
    destination_port: u16,
}

#[inline(always)]
fn ends(sk: *const u8) -> Option<Ends> {
    // First what most sockets are told apart by.
    let (to_v4, family) = address_and_family(sk)?;
    let is_watched = global::is_endpoint_v4(to_v4);
    if !is_watched && family != AF_INET6 {
        return None;
    }
    let mut ends = Ends { version: 4, source: [0; 16], destination: [0; 16], destination_port: 0 };
    if family == AF_INET6 {
        let to: [u32; 4] = read(sk, offset!(skc_v6_daddr)?)?;
        // An IPv6 socket that speaks IPv4 (::ffff:a.b.c.d), as Java opens them, is handled as the IPv4 socket it is.
        let mapped = to[0] == 0 && to[1] == 0 && to[2] == u32::to_be(0xffff);
        if !mapped {
            if !global::is_endpoint_v6(&to) {
                return None;
            }
            ends.version = 6;
            ends.destination = read(sk, offset!(skc_v6_daddr)?)?;
            ends.source = read(sk, offset!(skc_v6_rcv_saddr)?)?;
        }
    } else if family != AF_INET {
        return None;
    }
    if ends.version == 4 {
        if !is_watched {
            return None;
        }
        let from: [u8; 4] = read(sk, offset!(skc_rcv_saddr)?)?;
        ends.destination[..4].copy_from_slice(&to_v4.to_ne_bytes());
        ends.source[..4].copy_from_slice(&from);
    }
    // Only TCP changes state this way, but SCTP and MPTCP subflows share the tracepoint.
    if read::<u16>(sk, offset!(sk_protocol)?)? != IPPROTO_TCP {
        return None;
    }
    ends.destination_port = u16::from_be(read(sk, offset!(skc_dport)?)?);
    Some(ends)
}

/// Its IPv4 destination and its family: with one read, as they lie in every kernel so far.
#[inline(always)]
fn address_and_family(sk: *const u8) -> Option<(u32, u16)> {
    let (address, family) = (offset!(skc_daddr)?, offset!(skc_family)?);
    if family.wrapping_sub(address) == 16 {
        let words: [u32; 5] = read(sk, address)?;
        return Some((words[0], words[4] as u16));
    }
    Some((read(sk, address)?, read(sk, family)?))
}

/// CLOSE to SYN_SENT runs in the task that called connect().
#[inline(always)]
fn connect(sk: *const u8) -> Option<()> {
    let ends = ends(sk)?;
    let net: *const u8 = read(sk, offset!(skc_net)?)?;
    if task::take_told() {
        let mut entry = emit::reserve::<Connect>()?;
        // SAFETY: the entry has room for one `Connect`.
        unsafe { write(emit::place(&mut entry), sk, net, &ends, size_of::<Connect>()) };
        entry.submit(0);
        return Some(());
    }
    let mut entry = emit::reserve::<ConnectWithTask>()?;
    let to = emit::place(&mut entry);
    // SAFETY: the entry has room for one `ConnectWithTask`.
    unsafe {
        write(addr_of_mut!((*to).connect), sk, net, &ends, size_of::<ConnectWithTask>());
        task::describe(addr_of_mut!((*to).task));
    }
    entry.submit(0);
    Some(())
}

/// # Safety
/// `to` must have room for one `Connect`.
#[inline(always)]
unsafe fn write(to: *mut Connect, sk: *const u8, net: *const u8, ends: &Ends, len: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        addr_of_mut!((*to).header).write(emit::header(kind::CONNECT, len));
        addr_of_mut!((*to).socket).write(sk as u64);
        addr_of_mut!((*to).destination).write(ends.destination);
        addr_of_mut!((*to).netns).write(offset!(net_inum).and_then(|at| read(net, at)).unwrap_or(0));
        addr_of_mut!((*to).destination_port).write(ends.destination_port);
        addr_of_mut!((*to).version).write(ends.version);
        addr_of_mut!((*to).ttl).write(initial_ttl(sk, net, ends.version).unwrap_or(0));
        task::name(to);
    }
}

/// The TTL that the socket's packets start with: its own setting, else its namespace's.
#[inline(always)]
pub fn initial_ttl(sk: *const u8, net: *const u8, version: u8) -> Option<u8> {
    if version == 4 {
        let own: i16 = read(sk, offset!(inet_uc_ttl)?)?;
        if own >= 0 {
            return Some(own as u8);
        }
        return read(net, offset!(net_default_ttl)?);
    }
    let pinet6: *const u8 = read(sk, offset!(inet_pinet6)?)?;
    let bits: u16 = read(pinet6, offset!(pinet6_hop_limit)?)?;
    let own = bits >> (offset!(pinet6_hop_limit_shift)? & 7) & V6_HOP_LIMIT_UNSET;
    if own != V6_HOP_LIMIT_UNSET {
        return Some(own as u8);
    }
    let all: *const u8 = read(net, offset!(net_v6_devconf_all)?)?;
    let default: u32 = read(all, offset!(v6_devconf_hop_limit)?)?;
    Some(default as u8)
}

/// SYN_SENT to ESTABLISHED or CLOSE: the port and the initial sequence number are known now.
#[inline(always)]
fn connected(sk: *const u8, new: u32) -> Option<()> {
    // Established: everything up to the SYN is acknowledged. Given up: nothing was ever queued behind the SYN.
    let after_syn: u32 =
        if new == state::ESTABLISHED { read(sk, offset!(tcp_snd_una)?)? } else { read(sk, offset!(tcp_write_seq)?)? };
    let mut connected = described(sk, kind::CONNECTED, after_syn.wrapping_sub(1))?;
    connected.established = u8::from(new == state::ESTABLISHED);
    connected.error = error(sk, offset!(sk_err));
    let mut entry = emit::reserve::<Connected>()?;
    // SAFETY: the entry has room for one `Connected`.
    unsafe { emit::place(&mut entry).write(connected) };
    entry.submit(0);
    Some(())
}

/// ESTABLISHED, or what comes behind it, to one of the states that a side's end or both's lead to.
///
/// `tcp_snd_una_update` adds to `bytes_acked` what `snd_una` goes on by, which begins at the SYN's own number: SYN and FIN count.
/// `tcp_rcv_nxt_update` adds to `bytes_received` what `rcv_nxt` goes on by, which begins behind the other side's SYN: its FIN counts.
#[inline(always)]
fn counted(sk: *const u8, old: u32, new: u32) -> Option<()> {
    // Those who were not connected, or failed to connect.
    if matches!(old, state::CLOSE | state::SYN_SENT) {
        return None;
    }
    let bytes_received = offset!(tcp_bytes_received)?;
    let bytes_acked = offset!(tcp_bytes_acked)?;
    let (flags, done) = (offset!(skc_flags)?, offset!(sock_done)?);
    let mut socket = described(sk, kind::COUNTED, 0)?;
    // An accepted socket has this of the one that listens: its numbers begin elsewhere, and it is nobody's who asks IMDS.
    if offset!(sk_max_ack_backlog).and_then(|at| read::<u32>(sk, at)).unwrap_or(0) != 0 {
        return None;
    }
    let acked: u64 = read(sk, bytes_acked)?;
    let received: u64 = read(sk, bytes_received)?;
    let snd_una: u32 = read(sk, offset!(tcp_snd_una)?)?;
    let write_seq: u32 = read(sk, offset!(tcp_write_seq)?)?;
    // In these states its own FIN was queued, the last of what it sends. In the two before them it is not queued yet.
    let sent_fin = matches!(old, state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING | state::LAST_ACK);
    let fin_acked = u64::from(sent_fin && snd_una == write_seq);
    // `tcp_fin` sets it before anything else, and behind `tcp_rcv_nxt_update`.
    let fin_received = read::<u64>(sk, flags)? >> (done & 63) & 1;
    socket.header.len = size_of::<Counted>() as u32;
    socket.isn = snd_una.wrapping_sub(acked as u32);
    socket.established = u8::from(old != state::SYN_RECV);
    socket.error = match error(sk, offset!(sk_err)) {
        0 => error(sk, offset!(sk_err_soft)),
        error => error,
    };
    let mut entry = emit::reserve::<Counted>()?;
    let counted = Counted {
        socket,
        received: received.wrapping_sub(fin_received),
        acked: acked.saturating_sub(1 + fin_acked),
        state: new,
        reserved: 0,
    };
    // SAFETY: the entry has room for one `Counted`.
    unsafe { emit::place(&mut entry).write(counted) };
    entry.submit(0);
    Some(())
}

/// An error that the socket was told; 0 if none, or not known.
#[inline(always)]
fn error(sk: *const u8, field: Option<usize>) -> u16 {
    field.and_then(|at| read::<u32>(sk, at)).unwrap_or(0) as u16
}

/// Looks at what a socket of a cgroup does: a SYN is about to be sent. Never answers anything, so nothing goes another way by it.
#[inline(always)]
pub fn observe_ops(ctx: &SockOpsContext) -> u32 {
    if ctx.op() == BPF_SOCK_OPS_TCP_CONNECT_CB && goes_to_an_endpoint(ctx.ops) {
        let _ = sending(ctx);
    }
    DONE
}

/// May this socket go to a watched endpoint? Read out of the context: a record is reserved only behind this, because giving one back
/// wakes the reader.
#[inline(always)]
fn goes_to_an_endpoint(ops: *mut bpf_sock_ops) -> bool {
    // SAFETY: the kernel hands the program a valid context.
    if global::is_endpoint_v4(unsafe { (*ops).remote_ip4 }) {
        return true;
    }
    // SAFETY: as above; word by word and volatile, because the verifier refuses wider reads of this context.
    global::watches_v6()
        && u32::from(AF_INET6) == unsafe { (*ops).family }
        && unsafe {
            let words = addr_of!((*ops).remote_ip6).cast::<u32>();
            global::is_endpoint_v6(&[
                words.read_volatile(),
                words.add(1).read_volatile(),
                words.add(2).read_volatile(),
                words.add(3).read_volatile(),
            ])
        }
}

#[inline(always)]
fn sending(ctx: &SockOpsContext) -> Option<()> {
    // SAFETY: the kernel hands the program a valid context.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    let mut entry = emit::reserve::<Connected>()?;
    let to = emit::place(&mut entry);
    // SAFETY: the entry has room for one `Connected`.
    let sk = unsafe { address(sk.cast(), addr_of_mut!((*to).socket)) };
    // The SYN takes this number.
    let next = offset!(tcp_write_seq).and_then(|at| read::<u32>(sk, at));
    match next.and_then(|next| described(sk, kind::SENDING, next)) {
        Some(connected) => {
            redirect::note(connected.isn, connected.source_port);
            // SAFETY: as above.
            unsafe { to.write(connected) };
            entry.submit(0);
        }
        None => entry.discard(u64::from(BPF_RB_NO_WAKEUP)),
    }
    Some(())
}

/// The address of a socket as a number, by way of `memory`: the verifier lets nobody calculate with such a pointer.
///
/// # Safety
/// `memory` must be a record's.
#[inline(always)]
pub unsafe fn address(sk: *const u8, memory: *mut u64) -> *const u8 {
    // SAFETY: the caller's promise.
    unsafe {
        memory.write_volatile(sk as u64);
        memory.read_volatile() as *const u8
    }
}

#[inline(always)]
fn described(sk: *const u8, kind: u32, isn: u32) -> Option<Connected> {
    let ends = ends(sk)?;
    let net: *const u8 = read(sk, offset!(skc_net)?)?;
    let source_port: u16 = read(sk, offset!(inet_sport)?)?;
    Some(Connected {
        header: emit::header(kind, size_of::<Connected>()),
        socket: sk as u64,
        source: ends.source,
        destination: ends.destination,
        isn,
        source_port: u16::from_be(source_port),
        destination_port: ends.destination_port,
        netns: offset!(net_inum).and_then(|at| read(net, at)).unwrap_or(0),
        version: ends.version,
        established: 0,
        error: 0,
    })
}
