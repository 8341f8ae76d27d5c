//! Poll, Registry and Token: epoll with the two halves kept apart, waiting and registering.
//!
//! [`Poll`] waits, which takes `&mut`: one thread at a time. [`Registry`] registers, which takes `&`, and can be
//! cloned and given to another thread, so that interest can be registered *while* `poll` blocks. A [`Token`] is
//! what you choose at registration and get back with every event; it says which source is ready.
//!
//! There is no dispatching here and no ownership: who wants callbacks uses the
//! [`EventManager`](super::EventManager), who wants a `match` on tokens uses this.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use super::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Says which source an event belongs to. Any number will do, often an index into a table of the caller's.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Token(pub usize);

impl From<usize> for Token {
    fn from(number: usize) -> Self {
        Token(number)
    }
}

impl EpollEvent {
    /// The token its source was registered with.
    #[inline]
    pub const fn token(&self) -> Token {
        Token(self.data() as usize)
    }
}

/// Waits for events.
///
/// ```
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
/// use kickvm::event::{EventSet, Poll, Token};
///
/// # fn main() -> std::io::Result<()> {
/// let (mut near, far) = UnixStream::pair()?;
/// let mut queue = Poll::new()?;
/// queue.registry().register(&far, Token(7), EventSet::IN)?;
///
/// near.write_all(b"hello")?;
/// let mut events = Vec::with_capacity(8);
/// queue.poll(&mut events, None)?;
/// assert_eq!(events[0].token(), Token(7));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Poll {
    registry: Registry,
}

impl Poll {
    /// Makes a poll that watches nothing yet.
    ///
    /// # Errors
    ///
    /// The kernel's: too many open files, or no memory.
    pub fn new() -> io::Result<Self> {
        Ok(Poll { registry: Registry { epoll: Epoll::new()? } })
    }

    /// The half that registers.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Waits for events and puts them into `events`, in place of what was there; its capacity is the most that one
    /// call returns.
    ///
    /// A `timeout` of `None` waits for ever, zero only looks, and anything else is rounded up to whole milliseconds
    /// (and down to 24 days, the longest the kernel takes). When time runs out, or a signal handler ran, `events` is
    /// empty and the result is `Ok`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` when `events` has no capacity.
    pub fn poll(&mut self, events: &mut Vec<EpollEvent>, timeout: Option<Duration>) -> io::Result<()> {
        match self.registry.epoll.fill(milliseconds(timeout), events) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }
}

impl AsFd for Poll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.registry.epoll.as_fd()
    }
}

impl AsRawFd for Poll {
    fn as_raw_fd(&self) -> RawFd {
        self.registry.epoll.as_raw_fd()
    }
}

/// Registers sources with the [`Poll`] it came from, from any thread.
///
/// A source is not owned. Closing the last descriptor of a file ends its registration.
#[derive(Debug)]
pub struct Registry {
    epoll: Epoll,
}

impl Registry {
    /// Watches `source` for `interests`; its events will carry `token`.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` when the source is registered, and the kernel's other ones (see [`Epoll::ctl`]).
    pub fn register(&self, source: &impl AsRawFd, token: impl Into<Token>, interests: EventSet) -> io::Result<()> {
        self.ctl(ControlOperation::Add, source, token.into(), interests)
    }

    /// Changes what `source` is watched for, and its token. Re-arms a one-shot source.
    ///
    /// # Errors
    ///
    /// `NotFound` when the source is not registered.
    pub fn reregister(&self, source: &impl AsRawFd, token: impl Into<Token>, interests: EventSet) -> io::Result<()> {
        self.ctl(ControlOperation::Modify, source, token.into(), interests)
    }

    /// Stops watching `source`.
    ///
    /// # Errors
    ///
    /// `NotFound` when the source is not registered.
    pub fn deregister(&self, source: &impl AsRawFd) -> io::Result<()> {
        self.ctl(ControlOperation::Delete, source, Token(0), EventSet::empty())
    }

    /// Makes another registry for the same poll, to give to another thread.
    ///
    /// # Errors
    ///
    /// The kernel's: too many open files.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Registry { epoll: self.epoll.try_clone()? })
    }

    fn ctl(&self, operation: ControlOperation, source: &impl AsRawFd, token: Token, set: EventSet) -> io::Result<()> {
        self.epoll.ctl(operation, source.as_raw_fd(), EpollEvent::new(set, token.0 as u64))
    }
}

/// A timeout in the kernel's unit. Rounded up, so that nobody wakes before the time and spins towards it.
fn milliseconds(timeout: Option<Duration>) -> i32 {
    match timeout {
        None => -1,
        Some(timeout) => i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_rounded_up() {
        assert_eq!(milliseconds(None), -1);
        assert_eq!(milliseconds(Some(Duration::ZERO)), 0);
        assert_eq!(milliseconds(Some(Duration::from_nanos(1))), 1);
        assert_eq!(milliseconds(Some(Duration::from_millis(5))), 5);
        assert_eq!(milliseconds(Some(Duration::from_micros(5001))), 6);
        assert_eq!(milliseconds(Some(Duration::MAX)), i32::MAX);
    }
}
