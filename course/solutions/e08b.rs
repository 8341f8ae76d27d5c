//! Solution of exercise 08b: a memory map with a hole.

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Returns the RAM (start, length) that a kernel may use, in order, of a guest with `ram` bytes: 2 MiB or more.
pub fn memory_map(ram: u64) -> Vec<(u64, u64)> {
    let low = ram.min(3 * GIB);
    let mut map = vec![(0, 640 << 10), (MIB, low - MIB)];
    if ram > low {
        map.push((4 * GIB, ram - low));
    }
    map
}
