//! Does somebody else's program on the same interface, or on a cgroup, still see its packets?
//!
//! The smallest program there is: it returns a constant, and the kernel counts its runs. One on a cgroup can send connects elsewhere. By tcx, or by clsact before Linux 6.6.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};
use aya::programs::tc::{NlOptions, TcAttachOptions, TcAttachType};
use aya::programs::{SchedClassifier, loaded_programs};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::attached::has_tcx;
use crate::netns::Namespace;

/// Numbers of bpf(2) commands, types and flags, from linux/bpf.h.
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const ENABLE_STATS: libc::c_long = 32;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const PROG_TYPE_CGROUP_SKB: u32 = 8;
const PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const CGROUP_INET_EGRESS: u32 = 1;
const CGROUP_INET4_CONNECT: u32 = 10;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
const F_BEFORE: u32 = 1 << 3;
const F_AFTER: u32 = 1 << 4;
/// Priorities of filters: the kernel itself gives those from 0x8000 to 0xc000, so that these are before or after them.
static FIRST: AtomicU16 = AtomicU16::new(0x4000);
static LAST: AtomicU16 = AtomicU16::new(0xd000);

/// Which side of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Packets that arrive.
    Ingress,
    /// Packets that leave.
    Egress,
}

/// Where among the programs that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rank {
    /// Before all of them.
    First,
    /// After all of them.
    Last,
}

/// What it says of each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// TCX_NEXT: let the next program say.
    Next = -1,
    /// TCX_PASS: let the packet pass; programs after this one are not asked.
    Pass = 0,
    /// TCX_DROP.
    Drop = 2,
}

/// A foreign program on an interface; dropping it takes it off.
pub struct ForeignProgram {
    name: String,
    _program: OwnedFd,
    _place: Place,
    /// The kernel counts runs for as long as this is open.
    _statistics: OwnedFd,
}

/// Where it hangs.
enum Place {
    /// By a link.
    Link(#[expect(dead_code, reason = "held")] OwnedFd),
    /// By a filter, and how it goes.
    Clsact(Command),
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Self::Clsact(removal) = self {
            let _ = removal.status();
        }
    }
}

impl ForeignProgram {
    /// Attaches one called `name` (at most 15 characters, and not used by another) to an interface of a namespace.
    pub fn attach(
        namespace: &Namespace,
        interface: &str,
        side: Side,
        rank: Rank,
        verdict: Verdict,
        name: &str,
    ) -> Result<ForeignProgram> {
        let statistics = bpf(ENABLE_STATS, &0u64).context("let the kernel count program runs")?;
        let program = load(PROG_TYPE_SCHED_CLS, name, verdict as i32)
            .with_context(|| format!("load the foreign program {name}"))?;
        let place = if has_tcx() {
            let link = namespace.run_inside(|| attach(&program, interface, side, rank))?;
            Place::Link(link.with_context(|| format!("attach {name} to {interface} {side:?} by tcx"))?)
        } else {
            // Somebody may have made the qdisc.
            let _ = namespace.run("tc", &["qdisc", "add", "dev", interface, "clsact"]);
            let priority = match rank {
                Rank::First => FIRST.fetch_sub(1, Ordering::Relaxed),
                Rank::Last => LAST.fetch_add(1, Ordering::Relaxed),
            };
            namespace
                .run_inside(|| hang(name, interface, side, priority))?
                .with_context(|| format!("attach {name} to {interface} {side:?} by clsact"))?;
            Place::Clsact(removal(namespace, interface, side, priority))
        };
        Ok(ForeignProgram { name: name.to_owned(), _program: program, _place: place, _statistics: statistics })
    }

    /// Attaches one that lets every packet pass to what processes of a cgroup send.
    pub fn on_cgroup(folder: &Path, name: &str) -> Result<ForeignProgram> {
        const PASS: i32 = 1;
        Self::in_cgroup(folder, name, load(PROG_TYPE_CGROUP_SKB, name, PASS), CGROUP_INET_EGRESS)
    }

    /// Attaches one that sends connects of a cgroup's processes from one address to another.
    pub fn in_connect(folder: &Path, name: &str, from: Ipv4Addr, to: Ipv4Addr) -> Result<ForeignProgram> {
        // Where `struct bpf_sock_addr` has `user_ip4`, in network byte order.
        const USER_IP4: u16 = 4;
        let [from, to] = [from, to].map(|address| u32::from_ne_bytes(address.octets()));
        let words = [
            // r2 = user_ip4; if it is another one, two further.
            instruction(0x61, 0x12, USER_IP4, 0),
            instruction(0x56, 0x02, 2, from),
            // user_ip4 = r3 = to.
            instruction(0xb4, 0x03, 0, to),
            instruction(0x63, 0x31, USER_IP4, 0),
            // Go on.
            instruction(0xb7, 0, 0, 1),
            instruction(0x95, 0, 0, 0),
        ];
        let program = load_words(PROG_TYPE_CGROUP_SOCK_ADDR, CGROUP_INET4_CONNECT, name, &words);
        Self::in_cgroup(folder, name, program, CGROUP_INET4_CONNECT)
    }

    fn in_cgroup(folder: &Path, name: &str, program: io::Result<OwnedFd>, attach_type: u32) -> Result<ForeignProgram> {
        let statistics = bpf(ENABLE_STATS, &0u64).context("let the kernel count program runs")?;
        let program = program.with_context(|| format!("load the foreign program {name}"))?;
        let cgroup = std::fs::File::open(folder).with_context(|| format!("open {}", folder.display()))?;
        let link = link(&program, cgroup.as_raw_fd() as u32, attach_type, 0);
        let place = Place::Link(link.with_context(|| format!("attach {name} to {}", folder.display()))?);
        Ok(ForeignProgram { name: name.to_owned(), _program: program, _place: place, _statistics: statistics })
    }

    /// How often it has run, that is: how many packets it saw.
    pub fn runs(&self) -> Result<u64> {
        for info in loaded_programs().flatten() {
            if info.name_as_str() == Some(&self.name) {
                return Ok(info.run_count());
            }
        }
        anyhow::bail!("the foreign program {} is not loaded", self.name)
    }
}

/// The first fields of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct LoadAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected: u32,
}

/// The first fields of `union bpf_attr` for BPF_LINK_CREATE, as tcx reads them.
#[repr(C)]
struct LinkAttributes {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    expected_revision: u64,
}

/// One that returns a constant: `r0 = verdict; exit`.
fn load(kind: u32, name: &str, verdict: i32) -> io::Result<OwnedFd> {
    load_words(kind, 0, name, &[instruction(0xb7, 0, 0, verdict as u32), instruction(0x95, 0, 0, 0)])
}

/// One instruction is 8 bytes: opcode, registers, offset (2), immediate (4).
fn instruction(opcode: u8, registers: u8, offset: u16, immediate: u32) -> u64 {
    u64::from(opcode) | u64::from(registers) << 8 | u64::from(offset) << 16 | u64::from(immediate) << 32
}

fn load_words(kind: u32, expected: u32, name: &str, instructions: &[u64]) -> io::Result<OwnedFd> {
    let mut short = [0; 16];
    let length = name.len().min(15);
    short[..length].copy_from_slice(&name.as_bytes()[..length]);
    let attributes = LoadAttributes {
        kind,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: short,
        interface: 0,
        expected,
    };
    // Before Linux 5.11 programs count as locked memory, of which little is allowed; since then the limit does not matter, nor
    // whether it may be raised. What the lab starts keeps the usual one.
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    let raised = setrlimit(Resource::RLIMIT_MEMLOCK, libc::RLIM_INFINITY, libc::RLIM_INFINITY).is_ok();
    let program = bpf(PROG_LOAD, &attributes);
    if raised {
        setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard)?;
    }
    program
}

fn attach(program: &OwnedFd, interface: &str, side: Side, rank: Rank) -> io::Result<OwnedFd> {
    let attach_type = match side {
        Side::Ingress => TCX_INGRESS,
        Side::Egress => TCX_EGRESS,
    };
    let flags = match rank {
        Rank::First => F_BEFORE,
        Rank::Last => F_AFTER,
    };
    link(program, nix::net::if_::if_nametoindex(interface)?, attach_type, flags)
}

fn link(program: &OwnedFd, target: u32, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    let program = program.as_raw_fd() as u32;
    bpf(
        LINK_CREATE,
        &LinkAttributes { program, target, attach_type, flags, relative: 0, padding: 0, expected_revision: 0 },
    )
}

/// Hangs the loaded program of this name up as a filter, which stays.
fn hang(name: &str, interface: &str, side: Side, priority: u16) -> Result<()> {
    let info = loaded_programs().flatten().find(|info| info.name_as_str() == Some(name)).context("it is not loaded")?;
    let mut program = SchedClassifier::from_program_info(info, name.to_owned().into())?;
    let side = match side {
        Side::Ingress => TcAttachType::Ingress,
        Side::Egress => TcAttachType::Egress,
    };
    let options = TcAttachOptions::Netlink(NlOptions { priority, ..NlOptions::default() });
    let link = program.attach_with_options(interface, side, options)?;
    // Dropped, it would take the filter off, and in whichever namespace that is.
    std::mem::forget(program.take_link(link)?);
    Ok(())
}

/// Takes a filter off, and the qdisc with the last.
fn removal(namespace: &Namespace, interface: &str, side: Side, priority: u16) -> Command {
    let side = format!("{side:?}").to_lowercase();
    let mut command = namespace.command("sh");
    command.arg("-c").arg(format!(
        "tc filter del dev {interface} {side} pref {priority}; \
         [ -n \"$(tc filter show dev {interface} ingress; tc filter show dev {interface} egress)\" ] || \
         tc qdisc del dev {interface} clsact"
    ));
    command
}

/// A bpf(2) command that returns a descriptor.
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads at most `size` bytes of `attributes`, which lives until the call returns; so do the
    // instructions and the strings the attributes point to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the three commands used here return a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}
