//! Output files: written only as far as that does not block, so that a reader that stops stalls nothing else.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollTimeout, poll};

use super::Drain;
use super::terminal::open_anew;
use crate::event::{EventOps, EventSet, Events};
use crate::sys::file_writer::FileWriter;

/// An open destination, and bytes that wait for it.
#[derive(Debug)]
pub struct OutputFile {
    file: Option<FileWriter>,
    target: Option<File>, // opened, and not written before `truncate`
    /// Bytes to write. The first of them may have been written already.
    pub pending: Vec<u8>,
    written: usize,
    waiting: bool, // registered, for the file being writable
}

impl OutputFile {
    fn new(file: Option<FileWriter>, target: Option<File>) -> Self {
        Self { file, target, pending: Vec::new(), written: 0, waiting: false }
    }

    /// A destination that discards everything.
    pub fn discard() -> Self {
        Self::new(None, None)
    }

    /// Opens or creates the file at `path`. To be followed by [`truncate`](Self::truncate).
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or it is a FIFO that no process reads (`ENXIO`, fifo(7)).
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).custom_flags(libc::O_NONBLOCK).open(path)?;
        Ok(Self::new(None, Some(file)))
    }

    /// One of this process's output streams. A terminal is opened anew, to be non-blocking for this process alone: one
    /// that is stopped with Ctrl-S would block a write of any length.
    ///
    /// # Errors
    ///
    /// The stream is closed, or the host has no more descriptors or processes.
    pub fn stream(stream: &(impl AsFd + AsRawFd + IsTerminal)) -> io::Result<Self> {
        let own = stream.is_terminal().then(|| open_anew(stream, OpenOptions::new().write(true)));
        let file = match own {
            Some(Ok(own)) => own,
            _ => File::from(stream.as_fd().try_clone_to_owned()?),
        };
        Ok(Self::new(Some(FileWriter::start(file, false)?), None))
    }

    /// Empties a regular file, unless it is one of `inputs`, the files that the guest is loaded from.
    ///
    /// # Errors
    ///
    /// The file is one of `inputs`, or cannot be truncated.
    pub fn truncate<'a>(&mut self, mut inputs: impl Iterator<Item = &'a Path>) -> io::Result<()> {
        let Some(file) = self.target.take() else { return Ok(()) };
        let own = file.metadata()?;
        let same =
            |path: &Path| path.metadata().is_ok_and(|other| (other.dev(), other.ino()) == (own.dev(), own.ino()));
        if own.is_file() && inputs.any(same) {
            return Err(io::Error::other("it is also used as the kernel, an initramfs or a disk"));
        }
        if own.is_file() {
            file.set_len(0)?;
        }
        self.file = Some(FileWriter::start(file, false)?);
        Ok(())
    }

    /// Whether nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Writes pending bytes as far as that does not block. Returns whether all are written.
    ///
    /// # Errors
    ///
    /// The error of write(2).
    fn write_some(&mut self) -> io::Result<bool> {
        while let Some(file) = &mut self.file
            && self.written < self.pending.len()
        {
            if !file.has_room(Duration::ZERO) {
                return Ok(false);
            }
            let end = self.pending.len().min(self.written + libc::PIPE_BUF);
            match file.write(&self.pending[self.written..end]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => self.written += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.pending.clear();
        self.written = 0;
        Ok(true)
    }

    /// Writes pending bytes as far as that does not block. If some remain, epoll reports an event with `data` when the
    /// file is writable. Returns whether all are written.
    ///
    /// # Errors
    ///
    /// The error of write(2), or the file cannot be registered.
    pub fn write_or_wait(&mut self, ops: &mut EventOps, data: u32) -> io::Result<bool> {
        let complete = self.write_some()?;
        if complete == self.waiting {
            let events = Events::with_data(self, data, EventSet::OUT);
            if complete { ops.remove(events) } else { ops.add(events) }.map_err(io::Error::other)?;
            self.waiting = !complete;
        }
        Ok(complete)
    }

    /// Closes the file after all is written, and waits until it has the bytes, as long as `drain` allows.
    ///
    /// # Errors
    ///
    /// The error of an earlier write(2), or `TimedOut`.
    pub fn close(&mut self, drain: &Drain<'_>) -> io::Result<()> {
        self.file.take().map_or(Ok(()), |file| file.finish(drain.time_left()))
    }

    /// Writes all pending bytes, as long as `drain` allows.
    ///
    /// # Errors
    ///
    /// The error of write(2), or `TimedOut`.
    pub fn write_all(&mut self, drain: &mut Drain<'_>) -> io::Result<()> {
        loop {
            let before = self.written;
            if self.write_some()? {
                return Ok(());
            }
            if self.written > before {
                drain.on_progress();
            }
            if let Some(file) = &self.file {
                drain.wait_for_room(file.as_fd())?;
            }
        }
    }
}

/// Whether any of `fds` is ready within `timeout`.
pub(super) fn ready(fds: &mut [PollFd<'_>], timeout: Duration) -> io::Result<bool> {
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(fds, timeout) {
            Err(Errno::EINTR) => {}
            result => return Ok(result? > 0),
        }
    }
}

impl AsRawFd for OutputFile {
    /// The file's descriptor, or -1 if output is discarded.
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}
