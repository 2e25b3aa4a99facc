//! How do the programs get into the kernel, onto the interfaces, and off again? Dropping the [`Tracer`] detaches everything.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::maps::{MapData, PerCpuArray, RingBuf};
use aya::programs::tc::{self, NlOptions, SchedClassifierLinkId, TcAttachOptions, TcError};
use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, LinkOrder, ProgramError, RawTracePoint, SchedClassifier, TcAttachType,
};
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use imds_trace_ebpf::record::{ABSENT, Endpoints, MAX_ENDPOINTS, name};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use zerocopy::IntoBytes;

use super::btf::Layout;
use super::plan::Wanted;
use super::ring::Records;
use super::{Error, features};
use crate::event::{Attached, Missing, Via};
use crate::net::{Direction, Ifindex};
use crate::printable::causes;

/// The kernel half, built by build.rs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/imds-trace.o"));

/// Tracepoints, and the programs on them.
const TRACEPOINTS: [(&str, &str, &str); 2] = [
    ("skb:kfree_skb", "kfree_skb", name::KFREE_SKB),
    ("sock:inet_sock_set_state", "inet_sock_set_state", name::SET_STATE),
];

/// Kinds of connect(), and the programs on them.
const CONNECTS: [(&str, &str); 2] = [("connect4", name::CONNECT4), ("connect6", name::CONNECT6)];

/// Both directions of an interface, and the programs on them.
const DIRECTIONS: [(Direction, TcAttachType, &str); 2] = [
    (Direction::Ingress, TcAttachType::Ingress, name::TC_INGRESS),
    (Direction::Egress, TcAttachType::Egress, name::TC_EGRESS),
];

/// The loaded kernel half.
pub struct Tracer {
    ebpf: Ebpf,
    via: Via,
    links: BTreeMap<Ifindex, (String, Vec<(Direction, SchedClassifierLinkId)>)>,
    tracepoints: Vec<&'static str>,
    connects: Vec<&'static str>,
    missing: Vec<Missing>,
    records: Option<Records>,
    lost: PerCpuArray<MapData, u64>,
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracer").field("via", &self.via).field("links", &self.links.keys()).finish_non_exhaustive()
    }
}

impl Tracer {
    /// Loads all programs and attaches those on tracepoints. Nothing is on an interface yet. `verbose` turns the probes' own log
    /// on.
    pub fn load(layout: &Layout, endpoints: &[IpAddr], verbose: bool) -> Result<Self, Error> {
        let mut offsets = layout.offsets()?;
        if !features::in_first_cgroup_namespace() {
            // The kernel would tell of the container that this program is in, not of those that it can know.
            offsets.task_cgroups = ABSENT;
        }
        let watched = watched(endpoints);
        let log_level: u8 = if verbose { aya_log::Level::Debug as u8 } else { 0 };
        let mut ebpf = EbpfLoader::new()
            .override_global(name::OFFSETS, offsets.as_bytes(), true)
            .override_global(name::ENDPOINTS, watched.as_bytes(), true)
            .override_global(aya_log::LEVEL, &log_level, false)
            .load(OBJECT)
            .map_err(|error| Error::Load { what: "the kernel half".into(), why: causes(&error) })?;
        for (_, _, program) in DIRECTIONS {
            classifier(&mut ebpf, program)?.load().map_err(|error| load_error(program, &error))?;
        }
        let mut tracepoints = Vec::new();
        let mut missing = Vec::new();
        for (full_name, tracepoint, program) in TRACEPOINTS {
            let attached = attach_tracepoint(&mut ebpf, tracepoint, program);
            match attached {
                Ok(()) => tracepoints.push(full_name),
                Err(error) => missing.push(Missing { hook: full_name.into(), why: error.to_string() }),
            }
        }
        let mut connects = Vec::new();
        for (connect, program) in CONNECTS {
            match attach_connect(&mut ebpf, program) {
                Ok(()) => connects.push(connect),
                Err(error) => missing.push(Missing { hook: format!("cgroup {connect}"), why: error.to_string() }),
            }
        }
        let absent = |map: &str| Error::Load { what: format!("map {map}"), why: "not in the object".into() };
        let records = ebpf.take_map(name::RECORDS).ok_or_else(|| absent(name::RECORDS))?;
        let records = RingBuf::try_from(records)
            .map_err(|error| Error::Load { what: name::RECORDS.into(), why: causes(&error) })?;
        let lost = ebpf.take_map(name::LOST).ok_or_else(|| absent(name::LOST))?;
        let lost = PerCpuArray::try_from(lost)
            .map_err(|error| Error::Load { what: name::LOST.into(), why: causes(&error) })?;
        let via = if features::has_tcx("lo") { Via::Tcx } else { Via::Clsact };
        let links = BTreeMap::new();
        Ok(Self { ebpf, via, links, tracepoints, connects, missing, records: Some(Records(records)), lost })
    }

    /// Where records come from; `None` when called again.
    pub fn take_records(&mut self) -> Option<Records> {
        self.records.take()
    }

    /// The probes' own log; `None` if it cannot be read.
    pub fn log(&mut self) -> Option<ProbeLog> {
        EbpfLogger::init(&mut self.ebpf).ok().map(ProbeLog)
    }

    /// Attaches to what is wanted and not attached yet, and lets go of what is wanted no more. Gives the interfaces that are new,
    /// and those that could not be attached.
    pub fn follow(&mut self, wanted: &[Wanted]) -> (Vec<Wanted>, Vec<Missing>) {
        let gone: Vec<Ifindex> = self
            .links
            .iter()
            .filter(|(index, (name, _))| !wanted.iter().any(|wanted| wanted.index == **index && wanted.name == *name))
            .map(|(index, _)| *index)
            .collect();
        for index in gone {
            self.detach(index);
        }
        let mut new = Vec::new();
        let mut failed = Vec::new();
        for wanted in wanted {
            if self.links.contains_key(&wanted.index) {
                continue;
            }
            match self.attach(wanted) {
                Ok(()) => new.push(wanted.clone()),
                Err(error) => failed.push(Missing { hook: wanted.name.clone(), why: error.to_string() }),
            }
        }
        (new, failed)
    }

    /// Where programs are attached now.
    pub fn attached(&self) -> Vec<Attached> {
        let on_interfaces = self.links.values().flat_map(|(interface, links)| {
            links.iter().map(|(direction, _)| Attached::Tc {
                interface: interface.clone(),
                direction: *direction,
                via: self.via,
            })
        });
        let on_tracepoints = self.tracepoints.iter().map(|name| Attached::Tracepoint { name: (*name).to_owned() });
        let on_cgroups = self.connects.iter().map(|name| Attached::Cgroup { name: (*name).to_owned() });
        on_interfaces.chain(on_tracepoints).chain(on_cgroups).collect()
    }

    /// Is it on this interface?
    pub fn is_on(&self, index: Ifindex) -> bool {
        self.links.contains_key(&index)
    }

    /// Tracepoints and cgroup hooks that could not be attached.
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Records that found no room, or could not be made, since load.
    pub fn lost(&self) -> u64 {
        self.lost.get(&0, 0).map(|counts| counts.iter().sum()).unwrap_or(0)
    }

    fn attach(&mut self, wanted: &Wanted) -> Result<(), Error> {
        let mut links = Vec::new();
        let result = DIRECTIONS.iter().try_for_each(|(direction, kind, program)| {
            let fail = |why: String| Error::Attach { what: format!("tc {direction} to {}", wanted.name), why };
            if self.via == Via::Clsact {
                prepare_clsact(&wanted.name, *kind, program).map_err(fail)?;
            }
            let options = match (self.via, direction) {
                // Before others can change or drop what comes in; after them, what really goes out.
                (Via::Tcx, Direction::Ingress) => TcAttachOptions::TcxOrder(LinkOrder::first()),
                (Via::Tcx, Direction::Egress) => TcAttachOptions::TcxOrder(LinkOrder::last()),
                (Via::Clsact, _) => TcAttachOptions::Netlink(NlOptions::default()),
            };
            let link = classifier(&mut self.ebpf, program)?
                .attach_with_options(&wanted.name, *kind, options)
                .map_err(|error| fail(causes(&error)))?;
            links.push((*direction, link));
            Ok(())
        });
        self.links.insert(wanted.index, (wanted.name.clone(), links));
        if result.is_err() {
            self.detach(wanted.index);
        }
        result
    }

    fn detach(&mut self, index: Ifindex) {
        let Some((_, links)) = self.links.remove(&index) else { return };
        for (direction, link) in links {
            let program = DIRECTIONS.iter().find(|(known, _, _)| *known == direction).map(|(_, _, program)| *program);
            if let Some(Ok(classifier)) = program.map(|program| classifier(&mut self.ebpf, program)) {
                // Fails where the interface is gone, and the program with it.
                let _ = classifier.detach(link);
            }
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let indices: Vec<Ifindex> = self.links.keys().copied().collect();
        for index in indices {
            self.detach(index);
        }
    }
}

/// The probes' own log. Readable, as a file descriptor, when there is something.
pub struct ProbeLog(EbpfLogger<&'static dyn log::Log>);

impl ProbeLog {
    /// Hands what there is to this program's log.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}

impl AsFd for ProbeLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for ProbeLog {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A clsact qdisc to hang on, and nothing of ours left from a run that was killed.
fn prepare_clsact(interface: &str, kind: TcAttachType, program: &str) -> Result<(), String> {
    match tc::qdisc_add_clsact(interface) {
        Ok(()) => {}
        Err(error) if is_there_already(&error) => {}
        Err(error) => return Err(causes(&error)),
    }
    // Fails where there is none.
    let _ = tc::qdisc_detach_program(interface, kind, program);
    Ok(())
}

fn is_there_already(error: &TcError) -> bool {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::AlreadyExists)
        {
            return true;
        }
        source = error.source();
    }
    causes(error).contains("File exists")
}

fn attach_tracepoint(ebpf: &mut Ebpf, tracepoint: &str, program: &str) -> Result<(), Error> {
    let absent = || Error::Load { what: program.into(), why: "not in the object".into() };
    let found: &mut RawTracePoint = ebpf
        .program_mut(program)
        .ok_or_else(absent)?
        .try_into()
        .map_err(|error: ProgramError| load_error(program, &error))?;
    found.load().map_err(|error| load_error(program, &error))?;
    found
        .attach(tracepoint)
        .map_err(|error| Error::Attach { what: format!("tracepoint {tracepoint}"), why: causes(&error) })?;
    Ok(())
}

/// On the root of the version 2 hierarchy: every process stands in it, whatever controllers are mounted where.
fn attach_connect(ebpf: &mut Ebpf, program: &str) -> Result<(), Error> {
    let absent = || Error::Load { what: program.into(), why: "not in the object".into() };
    let fail = |why: String| Error::Attach { what: format!("{program} to the root cgroup"), why };
    let root = features::cgroup2_root().ok_or_else(|| fail("no version 2 cgroup hierarchy is mounted".into()))?;
    let root = std::fs::File::open(&root).map_err(|error| fail(format!("{}: {error}", root.display())))?;
    let found: &mut CgroupSockAddr = ebpf
        .program_mut(program)
        .ok_or_else(absent)?
        .try_into()
        .map_err(|error: ProgramError| load_error(program, &error))?;
    found.load().map_err(|error| load_error(program, &error))?;
    found.attach(root, CgroupAttachMode::Single).map_err(|error| fail(causes(&error)))?;
    Ok(())
}

fn classifier<'a>(ebpf: &'a mut Ebpf, program: &str) -> Result<&'a mut SchedClassifier, Error> {
    ebpf.program_mut(program)
        .ok_or_else(|| Error::Load { what: program.into(), why: "not in the object".into() })?
        .try_into()
        .map_err(|error: ProgramError| load_error(program, &error))
}

/// Lines of the verifier that are shown: the last say what it did not like, and all the others how it came there.
const VERIFIER_LINES: usize = 12;

fn load_error(program: &str, error: &ProgramError) -> Error {
    let why = match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(VERIFIER_LINES)..];
            format!("{io_error}; the verifier says at last: {}", last.join("; "))
        }
        error => causes(error),
    };
    Error::Load { what: format!("program {program}"), why }
}

fn watched(endpoints: &[IpAddr]) -> Endpoints {
    let mut watched = Endpoints::default();
    for endpoint in endpoints {
        match endpoint {
            IpAddr::V4(address) if (watched.v4_len as usize) < MAX_ENDPOINTS => {
                watched.v4[watched.v4_len as usize] = address.octets();
                watched.v4_len += 1;
            }
            IpAddr::V6(address) if (watched.v6_len as usize) < MAX_ENDPOINTS => {
                watched.v6[watched.v6_len as usize] = address.octets();
                watched.v6_len += 1;
            }
            // config.rs refuses more than MAX_ENDPOINTS of a family.
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
    }
    watched
}
