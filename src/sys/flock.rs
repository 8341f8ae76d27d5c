//! Locks of open files (flock(2)). They belong to the open file, so they last until all its descriptors are closed,
//! also those of other processes. `nix`'s would be released before; std's needs Rust 1.89.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Locks `file` against all other users, or against other `exclusive` ones.
///
/// # Errors
///
/// [`WouldBlock`](io::ErrorKind::WouldBlock) if another open file has a lock, or the error of flock(2).
pub fn try_lock(file: &File, exclusive: bool) -> io::Result<()> {
    let kind = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: the call takes no pointer.
    match unsafe { libc::flock(file.as_raw_fd(), kind | libc::LOCK_NB) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
