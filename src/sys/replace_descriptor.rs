//! Replacing the file of a descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// Lets the descriptor `number` refer to `file`. It stays open across execve(2).
///
/// # Errors
///
/// The error of dup2(2).
pub fn replace_descriptor(number: RawFd, file: &File) -> io::Result<()> {
    // SAFETY: dup2 accesses no memory. The descriptor that it closes stays open, as another file.
    match unsafe { libc::dup2(file.as_raw_fd(), number) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
