//! Writes to a file that may block forever: [`FileWriter`].
//!
//! A write to a frozen file system or to a server that does not answer cannot be ended, not even by SIGKILL, and a
//! process ends only when all its threads have ended. So another process writes such a file:
//!
//! ```text
//!   this process ── pipe ──▶ writer process ── write(2) ──▶ file
//!                ◀── pipe ── the error, then end of file
//! ```

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

use super::async_io::{close_all_but, wait_for};

/// Bytes copied at once: the default capacity of a pipe (pipe(7)).
const BLOCK: usize = 64 << 10;

/// A file that is written without blocking for longer than the caller permits.
#[derive(Debug)]
pub struct FileWriter {
    file: File,                         // or a pipe to the process
    process: Option<(Pid, PipeReader)>, // and its errors
    replace: bool,                      // by this process
}

impl FileWriter {
    /// Prepares to write `file`. A regular file on a file system that may block gets a writer process. With `replace` the
    /// first bytes replace the content of the file.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn start(file: File, replace: bool) -> io::Result<Self> {
        let regular = file.metadata()?.is_file();
        let replace = replace && regular;
        if !regular || fstatfs(&file).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC) {
            return Ok(Self { file, process: None, replace });
        }
        let (data, pipe) = io::pipe()?;
        let (errors, status) = io::pipe()?;
        // A key such as Ctrl-C is for this process, which then lets the writer end.
        let mut mask = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))?;
        // SAFETY: the child calls `run` and nothing else.
        let forked = unsafe { fork() };
        if let Ok(ForkResult::Child) = forked {
            // SAFETY: this is the child, and the descriptors are open in it.
            unsafe { run(data.as_raw_fd(), file.as_raw_fd(), status.as_raw_fd(), replace) };
        }
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
        Ok(match forked {
            Ok(ForkResult::Parent { child }) => {
                Self { file: File::from(OwnedFd::from(pipe)), process: Some((child, errors)), replace: false }
            }
            _ => Self { file, process: None, replace }, // the host allows no process
        })
    }

    /// Writes as write(2). A pipe or terminal may block; see [`has_room`](Self::has_room).
    ///
    /// # Errors
    ///
    /// The error of write(2), also of an earlier write.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.replace) {
            self.file.set_len(0)?;
        }
        self.file.write(bytes).map_err(|error| match &mut self.process {
            Some((_, errors)) => error_of(errors).err().unwrap_or(error), // it has ended
            None => error,
        })
    }

    /// Waits, at most for `timeout`, until up to `PIPE_BUF` bytes can be written without blocking, or an error can be
    /// reported.
    pub fn has_room(&self, timeout: Duration) -> bool {
        wait_for(&self.file, libc::POLLOUT, Instant::now() + timeout)
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    ///
    /// The error of write(2), or `TimedOut` if nothing could be written for `timeout`.
    pub fn write_all(&mut self, mut bytes: &[u8], timeout: Duration) -> io::Result<()> {
        while !bytes.is_empty() {
            if !self.has_room(timeout) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let written = self.write(&bytes[..bytes.len().min(libc::PIPE_BUF)])?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Waits until the file has all bytes, at most for `timeout`.
    ///
    /// # Errors
    ///
    /// The error of ftruncate(2) or write(2), or `TimedOut`.
    pub fn finish(self, timeout: Duration) -> io::Result<()> {
        drop(self.file); // the process reads the end of the pipe
        let Some((process, mut errors)) = self.process else { return Ok(()) };
        if !wait_for(&errors, libc::POLLIN, Instant::now() + timeout) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let result = error_of(&mut errors);
        let _ = waitpid(process, None); // it has closed its file, and does nothing more that may block
        result
    }
}

/// The error that the writer process has ended with.
fn error_of(errors: &mut PipeReader) -> io::Result<()> {
    let mut errno = [0; 4];
    match errors.read(&mut errno)? {
        0 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
    }
}

impl AsRawFd for FileWriter {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl AsFd for FileWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The writer process.
///
/// # Safety
///
/// Only for a forked child. It makes only system calls, as another thread may have held any lock.
unsafe fn run(data: RawFd, file: RawFd, status: RawFd, mut replace: bool) -> ! {
    let mut kept = [data, file, status];
    kept.sort_unstable();
    // SAFETY: this process uses no other descriptor. The buffer is a live local of BLOCK bytes; `written..len` is in it.
    unsafe {
        close_all_but(&kept);
        libc::prctl(libc::PR_SET_NAME, c"kickvm-writer".as_ptr());
        let mut block = [0u8; BLOCK];
        let (mut failed, mut len) = (false, 1);
        while !failed && len > 0 {
            len = libc::read(data, block.as_mut_ptr().cast(), BLOCK);
            let mut written = 0;
            failed = len > 0 && std::mem::take(&mut replace) && libc::ftruncate(file, 0) < 0;
            while written < len && !failed {
                let rest = block.as_ptr().offset(written).cast();
                let count = libc::write(file, rest, (len - written).cast_unsigned());
                failed = count < 0;
                written += count;
            }
        }
        let errno = *libc::__errno_location();
        libc::close(file);
        if failed {
            libc::write(status, (&raw const errno).cast(), 4);
        }
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, OpenOptions};

    const TIMEOUT: Duration = Duration::from_secs(30);

    #[test]
    fn the_file_has_all_bytes_when_the_writer_has_finished() {
        for directory in [std::env::temp_dir(), "/dev/shm".into()] {
            let path = directory.join(format!("kickvm-writer-{}", std::process::id()));
            let bytes: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
            for (replace, before) in [(false, "old"), (true, "a longer text")] {
                fs::write(&path, before).unwrap();
                let file = OpenOptions::new().append(!replace).write(true).open(&path).unwrap();
                let mut writer = FileWriter::start(file, replace).unwrap();
                assert_eq!(fs::read(&path).unwrap(), before.as_bytes(), "nothing is replaced before there are bytes");
                writer.write_all(&bytes, TIMEOUT).unwrap();
                writer.finish(TIMEOUT).unwrap();
                let kept = if replace { "" } else { before };
                assert!(fs::read(&path).unwrap() == [kept.as_bytes(), &bytes].concat());
            }
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn an_error_of_the_file_is_an_error_of_the_writer() {
        let path = std::env::temp_dir().join(format!("kickvm-writer-error-{}", std::process::id()));
        fs::write(&path, "").unwrap();
        let read_only = || FileWriter::start(File::open(&path).unwrap(), false).unwrap();
        let mut writer = read_only();
        writer.write_all(b"x", TIMEOUT).unwrap(); // into the pipe
        assert_eq!(writer.finish(TIMEOUT).unwrap_err().raw_os_error(), Some(libc::EBADF));
        let error = read_only().write_all(&[0; 1 << 20], TIMEOUT).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        fs::remove_file(&path).unwrap();
    }
}
