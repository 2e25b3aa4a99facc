//! Which frames are in the file, when were they seen, and at which interface? pcap and pcapng, of either byte order.

use std::io::{self, Read};
use std::sync::{Arc, OnceLock};

use pcap_parser::pcapng::{
    Block, EnhancedPacketBlock, InterfaceDescriptionBlock, InterfaceStatisticsBlock, OptionCode, PcapNGOption,
    UnknownBlock,
};
use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{LegacyPcapReader, PcapBlockOwned, PcapError, PcapNGReader};
use thiserror::Error;

use super::format::{Nothing, Unread, is_pcapng};
use super::linktype::{link_name, said};
use crate::net::{Direction, Timestamp, bounded};
use crate::unpack::{Input, peek};

/// By so many bytes pcap and pcapng are told apart.
const MAGIC: usize = 4;

/// Bytes read at once; what is longer makes room for itself.
const CAPACITY: usize = 1 << 16;
/// A longer packet or block is none of a capture's: tcpdump keeps at most 262,144 bytes of one, and lists of names are shorter still.
const MAX_BLOCK: usize = 1 << 24;
/// Interfaces of one file at most.
const MAX_INTERFACES: usize = 65_536;
/// Bytes kept of an interface's name. Linux allows 15; Windows writes 60.
const MAX_NAME: usize = 64;
/// The bits of pcap's link type that are one; those above say how long a checksum behind each frame is (libpcap's pcap-common.c).
const LINK_TYPE: u32 = 0x03ff_ffff;
/// The packet block that came before the enhanced one, and the length of its head (draft-tuexen-opsawg-pcapng-02, appendix A).
const PACKET_BLOCK: u32 = 2;
const PACKET_BLOCK_HEAD: usize = 20;
/// Where in it the lengths stand: kept, and on the wire.
const PACKET_BLOCK_KEPT: usize = 12;

/// Options of pcapng blocks, draft-ietf-opsawg-pcapng.
const EPB_FLAGS: OptionCode = OptionCode(2);
/// Packets dropped between this one and the one before.
const EPB_DROPCOUNT: OptionCode = OptionCode(4);
/// Packets dropped so far, by the interface and by the operating system.
const ISB_IFDROP: OptionCode = OptionCode(5);
const ISB_OSDROP: OptionCode = OptionCode(7);
const IF_TSOFFSET: OptionCode = OptionCode(14);

/// Why a capture cannot be read further.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// It could not be opened.
    #[error("{0}")]
    Open(String),
    /// There is nothing in it.
    #[error("{0}")]
    Nothing(Nothing),
    /// Something else.
    #[error("it is neither pcap nor pcapng")]
    NoCapture,
    /// A format that is known, and not read.
    #[error("{0}")]
    Unread(Unread),
    /// Not even its beginning.
    #[error("its header is damaged or cut short")]
    Header,
    /// Frames of a kind that nobody here reads.
    #[error("{}", said(*.0))]
    Foreign(i32),
    /// The file ends in the middle of a packet.
    #[error("packet {packet}: cut short: the file ends in the middle of it")]
    CutShort {
        /// Number of the packet, from 1, as Wireshark counts.
        packet: u64,
    },
    /// What is there cannot be.
    #[error("packet {packet}: damaged: {why}")]
    Damaged {
        /// Number of the packet, from 1.
        packet: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// The file could not be read.
    #[error("packet {packet}: the file could not be read: {why}")]
    Io {
        /// Number of the packet, from 1.
        packet: u64,
        /// What the system said, or what unpacks it.
        why: String,
    },
}

impl Error {
    /// Is it of a capture that ends too soon, so that others of its set tell what they tell?
    pub fn leaves_the_others(&self) -> bool {
        matches!(self, Self::Nothing(_) | Self::Header | Self::CutShort { .. } | Self::Damaged { .. } | Self::Io { .. })
    }
}

/// An interface of the capture.
#[derive(Clone, Debug)]
pub struct Described {
    /// Its link type (tcpdump.org/linktypes.html).
    pub link: i32,
    /// As named in the file; pcap names none.
    pub name: Option<String>,
    /// Units of its times in a second: a power of ten, or of two.
    resolution: u8,
    /// Seconds to add to its times.
    offset: i64,
    /// Bytes kept of a packet; 0 is no limit.
    kept: u32,
    /// Was it written by `--output pcapng`?
    pub is_ours: bool,
    /// Did a frame of it say which way it passed?
    pub says_direction: bool,
    /// Packets that were dropped before they could be kept, as the file says itself.
    pub missed: u64,
}

impl Described {
    /// How a person calls its link type.
    pub fn link_name(&self) -> &'static str {
        link_name(self.link)
    }
}

/// A frame as captured.
#[derive(Debug)]
pub struct Frame {
    /// Its number in the file, from 1, as Wireshark counts.
    pub number: u64,
    /// Since the Unix epoch.
    pub at: Timestamp,
    /// Index of its interface, among those of the whole file.
    pub interface: usize,
    /// Link type of that.
    pub link: i32,
    /// Which way it passed the interface, if the file says.
    pub direction: Option<Direction>,
    /// What was kept of it.
    pub bytes: Vec<u8>,
    /// Does the file say when it was seen?
    pub is_timed: bool,
}

/// A capture file.
pub struct File {
    reader: Box<dyn PcapReaderIterator + Send>,
    capacity: usize,
    contents: Contents,
    /// Why no more could be read.
    failed: Arc<OnceLock<io::Error>>,
}

/// What was read so far.
#[derive(Default)]
struct Contents {
    interfaces: Vec<Described>,
    /// Those before this one belong to earlier sections.
    section: usize,
    frames: u64,
    is_big_endian: bool,
    is_nanoseconds: bool,
    is_ours: bool,
    last: Timestamp,
}

/// Fills what it is given, unless the input ends: pipes give less at a time than there is to come. pcap-parser keeps no error, so it
/// is kept here; what was read before one comes first.
struct Whole {
    input: Input,
    failed: Arc<OnceLock<io::Error>>,
}

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() && self.failed.get().is_none() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => drop(self.failed.set(error)),
            }
        }
        match self.failed.get() {
            Some(error) if filled == 0 => Err(error.kind().into()),
            _ => Ok(filled),
        }
    }
}

impl File {
    /// Reads the file's header.
    pub fn new(input: Input) -> Result<Self, Error> {
        let (magic, input) = peek(input, MAGIC).map_err(|_| Error::Header)?;
        let failed = Arc::new(OnceLock::new());
        let whole = Whole { input, failed: failed.clone() };
        let reader: Box<dyn PcapReaderIterator + Send> = if is_pcapng(&magic) {
            Box::new(PcapNGReader::new(CAPACITY, whole).map_err(|_| Error::Header)?)
        } else {
            Box::new(LegacyPcapReader::new(CAPACITY, whole).map_err(|_| Error::Header)?)
        };
        Ok(Self { reader, capacity: CAPACITY, contents: Contents::default(), failed })
    }

    /// The interfaces described so far, of all sections.
    pub fn interfaces(&self) -> &[Described] {
        &self.contents.interfaces
    }

    /// The next frame; `None` at the end. Nothing can be read after an error.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        let packet = self.contents.frames + 1;
        loop {
            let grow = match self.reader.next() {
                Ok((length, block)) => {
                    let frame = self.contents.block(block)?;
                    self.reader.consume(length);
                    if frame.is_some() {
                        return Ok(frame);
                    }
                    continue;
                }
                Err(PcapError::Eof) => return Ok(None),
                Err(PcapError::Incomplete(_)) => false,
                Err(PcapError::BufferTooSmall) => true,
                Err(PcapError::UnexpectedEof) => return Err(Error::CutShort { packet }),
                Err(PcapError::ReadError) => return Err(self.failed(packet)),
                Err(_) => return Err(Error::Damaged { packet, why: "what is there is no packet" }),
            };
            let before = self.reader.data().len();
            if self.reader.refill().is_err() {
                return Err(self.failed(packet));
            }
            let stuck = self.reader.data().len() == before && !self.reader.reader_exhausted();
            if grow && stuck {
                self.capacity *= 2;
                if self.capacity > MAX_BLOCK || !self.reader.grow(self.capacity) {
                    return Err(Error::Damaged { packet, why: "it claims to be longer than any packet" });
                }
            } else if stuck {
                return Err(Error::Damaged { packet, why: "its length cannot be" });
            }
        }
    }
}

impl File {
    fn failed(&self, packet: u64) -> Error {
        match self.failed.get() {
            // A compressed file that ends in the middle.
            Some(error) if error.kind() == io::ErrorKind::UnexpectedEof => Error::CutShort { packet },
            Some(error) => Error::Io { packet, why: error.to_string() },
            None => Error::Io { packet, why: "nobody says why".to_owned() },
        }
    }
}

impl Contents {
    fn block(&mut self, block: PcapBlockOwned<'_>) -> Result<Option<Frame>, Error> {
        match block {
            PcapBlockOwned::LegacyHeader(header) => {
                self.is_nanoseconds = header.is_nanosecond_precision();
                let link = (header.network.0 as u32 & LINK_TYPE) as i32;
                self.interfaces = vec![Described { link, ..Described::unnamed() }];
                Ok(None)
            }
            PcapBlockOwned::Legacy(packet) => {
                let unit: u64 = if self.is_nanoseconds { 1 } else { 1_000 };
                if (packet.ts_sec, packet.ts_usec, packet.caplen, packet.origlen) == (0, 0, 0, 0) {
                    let why =
                        "zeros stand where a packet should, as in a file that was written when the machine crashed";
                    return Err(Error::Damaged { packet: self.frames + 1, why });
                }
                let at = u64::from(packet.ts_sec) * 1_000_000_000 + u64::from(packet.ts_usec) * unit;
                self.frame(0, (at > 0).then_some(Timestamp(at)), None, packet.data).map(Some)
            }
            PcapBlockOwned::NG(Block::SectionHeader(header)) => {
                self.section = self.interfaces.len();
                self.is_big_endian = header.big_endian();
                let by = header.shb_userappl().and_then(Result::ok);
                self.is_ours = by.is_some_and(|by| by.starts_with("imds-trace "));
                Ok(None)
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(described)) => self.interface(&described).map(|()| None),
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => self.enhanced(&packet).map(Some),
            PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
                let bytes = packet.packet_data();
                let kept = self.interfaces.get(self.section).map(|interface| interface.kept).filter(|kept| *kept > 0);
                let kept = kept.map_or(bytes.len(), |kept| bytes.len().min(kept as usize));
                self.frame(self.section, None, None, &bytes[..kept]).map(Some)
            }
            PcapBlockOwned::NG(Block::Unknown(block)) if self.word(block.block_type.to_le_bytes()) == PACKET_BLOCK => {
                self.packet_block(&block).map(Some)
            }
            PcapBlockOwned::NG(Block::InterfaceStatistics(statistics)) => {
                self.statistics(&statistics);
                Ok(None)
            }
            PcapBlockOwned::NG(_) => Ok(None),
        }
    }

    fn interface(&mut self, described: &InterfaceDescriptionBlock<'_>) -> Result<(), Error> {
        if self.interfaces.len() >= MAX_INTERFACES {
            return Err(Error::Damaged { packet: self.frames + 1, why: "it has more interfaces than any machine" });
        }
        let offset = described.options.iter().find(|option| option.code == IF_TSOFFSET);
        let offset = offset.and_then(|option| <[u8; 8]>::try_from(option.as_bytes().ok()?).ok());
        let read = if self.is_big_endian { i64::from_be_bytes } else { i64::from_le_bytes };
        let name = described.if_name().and_then(Result::ok).filter(|name| !name.is_empty());
        self.interfaces.push(Described {
            link: described.linktype.0,
            name: name.map(|name| bounded(name, MAX_NAME).to_owned()),
            resolution: described.if_tsresol,
            offset: offset.map_or(0, read),
            kept: described.snaplen,
            is_ours: self.is_ours,
            says_direction: false,
            missed: 0,
        });
        Ok(())
    }

    /// What was dropped so far on an interface: by it, and by the operating system for want of room.
    fn statistics(&mut self, statistics: &InterfaceStatisticsBlock<'_>) {
        let dropped = [ISB_IFDROP, ISB_OSDROP].map(|code| self.count(&statistics.options, code)).into_iter();
        let missed = dropped.fold(0, u64::saturating_add);
        let interface = self.section.saturating_add(statistics.if_id as usize);
        if let Some(described) = self.interfaces.get_mut(interface) {
            described.missed = described.missed.max(missed);
        }
    }

    /// An option that is a number; 0 if it is not there.
    fn count(&self, options: &[PcapNGOption<'_>], code: OptionCode) -> u64 {
        let option = options.iter().find(|option| option.code == code);
        let bytes = option.and_then(|option| <[u8; 8]>::try_from(option.as_bytes().ok()?).ok()).unwrap_or_default();
        if self.is_big_endian { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) }
    }

    fn enhanced(&mut self, packet: &EnhancedPacketBlock<'_>) -> Result<Frame, Error> {
        let flags = packet.options.iter().find(|option| option.code == EPB_FLAGS);
        let flags = flags.and_then(|option| <[u8; 4]>::try_from(option.as_bytes().ok()?).ok());
        let direction = direction(flags.map_or(0, |flags| self.word(flags)));
        let interface = self.section.saturating_add(packet.if_id as usize);
        let at = self.at(interface, packet.ts_high, packet.ts_low);
        let dropped = self.count(&packet.options, EPB_DROPCOUNT);
        if let Some(described) = self.interfaces.get_mut(interface) {
            described.missed = described.missed.saturating_add(dropped);
        }
        self.frame(interface, at, direction, packet.packet_data())
    }

    /// A packet block as it was until 2009; its options have other meanings than those of today's.
    fn packet_block(&mut self, block: &UnknownBlock<'_>) -> Result<Frame, Error> {
        let wrong = Error::Damaged { packet: self.frames + 1, why: "its block is too short" };
        let Some((head, rest)) = block.data.split_at_checked(PACKET_BLOCK_HEAD) else { return Err(wrong) };
        let word = |at: usize| self.word([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let id = if self.is_big_endian { [head[0], head[1]] } else { [head[1], head[0]] };
        let interface = self.section.saturating_add(usize::from(u16::from_be_bytes(id)));
        let at = self.at(interface, word(4), word(8));
        let Some(bytes) = rest.get(..word(PACKET_BLOCK_KEPT) as usize) else { return Err(wrong) };
        self.frame(interface, at, None, bytes)
    }

    /// A number of this section.
    fn word(&self, bytes: [u8; 4]) -> u32 {
        if self.is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }

    /// `None` where it is 0: programs that have no times write that.
    fn at(&self, interface: usize, high: u32, low: u32) -> Option<Timestamp> {
        let raw = u64::from(high) << 32 | u64::from(low);
        if raw == 0 {
            return None;
        }
        self.interfaces.get(interface).map(|interface| Timestamp(interface.nanoseconds(raw)))
    }

    fn frame(
        &mut self,
        interface: usize,
        at: Option<Timestamp>,
        direction: Option<Direction>,
        bytes: &[u8],
    ) -> Result<Frame, Error> {
        let packet = self.frames + 1;
        let Some(described) = self.interfaces.get_mut(interface) else {
            return Err(Error::Damaged { packet, why: "the file does not describe its interface" });
        };
        self.frames = packet;
        described.says_direction |= direction.is_some();
        // One that has no time of its own comes when the one before it did.
        self.last = at.unwrap_or(self.last);
        let (link, bytes) = (described.link, bytes.to_vec());
        Ok(Frame { number: packet, at: self.last, interface, link, direction, bytes, is_timed: at.is_some() })
    }
}

/// What a packet's flags say of the way that it passed (epb_flags, bits 0 and 1).
fn direction(flags: u32) -> Option<Direction> {
    match flags & 3 {
        1 => Some(Direction::Ingress),
        2 => Some(Direction::Egress),
        _ => None,
    }
}

impl Described {
    /// As pcap has it, with times in microseconds.
    fn unnamed() -> Self {
        let (link, name, offset, kept) = (0, None, 0, 0);
        Self { link, name, resolution: 6, offset, kept, is_ours: false, says_direction: false, missed: 0 }
    }

    /// A time of this interface as nanoseconds since the Unix epoch; the nearest that there is, if it cannot be said.
    fn nanoseconds(&self, raw: u64) -> u64 {
        const SECOND: i128 = 1_000_000_000;
        let exponent = u32::from(self.resolution & 0x7f);
        let units =
            if self.resolution & 0x80 == 0 { 10i128.checked_pow(exponent) } else { 1i128.checked_shl(exponent) };
        // A unit that is too small for any number is as good as none.
        let units = units.filter(|units| *units > 0).unwrap_or(i128::MAX);
        let nanoseconds = i128::from(raw) * SECOND / units + i128::from(self.offset) * SECOND;
        u64::try_from(nanoseconds.clamp(0, i128::from(u64::MAX))).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nanoseconds(resolution: u8, offset: i64, raw: u64) -> u64 {
        Described { resolution, offset, ..Described::unnamed() }.nanoseconds(raw)
    }

    #[test]
    fn times_have_the_unit_that_their_interface_says() {
        assert_eq!(nanoseconds(6, 0, 1_500_000), 1_500_000_000);
        assert_eq!(nanoseconds(9, 0, 1_500_000_000), 1_500_000_000);
        assert_eq!(nanoseconds(0, 0, 2), 2_000_000_000);
        assert_eq!(nanoseconds(0x80 | 10, 0, 1_536), 1_500_000_000);
        assert_eq!(nanoseconds(6, 7, 1_500_000), 8_500_000_000);
    }

    #[test]
    fn no_unit_and_no_time_is_too_odd() {
        for resolution in 0..=u8::MAX {
            for (offset, raw) in [(0, u64::MAX), (i64::MAX, u64::MAX), (i64::MIN, 0), (-1, 1)] {
                nanoseconds(resolution, offset, raw);
            }
        }
        assert_eq!(nanoseconds(6, i64::MIN, 1), 0);
        assert_eq!(nanoseconds(6, i64::MAX, 1), u64::MAX);
    }
}
