//! Where does the running kernel keep what we read, and how does it name its drop reasons? Pure over its BTF.

use std::collections::HashMap;

use imds_trace_ebpf::record::{self, ABSENT, Offsets};

use super::Error;
use super::btf_blob::{Kind, Type, Types};

/// Controllers that container engines use; on a version 1 host each may have a hierarchy of its own.
const CONTROLLERS: [&str; record::CONTROLLERS] = ["pids_cgrp_id", "memory_cgrp_id", "cpu_cgrp_id", "freezer_cgrp_id"];

/// Anonymous members in each other, and names for names, that are followed; the kernel's own have three.
const MAX_DEPTH: u32 = 16;

/// The kernel's type information.
pub struct Layout {
    types: Types,
}

impl std::fmt::Debug for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layout").finish_non_exhaustive()
    }
}

impl Layout {
    /// Reads the running kernel's.
    pub fn of_this_kernel() -> Result<Self, Error> {
        let bytes = std::fs::read("/sys/kernel/btf/vmlinux").map_err(Error::NoBtf)?;
        Self::new(bytes)
    }

    /// Reads `bytes`, raw BTF.
    pub fn new(bytes: Vec<u8>) -> Result<Self, Error> {
        Ok(Self { types: Types::new(bytes)? })
    }

    /// All offsets that the kernel half wants. Fails if one is missing that it cannot do without.
    pub fn offsets(&self) -> Result<Offsets, Error> {
        let must = |path: &str| self.offset(path).ok_or_else(|| Error::NoField(path.to_owned()));
        let may = |path: &str| self.offset(path).unwrap_or(ABSENT);
        Ok(Offsets {
            skb_head: must("sk_buff.head")?,
            skb_network_header: must("sk_buff.network_header")?,
            skb_protocol: must("sk_buff.protocol")?,
            skb_dev: must("sk_buff.dev")?,
            skb_sk: must("sk_buff.sk")?,
            skb_dst: must("sk_buff._skb_refdst")?,
            dst_dev: must("dst_entry.dev")?,
            dev_ifindex: must("net_device.ifindex")?,
            dev_name: must("net_device.name")?,
            dev_net: may("net_device.nd_net.net"),
            net_inum: must("net.ns.inum")?,
            task_group_leader: may("task_struct.group_leader"),
            task_real_parent: may("task_struct.real_parent"),
            task_tgid: may("task_struct.tgid"),
            task_comm: may("task_struct.comm"),
            task_started: self
                .offset("task_struct.start_boottime")
                .unwrap_or_else(|| may("task_struct.real_start_time")),
            task_thread_pid: may("task_struct.thread_pid"),
            pid_level: may("pid.level"),
            pid_numbers: may("pid.numbers"),
            upid_size: self.size("upid").unwrap_or(ABSENT),
            upid_nr: may("upid.nr"),
            upid_ns: may("upid.ns"),
            pid_namespace_inum: may("pid_namespace.ns.inum"),
            task_mm: may("task_struct.mm"),
            mm_arg_start: may("mm_struct.arg_start"),
            mm_arg_end: may("mm_struct.arg_end"),
            mm_exe_file: may("mm_struct.exe_file"),
            file_mnt: may("file.f_path.mnt"),
            file_dentry: may("file.f_path.dentry"),
            mount_mnt: may("mount.mnt"),
            mount_parent: may("mount.mnt_parent"),
            mount_mountpoint: may("mount.mnt_mountpoint"),
            vfsmount_root: may("vfsmount.mnt_root"),
            dentry_parent: may("dentry.d_parent"),
            dentry_name: may("dentry.d_name.name"),
            task_cgroups: may("task_struct.cgroups"),
            css_set_cgroup: may("css_set.dfl_cgrp"),
            css_set_controllers: CONTROLLERS.map(|controller| self.css_set_controller(controller).unwrap_or(ABSENT)),
            css_cgroup: may("cgroup_subsys_state.cgroup"),
            cgroup_node: may("cgroup.kn"),
            node_parent: self.offset("kernfs_node.__parent").unwrap_or_else(|| may("kernfs_node.parent")),
            node_name: may("kernfs_node.name"),
            net_default_ttl: may("net.ipv4.sysctl_ip_default_ttl"),
            net_v6_devconf_all: may("net.ipv6.devconf_all"),
            v6_devconf_hop_limit: may("ipv6_devconf.hop_limit"),
            skc_family: must("sock_common.skc_family")?,
            skc_daddr: must("sock_common.skc_daddr")?,
            skc_rcv_saddr: must("sock_common.skc_rcv_saddr")?,
            skc_v6_daddr: may("sock_common.skc_v6_daddr"),
            skc_v6_rcv_saddr: may("sock_common.skc_v6_rcv_saddr"),
            skc_dport: must("sock_common.skc_dport")?,
            skc_net: may("sock_common.skc_net.net"),
            skc_flags: may("sock_common.skc_flags"),
            sk_protocol: must("sock.sk_protocol")?,
            sk_err: may("sock.sk_err"),
            sk_err_soft: may("sock.sk_err_soft"),
            sk_max_ack_backlog: may("sock.sk_max_ack_backlog"),
            inet_sport: must("inet_sock.inet_sport")?,
            inet_uc_ttl: may("inet_sock.uc_ttl"),
            inet_pinet6: may("inet_sock.pinet6"),
            pinet6_hop_limit: may("ipv6_pinfo.hop_limit"),
            pinet6_hop_limit_shift: self.bits("ipv6_pinfo.hop_limit").map_or(ABSENT, |bits| bits % 8),
            tcp_snd_una: must("tcp_sock.snd_una")?,
            tcp_write_seq: must("tcp_sock.write_seq")?,
            tcp_bytes_received: may("tcp_sock.bytes_received"),
            tcp_bytes_acked: may("tcp_sock.bytes_acked"),
            sock_done: self.constant("sock_flags", "SOCK_DONE").unwrap_or(ABSENT),
            kfree_skb_has_reason: u32::from(self.kfree_skb_has_reason()),
        })
    }

    /// Names of `enum skb_drop_reason` without their prefix; empty on a kernel that gives no reasons.
    pub fn drop_reasons(&self) -> HashMap<u32, String> {
        let mut names = HashMap::new();
        for reasons in self.types.named("skb_drop_reason") {
            for (name, number) in self.types.constants(reasons) {
                let name = String::from_utf8_lossy(name);
                let name = name.strip_prefix("SKB_DROP_REASON_").unwrap_or(&name).to_owned();
                names.entry(number).or_insert(name);
            }
        }
        names
    }

    /// Where `css_set` points to a controller's state, by the controller's name in `enum cgroup_subsys_id`.
    fn css_set_controller(&self, name: &str) -> Option<u32> {
        /// Pointers are that long wherever Linux has BPF for 64 bits.
        const POINTER: u32 = 8;
        Some(self.offset("css_set.subsys")? + self.constant("cgroup_subsys_id", name)? * POINTER)
    }

    /// The value of a constant of an enumeration.
    fn constant(&self, enumeration: &str, name: &str) -> Option<u32> {
        let all = self.types.named(enumeration).pop()?;
        self.types.constants(all).find(|(found, _)| *found == name.as_bytes()).map(|(_, value)| value)
    }

    /// Does it keep all that must be read of a socket to tell how many bytes its TCP received, and how many were acknowledged?
    pub fn counts_bytes(&self) -> bool {
        const FIELDS: [&str; 3] = ["tcp_sock.bytes_received", "tcp_sock.bytes_acked", "sock_common.skc_flags"];
        FIELDS.iter().all(|field| self.offset(field).is_some()) && self.constant("sock_flags", "SOCK_DONE").is_some()
    }

    /// Is there a type of this name? A structure is there where the code is that uses it.
    pub fn has_type(&self, name: &str) -> bool {
        !self.types.named(name).is_empty()
    }

    /// Does the tracepoint hand a reason to its programs? (skb, location, reason) behind the context.
    pub fn kfree_skb_has_reason(&self) -> bool {
        let leads_to = |from: Type, kind: Kind| self.types.get(from.size_or_type).filter(|found| found.kind == kind);
        let arguments = || {
            let definition =
                self.types.named("btf_trace_kfree_skb").pop().filter(|found| found.kind == Kind::Typedef)?;
            Some(leads_to(leads_to(definition, Kind::Pointer)?, Kind::Prototype)?.count)
        };
        arguments().is_some_and(|count| count >= 4)
    }

    /// Offset in bytes of `structure.field.field…`; looks into anonymous members. `None` if there is no such field.
    pub fn offset(&self, path: &str) -> Option<u32> {
        self.bits(path).map(|bits| bits / 8)
    }

    /// The same in bits, for a bit field.
    fn bits(&self, path: &str) -> Option<u32> {
        let mut names = path.split('.').peekable();
        let mut found = self.named(names.next()?)?;
        let mut bits = 0;
        while let Some(name) = names.next() {
            let (at, kind) = self.member(found, name, MAX_DEPTH)?;
            bits = at.checked_add(bits)?;
            if names.peek().is_some() {
                found = self.structure(kind)?;
            }
        }
        Some(bits)
    }

    /// Size in bytes of a structure.
    fn size(&self, structure: &str) -> Option<u32> {
        Some(self.named(structure)?.size_or_type)
    }

    fn named(&self, structure: &str) -> Option<Type> {
        self.types.named(structure).into_iter().find(|found| found.kind == Kind::Struct)
    }

    /// Bit offset and type of a member, in `structure` or in an anonymous member of it.
    fn member(&self, structure: Type, name: &str, depth: u32) -> Option<(u32, u32)> {
        for member in self.types.members(structure) {
            if member.name == name.as_bytes() {
                return Some((member.bits, member.kind));
            }
            if member.name.is_empty()
                && depth > 0
                && let Some(inner) = self.structure(member.kind)
                && let Some((at, kind)) = self.member(inner, name, depth - 1)
            {
                return Some((member.bits.checked_add(at)?, kind));
            }
        }
        None
    }

    /// The structure or union behind typedefs and qualifiers.
    fn structure(&self, mut id: u32) -> Option<Type> {
        for _ in 0..MAX_DEPTH {
            let found = self.types.get(id)?;
            match found.kind {
                Kind::Struct | Kind::Union => return Some(found),
                Kind::Typedef | Kind::Qualifier => id = found.size_or_type,
                _ => return None,
            }
        }
        None
    }
}
