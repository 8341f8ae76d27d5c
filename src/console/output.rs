//! Output files: written only as far as that does not block, so that a reader that stops stalls nothing else.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::Drain;
use super::terminal::open_nonblocking;
use crate::event::{EventOps, EventSet, Events};
use crate::sys::file_writer::FileWriter;
use crate::sys::os_error::is_transient;

/// The least time for closing a file, when other output has used up the time.
const MIN_TIME: Duration = Duration::from_millis(50);

/// An open destination, and bytes that wait for it.
#[derive(Debug)]
pub struct OutputFile {
    file: Option<FileWriter>,
    target: Option<File>, // opened, and not written before `truncate`
    /// Bytes to write. The first of them may have been written already.
    pub pending: Vec<u8>,
    written: usize,
    waiting: bool, // registered, for the file being writable
    error: Option<io::Error>,
    unterminated: bool, // the last byte is not a line feed
}

impl OutputFile {
    fn new(file: Option<FileWriter>, target: Option<File>) -> Self {
        Self { file, target, pending: Vec::new(), written: 0, waiting: false, error: None, unterminated: false }
    }

    /// A destination that discards everything.
    pub fn discard() -> Self {
        Self::new(None, None)
    }

    /// Opens or creates the file at `path`. To be followed by [`truncate`](Self::truncate).
    ///
    /// # Errors
    ///
    /// Those of [`open_to_write`].
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::new(None, Some(open_to_write(path)?)))
    }

    /// One of this process's output streams.
    ///
    /// # Errors
    ///
    /// The stream is closed, or the host has no more descriptors.
    pub fn stream(stream: &(impl AsFd + AsRawFd)) -> io::Result<Self> {
        let file = open_nonblocking(stream, OpenOptions::new().write(true))?;
        Ok(Self::new(Some(FileWriter::start(file)?), None))
    }

    /// Empties a regular file, unless it is one of `inputs`, the files that the guest is loaded from.
    ///
    /// # Errors
    ///
    /// The file is one of `inputs`, or cannot be truncated.
    pub fn truncate<'a>(&mut self, mut inputs: impl Iterator<Item = &'a Path>) -> io::Result<()> {
        let Some(file) = self.target.take() else { return Ok(()) };
        let own = file.metadata()?;
        if own.is_file() && inputs.any(|path| is_same_file(&own, path)) {
            return Err(io::Error::other("it is also used as the kernel, an initramfs or a disk"));
        }
        if own.is_file() {
            file.set_len(0)?;
        }
        self.file = Some(FileWriter::start(file)?);
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
            if !file.has_room(Instant::now()) {
                return Ok(false);
            }
            let end = self.pending.len().min(self.written + libc::PIPE_BUF);
            match file.write(&self.pending[self.written..end]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => self.written += len,
                Err(error) if is_transient(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.unterminated = self.pending.last().map_or(self.unterminated, |last| *last != b'\n');
        self.pending.clear();
        self.written = 0;
        Ok(true)
    }

    /// Writes pending bytes as far as that does not block. If some remain, epoll reports an event with `data` when the
    /// file is writable. Returns whether none remain.
    pub fn write_or_wait(&mut self, ops: &mut EventOps, data: u32) -> bool {
        let mut result = self.write_some();
        let blocked = matches!(result, Ok(false));
        if let Some(file) = self.file.as_ref().filter(|_| blocked != self.waiting) {
            self.waiting = blocked;
            let events = Events::with_data(file.file(), data, EventSet::OUT);
            let registered = if blocked { ops.add(events) } else { ops.remove(events) };
            result = result.and_then(|complete| registered.map(|()| complete).map_err(io::Error::other));
        }
        self.keep_error(result)
    }

    /// Writes all pending bytes, as long as `drain` allows.
    pub fn write_all(&mut self, drain: &mut Drain<'_>) {
        let mut complete = false;
        while !complete {
            let before = self.written;
            let mut result = self.write_some();
            if self.written > before {
                drain.on_progress();
            }
            if let (Ok(false), Some(file)) = (&result, &self.file) {
                result = drain.wait_for_room(file.file().as_fd()).map(|()| false);
            }
            complete = self.keep_error(result);
        }
    }

    /// Closes the file after all is written, and waits until it has the bytes, as long as `drain` allows.
    pub fn close(&mut self, drain: &mut Drain<'_>) {
        drain.unterminated |= self.unterminated || self.error.is_some();
        let closed =
            self.file.take().map_or(Ok(()), |file| file.finish(Instant::now() + drain.time_left().max(MIN_TIME)));
        self.keep_error(closed.map(|()| true));
    }

    /// Keeps an error. From then on everything is discarded.
    fn keep_error(&mut self, result: io::Result<bool>) -> bool {
        result.unwrap_or_else(|error| {
            *self = Self { error: Some(error), ..Self::discard() };
            true
        })
    }

    /// The error of write(2), `TimedOut`, or the error of the registration.
    pub fn error(&self) -> Option<&io::Error> {
        self.error.as_ref()
    }
}

/// Whether output was given up, because its reader took nothing. The ETIMEDOUT of a file is another error.
pub fn is_given_up(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none()
}

/// Whether the file at `path` is the one that has the metadata `own`.
pub fn is_same_file(own: &Metadata, path: &Path) -> bool {
    path.metadata().is_ok_and(|other| (other.dev(), other.ino()) == (own.dev(), own.ino()))
}

/// Opens or creates the file at `path`, with its content.
///
/// # Errors
///
/// The file cannot be opened, or it is a FIFO that no process reads.
pub fn open_to_write(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().write(true))
}

/// The same, to write behind the content.
///
/// # Errors
///
/// Those of [`open_to_write`].
pub fn open_to_append(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().append(true))
}

fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let opened = options.create(true).truncate(false).custom_flags(libc::O_NONBLOCK).open(path);
    opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ENXIO) => io::Error::other("no process reads this FIFO, or its device is missing"), // fifo(7)
        _ => error,
    })
}

/// Checks that the regular file that has the metadata `own` is neither standard output nor standard error.
///
/// # Errors
///
/// It is one of them.
pub fn is_no_stream(own: &Metadata) -> io::Result<()> {
    for (stream, name) in [("/proc/self/fd/1", "standard output"), ("/proc/self/fd/2", "standard error")] {
        if own.is_file() && is_same_file(own, Path::new(stream)) {
            return Err(io::Error::other(format!("it is where {name} goes")));
        }
    }
    Ok(())
}
