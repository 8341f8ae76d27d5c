//! The errors of the event manager.

use std::fmt;
use std::io;

/// An error number of the kernel (`errno(3)`). Unlike [`io::Error`], it can be compared and copied.
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
    /// A request could not be sent, because the manager was dropped.
    ChannelSend,
    /// The manager did not reply: it was dropped, or the request panicked.
    ChannelRecv,
    /// `call_blocking` was called on the thread that would have to reply.
    WouldDeadlock,
    /// An `eventfd(2)` could not be created or written.
    EventFd(Errno),
    /// An `epoll(7)` operation failed.
    Epoll(Errno),
    /// The file descriptor is already registered.
    FdAlreadyRegistered,
    /// The file descriptor is registered by another subscriber.
    NotOwner,
    /// No subscriber has this identifier, or it was removed.
    InvalidId,
    /// The capacity of the ready list is zero, larger than
    /// [`MAX_READY_EVENTS_CAPACITY`](super::MAX_READY_EVENTS_CAPACITY), or larger than the available memory.
    InvalidCapacity,
}

/// The result of an operation of the event manager.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Converts the error of an epoll call.
    pub(super) fn epoll(error: io::Error) -> Self {
        Error::Epoll(error.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::ChannelSend => f.write_str("the event manager was dropped"),
            Error::ChannelRecv => f.write_str("the event manager did not reply"),
            Error::WouldDeadlock => f.write_str("a blocking call on the event loop's own thread would deadlock"),
            Error::EventFd(errno) => write!(f, "cannot use the eventfd: {errno}"),
            Error::Epoll(errno) => write!(f, "cannot use epoll: {errno}"),
            Error::FdAlreadyRegistered => f.write_str("the file descriptor is already registered"),
            Error::NotOwner => f.write_str("the file descriptor is registered by another subscriber"),
            Error::InvalidId => f.write_str("no subscriber has this identifier"),
            Error::InvalidCapacity => f.write_str("the capacity of the ready list is out of range"),
        }
    }
}

// The errno is part of the message and therefore not a source: a printed chain of errors shows it once.
impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::EventFd(errno) | Error::Epoll(errno) => errno.into(),
            other => io::Error::other(other),
        }
    }
}
