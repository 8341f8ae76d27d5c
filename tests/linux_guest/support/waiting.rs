//! Waiting for what a guest does, with a deadline.

use crate::common::process::readable;
use std::os::fd::AsFd;
use std::time::Duration;

/// How long a test waits for what a guest sends: it boots, loads its drivers and does its work, on an emulated processor.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until a guest does something about `descriptor`; one that has failed never does.
#[track_caller]
pub fn wait_for_guest(descriptor: impl AsFd) {
    assert!(readable(&descriptor, PATIENCE), "nothing came from the guest within {PATIENCE:?}");
}
