//! Which frames are in the file, when were they seen, and at which interface? pcap and pcapng, of either byte order.

use std::io::{self, Read};

use pcap_parser::pcapng::{Block, EnhancedPacketBlock, InterfaceDescriptionBlock, OptionCode};
use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{LegacyPcapReader, PcapBlockOwned, PcapError, PcapNGReader};
use thiserror::Error;

use crate::net::{Direction, Timestamp};

/// By so many bytes a capture is known.
pub const MAGIC_LENGTH: usize = 4;
/// pcap in both byte orders, with microseconds and with nanoseconds.
const PCAP: [[u8; 4]; 4] =
    [[0xa1, 0xb2, 0xc3, 0xd4], [0xd4, 0xc3, 0xb2, 0xa1], [0xa1, 0xb2, 0x3c, 0x4d], [0x4d, 0x3c, 0xb2, 0xa1]];
/// pcapng: the same in either order.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// Bytes read at once; what is longer makes room for itself.
const CAPACITY: usize = 1 << 16;
/// A longer packet or block is none of a capture's: tcpdump keeps at most 262,144 bytes of one, and lists of names are shorter still.
const MAX_BLOCK: usize = 1 << 24;
/// Interfaces of one section at most.
const MAX_INTERFACES: usize = 65_536;

/// Options of pcapng blocks, draft-ietf-opsawg-pcapng.
const EPB_FLAGS: OptionCode = OptionCode(2);
const IF_TSOFFSET: OptionCode = OptionCode(14);

/// Why a capture cannot be read further.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// Not even its beginning.
    #[error("its header is damaged or cut short")]
    Header,
    /// Frames of a kind that nobody here reads.
    #[error("link type {0}: only Ethernet, Linux cooked and raw IP captures are read")]
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
    #[error("packet {packet}: the file could not be read")]
    Io {
        /// Number of the packet, from 1.
        packet: u64,
    },
}

/// An interface of the capture.
#[derive(Clone, Debug)]
pub struct Described {
    /// From 1.
    pub number: u32,
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
}

/// A frame as captured.
#[derive(Debug)]
pub struct Frame {
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
}

/// Does a file that begins so hold a capture?
pub fn is_capture(magic: &[u8]) -> bool {
    magic == PCAPNG || PCAP.iter().any(|known| magic == known)
}

/// A capture file.
pub struct File {
    reader: Box<dyn PcapReaderIterator + Send>,
    capacity: usize,
    contents: Contents,
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

/// Fills what it is given, unless the input ends: pipes give less at a time than there is to come.
struct Whole(Box<dyn Read + Send>);

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

impl File {
    /// Reads the file's header.
    pub fn new(mut input: Box<dyn Read + Send>) -> Result<Self, Error> {
        let mut magic = [0; MAGIC_LENGTH];
        input.read_exact(&mut magic).map_err(|_| Error::Header)?;
        let whole = Whole(Box::new(io::Cursor::new(magic).chain(input)));
        let reader: Box<dyn PcapReaderIterator + Send> = if magic == PCAPNG {
            Box::new(PcapNGReader::new(CAPACITY, whole).map_err(|_| Error::Header)?)
        } else {
            Box::new(LegacyPcapReader::new(CAPACITY, whole).map_err(|_| Error::Header)?)
        };
        Ok(Self { reader, capacity: CAPACITY, contents: Contents::default() })
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
                Err(PcapError::ReadError) => return Err(Error::Io { packet }),
                Err(_) => return Err(Error::Damaged { packet, why: "what is there is no packet" }),
            };
            let before = self.reader.data().len();
            self.reader.refill().map_err(|_| Error::Io { packet })?;
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

impl Contents {
    fn block(&mut self, block: PcapBlockOwned<'_>) -> Result<Option<Frame>, Error> {
        match block {
            PcapBlockOwned::LegacyHeader(header) => {
                self.is_nanoseconds = header.is_nanosecond_precision();
                // The upper bits say how long a checksum behind each frame is.
                let link = header.network.0 & 0x0fff_ffff;
                let (number, name, offset, kept, is_ours) = (1, None, 0, 0, false);
                self.interfaces = vec![Described { number, link, name, resolution: 6, offset, kept, is_ours }];
                Ok(None)
            }
            PcapBlockOwned::Legacy(packet) => {
                let unit: u64 = if self.is_nanoseconds { 1 } else { 1_000 };
                let at = u64::from(packet.ts_sec) * 1_000_000_000 + u64::from(packet.ts_usec) * unit;
                self.frame(0, Timestamp(at), None, packet.data).map(Some)
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
                // It has no time of its own.
                self.frame(self.section, self.last, None, &bytes[..kept]).map(Some)
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
        self.interfaces.push(Described {
            number: (self.interfaces.len() - self.section) as u32 + 1,
            link: described.linktype.0,
            name: described.if_name().and_then(Result::ok).filter(|name| !name.is_empty()).map(str::to_owned),
            resolution: described.if_tsresol,
            offset: offset.map_or(0, read),
            kept: described.snaplen,
            is_ours: self.is_ours,
        });
        Ok(())
    }

    fn enhanced(&mut self, packet: &EnhancedPacketBlock<'_>) -> Result<Frame, Error> {
        let flags = packet.options.iter().find(|option| option.code == EPB_FLAGS);
        let flags = flags.and_then(|option| <[u8; 4]>::try_from(option.as_bytes().ok()?).ok());
        let read = if self.is_big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
        let direction = match flags.map_or(0, read) & 3 {
            1 => Some(Direction::Ingress),
            2 => Some(Direction::Egress),
            _ => None,
        };
        let interface = self.section.saturating_add(packet.if_id as usize);
        let raw = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
        let at = self.interfaces.get(interface).map(|interface| interface.nanoseconds(raw)).unwrap_or_default();
        self.frame(interface, Timestamp(at), direction, packet.packet_data())
    }

    fn frame(
        &mut self,
        interface: usize,
        at: Timestamp,
        direction: Option<Direction>,
        bytes: &[u8],
    ) -> Result<Frame, Error> {
        let packet = self.frames + 1;
        let Some(described) = self.interfaces.get(interface) else {
            return Err(Error::Damaged { packet, why: "the file does not describe its interface" });
        };
        self.frames = packet;
        self.last = at;
        Ok(Frame { at, interface, link: described.link, direction, bytes: bytes.to_vec() })
    }
}

impl Described {
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
        Described { number: 1, link: 1, name: None, resolution, offset, kept: 0, is_ours: false }.nanoseconds(raw)
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
