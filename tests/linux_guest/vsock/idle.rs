//! While an idle machine with every device does nothing, the event loop sleeps.

use super::busy::quiet_network;
use crate::common::TempDir;
use crate::support::devices::job;
use crate::support::guest::{Guest, Running};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// How long the loop must sleep.
const PERIOD: Duration = Duration::from_secs(5);

/// The number of wake-ups of the event loop's thread, and its CPU time in clock ticks.
fn event_loop(guest: &Running) -> (u64, u64) {
    let id = guest.child.id();
    let status = fs::read_to_string(format!("/proc/{id}/task/{id}/status")).expect("kickvm runs");
    let wakes = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    let stat = fs::read_to_string(format!("/proc/{id}/task/{id}/stat")).expect("kickvm runs");
    let after_name = stat.rsplit(')').next().expect("there is a name");
    let field = |number: usize| after_name.split_whitespace().nth(number - 3).and_then(|field| field.parse().ok());
    let time: Option<u64> = field(14).zip(field(15)).map(|(user, system): (u64, u64)| user + system); // proc(5)
    (wakes.expect("it is counted").trim().parse().expect("a number"), time.expect("it is counted"))
}

#[track_caller]
fn stays_idle(guest: Guest) {
    quiet_network();
    let dir = TempDir::new();
    let disks = ["first", "second"].map(|name| dir.file(name, &[0; 4096]));
    let vsock = format!("cid=3,socket={}", dir.path().join("vsock").display());
    let mut guest = guest.options(&["--net", "tap=kick0", "--vsock", &vsock, "--balloon"]);
    for disk in &disks {
        guest = guest.options(&["--disk", disk.to_str().expect("a path of ASCII")]);
    }
    let mut guest = job(guest, "echo idle; read line; echo bye").start();
    guest.wait_for_line("idle");
    // For some seconds the guest still reports free pages and fills its entropy pool.
    let mut before = event_loop(&guest);
    loop {
        thread::sleep(PERIOD);
        let now = event_loop(&guest);
        if now == before {
            break;
        }
        let more = (now.0 - before.0, now.1 - before.1);
        assert!(Instant::now() < guest.deadline, "woken {} times, for {} ticks, in {PERIOD:?}", more.0, more.1);
        before = now;
    }
    guest.write("\n");
    guest.wait_for_line("bye");
    guest.finish().assert(0, &[]);
}

#[test]
fn a_stock_kernel_with_every_device_leaves_the_loop_idle() {
    stays_idle(linux!(Stock));
}

#[test]
fn our_kernel_with_every_device_leaves_the_loop_idle() {
    stays_idle(linux!(BzImage));
}
