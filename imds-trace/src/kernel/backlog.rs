//! Where do records wait that cannot be taken in at once?
//!
//! The ring buffer holds a twentieth of a second of the fastest client. Who concludes is away for longer: when others have the processors, when
//! stdout is a slow pipe, when two hundred bridges are attached to. So a thread of its own does nothing but empty the ring buffer into memory that
//! grows with what waits and is given back afterwards.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::Notify;

use super::ring::{self, Records};
use crate::privileges;

/// How long the ring buffer is left alone once it was emptied: the kernel wakes its reader for the first record behind those that
/// were read, and for no other, so one wake-up is for many. What comes first after a pause is read at once.
const PACE: Duration = Duration::from_millis(3);
/// The highest priority of those that are not of real time, as `nice` counts them.
const FIRST: i32 = -20;
/// Bytes of a block of records.
const BLOCK: usize = 256 << 10;
/// Bytes of records that wait at most: more than 30,000 exchanges. What comes then stays in the ring buffer, and is lost when that is full.
const MAX_WAITING: usize = 128 << 20;
/// Emptied blocks that are kept for what comes next.
const MAX_SPARE: usize = 4;
/// Records begin at multiples of this, as in the ring buffer.
const ALIGNED: usize = size_of::<u64>();

/// Records as they come, those that wait first.
pub struct Backlog {
    shared: Arc<Shared>,
    /// Where records are being taken from.
    current: Block,
}

struct Shared {
    waiting: Mutex<Waiting>,
    news: Notify,
}

/// The ring buffer, and what was taken out of it.
struct Waiting {
    records: Records,
    blocks: VecDeque<Block>,
    spare: Vec<Block>,
}

/// Records one behind the other, each behind the number of its bytes.
#[derive(Default)]
struct Block {
    words: Vec<u64>,
    /// Words that were taken.
    taken: usize,
}

impl Block {
    fn put(&mut self, record: &[u8]) {
        self.words.push(record.len() as u64);
        let words = record.chunks(ALIGNED).map(|chunk| {
            let mut word = [0; ALIGNED];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        self.words.extend(words);
    }

    fn take(&mut self) -> Option<&[u8]> {
        let length = *self.words.get(self.taken)? as usize;
        let begin = self.taken + 1;
        self.taken = begin + length.div_ceil(ALIGNED);
        let words = self.words.get(begin..self.taken)?;
        zerocopy::IntoBytes::as_bytes(words).get(..length)
    }

    fn clear(&mut self) {
        self.words.clear();
        self.taken = 0;
    }

    fn has_room_for(&self, bytes: usize) -> bool {
        (self.words.len() + 1) * ALIGNED + bytes <= BLOCK
    }
}

impl Waiting {
    /// Empties the ring buffer, as far as there is room. Says whether there was anything.
    fn fetch(&mut self) -> bool {
        let mut any = false;
        while self.blocks.len() < MAX_WAITING / BLOCK {
            let (blocks, spare) = (&mut self.blocks, &mut self.spare);
            let fetched = self.records.next(|bytes| {
                let counting = &bytes[..ring::counting(bytes)];
                if !blocks.back().is_some_and(|block| block.has_room_for(counting.len())) {
                    let block =
                        spare.pop().unwrap_or_else(|| Block { words: Vec::with_capacity(BLOCK / ALIGNED), taken: 0 });
                    blocks.push_back(block);
                }
                if let Some(block) = blocks.back_mut() {
                    block.put(counting);
                }
            });
            if fetched.is_none() {
                break;
            }
            any = true;
        }
        any
    }
}

impl Backlog {
    /// Begins to empty the ring buffer. The thread ends with the process.
    pub fn begin(records: Records) -> io::Result<Self> {
        let source = records.as_fd().try_clone_to_owned()?;
        let waiting = Waiting { records, blocks: VecDeque::new(), spare: Vec::new() };
        let shared = Arc::new(Shared { waiting: Mutex::new(waiting), news: Notify::new() });
        let other = Arc::clone(&shared);
        thread::Builder::new().name("ring buffer".to_owned()).spawn(move || {
            hurry();
            if let Err(error) = privileges::keep_nothing() {
                log::warn!("{error}");
            }
            loop {
                let mut readable = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
                // An interrupted wait is one that was shorter.
                let _ = poll(&mut readable, PollTimeout::NONE);
                if other.waiting().fetch() {
                    other.news.notify_one();
                }
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the pause is the point: what comes meanwhile is read at once"
                )]
                thread::sleep(PACE);
            }
        })?;
        Ok(Self { shared, current: Block::default() })
    }

    /// Hands the bytes of the next record to `take`; `None` if there is none, neither here nor in the ring buffer.
    pub fn next<T>(&mut self, take: impl FnOnce(&[u8]) -> T) -> Option<T> {
        if self.current.taken >= self.current.words.len() {
            self.turn_over()?;
        }
        self.current.take().map(take)
    }

    /// Waits until there is a record.
    pub async fn ready(&self) {
        let has_more = self.current.taken < self.current.words.len() || !self.shared.waiting().blocks.is_empty();
        if !has_more {
            self.shared.news.notified().await;
        }
    }

    /// Goes on with the next block.
    fn turn_over(&mut self) -> Option<()> {
        let mut waiting = self.shared.waiting();
        if waiting.blocks.is_empty() {
            waiting.fetch();
        }
        let next = waiting.blocks.pop_front()?;
        let mut emptied = std::mem::replace(&mut self.current, next);
        if waiting.spare.len() < MAX_SPARE && emptied.words.capacity() > 0 {
            emptied.clear();
            waiting.spare.push(emptied);
        }
        Some(())
    }
}

/// From now on the calling thread is not kept waiting by others: what it has to do is little, and is lost if it comes late. Where that may
/// not be (`CAP_SYS_NICE`), it waits its turn.
fn hurry() {
    // SAFETY: sets a number of the calling thread's own.
    unsafe {
        nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, FIRST);
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Who panicked has left whole records behind.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_into_a_block_is_taken_as_it_was_in_its_order() {
        let mut block = Block::default();
        let records: [&[u8]; 4] = [b"", b"a", b"12345678", b"123456789"];
        records.iter().for_each(|record| block.put(record));
        for record in records {
            let taken = block.take().expect("it was put there");
            assert_eq!(taken, record);
            assert_eq!(taken.as_ptr() as usize % ALIGNED, 0);
        }
        assert!(block.take().is_none());
        block.clear();
        assert!(block.take().is_none());
        assert!(block.has_room_for(BLOCK - ALIGNED) && !block.has_room_for(BLOCK));
    }
}
