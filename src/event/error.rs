//! What can go wrong in the event core.

use std::fmt;
use std::io;

/// An error number of the kernel (`errno(3)`). Unlike [`io::Error`] it can be compared and copied.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Errno(i32);

impl Errno {
    /// Wraps an error number such as `libc::EBADF`.
    pub const fn new(errno: i32) -> Self {
        Errno(errno)
    }

    /// The error number, or 0 if the error did not come from the kernel.
    pub const fn errno(self) -> i32 {
        self.0
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        Errno(error.raw_os_error().unwrap_or(0))
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        io::Error::from_raw_os_error(errno.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from(*self).fmt(f)
    }
}

impl std::error::Error for Errno {}

/// Why an operation of the [`EventManager`](super::EventManager) failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A message could not be sent to the manager, because the manager is gone.
    ChannelSend,
    /// No answer came from the manager: it was dropped, or the closure panicked.
    ChannelRecv,
    /// `call_blocking` on the thread that would have to answer.
    WouldDeadlock,
    /// An `eventfd(2)` could not be made or written.
    EventFd(Errno),
    /// The kernel refused an `epoll(7)` operation.
    Epoll(Errno),
    /// The file descriptor is registered already.
    FdAlreadyRegistered,
    /// The file descriptor is registered by another subscriber.
    NotOwner,
    /// No subscriber has this identifier (any more).
    InvalidId,
    /// The capacity of the ready list is zero, above
    /// [`MAX_READY_EVENTS_CAPACITY`](super::MAX_READY_EVENTS_CAPACITY), or more than there is memory for.
    InvalidCapacity,
}

/// A result of the event core.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Takes an `epoll` call's error over.
    pub(super) fn epoll(error: io::Error) -> Self {
        Error::Epoll(error.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::ChannelSend => f.write_str("The event manager is gone"),
            Error::ChannelRecv => f.write_str("The event manager did not answer"),
            Error::WouldDeadlock => f.write_str("A blocking call from the event loop to itself would never return"),
            Error::EventFd(errno) => write!(f, "Cannot use the eventfd: {errno}"),
            Error::Epoll(errno) => write!(f, "Cannot use epoll: {errno}"),
            Error::FdAlreadyRegistered => f.write_str("The file descriptor is registered already"),
            Error::NotOwner => f.write_str("The file descriptor is registered by another subscriber"),
            Error::InvalidId => f.write_str("There is no subscriber with this identifier"),
            Error::InvalidCapacity => f.write_str("The capacity of the ready list is out of range"),
        }
    }
}

// The errno is part of the message, so it is no source of its own: whoever prints the chain sees it once.
impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::EventFd(errno) | Error::Epoll(errno) => errno.into(),
            other => io::Error::other(other),
        }
    }
}
