//! Which bytes are a capture file? pcap and pcapng as others write them, in either byte order.

/// A frame with its time in nanoseconds.
pub type Timed = (u64, Vec<u8>);

/// A pcap file of Ethernet frames.
pub fn pcap(frames: &[Timed]) -> Vec<u8> {
    pcap_of(1, 262_144, frames)
}

/// A pcap file with this link type field, of which so many bytes of a frame are kept.
pub fn pcap_of(link: u32, kept: usize, frames: &[Timed]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [0xa1b2_3c4d, 0x0004_0002, 0, 0, kept as u32, link] {
        bytes.extend(word.to_le_bytes());
    }
    for (at, frame) in frames {
        let cut = &frame[..frame.len().min(kept)];
        for word in [at / 1_000_000_000, at % 1_000_000_000, cut.len() as u64, frame.len() as u64] {
            bytes.extend((word as u32).to_le_bytes());
        }
        bytes.extend(cut);
    }
    bytes
}

/// A pcap file in this byte order, with times in nanoseconds or microseconds.
pub fn pcap_in(big: bool, nanoseconds: bool, frames: &[Timed]) -> Vec<u8> {
    let order = |word: u32| if big { word.to_be_bytes() } else { word.to_le_bytes() };
    // Two numbers of 16 bits, whose order is theirs alone.
    let version = if big { 0x0002_0004 } else { 0x0004_0002 };
    let magic = if nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
    let mut bytes: Vec<u8> = [magic, version, 0, 0, 262_144, 1].into_iter().flat_map(order).collect();
    for (at, frame) in frames {
        let part = at % 1_000_000_000 / if nanoseconds { 1 } else { 1_000 };
        for word in [at / 1_000_000_000, part, frame.len() as u64, frame.len() as u64] {
            bytes.extend(order(word as u32));
        }
        bytes.extend(frame);
    }
    bytes
}

/// A pcapng file that grows block by block.
#[derive(Debug, Default)]
pub struct Pcapng {
    /// What there is so far.
    pub bytes: Vec<u8>,
    /// Byte order of the section.
    big: bool,
}

impl Pcapng {
    /// Begins a section.
    pub fn section(mut self, big: bool) -> Self {
        self.big = big;
        let body = [self.u32(0x1a2b_3c4d), self.u16(1), self.u16(0), vec![0xff; 8]].concat();
        self.block(0x0a0d_0d0a, &body)
    }

    /// Describes an interface with these options.
    pub fn interface(self, link: u16, options: &[(u16, Vec<u8>)]) -> Self {
        let body = [self.u16(link), self.u16(0), self.u32(0), self.options(options)].concat();
        self.block(1, &body)
    }

    /// An enhanced packet block; `time` is in units of its interface.
    pub fn enhanced(self, interface: u32, time: u64, frame: &[u8], options: &[(u16, Vec<u8>)]) -> Self {
        let body =
            [self.u32(interface), self.times(time), self.lengths(frame), padded(frame), self.options(options)].concat();
        self.block(6, &body)
    }

    /// A packet block, as it was before.
    pub fn packet(self, interface: u16, time: u64, frame: &[u8]) -> Self {
        let body =
            [self.u16(interface), self.u16(0xffff), self.times(time), self.lengths(frame), padded(frame)].concat();
        self.block(2, &body)
    }

    /// A simple packet block.
    pub fn simple(self, frame: &[u8]) -> Self {
        let body = [self.u32(frame.len() as u32), padded(frame)].concat();
        self.block(3, &body)
    }

    /// Any block.
    pub fn block(mut self, kind: u32, body: &[u8]) -> Self {
        let length = self.u32(body.len() as u32 + 12);
        let block = [self.u32(kind), length.clone(), body.to_vec(), length].concat();
        self.bytes.extend(block);
        self
    }

    /// A number as bytes of the section.
    pub fn u32(&self, number: u32) -> Vec<u8> {
        if self.big { number.to_be_bytes().to_vec() } else { number.to_le_bytes().to_vec() }
    }

    /// The same, longer.
    pub fn i64(&self, number: i64) -> Vec<u8> {
        if self.big { number.to_be_bytes().to_vec() } else { number.to_le_bytes().to_vec() }
    }

    fn u16(&self, number: u16) -> Vec<u8> {
        if self.big { number.to_be_bytes().to_vec() } else { number.to_le_bytes().to_vec() }
    }

    fn times(&self, time: u64) -> Vec<u8> {
        [self.u32((time >> 32) as u32), self.u32(time as u32)].concat()
    }

    fn lengths(&self, frame: &[u8]) -> Vec<u8> {
        [self.u32(frame.len() as u32), self.u32(frame.len() as u32)].concat()
    }

    fn options(&self, options: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let option =
            |(code, value): &(u16, Vec<u8>)| [self.u16(*code), self.u16(value.len() as u16), padded(value)].concat();
        let mut bytes: Vec<u8> = options.iter().flat_map(option).collect();
        if !bytes.is_empty() {
            bytes.extend([0; 4]);
        }
        bytes
    }
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(4), 0);
    padded
}
