//! Memory that the guest does not need returns to the host, and the guest continues.

use crate::support::devices::job;
use crate::support::guest::{Guest, Running};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// Resident memory of `guest` on the host, in MiB.
fn resident(guest: &Running) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", guest.child.id())).expect("kickvm runs");
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
    kib.expect("there is a VmRSS").trim().parse::<u64>().expect("a number") >> 10
}

#[track_caller]
fn wait_until(guest: &Running, what: &str, holds: impl Fn(u64) -> bool) {
    while !holds(resident(guest)) {
        assert!(Instant::now() < guest.deadline, "{what}: {} MiB are resident", resident(guest));
        thread::sleep(Duration::from_millis(100));
    }
}

#[track_caller]
fn returns_free_memory(guest: Guest) {
    let script = "
        dd if=/dev/zero of=/tmp/fill bs=1M count=128 2>/dev/null
        echo full
        read go
        rm /tmp/fill
        read go
        dd if=/dev/zero of=/tmp/fill bs=1M count=100 2>/dev/null && echo alive";
    let guest = guest.options(&["--balloon"]);
    let mut guest = job(guest, script).start();
    guest.wait_for_line("full");
    let full = resident(&guest);
    assert!(full >= 128, "{full} MiB");
    guest.write("go\n");
    wait_until(&guest, "after 128 MiB were freed", |now| now + 64 <= full);
    guest.write("go\n");
    guest.wait_for_line("alive");
    guest.finish().assert(0, &[]);
}

#[track_caller]
fn inflates_to_its_size(guest: Guest) {
    // Free page reporting does not interfere: the guest has touched its memory before the driver is loaded.
    let guest = guest.options(&["--balloon", "size=100M"]);
    let script = "
        until [ $(sed -n 's/^MemFree: *\\(.*\\) kB/\\1/p' /proc/meminfo) -lt 150000 ]; do sleep 0.1; done
        echo inflated
        read go
        dd if=/dev/zero of=/tmp/fill bs=1M count=40 2>/dev/null && echo alive";
    let mut guest = job(guest, script).start();
    guest.wait_for_line("inflated");
    guest.write("go\n");
    guest.wait_for_line("alive");
    guest.finish().assert(0, &[]);
}

#[test]
fn a_stock_kernel_returns_free_memory() {
    returns_free_memory(linux!(Stock));
}

#[test]
fn our_kernel_returns_free_memory() {
    returns_free_memory(linux!(BzImage));
}

#[test]
fn a_stock_kernel_inflates_the_balloon_to_its_size() {
    inflates_to_its_size(linux!(Stock));
}

#[test]
fn our_kernel_inflates_the_balloon_to_its_size() {
    inflates_to_its_size(linux!(BzImage));
}
