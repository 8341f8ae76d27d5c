//! A file that becomes part of the guest.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::{Error, Role};

/// An open regular file that is not empty.
#[derive(Debug)]
pub(super) struct Source {
    pub file: File,
    pub len: u64,
    pub path: PathBuf,
    role: Role,
}

impl Source {
    /// Opens `path` without waiting for anybody, as opening a FIFO would.
    pub fn open(path: &Path, role: Role) -> Result<Self, Error> {
        let fail = |source| Error::File { action: "open", role, path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        let source = Self { file, len: metadata.len(), path: path.to_owned(), role };
        if metadata.is_dir() {
            return Err(source.bad("It is a directory"));
        }
        if !metadata.is_file() {
            return Err(source.bad("It is not a regular file"));
        }
        if source.len == 0 {
            return Err(source.bad("It is empty"));
        }
        Ok(source)
    }

    /// The error that says `why` the file's content cannot be used.
    pub fn bad(&self, why: impl Into<String>) -> Error {
        Error::Content { role: self.role, path: self.path.clone(), why: why.into() }
    }

    /// The error that says that reading failed with `source`.
    pub fn unreadable(&self, source: io::Error) -> Error {
        Error::File { action: "read", role: self.role, path: self.path.clone(), source }
    }

    /// The `N` bytes at `offset`, zeros where the file has ended.
    pub fn peek<const N: usize>(&self, offset: u64) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        let mut done = 0;
        while done < N {
            match self.file.read_at(&mut bytes[done..], offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Offsets past the largest file position come out of broken headers.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                Err(error) => return Err(self.unreadable(error)),
            }
        }
        Ok(bytes)
    }
}
