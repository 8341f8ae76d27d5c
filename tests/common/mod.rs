//! Support code that both guest test binaries (`tiny_guest` and `linux_guest`) use. Code that only one of them needs
//! belongs in that binary's `support` module, so the compiler reports support code without a user.

pub mod process;
pub mod pty;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The path of the test function that contains the call, with the name of the test binary in front.
#[macro_export]
macro_rules! this_test {
    () => {{
        fn here() {}
        std::any::type_name_of_val(&here).trim_end_matches("::here")
    }};
}

/// The name of the test at `path` (see [`this_test`]) in the test harness: the path without the test binary.
pub fn harness_name(path: &str) -> &str {
    path.split_once("::").map_or(path, |(_, name)| name)
}

/// Returns whether `test` can run. If not, prints its name and the reason, and panics if `KICKVM_REQUIRE_KVM` is 1.
pub fn can_run(test: &str, possible: Result<(), String>) -> bool {
    let Err(why) = possible else { return true };
    let message = format!("kickvm: could not run {test}: {why}");
    assert_ne!(std::env::var("KICKVM_REQUIRE_KVM").as_deref(), Ok("1"), "{message}");
    let _ = writeln!(std::io::stderr(), "\n{message}"); // not eprintln, which the test harness would capture
    false
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
        state as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}
