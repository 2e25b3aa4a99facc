//! How are a packet, a drop, a connect and its task written into the ring buffer, and what are the shared names?
//!
//! Integers and byte arrays only, no padding, no `bool`, enum or `Option`: both halves read the same bytes, checked by zerocopy.
//! All multi-byte integers are in host byte order, ports and TCP numbers included; addresses are in network order.

mod offsets;

pub use offsets::{ABSENT, CONTROLLERS, Offsets};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First payload bytes of a TCP segment that travel with a [`Packet`]. The longest request head seen from an SDK (Go v2, with
/// its `Amz-Sdk-*` headers and a token) is about 600 bytes.
pub const SNAP: usize = 1024;

/// Kinds of record, in [`Header::kind`].
pub mod kind {
    /// A [`super::Packet`] without payload bytes.
    pub const PACKET: u32 = 1;
    /// A [`super::Packet`] followed by payload bytes, of which the first `snapped` count, [`super::SNAP`] at most.
    pub const PACKET_WITH_PAYLOAD: u32 = 2;
    /// A [`super::Drop`].
    pub const DROP: u32 = 3;
    /// A [`super::Connect`]; a [`super::Task`] follows if `len` counts it.
    pub const CONNECT: u32 = 4;
    /// A [`super::Connected`].
    pub const CONNECTED: u32 = 5;
    /// A [`super::IcmpError`].
    pub const ICMP_ERROR: u32 = 6;
    /// A [`super::Connect`] and a [`super::Task`], of a task that is about to connect: no route was asked for yet. What is known of
    /// the task comes with this record, not again with the [`CONNECT`] that follows.
    pub const ATTEMPT: u32 = 7;
    /// A [`super::Connected`] of a socket whose SYN is about to be sent: it is not established, and has no error, yet.
    pub const SENDING: u32 = 8;
    /// A [`super::Counted`].
    pub const COUNTED: u32 = 9;
}

/// Values of [`Packet::direction`], relative to the interface.
pub mod direction {
    /// The packet came in by this interface.
    pub const INGRESS: u8 = 0;
    /// The packet goes out by this interface.
    pub const EGRESS: u8 = 1;
}

/// Names of maps, programs and globals that the loader looks up.
pub mod name {
    /// Ring buffer of records.
    pub const RECORDS: &str = "RECORDS";
    /// Per-CPU array, one slot: records that found no room in [`RECORDS`].
    pub const LOST: &str = "LOST";
    /// tc classifier on ingress.
    pub const TC_INGRESS: &str = "imds_ingress";
    /// tc classifier on egress.
    pub const TC_EGRESS: &str = "imds_egress";
    /// Raw tracepoint program on `skb:kfree_skb`.
    pub const KFREE_SKB: &str = "imds_kfree_skb";
    /// Raw tracepoint program on `sock:inet_sock_set_state`.
    pub const SET_STATE: &str = "imds_set_state";
    /// cgroup program on connect() to an IPv4 address.
    pub const CONNECT4: &str = "imds_connect4";
    /// cgroup program on connect() to an IPv6 address.
    pub const CONNECT6: &str = "imds_connect6";
    /// cgroup program on what TCP sockets do.
    pub const SOCK_OPS: &str = "imds_sock_ops";
    /// Global: [`super::Endpoints`].
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// Global: [`super::Offsets`].
    pub const OFFSETS: &str = "OFFSETS";
}

/// Most endpoints of one address family that can be watched at once.
pub const MAX_ENDPOINTS: usize = 8;

/// The watched addresses, set by the loader before load.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Endpoints {
    /// IPv4 addresses in network order; the first `v4_len` count.
    pub v4: [[u8; 4]; MAX_ENDPOINTS],
    /// IPv6 addresses; the first `v6_len` count.
    pub v6: [[u8; 16]; MAX_ENDPOINTS],
    /// How many of `v4` count.
    pub v4_len: u32,
    /// How many of `v6` count.
    pub v6_len: u32,
}

/// What every record begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Nanoseconds since boot, suspend included (`bpf_ktime_get_boot_ns`).
    pub at: u64,
    /// One of [`kind`].
    pub kind: u32,
    /// Bytes of the record that count, this header and the snapped payload included.
    pub len: u32,
}

/// The IP and TCP headers of one packet, read where it stood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Network {
    /// Source address; IPv4 in the first four bytes, the rest zero.
    pub source: [u8; 16],
    /// Destination address, like `source`.
    pub destination: [u8; 16],
    /// TCP sequence number; 0 where there is no TCP header.
    pub seq: u32,
    /// TCP acknowledgement number; 0 where there is no TCP header.
    pub ack: u32,
    /// Bytes behind the TCP header as the IP header counts them; 0 where there is no TCP header.
    pub payload_len: u32,
    /// IPv4 identification; 0 on IPv6 without a fragment header.
    pub ip_id: u16,
    /// TCP or UDP source port; 0 where there is none.
    pub source_port: u16,
    /// TCP or UDP destination port; of an ICMP packet type and code, as NetFlow has it; 0 where there is none.
    pub destination_port: u16,
    /// 4 or 6.
    pub version: u8,
    /// IPv4 TTL or IPv6 hop limit.
    pub ttl: u8,
    /// IP protocol number of the transport header, IPv6 extension headers skipped; 6 is TCP.
    pub protocol: u8,
    /// TCP flags byte (CWR ECE URG ACK PSH RST SYN FIN); 0 where there is no TCP header.
    pub tcp_flags: u8,
    /// 1 if this is a fragment other than the first, which has no transport header.
    pub later_fragment: u8,
    /// 1 if this is the SYN of a connection to a watched endpoint that goes elsewhere by now: `destination` is where to.
    pub redirected: u8,
}

/// One packet at one tc hook ([`kind::PACKET`], and [`kind::PACKET_WITH_PAYLOAD`] with payload bytes behind it).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Packet {
    /// Kind and time.
    pub header: Header,
    /// What the packet's headers said.
    pub network: Network,
    /// Interface index in the namespace that the program was attached from.
    pub ifindex: u32,
    /// Payload bytes that follow this structure; what the record has room for behind them is not written.
    pub snapped: u16,
    /// One of [`direction`].
    pub direction: u8,
    /// Always 0.
    pub reserved: u8,
}

/// One packet that the kernel dropped ([`kind::DROP`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Drop {
    /// Kind and time.
    pub header: Header,
    /// What the packet's headers said at the moment of the drop.
    pub network: Network,
    /// Address in the kernel's text that called for the drop.
    pub location: u64,
    /// The kernel's number of the reason; 0 where the kernel gives none.
    pub reason: u32,
    /// Network namespace (inode number) the packet was in; 0 if not known.
    pub netns: u32,
    /// Interface index in that namespace; 0 if the packet had no interface.
    pub ifindex: u32,
    /// Always 0.
    pub reserved: u32,
    /// Interface name, NUL-padded.
    pub ifname: [u8; 16],
    /// Return addresses in the kernel's text, innermost first, those of the tracing itself included; 0 behind the last.
    pub callers: [u64; CALLERS],
}

/// Return addresses kept of a drop. Tracing takes the first six or seven, the rest reaches from netfilter's function to the one that
/// called the hook.
pub const CALLERS: usize = 16;

/// An ICMP error about a packet to a watched endpoint, at one tc hook ([`kind::ICMP_ERROR`]). Nothing of the quoted packet but its
/// headers is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IcmpError {
    /// Kind and time.
    pub header: Header,
    /// What the quoted packet's headers said: addresses, ports and sequence number. `ttl` and `ip_id` are those of the ICMP packet
    /// itself, which tell its copies at several hooks together.
    pub network: Network,
    /// Who sent the ICMP packet, network order; IPv4 in the first four bytes.
    pub sender: [u8; 16],
    /// As in [`Packet::ifindex`].
    pub ifindex: u32,
    /// As in [`Packet::direction`].
    pub direction: u8,
    /// ICMP or ICMPv6 type.
    pub icmp_type: u8,
    /// Its code.
    pub icmp_code: u8,
    /// Always 0.
    pub reserved: u8,
}

/// A task began to connect to a watched endpoint ([`kind::CONNECT`]): the socket went from CLOSE to SYN_SENT.
///
/// The task is certain here; the source port is not chosen yet ([`Connected`] brings it).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Connect {
    /// Kind and time.
    pub header: Header,
    /// Address of the socket in the kernel: names it until it closes, then may be used again.
    pub socket: u64,
    /// Version 2 cgroup of the task.
    pub cgroup: u64,
    /// When the process started, ns since boot; 0 if not known.
    pub started: u64,
    /// Where it connects to, network order; IPv4 in the first four bytes.
    pub destination: [u8; 16],
    /// Process, in the initial pid namespace.
    pub tgid: u32,
    /// Thread, in the initial pid namespace.
    pub tid: u32,
    /// User, in the initial user namespace.
    pub uid: u32,
    /// Group, in the initial user namespace.
    pub gid: u32,
    /// Network namespace (inode number) of the socket.
    pub netns: u32,
    /// Pid namespace (inode number) of the process; 0 if not known.
    pub pid_namespace: u32,
    /// Process, in its own pid namespace; 0 if not known.
    pub inner_pid: u32,
    /// Port it connects to.
    pub destination_port: u16,
    /// 4 or 6.
    pub version: u8,
    /// TTL or hop limit its packets leave the socket with; 0 if not known.
    pub ttl: u8,
    /// The task's name, NUL-padded.
    pub comm: [u8; 16],
}

/// Ancestors read of a task.
pub const ANCESTORS: usize = 8;
/// Bytes read of a command line.
pub const ARGV: usize = 256;
/// Bytes of a path behind which no further name is begun.
pub const PATH: usize = 256;
/// The longest name in a path, its NUL included (`NAME_MAX` of `include/uapi/linux/limits.h`, and one).
pub const NAME: usize = 256;

/// A process from which another one comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ancestor {
    /// Process, in the initial pid namespace; 0 behind the last.
    pub pid: u32,
    /// Its name, NUL-padded.
    pub comm: [u8; 16],
}

/// What a task runs and where it comes from. Follows a [`Connect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Task {
    /// The parent first.
    pub ancestors: [Ancestor; ANCESTORS],
    /// Bytes of `argv` that count; the rest is not written.
    pub argv_len: u16,
    /// 1 if the command line is longer.
    pub argv_cut: u8,
    /// Always 0.
    pub reserved: u8,
    /// The command line's beginning, a NUL behind each argument.
    pub argv: [u8; ARGV],
    /// Of the executable, in its mount namespace.
    pub exe: Path,
    /// Of the cgroup: in the version 2 hierarchy, or if that is its root, in the first of [`CONTROLLERS`] where it is not.
    pub cgroup: Path,
}

/// A path from its end to its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Path {
    /// Bytes of `names` that count; the rest is not written.
    pub len: u16,
    /// One of [`path`].
    pub state: u16,
    /// Its names, a NUL behind each, the last one first.
    pub names: [u8; PATH + NAME],
}

/// Values of [`Path::state`].
pub mod path {
    /// It could not be read.
    pub const UNKNOWN: u16 = 0;
    /// It is whole; without names it is the root.
    pub const WHOLE: u16 = 1;
    /// It goes on towards the root.
    pub const CUT: u16 = 2;
}

impl Default for Path {
    fn default() -> Self {
        Self { len: 0, state: path::UNKNOWN, names: [0; PATH + NAME] }
    }
}

impl Default for Task {
    fn default() -> Self {
        Self {
            ancestors: [Ancestor::default(); ANCESTORS],
            argv_len: 0,
            argv_cut: 0,
            reserved: 0,
            argv: [0; ARGV],
            exe: Path::default(),
            cgroup: Path::default(),
        }
    }
}

/// A connecting socket has its port and is about to send its SYN ([`kind::SENDING`]), or left SYN_SENT ([`kind::CONNECTED`]), for
/// ESTABLISHED or for CLOSE. Says nothing about a task: the latter runs in whatever task the packet interrupted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Connected {
    /// Kind and time.
    pub header: Header,
    /// As in [`Connect::socket`].
    pub socket: u64,
    /// The socket's own address, network order; IPv4 in the first four bytes.
    pub source: [u8; 16],
    /// As in [`Connect::destination`].
    pub destination: [u8; 16],
    /// Initial sequence number of its SYN: ties the socket to its packets through any number of address translations.
    pub isn: u32,
    /// The socket's own port.
    pub source_port: u16,
    /// As in [`Connect::destination_port`].
    pub destination_port: u16,
    /// Network namespace (inode number) of the socket.
    pub netns: u32,
    /// 4 or 6.
    pub version: u8,
    /// 1 if the connection was established, 0 if it was given up.
    pub established: u8,
    /// The error that the socket was told, as in `errno.h`; 0 if none, or not known.
    pub error: u16,
}

/// A connecting socket left ESTABLISHED, or went on from there ([`kind::COUNTED`]): what its TCP had counted by then. Says nothing
/// about a task, as [`Connected`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Counted {
    /// Which socket, when; `error` as it stands now. Its `established` is 0 if its connection never was.
    pub socket: Connected,
    /// Payload bytes received in order, SYN and FIN apart.
    pub received: u64,
    /// Payload bytes that the other side acknowledged, SYN and FIN apart.
    pub acked: u64,
    /// The state it entered, one of [`state`].
    pub state: u32,
    /// Always 0.
    pub reserved: u32,
}

/// States of a TCP socket, `include/net/tcp_states.h`: part of the kernel's promise to user space.
pub mod state {
    /// The handshake is done.
    pub const ESTABLISHED: u32 = 1;
    /// A SYN was sent.
    pub const SYN_SENT: u32 = 2;
    /// A SYN was received.
    pub const SYN_RECV: u32 = 3;
    /// It sends no more, and waits for the acknowledgement of its FIN.
    pub const FIN_WAIT1: u32 = 4;
    /// Its FIN was acknowledged.
    pub const FIN_WAIT2: u32 = 5;
    /// It is over; or has not begun.
    pub const CLOSE: u32 = 7;
    /// The other side sends no more.
    pub const CLOSE_WAIT: u32 = 8;
    /// Neither side sends any more; the acknowledgement of its FIN is awaited.
    pub const LAST_ACK: u32 = 9;
    /// Both sides sent a FIN at once; the acknowledgement of its own is awaited.
    pub const CLOSING: u32 = 11;
}
