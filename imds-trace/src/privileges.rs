//! What may this process still do once everything is attached? What following new interfaces and reading who asked take.
//!
//! Capabilities belong to threads: each one gives up its own. What a command needs that `run` starts is given up when it runs.

use std::collections::HashSet;
use std::path::PathBuf;

use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::prctl;
use nix::unistd::{AccessFlags, faccessat};
use thiserror::Error;

/// Kept in any case, if they are there: for bpf(2) where it is not for everybody, for interfaces, and for /proc of other users'
/// processes.
const KEPT: [Capability; 3] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_SYS_PTRACE];

/// Why privileges could not be given up.
#[derive(Debug, Error)]
pub enum Error {
    /// Of capabilities.
    #[error("give up capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    /// Of the process's own settings.
    #[error("give up privileges: {0}")]
    Setting(#[from] Errno),
}

/// What this run will still have to do.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    /// It passes signals on to a command, which may have become another user's.
    pub signals: bool,
    /// It writes there: folders in which files come and go, sockets to connect to.
    pub writes: Vec<PathBuf>,
    /// It reads there: folders of container runtimes, users' among them.
    pub reads: Vec<PathBuf>,
}

/// No core of this process, and nobody of the same user looks into its memory. Programs that it starts are as others.
pub fn conceal() -> Result<(), Error> {
    Ok(prctl::set_dumpable(false)?)
}

/// Gives up, for the calling thread and for good, what these tasks do not take.
pub fn keep_for(tasks: &Tasks) -> Result<(), Error> {
    let has = caps::read(None, CapSet::Permitted)?;
    let mut kept: HashSet<Capability> = KEPT.into();
    if !has.contains(&Capability::CAP_BPF) {
        // Stands in for it.
        kept.insert(Capability::CAP_SYS_ADMIN);
    }
    if tasks.signals {
        kept.insert(Capability::CAP_KILL);
    }
    kept.retain(|capability| has.contains(capability));
    let before = caps::read(None, CapSet::Effective)?;
    // Tried without: whose folder it is, and what else may keep us out, is the kernel's to say.
    caps::set(None, CapSet::Effective, &kept)?;
    let needs = |path: &PathBuf| {
        let wanted = if path.is_dir() { AccessFlags::W_OK | AccessFlags::X_OK } else { AccessFlags::W_OK };
        // By what is effective; access(2) goes by what is permitted.
        let may = faccessat(AT_FDCWD, path, wanted, AtFlags::AT_EACCESS);
        !matches!(may, Ok(()) | Err(Errno::ENOENT))
    };
    if has.contains(&Capability::CAP_DAC_OVERRIDE) && tasks.writes.iter().any(needs) {
        kept.insert(Capability::CAP_DAC_OVERRIDE);
    }
    let hides = |path: &PathBuf| {
        let may = faccessat(AT_FDCWD, path, AccessFlags::R_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS);
        matches!(may, Err(Errno::EACCES))
    };
    if has.contains(&Capability::CAP_DAC_READ_SEARCH) && tasks.reads.iter().any(hides) {
        kept.insert(Capability::CAP_DAC_READ_SEARCH);
    }
    caps::set(None, CapSet::Effective, &before)?;
    keep(&kept)
}

/// Gives up everything, for the calling thread and for good.
pub fn keep_nothing() -> Result<(), Error> {
    keep(&HashSet::new())
}

fn keep(kept: &HashSet<Capability>) -> Result<(), Error> {
    // What an exec could bring back.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::read(None, CapSet::Bounding)? {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, kept)?;
    caps::set(None, CapSet::Permitted, kept)?;
    Ok(prctl::set_no_new_privs()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gives_up_what_is_its_own_and_other_threads_keep_theirs() {
        let before = caps::read(None, CapSet::Permitted).unwrap();
        let left = std::thread::spawn(|| {
            keep_for(&Tasks { writes: vec!["/no/such/folder".into()], ..Tasks::default() }).unwrap();
            let some = caps::read(None, CapSet::Permitted).unwrap();
            keep_nothing().unwrap();
            (some, caps::read(None, CapSet::Permitted).unwrap(), prctl::get_no_new_privs().unwrap())
        });
        let (some, none, no_new) = left.join().unwrap();
        assert!(some.iter().all(|capability| KEPT.contains(capability) && before.contains(capability)), "{some:?}");
        assert!(none.is_empty() && no_new);
        assert_eq!(caps::read(None, CapSet::Permitted).unwrap(), before);
    }
}
