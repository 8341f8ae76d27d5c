//! Exit statuses of child processes. `nix` and `std` cannot represent a death by a real-time signal; wait(2) can.

use std::io;

/// A child that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Its process ID.
    pub pid: i32,
    /// Its exit status as a shell reports it: 0 to 255, or 128 plus the number of the signal that killed it.
    pub status: u8,
}

/// Reaps one child that has ended; `None` if all children are running, or there are none.
pub(crate) fn try_wait_any() -> Option<Ended> {
    let mut status = 0;
    loop {
        // SAFETY: the call writes an `int`, which is a live local.
        match unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) } {
            pid if pid > 0 && libc::WIFEXITED(status) => {
                return Some(Ended { pid, status: libc::WEXITSTATUS(status) as u8 });
            }
            pid if pid > 0 && libc::WIFSIGNALED(status) => {
                return Some(Ended { pid, status: 128u8.saturating_add(libc::WTERMSIG(status) as u8) });
            }
            pid if pid > 0 => {} // stopped or continued: not requested, so not expected
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return None,
        }
    }
}
