//! Which programs run in the kernel, and with which maps? Each entry point is one call into the room that does the work.
#![no_std]
#![no_main]

mod attempt;
mod drop;
mod emit;
mod filter;
mod global;
mod hook;
mod packet;
mod redirect;
mod socket;
mod task;

mod programs {
    use aya_ebpf::{
        macros::{cgroup_sock_addr, classifier, raw_tracepoint, sock_ops},
        programs::{RawTracePointContext, SockAddrContext, SockOpsContext, TcContext},
    };
    use imds_trace_ebpf::record::direction;

    /// tcx and clsact, packets coming in.
    #[classifier]
    pub fn imds_ingress(ctx: TcContext) -> i32 {
        crate::hook::observe(&ctx, direction::INGRESS)
    }

    /// tcx and clsact, packets going out.
    #[classifier]
    pub fn imds_egress(ctx: TcContext) -> i32 {
        crate::hook::observe(&ctx, direction::EGRESS)
    }

    /// `skb:kfree_skb`.
    #[raw_tracepoint]
    pub fn imds_kfree_skb(ctx: RawTracePointContext) -> i32 {
        crate::drop::observe(&ctx)
    }

    /// `sock:inet_sock_set_state`.
    #[raw_tracepoint]
    pub fn imds_set_state(ctx: RawTracePointContext) -> i32 {
        crate::socket::observe(&ctx)
    }

    /// connect() to an IPv4 address.
    #[cgroup_sock_addr(connect4)]
    pub fn imds_connect4(ctx: SockAddrContext) -> i32 {
        crate::attempt::observe_v4(&ctx)
    }

    /// connect() to an IPv6 address.
    #[cgroup_sock_addr(connect6)]
    pub fn imds_connect6(ctx: SockAddrContext) -> i32 {
        crate::attempt::observe_v6(&ctx)
    }

    /// What TCP sockets do.
    #[sock_ops]
    pub fn imds_sock_ops(ctx: SockOpsContext) -> u32 {
        crate::socket::observe_ops(&ctx)
    }
}

/// The verifier refuses any path that gets here; the compiler wants one all the same.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// `bpf_probe_read_kernel` and the ring buffer are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
