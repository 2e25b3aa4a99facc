//! How is a network namespace made, entered and got rid of?
//!
//! Only the network namespace changes on entering. `ip netns exec` also remounts /sys, which hides the cgroups and stops
//! a Docker engine from starting; nothing here does that.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags};
use nix::sched::{CloneFlags, setns, unshare};

use crate::children;

/// Where iproute2 looks for named namespaces; `ip -n NAME` works on ours.
pub const NETNS_DIR: &str = "/run/netns";

/// A network namespace with a name under `/run/netns`; dropping the last clone deletes the name.
#[derive(Clone, Debug)]
pub struct Namespace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    file: Arc<File>,
    owned: bool,
}

impl Namespace {
    /// Makes an empty namespace (only `lo`, brought up) called `name`.
    pub fn create(name: &str) -> Result<Namespace> {
        let path = Path::new(NETNS_DIR).join(name);
        std::fs::create_dir_all(NETNS_DIR).context("create /run/netns")?;
        File::create_new(&path).with_context(|| format!("create namespace {name}"))?;
        let target = path.clone();
        let made = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let own = "/proc/thread-self/ns/net";
            nix::mount::mount(Some(own), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        })
        .join()
        .expect("the namespace thread does not panic");
        if let Err(error) = made {
            let _ = std::fs::remove_file(&path);
            bail!("make network namespace {name}: {error} (needs root)");
        }
        let file = Arc::new(File::open(&path).with_context(|| format!("open namespace {name}"))?);
        let namespace = Namespace { inner: Arc::new(Inner { name: name.to_owned(), file, owned: true }) };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The namespace a running process lives in. It is only held open, never deleted by us.
    pub fn of_process(pid: u32) -> Result<Namespace> {
        let path = format!("/proc/{pid}/ns/net");
        let file = Arc::new(File::open(&path).with_context(|| format!("open {path}"))?);
        Ok(Namespace { inner: Arc::new(Inner { name: format!("pid:{pid}"), file, owned: false }) })
    }

    /// Its name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its path under `/run/netns`.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.inner.name)
    }

    /// Its inode number, which is how the kernel and `lsns` name it.
    pub fn inum(&self) -> u64 {
        self.inner.file.metadata().map(|data| data.ino()).unwrap_or(0)
    }

    /// Runs `work` on a thread that has entered the namespace; sockets made there stay in it.
    ///
    /// `/proc/thread-self/net` is the namespace's there; `/proc/net` is not, it belongs to the process.
    pub fn run_inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter().with_context(|| format!("enter namespace {}", self.name()))?;
                    Ok(work())
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the namespace, for good.
    pub fn enter(&self) -> io::Result<()> {
        setns(self.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
    }

    /// A command that will run inside the namespace, and die with the thread that starts it
    /// (start what should live longer with [`children::spawn`]).
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.entering(children::command(program))
    }

    /// Makes a command of ours enter the namespace before it runs.
    pub(crate) fn entering(&self, mut command: Command) -> Command {
        let file = Arc::clone(&self.inner.file);
        // SAFETY: between fork and exec only setns is called, which is a bare system call; the descriptor is kept open by
        // the Arc the closure owns.
        unsafe {
            command.pre_exec(move || {
                let fd = BorrowedFd::borrow_raw(file.as_raw_fd());
                setns(fd, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
            });
        }
        command
    }

    /// Runs `ip` with these words inside the namespace; a failure says which words.
    pub fn ip(&self, words: &str) -> Result<String> {
        self.run("ip", &words.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs a program to its end inside the namespace and returns its standard output.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = self.command(program);
        command.args(args);
        children::output(command).with_context(|| format!("in namespace {}", self.name()))
    }

    /// Sets a sysctl of the namespace, e.g. `("net/ipv4/ip_forward", "1")`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        // /proc/sys/net shows the namespace of the thread that opens it.
        self.run_inside(|| std::fs::write(Path::new("/proc/sys").join(key), value))?
            .with_context(|| format!("set {key}={value} in namespace {}", self.name()))
    }

    /// A sysctl of the namespace, without the line's end.
    pub fn sysctl_value(&self, key: &str) -> Result<String> {
        let text = self.run_inside(|| std::fs::read_to_string(Path::new("/proc/sys").join(key)))?;
        Ok(text.with_context(|| format!("read {key} in namespace {}", self.name()))?.trim_end().to_owned())
    }

    /// Reads a file below `/proc/net` as this namespace shows it, e.g. `snmp`.
    pub fn proc_net(&self, file: &str) -> Result<String> {
        self.run_inside(|| std::fs::read_to_string(Path::new("/proc/thread-self/net").join(file)))?
            .with_context(|| format!("read /proc/net/{file} in namespace {}", self.name()))
    }

    /// A counter of `/proc/net/snmp` or `/proc/net/netstat` by its group and name, e.g. `("Ip", "InHdrErrors")`.
    pub fn counter(&self, group: &str, name: &str) -> Result<u64> {
        let text = self.proc_net("snmp")? + &self.proc_net("netstat")?;
        // Each group has two lines: the names and the numbers, in the same order.
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(group)?.strip_prefix(": "));
        let (names, numbers) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let at = names.split(' ').position(|known| known == name);
        at.and_then(|at| numbers.split(' ').nth(at)?.parse().ok())
            .with_context(|| format!("namespace {} has no counter {group} {name}", self.name()))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.file.as_fd()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.owned {
            delete(&Path::new(NETNS_DIR).join(&self.name));
        }
    }
}

/// Removes a namespace's name. What still runs in it keeps the namespace itself alive.
pub(crate) fn delete(path: &Path) {
    let _ = nix::mount::umount2(path, MntFlags::MNT_DETACH);
    let _ = std::fs::remove_file(path);
}
