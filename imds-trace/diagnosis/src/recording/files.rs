//! In which files is a recording kept? One that grows, those that were put away before it, and nothing is overwritten.
//!
//! `host.jsonl` is the current one. When it is full, or old, it is closed and put away as `host.20261122T083400Z-000001.jsonl`: the
//! time is that of its first line (UTC), the number its place in the chain; sorted by name they are sorted by time. A file that has
//! been put away is never renamed or written to again; the oldest are deleted beyond what is to be kept.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::carry::Carry;
use super::place::{Place, ZSTD, wall};
use super::seal::{self, hex};
use super::sink::Sink;
use super::write::Writer;
use super::{Error, Header, Previous, Reader};
use crate::input::Input;
use crate::net::Timestamp;
use crate::unpack::unpack;

/// Room for a seal, the closing line and the end of the compression.
const ROOM: u64 = 1024;
/// Bytes of facts that a file repeats, at most; and at most half of what it may have.
const MAX_REPEATED: u64 = 4 << 20;
/// Time between two flushes of a compressed file: each costs some compression.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// Bytes at the end of a file in which its closing line is looked for.
const TAIL: u64 = 4096;

/// When a file is put away, and how many are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one file on disk.
    pub size: Option<u64>,
    /// Age of one file.
    pub age: Option<Duration>,
    /// Files kept besides the current one.
    pub keep: Option<usize>,
}

/// An earlier recording that was found where a new one is to begin, and was not closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// As what it is kept.
    pub kept: PathBuf,
    /// From when to when it reaches, RFC 3339; `None` if nothing of it can be read.
    pub reaches: Option<(String, String)>,
}

/// A recording that was closed in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The current file.
    pub path: PathBuf,
    /// SHA-256 of its bytes.
    pub digest: String,
}

/// Can a recording be begun at `path`, put away when it is full, and when another one begins there? Tried, and nothing is left.
pub fn check(path: &Path, limits: Limits) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Err(io::Error::other("it is a folder; a recording is a file in one")),
        Ok(found) if !found.is_file() && limits != Limits::default() => return Err(not_put_away()),
        Ok(found) if !found.is_file() => return Ok(()),
        _ => {}
    }
    Place::of(path)?.try_longest()
}

fn not_put_away() -> io::Error {
    io::Error::other("it is no regular file: it cannot be rotated when it is full")
}

/// Writes a recording into files.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    limits: Limits,
    header: Header,
    writer: Writer<Sink>,
    carry: Carry,
    /// The last flush of a compressed file, and what had been written by then: before and after compression.
    flushed: (Timestamp, u64, u64),
}

impl Files {
    /// Begins a recording at `path`. What is there is put away.
    pub fn begin(path: &Path, mut header: Header, limits: Limits) -> io::Result<(Self, Option<Notice>)> {
        let found = fs::symlink_metadata(path).and_then(|_| fs::metadata(path)).ok();
        let mut notice = None;
        let is_file = found.as_ref().is_none_or(fs::Metadata::is_file);
        if !is_file && limits != Limits::default() {
            return Err(not_put_away());
        }
        header.chain.run.get_or_insert(header.at);
        if is_file {
            let place = Place::of(path)?;
            if found.is_some_and(|found| found.len() > 0) {
                let (previous, number, unclosed) = put_away_earlier(path, &place)?;
                (header.chain.number, header.chain.previous) = (number + 1, Some(previous));
                notice = unclosed;
            } else {
                let newest = place.put_away()?.pop();
                header.chain.number = newest.as_ref().map_or(1, |(number, _)| number + 1);
                header.chain.previous = newest.map(|(_, file)| previous(&file)).transpose()?;
                remove_if_there(path)?;
            }
            place.keep(limits.keep)?;
        }
        let most = limits.size.map_or(MAX_REPEATED, |size| (size / 2).min(MAX_REPEATED));
        let carry = Carry::new(usize::try_from(most).unwrap_or(usize::MAX));
        let writer = Writer::new(Sink::open(path, is_file)?, &header)?;
        let flushed = (header.at, 0, 0);
        Ok((Self { path: path.to_owned(), limits, header, writer, carry, flushed }, notice))
    }

    /// Writes one input. Puts the file away before, if it is full or old.
    pub fn write(&mut self, input: &Input) -> io::Result<()> {
        let text = serde_json::to_string(input)?;
        if self.is_full(text.len() as u64)? || self.is_old(input.at()) {
            self.rotate(input.at())?;
        }
        self.writer.write_line(input, &text)?;
        if let Input::Fact(fact) = input {
            self.carry.note(fact, &text);
        }
        Ok(())
    }

    /// Hands everything written so far to the system, a compressed file's once in a second. Seals it, if it is time to.
    pub fn flush(&mut self, now: Timestamp) -> io::Result<()> {
        self.writer.seal_if_due(now)?;
        if matches!(self.writer.out(), Sink::Plain(_)) {
            self.writer.flush()
        } else if now.since(self.flushed.0) >= FLUSH_AFTER && self.flushed.1 != self.writer.bytes() {
            self.compress(now)
        } else {
            Ok(())
        }
    }

    /// Ends the recording in order.
    pub fn close(self, at: Timestamp) -> io::Result<Closed> {
        let digest = self.writer.close(at, false)?.finish()?;
        Ok(Closed { path: self.path, digest })
    }

    fn compress(&mut self, now: Timestamp) -> io::Result<()> {
        self.writer.flush()?;
        self.flushed = (now, self.writer.bytes(), self.writer.out().on_disk());
        Ok(())
    }

    /// Would a line of so many bytes not fit any more?
    fn is_full(&mut self, line: u64) -> io::Result<bool> {
        let Some(size) = self.limits.size.filter(|_| self.writer.inputs() > 0) else { return Ok(false) };
        let (mut before, mut after) = (0, 0);
        if matches!(self.writer.out(), Sink::Zstd(_)) {
            (before, after) = (self.flushed.1, self.flushed.2);
        }
        // What is not compressed yet becomes smaller, hardly ever larger.
        let most = |before, after, bytes: u64| after + (bytes - before) + line + ROOM;
        let bytes = self.writer.bytes();
        if most(before, after, bytes) > size && before != bytes && matches!(self.writer.out(), Sink::Zstd(_)) {
            self.compress(self.flushed.0)?;
            (before, after) = (self.flushed.1, self.flushed.2);
        }
        Ok(most(before, after, bytes) > size)
    }

    fn is_old(&self, now: Timestamp) -> bool {
        self.writer.inputs() > 0 && self.limits.age.is_some_and(|age| now.since(self.header.at) >= age)
    }

    /// Closes the file, puts it away, and goes on in a new one.
    fn rotate(&mut self, at: Timestamp) -> io::Result<()> {
        let place = Place::of(&self.path)?;
        let away = place.free(&self.header, self.header.chain.number);
        let mut header = Header { at, ..self.header.clone() };
        header.chain.number += 1;
        // The next one is made under a name of its own first: there is always a file to write to.
        let next = place.next();
        remove_if_there(&next)?;
        let sink = Sink::open(&next, true)?;
        let writer = std::mem::replace(&mut self.writer, Writer::new(Sink::nowhere()?, &header)?);
        let digest = writer.close(at, true)?.finish()?;
        fs::rename(&self.path, &away)?;
        fs::rename(&next, &self.path)?;
        let file = away.file_name().unwrap_or_default().to_string_lossy().into_owned();
        header.chain.previous = Some(Previous { file, digest });
        self.writer = Writer::new(sink, &header)?;
        for text in self.carry.repeat(at) {
            self.writer.repeat(text)?;
        }
        (self.header, self.flushed) = (header, (at, 0, 0));
        place.keep(self.limits.keep)
    }
}

fn previous(path: &Path) -> io::Result<Previous> {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Previous { file, digest: digest_of(path)? })
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// SHA-256 of a file's bytes, in hexadecimal.
pub fn digest_of(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// Opens a file to read, compressed or not: its content tells.
pub fn open(file: impl Read + Send + 'static) -> io::Result<Box<dyn BufRead>> {
    Ok(Box::new(BufReader::new(unpack(Box::new(file))?.0)))
}

/// Puts away what an earlier run left at `path`. Gives its name and digest, its number, and a notice if it was not closed.
fn put_away_earlier(path: &Path, place: &Place) -> io::Result<(Previous, u64, Option<Notice>)> {
    let file = File::open(path)?;
    if let Err(TryLockError::WouldBlock) = file.try_lock_shared() {
        return Err(io::Error::other("another run is writing it"));
    }
    let reader = Reader::new(open(file)?);
    let (header, closed, last) = match reader {
        Ok(reader) => {
            let header = reader.header.clone();
            let (closed, last) = if ends(path)? { (true, header.at) } else { walk(reader) };
            (Some(header), closed, last)
        }
        Err(Error::NotARecording(_) | Error::Unreadable { .. }) if !begins_like_one(path)? => {
            return Err(io::Error::other("there is a file that is no recording: it is not overwritten"));
        }
        Err(_) => (None, false, Timestamp(0)),
    };
    let after = place.put_away()?.last().map_or(1, |(number, _)| number + 1);
    let number = header.as_ref().map_or(0, |header| header.chain.number).max(after);
    let away = match &header {
        Some(header) => place.free(header, number),
        None => {
            let changed = jiff::Timestamp::try_from(fs::metadata(path)?.modified()?).map_err(io::Error::other)?;
            place.free_at(&format!("{changed:.0}"), number)
        }
    };
    fs::rename(path, &away)?;
    let reaches = header.map(|header| (wall(header.boot_time, header.at), wall(header.boot_time, last)));
    let notice = (!closed).then(|| Notice { kept: away.clone(), reaches });
    Ok((previous(&away)?, number, notice))
}

/// An error, if one of the files that something else is to be written to is a recording.
pub fn spare<'a>(paths: impl IntoIterator<Item = &'a Path>) -> io::Result<()> {
    let is_one = |path: &&Path| path.is_file() && begins_like_one(path).unwrap_or(false);
    match paths.into_iter().find(is_one) {
        Some(path) => Err(io::Error::other(format!("{}: there is a recording: it is not overwritten", path.display()))),
        None => Ok(()),
    }
}

/// Does a file that cannot be read begin as recordings do? Then it is one that was cut short, or a newer one.
fn begins_like_one(path: &Path) -> io::Result<bool> {
    const HEADER: &[u8] = b"{\"recording\":";
    let mut begin = Vec::new();
    let read = open(File::open(path)?)?.take(HEADER.len() as u64).read_to_end(&mut begin);
    // A compressed one that was cut short has nothing yet.
    Ok(begin == HEADER || (read.is_err() && path.to_string_lossy().ends_with(ZSTD)))
}

/// Is its last line, near its end, a closing one? Not to be told of a compressed file.
fn ends(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let lines = tail.strip_suffix(b"\n").unwrap_or(&tail);
    let last = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    Ok(tail[last..].starts_with(b"{\"end\":") && seal::is_one(&tail[last..]))
}

/// Was it closed, and until when does it reach?
fn walk(reader: Reader<impl BufRead>) -> (bool, Timestamp) {
    let mut last = reader.header.at;
    let mut closed = true;
    for input in reader {
        match input {
            Ok(input) => last = last.max(input.at()),
            Err(Error::Broken { .. }) => {}
            Err(_) => closed = false,
        }
    }
    (closed, last)
}
