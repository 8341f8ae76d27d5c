//! Waiting for a guest, with a deadline.

use crate::common::process::readable;
use std::os::fd::AsFd;
use std::time::Duration;

/// How long a test waits for data from a guest, which boots, loads its drivers and works on an emulated processor.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until the guest makes `descriptor` readable.
#[track_caller]
pub fn wait_for_guest(descriptor: impl AsFd) {
    assert!(readable(&descriptor, PATIENCE), "nothing came from the guest within {PATIENCE:?}");
}
