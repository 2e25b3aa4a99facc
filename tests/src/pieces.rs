//! How are bytes sent so that every few of them travel in a segment of their own?
//!
//! The fake IMDS and `imds-client` share this file; the client does so without the rest of the kit, which would make it
//! five times as big in every image.

use std::io::{self, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::libc;

/// Bytes that were written but have not left once yet (linux/sockios.h). What left and was lost is not among them.
const SIOCOUTQNSD: libc::Ioctl = 0x894B;

/// Writes `bytes` in pieces of at most `size` (0 counts as 1), each in a segment of its own.
///
/// A piece is written when the one before it has left: if the congestion window holds that back for longer than `patience`,
/// the rest is written at once.
pub fn write(stream: &mut TcpStream, bytes: &[u8], size: usize, patience: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let size = size.max(1);
    let give_up_at = Instant::now() + patience;
    for (number, piece) in bytes.chunks(size).enumerate() {
        while waiting(stream)? > 0 {
            if Instant::now() >= give_up_at {
                return stream.write_all(&bytes[number * size..]);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        stream.write_all(piece)?;
    }
    Ok(())
}

fn waiting(stream: &TcpStream) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: SIOCOUTQNSD writes one int, and `count` is one.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), SIOCOUTQNSD, &mut count) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
}
