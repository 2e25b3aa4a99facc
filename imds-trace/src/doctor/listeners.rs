//! Does anybody listen at an address of a network namespace?
//!
//! Looked up only when a rule sends requests there: to list the listeners of one namespace, the kernel walks the connections of all,
//! which takes it milliseconds, and there may be hundreds of namespaces.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rtnetlink::sys::{Socket, SocketAddr};

use nix::sched::{CloneFlags, setns};

use super::firewall::rules::{Chain, Verdict};

/// `TCP_LISTEN` of `include/net/tcp_states.h`, as `/proc/net/tcp` writes it.
const LISTEN: &str = "0A";

/// A socket that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// At this address; the unspecified one stands for all of its family.
    pub address: IpAddr,
    /// At this port.
    pub port: u16,
    /// Its number, which a process that holds it shows in `/proc/PID/fd`.
    pub inode: u64,
}

/// Listeners of a network namespace, read when they are first asked for.
#[derive(Clone, Debug)]
pub struct Listeners {
    namespace: Namespace,
    read: OnceLock<Option<Vec<Listener>>>,
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
    pub fn all(&self) -> Option<&[Listener]> {
        self.read.get_or_init(|| self.within(read)).as_deref()
    }

    /// Looks at something else in their namespace.
    pub fn within<T: Send>(&self, look: impl FnOnce() -> Option<T> + Send) -> Option<T> {
        match &self.namespace {
            Namespace::Own => look(),
            Namespace::Other(path, inode) => enter(path, *inode, look),
        }
    }
}

/// Its process may have ended since, and its number may be another's.
fn enter<T: Send>(path: &Path, inode: u64, look: impl FnOnce() -> Option<T> + Send) -> Option<T> {
    let namespace = File::open(path).ok().filter(|file| file.metadata().is_ok_and(|data| data.ino() == inode))?;
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET).ok()?;
            look()
        });
        reading.join().ok().flatten()
    })
}

/// Of the calling thread's network namespace.
fn read() -> Option<Vec<Listener>> {
    let v4 = std::fs::read_to_string("/proc/thread-self/net/tcp").ok()?;
    // Without IPv6 there is no such file.
    let v6 = std::fs::read_to_string("/proc/thread-self/net/tcp6").unwrap_or_default();
    let v6: Vec<_> = v6.lines().filter_map(listener).collect();
    let v6_only = if v6.iter().any(|one| one.address.is_unspecified()) { v6_only()? } else { Vec::new() };
    let mut all: Vec<_> = v4.lines().filter_map(listener).collect();
    // A socket of IPv6 that takes everything takes IPv4 too, unless it was told not to.
    let both = v6.iter().filter(|one| one.address.is_unspecified() && !v6_only.contains(&one.port));
    all.extend(both.map(|one| Listener { address: Ipv4Addr::UNSPECIFIED.into(), ..*one }));
    all.extend(v6);
    Some(all)
}

/// `NETLINK_SOCK_DIAG` of `include/uapi/linux/netlink.h`.
const NETLINK_SOCK_DIAG: isize = 4;
/// `SOCK_DIAG_BY_FAMILY`, and how the end of a list and an error are called.
const BY_FAMILY: u16 = 20;
const DONE: u16 = 3;
const ERROR: u16 = 2;
/// Bytes of `struct nlmsghdr`, of `struct inet_diag_req_v2` and of `struct inet_diag_msg`.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const ANSWER: usize = 72;

/// Ports on which sockets of IPv6 listen that take no IPv4 (`IPV6_V6ONLY`), which `/proc/net/tcp6` does not show.
fn v6_only() -> Option<Vec<u16>> {
    const INET6: u8 = 10;
    const TCP: u8 = 6;
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).ok()?;
    socket.bind_auto().ok()?;
    socket.connect(&SocketAddr::new(0, 0)).ok()?;
    let mut asked = Vec::new();
    asked.extend(u32::try_from(HEADER + REQUEST).ok()?.to_ne_bytes());
    asked.extend(BY_FAMILY.to_ne_bytes());
    // `NLM_F_REQUEST | NLM_F_DUMP`, a sequence number and a sender of 0.
    asked.extend(0x301_u16.to_ne_bytes());
    asked.extend([0; 8]);
    asked.extend([INET6, TCP, 0, 0]);
    asked.extend((1_u32 << 10).to_ne_bytes());
    asked.resize(HEADER + REQUEST, 0);
    socket.send(&asked, 0).ok()?;
    let mut ports = Vec::new();
    loop {
        let (said, _) = socket.recv_from_full().ok()?;
        match only(&said, &mut ports) {
            Some(true) => return Some(ports),
            Some(false) => {}
            None => return None,
        }
    }
}

/// Adds the ports of such sockets of a datagram; whether that was the last one; `None` if it cannot be read.
fn only(datagram: &[u8], ports: &mut Vec<u16>) -> Option<bool> {
    /// `INET_DIAG_SKV6ONLY`
    const V6_ONLY: u16 = 11;
    let short = |bytes: &[u8], at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let aligned = |length: usize| length.div_ceil(4) * 4;
    let mut rest = datagram;
    while !rest.is_empty() {
        let length = usize::try_from(u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?)).ok()?;
        let message = rest.get(..length).filter(|message| message.len() >= HEADER)?;
        match short(message, 4)? {
            DONE => return Some(true),
            ERROR => return None,
            _ => {}
        }
        let port = u16::from_be_bytes(message.get(HEADER + 4..HEADER + 6)?.try_into().ok()?);
        let mut attributes = message.get(HEADER + ANSWER..)?;
        while attributes.len() > 4 {
            let length = usize::from(short(attributes, 0)?);
            let attribute = attributes.get(..length).filter(|attribute| attribute.len() >= 4)?;
            if short(attribute, 2)? == V6_ONLY && attribute.get(4) == Some(&1) {
                ports.push(port);
            }
            attributes = attributes.get(aligned(length)..).unwrap_or_default();
        }
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    Some(false)
}

/// Does somebody listen at this address and port, or at all addresses?
pub fn any(listeners: &[Listener], address: IpAddr, port: u16) -> bool {
    listeners.iter().any(|one| one.is_at(address, port))
}

impl Listener {
    /// Does it listen at this address and port?
    pub fn is_at(&self, address: IpAddr, port: u16) -> bool {
        let all = self.address.is_unspecified() && self.address.is_ipv4() == address.is_ipv4();
        self.port == port && (self.address == address || all)
    }
}

/// Are connections to IMDS's port certainly refused, at an address that a namespace has itself? Nobody listens there, and no rule sends
/// anything to another port.
pub fn refused(listeners: &Listeners, chains: &[Chain], address: IpAddr) -> bool {
    const PORT: u16 = 80;
    let mut rules = chains.iter().flat_map(|chain| &chain.rules);
    !rules.any(|rule| matches!(rule.verdict, Verdict::Redirect(_)))
        && listeners.all().is_some_and(|all| !any(all, address, PORT))
}

fn listener(line: &str) -> Option<Listener> {
    let mut words = line.split_whitespace().skip(1);
    let (local, state) = (words.next()?, words.nth(1)?);
    let inode = words.nth(5)?.parse().ok()?;
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
    Some(Listener { address, port, inode })
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
    fn it_is_certain_that_nobody_listens_only_if_all_are_known() {
        let of = |read: Option<Vec<(IpAddr, u16)>>| {
            let read =
                read.map(|all| all.into_iter().map(|(address, port)| Listener { address, port, inode: 0 }).collect());
            let listeners = Listeners { namespace: Namespace::Own, read: OnceLock::from(read) };
            refused(&listeners, &[], IpAddr::from([169, 254, 169, 254]))
        };
        assert!(of(Some(Vec::new())));
        assert!(of(Some(vec![(IpAddr::from([127, 0, 0, 1]), 80), (IpAddr::from([0; 4]), 8080)])));
        assert!(!of(Some(vec![(IpAddr::from([0; 4]), 80)])));
        assert!(!of(None));
    }

    #[test]
    fn what_takes_all_of_ipv6_takes_ipv4_unless_it_was_told_not_to() {
        let socket = std::net::TcpListener::bind("[::]:0").expect("a socket");
        let port = socket.local_addr().expect("its address").port();
        assert!(any(Listeners::here().all().expect("they can be read"), IpAddr::from([127, 0, 0, 1]), port));
        let said = |kind: u16, only: u8| {
            let mut body = vec![0; ANSWER];
            body[4..6].copy_from_slice(&8181_u16.to_be_bytes());
            // Another attribute of one byte stands before it.
            for (kind, value) in [(8_u16, 0), (11, only)] {
                body.extend(5_u16.to_ne_bytes());
                body.extend(kind.to_ne_bytes());
                body.extend([value, 0, 0, 0]);
            }
            let mut message = u32::try_from(HEADER + body.len()).expect("it is short").to_ne_bytes().to_vec();
            message.extend(kind.to_ne_bytes());
            message.resize(HEADER, 0);
            message.extend(body);
            message
        };
        let read = |datagram: &[u8]| {
            let mut ports = Vec::new();
            only(datagram, &mut ports).map(|last| (last, ports))
        };
        assert_eq!(read(&said(BY_FAMILY, 1)), Some((false, vec![8181])));
        assert_eq!(read(&said(BY_FAMILY, 0)), Some((false, vec![])));
        assert_eq!(read(&[said(BY_FAMILY, 1), said(DONE, 0)].concat()), Some((true, vec![8181])));
        assert_eq!(read(&said(ERROR, 0)), None);
        assert_eq!(read(&[1, 2, 3]), None);
    }

    #[test]
    fn who_listens_is_read_and_who_is_connected_is_not() {
        let line = |local: &str, state: &str| {
            listener(&format!(
                "  0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0"
            ))
        };
        let (one, every) = (u32::from_ne_bytes([127, 0, 0, 1]), "00000000:1FF5");
        assert_eq!(
            line(&format!("{one:08X}:1F90"), "0A"),
            Some(Listener { address: IpAddr::from([127, 0, 0, 1]), port: 8080, inode: 4711 })
        );
        assert_eq!(line(every, "01"), None);
        let all = [line(every, "0A").expect("it listens")];
        assert!(any(&all, IpAddr::from([10, 0, 0, 1]), 8181) && !any(&all, IpAddr::from([10, 0, 0, 1]), 80));
        let v6 = line("00000000000000000000000000000000:0050", "0A").expect("it listens");
        assert!(any(&[v6], IpAddr::V6(Ipv6Addr::LOCALHOST), 80) && !any(&[v6], IpAddr::from([10, 0, 0, 1]), 80));
        assert!(!any(&all, IpAddr::V6(Ipv6Addr::LOCALHOST), 8181));
    }
}
