//! Compares a directory that a guest shares with QEMU's microvm: `scripts/cargo bench --bench bench_linux_share`.
//!
//! The same kernel, Debian's generic one, which has 9p, reads the same files through kickvm, through QEMU with
//! Debian's virtiofsd, and through QEMU with its 9p. The guests run at the same time and read in turns. The result is
//! the median of the ratios of neighbouring turns. Then the cost of a shared root is measured.

#[path = "../tests/common/cpio.rs"]
mod cpio;
#[path = "share/guest.rs"]
mod guest;
#[path = "share/host.rs"]
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
