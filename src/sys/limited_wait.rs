//! Waits with a limit for what another thread or process does.
//!
//! The limit is divided into steps. On a host that stops this process for a while, the time of one step is over, and
//! not that of the other thread.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

const STEPS: u32 = 10;

/// Waits until poll(2) reports `events` or an error of `source`, at most until `deadline`. Returns whether it does.
pub fn wait_for(source: &impl AsRawFd, events: libc::c_short, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let step = i32::try_from((left / STEPS).as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
    for _ in 0..if step == 0 { 1 } else { STEPS } {
        let mut list = libc::pollfd { fd: source.as_raw_fd(), events, revents: 0 };
        // SAFETY: the list has one entry, which is a live local.
        match unsafe { libc::poll(&mut list, 1, step) } {
            0 => {}
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return true, // an error is reported by the call that follows
        }
    }
    false
}

/// Waits for a message, at most for `limit`.
///
/// # Errors
///
/// Those of [`Receiver::recv_timeout`].
pub fn receive<T>(receiver: &Receiver<T>, limit: Duration) -> Result<T, RecvTimeoutError> {
    let mut received = Err(RecvTimeoutError::Timeout);
    for _ in 0..STEPS {
        received = receiver.recv_timeout(limit / STEPS);
        if !matches!(received, Err(RecvTimeoutError::Timeout)) {
            break;
        }
    }
    received
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::mpsc::channel;

    #[test]
    fn a_wait_ends_with_the_event_or_at_its_limit() {
        let limit = Duration::from_millis(60);
        let (reader, mut writer) = io::pipe().unwrap();
        for limit in [Duration::ZERO, limit] {
            let began = Instant::now();
            assert!(!wait_for(&reader, libc::POLLIN, began + limit) && began.elapsed() >= limit);
        }
        writer.write_all(b"x").unwrap();
        assert!(wait_for(&reader, libc::POLLIN, Instant::now()));

        let (sender, receiver) = channel();
        let began = Instant::now();
        assert_eq!(receive(&receiver, limit), Err(RecvTimeoutError::Timeout));
        assert!(began.elapsed() >= limit);
        sender.send(1).unwrap();
        assert_eq!(receive(&receiver, limit), Ok(1));
        drop(sender);
        assert_eq!(receive(&receiver, limit), Err(RecvTimeoutError::Disconnected));
    }
}
