//! Solution of exercise 06a: a stale descriptor in the event loop.

use std::collections::HashMap;

/// The registrations of an event loop: the generation and the name of the source of each descriptor number.
#[derive(Default)]
pub struct Registrations {
    table: HashMap<u32, (u32, &'static str)>,
    generation: u32,
}

impl Registrations {
    /// Registers a descriptor number, or replaces its registration. Returns the data word for epoll.
    pub fn add(&mut self, fd: u32, name: &'static str) -> u64 {
        self.generation = self.generation.wrapping_add(1);
        self.table.insert(fd, (self.generation, name));
        u64::from(self.generation) << 32 | u64::from(fd)
    }

    pub fn remove(&mut self, fd: u32) {
        self.table.remove(&fd);
    }

    /// Returns the source of an event with this data word, or `None` if its registration was removed or replaced.
    pub fn resolve(&self, word: u64) -> Option<&'static str> {
        let (generation, name) = self.table.get(&u32::try_from(word & 0xffff_ffff).ok()?)?;
        (u64::from(*generation) == word >> 32).then_some(*name)
    }
}
