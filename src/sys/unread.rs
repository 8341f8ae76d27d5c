//! The bytes of a pipe that its reader has not read (FIONREAD, ioctl(2)).

use std::os::fd::{AsFd, AsRawFd};

/// The number of bytes in `pipe`; 0 if it is none.
pub fn unread_bytes(pipe: &impl AsFd) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the call writes an `int`, which is a live local.
    let result = unsafe { libc::ioctl(pipe.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if result < 0 { 0 } else { usize::try_from(bytes).unwrap_or(0) }
}
