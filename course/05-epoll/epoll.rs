//! epoll(7) and eventfd(2) as safe functions.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{EPOLL_CLOEXEC, c_int, epoll_event};

// ANCHOR: epoll
/// A set of descriptors, and a call that waits until one of them is ready.
pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointer.
        let fd = check(unsafe { libc::epoll_create1(EPOLL_CLOEXEC) })?;
        // SAFETY: the descriptor is new, so nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Adds (EPOLL_CTL_ADD), modifies or deletes a descriptor. The kernel returns `data` with each event.
    pub fn ctl(&self, operation: c_int, fd: RawFd, events: u32, data: u64) -> io::Result<()> {
        let mut event = epoll_event { events, u64: data };
        // SAFETY: the kernel reads the event during the call only.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd, &raw mut event) }).map(drop)
    }

    /// Waits at most `milliseconds`, or without a limit if that is negative. Returns the number of `events` written.
    pub fn wait(&self, milliseconds: c_int, events: &mut [epoll_event]) -> io::Result<usize> {
        let len = c_int::try_from(events.len()).unwrap_or(c_int::MAX);
        // SAFETY: the kernel writes at most `len` events.
        match check(unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), len, milliseconds) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0), // a signal handler ran
            result => result.map(|count| usize::try_from(count).unwrap_or(0)),
        }
    }
}
// ANCHOR_END: epoll

// ANCHOR: eventfd
/// A counter of 64 bits behind a descriptor, which is readable while the counter is not 0.
pub fn eventfd() -> io::Result<File> {
    // SAFETY: the call takes no pointer.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: the descriptor is new, so nothing else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}
// ANCHOR_END: eventfd

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
