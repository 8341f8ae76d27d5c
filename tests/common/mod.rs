//! Support code that both guest test binaries (`tiny_guest` and `linux_guest`) use. Code that only one of them needs
//! belongs in that binary's `support` module, so the compiler reports support code without a user.

mod can_run;
pub mod fuse;
pub mod process;
pub mod pty;
mod report;

pub use can_run::can_run;
pub use report::read_report;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The name of the test at `path` (see [`this_test`]) in the test harness: the path without the test binary.
pub fn harness_name(path: &str) -> &str {
    path.split_once("::").map_or(path, |(_, name)| name)
}

/// A directory that is deleted, with its files, when dropped.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("kickvm-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // a failed test may have made it unreadable
    }
}

/// Pseudo-random bytes, the same in each call.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let next = || {
        // xorshift (Marsaglia 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(len).collect()
}
