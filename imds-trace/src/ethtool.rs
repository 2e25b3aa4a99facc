//! What does a network card's driver count that the kernel does not? Its own statistics, as `ethtool -S` shows them.
//!
//! Asked by ioctl, which needs no privilege for this. The one we want is ENA's `linklocal_allowance_exceeded`: packets to the
//! instance's link-local services (IMDS, DNS, time) that EC2 dropped because there were more than 1,024 a second.

use std::ffi::c_void;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use thiserror::Error;

/// ENA's counter of packets to link-local services that EC2 dropped.
pub const LINK_LOCAL_EXCEEDED: &str = "linklocal_allowance_exceeded";

/// `SIOCETHTOOL` (`include/uapi/linux/sockios.h`).
const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// Commands (`include/uapi/linux/ethtool.h`).
const GET_DRIVER: u32 = 0x03;
const GET_STRINGS: u32 = 0x1b;
const GET_STATISTICS: u32 = 0x1d;
/// `ETH_SS_STATS`: the set of strings that names the statistics.
const STATISTICS: u32 = 1;
/// `ETH_GSTRING_LEN`.
const NAME_LENGTH: usize = 32;
/// More than any driver has; the kernel is asked for its own number first.
const MAX_STATISTICS: u32 = 65_536;
/// Room beyond the number asked for: a driver may add queues between two calls, and the kernel writes what there is then.
const SLACK: usize = 2;

/// Why a driver could not be asked.
#[derive(Debug, Error)]
pub enum Error {
    /// No interface can have this name.
    #[error("{0:?} is not an interface name")]
    Name(String),
    /// The kernel said no.
    #[error("ask the driver of {interface}: {error}")]
    Ask {
        /// Whose driver.
        interface: String,
        /// What the kernel said.
        error: io::Error,
    },
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rom: [u8; 32],
    reserved: [u8; 12],
    private_flags: u32,
    statistics: u32,
    test_info: u32,
    eeprom: u32,
    registers: u32,
}

/// `struct ifreq`, of which only name and pointer are used.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut c_void,
    /// The union behind the name has 24 bytes.
    rest: [u8; 16],
}

/// The value of a counter; `None` if the interface's driver has none of that name.
pub fn counter(interface: &str, name: &str) -> Result<Option<u64>, Error> {
    let count = match information(interface) {
        Ok(information) => information.statistics.min(MAX_STATISTICS) as usize,
        Err(error) if is_unsupported(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    if count == 0 {
        return Ok(None);
    }
    // struct ethtool_gstrings: command, set, length, then 32 bytes for each name. u64 for the alignment the kernel expects.
    let mut strings = vec![0u64; (12 + NAME_LENGTH * count * SLACK).div_ceil(8)];
    put(&mut strings, &[GET_STRINGS, STATISTICS, count as u32]);
    ask(interface, strings.as_mut_ptr().cast())?;
    let strings: Vec<u8> = strings.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let names = strings[12..].chunks_exact(NAME_LENGTH).take(count);
    let Some(at) = names.into_iter().position(|bytes| until_nul(bytes) == name.as_bytes()) else { return Ok(None) };
    // struct ethtool_stats: command, length, then 8 bytes for each value.
    let mut values = vec![0u64; 1 + count * SLACK];
    put(&mut values, &[GET_STATISTICS, count as u32]);
    ask(interface, values.as_mut_ptr().cast())?;
    Ok(values.get(1 + at).copied())
}

/// The driver's name, e.g. `ena` or `veth`.
pub fn driver(interface: &str) -> Result<String, Error> {
    let information = information(interface)?;
    Ok(String::from_utf8_lossy(until_nul(&information.driver)).into_owned())
}

fn information(interface: &str) -> Result<DriverInfo, Error> {
    let mut information = DriverInfo {
        command: GET_DRIVER,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus: [0; 32],
        rom: [0; 32],
        reserved: [0; 12],
        private_flags: 0,
        statistics: 0,
        test_info: 0,
        eeprom: 0,
        registers: 0,
    };
    ask(interface, (&raw mut information).cast())?;
    Ok(information)
}

fn put(buffer: &mut [u64], words: &[u32]) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    for (word, bytes) in buffer.iter_mut().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(whole);
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn is_unsupported(error: &Error) -> bool {
    matches!(error, Error::Ask { error, .. } if error.raw_os_error() == Some(libc::EOPNOTSUPP))
}

/// `data` points to a structure that begins with its command and is as large as the kernel takes it to be.
fn ask(interface: &str, data: *mut c_void) -> Result<(), Error> {
    let mut name = [0; libc::IFNAMSIZ];
    if interface.is_empty() || interface.len() >= name.len() {
        return Err(Error::Name(interface.to_owned()));
    }
    name[..interface.len()].copy_from_slice(interface.as_bytes());
    let failed = |error: io::Error| Error::Ask { interface: interface.to_owned(), error };
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|error| failed(error.into()))?;
    let mut request = Request { name, data, rest: [0; 16] };
    // SAFETY: the request has the layout of struct ifreq and outlives the call; `data` is one of the structures above, with room
    // for what its own length field announces and more.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if answer < 0 { Err(failed(io::Error::last_os_error())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layouts_are_the_kernels() {
        assert_eq!(size_of::<DriverInfo>(), 196);
        assert_eq!(size_of::<Request>(), size_of::<libc::ifreq>());
    }

    #[test]
    fn an_interface_without_such_a_counter_has_none_and_one_that_is_not_there_is_an_error() {
        assert_eq!(counter("lo", LINK_LOCAL_EXCEEDED).ok(), Some(None));
        assert!(matches!(counter("nosuch0", LINK_LOCAL_EXCEEDED), Err(Error::Ask { .. })));
        assert!(matches!(counter("a-name-that-is-too-long", "x"), Err(Error::Name(_))));
    }
}
