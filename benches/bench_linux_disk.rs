//! Compares the disk reads of guests with those under QEMU's microvm: `scripts/cargo bench --bench bench_linux_disk`.
//!
//! Both VMMs boot the same stock kernel, and this program runs in both guests. The disk image is in memory, so the
//! benchmark measures the path to it. Both guests run at the same time and read in turns. Each VMM has its own
//! processor, as with pinned vCPUs. The result is the median of the ratios of neighbouring turns, for each of two of
//! QEMU's engines. The numbers of exits are from KVM's statistics (debugfs), those of interrupts from the guest's
//! /proc/interrupts.

#[path = "../tests/common/cpio.rs"]
mod cpio;
#[path = "disk/guest.rs"]
mod guest;
#[path = "disk/host.rs"]
mod host;
#[path = "disk/side.rs"]
mod side;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("--guest") => guest::main(),
        _ => host::main(),
    }
}
