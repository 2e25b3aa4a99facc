//! Does anybody listen at an address of a network namespace?
//!
//! Looked up only when a rule sends requests there: to list the listeners of one namespace, the kernel walks the connections of all,
//! which takes it milliseconds, and there may be hundreds of namespaces.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::sched::{CloneFlags, setns};

/// `TCP_LISTEN` of `include/net/tcp_states.h`, as `/proc/net/tcp` writes it.
const LISTEN: &str = "0A";

/// Listeners of a network namespace, read when they are first asked for.
#[derive(Clone, Debug)]
pub struct Listeners {
    namespace: Namespace,
    read: OnceLock<Option<Vec<(IpAddr, u16)>>>,
}

#[derive(Clone, Debug)]
enum Namespace {
    /// The calling thread's.
    Own,
    /// Another: its file, which must still have this inode when it is entered.
    Other(PathBuf, u64),
}

impl Listeners {
    /// Of the calling thread's namespace.
    pub fn here() -> Self {
        Self { namespace: Namespace::Own, read: OnceLock::new() }
    }

    /// Of the namespace that is this file.
    pub fn of(path: PathBuf, inode: u64) -> Self {
        Self { namespace: Namespace::Other(path, inode), read: OnceLock::new() }
    }

    /// All of them; `None` if they could not be read.
    pub fn all(&self) -> Option<&[(IpAddr, u16)]> {
        let read = self.read.get_or_init(|| match &self.namespace {
            Namespace::Own => read(),
            Namespace::Other(path, inode) => enter(path, *inode),
        });
        read.as_deref()
    }
}

/// Its process may have ended since, and its number may be another's.
fn enter(path: &Path, inode: u64) -> Option<Vec<(IpAddr, u16)>> {
    let namespace = File::open(path).ok().filter(|file| file.metadata().is_ok_and(|data| data.ino() == inode))?;
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET).ok()?;
            read()
        });
        reading.join().ok().flatten()
    })
}

/// Of the calling thread's network namespace.
fn read() -> Option<Vec<(IpAddr, u16)>> {
    let v4 = std::fs::read_to_string("/proc/thread-self/net/tcp").ok()?;
    // Without IPv6 there is no such file.
    let v6 = std::fs::read_to_string("/proc/thread-self/net/tcp6").unwrap_or_default();
    Some(v4.lines().chain(v6.lines()).filter_map(listener).collect())
}

/// Does somebody listen at this address and port, or at all addresses? A socket of IPv6 that takes everything takes IPv4 too, unless
/// it was told not to, which is not shown.
pub fn any(listeners: &[(IpAddr, u16)], address: IpAddr, port: u16) -> bool {
    listeners.iter().any(|(held, at)| {
        let all = held.is_unspecified() && (held.is_ipv6() || address.is_ipv4());
        *at == port && (*held == address || all)
    })
}

fn listener(line: &str) -> Option<(IpAddr, u16)> {
    let mut words = line.split_whitespace().skip(1);
    let (local, state) = (words.next()?, words.nth(1)?);
    if state != LISTEN {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of 32 bits in the machine's own order hold the bytes as they go over the wire.
    let word = |at: usize| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let address = if address.len() == 8 {
        IpAddr::V4(Ipv4Addr::from(word(0)?))
    } else {
        let mut bytes = [0; 16];
        for (part, at) in bytes.chunks_exact_mut(4).zip((0..32).step_by(8)) {
            part.copy_from_slice(&word(at)?);
        }
        IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_has_become_another_is_not_read() {
        let own = Path::new("/proc/thread-self/ns/net");
        let inode = own.metadata().expect("it has a namespace").ino();
        assert_eq!(Listeners::of(own.to_owned(), inode + 1).all(), None);
        assert_eq!(Listeners::of("/proc/0/ns/net".into(), inode).all(), None);
    }

    #[test]
    fn own_listeners_are_read_when_they_are_asked_for() {
        let listeners = Listeners::here();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
        let at = socket.local_addr().expect("its address");
        assert!(any(listeners.all().expect("they can be read"), at.ip(), at.port()));
    }

    #[test]
    fn who_listens_is_read_and_who_is_connected_is_not() {
        let line =
            |local: &str, state: &str| listener(&format!("  0: {local} 00000000:0000 {state} 00000000:00000000"));
        let (one, every) = (u32::from_ne_bytes([127, 0, 0, 1]), "00000000:1FF5");
        assert_eq!(line(&format!("{one:08X}:1F90"), "0A"), Some((IpAddr::from([127, 0, 0, 1]), 8080)));
        assert_eq!(line(every, "01"), None);
        let all = [line(every, "0A").expect("it listens")];
        assert!(any(&all, IpAddr::from([10, 0, 0, 1]), 8181) && !any(&all, IpAddr::from([10, 0, 0, 1]), 80));
        let v6 = line("00000000000000000000000000000000:0050", "0A").expect("it listens");
        assert!(any(&[v6], IpAddr::from([10, 0, 0, 1]), 80));
        assert!(!any(&all, IpAddr::V6(Ipv6Addr::LOCALHOST), 8181));
    }
}
