//! What are the files of a recording called, where are they, and which of them go when there are too many?

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::Header;
use crate::net::{BootTime, Timestamp};

/// The ending that asks for compression.
pub(super) const ZSTD: &str = ".zst";
/// Characters that a name gets when its file is put away: `.20261122T083400Z-000001`.
const ROTATED: usize = 24;

/// Where the files of a recording are, and what their names are made of.
#[derive(Debug)]
pub(super) struct Place {
    folder: PathBuf,
    stem: String,
    /// With its dot, `.zst` included; may be empty.
    ending: String,
}

impl Place {
    /// Of the recording that is at `path`.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
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
    pub(super) fn try_longest(&self) -> io::Result<()> {
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

    /// The file that is begun beside the current one, to take its place. A dot in front: it is not taken for one that was put away.
    pub(super) fn next(&self) -> PathBuf {
        self.folder.join(format!(".{}{}.new", self.stem, self.ending))
    }

    /// Those that were put away, oldest first.
    pub(super) fn put_away(&self) -> io::Result<Vec<(u64, PathBuf)>> {
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
    pub(super) fn free(&self, header: &Header, number: u64) -> PathBuf {
        self.free_at(&wall(header.boot_time, header.at), number)
    }

    pub(super) fn free_at(&self, time: &str, number: u64) -> PathBuf {
        // 2026-11-22T08:34:00Z
        let time: String = time.get(..19).unwrap_or_default().chars().filter(|c| !matches!(c, '-' | ':')).collect();
        let name = |number: u64| self.folder.join(format!("{}.{time}Z-{number:06}{}", self.stem, self.ending));
        (number..).map(name).find(|path| !path.exists()).unwrap_or_default()
    }

    /// Deletes the oldest of those that were put away.
    pub(super) fn keep(&self, most: Option<usize>) -> io::Result<()> {
        let Some(most) = most else { return Ok(()) };
        let found = self.put_away()?;
        let over = found.len().saturating_sub(most);
        found.iter().take(over).try_for_each(|(_, path)| fs::remove_file(path))
    }
}

/// Wall-clock time, RFC 3339 with seconds; empty if there is no such time.
pub(super) fn wall(boot_time: BootTime, at: Timestamp) -> String {
    let time = jiff::Timestamp::from_nanosecond(i128::from(boot_time.0) + i128::from(at.0));
    time.map(|time| format!("{time:.0}")).unwrap_or_default()
}
