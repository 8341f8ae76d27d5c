//! A host file that is loaded into guest memory. Nothing is assumed about its content.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::RawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::ByteValued;

use super::ByteSize;
use super::decompress::Compression;
use super::error::Error;
use crate::sys::os_error;
use crate::sys::replace_descriptor::replace_descriptor;

/// The most bytes of a pipe or of decompressed data, which are held in memory.
const MAX_BUFFERED: u64 = 2 << 30;

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

    /// As [`open`](Self::open), but the file may be empty. The pipe of a descriptor, such as `/dev/fd/63` for a shell's
    /// `<(command)`, is replaced by its content, so that it can be opened again.
    pub fn open_any_size(path: &Path, role: &'static str) -> Result<Self, Error> {
        let fail = |error| Error::File { action: "open", role, path: path.to_owned(), why: os_error::describe(&error) };
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        let opened = Self { file, len: metadata.len(), path: path.to_owned(), role };
        match descriptor(path) {
            _ if metadata.is_file() => Ok(opened),
            Some(number) if metadata.file_type().is_fifo() => {
                let pipe = fcntl(&opened.file, FcntlArg::F_SETFL(OFlag::empty())).map(|_| &opened.file);
                let content = opened.buffered(pipe.map_err(|error| opened.unreadable(error.into()))?);
                let content = content?.map_err(|error| opened.unreadable(error))?;
                replace_descriptor(number, &content.file).map_err(|error| opened.unreadable(error))?;
                Ok(content)
            }
            _ if metadata.is_dir() => Err(opened.unusable("it is a directory")),
            _ => Err(opened.unusable("it is not a regular file")),
        }
    }

    /// The decompressed content.
    pub fn decompressed(self, compression: Compression) -> Result<Self, Error> {
        let source = self.file.try_clone().map_err(|error| self.unreadable(error))?;
        self.decompressed_from(compression, source)
    }

    /// This file with the decompressed content of `source`, a part of it.
    pub fn decompressed_from(&self, compression: Compression, source: impl Read + 'static) -> Result<Self, Error> {
        let invalid = |error| self.unusable(format!("its {compression} data is invalid: {error}"));
        self.buffered(compression.reader(source).map_err(invalid)?)?.map_err(invalid)
    }

    /// This file with the content of `source`, in memory. The inner error is that of `source`.
    fn buffered(&self, source: impl Read) -> Result<io::Result<Self>, Error> {
        let memory = memfd_create("kickvm", MFdFlags::MFD_CLOEXEC).map_err(|error| self.unreadable(error.into()))?;
        let mut file = File::from(memory);
        let copied = io::copy(&mut source.take(MAX_BUFFERED + 1), &mut file);
        match copied.and_then(|len| file.rewind().map(|()| len)) {
            Ok(len) if len > MAX_BUFFERED => {
                Err(self.unusable(format!("its content is larger than {}", ByteSize(MAX_BUFFERED))))
            }
            Ok(len) => Ok(Ok(Self { file, len, path: self.path.clone(), role: self.role })),
            Err(error) => Ok(Err(error)),
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

/// Reads the pipe `path` of a shell, so that it can be opened more than once. Other files are not opened.
///
/// # Errors
///
/// The pipe cannot be read.
pub(crate) fn buffer_pipe(path: &Path, role: &'static str) -> Result<(), Error> {
    descriptor(path).map_or(Ok(()), |_| InputFile::open_any_size(path, role).map(drop))
}

/// The number of the descriptor of this process that `path` names.
fn descriptor(path: &Path) -> Option<RawFd> {
    match path.to_str()? {
        "/dev/stdin" => Some(0),
        path => path.strip_prefix("/dev/fd/").or(path.strip_prefix("/proc/self/fd/"))?.parse().ok(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_content_of_a_pipe_is_read_from_its_start() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"text").unwrap();
        drop(writer);
        let path = format!("/dev/fd/{}", reader.as_raw_fd());
        let file = InputFile::open(path.as_ref(), "file").unwrap();
        assert_eq!((file.len, file.text(10).unwrap()), (4, "text".to_owned()));
    }
}
