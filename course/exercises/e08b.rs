//! Exercise 08b: a memory map with a hole.
//!
//! From 3 GiB to 4 GiB, a PC has devices and no RAM. If the guest has more than 3 GiB, the rest of its RAM begins at 4
//! GiB. The part from 640 KiB to 1 MiB is not RAM for the kernel, either.

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Returns the RAM (start, length) that a kernel may use, in order, of a guest with `ram` bytes: 2 MiB or more.
pub fn memory_map(ram: u64) -> Vec<(u64, u64)> {
    // TODO
    let _ = (3 * GIB, 4 * GIB);
    vec![(0, 640 << 10), (MIB, ram - MIB)]
}
