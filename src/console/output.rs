//! Where the guest's output goes: written only when that will not block, so that a reader who sleeps stalls nobody else.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::vmm::{ConsoleConfig, Error};

/// A pipe that is writable at all takes this much without blocking (`PIPE_BUF`, pipe(7)).
const CHUNK: usize = 4096;
/// How long the last output may wait for a reader once somebody has asked to stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// An open destination, and bytes that wait for it.
#[derive(Debug)]
pub struct Stdout {
    file: File,
    /// Bytes to write; the first `written` of them are done.
    pub pending: Vec<u8>,
    written: usize,
}

impl Stdout {
    /// Opens what `console` names; `None` if output goes nowhere.
    pub fn open(console: &ConsoleConfig) -> Result<Option<Self>, Error> {
        let file = match console {
            ConsoleConfig::None => return Ok(None),
            ConsoleConfig::Stdio | ConsoleConfig::Virtio => {
                return Self::standard(&io::stdout(), "use standard output").map(Some);
            }
            ConsoleConfig::Stderr => return Self::standard(&io::stderr(), "use standard error").map(Some),
            ConsoleConfig::File(path) => OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false) // see `begin`
                .custom_flags(libc::O_NONBLOCK) // a FIFO without a reader is an error, not a hang
                .open(path)
                .map_err(|source| Error::ConsoleFile { path: path.clone(), source })?,
        };
        Ok(Some(Self { file, pending: Vec::new(), written: 0 }))
    }

    /// One of this program's own output streams; `action` is what fails if that cannot be had.
    pub fn standard(stream: &(impl AsFd + AsRawFd + IsTerminal), action: &'static str) -> Result<Self, Error> {
        let file = standard(stream).map_err(Error::host(action))?;
        Ok(Self { file, pending: Vec::new(), written: 0 })
    }

    /// Empties a console file, now that the guest is loaded; unless it is one of `inputs`, the files it was loaded from.
    pub fn begin<'a>(&self, mut inputs: impl Iterator<Item = &'a Path>) -> io::Result<()> {
        let own = self.file.metadata()?;
        let same =
            |path: &Path| path.metadata().is_ok_and(|other| (other.dev(), other.ino()) == (own.dev(), own.ino()));
        match own.is_file() {
            true if inputs.any(same) => Err(io::Error::other("It is what the guest is made of")),
            true => self.file.set_len(0),
            false => Ok(()),
        }
    }

    /// Writes what is pending as far as that goes without blocking. Returns whether all is written.
    pub fn write_some(&mut self) -> io::Result<bool> {
        while self.written < self.pending.len() {
            if !ready(&mut [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO)? {
                return Ok(false);
            }
            let end = self.pending.len().min(self.written + CHUNK);
            match self.file.write(&self.pending[self.written..end]) {
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

    /// Writes all that is pending, until `deadline`, or however long the reader takes; but no longer than a second from
    /// when `stop` is readable.
    pub fn write_all(&mut self, stop: BorrowedFd<'_>, mut deadline: Option<Instant>) -> io::Result<()> {
        let mut told = false;
        while !self.write_some()? {
            let timeout = match deadline {
                None => PollTimeout::NONE,
                Some(deadline) => match Instant::now() {
                    now if now < deadline => PollTimeout::try_from(deadline - now).unwrap_or(PollTimeout::MAX),
                    _ => return Err(io::ErrorKind::TimedOut.into()),
                },
            };
            let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT), PollFd::new(stop, PollFlags::POLLIN)];
            ready(if told { &mut fds[..1] } else { &mut fds[..] }, timeout)?;
            if !told && fds[1].any() == Some(true) {
                told = true;
                let soon = Instant::now() + DRAIN_TIMEOUT;
                deadline = Some(deadline.map_or(soon, |deadline| deadline.min(soon)));
            }
        }
        Ok(())
    }
}

/// Whether there is room in `file`, or an error to be had, within `patience`.
pub fn has_room(file: BorrowedFd<'_>, patience: Duration) -> bool {
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut [PollFd::new(file, PollFlags::POLLOUT)], timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            result => return result.map_or(true, |count| count > 0),
        }
    }
}

/// Whether any of `fds` is ready within `timeout`.
fn ready(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> io::Result<bool> {
    match poll(fds, timeout) {
        Ok(count) => Ok(count > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// An output stream. A terminal is opened anew, to be non-blocking for this program alone: one that is stopped with Ctrl-S
/// or read by nobody would block a write of any length.
fn standard(stream: &(impl AsFd + AsRawFd + IsTerminal)) -> io::Result<File> {
    if stream.is_terminal() {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
        if let Ok(file) = OpenOptions::new().write(true).custom_flags(flags).open(path) {
            return Ok(file);
        }
    }
    Ok(File::from(stream.as_fd().try_clone_to_owned()?))
}

impl AsRawFd for Stdout {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
