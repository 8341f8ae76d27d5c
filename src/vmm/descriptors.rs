//! How many file descriptors this process may have.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What the most sockets and devices of one machine need.
const ENOUGH: u64 = 4096;

/// Raises the limit as far as is needed and the hard limit allows. The usual soft limit is low for the sake of select(2)
/// (getrlimit(2)), which nothing in here calls.
pub fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < ENOUGH
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(ENOUGH), hard); // if not, there is less room
    }
}
