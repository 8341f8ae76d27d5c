//! [`Poll`], [`Registry`] and [`Token`]: epoll with waiting and registering kept apart.
//!
//! [`Poll`] waits, which takes `&mut self`: one thread at a time. [`Registry`] registers, which takes `&self`, and
//! can be cloned, so that another thread registers sources *while* `poll` blocks. A [`Token`] is chosen at
//! registration and returned with every event; it identifies the source that is ready.
//!
//! This layer has no callbacks and no ownership. Use it for a `match` on tokens, and the
//! [`EventManager`](super::EventManager) for callbacks.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use super::sys::impl_as_fd;

/// Identifies the source of an event. The number is free to choose, and is often an index into the caller's table.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Token(pub usize);

impl From<usize> for Token {
    fn from(number: usize) -> Self {
        Token(number)
    }
}

impl EpollEvent {
    /// The token that the source was registered with.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits")]
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
    /// Creates a poll without any source.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error: too many open files, or no memory.
    pub fn new() -> io::Result<Self> {
        Ok(Poll { registry: Registry { epoll: Epoll::new()? } })
    }

    /// The half that registers sources.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Waits for events and replaces the content of `events` with them. The capacity of `events` is the largest
    /// number that one call returns.
    ///
    /// A `timeout` of `None` waits without a limit, and zero does not block. Other values are rounded up to whole
    /// milliseconds, and are limited to 24 days, the kernel's maximum. After the timeout, or when a signal handler
    /// ran, `events` is empty and the result is `Ok`.
    ///
    /// # Errors
    ///
    /// Returns `InvalidInput` if `events` has no capacity.
    pub fn poll(&mut self, events: &mut Vec<EpollEvent>, timeout: Option<Duration>) -> io::Result<()> {
        self.registry.epoll.fill(timeout_millis(timeout), events).map(drop)
    }
}

impl_as_fd!(Poll, registry.epoll);

/// Registers sources with the [`Poll`] that it came from, from any thread.
///
/// A registry does not own its sources. Closing the last descriptor of a file ends its registration.
#[derive(Debug)]
pub struct Registry {
    epoll: Epoll,
}

impl Registry {
    /// Watches `source` for `interests`. Its events carry `token`.
    ///
    /// # Errors
    ///
    /// Returns `AlreadyExists` if the source is registered, and the other errors of [`Epoll::ctl`].
    pub fn register(&self, source: &impl AsRawFd, token: impl Into<Token>, interests: EventSet) -> io::Result<()> {
        self.ctl(ControlOperation::Add, source, token.into(), interests)
    }

    /// Changes the interests and the token of `source`. Re-arms a one-shot source.
    ///
    /// # Errors
    ///
    /// Returns `NotFound` if the source is not registered.
    pub fn reregister(&self, source: &impl AsRawFd, token: impl Into<Token>, interests: EventSet) -> io::Result<()> {
        self.ctl(ControlOperation::Modify, source, token.into(), interests)
    }

    /// Stops watching `source`.
    ///
    /// # Errors
    ///
    /// Returns `NotFound` if the source is not registered.
    pub fn deregister(&self, source: &impl AsRawFd) -> io::Result<()> {
        self.ctl(ControlOperation::Delete, source, Token(0), EventSet::empty())
    }

    /// Creates another registry for the same poll, for use by another thread.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error: too many open files.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Registry { epoll: self.epoll.try_clone()? })
    }

    fn ctl(&self, operation: ControlOperation, source: &impl AsRawFd, token: Token, set: EventSet) -> io::Result<()> {
        self.epoll.ctl(operation, source.as_raw_fd(), EpollEvent::new(set, token.0 as u64))
    }
}

/// Converts a timeout to the kernel's unit. It is rounded up, so that no caller wakes early and busy-waits for the
/// rest.
fn timeout_millis(timeout: Option<Duration>) -> i32 {
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
        assert_eq!(timeout_millis(None), -1);
        assert_eq!(timeout_millis(Some(Duration::ZERO)), 0);
        assert_eq!(timeout_millis(Some(Duration::from_nanos(1))), 1);
        assert_eq!(timeout_millis(Some(Duration::from_millis(5))), 5);
        assert_eq!(timeout_millis(Some(Duration::from_micros(5001))), 6);
        assert_eq!(timeout_millis(Some(Duration::MAX)), i32::MAX);
    }
}
