//! Solution of exercise 05a: a loop that spins.

/// The events to register the eventfd for.
pub fn interest() -> u32 {
    libc::EPOLLIN as u32 | libc::EPOLLET.cast_unsigned()
}
