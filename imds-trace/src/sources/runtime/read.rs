//! How is a file of the host read that others may have put there? Below one root, never more than so much, and only if it is a file.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use zeroize::Zeroizing;

/// A root directory; links below it lead nowhere else.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    folder: Option<File>,
}

impl Root {
    /// That directory. If it cannot be opened, it has no files.
    pub fn open(path: &Path) -> Self {
        Self { path: path.to_owned(), folder: File::open(path).ok() }
    }

    /// Where a path below it is.
    pub fn path_of(&self, path: &Path) -> PathBuf {
        self.path.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Is there a folder?
    pub fn has(&self, path: &Path) -> bool {
        self.enter(path, OFlag::O_DIRECTORY).is_some()
    }

    /// The bytes of a file that has at most `limit` of them and is `owner`'s. It may hold secrets: it is wiped when it goes.
    pub fn read(&self, path: &Path, limit: u64, owner: u32) -> Option<Zeroizing<Vec<u8>>> {
        // A FIFO would be waited for without this.
        let file = File::from(self.enter(path, OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?);
        let about = file.metadata().ok()?;
        if !about.is_file() || about.len() > limit || about.uid() != owner {
            return None;
        }
        // As large as it will be: a buffer that grows leaves copies behind.
        let room = usize::try_from(about.len()).ok()?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(room));
        file.take(about.len()).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// The names of the folders in one, at most so many.
    pub fn folders(&self, path: &Path, most: usize) -> Vec<OsString> {
        use std::os::unix::ffi::OsStringExt;
        let Some(mut folder) = self.enter(path, OFlag::O_DIRECTORY).and_then(|folder| Dir::from_fd(folder).ok()) else {
            return Vec::new();
        };
        let names = folder.iter().flatten().map(|entry| entry.file_name().to_bytes().to_owned());
        names.filter(|name| !name.starts_with(b".")).take(most).map(OsString::from_vec).collect()
    }

    fn enter(&self, path: &Path, flags: OFlag) -> Option<std::os::fd::OwnedFd> {
        // Links are followed as in a chroot: /var/lib/docker is often one.
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags | OFlag::O_RDONLY | OFlag::O_CLOEXEC).resolve(resolve);
        openat2(self.folder.as_ref()?.as_fd(), path, how).ok()
    }
}
