//! The limit on this process's file descriptors (getrlimit(2)).

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Enough for every vCPU, device and vsock connection of one machine.
const NOFILE_TARGET: u64 = 4096;

/// Raises the soft limit, 1024 on most hosts, to 4096 or to the hard limit. The soft limit protects callers of
/// select(2), which this process does not use.
pub fn raise_nofile_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < NOFILE_TARGET
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(NOFILE_TARGET), hard); // on failure, the old limit applies
    }
}
