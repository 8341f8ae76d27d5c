//! Writes to a file that may block forever: [`FileWriter`].
//!
//! A write to a frozen file system or to a server that does not answer cannot be ended, not even by SIGKILL, and a
//! process ends only when all its threads have ended. So another process writes such a file:
//!
//! ```text
//!   this process ── pipe ──▶ writer process ── write(2) ──▶ file
//!                ◀── pipe ── 0 or the error
//! ```

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Instant;

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::async_io::{close_all_but, wait_for};

/// Bytes copied at once: the default capacity of a pipe (pipe(7)).
const BLOCK: usize = 64 << 10;

/// A file that is written without blocking for longer than the caller permits.
#[derive(Debug)]
pub struct FileWriter {
    file: File, // or a pipe to the writer process
    process: Option<Process>,
    replace: bool, // the content, by this process
}

impl FileWriter {
    /// Prepares to write `file`. A regular file on a file system that may block gets a writer process. With `replace`
    /// the first bytes replace the content of the file.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn start(file: File, replace: bool) -> io::Result<Self> {
        let regular = file.metadata()?.is_file();
        let direct = |file| Self { file, process: None, replace: replace && regular };
        if !regular || fstatfs(&file).is_ok_and(|statistics| statistics.filesystem_type() == TMPFS_MAGIC) {
            return Ok(direct(file));
        }
        let ((data, pipe), (status, result)) = (io::pipe()?, io::pipe()?);
        // A key such as Ctrl-C is for this process, which then lets the writer end.
        let mut mask = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))?;
        // SAFETY: the child calls `run` and nothing else.
        let forked = unsafe { fork() };
        if let Ok(ForkResult::Child) = forked {
            // SAFETY: this is the child, and the descriptors are open in it.
            unsafe { run(data.as_raw_fd(), file.as_raw_fd(), result.as_raw_fd(), replace) };
        }
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
        let Ok(ForkResult::Parent { child }) = forked else { return Ok(direct(file)) }; // the host allows no process
        Ok(Self { file: File::from(OwnedFd::from(pipe)), process: Some(Process(child, status)), replace: false })
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
        if std::mem::take(&mut self.replace) {
            self.file.set_len(0)?;
        }
        let written = self.file.write(bytes);
        match (&written, &mut self.process) {
            // The process has ended.
            (Err(error), Some(process)) if error.kind() == io::ErrorKind::BrokenPipe => process.status().and(written),
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

    /// Waits until the file has all bytes, at most until `deadline`.
    ///
    /// # Errors
    ///
    /// The error of ftruncate(2), write(2) or close(2), or `TimedOut`.
    pub fn finish(self, deadline: Instant) -> io::Result<()> {
        drop(self.file); // the process reads the end of the pipe
        match self.process {
            None => Ok(()),
            Some(mut process) if wait_for(&process.1, libc::POLLIN, deadline) => process.status(),
            Some(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// The writer process, and the pipe with its status.
#[derive(Debug)]
struct Process(Pid, PipeReader);

impl Process {
    /// Waits for the end of the process, and returns its error.
    fn status(&mut self) -> io::Result<()> {
        let mut errno = [0; 4];
        let read = self.1.read_exact(&mut errno);
        let _ = waitpid(self.0, None); // it has closed the file, and does nothing more that may block
        read.map_err(|_| io::Error::other("the process that writes it was killed"))?;
        match i32::from_ne_bytes(errno) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = waitpid(self.0, Some(WaitPidFlag::WNOHANG)); // it may have ended after an error
    }
}

/// The writer process. It ends with its error, or 0, in `status`.
///
/// # Safety
///
/// Only for a forked child. It makes only system calls, as another thread may have held any lock.
unsafe fn run(data: RawFd, file: RawFd, status: RawFd, mut replace: bool) -> ! {
    let mut kept = [data, file, status];
    kept.sort_unstable();
    // SAFETY: this process uses no other descriptor. The buffer is a live local of BLOCK bytes, and `written..len` is
    // in it.
    unsafe {
        close_all_but(&kept);
        libc::prctl(libc::PR_SET_NAME, c"kickvm-writer".as_ptr());
        let mut block = [0u8; BLOCK];
        let mut len = 1;
        while len > 0 {
            len = libc::read(data, block.as_mut_ptr().cast(), BLOCK);
            if len > 0 && std::mem::take(&mut replace) && libc::ftruncate(file, 0) < 0 {
                len = -1;
            }
            let mut written = 0;
            while written < len {
                let rest = block.as_ptr().offset(written).cast();
                match libc::write(file, rest, (len - written).cast_unsigned()) {
                    count if count > 0 => written += count,
                    _ => len = -1, // 0 bytes are no progress
                }
            }
        }
        len = len.min(libc::close(file) as isize);
        let errno = if len < 0 { (*libc::__errno_location()).max(1) } else { 0 };
        libc::write(status, (&raw const errno).cast(), 4);
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, OpenOptions};
    use std::time::Duration;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

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
                writer.write_all(&bytes, later()).unwrap();
                writer.finish(later()).unwrap();
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
        writer.write_all(b"x", later()).unwrap(); // into the pipe
        assert_eq!(writer.finish(later()).unwrap_err().raw_os_error(), Some(libc::EBADF));
        let error = read_only().write_all(&[0; 1 << 20], later()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        fs::remove_file(&path).unwrap();
    }
}
