//! How do the bytes of a recording come into a file, compressed or not, and what is their digest?

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::place::ZSTD;
use super::seal::hex;

/// Level of compression: 3 is what zstd itself takes.
const LEVEL: i32 = 3;

/// Where bytes go, and what their digest is.
#[derive(Debug)]
pub(super) struct Hashing<W> {
    out: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A file of a recording that is being written.
pub(super) enum Sink {
    Plain(BufWriter<Hashing<File>>),
    Zstd(zstd::Encoder<'static, BufWriter<Hashing<File>>>),
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sink")
    }
}

impl Sink {
    /// Only its owner may read it. `new`: nothing may be there.
    pub(super) fn open(path: &Path, new: bool) -> io::Result<Self> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).create_new(new).mode(0o600).open(path)?;
        if new {
            // Says to other runs that it is being written, as long as it is open.
            file.try_lock()?;
        }
        let out = BufWriter::new(Hashing { out: file, hash: Sha256::new(), bytes: 0 });
        let name = path.to_string_lossy();
        if name.ends_with(ZSTD) || name.ends_with(".zst.new") {
            return Ok(Self::Zstd(zstd::Encoder::new(out, LEVEL)?));
        }
        Ok(Self::Plain(out))
    }

    /// In place of one that is being closed.
    pub(super) fn nowhere() -> io::Result<Self> {
        let file = OpenOptions::new().write(true).open("/dev/null")?;
        Ok(Self::Plain(BufWriter::new(Hashing { out: file, hash: Sha256::new(), bytes: 0 })))
    }

    /// Bytes that the file has.
    pub(super) fn on_disk(&self) -> u64 {
        match self {
            Self::Plain(out) => out.get_ref().bytes,
            Self::Zstd(out) => out.get_ref().get_ref().bytes,
        }
    }

    /// Ends the file and gives the digest of its bytes.
    pub(super) fn finish(self) -> io::Result<String> {
        let out = match self {
            Self::Plain(out) => out,
            Self::Zstd(out) => out.finish()?,
        };
        let hashing = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        // Closing alone would not do while a child that is being started has it open, too.
        let _ = hashing.out.unlock();
        Ok(hex(&hashing.hash.finalize()))
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(bytes),
            Self::Zstd(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.flush(),
            Self::Zstd(out) => out.flush(),
        }
    }
}
