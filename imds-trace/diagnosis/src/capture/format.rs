//! Is this a capture that is read; and if not, what is it, and what is to be typed instead?

use std::fmt;
use std::io::{self, Read};

use crate::printable::shell_word;
use crate::unpack::{Input, peek, unpack};

/// By so many bytes a capture is known.
const MAGIC: usize = 4;
/// By so many any other of these formats is.
const LONGEST: usize = 512;
/// Where the archives of tar have their name.
const USTAR: (usize, &[u8]) = (257, b"ustar");

/// pcap in both byte orders, with microseconds and with nanoseconds.
const PCAP: [[u8; 4]; 4] =
    [[0xa1, 0xb2, 0xc3, 0xd4], [0xd4, 0xc3, 0xb2, 0xa1], [0xa1, 0xb2, 0x3c, 0x4d], [0x4d, 0x3c, 0xb2, 0xa1]];
/// pcapng: the same in either order.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// A format that is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    name: &'static str,
    /// What to type instead; `{}` stands for the file.
    instead: &'static str,
}

const WITH_TCPDUMP: &str = "tcpdump -r {} -w capture.pcap";
const WITH_EDITCAP: &str = "editcap -F pcapng {} capture.pcapng";

/// Captures of other programs, and what is packed otherwise: how they begin (libpcap's sf-pcap.c, Wireshark's wiretap).
const UNREAD: &[(&[u8], Unread)] = &[
    (&[0xa1, 0xb2, 0xcd, 0x34], MODIFIED),
    (&[0x34, 0xcd, 0xb2, 0xa1], MODIFIED),
    (&[0x1c, 0x00, 0x01, 0xac], IXIA),
    (&[0xac, 0x01, 0x00, 0x1c], IXIA),
    (&[0x1c, 0x00, 0x01, 0xab], IXIA),
    (&[0xab, 0x01, 0x00, 0x1c], IXIA),
    (b"snoop\0\0\0", Unread { name: "a capture of Solaris' snoop", instead: WITH_EDITCAP }),
    (b"GMBU", Unread { name: "a capture of Microsoft Network Monitor", instead: WITH_EDITCAP }),
    (b"RTSS", Unread { name: "a capture of Microsoft Network Monitor", instead: WITH_EDITCAP }),
    (b"TRSNIFF data    \x1a", Unread { name: "a capture of NetXray or Sniffer", instead: WITH_EDITCAP }),
    (b"XCP\0", Unread { name: "a capture of NetXray or Sniffer", instead: WITH_EDITCAP }),
    (b"ObserverPktBuffe", Unread { name: "a capture of Viavi Observer", instead: WITH_EDITCAP }),
    (&[0xaa, 0xaa, 0xaa, 0xaa], Unread { name: "a capture of InfoVista 5View", instead: WITH_EDITCAP }),
    (&[0x01, 0x10, 0x4c, 0x00], Unread { name: "a capture of Novell LANalyzer", instead: WITH_EDITCAP }),
    (&[0x54, 0x52, 0x00, 0x64], Unread { name: "a trace of HP-UX's nettl", instead: WITH_EDITCAP }),
    (&[0x05, b'V', b'N', b'F'], Unread { name: "a capture of Visual Networks", instead: WITH_EDITCAP }),
    (b"\xfd7zXZ\0", Unread { name: "compressed with xz", instead: "xz -dc {} | imds-trace replay -" }),
    (b"BZh", Unread { name: "compressed with bzip2", instead: "bzip2 -dc {} | imds-trace replay -" }),
    (b"\x04\x22\x4d\x18", Unread { name: "compressed with lz4", instead: "lz4 -dc {} | imds-trace replay -" }),
    (b"\x1f\x9d", Unread { name: "compressed with compress", instead: "gzip -dc {} | imds-trace replay -" }),
    (b"PK\x03\x04", Unread { name: "a zip archive", instead: "unzip -p {} | imds-trace replay -" }),
    (b"7z\xbc\xaf\x27\x1c", Unread { name: "a 7z archive", instead: "7z x -so {} | imds-trace replay -" }),
];

const MODIFIED: Unread = Unread { name: "a \"modified\" pcap (Kuznetzov's)", instead: WITH_TCPDUMP };
const IXIA: Unread = Unread { name: "a pcap of an Ixia", instead: WITH_EDITCAP };
/// Nokia's and Red Hat 6.1's: with the magic of others.
const LONGER: Unread =
    Unread { name: "a pcap whose packets have longer headers (Nokia's, Red Hat 6.1's)", instead: WITH_EDITCAP };
const TAR: Unread = Unread { name: "a tar archive", instead: "tar -xf {}" };
/// Text, where packets are needed.
const PRINTED: Unread = Unread {
    name: "the text that tcpdump or tshark prints, not the packets",
    instead: "tcpdump -i any -w capture.pcap 'host 169.254.169.254 or host fd00:ec2::254'",
};

impl Unread {
    /// The sentence about a file of this name.
    pub fn told(&self, file: &str) -> String {
        // What comes from stdin has no name to type.
        let file = if file == "-" { "FILE".to_owned() } else { shell_word(file) };
        format!("it is {}, which is not read; type  {}", self.name, self.instead.replace("{}", &file))
    }
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told("-"))
    }
}

/// What a file is.
pub enum Format {
    /// pcap or pcapng; unpacked.
    Capture(Input),
    /// Something that is known, and not read.
    Unread(Unread),
    /// There is nothing in it.
    Nothing(Nothing),
    /// Something else; unpacked.
    Other(Input),
}

/// Why there is nothing in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nothing {
    /// Nothing was written.
    Empty,
    /// It was compressed by this, and ends before anything that tells what it is.
    CutShort(&'static str),
}

impl fmt::Display for Nothing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::CutShort(by) => {
                write!(f, "it is compressed with {by}, and cut short before its first packet or line")
            }
        }
    }
}

/// Looks at the first bytes of a file, and in it, if it is compressed.
pub fn open(input: Input) -> io::Result<Format> {
    let (input, packed) = unpack(input)?;
    // Some programs compress what they are told to compress already.
    let (input, _) = unpack(input)?;
    let (magic, mut input) = peek(input, MAGIC)?;
    if is_pcapng(&magic) {
        return Ok(Format::Capture(input));
    }
    if is_capture(&magic) {
        let (is_longer, input) = has_longer_headers(input)?;
        return Ok(if is_longer { Format::Unread(LONGER) } else { Format::Capture(input) });
    }
    if let Some(by) = packed.filter(|_| magic.len() < MAGIC && is_cut_short(&mut input)) {
        return Ok(Format::Nothing(Nothing::CutShort(by)));
    }
    if magic.is_empty() {
        return Ok(Format::Nothing(Nothing::Empty));
    }
    let (begin, input) = peek(input, LONGEST)?;
    let known = UNREAD.iter().find(|(magic, _)| begin.starts_with(magic)).map(|(_, unread)| *unread);
    let (at, ustar) = USTAR;
    let tar = begin.get(at..).is_some_and(|begin| begin.starts_with(ustar)).then_some(TAR);
    let printed = is_printed(&begin).then_some(PRINTED);
    Ok(known.or(tar).or(printed).map_or(Format::Other(input), Format::Unread))
}

/// Does what is unpacked end where more must come? Everything before that was read.
fn is_cut_short(input: &mut Input) -> bool {
    io::copy(&mut input.take(LONGEST as u64), &mut io::sink())
        .is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

/// Does a file that begins so hold a capture?
pub fn is_capture(magic: &[u8]) -> bool {
    magic == PCAPNG || PCAP.iter().any(|known| magic == known)
}

/// Is it a pcapng?
pub fn is_pcapng(magic: &[u8]) -> bool {
    magic == PCAPNG
}

/// Do a pcap's packets have headers that are longer than those of others, by what stands where the second one's must be?
fn has_longer_headers(input: Input) -> io::Result<(bool, Input)> {
    /// The file's header, and a packet's.
    const FILE: usize = 24;
    const PACKET: usize = 16;
    /// So many bytes longer are those that exist.
    const LONGER: [usize; 2] = [4, 8];
    /// Longer packets are not looked behind.
    const MOST: usize = 1 << 16;
    let (begin, input) = peek(input, FILE + PACKET)?;
    let Some(kept) = header(&begin, FILE).map(|(kept, _)| kept).filter(|kept| *kept <= MOST) else {
        return Ok((false, input));
    };
    let second = FILE + PACKET + kept;
    let (begin, mut input) = peek(input, second + PACKET + LONGER[1])?;
    let is_whole = begin.len() == second + PACKET + LONGER[1];
    if !is_whole || header(&begin, second).is_some_and(|(_, is_one)| is_one) {
        return Ok((false, input));
    }
    for longer in LONGER {
        let Some((kept, true)) = header(&begin, second + longer) else { continue };
        // The third one's, or the end, is where the second one says: what stands there by chance shows nothing.
        let third = second + longer + PACKET + longer + kept.min(MOST);
        let (begin, whole) = peek(input, third + PACKET)?;
        if begin.len() == third || header(&begin, third).is_some_and(|(_, is_one)| is_one) {
            return Ok((true, whole));
        }
        input = whole;
    }
    Ok((false, input))
}

/// How many bytes of a pcap's packet are kept, by the header that stands at this place, and may it be one?
fn header(file: &[u8], at: usize) -> Option<(usize, bool)> {
    let is_big = file[0] == 0xa1;
    let nanoseconds = file[..4].contains(&0x4d);
    let word = |at: usize| {
        let bytes: [u8; 4] = file.get(at..at + 4)?.try_into().ok()?;
        Some(if is_big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    };
    let (begun, first) = (word(at)?, word(24)?);
    let (part, kept, length) = (word(at + 4)?, word(at + 8)?, word(at + 12)?);
    // Times within ten years of the first one's.
    let is_near = begun.abs_diff(first) < 10 * 365 * 86_400;
    let is_part = part < if nanoseconds { 1_000_000_000 } else { 1_000_000 };
    Some((kept as usize, is_near && is_part && kept <= length && length <= 1 << 24))
}

/// A line of tcpdump's, `09:43:43.159123 IP 172.17.0.2.40000 > …`, perhaps with a date before, seconds since 1970 or an interface;
/// of tshark's, `1 0.000000 172.17.0.2 → …`, or what it writes for programs.
fn is_printed(begin: &[u8]) -> bool {
    if begin.starts_with(b"[\n  {\n    \"_index\": \"packets-") {
        return true;
    }
    let text = String::from_utf8_lossy(begin);
    let line = text.lines().next().unwrap_or_default();
    if text.contains("<pdml ") || line.contains(" \u{2192} ") {
        return true;
    }
    let mut words = line.split(' ').filter(|word| !word.is_empty());
    let is_time = |word: &str| {
        let plain: String = word.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        plain.starts_with("00:00:00.000") || plain.starts_with("0000000000.000000")
    };
    words.by_ref().take(2).any(is_time) && words.any(|word| matches!(word, "IP" | "IP6" | "ARP,"))
}
