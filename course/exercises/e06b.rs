//! Exercise 06b: a descriptor that was closed without `remove`.
//!
//! The kernel then deletes the registration, unless a duplicate of the descriptor exists. The table of the loop still
//! has an entry. The number is soon used again, and the new owner must be able to register it.

use std::collections::HashMap;
use std::io;
use std::os::fd::RawFd;

/// The owner of each registered descriptor number.
#[derive(Default)]
pub struct Owners {
    table: HashMap<RawFd, u32>,
}

impl Owners {
    /// Registers a descriptor. `epoll_add` calls `epoll_ctl` with EPOLL_CTL_ADD, which fails with EEXIST if this number
    /// and file are registered. After an error the table is as before.
    pub fn add(&mut self, fd: RawFd, owner: u32, epoll_add: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        // TODO: an entry of the table does not prove that the number is registered. What does?
        if self.table.contains_key(&fd) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        epoll_add()?;
        self.table.insert(fd, owner);
        Ok(())
    }

    pub fn owner(&self, fd: RawFd) -> Option<u32> {
        self.table.get(&fd).copied()
    }
}
