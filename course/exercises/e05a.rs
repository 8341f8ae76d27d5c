//! Exercise 05a: a loop that spins.
//!
//! An exit handler registers an eventfd with this interest and never reads it. The first kick makes the loop spin: each
//! wait returns at once, and the process uses a whole processor.

/// The events to register the eventfd for.
pub fn interest() -> u32 {
    // TODO: one report for each write, without a read.
    libc::EPOLLIN as u32
}
