//! A test's own network namespace.

use nix::sched::{CloneFlags, unshare};
use std::process::Command;

/// Moves the calling thread, and the processes it starts later, to a new network namespace.
pub fn own_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("root can make a network namespace");
    ip("link set lo up");
}

/// Runs ip(8).
#[track_caller]
pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {arguments}");
}

/// Creates the tap interface kick0, up, with the address 10.9.0.1.
pub fn tap(mtu: u32) {
    ip("tuntap add mode tap name kick0");
    ip(&format!("link set kick0 mtu {mtu} up"));
    ip("addr add 10.9.0.1/24 dev kick0");
}
