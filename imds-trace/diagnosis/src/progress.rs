//! How far has a replay come? Counted here, and shown by whoever was named to; otherwise by nobody.
//!
//! What shows it may stand on the terminal to which something is written: it makes room for that.

use std::io::{self, Read, Write};
use std::sync::OnceLock;

/// Somebody who shows it.
pub trait Progress: Send + Sync {
    /// A replay of so many bytes begins, if that is known.
    fn begin(&self, total: Option<u64>);
    /// So many more of them were read.
    fn advance(&self, bytes: u64);
    /// Makes room while something is written.
    fn aside(&self, write: &mut dyn FnMut());
    /// It is over.
    fn end(&self);
}

static SHOWN: OnceLock<Box<dyn Progress>> = OnceLock::new();

/// From now on it is shown by this one, the first that is named.
pub fn show(by: Box<dyn Progress>) {
    let _ = SHOWN.set(by);
}

/// Writes something while whoever shows progress makes room.
pub fn aside(mut write: impl FnMut()) {
    match SHOWN.get() {
        Some(shown) => shown.aside(&mut write),
        None => write(),
    }
}

/// A replay, from its begin until it is dropped.
pub struct Replaying(());

impl Replaying {
    /// Begins it.
    pub fn begin(total: Option<u64>) -> Self {
        if let Some(shown) = SHOWN.get() {
            shown.begin(total);
        }
        Self(())
    }
}

impl Drop for Replaying {
    fn drop(&mut self) {
        if let Some(shown) = SHOWN.get() {
            shown.end();
        }
    }
}

/// What is read of it counts.
pub struct Counted<R>(pub R);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        if let Some(shown) = SHOWN.get() {
            shown.advance(read as u64);
        }
        Ok(read)
    }
}

/// Room is made for what is written to it, if it goes to a terminal.
pub struct Aside<W> {
    stream: W,
    is_terminal: bool,
}

impl<W: Write> Aside<W> {
    /// Around a stream.
    pub fn new(stream: W, is_terminal: bool) -> Self {
        Self { stream, is_terminal }
    }

    fn making_room<T>(&mut self, mut write: impl FnMut(&mut W) -> io::Result<T>) -> io::Result<T> {
        if !self.is_terminal {
            return write(&mut self.stream);
        }
        let mut written = Err(io::ErrorKind::Interrupted.into());
        aside(|| written = write(&mut self.stream));
        written
    }
}

impl<W: Write> Write for Aside<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.making_room(|stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.making_room(W::flush)
    }
}
