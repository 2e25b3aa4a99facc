//! In which order were the frames seen? dumpcap reads each interface by a thread of its own and writes as they come: what an
//! interface saw first may stand behind what another saw later.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::io::Read;
use std::time::Duration;

use super::file::{Error, File, Frame};
use crate::net::Timestamp;

/// So much later a frame may stand in the file: what libpcap lets a frame wait for others (a second at most by default, in dumpcap a
/// quarter of one), and as long again for a busy disk.
const WINDOW: Duration = Duration::from_secs(2);
/// Frames held back at most: 2 s of 30,000 packets a second, short ones.
const MAX_HELD: usize = 65_536;

/// A frame that waits for earlier ones.
struct Held {
    at: Timestamp,
    /// Its place in the file, for those of one time.
    number: u64,
    frame: Frame,
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Held {}

/// Frames of a file, the earliest first. A clock that was set back stays so: what is older than the window comes at its place in the
/// file.
pub struct Ordered {
    file: File,
    held: BinaryHeap<Reverse<Held>>,
    newest: Timestamp,
    read: u64,
    /// How the file ended, told behind its last frame.
    end: Option<Result<(), Error>>,
}

impl Ordered {
    /// Reads the file's header.
    pub fn new(input: Box<dyn Read + Send>) -> Result<Self, Error> {
        let file = File::new(input)?;
        Ok(Self { file, held: BinaryHeap::new(), newest: Timestamp::default(), read: 0, end: None })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The next frame; `None` at the end. After an error there are none.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        while self.end.is_none() && !self.is_due() {
            match self.file.next_frame() {
                Ok(Some(frame)) => {
                    self.newest = self.newest.max(frame.at);
                    self.read += 1;
                    self.held.push(Reverse(Held { at: frame.at, number: self.read, frame }));
                }
                Ok(None) => self.end = Some(Ok(())),
                Err(error) => self.end = Some(Err(error)),
            }
        }
        if let Some(Reverse(held)) = self.held.pop() {
            return Ok(Some(held.frame));
        }
        match self.end.replace(Ok(())) {
            Some(Err(error)) => Err(error),
            _ => Ok(None),
        }
    }

    /// Can nothing earlier follow than the first of those that wait?
    fn is_due(&self) -> bool {
        let first = self.held.peek();
        first.is_some_and(|Reverse(first)| self.newest.since(first.at) > WINDOW || self.held.len() >= MAX_HELD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pcap file with frames at these times, in milliseconds, each holding its number from 0.
    fn file(times: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1] {
            bytes.extend(u32::to_le_bytes(word));
        }
        for (number, at) in times.iter().enumerate() {
            for word in [at / 1_000, at % 1_000 * 1_000, 1, 1] {
                bytes.extend(u32::to_le_bytes(word));
            }
            bytes.push(number as u8);
        }
        bytes
    }

    fn numbers(bytes: Vec<u8>) -> (Vec<u8>, Option<Error>) {
        let mut ordered = Ordered::new(Box::new(std::io::Cursor::new(bytes))).unwrap();
        let mut numbers = Vec::new();
        loop {
            match ordered.next_frame() {
                Ok(Some(frame)) => numbers.push(frame.bytes[0]),
                Ok(None) => return (numbers, None),
                Err(error) => return (numbers, Some(error)),
            }
        }
    }

    #[test]
    fn what_was_seen_first_comes_first() {
        assert_eq!(numbers(file(&[5, 3, 3, 900, 4])), (vec![1, 2, 4, 0, 3], None));
        assert_eq!(numbers(file(&[])), (vec![], None));
    }

    #[test]
    fn a_clock_that_was_set_back_stays_set_back() {
        assert_eq!(numbers(file(&[90_000, 93_000, 10_000, 10_001])).0, [0, 2, 3, 1]);
    }

    #[test]
    fn what_could_be_read_comes_before_what_could_not() {
        let mut bytes = file(&[5, 3, 7]);
        bytes.pop();
        assert_eq!(numbers(bytes), (vec![1, 0], Some(Error::CutShort { packet: 3 })));
    }
}
