//! Waiting for what a guest does, with a deadline.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::time::Duration;

/// How long a test waits for what a guest sends: it boots, loads its drivers and does its work, on an emulated processor.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until a guest does something about `descriptor`; one that has failed never does.
#[track_caller]
pub fn wait_for_guest(descriptor: impl AsFd) {
    // Second by second, so that a pause of the whole machine does not count as waiting.
    let ready = (0..PATIENCE.as_secs()).any(|_| {
        let second = PollTimeout::from(1000u16);
        poll(&mut [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)], second).expect("it can be polled") == 1
    });
    assert!(ready, "nothing came from the guest within {PATIENCE:?}");
}
