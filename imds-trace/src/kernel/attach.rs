//! How do the programs get into the kernel, onto the interfaces, and off again? Dropping the [`Tracer`] detaches everything.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::maps::{MapData, PerCpuArray, RingBuf};
use aya::programs::tc::{NlOptions, SchedClassifierLinkId, TcAttachOptions, TcHandle};
use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, LinkOrder, Program, ProgramError, RawTracePoint, SchedClassifier, SockOps,
    TcAttachType,
};
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use imds_trace_ebpf::record::{ABSENT, Endpoints, MAX_ENDPOINTS, name};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use zerocopy::IntoBytes;

use super::Error;
use super::btf::Layout;
use super::clsact::{self, Run, Turn};
use super::features::{self, Features};
use super::hooks::{Feature, Hook, ON_INTERFACES, Place};
use super::plan;
use super::ring::Records;
use diagnosis::event::{Attached, Missing, Via};
use diagnosis::net::{Direction, Ifindex};
use diagnosis::printable::{causes, printable};
use diagnosis::way::listen::Wanted;

/// The kernel half, built by build.rs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/imds-trace.o"));

/// Bytes of a name that are shown.
const MAX_SHOWN: usize = 256;

/// By what programs hang on interfaces.
#[derive(Debug)]
enum Means {
    Tcx,
    Clsact(Run),
}

impl Means {
    fn via(&self) -> Via {
        match self {
            Self::Tcx => Via::Tcx,
            Self::Clsact(_) => Via::Clsact,
        }
    }
}

/// Where programs hang on one interface.
type Links = Vec<(Direction, SchedClassifierLinkId)>;

/// The loaded kernel half.
pub struct Tracer {
    ebpf: Ebpf,
    means: Means,
    links: BTreeMap<Ifindex, (String, Links)>,
    /// Attached to, and not told of yet.
    new: Vec<Wanted>,
    others: Vec<Attached>,
    features: Features,
    missing: Vec<Missing>,
    records: Option<Records>,
    lost: PerCpuArray<MapData, u64>,
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracer").field("means", &self.means).field("links", &self.links.keys()).finish_non_exhaustive()
    }
}

impl Tracer {
    /// Loads all programs, and attaches those that go on no interface, and the others to what is wanted `first`, as far as that can be
    /// done: [`Self::follow`] says what cannot. `verbose` turns the probes' own log on.
    pub fn load(
        layout: &Layout,
        features: Features,
        endpoints: &[IpAddr],
        verbose: bool,
        first: &[Wanted],
    ) -> Result<Self, Error> {
        let plan::Hooks { via, others: hooks, cgroup_paths, mut missing } = plan::hooks(&features)?;
        let mut offsets = layout.offsets()?;
        if !cgroup_paths {
            // The kernel would tell of the container that this program is in, not of those that it can know.
            offsets.task_cgroups = ABSENT;
        }
        let watched = watched(endpoints);
        let log_level: u8 = if verbose { aya_log::Level::Debug as u8 } else { 0 };
        let mut ebpf = loader()
            .btf(None)
            .override_global(name::OFFSETS, offsets.as_bytes(), true)
            .override_global(name::ENDPOINTS, watched.as_bytes(), true)
            .override_global(aya_log::LEVEL, &log_level, false)
            .load(OBJECT)
            .map_err(|error| Error::Load { what: "the kernel half".into(), why: causes(&error) })?;
        let mut means = means(via)?;
        let mut programs: BTreeMap<&str, &mut Program> = ebpf.programs_mut().collect();
        let mut classifiers = Classifiers::among(&mut programs)?;
        classifiers.load()?;
        // Each link on an interface waits until no processor runs the programs that were there before (an RCU grace period, some 12 ms), one
        // after the other, whoever asks. The other programs are verified meanwhile.
        let (links, new, (others, more)) = std::thread::scope(|scope| {
            let attaching = scope.spawn(|| attach_others(&mut programs, &features, hooks));
            let mut links = BTreeMap::new();
            let mut new = Vec::new();
            for wanted in first {
                // What fails is tried again, and then said.
                if let Ok(attached) = classifiers.attach(&mut means, &features, wanted) {
                    links.insert(wanted.index, (wanted.name.clone(), attached));
                    new.push(wanted.clone());
                }
            }
            (links, new, attaching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        missing.extend(more);
        let absent = |map: &str| Error::Load { what: format!("map {map}"), why: "not in the object".into() };
        let records = ebpf.take_map(name::RECORDS).ok_or_else(|| absent(name::RECORDS))?;
        let records = RingBuf::try_from(records)
            .map_err(|error| Error::Load { what: name::RECORDS.into(), why: causes(&error) })?;
        let lost = ebpf.take_map(name::LOST).ok_or_else(|| absent(name::LOST))?;
        let lost = PerCpuArray::try_from(lost)
            .map_err(|error| Error::Load { what: name::LOST.into(), why: causes(&error) })?;
        Ok(Self { ebpf, means, links, new, others, features, missing, records: Some(Records(records)), lost })
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
        let mut new = std::mem::take(&mut self.new);
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
                via: self.means.via(),
            })
        });
        on_interfaces.chain(self.others.iter().cloned()).collect()
    }

    /// What the kernel has.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Is it on this interface?
    pub fn is_on(&self, index: Ifindex) -> bool {
        self.links.contains_key(&index)
    }

    /// What is not there or could not be attached, interfaces apart.
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Records that found no room, or could not be made, since load.
    pub fn lost(&self) -> u64 {
        self.lost.get(&0, 0).map(|counts| counts.iter().sum()).unwrap_or(0)
    }

    fn attach(&mut self, wanted: &Wanted) -> Result<(), Error> {
        let mut programs = self.ebpf.programs_mut().collect();
        let links = Classifiers::among(&mut programs)?.attach(&mut self.means, &self.features, wanted)?;
        self.links.insert(wanted.index, (wanted.name.clone(), links));
        Ok(())
    }

    fn detach(&mut self, index: Ifindex) {
        let Some((_, links)) = self.links.remove(&index) else { return };
        let mut programs = self.ebpf.programs_mut().collect();
        if let Ok(mut classifiers) = Classifiers::among(&mut programs) {
            classifiers.detach(&mut self.means, index, links);
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

/// How it is told when it is attached.
fn told(place: Place) -> Attached {
    match place {
        Place::Tracepoint(name) => Attached::Tracepoint { name: name.to_owned() },
        Place::Connect(name) => Attached::Cgroup { name: name.to_owned() },
        Place::SockOps => Attached::Cgroup { name: "sock_ops".to_owned() },
    }
}

/// How it is called in messages.
fn label(place: Place) -> String {
    match place {
        Place::Tracepoint(name) => name.to_owned(),
        Place::Connect(name) => format!("cgroup {name}"),
        Place::SockOps => "cgroup sock_ops".to_owned(),
    }
}

fn attach(programs: &mut BTreeMap<&str, &mut Program>, hook: &Hook) -> Result<(), Error> {
    let program = hook.program;
    let found = programs
        .remove(program)
        .ok_or_else(|| Error::Load { what: program.into(), why: "not in the object".into() })?;
    let load_error = |error: ProgramError| load_error(program, &error);
    let fail = |what: &str, why: String| Error::Attach { what: what.to_owned(), why };
    // The root of the version 2 hierarchy: every process stands in it, whatever controllers are mounted where.
    let root = || {
        let fail = |why: String| fail("to the root cgroup", why);
        let root = features::cgroup2_root().ok_or_else(|| fail("no version 2 hierarchy is mounted".into()))?;
        std::fs::File::open(&root).map_err(|error| fail(format!("{}: {error}", root.display())))
    };
    match hook.place {
        Place::Tracepoint(name) => {
            // The kernel knows a raw tracepoint without its group.
            let tracepoint = name.split_once(':').map_or(name, |(_, name)| name);
            let found: &mut RawTracePoint = found.try_into().map_err(load_error)?;
            found.load().map_err(load_error)?;
            found.attach(tracepoint).map_err(|error| fail("to the tracepoint", causes(&error)))?;
        }
        Place::Connect(_) => {
            let found: &mut CgroupSockAddr = found.try_into().map_err(load_error)?;
            found.load().map_err(load_error)?;
            let attached = found.attach(root()?, CgroupAttachMode::Single);
            attached.map_err(|error| fail("to the root cgroup", causes(&error)))?;
        }
        Place::SockOps => {
            let found: &mut SockOps = found.try_into().map_err(load_error)?;
            found.load().map_err(load_error)?;
            let attached = found.attach(root()?, CgroupAttachMode::Single);
            attached.map_err(|error| fail("to the root cgroup", causes(&error)))?;
        }
    }
    Ok(())
}

/// The programs on interfaces.
struct Classifiers<'a>(Vec<(Direction, &'a mut SchedClassifier)>);

impl<'a> Classifiers<'a> {
    /// Takes them out of all programs.
    fn among(programs: &mut BTreeMap<&str, &'a mut Program>) -> Result<Self, Error> {
        let mut taken = Vec::new();
        for (direction, name) in ON_INTERFACES {
            let program = programs
                .remove(name)
                .ok_or_else(|| Error::Load { what: name.into(), why: "not in the object".into() })?;
            taken.push((direction, program.try_into().map_err(|error: ProgramError| load_error(name, &error))?));
        }
        Ok(Self(taken))
    }

    fn load(&mut self) -> Result<(), Error> {
        let mut named = self.0.iter_mut().zip(ON_INTERFACES);
        named.try_for_each(|((_, program), (_, name))| program.load().map_err(|error| load_error(name, &error)))
    }

    /// Attaches them to an interface, or leaves nothing there.
    fn attach(&mut self, means: &mut Means, features: &Features, wanted: &Wanted) -> Result<Links, Error> {
        let feature = match means {
            Means::Tcx => Feature::Tcx,
            Means::Clsact(_) => Feature::Clsact,
        };
        let fail = |error: &dyn std::error::Error| Error::Attach {
            what: format!("to {} by {}", wanted.name, feature.name()),
            why: plan::explain(features, feature, &causes(error)),
        };
        let (handle, turn) = match means {
            Means::Tcx => (TcHandle::AUTO_ASSIGN, None),
            Means::Clsact(run) => {
                let turn = Turn::take().map_err(|error| fail(&error))?;
                (run.arrive(&turn, wanted.index, &wanted.name).map_err(|error| fail(&error))?, Some(turn))
            }
        };
        let mut links = Vec::new();
        let result = self.0.iter_mut().try_for_each(|(direction, program)| {
            let direction = *direction;
            let kind = match direction {
                Direction::Ingress => TcAttachType::Ingress,
                Direction::Egress => TcAttachType::Egress,
            };
            let options = match (feature, direction) {
                // Before others can change or drop what comes in; after them, what really goes out.
                (Feature::Tcx, Direction::Ingress) => TcAttachOptions::TcxOrder(LinkOrder::first()),
                (Feature::Tcx, Direction::Egress) => TcAttachOptions::TcxOrder(LinkOrder::last()),
                _ => TcAttachOptions::Netlink(NlOptions { handle, ..NlOptions::default() }),
            };
            let link = program.attach_with_options(&wanted.name, kind, options).map_err(|error| fail(&error))?;
            links.push((direction, link));
            Ok(())
        });
        drop(turn);
        match result {
            Ok(()) => Ok(links),
            Err(error) => {
                self.detach(means, wanted.index, links);
                Err(error)
            }
        }
    }

    fn detach(&mut self, means: &mut Means, index: Ifindex, links: Links) {
        let turn = matches!(means, Means::Clsact(_)).then(Turn::take).and_then(Result::ok);
        for (direction, link) in links {
            if let Some((_, program)) = self.0.iter_mut().find(|(known, _)| *known == direction) {
                // Fails where the interface is gone, and the program with it.
                let _ = program.detach(link);
            }
        }
        if let (Means::Clsact(run), Some(turn)) = (means, turn)
            && let Err(error) = run.leave(&turn, index)
        {
            log::warn!("clean up behind us: {error}");
        }
    }
}

/// A loader that has not read the kernel's types. [`EbpfLoader::new`] reads and parses all of them, before it can be told that nothing in
/// the object is relocated by them: a fifth of a start, and 8 MB. It goes without where they cannot be opened, so for this moment nothing
/// can be. No other thread runs yet.
fn loader() -> EbpfLoader<'static> {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return EbpfLoader::new() };
    let is_closed = setrlimit(Resource::RLIMIT_NOFILE, 0, hard).is_ok();
    let loader = EbpfLoader::new();
    if is_closed && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, soft, hard) {
        log::warn!("let files be opened again: {error}");
    }
    loader
}

/// How programs hang on interfaces from now on.
fn means(via: Via) -> Result<Means, Error> {
    if via == Via::Tcx {
        return Ok(Means::Tcx);
    }
    match clsact::clean() {
        Ok(removed) => removed.iter().for_each(|removed| {
            log::warn!("a run that was killed had left {}: removed", printable(&removed.to_string(), MAX_SHOWN));
        }),
        Err(error) => log::warn!("what runs that were killed may have left: {error}"),
    }
    let run = Run::begin();
    Ok(Means::Clsact(run.map_err(|error| Error::Attach { what: "by clsact".into(), why: error.to_string() })?))
}

/// Loads and attaches what goes on no interface: what is there now, and what is not.
fn attach_others(
    programs: &mut BTreeMap<&str, &mut Program>,
    features: &Features,
    hooks: Vec<&Hook>,
) -> (Vec<Attached>, Vec<Missing>) {
    let (mut others, mut missing) = (Vec::new(), Vec::new());
    for hook in hooks {
        let feature = hook.features[0];
        log::debug!("{}: {}", label(hook.place), feature.about().with);
        match attach(programs, hook) {
            Ok(()) => others.push(told(hook.place)),
            Err(error) => {
                let why = plan::explain(features, feature, &error.to_string());
                missing.push(Missing { hook: label(hook.place), why });
            }
        }
    }
    (others, missing)
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
