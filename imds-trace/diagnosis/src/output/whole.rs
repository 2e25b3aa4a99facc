//! How is a file replaced as a whole, so that whoever reads it never sees a part of it?

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Bytes for a file that takes their place when they are flushed.
pub struct Whole {
    path: PathBuf,
    /// Beside it, and renamed: a rename within one folder is atomic.
    beside: PathBuf,
    bytes: Vec<u8>,
}

impl Whole {
    /// A file that is not there yet, or is replaced. Its folder must be writable: looked at now, not at the end.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let whole = Self { path: path.to_owned(), beside: beside.into(), bytes: Vec::new() };
        File::create(&whole.beside)?;
        fs::remove_file(&whole.beside)?;
        Ok(whole)
    }
}

impl Write for Whole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        fs::write(&self.beside, &self.bytes)?;
        self.bytes.clear();
        fs::rename(&self.beside, &self.path)
    }
}
