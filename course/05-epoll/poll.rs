//! `Poll`, `Registry` and `Token`: waiting and registering are two types.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use libc::epoll_event;

use super::epoll::Epoll;

// ANCHOR: poll
/// The caller's number for a source of events.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Token(pub u64);

/// Registers sources. It takes `&self`, and a clone may be used on another thread.
#[derive(Clone)]
pub struct Registry(Arc<Epoll>);

impl Registry {
    pub fn register(&self, source: &impl AsRawFd, token: Token, events: u32) -> io::Result<()> {
        self.0.ctl(libc::EPOLL_CTL_ADD, source.as_raw_fd(), events, token.0)
    }
}

/// Waits. It takes `&mut self`, so only one thread does.
pub struct Poll {
    registry: Registry,
}

impl Poll {
    pub fn new() -> io::Result<Self> {
        Ok(Self { registry: Registry(Arc::new(Epoll::new()?)) })
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Waits for an event and returns the tokens of all ready sources.
    pub fn poll(&mut self) -> io::Result<Vec<Token>> {
        let mut events = [epoll_event { events: 0, u64: 0 }; 16];
        let count = self.registry.0.wait(-1, &mut events)?;
        Ok(events[..count].iter().map(|event| Token(event.u64)).collect())
    }
}
// ANCHOR_END: poll
