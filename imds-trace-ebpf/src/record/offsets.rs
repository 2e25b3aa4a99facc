//! Where does the running kernel keep what we read?

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Controllers by whose version 1 hierarchies a task is found where it is in the root of version 2.
pub const CONTROLLERS: usize = 4;

/// An offset that the running kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// Where the running kernel keeps what we read, in bytes from the start of the structure named first. From its BTF, set by the
/// loader before load. [`ABSENT`] where the field does not exist.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Offsets {
    /// `sk_buff.head`
    pub skb_head: u32,
    /// `sk_buff.network_header`
    pub skb_network_header: u32,
    /// `sk_buff.protocol`
    pub skb_protocol: u32,
    /// `sk_buff.dev`
    pub skb_dev: u32,
    /// `sk_buff.sk`
    pub skb_sk: u32,
    /// `sk_buff._skb_refdst`
    pub skb_dst: u32,
    /// `dst_entry.dev`
    pub dst_dev: u32,
    /// `net_device.ifindex`
    pub dev_ifindex: u32,
    /// `net_device.name`
    pub dev_name: u32,
    /// `net_device.nd_net.net`
    pub dev_net: u32,
    /// `net.ns.inum`
    pub net_inum: u32,
    /// `task_struct.group_leader`
    pub task_group_leader: u32,
    /// `task_struct.real_parent`
    pub task_real_parent: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.comm`
    pub task_comm: u32,
    /// `task_struct.start_boottime`; `real_start_time` before Linux 5.5
    pub task_started: u32,
    /// `task_struct.thread_pid`
    pub task_thread_pid: u32,
    /// `pid.level`
    pub pid_level: u32,
    /// `pid.numbers`
    pub pid_numbers: u32,
    /// Size of `upid`.
    pub upid_size: u32,
    /// `upid.nr`
    pub upid_nr: u32,
    /// `upid.ns`
    pub upid_ns: u32,
    /// `pid_namespace.ns.inum`
    pub pid_namespace_inum: u32,
    /// `task_struct.mm`
    pub task_mm: u32,
    /// `mm_struct.arg_start`
    pub mm_arg_start: u32,
    /// `mm_struct.arg_end`
    pub mm_arg_end: u32,
    /// `mm_struct.exe_file`
    pub mm_exe_file: u32,
    /// `file.f_path.mnt`
    pub file_mnt: u32,
    /// `file.f_path.dentry`
    pub file_dentry: u32,
    /// `mount.mnt`
    pub mount_mnt: u32,
    /// `mount.mnt_parent`
    pub mount_parent: u32,
    /// `mount.mnt_mountpoint`
    pub mount_mountpoint: u32,
    /// `vfsmount.mnt_root`
    pub vfsmount_root: u32,
    /// `dentry.d_parent`
    pub dentry_parent: u32,
    /// `dentry.d_name.name`
    pub dentry_name: u32,
    /// `task_struct.cgroups`
    pub task_cgroups: u32,
    /// Where `css_set` points to the version 2 cgroup: `dfl_cgrp`.
    pub css_set_cgroup: u32,
    /// Where it points to what some controllers keep of a version 1 cgroup: elements of `subsys`.
    pub css_set_controllers: [u32; CONTROLLERS],
    /// `cgroup_subsys_state.cgroup`
    pub css_cgroup: u32,
    /// `cgroup.kn`
    pub cgroup_node: u32,
    /// `kernfs_node.parent`; `__parent` from Linux 6.15 on
    pub node_parent: u32,
    /// `kernfs_node.name`
    pub node_name: u32,
    /// `net.ipv4.sysctl_ip_default_ttl`
    pub net_default_ttl: u32,
    /// `net.ipv6.devconf_all`
    pub net_v6_devconf_all: u32,
    /// `ipv6_devconf.hop_limit`
    pub v6_devconf_hop_limit: u32,
    /// `sock_common.skc_family`
    pub skc_family: u32,
    /// `sock_common.skc_daddr`
    pub skc_daddr: u32,
    /// `sock_common.skc_rcv_saddr`
    pub skc_rcv_saddr: u32,
    /// `sock_common.skc_v6_daddr`
    pub skc_v6_daddr: u32,
    /// `sock_common.skc_v6_rcv_saddr`
    pub skc_v6_rcv_saddr: u32,
    /// `sock_common.skc_dport`
    pub skc_dport: u32,
    /// `sock_common.skc_net.net`
    pub skc_net: u32,
    /// `sock_common.skc_flags`
    pub skc_flags: u32,
    /// `sock.sk_protocol`
    pub sk_protocol: u32,
    /// `sock.sk_err`
    pub sk_err: u32,
    /// `sock.sk_err_soft`
    pub sk_err_soft: u32,
    /// `sock.sk_max_ack_backlog`
    pub sk_max_ack_backlog: u32,
    /// `inet_sock.inet_sport`
    pub inet_sport: u32,
    /// `inet_sock.uc_ttl`
    pub inet_uc_ttl: u32,
    /// `inet_sock.pinet6`
    pub inet_pinet6: u32,
    /// `ipv6_pinfo.hop_limit`
    pub pinet6_hop_limit: u32,
    /// Bits before it in its first byte: on older kernels (6.1) it is a bit field.
    pub pinet6_hop_limit_shift: u32,
    /// `tcp_sock.snd_una`
    pub tcp_snd_una: u32,
    /// `tcp_sock.write_seq`
    pub tcp_write_seq: u32,
    /// `tcp_sock.bytes_received`
    pub tcp_bytes_received: u32,
    /// `tcp_sock.bytes_acked`
    pub tcp_bytes_acked: u32,
    /// Number of the bit `SOCK_DONE` in `sock_common.skc_flags`: the other side's FIN was received.
    pub sock_done: u32,
    /// 1 if `skb:kfree_skb` has a third argument, the reason (Linux 5.17 and later), else 0.
    pub kfree_skb_has_reason: u32,
}

impl Default for Offsets {
    fn default() -> Self {
        Self::absent()
    }
}

impl Offsets {
    /// Every field [`ABSENT`], no drop reason.
    pub const fn absent() -> Self {
        const A: u32 = ABSENT;
        Self {
            skb_head: A,
            skb_network_header: A,
            skb_protocol: A,
            skb_dev: A,
            skb_sk: A,
            skb_dst: A,
            dst_dev: A,
            dev_ifindex: A,
            dev_name: A,
            dev_net: A,
            net_inum: A,
            task_group_leader: A,
            task_real_parent: A,
            task_tgid: A,
            task_comm: A,
            task_started: A,
            task_thread_pid: A,
            pid_level: A,
            pid_numbers: A,
            upid_size: A,
            upid_nr: A,
            upid_ns: A,
            pid_namespace_inum: A,
            task_mm: A,
            mm_arg_start: A,
            mm_arg_end: A,
            mm_exe_file: A,
            file_mnt: A,
            file_dentry: A,
            mount_mnt: A,
            mount_parent: A,
            mount_mountpoint: A,
            vfsmount_root: A,
            dentry_parent: A,
            dentry_name: A,
            task_cgroups: A,
            css_set_cgroup: A,
            css_set_controllers: [A; CONTROLLERS],
            css_cgroup: A,
            cgroup_node: A,
            node_parent: A,
            node_name: A,
            net_default_ttl: A,
            net_v6_devconf_all: A,
            v6_devconf_hop_limit: A,
            skc_family: A,
            skc_daddr: A,
            skc_rcv_saddr: A,
            skc_v6_daddr: A,
            skc_v6_rcv_saddr: A,
            skc_dport: A,
            skc_net: A,
            skc_flags: A,
            sk_protocol: A,
            sk_err: A,
            sk_err_soft: A,
            sk_max_ack_backlog: A,
            inet_sport: A,
            inet_uc_ttl: A,
            inet_pinet6: A,
            pinet6_hop_limit: A,
            pinet6_hop_limit_shift: A,
            tcp_snd_una: A,
            tcp_write_seq: A,
            tcp_bytes_received: A,
            tcp_bytes_acked: A,
            sock_done: A,
            kfree_skb_has_reason: 0,
        }
    }
}
