//! In which files is a recording kept? One that grows, those that were put away before it, and nothing is overwritten.
//!
//! `host.jsonl` is the current one. When it is full, or old, it is closed and put away as `host.20261122T083400Z-000001.jsonl`: the
//! time is that of its first line (UTC), the number its place in the chain; sorted by name they are sorted by time. A file that has
//! been put away is never renamed or written to again; the oldest are deleted beyond what is to be kept.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::carry::Carry;
use super::seal::{self, hex};
use super::write::Writer;
use super::{Error, Header, Previous, Reader};
use crate::input::Input;
use crate::net::{BootTime, Timestamp};
use crate::unpack::unpack;

/// The ending that asks for compression.
const ZSTD: &str = ".zst";
/// Level of compression: 3 is what zstd itself takes.
const LEVEL: i32 = 3;
/// Room for a seal, the closing line and the end of the compression.
const ROOM: u64 = 1024;
/// Bytes of facts that a file repeats, at most; and at most half of what it may have.
const MAX_REPEATED: u64 = 4 << 20;
/// Time between two flushes of a compressed file: each costs some compression.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// Characters that a name gets when its file is put away: `.20261122T083400Z-000001`.
const ROTATED: usize = 24;
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
        let next = place.folder.join(format!(".{}{}.new", place.stem, place.ending));
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

/// Where bytes go, and what their digest is.
#[derive(Debug)]
struct Hashing<W> {
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

enum Sink {
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
    fn open(path: &Path, new: bool) -> io::Result<Self> {
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
    fn nowhere() -> io::Result<Self> {
        let file = OpenOptions::new().write(true).open("/dev/null")?;
        Ok(Self::Plain(BufWriter::new(Hashing { out: file, hash: Sha256::new(), bytes: 0 })))
    }

    fn on_disk(&self) -> u64 {
        match self {
            Self::Plain(out) => out.get_ref().bytes,
            Self::Zstd(out) => out.get_ref().get_ref().bytes,
        }
    }

    /// Ends the file and gives the digest of its bytes.
    fn finish(self) -> io::Result<String> {
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

/// Where the files of a recording are, and what their names are made of.
#[derive(Debug)]
struct Place {
    folder: PathBuf,
    stem: String,
    /// With its dot, `.zst` included; may be empty.
    ending: String,
}

impl Place {
    fn of(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::other("it has no file name"))?;
        let name = name.to_str().ok_or_else(|| io::Error::other("its name is not UTF-8"))?;
        let (plain, zstd) = name.strip_suffix(ZSTD).map_or((name, ""), |plain| (plain, ZSTD));
        let (stem, ending) = match plain.rfind('.') {
            Some(at) if at > 0 => plain.split_at(at),
            _ => (plain, ""),
        };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Self { folder: folder.to_owned(), stem: stem.to_owned(), ending: format!("{ending}{zstd}") })
    }

    /// Makes a file in the folder whose name is as long as those of files that are put away, and removes it.
    fn try_longest(&self) -> io::Result<()> {
        let because = |error: io::Error, why: String| io::Error::new(error.kind(), format!("{why}: {error}"));
        // A dot in front: it is not taken for one of them.
        let name = format!(".{}.{}{}", self.stem, "0".repeat(ROTATED - 2), self.ending);
        let path = self.folder.join(&name);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        match made {
            Ok(mut file) => {
                // A full disk often has room for an empty file.
                let written = file.write_all(b"\n");
                fs::remove_file(&path)
                    .map_err(|error| because(error, "files in its folder cannot be removed".into()))?;
                written.map_err(|error| because(error, format!("its folder {} takes no byte", self.folder.display())))
            }
            // One that another run is trying, or left.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidFilename => Err(because(
                error,
                format!(
                    "its name is too long: files that are rotated get {ROTATED} more characters (.20261122T083400Z-000001)"
                ),
            )),
            Err(error) => Err(because(error, format!("no file can be made in its folder {}", self.folder.display()))),
        }
    }

    /// Those that were put away, oldest first.
    fn put_away(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if let Some(number) = entry.file_name().to_str().and_then(|name| self.number(name)) {
                found.push((number, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// The number in the name of one that was put away.
    fn number(&self, name: &str) -> Option<u64> {
        let middle = name.strip_prefix(&self.stem)?.strip_suffix(&self.ending)?.strip_prefix('.')?;
        let (time, number) = middle.split_once('-')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let (day, second) = time.strip_suffix('Z')?.split_once('T')?;
        (day.len() == 8 && second.len() == 6 && digits(day) && digits(second) && digits(number)).then_some(())?;
        number.parse().ok()
    }

    /// The name under which a file is put away; one that is not taken.
    fn free(&self, header: &Header, number: u64) -> PathBuf {
        self.free_at(&wall(header.boot_time, header.at), number)
    }

    fn free_at(&self, time: &str, number: u64) -> PathBuf {
        // 2026-11-22T08:34:00Z
        let time: String = time.get(..19).unwrap_or_default().chars().filter(|c| !matches!(c, '-' | ':')).collect();
        let name = |number: u64| self.folder.join(format!("{}.{time}Z-{number:06}{}", self.stem, self.ending));
        (number..).map(name).find(|path| !path.exists()).unwrap_or_default()
    }

    /// Deletes the oldest of those that were put away.
    fn keep(&self, most: Option<usize>) -> io::Result<()> {
        let Some(most) = most else { return Ok(()) };
        let found = self.put_away()?;
        let over = found.len().saturating_sub(most);
        found.iter().take(over).try_for_each(|(_, path)| fs::remove_file(path))
    }
}

/// Wall-clock time, RFC 3339 with seconds; empty if there is no such time.
fn wall(boot_time: BootTime, at: Timestamp) -> String {
    let time = jiff::Timestamp::from_nanosecond(i128::from(boot_time.0) + i128::from(at.0));
    time.map(|time| format!("{time:.0}")).unwrap_or_default()
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
