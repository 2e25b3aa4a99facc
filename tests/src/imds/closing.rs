//! When may a connection whose answer was hop-limited be let go?
//!
//! When the answer is acknowledged, or when it has been retransmitted in vain for long enough: then with a reset. One
//! thread looks after all of them, so that a storm of lost answers needs no thread each.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::behaviour::ORDINARY_TTL;

/// A connection to look after until its answer has arrived or is given up.
pub(super) struct Leaving {
    pub stream: TcpStream,
    /// Whether packets after the acknowledged answer (and the reset) have the ordinary TTL.
    pub restore_for_fin: bool,
    pub restore_for_reset: bool,
    pub give_up_at: Instant,
}

/// Looks after connections until the sender is gone.
pub(super) fn look_after(arrivals: &Receiver<Leaving>) {
    let mut leaving: Vec<Leaving> = Vec::new();
    loop {
        // The more there are, the rarer the look at each.
        let pause = Duration::from_millis(5) + Duration::from_micros(20) * leaving.len() as u32;
        let arrival = match leaving.is_empty() {
            true => arrivals.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => arrivals.recv_timeout(pause),
        };
        match arrival {
            Ok(one) => {
                leaving.push(one);
                leaving.extend(arrivals.try_iter());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                leaving.iter().for_each(give_up);
                return;
            }
        }
        let now = Instant::now();
        leaving.retain(|one| match unsent(&one.stream) {
            Ok(0) => {
                if one.restore_for_fin {
                    let _ = set_ttl(&one.stream, ORDINARY_TTL);
                    let _ = one.stream.shutdown(Shutdown::Write);
                }
                false
            }
            Ok(_) if now < one.give_up_at => true,
            Ok(_) => {
                give_up(one);
                false
            }
            Err(_) => false,
        });
    }
}

fn give_up(one: &Leaving) {
    if one.restore_for_reset {
        let _ = set_ttl(&one.stream, ORDINARY_TTL);
    }
    reset(&one.stream);
}

/// Makes the coming close a RST.
pub(super) fn reset(stream: &TcpStream) {
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = setsockopt(stream, sockopt::Linger, &at_once);
    // Not `shutdown`, which would send a FIN first: dropping the stream sends the RST.
}

/// Bytes (and FIN) written but not yet acknowledged by the peer.
pub(super) fn unsent(stream: &TcpStream) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int, and `count` is one.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &mut count) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
}

/// Sets the TTL (IPv6: the unicast hop limit) of every packet the socket sends from now on, retransmissions included.
pub(super) fn set_ttl(stream: &TcpStream, ttl: u8) -> io::Result<()> {
    if stream.local_addr()?.is_ipv4() {
        setsockopt(stream, sockopt::Ipv4Ttl, &libc::c_int::from(ttl))?;
    } else {
        setsockopt(stream, sockopt::Ipv6Ttl, &libc::c_int::from(ttl))?;
    }
    Ok(())
}
