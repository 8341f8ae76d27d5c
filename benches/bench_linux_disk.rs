//! How fast a guest reads its disk, against `qemu-system-x86_64 -M microvm`: `scripts/cargo bench --bench bench_linux_disk`.
//!
//! Both run the same stock kernel and the same program, which is this one once more, in the guest. The image is in memory, so what
//! is measured is the way there. The guests are there at the same time and read by turns, on a processor of their own as where vCPUs
//! are pinned; what counts is the median of the ratios of neighbouring turns, against each of two of QEMU's engines. From KVM's
//! statistics (debugfs) come exits, from the guest's /proc/interrupts interrupts.

#[path = "../tests/common/cpio.rs"]
mod cpio;
#[path = "disk/guest.rs"]
mod guest;
#[path = "disk/host.rs"]
mod host;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("--guest") => guest::main(),
        _ => host::main(),
    }
}
