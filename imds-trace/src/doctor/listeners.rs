//! Does anybody listen at an address of this network namespace?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `TCP_LISTEN` of `include/net/tcp_states.h`, as `/proc/net/tcp` writes it.
const LISTEN: &str = "0A";

/// Who listens; `None` if that could not be read.
pub type Listeners = Option<Vec<(IpAddr, u16)>>;

/// Listeners in the calling thread's network namespace.
pub fn read() -> Listeners {
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
