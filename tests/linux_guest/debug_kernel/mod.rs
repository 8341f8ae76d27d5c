//! The kernel of `resources/kernel-config-debug`, which finds faults in itself: faults on purpose, and the kernel's own
//! tests. scripts/build-kernel also builds some of the kernel's tests for user space.

mod faults;
mod tests;

use crate::common::{TempDir, read_report};
use crate::support::guest::{Ended, Guest};
use serde_json::Value;
use std::time::{Duration, Instant};

/// The time limit of a guest. This kernel is several times slower than others.
const PATIENCE: Duration = Duration::from_secs(400);

/// Runs `guest` to its end. Returns how it ended, and its JSON report.
#[track_caller]
fn run(guest: Guest) -> (Ended, Value) {
    let dir = TempDir::new();
    let report = dir.path().join("report");
    let mut running = guest.options(&["--report", report.to_str().expect("it is text")]).start();
    running.child.stdin = None;
    running.deadline = Instant::now() + PATIENCE;
    let ended = running.finish();
    println!("{}", ended.stdout); // for a test that fails
    (ended, read_report(&report))
}
