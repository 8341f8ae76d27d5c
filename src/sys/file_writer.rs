//! Writes to a file that may block forever: [`FileWriter`].
//!
//! A write to a frozen file system or to a server that does not answer cannot be ended, not even by SIGKILL, and a
//! process ends only when all its threads have ended. So another process writes such a file:
//!
//! ```text
//!   this process ── pipe ──▶ writer process ── write(2) ──▶ file
//!                ◀── pipe ── 0 or the error
//! ```

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Instant;

use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::async_io::close_all_but;
use super::fork::fork;
use super::limited_wait::wait_for;

/// Bytes copied at once: the default capacity of a pipe (pipe(7)).
const BLOCK: usize = 64 << 10;

/// A file that is written without blocking for longer than the caller permits.
#[derive(Debug)]
pub struct FileWriter {
    file: File, // or a pipe to the writer process
    process: Option<Process>,
    truncate: bool, // before the first bytes, by this process
}

/// The names for an atomic replacement: rename(2) from the first to the second.
struct Replacement(CString, CString);

impl FileWriter {
    /// Prepares to write `file`. A regular file on a file system that may block gets a writer process.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn start(file: File) -> io::Result<Self> {
        let in_memory = fstatfs(&file).is_ok_and(|statistics| statistics.filesystem_type() == TMPFS_MAGIC);
        if in_memory || !file.metadata()?.is_file() {
            return Ok(Self { file, process: None, truncate: false });
        }
        Self::start_process(file, None)
    }

    /// Prepares to replace `file`, which is at `path`, by one text: [`replace_with`](Self::replace_with).
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn start_replacement(file: File, path: &Path) -> io::Result<Self> {
        if !file.metadata()?.is_file() {
            return Ok(Self { file, process: None, truncate: false });
        }
        let path = path.canonicalize()?.into_os_string();
        let mut temporary = path.clone();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let name = |path: OsString| CString::new(path.into_vec()).map_err(io::Error::other);
        Self::start_process(file, Some(Replacement(name(temporary)?, name(path)?)))
    }

    fn start_process(file: File, replacement: Option<Replacement>) -> io::Result<Self> {
        let ((data, pipe), (status, result)) = (io::pipe()?, io::pipe()?);
        // SAFETY: `run` makes only system calls. The descriptors are open in the child.
        let child =
            unsafe { fork(|| run(data.as_raw_fd(), file.as_raw_fd(), result.as_raw_fd(), replacement.as_ref())) };
        let Ok(child) = child else {
            return Ok(Self { file, process: None, truncate: replacement.is_some() }); // the host allows no process
        };
        let process = Process { id: child, status, replaces: replacement.is_some() };
        Ok(Self { file: File::from(OwnedFd::from(pipe)), process: Some(process), truncate: false })
    }

    /// The file, or the pipe to the process, to wait for.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes as write(2). A pipe or terminal may block; see [`has_room`](Self::has_room).
    ///
    /// # Errors
    ///
    /// The error of write(2), also of an earlier write.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.truncate) {
            self.file.set_len(0)?;
        }
        let written = self.file.write(bytes);
        match (&written, &mut self.process) {
            // The process has ended.
            (Err(error), Some(process)) if error.kind() == io::ErrorKind::BrokenPipe => process.finish().and(written),
            _ => written,
        }
    }

    /// Waits, at most until `deadline`, until up to `PIPE_BUF` bytes can be written without blocking, or an error can
    /// be reported.
    pub fn has_room(&self, deadline: Instant) -> bool {
        wait_for(&self.file, libc::POLLOUT, deadline)
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    ///
    /// The error of write(2), or `TimedOut` at `deadline`.
    pub fn write_all(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            if !self.has_room(deadline) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let written = self.write(&bytes[..bytes.len().min(libc::PIPE_BUF)])?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Replaces the content of the file by `text`: atomically, unless its directory does not permit that or it is a
    /// mount point.
    ///
    /// # Errors
    ///
    /// The error of a system call, or `TimedOut` at `deadline`. Then the file keeps its content, if its directory
    /// permits that.
    pub fn replace_with(mut self, text: &str, deadline: Instant) -> io::Result<()> {
        if self.process.as_ref().is_some_and(|process| process.replaces) {
            self.write_all(&text.len().to_ne_bytes(), deadline)?;
        }
        self.write_all(text.as_bytes(), deadline)?;
        self.finish(deadline)
    }

    /// Waits until the file has all bytes, at most until `deadline`.
    ///
    /// # Errors
    ///
    /// The error of ftruncate(2), write(2) or close(2), or `TimedOut`.
    pub fn finish(self, deadline: Instant) -> io::Result<()> {
        drop(self.file); // the process reads the end of the pipe
        match self.process {
            None => Ok(()),
            Some(mut process) if wait_for(&process.status, libc::POLLIN, deadline) => process.finish(),
            Some(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// The writer process, and the pipe with its status.
#[derive(Debug)]
struct Process {
    id: Pid,
    status: PipeReader,
    replaces: bool,
}

impl Process {
    /// Waits for the end of the process, and returns its error.
    fn finish(&mut self) -> io::Result<()> {
        let mut errno = [0; 4];
        let read = self.status.read_exact(&mut errno);
        let _ = waitpid(self.id, None); // it has closed the file, and does nothing more that may block
        read.map_err(|_| io::Error::other("the process that writes it was killed"))?;
        match i32::from_ne_bytes(errno) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = waitpid(self.id, Some(WaitPidFlag::WNOHANG)); // it may have ended after an error
    }
}

/// The writer process. It ends with its error, or 0, in `status`.
///
/// # Safety
///
/// Only for a forked child. It makes only system calls, as another thread may have held any lock.
unsafe fn run(data: RawFd, file: RawFd, status: RawFd, replacement: Option<&Replacement>) -> ! {
    let mut kept = [data, file, status];
    kept.sort_unstable();
    // SAFETY: this process uses no other descriptor. The buffer is a live local of BLOCK bytes, and `written..len` is
    // in it.
    unsafe {
        close_all_but(&kept);
        libc::prctl(libc::PR_SET_NAME, c"kickvm-writer".as_ptr());
        let (mut output, mut total) = (file, 0usize);
        let mut temporary = None;
        if let Some(Replacement(from, _)) = replacement {
            if libc::read(data, (&raw mut total).cast(), size_of::<usize>()) <= 0 {
                libc::_exit(0); // there is no replacement
            }
            let created = libc::open(from.as_ptr(), libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o666);
            let mut old: libc::stat = std::mem::zeroed();
            if created >= 0 && libc::fstat(file, &mut old) == 0 {
                libc::fchown(created, old.st_uid, old.st_gid); // if that is permitted
                libc::fchmod(created, old.st_mode & 0o7777);
                (output, temporary) = (created, replacement);
            } else {
                libc::ftruncate(file, 0);
            }
        }
        let mut block = [0u8; BLOCK];
        let (mut len, mut received) = (1, 0);
        while len > 0 {
            len = libc::read(data, block.as_mut_ptr().cast(), BLOCK);
            let mut written = 0;
            while written < len {
                let rest = block.as_ptr().offset(written).cast();
                match libc::write(output, rest, (len - written).cast_unsigned()) {
                    count if count > 0 => written += count,
                    _ => len = -1, // 0 bytes are no progress
                }
            }
            received += written.cast_unsigned();
        }
        if let Some(Replacement(from, to)) = temporary {
            if len < 0 || received < total {
                len = -1;
                libc::unlink(from.as_ptr());
            } else if libc::rename(from.as_ptr(), to.as_ptr()) < 0 {
                // For example, the file is a mount point.
                libc::ftruncate(file, 0);
                let copied = libc::sendfile(file, output, &mut 0, total);
                len = if copied.cast_unsigned() == total { 0 } else { -1 };
                libc::unlink(from.as_ptr());
                libc::close(output);
                output = file;
            }
        }
        len = len.min(libc::close(output) as isize);
        let errno = if len < 0 { (*libc::__errno_location()).max(1) } else { 0 };
        libc::write(status, (&raw const errno).cast(), 4);
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, OpenOptions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::Duration;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn the_file_has_all_bytes_when_the_writer_has_finished() {
        for directory in [std::env::temp_dir(), "/dev/shm".into()] {
            let path = directory.join(format!("kickvm-writer-{}", std::process::id()));
            let bytes: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
            fs::write(&path, "old").unwrap();
            let mut writer = FileWriter::start(OpenOptions::new().append(true).open(&path).unwrap()).unwrap();
            writer.write_all(&bytes, later()).unwrap();
            writer.finish(later()).unwrap();
            assert!(fs::read(&path).unwrap() == [b"old", &bytes[..]].concat());
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_replacement_is_complete_or_does_not_happen() {
        let directory = std::env::temp_dir().join(format!("kickvm-replacement-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let (path, link) = (directory.join("file"), directory.join("link"));
        fs::write(&path, "a longer text").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("file", &link).unwrap();
        let start =
            || FileWriter::start_replacement(OpenOptions::new().write(true).open(&link).unwrap(), &link).unwrap();
        drop(start());
        let mut cut = start();
        cut.write_all(&[8, 0, 0, 0, 0, 0, 0, 0, b'x'], later()).unwrap();
        assert!(cut.finish(later()).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"a longer text");
        let mut open = File::open(&path).unwrap();
        start().replace_with("short", later()).unwrap();
        let mut old = String::new();
        open.read_to_string(&mut old).unwrap();
        assert_eq!((old.as_str(), fs::read(&path).unwrap().as_slice()), ("a longer text", &b"short"[..]));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2, "no temporary file is left");
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn an_error_of_the_file_is_an_error_of_the_writer() {
        let path = std::env::temp_dir().join(format!("kickvm-writer-error-{}", std::process::id()));
        fs::write(&path, "").unwrap();
        let read_only = || FileWriter::start(File::open(&path).unwrap()).unwrap();
        let mut writer = read_only();
        writer.write_all(b"x", later()).unwrap(); // into the pipe
        assert_eq!(writer.finish(later()).unwrap_err().raw_os_error(), Some(libc::EBADF));
        let error = read_only().write_all(&[0; 1 << 20], later()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        fs::remove_file(&path).unwrap();
    }
}
