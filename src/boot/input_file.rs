//! A host file that is loaded into guest memory. Nothing is assumed about its content.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vm_memory::ByteValued;

use super::ByteSize;
use super::error::Error;
use crate::sys::os_error;

/// An open regular file that is not empty.
#[derive(Debug)]
pub(crate) struct InputFile {
    pub file: File,
    pub len: u64,
    pub path: PathBuf,
    role: &'static str,
}

impl InputFile {
    /// Opens `path`, without blocking if it is a FIFO. `role` names the file's purpose in messages.
    pub fn open(path: &Path, role: &'static str) -> Result<Self, Error> {
        let opened = Self::open_any_size(path, role)?;
        if opened.len > 0 { Ok(opened) } else { Err(opened.unusable("it is empty")) }
    }

    /// As [`open`](Self::open), but the file may be empty.
    pub fn open_any_size(path: &Path, role: &'static str) -> Result<Self, Error> {
        let fail = |error| Error::File { action: "open", role, path: path.to_owned(), why: os_error::describe(&error) };
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        let opened = Self { file, len: metadata.len(), path: path.to_owned(), role };
        match metadata.is_file() {
            true => Ok(opened),
            false if metadata.is_dir() => Err(opened.unusable("it is a directory")),
            false => Err(opened.unusable("it is not a regular file")),
        }
    }

    /// Reads all text, of at most `max` bytes.
    pub fn text(&self, max: u64) -> Result<String, Error> {
        let mut bytes = Vec::new();
        let read = (&self.file).take(max.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|error| self.unreadable(error))?;
        if bytes.len() as u64 > max {
            return Err(self.unusable(format!("it is larger than {}", ByteSize(max))));
        }
        String::from_utf8(bytes).map_err(|_| self.unusable("it is not UTF-8"))
    }

    /// The error for a file whose content cannot be used.
    pub fn unusable(&self, why: impl Into<String>) -> Error {
        Error::File { action: "use", role: self.role, path: self.path.clone(), why: why.into() }
    }

    /// The error for a file that cannot be read.
    pub fn unreadable(&self, error: io::Error) -> Error {
        let why = os_error::describe(&error);
        Error::File { action: "read", role: self.role, path: self.path.clone(), why }
    }

    /// Reads `N` bytes at `offset`; bytes after the end of the file are 0.
    pub fn peek<const N: usize>(&self, offset: u64) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        read_at(&self.file, &mut bytes, offset).map_err(|error| self.unreadable(error))?;
        Ok(bytes)
    }

    /// Reads a structure at `offset`; bytes after the end of the file are 0.
    pub fn peek_object<T: ByteValued + Default>(&self, offset: u64) -> Result<T, Error> {
        read_object_at(&self.file, offset).map_err(|error| self.unreadable(error))
    }
}

/// Reads a structure at `offset` of `file`; bytes after the end of the file are 0.
///
/// # Errors
///
/// `file` cannot be read.
pub(crate) fn read_object_at<T: ByteValued + Default>(file: &File, offset: u64) -> io::Result<T> {
    let mut object = T::default();
    read_at(file, object.as_mut_slice(), offset)?;
    Ok(object)
}

/// Fills `bytes` from `offset` of `file` on, up to the end of the file. Returns how many bytes were read.
///
/// # Errors
///
/// `file` cannot be read.
pub(crate) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(len) => done += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Invalid headers give offsets that are larger than the largest file position.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
