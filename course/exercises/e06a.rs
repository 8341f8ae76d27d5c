//! Exercise 06a: a stale descriptor in the event loop.
//!
//! One wait returned events of the descriptors 5 and 6. The handler of 5 closes 6, and a new file gets its number. The
//! event of the old 6 must not reach the new one.

use std::collections::HashMap;

/// The registrations of an event loop: the name of the source of each descriptor number.
#[derive(Default)]
pub struct Registrations {
    table: HashMap<u32, &'static str>,
}

impl Registrations {
    /// Registers a descriptor number, or replaces its registration. Returns the data word for epoll.
    pub fn add(&mut self, fd: u32, name: &'static str) -> u64 {
        self.table.insert(fd, name);
        u64::from(fd)
    }

    pub fn remove(&mut self, fd: u32) {
        self.table.remove(&fd);
    }

    /// Returns the source of an event with this data word, or `None` if its registration was removed or replaced.
    pub fn resolve(&self, word: u64) -> Option<&'static str> {
        // TODO: the upper half of the word is free.
        self.table.get(&u32::try_from(word).ok()?).copied()
    }
}
