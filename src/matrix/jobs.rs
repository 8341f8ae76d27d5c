//! How many runs fit on this host.

use std::fs;
use std::thread::available_parallelism;

/// What a run needs besides the guest's RAM, in bytes.
const OVERHEAD: u64 = 64 << 20;

/// The number of guests with `cpus` vCPUs and `memory` bytes of RAM that this host can run at the same time, by its
/// processors and its available memory; at least 1.
pub fn default_jobs(cpus: u8, memory: u64) -> usize {
    let processors = available_parallelism().map_or(1, usize::from);
    let by_memory = available_memory().map_or(u64::MAX, |available| available / memory.saturating_add(OVERHEAD));
    (processors / usize::from(cpus.max(1))).min(usize::try_from(by_memory).unwrap_or(usize::MAX)).max(1)
}

/// In bytes (proc_meminfo(5)).
fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}
