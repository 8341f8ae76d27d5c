//! Exercise 08a: an initramfs at the wrong place.
//!
//! Linux prints "No working init found", or overwrites the archive while it unpacks itself. The archive must begin on a
//! page boundary, lie in RAM, behind the kernel's memory, and not end behind `initrd_addr_max`, the last byte that is
//! allowed.

/// Returns the highest address for an initramfs of `len` bytes, if there is one. RAM ends at `ram`, and the kernel
/// needs the memory up to `kernel_end`.
pub fn initramfs_address(len: u64, ram: u64, kernel_end: u64, initrd_addr_max: u32) -> Option<u64> {
    // TODO: three of the four conditions are missing, and the subtraction can fail.
    let _ = (kernel_end, initrd_addr_max);
    Some(ram - len)
}
