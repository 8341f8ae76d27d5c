//! Reaping any child process. `nix` cannot represent a death by a real-time signal, and `std` waits for a given child
//! only.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// A child process that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExitedChild {
    /// Its process ID.
    pub pid: i32,
    /// Its exit status as a shell reports it: 0 to 255, or 128 plus the number of the signal that killed it.
    pub status: u8,
}

/// Reaps one child that has ended. `None` if no child has ended.
pub(crate) fn try_wait_any() -> Option<ExitedChild> {
    loop {
        let mut status = 0;
        // SAFETY: the call writes one `int`, to a live local.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
        if pid <= 0 {
            return None; // with WNOHANG the call is never interrupted
        }
        let status = ExitStatus::from_raw(status);
        // Neither code nor signal: the child was stopped or continued.
        if let Some(status) = status.code().or_else(|| status.signal().map(|number| 128 + number)) {
            return Some(ExitedChild { pid, status: status.to_le_bytes()[0] });
        }
    }
}
