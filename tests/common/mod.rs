//! What the tests of the program share: guests of a few instructions as kernel files, and a kickvm under a deadline.
#![allow(dead_code)] // each test binary needs its part

pub mod fuse;
pub mod guest;
pub mod images;
pub mod run;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long anything may take before a test gives up on it.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Ends the test that says this if KVM cannot be used.
#[macro_export]
macro_rules! need_kvm {
    () => {{
        fn here() {}
        if !$crate::common::can_run(std::any::type_name_of_val(&here), $crate::common::has_kvm()) {
            return;
        }
    }};
}

pub fn has_kvm() -> Result<(), String> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("/dev/kvm: {error}")),
    }
}

/// Whether a test can run; if not, that is said by its name, and is a failure if `KICKVM_REQUIRE_KVM` is 1.
pub fn can_run(test: &str, possible: Result<(), String>) -> bool {
    let Err(why) = possible else { return true };
    let message = format!("kickvm: could not run {}: {why}", test.trim_end_matches("::here"));
    assert_ne!(std::env::var("KICKVM_REQUIRE_KVM").as_deref(), Ok("1"), "{message}");
    let _ = writeln!(std::io::stderr(), "\n{message}"); // not eprintln, which the test harness would hide
    false
}

/// A directory that goes away with its files.
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

    /// The names of the files in it, in order.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // a test that failed may have made it unreadable
    }
}

/// Bytes without a pattern, the same each time.
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
