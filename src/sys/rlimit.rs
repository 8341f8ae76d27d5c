//! The limit on this process's file descriptors (getrlimit(2)).

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Enough for every vCPU, device and vsock connection of one machine.
const NOFILE_TARGET: u64 = 4096;

/// The limits before this process raised its own.
static ORIGINAL: OnceLock<(u64, u64)> = OnceLock::new();

/// The soft and the hard limit that this process was started with.
pub fn nofile_limit() -> (u64, u64) {
    *ORIGINAL.get_or_init(|| getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, NOFILE_TARGET)))
}

/// Raises the soft limit, 1024 on most hosts, to 4096 or to the hard limit. The soft limit protects callers of
/// select(2), which this process does not use.
pub fn raise_nofile_limit() {
    let (soft, hard) = nofile_limit();
    if soft < NOFILE_TARGET {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(NOFILE_TARGET), hard); // on failure, the old limit applies
    }
}
