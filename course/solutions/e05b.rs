//! Solution of exercise 05b: a timeout that is not too short.

use std::time::Duration;

/// Converts a timeout for `epoll_wait`. The wait is never shorter than the timeout, unless that exceeds `i32::MAX`.
pub fn milliseconds(timeout: Option<Duration>) -> i32 {
    let Some(timeout) = timeout else { return -1 };
    i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
}
