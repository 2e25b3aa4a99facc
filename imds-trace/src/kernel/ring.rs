//! What lies in the ring buffer? Bytes to [`Record`], and the numbers in it to names.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use aya::maps::{MapData, RingBuf};
use imds_trace_ebpf::record::{self, kind};
use zerocopy::FromBytes;

use super::decode::{Names, Record};
use super::symbols::Symbols;
use diagnosis::net::{Ifindex, Netns};

/// Records as they come. Readable, as a file descriptor, when there are some.
pub struct Records(pub(super) RingBuf<MapData>);

impl AsFd for Records {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Records {
    /// Hands the bytes of the next record to `take`; `None` if there is none.
    pub fn next<T>(&mut self, take: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.0.next().map(|item| take(&item))
    }
}

/// How many of a record's bytes count: the ring buffer gives some more room than they take.
pub fn counting(bytes: &[u8]) -> usize {
    let said = record::Header::ref_from_prefix(bytes).map(|(header, _)| header.len as usize);
    said.map_or(bytes.len(), |len| len.clamp(size_of::<record::Header>(), bytes.len()))
}

/// Reads one record; `None` if it is not one of ours or cut short.
pub fn read(bytes: &[u8]) -> Option<Record<'_>> {
    let (header, _) = record::Header::ref_from_prefix(bytes).ok()?;
    match header.kind {
        kind::PACKET | kind::PACKET_WITH_PAYLOAD => {
            let (packet, rest) = record::Packet::ref_from_prefix(bytes).ok()?;
            let snapped = if header.kind == kind::PACKET { 0 } else { usize::from(packet.snapped) };
            Some(Record::Packet(packet, rest.get(..snapped)?))
        }
        kind::DROP => Some(Record::Drop(record::Drop::ref_from_prefix(bytes).ok()?.0)),
        kind::CONNECT | kind::ATTEMPT => {
            let (connect, rest) = record::Connect::ref_from_prefix(bytes).ok()?;
            let is_described = header.len as usize > size_of::<record::Connect>();
            let task = if is_described { Some(record::Task::ref_from_prefix(rest).ok()?.0) } else { None };
            let attempt = header.kind == kind::ATTEMPT;
            Some(if attempt { Record::Attempt(connect, task) } else { Record::Connect(connect, task) })
        }
        kind::ICMP_ERROR => Some(Record::IcmpError(record::IcmpError::ref_from_prefix(bytes).ok()?.0)),
        kind::COUNTED => Some(Record::Counted(record::Counted::ref_from_prefix(bytes).ok()?.0)),
        kind::CONNECTED | kind::SENDING => Some(Record::Connected(record::Connected::ref_from_prefix(bytes).ok()?.0)),
        _ => None,
    }
}

/// Names for the numbers in records, as this machine has them.
#[derive(Debug)]
pub struct MachineNames {
    /// Namespace of the hooks.
    pub netns: Netns,
    /// Watched addresses.
    pub endpoints: Vec<IpAddr>,
    /// Names of interfaces in our namespace, those that are gone included: their packets may still be in the buffer.
    pub interfaces: BTreeMap<Ifindex, Arc<str>>,
    /// Does a socket's TCP say what it counted?
    pub counts: bool,
    /// Drop reasons.
    pub reasons: HashMap<u32, String>,
    /// Functions.
    pub symbols: RefCell<Symbols>,
}

impl Names for MachineNames {
    fn host_netns(&self) -> Netns {
        self.netns
    }

    fn interface(&self, index: Ifindex) -> Option<Arc<str>> {
        self.interfaces.get(&index).cloned()
    }

    fn symbol(&self, address: u64) -> Option<String> {
        self.symbols.borrow_mut().name(address)
    }

    fn reason(&self, number: u32) -> Option<String> {
        if self.reasons.is_empty() {
            return None;
        }
        // A subsystem (upper 16 bits) with reasons of its own, which this kernel's main table does not name.
        Some(self.reasons.get(&number).cloned().unwrap_or_else(|| format!("{number:#x}")))
    }

    fn counts(&self) -> bool {
        self.counts
    }

    fn is_endpoint(&self, address: IpAddr) -> bool {
        self.endpoints.contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn every_kind_is_read_and_what_is_cut_short_is_not() {
        let mut packet = record::Packet::default();
        packet.header.kind = kind::PACKET_WITH_PAYLOAD;
        packet.snapped = 3;
        let mut bytes = packet.as_bytes().to_vec();
        bytes.extend_from_slice(b"GET and what was there before");
        // The kernel hands records out on 8-byte boundaries; a Vec of u64 does too.
        let aligned = align(&bytes);
        let Some(Record::Packet(_, payload)) = read(&aligned[..bytes.len()]) else { panic!("not a packet") };
        assert_eq!(payload, b"GET");
        assert!(read(&aligned[..size_of::<record::Packet>() + 2]).is_none());
        assert!(read(&[]).is_none());
        assert!(read(align(&[0xff; 512])).is_none());
    }

    #[test]
    fn of_a_record_with_payload_no_more_is_kept_than_what_was_read() {
        let mut packet = record::Packet::default();
        packet.header.kind = kind::PACKET_WITH_PAYLOAD;
        packet.header.len = size_of::<record::Packet>() as u32 + 3;
        packet.snapped = 3;
        let bytes = [packet.as_bytes(), b"GET and what was there before"].concat();
        let aligned = &align(&bytes)[..bytes.len()];
        let kept = &aligned[..counting(aligned)];
        assert!(matches!(read(kept), Some(Record::Packet(_, b"GET"))));
        // A number that cannot be true.
        packet.header.len = u32::MAX;
        assert_eq!(counting(align(packet.as_bytes())), size_of::<record::Packet>());
        packet.header.len = 0;
        assert_eq!(counting(align(packet.as_bytes())), size_of::<record::Header>());
        assert_eq!(counting(&[]), 0);
    }

    #[test]
    fn a_connect_is_read_with_its_task_or_without() {
        let mut connect = record::Connect::default();
        connect.header.kind = kind::CONNECT;
        connect.header.len = size_of::<record::Connect>() as u32;
        assert!(matches!(read(align(connect.as_bytes())), Some(Record::Connect(_, None))));
        connect.header.kind = kind::ATTEMPT;
        connect.header.len += size_of::<record::Task>() as u32;
        let bytes = [connect.as_bytes(), record::Task::default().as_bytes()].concat();
        assert!(matches!(read(align(&bytes)), Some(Record::Attempt(_, Some(_)))));
        assert!(read(&align(&bytes)[..bytes.len() - 8]).is_none());
    }

    fn align(bytes: &[u8]) -> &'static [u8] {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        words.leak().as_bytes()
    }
}
