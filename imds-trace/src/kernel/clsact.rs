//! Which filters of ours hang on clsact, who holds them, and how do they go? A filter stays when its process dies; a link does not.
//!
//! * A run on clsact has a random number. It is the handle of the run's filters, and the name of an abstract Unix socket that the
//!   run holds: the kernel takes that away with the process, however it ends. Such names belong to a network namespace, as filters
//!   do, so a filter whose socket is gone is stale, whatever became of pids, and one whose socket is there is not touched, in
//!   whichever container its run is.
//! * A bit of the handle says that the qdisc was made by us. A run that comes to such a qdisc takes the mark over, and the last
//!   filter that goes takes the qdisc along, if nothing else hangs there. A qdisc without the mark is somebody else's.
//! * Between looking and changing nothing of ours changes: [`Turn`].

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use aya::programs::tc::{self, TcError, TcHandle};
use imds_trace_ebpf::record::name;
use nix::net::if_::if_indextoname;

use super::netlink::{Filter, Netlink};
use diagnosis::net::{Direction, Ifindex};

/// The bit of a handle that says: we made the qdisc.
const QDISC_IS_OURS: u32 = 1 << 30;
/// The bits that are the run's number. The kernel's own handles stay below 2^31.
const NUMBER: u32 = QDISC_IS_OURS - 1;
/// What others of us do at one interface takes milliseconds; whoever takes longer is not waited for.
const PATIENCE: Duration = Duration::from_millis(10);
const TRIES: u32 = 200;

/// A run on clsact, as others can see it.
#[derive(Debug)]
pub struct Run {
    number: u32,
    _held: UnixDatagram,
    /// Interfaces whose qdisc is ours.
    made: BTreeSet<Ifindex>,
}

impl Run {
    /// Takes a number that nobody has.
    pub fn begin() -> io::Result<Self> {
        loop {
            let number = RandomState::new().hash_one(()) as u32 & NUMBER;
            match UnixDatagram::bind_addr(&address(&run_name(number))?) {
                Ok(held) => return Ok(Self { number, _held: held, made: BTreeSet::new() }),
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes an interface ready: a clsact qdisc to hang on, and nothing stale on it. Gives the handle for filters there. Hold the
    /// turn until they are.
    pub fn arrive(&mut self, _: &Turn, index: Ifindex, interface: &str) -> io::Result<TcHandle> {
        let netlink = Netlink::open()?;
        let made = match tc::qdisc_add_clsact(interface) {
            Ok(()) => true,
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(nix::libc::EEXIST) => {
                if !netlink.clsact()?.contains(&index) {
                    return Err(io::Error::other("somebody's ingress qdisc is where clsact would have to be"));
                }
                remove(&netlink, index, is_stale)?.was_ours
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        if made {
            self.made.insert(index);
        }
        Ok((self.number | if made { QDISC_IS_OURS } else { 0 }).into())
    }

    /// Takes this run's filters off an interface, stale ones too, and the qdisc if it is ours and empty.
    pub fn leave(&mut self, _: &Turn, index: Ifindex) -> io::Result<()> {
        let netlink = Netlink::open()?;
        let own = |handle| handle & NUMBER == self.number;
        let removed = remove(&netlink, index, |handle| own(handle) || is_stale(handle))?;
        if self.made.remove(&index) || removed.was_ours {
            removed.remove_qdisc(&netlink, index)?;
        }
        Ok(())
    }
}

/// Something stale that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Where it hung.
    pub interface: String,
    /// On which side; `None` for the qdisc itself.
    pub direction: Option<Direction>,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.direction {
            Some(direction) => write!(f, "the {direction} filter of {}", self.interface),
            None => write!(f, "the clsact qdisc of {}", self.interface),
        }
    }
}

/// Removes what runs that were killed left on the interfaces of this network namespace. Needs CAP_NET_ADMIN.
pub fn clean() -> io::Result<Vec<Removed>> {
    let netlink = Netlink::open()?;
    let mut gone = Vec::new();
    for index in netlink.clsact()? {
        let _turn = Turn::take()?;
        let removed = remove(&netlink, index, is_stale)?;
        let name =
            || if_indextoname(index.0).map_or_else(|_| index.0.to_string(), |name| name.to_string_lossy().into());
        gone.extend(removed.filters.iter().map(|direction| Removed { interface: name(), direction: Some(*direction) }));
        if !removed.filters.is_empty() && removed.was_ours && removed.remove_qdisc(&netlink, index)? {
            gone.push(Removed { interface: name(), direction: None });
        }
    }
    Ok(gone)
}

/// Only who holds this changes anything; dropping it lets the next one.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held")] Option<UnixDatagram>);

impl Turn {
    /// Waits for it. Somebody who holds it for seconds is none of us, and goes unheeded.
    #[expect(clippy::disallowed_methods, reason = "a taken address has no event to wait for; TRIES is the deadline")]
    pub fn take() -> io::Result<Self> {
        let turn = address("imds-trace/clsact")?;
        for _ in 0..TRIES {
            match UnixDatagram::bind_addr(&turn) {
                Ok(held) => return Ok(Self(Some(held))),
                Err(error) if error.kind() == ErrorKind::AddrInUse => std::thread::sleep(PATIENCE),
                Err(error) => return Err(error),
            }
        }
        Ok(Self(None))
    }
}

/// What came of removing filters.
struct Outcome {
    /// The sides of those removed.
    filters: Vec<Direction>,
    /// A filter of ours, removed or not, said that the qdisc is ours.
    was_ours: bool,
    /// Nothing hangs there any more.
    empty: bool,
}

impl Outcome {
    /// Gives whether it was removed.
    fn remove_qdisc(&self, netlink: &Netlink, index: Ifindex) -> io::Result<bool> {
        if self.empty {
            netlink.remove_clsact(index)?;
        }
        Ok(self.empty)
    }
}

/// Removes those filters of ours whose handle is `chosen`.
fn remove(netlink: &Netlink, index: Ifindex, chosen: impl Fn(u32) -> bool) -> io::Result<Outcome> {
    let mut outcome = Outcome { filters: Vec::new(), was_ours: false, empty: true };
    for direction in [Direction::Ingress, Direction::Egress] {
        for filter in netlink.filters(index, direction)? {
            let handle = filter.handle;
            if !is_ours(&filter) {
                outcome.empty = false;
                continue;
            }
            outcome.was_ours |= handle & QDISC_IS_OURS != 0;
            if chosen(handle) {
                netlink.remove_filter(&filter)?;
                outcome.filters.push(direction);
            } else {
                outcome.empty = false;
            }
        }
    }
    Ok(outcome)
}

fn is_ours(filter: &Filter) -> bool {
    filter.program.as_deref().is_some_and(|program| [name::TC_INGRESS, name::TC_EGRESS].contains(&program))
}

/// Is the run gone whose filters have this handle? When in doubt it is not.
fn is_stale(handle: u32) -> bool {
    let held = address(&run_name(handle & NUMBER)).and_then(|name| UnixDatagram::unbound()?.connect_addr(&name));
    held.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn run_name(number: u32) -> String {
    format!("imds-trace/clsact/{number:08x}")
}

fn address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_stale_when_it_is_gone_and_not_before() {
        let run = Run::begin().unwrap();
        let (plain, marked) = (run.number, run.number | QDISC_IS_OURS);
        assert!(!is_stale(plain) && !is_stale(marked));
        let other = Run::begin().unwrap();
        assert_ne!(other.number, plain);
        drop(run);
        assert!(is_stale(plain) && is_stale(marked));
        assert!(!is_stale(other.number));
    }

    #[test]
    fn what_was_removed_is_said() {
        let removed = |direction| Removed { interface: "docker0".to_owned(), direction }.to_string();
        assert_eq!(removed(Some(Direction::Ingress)), "the ingress filter of docker0");
        assert_eq!(removed(None), "the clsact qdisc of docker0");
    }
}
