//! Exercise 05b: a timeout that is not too short.
//!
//! `epoll_wait` takes milliseconds as an `i32`: negative is no limit, 0 does not wait. A loop that waits for the rest of a
//! deadline spins through the last millisecond if the conversion rounds down.

use std::time::Duration;

/// Converts a timeout for `epoll_wait`. The wait is never shorter than the timeout, unless that exceeds `i32::MAX`.
pub fn milliseconds(timeout: Option<Duration>) -> i32 {
    // TODO: `as_millis` rounds down, and a long timeout becomes 0.
    timeout.map_or(-1, |timeout| i32::try_from(timeout.as_millis()).unwrap_or(0))
}
