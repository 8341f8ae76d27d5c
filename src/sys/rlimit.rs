//! How many file descriptors this process may have.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What the most sockets and devices of one machine need.
const NOFILE_TARGET: u64 = 4096;

/// Raises the limit as far as is needed and the hard limit allows. The usual soft limit is low for the sake of select(2)
/// (getrlimit(2)), which nothing in here calls.
pub fn raise_nofile_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < NOFILE_TARGET
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(NOFILE_TARGET), hard); // if not, there is less room
    }
}
