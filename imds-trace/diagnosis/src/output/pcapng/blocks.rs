//! Which bytes make a pcapng file? The three blocks that we need, as draft-ietf-opsawg-pcapng-05 has them, little-endian.
//!
//! Written by hand, although pcap-parser, which reads them, can write, too: see docs/design/recordings.md.

use std::io::{self, Write};

/// `LINKTYPE_RAW`: a packet begins with its IP header, version 4 or 6.
const LINKTYPE_RAW: u16 = 101;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;

const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;

/// Options. 0 ends them.
const COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
/// A custom option that holds UTF-8 and may be copied to another file.
pub const JSON: u16 = 2988;
/// In the place of a private enterprise number: IANA reserves this one (RFC 9371), so it is nobody's. The text's own key `imds_trace`
/// says whose it is.
pub const NOBODY: u32 = u32::MAX;

/// An option's length has 16 bits; nothing that is said here is so long.
const MAX_OPTION: usize = 4_096;
/// Times are in units of 10^-9 seconds.
const NANOSECONDS: u8 = 9;

/// One packet at one place.
pub struct Enhanced<'a> {
    /// Number of the interface in this section, from 0.
    pub interface: u32,
    /// Nanoseconds since the Unix epoch.
    pub at: u64,
    /// What there is of it.
    pub bytes: &'a [u8],
    /// Bytes that it had.
    pub length: u32,
    /// Did it come in, or go out? `None` is not known.
    pub inbound: Option<bool>,
    /// For people.
    pub comment: &'a str,
    /// For programs.
    pub json: &'a str,
}

/// Begins a section: numbers of interfaces begin anew.
pub fn section(out: &mut impl Write) -> io::Result<()> {
    let mut body = Vec::new();
    body.extend(BYTE_ORDER_MAGIC.to_le_bytes());
    body.extend(1u16.to_le_bytes());
    body.extend(0u16.to_le_bytes());
    // Its length is not known.
    body.extend((-1i64).to_le_bytes());
    option(&mut body, SHB_USERAPPL, concat!("imds-trace ", env!("CARGO_PKG_VERSION")).as_bytes());
    end(&mut body);
    block(out, SECTION_HEADER, &body)
}

/// Describes the next interface.
pub fn interface(out: &mut impl Write, name: &str, description: &str) -> io::Result<()> {
    let mut body = Vec::new();
    body.extend(LINKTYPE_RAW.to_le_bytes());
    body.extend(0u16.to_le_bytes());
    // No limit to what is kept of a packet.
    body.extend(0u32.to_le_bytes());
    option(&mut body, IF_NAME, name.as_bytes());
    option(&mut body, IF_DESCRIPTION, description.as_bytes());
    option(&mut body, IF_TSRESOL, &[NANOSECONDS]);
    end(&mut body);
    block(out, INTERFACE_DESCRIPTION, &body)
}

/// One packet.
pub fn enhanced(out: &mut impl Write, packet: &Enhanced<'_>) -> io::Result<()> {
    let mut body = Vec::new();
    body.extend(packet.interface.to_le_bytes());
    body.extend(((packet.at >> 32) as u32).to_le_bytes());
    body.extend((packet.at as u32).to_le_bytes());
    body.extend((packet.bytes.len() as u32).to_le_bytes());
    body.extend(packet.length.to_le_bytes());
    body.extend(packet.bytes);
    pad(&mut body);
    option(&mut body, COMMENT, packet.comment.as_bytes());
    if let Some(inbound) = packet.inbound {
        let direction: u32 = if inbound { 1 } else { 2 };
        option(&mut body, EPB_FLAGS, &direction.to_le_bytes());
    }
    let mut custom = NOBODY.to_le_bytes().to_vec();
    custom.extend(packet.json.as_bytes());
    option(&mut body, JSON, &custom);
    end(&mut body);
    block(out, ENHANCED_PACKET, &body)
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(MAX_OPTION)];
    body.extend(code.to_le_bytes());
    body.extend((value.len() as u16).to_le_bytes());
    body.extend(value);
    pad(body);
}

fn end(body: &mut Vec<u8>) {
    body.extend([0; 4]);
}

/// Everything begins at a multiple of four bytes.
fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

fn block(out: &mut impl Write, kind: u32, body: &[u8]) -> io::Result<()> {
    // Kind, and the length before and behind.
    let length = (body.len() + 12) as u32;
    let mut block = Vec::with_capacity(length as usize);
    block.extend(kind.to_le_bytes());
    block.extend(length.to_le_bytes());
    block.extend(body);
    block.extend(length.to_le_bytes());
    out.write_all(&block)
}
